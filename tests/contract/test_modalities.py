"""What every modality keeps. A new module of coembed.modalities is picked up unasked; it adds one
entry to each of the two tables below.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coembed.errors import DataError
from coembed.modalities.base import InputSpec, Loader, load_loader, modality_module, modality_names
from coembed.types import MODALITIES

EMBED_DIM = 24


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


SECTIONS: dict[str, dict[str, Any]] = {
    "image": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text": {"context_length": 8, "width": 32, "heads": 2, "layers": 1},
}
ITEMS: dict[str, Callable[[int], Any]] = {
    "image": _picture,
    "text": lambda number: f"text of number {number}",
}


def _spec(name: str) -> InputSpec:
    return modality_module(name).describe(SECTIONS[name], {})


def _loader(name: str) -> Loader:
    return load_loader(name, _spec(name))


def test_every_modality_has_a_case() -> None:
    assert set(modality_names()) == set(SECTIONS) == set(ITEMS)
    assert set(modality_names()) <= set(MODALITIES)


@pytest.mark.parametrize("name", modality_names())
def test_the_spec_survives_json(name: str) -> None:
    spec = _spec(name)
    module = modality_module(name)
    assert isinstance(spec, module.Spec)
    assert module.Spec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("name", modality_names())
def test_items_go_through_the_loader_and_the_tower(name: str) -> None:
    loader = _loader(name)
    tower = modality_module(name).build_tower(EMBED_DIM, SECTIONS[name], quick_gelu=False)
    items = [ITEMS[name](number) for number in range(5)]
    batch = loader.load(items)
    assert len(batch) == 5 and batch.dtype == loader.dtype
    features = tower(loader.to_inputs(batch))
    assert features.shape == (5, EMBED_DIM)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", modality_names())
def test_an_item_is_loaded_alike_alone_and_in_company(name: str) -> None:
    loader = _loader(name)
    items = [ITEMS[name](number) for number in range(4)]
    together = loader.load(items)
    for place, item in enumerate(items):
        torch.testing.assert_close(loader.load([item])[0], together[place], atol=0, rtol=0)


@pytest.mark.parametrize("name", modality_names())
def test_the_example_has_the_shape_of_a_loaded_item(name: str) -> None:
    loader = _loader(name)
    example, loaded = loader.example(), loader.load([ITEMS[name](0)])
    assert example.shape == loaded.shape and example.dtype == loaded.dtype


@pytest.mark.parametrize("name", modality_names())
def test_nothing_is_loaded_from_nothing(name: str) -> None:
    assert len(_loader(name).load([])) == 0


@pytest.mark.parametrize("name", modality_names())
def test_an_item_of_the_wrong_kind_is_named(name: str) -> None:
    wrong: Any = b"no image" if name != "text" else 3
    with pytest.raises(DataError, match=f"{name} 4"):
        _loader(name).load([ITEMS[name](0), wrong], first=3)


@pytest.mark.parametrize("name", modality_names())
def test_the_tower_depends_on_torchs_generator_alone(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        tower = modality_module(name).build_tower(EMBED_DIM, SECTIONS[name], quick_gelu=True)
        states.append(tower.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", modality_names())
def test_identity_is_plain_and_stable(name: str) -> None:
    import json

    assert json.dumps(dict(_loader(name).identity())) == json.dumps(dict(_loader(name).identity()))

"""What every modality keeps. A new module of coembed.modalities is picked up unasked; it adds one
entry to SECTIONS and ITEMS below, and to AUGMENTS where it has a View.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from coembed import draws
from coembed.errors import DataError
from coembed.modalities._augment import AudioAugment, ImageAugment
from coembed.modalities.base import (
    InputSpec,
    Loader,
    View,
    load_loader,
    make_view,
    modality_module,
    modality_names,
)
from coembed.settings import Settings
from coembed.types import MODALITIES

EMBED_DIM = 24


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _sound(number: int) -> bytes:
    """A sound of 0.4, 1.2, 2.0, ... windows, in mono or stereo."""
    shape = (3200 + 6400 * number, 1 + number % 2)
    samples = np.random.default_rng(number).normal(0, 0.1, shape)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


SECTIONS: dict[str, dict[str, Any]] = {
    "image": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text": {"context_length": 8, "width": 32, "heads": 2, "layers": 1},
    "audio": {
        "timm_model_name": "test_resnet",
        "clip_s": 1.0,
        "sample_rate_hz": 8000,
        "num_mels": 32,
        "max_windows": 3,
    },
}
ITEMS: dict[str, Callable[[int], Any]] = {
    "image": _picture,
    "text": lambda number: f"text of number {number}",
    "audio": _sound,
}
AUGMENTS: dict[str, Settings] = {
    "image": ImageAugment(brightness=0.2),
    "audio": AudioAugment(),
}


def _spec(name: str) -> InputSpec:
    return modality_module(name).describe(SECTIONS[name], {})


def _loader(name: str) -> Loader:
    return load_loader(name, _spec(name))


def test_every_modality_has_a_case() -> None:
    assert set(modality_names()) == set(SECTIONS) == set(ITEMS)
    assert set(modality_names()) <= set(MODALITIES)
    assert set(AUGMENTS) == {name for name in modality_names() if _has_view(name)}


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
    alone = loader.join([loader.load([item]) for item in items])
    torch.testing.assert_close(alone, together, atol=0, rtol=0)
    in_parts = loader.join([loader.load(items[:3]), loader.load(items[3:])])
    torch.testing.assert_close(in_parts, together, atol=0, rtol=0)


@pytest.mark.parametrize("name", modality_names())
def test_an_items_features_do_not_depend_on_its_company(name: str) -> None:
    loader = _loader(name)
    tower = modality_module(name).build_tower(EMBED_DIM, SECTIONS[name], quick_gelu=False).eval()
    items = [ITEMS[name](number) for number in range(4)]
    with torch.inference_mode():
        together = tower(loader.to_inputs(loader.load(items)))
        alone = [tower(loader.to_inputs(loader.load([item]))) for item in items]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", modality_names())
def test_no_item_is_larger_than_the_loader_says(name: str) -> None:
    loader = _loader(name)
    assert loader.load([ITEMS[name](20)]).nbytes <= loader.max_item_bytes()


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
    assert json.dumps(dict(_loader(name).identity())) == json.dumps(dict(_loader(name).identity()))


def _has_view(name: str) -> bool:
    return hasattr(modality_module(name), "View")


def _view(name: str, augment: Settings | None) -> View:
    return make_view(name, _spec(name), augment)


def _kept(view: View, name: str, num: int = 5) -> list[np.ndarray]:
    """What the view keeps of items, as it comes back from a cache: flat and read-only."""
    kept = []
    for number in range(num):
        one = view.keep(ITEMS[name](number))
        assert one.dtype == view.dtype and one.flags.c_contiguous
        flat = one.reshape(-1).copy()
        flat.flags.writeable = False
        kept.append(flat.reshape(view.shape(flat.size)))
        assert kept[-1].shape == one.shape
    return kept


KEYS = draws.sample_keys([f"{number:x}" * 64 for number in range(1, 6)])


@pytest.mark.parametrize("name", AUGMENTS)
def test_without_augmentation_a_view_shows_what_the_loader_gives(name: str) -> None:
    view = _view(name, None)
    seen = view.see(_kept(view, name), KEYS, seed=1, epoch=0)
    expected = _loader(name).load([ITEMS[name](number) for number in range(5)]).numpy()
    assert seen.dtype == view.dtype == expected.dtype
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(view.see(_kept(view, name), KEYS, seed=2, epoch=1), seen)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("augmented", [False, True])
def test_what_a_view_shows_in_parts_is_joined(name: str, augmented: bool) -> None:
    view = _view(name, AUGMENTS[name] if augmented else None)
    kept = _kept(view, name)
    whole = view.see(kept, KEYS, seed=1, epoch=2)
    places = (slice(0, 1), slice(1, 4), slice(4, 5))
    parts = [view.see(kept[place], KEYS[place], seed=1, epoch=2) for place in places]
    np.testing.assert_array_equal(view.join(parts), whole)
    np.testing.assert_array_equal(view.join([whole]), whole)


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_view_shows_something_else_in_another_epoch_and_for_another_seed(name: str) -> None:
    view = _view(name, AUGMENTS[name])
    kept = _kept(view, name)
    first = view.see(kept, KEYS, seed=1, epoch=0)
    assert first.dtype == view.dtype and len(first) == 5
    np.testing.assert_array_equal(view.see(kept, KEYS, seed=1, epoch=0), first)
    for other in (view.see(kept, KEYS, seed=1, epoch=1), view.see(kept, KEYS, seed=2, epoch=0)):
        assert other.shape == first.shape
        assert all((one != same).any() for one, same in zip(other, first, strict=True))


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_a_view_shows_of_an_item_does_not_depend_on_its_company(name: str) -> None:
    view = _view(name, AUGMENTS[name])
    kept = _kept(view, name)
    together = view.see(kept, KEYS, seed=1, epoch=3)
    order = [3, 0, 4]
    some = view.see([kept[i] for i in order], KEYS[order], seed=1, epoch=3)
    np.testing.assert_array_equal(some, together[order])


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_a_view_shows_goes_through_the_tower(name: str) -> None:
    loader = _loader(name)
    tower = modality_module(name).build_tower(EMBED_DIM, SECTIONS[name], quick_gelu=False)
    for augment in (None, AUGMENTS[name]):
        view = _view(name, augment)
        seen = torch.from_numpy(view.see(_kept(view, name), KEYS, seed=1, epoch=0))
        assert seen.dtype == loader.dtype
        features = tower(loader.to_inputs(seen))
        assert features.shape == (5, EMBED_DIM) and torch.isfinite(features).all()


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_view_keeps_nothing_that_cannot_be_decoded(name: str) -> None:
    with pytest.raises(DataError, match="not a readable"):
        _view(name, None).keep(b"nonsense")


@pytest.mark.parametrize("name", AUGMENTS)
def test_the_identity_of_a_view_says_what_is_kept(name: str) -> None:
    plain, augmented = _view(name, None), _view(name, AUGMENTS[name])
    assert json.loads(json.dumps(dict(plain.identity()))) == dict(plain.identity())
    assert plain.identity() != augmented.identity()

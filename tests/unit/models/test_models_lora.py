"""Adapters: what they leave alone, what they train, and that merging changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_towers import tiny_architecture
from torch import Tensor, nn

from coembed.errors import ConfigError
from coembed.models.build import build_towers
from coembed.models.joint import JointModel
from coembed.models.lora import add_lora, has_lora, merge_lora

_LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "where": "both", "seed": 3}
_INPUTS = {
    "image": torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(0)),
    "text": torch.tensor([[1, 5, 9, 49407, 0, 0, 0, 0], [1, 7, 49407, 0, 0, 0, 0, 0]]),
}

Build = Callable[..., JointModel]


@pytest.fixture
def build() -> Build:
    def make(kind: str = "vit", **changes: Any) -> JointModel:
        model = build_towers(tiny_architecture(kind), seed=1)
        for modality in model.modalities if kind != "convnet" else ("text",):
            add_lora(model, modality, **{**_LORA, **changes})
        return model

    return make


def _learn(model: JointModel, *, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        images, texts = (model.embed(m, _INPUTS[m]) for m in ("image", "text"))
        (images.sum() - texts[0] @ images[0]).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("kind", ["vit", "timm_vit"])
def test_at_first_nothing_changes(build: Build, kind: str) -> None:
    adapted = build(kind).eval()
    plain = build_towers(tiny_architecture(kind), seed=1).eval()
    assert has_lora(adapted) and not has_lora(plain)
    for modality, inputs in _INPUTS.items():
        torch.testing.assert_close(adapted.embed(modality, inputs), plain.embed(modality, inputs))


@pytest.mark.parametrize("kind", ["vit", "timm_vit"])
def test_merged_is_equal_and_bears_the_old_names(build: Build, kind: str) -> None:
    model = build(kind)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    _learn(model)
    trained = {m: model.eval().embed(m, inputs).detach() for m, inputs in _INPUTS.items()}
    merged = copy.deepcopy(model)
    merge_lora(merged)
    assert not has_lora(merged) and has_lora(model)
    plain = build_towers(tiny_architecture(kind), seed=2).eval()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(merged.state_dict())
    for modality, inputs in _INPUTS.items():
        for same in (merged, plain):
            found = same.embed(modality, inputs)
            torch.testing.assert_close(found, trained[modality], atol=1e-6, rtol=0)
    moved = max(
        (value - start[name]).abs().max().item()
        for name, value in model.state_dict().items()
        if name.endswith(".b")
    )
    assert moved > 1e-3


def test_the_merged_weight_is_the_formula(build: Build) -> None:
    model = build()
    _learn(model)
    block = model.towers["image"].transformer.resblocks[1]
    held = block.attn.parametrizations.in_proj_weight
    wanted = held.original + (8.0 / 4) * held[0].b @ held[0].a
    merge_lora(model)
    torch.testing.assert_close(block.attn.in_proj_weight, wanted, atol=1e-7, rtol=1e-6)


def test_only_adapters_and_the_projection_learn(build: Build) -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _learn(model)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    allowed = (".a", ".b", "image.proj", "encoder.text_projection")
    assert moved and all(name.endswith(allowed) for name in moved)
    matrices = [name for name in moved if name.endswith(".b")]
    # Two blocks a tower, four matrices each: in_proj, out_proj, c_fc, c_proj.
    assert len(matrices) == 2 * 2 * 4


@pytest.mark.parametrize(("where", "part"), [("attention", ".attn."), ("mlp", ".mlp.")])
def test_where(build: Build, where: str, part: str) -> None:
    names = [name for name, _ in build("timm_vit", where=where).named_parameters()]
    adapters = [name for name in names if name.endswith(".a")]
    assert adapters and all(part in name for name in adapters)


def test_what_is_drawn_depends_on_seed_and_name_alone(build: Build) -> None:
    def drawn(model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name.endswith(".a")}

    state = torch.random.get_rng_state()
    first, again, other = drawn(build()), drawn(build(where="both")), drawn(build(seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    attention = drawn(build(where="attention"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], value) for name, value in attention.items())
    assert not any(torch.equal(first[name], other[name]) for name in first)
    blocks = [first[name] for name in first if "in_proj" in name]
    assert not torch.equal(blocks[0], blocks[1])


def test_under_autocast(build: Build) -> None:
    model = build().eval()
    _learn(model)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        one, other = (m.embed("image", _INPUTS["image"]) for m in (model, merged))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_tower_of_convolutions_is_refused(build: Build) -> None:
    model = build("convnet")
    with pytest.raises(ConfigError, match="no attention or mlp matrices") as caught:
        add_lora(model, "image", **_LORA)
    assert "remove train.towers.image.lora" in (caught.value.hint or "")

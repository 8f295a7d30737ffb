"""Parameter groups, learning rates by tower and depth, and locks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_towers import tiny_architecture
from torch import Tensor
from training_runs import settings_of

from coembed.errors import ConfigError
from coembed.models.build import build_towers
from coembed.models.joint import JointModel
from coembed.models.lora import has_lora
from coembed.training.optim import (
    add_adapters,
    apply_locks,
    build_optimiser,
    learning_rate,
    locked_to_the_end,
    set_learning_rate,
    towers_locked,
    trained_parameters,
    warmup_steps,
)

_STEPS = 20


def _model(kind: str = "vit") -> JointModel:
    return build_towers(tiny_architecture(kind), seed=0)


def _groups(model: JointModel, **settings: Any) -> dict[str, dict[str, Any]]:
    """The group of each parameter in the optimiser, by name."""
    optimiser = build_optimiser(model, settings_of(**settings), num_steps=_STEPS)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimiser.param_groups for p in group["params"]}


def _inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor([[1, 5, 49407, 0], [1, 49407, 0, 0]])
    return {"image": torch.randn((2, 3, 32, 32), generator=generator), "text": tokens}


def _step(model: JointModel, optimiser: torch.optim.Optimizer, lr: float = 1e-3) -> None:
    za, zb = model(_inputs()).values()
    (model.logit_scale * (za - zb.roll(1, 0)).square().sum()).backward()
    set_learning_rate(optimiser, lr)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def test_decay_spares_norms_biases_and_scales() -> None:
    model = _model()
    groups = _groups(model, weight_decay=0.3)
    assert groups.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.3}
    assert "logit_scale" not in decayed
    assert all(model.get_parameter(name).ndim >= 2 for name in decayed)
    assert any(name.endswith("conv1.weight") for name in decayed)
    assert not any("positional_embedding" in name for name in decayed)


def test_optimiser_shrinks_only_what_decays() -> None:
    """With zero gradients a step of AdamW is the decay and nothing else."""
    model = _model()
    settings = settings_of(weight_decay=0.5)
    groups = _groups(model, weight_decay=0.5)
    optimiser = build_optimiser(model, settings, num_steps=_STEPS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        factor = 1 - settings.lr * 0.5 if groups[name]["weight_decay"] else 1
        torch.testing.assert_close(p, before[name] * factor)


def test_towers_of_their_own() -> None:
    towers = {"image": {"lr_scale": 0.1}, "text": {"weight_decay": 0.05}}
    groups = _groups(_model(), weight_decay=0.2, towers=towers)
    for name, group in groups.items():
        tower = name.split(".")[1] if name.startswith("towers.") else None
        assert group["tower"] == tower
        assert group["lr_scale"] == (0.1 if tower == "image" else 1.0)
        assert group["weight_decay"] in (0.0, 0.05 if tower == "text" else 0.2)
    assert groups["towers.text.encoder.text_projection"]["weight_decay"] == 0.05


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("vit", ["conv1.weight", "transformer.resblocks.0.mlp.c_fc.bias",
                 "transformer.resblocks.1.attn.in_proj_weight", "proj"]),
        ("timm_vit", ["trunk.patch_embed.proj.weight",
                      *(f"trunk.blocks.{n}.attn.qkv.weight" for n in range(6)),
                      "head.proj.weight"]),
        ("convnet", ["trunk.conv1.0.weight",
                     *(f"trunk.layer{n}.0.conv1.weight" for n in range(1, 5)),
                     "head.proj.weight"]),
        ("clip_resnet", ["conv1.weight", *(f"layer{n}.0.conv1.weight" for n in range(1, 5)),
                         "attnpool.c_proj.weight"]),
    ],
)  # fmt: skip
def test_rates_fall_with_depth(kind: str, layers: list[str]) -> None:
    groups = _groups(_model(kind), towers={"image": {"layer_decay": 0.5, "lr_scale": 2.0}})
    found = [groups[f"towers.image.{name}"]["lr_scale"] for name in layers]
    assert found == [2.0 * 0.5 ** (len(layers) - 1 - place) for place in range(len(layers))]
    assert groups["logit_scale"]["lr_scale"] == 1.0
    assert groups["towers.text.encoder.token_embedding.weight"]["lr_scale"] == 1.0


def test_embeddings_and_final_norms_have_their_place() -> None:
    groups = _groups(_model(), towers={"text": {"layer_decay": 0.5}})
    scale = {name: group["lr_scale"] for name, group in groups.items()}
    prefix = "towers.text.encoder"
    assert scale[f"{prefix}.token_embedding.weight"] == 0.125
    assert scale[f"{prefix}.positional_embedding"] == 0.125
    assert scale[f"{prefix}.ln_final.weight"] == 0.5  # the last block's
    assert scale[f"{prefix}.text_projection"] == 1.0


def test_layer_decay_of_a_tower_without_layers_is_refused() -> None:
    towers = {m: torch.nn.Linear(4, 4) for m in ("image", "text")}
    model = JointModel(towers, logit_scale=1.0)
    with pytest.raises(ConfigError, match="does not say what its layers are") as caught:
        build_optimiser(
            model, settings_of(towers={"image": {"layer_decay": 0.9}}), num_steps=_STEPS
        )
    assert "leave layer_decay at 1" in (caught.value.hint or "")


def test_every_group_has_its_share_of_the_rate() -> None:
    model = _model()
    optimiser = build_optimiser(
        model, settings_of(towers={"image": {"lr_scale": 0.1}}), num_steps=_STEPS
    )
    set_learning_rate(optimiser, 0.5)
    rates = {group["tower"]: group["lr"] for group in optimiser.param_groups}
    assert rates == {"image": pytest.approx(0.05), "text": 0.5, None: 0.5}


def test_optimiser_takes_its_settings() -> None:
    settings = settings_of(betas=[0.8, 0.95], eps=1e-7)
    for group in build_optimiser(_model(), settings, num_steps=_STEPS).param_groups:
        assert group["betas"] == (0.8, 0.95) and group["eps"] == pytest.approx(1e-7)
        assert group["fused"]


def test_a_tower_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train.towers names audio, but the model has image, text"
    ):
        build_optimiser(
            _model(), settings_of(towers={"audio": {"lr_scale": 0.1}}), num_steps=_STEPS
        )


def test_warmup_and_cosine() -> None:
    settings = settings_of(steps=20, lr=0.1, warmup=4, lr_floor=0.1)
    assert warmup_steps(settings, 20) == 4
    assert learning_rate(0, 20, settings) == pytest.approx(0.025)
    assert learning_rate(3, 20, settings) == pytest.approx(0.1)
    assert learning_rate(12, 20, settings) == pytest.approx(0.055)
    assert learning_rate(20, 20, settings) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("tower", "steps"),
    [
        ({"locked": False}, 0),
        ({"locked": True}, _STEPS),
        ({"locked": True, "unlock_at": 5}, 5),
        ({"locked": True, "unlock_at": 0.25}, 5),
        ({"locked": True, "unlock_at": 0.24}, 5),
        ({"locked": True, "unlock_at": 1.0}, 1),
        ({"locked": True, "unlock_at": 0}, 0),
        ({"locked": True, "unlock_at": 99}, _STEPS),
    ],
)
def test_how_long_a_tower_is_locked(tower: dict[str, Any], steps: int) -> None:
    settings = settings_of(towers={"image": tower})
    locked = [towers_locked(settings, step, _STEPS) == {"image"} for step in range(_STEPS)]
    assert locked == [step < steps for step in range(_STEPS)]
    assert locked_to_the_end(settings, _STEPS) == ({"image"} if steps == _STEPS else set())


def test_what_is_locked_to_the_end_stays_out() -> None:
    model = _model()
    settings = settings_of(towers={"image": {"locked": True}})
    trained = trained_parameters(model, settings, num_steps=_STEPS)
    assert not any(name.startswith("towers.image") for name in trained)
    assert "logit_scale" in trained and any(name.startswith("towers.text") for name in trained)
    settings = settings_of(towers={"image": {"locked": True}, "text": {"locked": True}})
    with pytest.raises(ConfigError, match="nothing is left to train"):
        build_optimiser(model, settings, num_steps=_STEPS)


def test_locks_hold_weights_statistics_and_modes() -> None:
    """A network with batch norms: its running statistics stay still, too."""
    model = _model("convnet")
    settings = settings_of(towers={"image": {"locked": True, "unlock_at": 2}})
    optimiser = build_optimiser(model, settings, num_steps=_STEPS)
    start = copy.deepcopy(model.state_dict())
    moved: list[set[str]] = []
    for step in range(4):
        apply_locks(model, towers_locked(settings, step, _STEPS))
        assert model.towers["image"].training == (step >= 2)
        assert model.towers["text"].training
        before = copy.deepcopy(model.state_dict())
        _step(model, optimiser)
        after = model.state_dict()
        moved.append({name for name in after if not torch.equal(after[name], before[name])})
    image = {name for name in start if name.startswith("towers.image.")}
    assert not (moved[0] | moved[1]) & image
    assert "towers.image.trunk.bn1.running_mean" in moved[2]
    assert "towers.image.head.proj.weight" in moved[2]
    assert any(name.startswith("towers.text.") for name in moved[0])
    steps = {
        float(optimiser.state[p]["step"])
        for name, p in model.named_parameters()
        if name.startswith("towers.image")
    }
    assert steps == {2.0}  # AdamW's own count begins with the first gradient


def test_unlocking_leaves_what_was_never_trained_alone() -> None:
    model = _model()
    fixed = model.towers["image"].positional_embedding.requires_grad_(False)
    names = trained_parameters(model, settings_of(), num_steps=_STEPS).keys()
    assert "towers.image.positional_embedding" not in names
    for locked in ({"image"}, {"image", "text"}, set(), {"image"}, set()):
        apply_locks(model, locked)
        # The set does not depend on the locks of the moment.
        assert trained_parameters(model, settings_of(), num_steps=_STEPS).keys() == names
    assert not fixed.requires_grad
    assert all(model.get_parameter(name).requires_grad for name in names)


def test_a_copy_keeps_its_locks() -> None:
    model = _model()
    apply_locks(model, {"image"})
    copied = copy.deepcopy(model)
    apply_locks(copied, set())
    assert all(p.requires_grad for p in copied.parameters())
    assert not any(p.requires_grad for p in model.towers["image"].parameters())


def test_adapters_train_in_place_of_a_tower() -> None:
    model = _model()
    lora = {"lora": {"rank": 2, "alpha": 4.0}, "layer_decay": 0.5}
    settings = settings_of(towers={"image": lora})
    add_adapters(model, settings, seed=3)
    assert has_lora(model.towers["image"]) and not has_lora(model.towers["text"])
    trained = trained_parameters(model, settings, num_steps=_STEPS)
    image = {name for name in trained if name.startswith("towers.image.")}
    assert "towers.image.proj" in image
    assert all(name.endswith((".a", ".b")) for name in image - {"towers.image.proj"})
    groups = _groups(model, towers={"image": lora})
    last = "towers.image.transformer.resblocks.1.mlp.c_fc.parametrizations.weight.0.a"
    assert groups[last]["lr_scale"] == 0.5
    apply_locks(model, set())
    start = copy.deepcopy(model.state_dict())
    _step(model, build_optimiser(model, settings, num_steps=_STEPS))
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, start[n])}
    assert {name for name in moved if name.startswith("towers.image.")} <= image

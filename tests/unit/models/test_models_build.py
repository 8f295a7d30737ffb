"""Building: what comes out, from which seed, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from coembed.errors import ModelError
from coembed.losses.softmax import Softmax
from coembed.models.build import build_model
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec

Change = dict[str, Any]


def _inputs(spec: ModelSpec, num: int = 6) -> dict[str, torch.Tensor]:
    px = spec.image.px
    pixels = torch.randint(
        0, 256, (num, px, px, 3), generator=torch.Generator().manual_seed(0)
    ).byte()
    texts = [f"a picture of number {n}" for n in range(num)]
    return {
        "image": spec.loader("image").to_inputs(pixels),
        "text": spec.loader("text").load(texts),
    }


def test_it_embeds_both_modalities(built: tuple[JointModel, ModelSpec]) -> None:
    model, spec = built
    embeddings = model(_inputs(spec))
    assert set(embeddings) == set(model.modalities) == {"image", "text"}
    for values in embeddings.values():
        assert values.shape == (6, 24) and values.dtype == torch.float32
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(6))


def test_features_are_what_embeddings_were_before_normalisation(
    built: tuple[JointModel, ModelSpec],
) -> None:
    model, spec = built
    model.eval()
    inputs = _inputs(spec)["image"]
    features = model.features("image", inputs)
    torch.testing.assert_close(
        model.embed("image", inputs), features / features.norm(dim=-1, keepdim=True)
    )


def test_embeddings_are_float32_under_autocast(built: tuple[JointModel, ModelSpec]) -> None:
    model, spec = built
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(_inputs(spec))
    assert {values.dtype for values in embeddings.values()} == {torch.float32}


def test_every_parameter_gets_a_gradient(built: tuple[JointModel, ModelSpec]) -> None:
    model, spec = built
    model.train()
    z = model(_inputs(spec))
    Softmax()(z["image"], z["text"], logit_scale=model.logit_scale).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    assert idle == ["logit_bias"]  # a softmax does not see it


def test_weights_are_a_function_of_the_seed_alone(architecture: Change) -> None:
    settings = ModelSettings(architecture=architecture)
    torch.manual_seed(1)
    first = build_model(settings, seed=5)[0].state_dict()
    torch.manual_seed(2)
    torch.randn(10)
    second = build_model(settings, seed=5)[0].state_dict()
    other = build_model(settings, seed=6)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["towers.image.conv1.weight"], other["towers.image.conv1.weight"])


def test_one_tower_does_not_depend_on_the_other(architecture: Change) -> None:
    first = build_model(ModelSettings(architecture=architecture), seed=5)[0]
    architecture["vision_cfg"]["layers"] = 1
    second = build_model(ModelSettings(architecture=architecture), seed=5)[0]
    for name, value in first.towers["text"].state_dict().items():
        assert torch.equal(value, second.towers["text"].state_dict()[name]), name


def test_torchs_own_generator_is_left_alone(architecture: Change) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    build_model(ModelSettings(architecture=architecture), seed=9)
    torch.testing.assert_close(torch.randn(3), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("in_architecture", "in_settings", "scale", "bias"),
    [
        ({}, {}, math.log(1 / 0.07), None),
        ({"init_logit_scale": 2.0, "init_logit_bias": -5}, {}, 2.0, -5.0),
        ({"init_logit_scale": 2.0}, {"init_logit_scale": 3.0}, 3.0, None),
        ({}, {"init_logit_scale": 0.0, "init_logit_bias": 0.0}, 0.0, 0.0),
        ({"init_logit_bias": None}, {}, math.log(1 / 0.07), None),
    ],
)
def test_where_scale_and_bias_come_from(
    architecture: Change, in_architecture: Change, in_settings: Change, scale: float, bias: float
) -> None:
    settings = ModelSettings(architecture={**architecture, **in_architecture}, **in_settings)
    model, spec = build_model(settings, seed=0)
    assert model.logit_scale.shape == ()
    assert model.logit_scale.item() == pytest.approx(scale)
    if bias is None:
        assert model.logit_bias is None
        assert "logit_bias" not in model.state_dict()
    else:
        assert model.logit_bias is not None and model.logit_bias.item() == bias
        assert model.logit_bias.shape == ()
    assert spec.architecture["init_logit_bias"] == bias


def test_a_missing_tower_is_named(built: tuple[JointModel, ModelSpec]) -> None:
    with pytest.raises(ModelError, match="no audio tower; it has image, text"):
        built[0].embed("audio", torch.zeros(1))
    with pytest.raises(ModelError, match="two or more towers"):
        JointModel({"image": torch.nn.Identity()}, logit_scale=0.0)


def test_three_towers_share_a_space() -> None:
    towers = {name: torch.nn.Linear(4, 8) for name in ("image", "text", "audio")}
    model = JointModel(towers, logit_scale=0.0)
    z = model({name: torch.randn(2, 4) for name in towers})
    assert {name: tuple(values.shape) for name, values in z.items()} == dict.fromkeys(
        towers, (2, 8)
    )


def test_what_weight_decay_leaves_alone(built: tuple[JointModel, ModelSpec]) -> None:
    model, _ = built
    names = model.no_weight_decay()
    assert names <= {name for name, _ in model.named_parameters()}
    assert {"logit_scale", "logit_bias", "towers.text.encoder.positional_embedding"} <= names
    assert "towers.text.encoder.token_embedding.weight" not in names
    assert all(p.ndim >= 2 for name, p in model.named_parameters() if name not in names)


def test_recomputing_activations_changes_no_gradient(architecture: Change) -> None:
    gradients = []
    for enable in (False, True):
        model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
        model.train()
        model.set_grad_checkpointing(enable)
        z = model(_inputs(spec))
        Softmax()(z["image"], z["text"], logit_scale=model.logit_scale).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("section", "change", "message", "hint"),
    [
        ("vision_cfg", {"pach_size": 8}, "vision_cfg has unknown keys: pach_size", "patch_size"),
        ("text_cfg", {"witdh": 8}, "text_cfg has unknown keys: witdh", "width"),
        ("text_cfg", {"vocab_size": 100}, "vocab_size 100 is less than", "49408"),
        ("vision_cfg", {"timm_model_name": "resnet999"}, "Unknown model", "vision_cfg"),
        (
            "vision_cfg",
            {"timm_model_name": "mobilenetv4_conv_small"},
            "cannot take inputs of shape",
            "timm_proj",
        ),
        ("vision_cfg", {"pool_type": "none"}, "expected .1, 24.", "pooling"),
    ],
)
def test_what_cannot_be_built_is_refused(
    architecture: Change, section: str, change: Change, message: str, hint: str
) -> None:
    architecture[section].update(change)
    settings = ModelSettings(architecture=architecture)
    with pytest.raises(ModelError, match=message) as caught:
        build_model(settings, seed=0)
    assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "resnet10t"},
        {"timm_model_name": "convnext_atto"},
        {"timm_model_name": "mobilenetv4_conv_small", "timm_proj": ""},
        {"timm_model_name": "vit_tiny_patch16_224"},
        {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    ],
)
def test_small_towers_of_many_kinds_train(architecture: Change, vision: Change) -> None:
    architecture["vision_cfg"] = {"image_size": 64, **vision}
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(_inputs(spec, num=4))
    loss = Softmax()(z["image"], z["text"], logit_scale=model.logit_scale)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters())

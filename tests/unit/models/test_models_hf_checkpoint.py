"""Checkpoints of transformers: equal embeddings, and what differs is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from timm.models import VisionTransformer
from torch import Tensor

from coembed.errors import ModelError
from coembed.models.build import build_model
from coembed.models.settings import ModelSettings

transformers = pytest.importorskip("transformers")

_TEXT = {
    "vocab_size": 49408, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 49406,
    "eos_token_id": 49407,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
        "mlp_ratio": 2.0,
    },
}  # fmt: skip
_TEXTS = ["a red shoe", "", "stripes and dots on a very long shirt with many more words than fit"]


def _randomise(model: torch.nn.Module) -> None:
    """transformers starts biases at zero and norms at one: a mistake in them would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def clip() -> Any:
    config = transformers.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
    _randomise(model)
    return model


@pytest.fixture(scope="module")
def clip_folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it. Read it; don't write into it."""
    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=[0.5, 0.4, 0.3], resample=2
    ).save_pretrained(folder)
    return folder


def _build(pretrained: Path, architecture: Any = ARCHITECTURE) -> Any:
    settings = ModelSettings(architecture=architecture, pretrained=str(pretrained))
    model, spec = build_model(settings, seed=1)
    return model.eval(), spec


def _pixels() -> Tensor:
    return torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(2))


def _features(found: Any) -> Tensor:
    """transformers 5 wraps what transformers 4 gives as it is."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _assert_equal_embeddings(model: Any, spec: Any, theirs: Any, *, atol: float = 1e-5) -> None:
    tokens = spec.loader("text").load(_TEXTS)
    with torch.no_grad():
        for modality, inputs, features in (
            ("text", tokens, theirs.get_text_features(input_ids=tokens)),
            ("image", _pixels(), theirs.get_image_features(pixel_values=_pixels())),
        ):
            wanted = torch.nn.functional.normalize(_features(features), dim=-1)
            torch.testing.assert_close(model.embed(modality, inputs), wanted, atol=atol, rtol=0)


def _edit(source: Path, target: Path, change: Any, name: str = "config.json") -> Path:
    """A copy of a checkpoint whose JSON `name` is changed; the weights are linked."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    values = json.loads((source / name).read_text())
    change(values)
    (target / name).unlink()
    (target / name).write_text(json.dumps(values))
    return target


def test_clip_gives_equal_embeddings(clip: Any, clip_folder: Path) -> None:
    model, spec = _build(clip_folder)
    _assert_equal_embeddings(model, spec, clip)
    assert model.logit_scale.item() == pytest.approx(clip.logit_scale.item())


def test_its_preprocessing_comes_along(clip_folder: Path) -> None:
    image = _build(clip_folder)[1].image
    assert image.mean == (0.5, 0.4, 0.3)
    assert (image.resize, image.interpolation, image.px) == ("shortest", "bilinear", 32)


def test_shards(clip: Any, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, spec = _build(tmp_path)
    _assert_equal_embeddings(model, spec, clip)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"names model-00002.*which is not there"):
        _build(tmp_path)


def test_shards_outside_the_folder_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(clip_folder / "config.json")
    index = {"weight_map": {"logit_scale": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a file beside it"):
        _build(tmp_path)


def test_plain_tensors_of_torch(clip: Any, clip_folder: Path, tmp_path: Path) -> None:
    """What older versions wrote, with their buffers of positions."""
    state = {**clip.state_dict(), "text_model.embeddings.position_ids": torch.arange(16)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").symlink_to(clip_folder / "config.json")
    model, spec = _build(tmp_path)
    _assert_equal_embeddings(model, spec, clip)


@pytest.mark.parametrize("eos", [2, 49407])
def test_the_old_end_token_is_the_largest_id(
    clip: Any, clip_folder: Path, tmp_path: Path, eos: int
) -> None:
    folder = _edit(clip_folder, tmp_path, lambda c: c["text_config"].update(eos_token_id=eos))
    model, spec = _build(folder)
    _assert_equal_embeddings(model, spec, clip)


def test_another_end_token_has_to_be_pooled_at(clip_folder: Path, tmp_path: Path) -> None:
    """transformers then searches for that token; the largest id would be another place."""
    folder = _edit(clip_folder, tmp_path, lambda c: c["text_config"].update(eos_token_id=320))
    with pytest.raises(ModelError, match=r"text_cfg.pool_type is 'argmax', .*has 'eos'") as caught:
        _build(folder)
    architecture = json.loads((caught.value.hint or "").partition(": ")[2])
    model, _ = _build(folder, architecture)
    tokens = torch.tensor([[49406, 1125, 320, 49407, *[0] * 12]])
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = _features(theirs.get_text_features(input_ids=tokens))
        torch.testing.assert_close(model.features("text", tokens), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quick_gelu": False}, "quick_gelu is False, the checkpoint has True"),
        ({"embed_dim": 32}, "embed_dim is 32, the checkpoint has 24"),
        ({"vision_cfg": {"layers": 2}}, "vision_cfg.layers is 2, the checkpoint has 3"),
        ({"vision_cfg": {"head_width": 16}}, "vision_cfg.head_width is 16, the checkpoint has 8"),
        ({"vision_cfg": {"patch_size": 16}}, "vision_cfg.patch_size is 16, the checkpoint has 8"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type is 'avg', .* has 'tok'"),
        ({"text_cfg": {"heads": 4}}, "text_cfg.heads is 4, the checkpoint has 2"),
        ({"text_cfg": {"vocab_size": 49500}}, "text_cfg.vocab_size is 49500, .* has 49408"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask is True"),
    ],
)
def test_another_architecture_is_named(
    clip_folder: Path, change: dict[str, Any], message: str
) -> None:
    architecture = copy.deepcopy(ARCHITECTURE)
    for key, value in change.items():
        if isinstance(value, dict):
            architecture[key] |= value
        else:
            architecture[key] = value
    with pytest.raises(ModelError, match=message) as caught:
        _build(clip_folder, architecture)
    written = json.loads((caught.value.hint or "").removeprefix("write as model.architecture: "))
    _build(clip_folder, written)


def test_image_size_and_context_may_differ(clip_folder: Path) -> None:
    architecture = copy.deepcopy(ARCHITECTURE)
    architecture["vision_cfg"]["image_size"] = 48
    architecture["text_cfg"]["context_length"] = 24
    model, spec = _build(clip_folder, architecture)
    assert spec.image.px == 48
    assert model.towers["text"].encoder.positional_embedding.shape == (24, 32)


def test_another_vocabulary_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = _edit(clip_folder, tmp_path, lambda _: None)
    specials = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {specials.get(word, word): n for word, n in SimpleTokenizer().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    _build(folder)
    swapped = {**words, "shoe</w>": words["hat</w>"], "hat</w>": words["shoe</w>"]}
    (folder / "vocab.json").write_text(json.dumps(swapped))
    with pytest.raises(ModelError, match="another vocabulary than CLIP's") as caught:
        _build(folder)
    assert "hf_tokenizer_name" in (caught.value.hint or "")


def test_other_kinds_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = _edit(clip_folder, tmp_path, lambda c: c.update(model_type="blip"))
    with pytest.raises(ModelError, match="of the kind 'blip'; expected one of clip, siglip"):
        _build(folder)


def test_a_folder_without_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(clip_folder / "config.json")
    with pytest.raises(ModelError, match="no weights in the transformers checkpoint"):
        _build(tmp_path)


def test_pixels_on_another_scale_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = _edit(
        clip_folder, tmp_path, lambda c: c.update(rescale_factor=1 / 127.5),
        name="preprocessor_config.json",
    )  # fmt: skip
    with pytest.raises(ModelError, match="rescales pixels"):
        _build(folder)


@pytest.fixture
def small_siglip() -> Iterator[str]:
    """A timm model of SigLIP's kind that is small."""

    def coembed_test_siglip(pretrained: bool = False, **options: Any) -> VisionTransformer:
        del pretrained
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)
        return VisionTransformer(
            **{
                "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
                "class_token": False, **options,
            }
        )  # fmt: skip

    registry = timm.models._registry._model_entrypoints
    registry[coembed_test_siglip.__name__] = coembed_test_siglip
    yield coembed_test_siglip.__name__
    del registry[coembed_test_siglip.__name__]


def test_siglip_gives_equal_embeddings(small_siglip: str, tmp_path: Path) -> None:
    """With GELU itself, which is what timm's image tower has; SigLIP's own is its approximation."""
    text = {**_TEXT, "hidden_act": "gelu", "intermediate_size": 128}
    vision = {**_VISION, "hidden_act": "gelu", "num_hidden_layers": 2}
    theirs = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=vision)
    ).eval()
    _randomise(theirs)
    theirs.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    architecture = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "timm_model_name": small_siglip, "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }  # fmt: skip
    model, spec = _build(tmp_path, architecture)
    _assert_equal_embeddings(model, spec, theirs)
    assert model.logit_bias is not None
    assert model.logit_bias.item() == pytest.approx(theirs.logit_bias.item())
    assert spec.image.resize == "squash" and spec.image.mean == (0.5, 0.5, 0.5)
    del architecture["text_cfg"]["pool_type"]
    with pytest.raises(ModelError, match=r"text_cfg.pool_type is 'argmax', .*has 'last'"):
        _build(tmp_path, architecture)

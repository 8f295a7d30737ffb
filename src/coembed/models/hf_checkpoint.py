"""Checkpoints of Hugging Face transformers: CLIPModel and SiglipModel folders in open_clip's names.

Such a folder holds config.json, the weights (model.safetensors, its shards with an index, or
pytorch_model.bin) and, mostly, preprocessor_config.json. Nothing of transformers is needed to read
it: the tensors are renamed, the projections of q, k and v packed into one, and two matrices turned
(transformers/models/clip/modeling_clip.py, siglip/modeling_siglip.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from coembed.errors import ModelError
from coembed.models.architecture import Architecture

_KINDS = ("clip", "siglip")
_INDEX = "model.safetensors.index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_CLIP_VOCABULARY = 49408

# What the configuration classes of transformers take for keys that config.json leaves out.
_TEXT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "clip": {
        "vocab_size": _CLIP_VOCABULARY, "hidden_size": 512, "intermediate_size": 2048,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407,
    },
    "siglip": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
_VISION_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "clip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
# hidden_act → (quick_gelu, act_kwargs) of open_clip.
_ACTIVATIONS: Final[dict[str, tuple[bool, dict[str, Any] | None]]] = {
    "quick_gelu": (True, None),
    "gelu": (False, None),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
}

# Settings that may differ: positional embeddings are resampled, and the rest is of training or of
# the tokenizer.
_FREE = {
    "vision_cfg": {"image_size", "patch_dropout", "output_tokens"},
    "text_cfg": {
        "context_length", "output_tokens", "hf_tokenizer_name", "tokenizer_mode",
        "tokenizer_kwargs", "pad_id",
    },
}  # fmt: skip

_RENAMES: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
        (r"^text_model\.final_layer_norm\.", "text.ln_final."),
        (r"^text_model\.head\.", "text.text_projection."),
        (r"^text_model\.encoder\.layers\.", "text.transformer.resblocks."),
        (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
        (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
        (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
        (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
        (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
        (r"(\.resblocks\.\d+)\.layer_norm(\d)\.", r"\1.ln_\2."),
        (r"(\.resblocks\.\d+)\.self_attn\.", r"\1.attn."),
        (r"(\.resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
        (r"(\.resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
    )
)
# SigLIP's image tower is a timm ViT in open_clip.
_TO_TIMM: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^visual\.conv1\.", "visual.trunk.patch_embed.proj."),
        (r"^visual\.positional_embedding$", "visual.trunk.pos_embed"),
        (r"^visual\.ln_post\.", "visual.trunk.norm."),
        (r"^visual\.transformer\.resblocks\.", "visual.trunk.blocks."),
        (r"(\.blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
        (r"(\.blocks\.\d+)\.attn\.in_proj_", r"\1.attn.qkv."),
        (r"(\.blocks\.\d+)\.attn\.out_proj\.", r"\1.attn.proj."),
        (r"(\.blocks\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
        (r"(\.blocks\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
        (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
        (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
        (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
        (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    )
)  # fmt: skip


def read_hf_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a transformers checkpoint; None where `folder` holds no such thing.

    Raises ModelError for a transformers model of another kind, which open_clip cannot hold.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is None:
        return None
    if kind not in _KINDS:
        raise ModelError(
            f"{path} describes a transformers model of the kind {kind!r}; expected one of "
            f"{', '.join(_KINDS)}",
            hint="coembed reads CLIPModel and SiglipModel checkpoints of transformers",
        )
    return dict(config)


def hf_weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors. Raises ModelError."""
    for name in _WHOLE[:1]:
        if (folder / name).is_file():
            return [folder / name]
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not a readable index of shards: {error!r}") from error
        for name in names:
            if Path(name).name != name:
                raise ModelError(f"{index} names {name!r}, which is not a file beside it")
            if not (folder / name).is_file():
                raise ModelError(
                    f"{index} names {name}, which is not there", hint="fetch the whole folder again"
                )
        return [folder / name for name in names]
    for name in _WHOLE[1:]:
        if (folder / name).is_file():
            return [folder / name]
    raise ModelError(
        f"no weights in the transformers checkpoint {folder}",
        hint=f"expected one of {', '.join((_WHOLE[0], _INDEX, *_WHOLE[1:]))}",
    )


def hf_architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    """What config.json says, as an architecture in open_clip's words. Raises ModelError."""
    kind = config["model_type"]
    text, vision = _sections(config)
    quick_gelu, act_kwargs = _activation(text, vision, folder)
    width = text["hidden_size"]
    text_cfg: dict[str, Any] = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": width,
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
    }
    _add_common(text_cfg, text, act_kwargs)
    if text["vocab_size"] != _CLIP_VOCABULARY:
        text_cfg["hf_tokenizer_name"] = str(folder)
    if kind == "siglip":
        text_cfg |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        vision_cfg = {
            "image_size": vision["image_size"],
            "timm_model_name": _siglip_name(vision),
            "timm_pool": "map",
            "timm_proj": "none",
        }
        return {"embed_dim": vision["hidden_size"], "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    # eos_token_id 2 is transformers' own mistake of old, and stands for the largest id of a text
    # (transformers pull request 24773), which is what `argmax` pools at. Any other is searched for.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        text_cfg |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    vision_cfg = {
        "image_size": vision["image_size"],
        "layers": vision["num_hidden_layers"],
        "width": vision["hidden_size"],
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "patch_size": vision["patch_size"],
    }
    _add_common(vision_cfg, vision, act_kwargs)
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": quick_gelu,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def check_hf_architecture(
    architecture: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> None:
    """Refuse an architecture other than the checkpoint's, by name: also where all shapes agree and
    the embeddings would be quietly wrong (heads, activation, pooling, epsilon).

    Image size and context length may differ: positional embeddings are resampled. Raises
    ModelError.
    """
    theirs = hf_architecture(config, folder)
    differing = [
        f"{key} is {architecture.get(key, 0)!r}, the checkpoint has {theirs.get(key, 0)!r}"
        for key in ("embed_dim", "quick_gelu")
        if (architecture.get(key) or 0) != (theirs.get(key) or 0)
    ]
    for section, defaults in (("vision_cfg", CLIPVisionCfg()), ("text_cfg", CLIPTextCfg())):
        if section not in architecture:
            continue
        ours = {**asdict(defaults), **architecture[section]}
        wanted = {**asdict(defaults), **theirs[section]}
        differing += [
            f"{section}.{key} is {ours[key]!r}, the checkpoint has {wanted[key]!r}"
            for key in wanted
            if key not in _free(section, config) and ours[key] != wanted[key]
        ]
    if differing:
        whole = {
            **theirs,
            **{key: architecture[key] for key in architecture.keys() - theirs.keys()},
        }
        raise ModelError(
            f"{folder} does not fit the architecture: {'; '.join(differing)}",
            hint=f"write as model.architecture: {json.dumps(whole)}",
        )
    if "text_cfg" in architecture:
        _check_vocabulary(architecture["text_cfg"], folder)


def convert_hf_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under open_clip's names. What is unknown keeps its name, for the strict load to
    refuse.
    """
    found = {
        _rename(name, _RENAMES): value
        for name, value in state.items()
        if not name.endswith(".position_ids")  # a buffer of older versions: 0, 1, 2, ...
    }
    for new, old in (
        ("visual.proj", "visual_projection"),
        ("text.text_projection", "text_projection"),
    ):
        weight = found.pop(f"{old}.weight", None)
        if weight is not None:
            found[new] = weight.T.contiguous()
    found = _pack(found)
    if config["model_type"] == "siglip":
        found = _siglip_visual({_rename(name, _TO_TIMM): value for name, value in found.items()})
    return found


def read_hf_preprocess(folder: Path) -> dict[str, Any]:
    """What preprocessor_config.json asks of images, in the words of open_clip's `preprocess_cfg`;
    empty where there is none.

    The sizes in it are not read: coembed resizes to the size that the tower takes. Raises
    ModelError.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        size = values.get("size")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a readable JSON object: {error}") from error
    factor = values.get("rescale_factor", 1 / 255)
    if not values.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise ModelError(
            f"{path} rescales pixels by {factor!r}; expected 1/255",
            hint="set rescale_factor to 0.00392156862745098, or remove the file to use CLIP's "
            "preprocessing",
        )
    squash = isinstance(size, dict) and "shortest_edge" not in size
    normalises = values.get("do_normalize", True)
    filters = {2: "bilinear", 3: "bicubic"}  # of Pillow
    resample = values.get("resample", 3)
    return {
        "mean": values.get("image_mean") if normalises else (0.0, 0.0, 0.0),
        "std": values.get("image_std") if normalises else (1.0, 1.0, 1.0),
        "resize_mode": "squash" if squash else "shortest",
        "interpolation": filters.get(resample, f"Pillow's filter {resample}"),
    }


def _sections(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    kind = config["model_type"]
    text = {**_TEXT_DEFAULTS[kind], **(config.get("text_config") or {})}
    return text, {**_VISION_DEFAULTS[kind], **(config.get("vision_config") or {})}


def _activation(
    text: Mapping[str, Any], vision: Mapping[str, Any], folder: Path
) -> tuple[bool, dict[str, Any] | None]:
    acts = {text["hidden_act"], vision["hidden_act"]}
    known = acts & _ACTIVATIONS.keys()
    if len(acts) != 1 or not known:
        raise ModelError(
            f"{folder}/config.json has hidden_act {' and '.join(sorted(map(repr, acts)))}; "
            f"expected one of {', '.join(_ACTIVATIONS)}, the same for both towers",
            hint="open_clip has no other activations",
        )
    return _ACTIVATIONS[known.pop()]


def _add_common(
    section: dict[str, Any], theirs: Mapping[str, Any], act_kwargs: dict[str, Any] | None
) -> None:
    """What differs from open_clip's defaults only in rare checkpoints."""
    ratio = theirs["intermediate_size"] / theirs["hidden_size"]
    if ratio != 4:
        section["mlp_ratio"] = ratio
    if theirs["layer_norm_eps"] != 1e-5:
        section["norm_kwargs"] = {"eps": theirs["layer_norm_eps"]}
    if act_kwargs is not None:
        section["act_kwargs"] = act_kwargs


def _siglip_name(vision: Mapping[str, Any]) -> str:
    """timm's name of a SigLIP image tower."""
    size = {768: "base", 1024: "large", 1152: "so400m"}.get(vision["hidden_size"], "?")
    return f"vit_{size}_patch{vision['patch_size']}_siglip_{vision['image_size']}"


def _free(section: str, config: Mapping[str, Any]) -> set[str]:
    """Settings of a section that may differ from the checkpoint's."""
    if config["model_type"] == "clip":
        return _FREE[section] | {"timm_drop", "timm_drop_path"}
    if section == "text_cfg":
        # open_clip's configs of SigLIP say GELU where transformers says its approximation by tanh
        # (as timm does for the image tower): embeddings differ by about 1e-3.
        return _FREE[section] | {"act_kwargs"}
    # The shapes of a timm model say whether it is the right one, whatever its name.
    checked = {"timm_pool", "timm_proj"}
    return set(CLIPVisionCfg.__dataclass_fields__) - checked


def _check_vocabulary(section: Mapping[str, Any], folder: Path) -> None:
    """Refuse CLIP's tokenizer for a checkpoint that was trained with another vocabulary."""
    path = folder / "vocab.json"
    if section.get("hf_tokenizer_name") or not path.is_file():
        return
    try:
        theirs = set(json.loads(path.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a readable vocabulary: {error}") from error
    specials = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    ours = {
        (specials.get(word, word), number) for word, number in SimpleTokenizer().encoder.items()
    }
    if not ours <= theirs:
        raise ModelError(
            f"{path} is another vocabulary than CLIP's: texts would turn into the wrong tokens",
            hint=f"set text_cfg.hf_tokenizer_name to {folder} in model.architecture",
        )


def _rename(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        name = pattern.sub(new, name)
    return name


def _pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """q_proj, k_proj and v_proj of an attention as its in_proj: [3 · width, width]."""
    found = dict(state)
    for name in state:
        if ".attn.q_proj." not in name:
            continue
        parts = [name.replace(".q_proj.", f".{which}_proj.") for which in "qkv"]
        if all(part in found for part in parts):
            packed = name.replace(".q_proj.", ".in_proj_")
            found[packed] = torch.cat([found.pop(part) for part in parts])
    return found


def _siglip_visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes of timm's ViT, and its pooling attention with q apart from k and v."""
    found = dict(state)
    positions = found.get("visual.trunk.pos_embed")
    if positions is not None and positions.ndim == 2:
        found["visual.trunk.pos_embed"] = positions[None]
    for which in ("weight", "bias"):
        packed = found.pop(f"vision_model.head.attention.in_proj_{which}", None)
        if packed is not None:
            width = len(packed) // 3
            found[f"visual.trunk.attn_pool.q.{which}"] = packed[:width].clone()
            found[f"visual.trunk.attn_pool.kv.{which}"] = packed[width:].clone()
    return found

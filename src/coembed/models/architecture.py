"""Architectures: open_clip's model configs by name, from a JSON file or inline, and their checks.

Imports no torch, so that reading params.yaml stays quick. What only the builders can know (the
fields of a tower's config, the names timm knows) is checked when the model is built.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from coembed.errors import ModelError
from coembed.modalities._audio_cfg import read_audio_cfg

Architecture = dict[str, Any]

# open_clip's sections of towers, and `audio_cfg`, which is coembed's own.
_SECTIONS = ("vision_cfg", "text_cfg", "audio_cfg")
# `custom_text` says how open_clip houses the text tower; coembed houses every tower alike, so it
# changes nothing here.
_TOP_KEYS = {
    "embed_dim",
    *_SECTIONS,
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
}


@cache
def _named_files() -> dict[str, Path]:
    """open_clip's own configs: name → JSON file."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModelError("open_clip is not installed", hint="pip install open_clip_torch")
    files = (Path(spec.origin).parent / "model_configs").glob("*.json")
    return {path.stem: path for path in sorted(files)}


def architecture_names() -> tuple[str, ...]:
    """Names that `architecture` may have: the models that open_clip knows."""
    return tuple(_named_files())


def check_name(value: str) -> None:
    """Refuse a name that open_clip does not know. A path to a JSON file is left for the build."""
    if value.endswith(".json") or _clean(value) in _named_files():
        return
    for prefix in ("hf-hub:", "local-dir:"):
        if value.startswith(prefix):
            raise ModelError(
                f"architecture {value!r} names a place, not an architecture",
                hint="name the architecture, and give the local folder or file as `pretrained`",
            )
    near = difflib.get_close_matches(_clean(value), _named_files(), n=3, cutoff=0.4)
    like = f"nearest: {', '.join(near)}" if near else "for example: ViT-B-32, RN50"
    raise ModelError(
        f"unknown architecture {value!r}; {like}",
        hint="an open_clip model name, a path that ends in .json, or a mapping with embed_dim and "
        "two or more of vision_cfg, text_cfg and audio_cfg",
    )


def read_architecture(value: str | Mapping[str, Any], *, root: Path = Path()) -> Architecture:
    """The architecture that `value` stands for, checked, as open_clip's config.

    A mapping may have a `base`, the name of an open_clip model: its sections are that model's with
    the mapping's settings laid over them, and a section that the mapping sets to null is left out.
    A relative path is taken from `root`. Raises ModelError.
    """
    if not isinstance(value, str):
        found = _with_base(value, source="architecture")
        check_architecture(found, source="architecture")
        return _completed(found)
    check_name(value)
    named = _named_files().get(_clean(value))
    path = named if named is not None else root / value
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"no architecture file at {path}", hint="check model.architecture in params.yaml"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the architecture file {path} is not readable JSON: {error}") from error
    if isinstance(config, dict) and isinstance(config.get("model_cfg"), dict):
        config = config["model_cfg"]  # open_clip_config.json of an exported model
    if isinstance(config, dict):
        config = _with_base(config, source=str(path))
    check_architecture(config, source=str(path))
    if named is not None:
        # Some of open_clip's own configs ask timm for ImageNet weights; open_clip overrides that
        # unless it is told otherwise, and nothing may be downloaded that no setting names.
        config["vision_cfg"].pop("timm_model_pretrained", None)
    return _completed(config)


def check_architecture(config: Any, *, source: str) -> None:
    """Refuse what cannot be a model, as far as can be told without building it."""
    if not isinstance(config, Mapping):
        raise ModelError(f"{source} holds {type(config).__name__}, expected a mapping")
    if "base" in config:
        config = _with_base(config, source=source)
    _check_towers(config, source)
    if "multimodal_cfg" in config:
        raise ModelError(
            f"{source} is a CoCa model (multimodal_cfg): its captioning decoder is not supported",
            hint="leave multimodal_cfg out to train its two towers contrastively",
        )
    unknown = sorted(set(config) - _TOP_KEYS)
    if unknown:
        raise ModelError(
            f"{source} has unknown keys: {', '.join(map(str, unknown))}",
            hint=f"known: {', '.join(sorted(_TOP_KEYS))}",
        )
    _check_whole(config, "embed_dim", source)
    for key in ("init_logit_scale", "init_logit_bias"):
        value = config.get(key)
        if value is not None and not _is_number(value):
            raise ModelError(f"{key} of {source} is {value!r}, expected a number")
    for section, check in _SECTION_CHECKS.items():
        if section in config:
            check(config[section], f"{section} of {source}")


def _check_towers(config: Mapping[str, Any], source: str) -> None:
    towers = [section for section in _SECTIONS if section in config]
    if "embed_dim" not in config:
        raise ModelError(
            f"{source} lacks embed_dim",
            hint="the length of the embeddings stands at the top, beside the towers' sections",
        )
    if len(towers) < 2:
        raise ModelError(
            f"{source} has {towers[0] if towers else 'no tower'}; expected two or more of "
            f"{', '.join(_SECTIONS)}",
            hint="or name an open_clip model as its `base`, whose towers it then has",
        )
    for section in towers:
        if not isinstance(config[section], Mapping):
            raise ModelError(
                f"{section} of {source} is {config[section]!r}, expected a mapping of settings"
            )


def open_clip_name(value: str | Mapping[str, Any]) -> str | None:
    """The open_clip model that an architecture is, or is based on: whose pretrained tags fit."""
    name = value if isinstance(value, str) else value.get("base")
    return _clean(name) if isinstance(name, str) and not name.endswith(".json") else None


def _with_base(config: Mapping[str, Any], *, source: str) -> Architecture:
    """A copy of `config` laid over the open_clip model that it names as `base`, if any."""
    given = copy.deepcopy(dict(config))
    if "base" not in given:
        return given
    base = given.pop("base")
    if not isinstance(base, str) or base.endswith(".json"):
        raise ModelError(
            f"base of {source} is {base!r}, expected the name of an open_clip model",
            hint="for example: {base: ViT-B-32, audio_cfg: {timm_model_name: resnet18}}",
        )
    whole = read_architecture(base)
    for key, value in given.items():
        under = whole.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            whole[key] = {**under, **value}
        elif value is None and key in _SECTIONS:
            whole.pop(key, None)
        else:
            whole[key] = value
    return whole


def _completed(config: Architecture) -> Architecture:
    """`config` with audio_cfg's defaults written out, so that a model that was trained with them
    keeps them. What the other sections leave out is open_clip's to say.
    """
    if "audio_cfg" in config:
        config["audio_cfg"] = read_audio_cfg(config["audio_cfg"]).model_dump()
    return config


def _check_vision(config: Mapping[str, Any], where: str) -> None:
    size = config.get("image_size", 224)
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if not _is_whole(size):
        raise ModelError(f"image_size in {where} is {size!r}, expected one side of a square in px")
    if config.get("timm_model_name") is not None:
        return
    if isinstance(config.get("layers"), list | tuple):  # a ResNet of CLIP's kind
        if size % 32:
            raise ModelError(f"image_size {size} in {where} is not a multiple of 32 (a ResNet)")
        return
    for key in ("layers", "width", "patch_size", "head_width"):
        if key in config:
            _check_whole(config, key, where)
    patch, width = config.get("patch_size", 16), config.get("width", 768)
    head_width = config.get("head_width", 64)
    if patch > size:
        raise ModelError(f"patch_size {patch} in {where} is larger than image_size {size}")
    if size % patch:
        raise ModelError(
            f"image_size {size} in {where} is not a multiple of patch_size {patch}: the last "
            f"{size % patch} px of each side would never be seen",
            hint=f"use {size - size % patch} or {size - size % patch + patch}",
        )
    if head_width > width or width % (width // head_width):
        raise ModelError(
            f"width {width} in {where} is not a whole number of heads of head_width {head_width}",
            hint="set head_width to a divisor of width",
        )


def _check_text(config: Mapping[str, Any], where: str) -> None:
    if config.get("hf_model_name"):
        raise ModelError(
            f"{where} names a transformers model ({config['hf_model_name']!r}) as text tower: not "
            "supported",
            hint="use open_clip's own text transformer: width, heads, layers, context_length",
        )
    for key in ("width", "heads", "layers", "context_length", "vocab_size"):
        if key in config:
            _check_whole(config, key, where)
    width, heads = config.get("width", 512), config.get("heads", 8)
    if width % heads:
        raise ModelError(
            f"heads {heads} in {where} does not divide width {width}",
            hint=f"heads may be {', '.join(map(str, _divisors(width)))}",
        )
    if config.get("context_length", 77) < 3:
        raise ModelError(
            f"context_length {config['context_length']} in {where} leaves no room for a word "
            "between the start and end tokens",
            hint="at least 3; CLIP uses 77",
        )


def _check_audio(config: Mapping[str, Any], where: str) -> None:
    read_audio_cfg(config, where)


_SECTION_CHECKS = {
    "vision_cfg": _check_vision,
    "text_cfg": _check_text,
    "audio_cfg": _check_audio,
}


def _divisors(width: int) -> list[int]:
    found = [n for n in range(1, math.isqrt(width) + 1) if width % n == 0]
    return sorted({n for n in found if width // n >= 8})


def _check_whole(config: Mapping[str, Any], key: str, where: str) -> None:
    if not _is_whole(config[key]):
        raise ModelError(f"{key} in {where} is {config[key]!r}, expected a whole number above 0")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clean(name: str) -> str:
    """open_clip writes ViT-B/32 and ViT-B-32 for the same model."""
    return name.replace("/", "-")

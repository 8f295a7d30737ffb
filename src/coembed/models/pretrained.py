"""Weights to start from: open_clip's tags, and local checkpoints of open_clip, transformers and
coembed. Nothing is unpickled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from open_clip.pretrained import download_pretrained
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from coembed.errors import ModelError
from coembed.modalities.base import modality_module, modality_names
from coembed.models.architecture import Architecture, open_clip_name
from coembed.models.hf_checkpoint import (
    check_hf_architecture,
    convert_hf_state,
    hf_weight_files,
    read_hf_config,
    read_hf_preprocess,
)
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings

MODEL_JSON = "model.json"
WEIGHTS = "model.safetensors"
OPEN_CLIP_JSON = "open_clip_config.json"

# What open_clip's own exports are called; the safe format first. A folder of the hub may hold both
# these and transformers' files, of which model.safetensors may be either's.
_OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that was found.

    preprocess: what it asks of image inputs, in open_clip's words. layout: whose names its tensors
    bear; `path` is the folder of one of transformers' (which `hf_config` describes), and else a
    file.
    """

    path: Path
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    layout: Literal["open_clip", "transformers", "coembed"] = "open_clip"
    hf_config: Mapping[str, Any] = field(default_factory=dict)


def find_pretrained(
    settings: ModelSettings, architecture: Architecture, *, root: Path
) -> Pretrained | None:
    """The checkpoint that `settings.pretrained` names; None for random weights.

    A file or folder (relative to `root`) comes before a tag of the same name. A tag's weights are
    downloaded unless open_clip's cache has them. Raises ModelError.
    """
    if settings.pretrained is None:
        return None
    path = root / settings.pretrained
    if path.is_dir():
        return _find_in_folder(path, architecture)
    if path.is_file():
        if path.suffix not in _FILE_ENDINGS:
            raise ModelError(
                f"pretrained {settings.pretrained} does not end in {', '.join(_FILE_ENDINGS)}"
            )
        return Pretrained(path)
    return _find_tag(settings, architecture)


def load_pretrained(model: JointModel, source: Pretrained) -> dict[str, float | None]:
    """Load the weights into `model`'s towers. Positional embeddings of another size are resampled.

    A tower of which the checkpoint holds nothing keeps its random start (audio beside an image-text
    checkpoint), and a tower that the model lacks is left alone (an image tower whose text tower
    learns to go with sounds): both are named on stderr. All others are loaded whole.

    Returns init_logit_scale (log) and init_logit_bias as the checkpoint has them.
    """
    state = _read_source(source)
    scale, bias = state.pop("logit_scale", None), state.pop("logit_bias", None)
    if source.layout == "coembed":
        state = _without_prefix(state, "towers.")
        prefixes = {modality: modality for modality in modality_names()}
        _load_towers(model.towers, state, prefixes, source=source.path)
    else:
        view = open_clip_view(model)
        del view.logit_scale
        state = convert_state_dict(view, state)
        if "positional_embedding" in state:
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)
        prefixes = {modality: modality_module(modality).OPEN_CLIP for modality in modality_names()}
        try:
            if "image" in model.modalities:
                resize_pos_embed(state, view)
            if "text" in model.modalities:
                resize_text_pos_embed(state, view)
        except (AssertionError, RuntimeError, AttributeError) as error:
            raise ModelError(
                f"the positional embeddings of {source.path} do not fit the architecture: {error}"
            ) from error
        _load_towers(view, state, prefixes, source=source.path)
    return {
        key: None if value is None else float(value.reshape(()))
        for key, value in (("init_logit_scale", scale), ("init_logit_bias", bias))
        if value is not None
    }


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name. Raises ModelError."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a readable safetensors file: {error}",
            hint="fetch or train it again; it may have been cut short",
        ) from error
    except Exception as error:  # torch.load raises nearly anything on foreign bytes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} cannot be read as plain tensors: {first}",
            hint="coembed runs no pickled code; convert the checkpoint to safetensors",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} does not hold tensors by name")
    if state and all(name.startswith("module.") for name in state):
        state = _without_prefix(state, "module.")
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Load all of `state` into all of `module`, or refuse with what does not fit."""
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted))
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise ModelError(
            f"{source} does not fit the architecture: tensors {'; '.join(problems)}",
            hint="name the architecture that the checkpoint was trained with",
        )
    module.load_state_dict(dict(state))


def open_clip_view(model: JointModel) -> nn.Module:
    """A module over the same parameters whose names are those of an open_clip model."""
    view = nn.Module()
    for modality, tower in model.towers.items():
        view.add_module(modality_module(modality).OPEN_CLIP, getattr(tower, "encoder", tower))
    view.register_parameter("logit_scale", model.logit_scale)
    return view


def _load_towers(
    towers: nn.Module,
    state: Mapping[str, Tensor],
    prefixes: Mapping[str, str],
    *,
    source: Path,
) -> None:
    """Load `state` strictly into those children of `towers` that it holds anything of.

    `prefixes` has the names of all modalities' children.
    """
    children = dict(towers.named_children())
    held = {name.partition(".")[0] for name in state}
    if not held & children.keys():
        load_strictly(towers, state, source=source)  # says what is there instead
    found = nn.Module()
    for modality, prefix in prefixes.items():
        if prefix in children and prefix in held:
            found.add_module(prefix, children[prefix])
        elif prefix in children:
            _note(f"{source} has no {modality} tower: it starts from random weights")
        elif prefix in held:
            _note(f"the {modality} tower of {source} is left out: the model has none")
    wanted = children.keys() | (held - set(prefixes.values()))
    mine = {name: value for name, value in state.items() if name.partition(".")[0] in wanted}
    load_strictly(found, mine, source=source)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _read_source(source: Pretrained) -> dict[str, Tensor]:
    if source.layout != "transformers":
        return read_state(source.path)
    shards = [read_state(path) for path in hf_weight_files(source.path)]
    state = {name: value for shard in shards for name, value in shard.items()}
    return convert_hf_state(state, source.hf_config)


def _find_in_folder(folder: Path, architecture: Architecture) -> Pretrained:
    if (folder / MODEL_JSON).is_file():
        image = _read_json(folder / MODEL_JSON).get("inputs", {}).get("image", {})
        preprocess = {
            "mean": image.get("mean"),
            "std": image.get("std"),
            "resize_mode": image.get("resize"),
            "interpolation": image.get("interpolation"),
        }
        return Pretrained(folder / WEIGHTS, preprocess, layout="coembed")
    preprocess = {}
    if (folder / OPEN_CLIP_JSON).is_file():
        preprocess = _read_json(folder / OPEN_CLIP_JSON).get("preprocess_cfg") or {}
    for name in _OPEN_CLIP_FILES:
        if (folder / name).is_file():
            return Pretrained(folder / name, preprocess)
    hf_config = read_hf_config(folder)
    if hf_config is not None:
        check_hf_architecture(architecture, hf_config, folder)
        return Pretrained(folder, read_hf_preprocess(folder), "transformers", hf_config)
    if (folder / WEIGHTS).is_file():
        return Pretrained(folder / WEIGHTS, preprocess)
    raise ModelError(
        f"no checkpoint in the folder {folder}",
        hint=f"expected one of {', '.join((*_OPEN_CLIP_FILES, WEIGHTS))}, a CLIP or SigLIP "
        "checkpoint of transformers (config.json), or a model directory of coembed",
    )


def _find_tag(settings: ModelSettings, architecture: Architecture) -> Pretrained:
    tag, name = settings.pretrained, open_clip_name(settings.architecture)
    hint = (
        "a local .safetensors or .pt file, a folder, or an open_clip tag of a named architecture; "
        "`coembed fetch` brings the registry's champion into a folder and names it"
    )
    if name is None:
        raise ModelError(
            f"no file or folder {tag}, and only open_clip's own models have tags", hint=hint
        )
    tags = list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ModelError(
            f"no file or folder {tag}, and {name} has no such tag; it has "
            f"{', '.join(tags) or 'none'}",
            hint=hint,
        )
    config = get_pretrained_cfg(name, tag)
    if bool(config.get("quick_gelu")) != bool(architecture.get("quick_gelu")):
        wanted = "QuickGELU" if config.get("quick_gelu") else "GELU"
        raise ModelError(
            f"{tag} was trained with {wanted}, and {name} has the other activation: its embeddings "
            "would be quietly worse",
            hint=f"name the architecture {name.removesuffix('-quickgelu')}"
            f"{'-quickgelu' if config.get('quick_gelu') else ''}",
        )
    try:
        path = Path(download_pretrained(config))
    except Exception as error:
        raise ModelError(
            f"the weights {tag} of {name} are not in the cache and cannot be downloaded: {error}",
            hint="offline: fetch them elsewhere and give the file as model.pretrained",
        ) from error
    return Pretrained(path, config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items()}

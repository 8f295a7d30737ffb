"""Export to open_clip's own format."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from coembed.errors import ModelError
from coembed.files import atomic_path, write_json
from coembed.modalities.base import modality_module
from coembed.models.joint import JointModel
from coembed.models.pretrained import OPEN_CLIP_JSON, open_clip_view
from coembed.models.spec import ModelSpec

_OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"


_TOWERS = ("image", "text")


def export_open_clip(model: JointModel, spec: ModelSpec, folder: Path) -> tuple[str, ...]:
    """Write the model into `folder` so that open_clip gives equal embeddings with it:

        open_clip.create_model_and_transforms("local-dir:<folder>")
        open_clip.get_tokenizer("local-dir:<folder>")

    open_clip's own transform resizes with Pillow, does not turn images by their EXIF orientation
    and lays transparency on black; pixels of plain images agree to one or two of 255 levels.

    Returns the modalities whose towers are left out, as open_clip has none of their kind (audio).

    Raises:
        ModelError: open_clip cannot hold this model.
    """
    if not set(_TOWERS) <= set(model.modalities):
        raise ModelError(
            f"open_clip's format holds an image and a text tower; this model has "
            f"{' and '.join(model.modalities)}",
            hint="export to ONNX, which takes every tower: coembed export FOLDER --format onnx",
        )
    others = tuple(modality for modality in model.modalities if modality not in _TOWERS)
    config = _config(spec, without=others)
    view = open_clip_view(model)
    for modality in others:
        delattr(view, modality_module(modality).OPEN_CLIP)
    if model.logit_bias is not None:
        view.register_parameter("logit_bias", model.logit_bias)
    state = {name: value.detach().cpu().contiguous() for name, value in view.state_dict().items()}
    _check_fits(config, state)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / _OPEN_CLIP_WEIGHTS) as partial:
        save_file(state, partial, metadata={"format": "pt"})
    for modality in _TOWERS:
        spec.loader(modality).save(folder)
    image = spec.image
    write_json(
        folder / OPEN_CLIP_JSON,
        {
            "model_cfg": {**config, "custom_text": True},
            "preprocess_cfg": {
                "mean": list(image.mean),
                "std": list(image.std),
                "resize_mode": image.resize,
                "interpolation": image.interpolation,
            },
        },
    )
    return others


def _config(spec: ModelSpec, *, without: Sequence[str]) -> dict[str, Any]:
    config = copy.deepcopy(dict(spec.architecture))
    for modality in without:
        del config[modality_module(modality).SECTION]
    if config.get("init_logit_bias") is None:
        config.pop("init_logit_bias", None)
    return config


def _check_fits(config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Build open_clip's own model on no device and compare names and shapes."""
    with torch.device("meta"):
        theirs = CustomTextCLIP(**config).state_dict()
    differing = sorted(
        name
        for name in set(theirs) | set(state)
        if name not in theirs or name not in state or theirs[name].shape != state[name].shape
    )
    if differing:
        raise ModelError(
            f"open_clip builds this architecture with other shapes: {', '.join(differing[:3])}",
            hint="open_clip builds a timm ViT at the image size of its name only; choose a timm "
            "model of that image size, or open_clip's own ViT",
        )

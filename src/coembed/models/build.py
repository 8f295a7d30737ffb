"""Building a model from its settings."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coembed.errors import ModelError
from coembed.modalities.base import modality_module, modality_names
from coembed.models.architecture import Architecture, read_architecture
from coembed.models.joint import JointModel
from coembed.models.pretrained import find_pretrained, load_pretrained
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec

# CLIP's first temperature, 0.07 (Radford et al. 2021, section 2.5), as log(1 / 0.07).
_CLIP_LOG_SCALE = math.log(1 / 0.07)

_TOWER_HINTS = {
    "image": "check image_size; for a timm model try `timm_proj: ''` in vision_cfg",
    "audio": "a plain CNN or ViT takes any size; check num_mels and clip_s in audio_cfg",
}


def build_model(
    settings: ModelSettings, *, seed: int, root: Path = Path()
) -> tuple[JointModel, ModelSpec]:
    """The model that `settings` ask for, in float32 on the CPU, and its description.

    Random weights are a pure function of `seed` and the architecture, and torch's own generator is
    left as it was. A relative path in `settings` is taken from `root`.

    Raises:
        ModelError: an architecture or checkpoint that is unknown, missing or does not fit.
    """
    architecture = read_architecture(settings.architecture, root=root)
    source = find_pretrained(settings, architecture, root=root)
    preprocess = source.preprocess if source is not None else {}
    model = build_towers(architecture, seed=seed)
    if source is not None:
        logits = load_pretrained(model, source)
        architecture = {**architecture, **logits}
    _set_logits(model, architecture, settings)
    spec = describe_model(model, architecture, preprocess, root=root)
    _try_out(model, spec)
    return model, spec


def build_towers(architecture: Architecture, *, seed: int) -> JointModel:
    """The towers of an architecture with random weights, which depend on `seed` alone."""
    embed_dim, quick_gelu = architecture["embed_dim"], bool(architecture.get("quick_gelu"))
    towers = {}
    for modality in modality_names():
        module = modality_module(modality)
        if module.SECTION not in architecture:
            continue
        # A seed each: what one tower draws does not depend on what stands beside it. Only the
        # generator of the CPU is used; torch.manual_seed would set those of all GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_tower_seed(seed, modality))
            towers[modality] = module.build_tower(
                embed_dim, architecture[module.SECTION], quick_gelu=quick_gelu
            )
    scale, bias = architecture.get("init_logit_scale"), architecture.get("init_logit_bias")
    return JointModel(
        towers, logit_scale=_CLIP_LOG_SCALE if scale is None else scale, logit_bias=bias
    )


def describe_model(
    model: JointModel, architecture: Architecture, preprocess: Mapping[str, Any], *, root: Path
) -> ModelSpec:
    """The description of a model that has just been built."""
    described = copy.deepcopy(architecture)
    # The weights are at hand from here on: what says how they were first made would mislead.
    for modality in model.modalities:
        described[modality_module(modality).SECTION].pop("timm_model_pretrained", None)
    for key in ("custom_text", "nonscalar_logit_scale"):
        described.pop(key, None)
    described["init_logit_scale"] = float(model.logit_scale.detach())
    bias = model.logit_bias
    described["init_logit_bias"] = None if bias is None else float(bias.detach())
    inputs = {}
    for modality in model.modalities:
        module = modality_module(modality)
        inputs[modality] = module.describe(described[module.SECTION], preprocess)
    files = {name: spec.local_files(root) for name, spec in inputs.items()}
    return ModelSpec(
        embed_dim=described["embed_dim"],
        architecture=described,
        inputs=inputs,
        files={name: folder for name, folder in files.items() if folder is not None},
    )


def _set_logits(model: JointModel, architecture: Architecture, settings: ModelSettings) -> None:
    """Settle scale and bias: the settings say it first, then the checkpoint or architecture."""
    scale, bias = settings.init_logit_scale, settings.init_logit_bias
    scale = architecture.get("init_logit_scale") if scale is None else scale
    bias = architecture.get("init_logit_bias") if bias is None else bias
    with torch.no_grad():
        model.logit_scale.fill_(_CLIP_LOG_SCALE if scale is None else scale)
    model.logit_bias = None if bias is None else torch.nn.Parameter(torch.tensor(float(bias)))


def _try_out(model: JointModel, spec: ModelSpec) -> None:
    """Run each tower once: some sizes only clash when something goes through (a timm model whose
    head is wider than open_clip takes it to be, a pooling made for another image size).
    """
    was_training = model.training
    model.eval()
    for modality in model.modalities:
        loader = spec.loader(modality)
        example = loader.to_inputs(loader.example())
        try:
            with torch.inference_mode():
                features = model.features(modality, example)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the {modality} tower cannot take inputs of shape {tuple(example.shape)}: "
                f"{type(error).__name__}: {error}",
                hint=_TOWER_HINTS.get(modality, "check its section in model.architecture"),
            ) from error
        if features.shape != (len(example), spec.embed_dim):
            raise ModelError(
                f"the {modality} tower gives features of shape {tuple(features.shape)}, expected "
                f"({len(example)}, {spec.embed_dim}): one vector of embed_dim an item",
                hint="check pooling and projection in model.architecture",
            )
    model.train(was_training)


def _tower_seed(seed: int, modality: str) -> int:
    digest = hashlib.sha256(f"coembed tower {modality} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

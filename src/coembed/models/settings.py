"""Settings of the model: the `model:` section of params.yaml."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator

from coembed.errors import ModelError
from coembed.models.architecture import check_architecture, check_name
from coembed.settings import Settings

_MAX_LOG_SCALE = math.log(1000.0)


class ModelSettings(Settings):
    """What is trained, and from where it starts.

    architecture: the name of an open_clip model ("ViT-B-32"), a path to a JSON file in open_clip's
        config format (ending in .json, relative to the project), or such a config as a mapping with
        `embed_dim` and two or more of `vision_cfg`, `text_cfg` and `audio_cfg` (sounds: see
        coembed.modalities._audio_cfg). A mapping may name an open_clip model as its `base` and lay
        its sections over that model's: {base: ViT-B-32, audio_cfg: {timm_model_name: resnet18}}; a
        section set to null is left out.
    pretrained: null starts from random weights drawn from the run's seed. Otherwise an open_clip
        tag of that model ("laion2b_s34b_b79k": downloaded, unless it is in the cache), or a local
        checkpoint: a .safetensors or .pt file, a folder in open_clip's format, a CLIP or SigLIP
        folder of Hugging Face transformers, or a model directory of coembed (`coembed fetch` brings
        the registry's champion into one). A tower that the checkpoint holds nothing of starts from
        random weights. Pickled code is never run.
    init_logit_scale: natural LOG of the first logit scale, as everywhere in coembed; null takes the
        architecture's, or the checkpoint's, or log(1 / 0.07) = 2.659 (CLIP). SigLIP starts at
        log(10) = 2.303.
    init_logit_bias: first logit bias; null takes the architecture's or the checkpoint's, or has
        none. The sigmoid loss needs one; SigLIP starts at -10.
    """

    architecture: str | dict[str, Any]
    pretrained: str | None = None
    init_logit_scale: float | None = Field(default=None, ge=0.0)
    init_logit_bias: float | None = Field(default=None, ge=-100.0, le=100.0)

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            if isinstance(value, str):
                check_name(value)
            else:
                check_architecture(value, source="architecture")
        except ModelError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("init_logit_scale")
    @classmethod
    def _log_not_exponentiated(cls, value: float | None) -> float | None:
        if value is not None and value > _MAX_LOG_SCALE:
            raise ValueError(
                f"init_logit_scale is the natural log of the scale: {value:g} would be a scale of "
                f"e^{value:g}; for a scale of {value:g} write {math.log(value):.4f}"
            )
        return value

"""Architectures of a few thousand weights, for the tests of models and of what exports them."""

from __future__ import annotations

import copy
from typing import Any

_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "timm_vit": {
        "image_size": 32,
        "timm_model_name": "test_vit",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "convnet": {
        "image_size": 32,
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "clip_resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
}
_AUDIO = {"timm_model_name": "test_resnet", "clip_s": 0.5, "sample_rate_hz": 8000, "num_mels": 16}


def tiny_architecture(kind: str = "vit", *, audio: bool = False) -> dict[str, Any]:
    """An image tower of `kind` and a text tower, perhaps an audio tower."""
    sections: dict[str, Any] = {"embed_dim": 24, "vision_cfg": _VISION[kind], "text_cfg": _TEXT}
    return copy.deepcopy(sections | ({"audio_cfg": _AUDIO} if audio else {}))

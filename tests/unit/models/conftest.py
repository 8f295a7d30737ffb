"""Small models that the tests of this room share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_towers import tiny_architecture

from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec


@pytest.fixture(scope="session", params=["vit", "convnet"])
def built(request: pytest.FixtureRequest) -> tuple[JointModel, ModelSpec]:
    settings = ModelSettings(architecture=tiny_architecture(request.param), init_logit_bias=-10.0)
    return build_model(settings, seed=3)


@pytest.fixture(scope="session")
def folder(built: tuple[JointModel, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory. Read it; don't write into it."""
    path = tmp_path_factory.mktemp("model")
    save_model(path, *built, {"data": "abc"})
    return path


@pytest.fixture
def architecture() -> dict[str, Any]:
    return tiny_architecture()


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    encoded = []
    for number in range(11):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        size = (40 + 3 * number, 48)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return ["a red shoe", "", "stripes", *[f"blue shirt number {n} " * n for n in range(1, 9)]]

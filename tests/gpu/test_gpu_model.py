"""On a CUDA device: the same embeddings as on the CPU."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coembed.models.build import build_model
from coembed.models.checkpoint import load_model, save_model
from coembed.models.encoder import load_encoder
from coembed.models.settings import ModelSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
VISION = {
    "vit": {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
    "convnet": {"image_size": 64, "timm_model_name": "resnet10t"},
}
TEXTS = [f"a picture of number {n} " * (1 + n % 4) for n in range(21)]


@pytest.fixture(scope="module", params=["vit", "convnet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    architecture = {"embed_dim": 32, "vision_cfg": VISION[request.param], "text_cfg": TEXT}
    save_model(path, *build_model(ModelSettings(architecture=architecture), seed=0), {})
    return path


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    encoded = []
    for number in range(21):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return encoded


def test_embeddings_are_those_of_the_cpu(folder: Path, images: list[bytes]) -> None:
    on_cpu = load_encoder(folder, device="cpu")
    on_gpu = load_encoder(folder, device="cuda", batch_size=8)
    assert on_gpu.fingerprint == on_cpu.fingerprint
    # cuDNN may use TF32 in convolutions, which keeps 10 bits of a factor.
    for modality, items, allowed in (("text", TEXTS, 1e-5), ("image", images, 2e-3)):
        expected = on_cpu.encode(modality, items)
        np.testing.assert_allclose(on_gpu.encode(modality, items), expected, atol=allowed)


def test_auto_takes_the_gpu(folder: Path) -> None:
    assert load_encoder(folder).device.type == "cuda"


def test_bf16_is_near_fp32(folder: Path, images: list[bytes]) -> None:
    near = load_encoder(folder, device="cuda", precision="bf16")
    exact = load_encoder(folder, device="cpu")
    for modality, items in (("text", TEXTS), ("image", images)):
        cosines = (near.encode(modality, items) * exact.encode(modality, items)).sum(axis=1)
        assert cosines.min() > 0.995


def test_a_model_loads_onto_the_gpu_and_saves_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    model, spec = load_model(folder, device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    save_model(tmp_path, model, spec, {})
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_building_leaves_the_gpus_generator_alone() -> None:
    architecture = {"embed_dim": 32, "vision_cfg": VISION["vit"], "text_cfg": TEXT}
    torch.cuda.manual_seed_all(4)
    expected = torch.randn(3, device="cuda")
    torch.cuda.manual_seed_all(4)
    build_model(ModelSettings(architecture=architecture), seed=0)
    torch.testing.assert_close(torch.randn(3, device="cuda"), expected, atol=0, rtol=0)

"""ONNX: each tower as a file that onnxruntime runs with torch's results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_towers import tiny_architecture

from coembed.errors import ModelError, UserError
from coembed.models import onnx_export
from coembed.models.build import build_model
from coembed.models.joint import JointModel
from coembed.models.onnx_export import export_onnx
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec

_UNCUT_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def _build(kind: str, *, text: dict[str, Any], audio: bool) -> tuple[JointModel, ModelSpec]:
    architecture = tiny_architecture(kind, audio=audio)
    architecture["text_cfg"] |= text
    model, spec = build_model(ModelSettings(architecture=architecture), seed=3)
    return model.eval(), spec


def _run(path: Path, name: str, batch: torch.Tensor) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run([name], {path.stem: batch.numpy()})
    return found


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, JointModel, ModelSpec, dict[str, float]]:
    """A ViT, a causal text tower and an audio tower as ONNX. Read it; don't write into it."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    model, spec = _build("vit", text={}, audio=True)
    folder = tmp_path_factory.mktemp("onnx")
    differences = export_onnx(model, spec, folder)
    return folder, model, spec, differences


Exported = tuple[Path, JointModel, ModelSpec, dict[str, float]]


@pytest.mark.slow
def test_a_file_a_tower_and_how_to_feed_it(exported: Exported) -> None:
    folder, model, _, differences = exported
    names = {path.name for path in folder.iterdir()}
    assert names == {"image.onnx", "text.onnx", "audio.onnx", "preprocessing.json"}
    assert differences.keys() == {"image", "text", "audio"}
    assert max(differences.values()) < 1e-5
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["embed_dim"] == 24
    assert about["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    shapes = {name: tower["input"]["shape"] for name, tower in about["towers"].items()}
    assert shapes == {
        "image": ["batch", 32, 32, 3],
        "text": ["batch", "length"],
        "audio": ["batch", 1, 4000],
    }
    assert {t["input"]["dtype"] for t in about["towers"].values()} == {"uint8", "int64", "int16"}
    assert about["towers"]["image"]["preprocessing"]["resize"] == "shortest"


@pytest.mark.slow
def test_any_batch_of_images(exported: Exported, images: list[bytes]) -> None:
    folder, model, spec, _ = exported
    loader = spec.loader("image")
    for number in (1, 7):
        batch = loader.load(images[:number])
        wanted = model.embed("image", loader.to_inputs(batch)).detach().numpy()
        found = _run(folder / "image.onnx", "image_embedding", batch)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_texts_of_any_length(exported: Exported, texts: list[str]) -> None:
    folder, model, spec, _ = exported
    tokens = spec.loader("text").load(texts)
    wanted = model.embed("text", tokens).detach().numpy()
    for batch in (tokens, tokens[:1, :6], model.trim("text", tokens[1:2])):
        first = 1 if batch.shape[1] == 2 else 0
        found = _run(folder / "text.onnx", "text_embedding", batch)
        np.testing.assert_allclose(found, wanted[first : first + len(batch)], atol=1e-5)


@pytest.mark.slow
def test_several_windows_are_the_mean_of_their_features(exported: Exported) -> None:
    folder, model, spec, _ = exported
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(-3000, 3000, (1, 3, 4000), generator=generator).to(torch.int16)
    inputs = spec.loader("audio").to_inputs(windows)
    wanted = model.embed("audio", inputs).detach().numpy()
    features = _run(folder / "audio.onnx", "audio_features", windows.reshape(3, 1, 4000))
    mean = features.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), wanted, atol=1e-5)


@pytest.mark.slow
def test_no_place_of_this_machine_is_written(exported: Exported) -> None:
    for path in exported[0].iterdir():
        data = path.read_bytes()
        assert b"site-packages" not in data and b".py" not in data, path.name


@pytest.mark.slow
def test_convolutions_and_a_text_tower_that_sees_everything(tmp_path: Path) -> None:
    model, spec = _build("convnet", text=_UNCUT_TEXT, audio=False)
    differences = export_onnx(model, spec, tmp_path)
    assert max(differences.values()) < 1e-5
    about = json.loads((tmp_path / "preprocessing.json").read_text())
    assert about["towers"]["text"]["input"]["shape"] == ["batch", 16]


@pytest.mark.slow
def test_a_difference_is_refused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, model, spec, _ = exported
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(ModelError, match="differ from torch's by up to"):
        export_onnx(model, spec, tmp_path)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, spec = _build("vit", text={}, audio=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(UserError, match="the ONNX export needs onnxscript") as caught:
        export_onnx(model, spec, tmp_path)
    assert caught.value.hint == "pip install onnxscript"
    assert not list(tmp_path.iterdir())

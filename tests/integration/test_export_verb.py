"""`coembed export`: the model of a project in others' formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_towers import tiny_architecture
from typer.testing import CliRunner

from coembed.cli import app
from coembed.errors import UserError
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.settings import ModelSettings

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose trained model has three towers."""
    architecture = tiny_architecture(audio=True)
    params = yaml.safe_load((_ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["model"] = {"architecture": architecture}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    folder = tmp_path / "artifacts" / "model"
    folder.mkdir(parents=True)
    save_model(folder, *build_model(ModelSettings(architecture=architecture), seed=0), {})
    return tmp_path


def _export(project: Path, folder: Path, *options: str) -> str:
    arguments = ["export", str(folder), "--project", str(project), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_open_clip(project: Path) -> None:
    folder = project / "exported"
    shown = _export(project, folder)
    assert "Exported to open_clip's format" in shown and "the audio tower" in shown
    assert {path.name for path in folder.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    with pytest.raises(UserError, match="is there already"):
        _export(project, folder)


@pytest.mark.slow
def test_onnx(project: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = project / "exported"
    shown = _export(project, folder, "--format", "onnx")
    assert "Exported to ONNX" in shown and "audio.onnx" in shown and "of torch" in shown
    assert {path.name for path in folder.iterdir()} == {
        "audio.onnx", "image.onnx", "text.onnx", "preprocessing.json",
    }  # fmt: skip

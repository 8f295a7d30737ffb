"""The model directory: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coembed.errors import ModelError
from coembed.files import sha256_file
from coembed.models.build import build_model
from coembed.models.checkpoint import load_model, read_card, save_model
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec


def test_a_model_comes_back_as_it_was(built: tuple[JointModel, ModelSpec], folder: Path) -> None:
    model, spec = built
    loaded, loaded_spec = load_model(folder)
    assert loaded_spec == spec
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    pixels = torch.zeros((2, spec.image.px, spec.image.px, 3), dtype=torch.uint8)
    inputs = spec.loader("image").to_inputs(pixels)
    model.eval()
    torch.testing.assert_close(
        loaded.embed("image", inputs), model.embed("image", inputs), atol=0, rtol=0
    )


def test_the_same_model_gives_the_same_bytes(
    built: tuple[JointModel, ModelSpec], folder: Path, tmp_path: Path
) -> None:
    for number in range(3):
        again = tmp_path / str(number)
        again.mkdir()
        save_model(again, *built, {"data": "abc"})
        assert sorted(path.name for path in again.iterdir()) == ["model.json", "model.safetensors"]
        for name in ("model.json", "model.safetensors"):
            assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_saving_what_was_loaded_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path, *load_model(folder), read_card(folder).identity)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_card_is_read_without_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.json", tmp_path)
    card = read_card(tmp_path)
    assert card.identity == {"data": "abc"}
    assert card.weights_sha256 == sha256_file(folder / "model.safetensors")
    assert card.spec.embed_dim == 24


def test_model_json_names_no_place_of_this_machine(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    assert str(folder) not in text and str(Path.home()) not in text and "/site-packages" not in text


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / "model.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def _retell(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors and give model.json their new hash."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)
        _edit(lambda v: v["weights"].update(sha256=sha256_file(path)))(folder)

    return apply


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def _foreign_with_right_hash(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"not a safetensors file at all")
    _edit(lambda v: v["weights"].update(sha256=sha256_file(path)))(folder)


_SCALE = "logit_scale"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "no model at .*model.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights at .*model.safetensors"),
        (lambda f: (f / "model.json").write_text("{"), "model.json is not readable JSON"),
        (lambda f: (f / "model.json").write_text("[]"), "not the description of a coembed model"),
        (_cut, "model.safetensors is not what model.json was written with"),
        (_flip, "model.safetensors is not what model.json was written with"),
        (_foreign_with_right_hash, "not a readable safetensors file"),
        (_edit(lambda v: v.update(format="other")), "not the description of a coembed model"),
        (_edit(lambda v: v.update(format_version=2)), "format version 2; this coembed reads"),
        (_edit(lambda v: v.pop("weights")), "names no hash"),
        (_edit(lambda v: v.pop("embed_dim")), "not a model description.*embed_dim"),
        (_edit(lambda v: v.pop("inputs")), "not a model description"),
        (_edit(lambda v: v["inputs"].pop("text")), "expected two or more of"),
        (_edit(lambda v: v["inputs"].update(smell={})), "inputs has .*smell"),
        (_edit(lambda v: v["inputs"]["image"].update(px=-1)), "px"),
        (_edit(lambda v: v["inputs"]["image"].update(version=9)), "version"),
        (_edit(lambda v: v["architecture"].pop("text_cfg")), "has vision_cfg; expected two or mor"),
        (_edit(lambda v: v["architecture"].update(embed_dim=25)), "of another shape"),
        (_retell(lambda s: s.pop(_SCALE)), "1 missing .logit_scale"),
        (_retell(lambda s: s.update(more=torch.zeros(1))), "1 unknown .more"),
        (_retell(lambda s: s.update({_SCALE: torch.zeros(2)})), r"logit_scale is \(2,\)"),
    ],
)
def test_a_damaged_directory_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(copy)
    assert caught.value.hint


def test_a_model_without_a_bias_comes_back_without(
    architecture: dict[str, Any], tmp_path: Path
) -> None:
    save_model(tmp_path, *build_model(ModelSettings(architecture=architecture), seed=0), {})
    assert load_model(tmp_path)[0].logit_bias is None

"""Starting from weights: local checkpoints of three kinds, tags, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from tiny_towers import tiny_architecture

from coembed.errors import ModelError
from coembed.models.build import build_model, build_towers
from coembed.models.checkpoint import load_model, save_model
from coembed.models.export import export_open_clip
from coembed.models.settings import ModelSettings

Change = dict[str, Any]


def _build(architecture: Any, pretrained: str | Path, **rest: Any) -> Any:
    settings = ModelSettings(architecture=architecture, pretrained=str(pretrained), **rest)
    return build_model(settings, seed=1)


def _assert_same_towers(one: torch.nn.Module, other: torch.nn.Module) -> None:
    state = other.state_dict()
    for name, value in one.state_dict().items():
        if name.startswith("towers."):
            assert torch.equal(value, state[name]), name


def test_a_model_directory(folder: Path) -> None:
    trained, spec = load_model(folder)
    model, _ = _build(dict(spec.architecture), folder)
    _assert_same_towers(trained, model)
    assert model.logit_bias.item() == -10.0


def test_a_model_directory_brings_its_preprocessing(architecture: Change, tmp_path: Path) -> None:
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    squashed = spec.image.model_copy(update={"resize": "squash", "mean": (0.5, 0.5, 0.5)})
    changed = type(spec)(spec.embed_dim, spec.architecture, {**spec.inputs, "image": squashed})
    save_model(tmp_path, model, changed, {})
    assert _build(architecture, tmp_path)[1].image == squashed


def test_an_export_of_open_clips_kind(folder: Path, tmp_path: Path) -> None:
    trained, spec = load_model(folder)
    export_open_clip(trained, spec, tmp_path)
    for source in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        model, _ = _build(dict(spec.architecture), source)
        _assert_same_towers(trained, model)
        assert model.logit_scale.item() == pytest.approx(trained.logit_scale.item())


def test_a_relative_path_is_taken_from_the_root(folder: Path) -> None:
    spec = load_model(folder)[1]
    settings = ModelSettings(architecture=dict(spec.architecture), pretrained=folder.name)
    build_model(settings, seed=0, root=folder.parent)
    with pytest.raises(ModelError, match="no file or folder"):
        build_model(settings, seed=0, root=folder)


def test_a_checkpoint_in_the_old_layout_gives_equal_embeddings(
    architecture: Change, tmp_path: Path
) -> None:
    """What open_clip's trainer writes for its standard models: text tensors at the top level,
    under "state_dict", with DistributedDataParallel's prefix.
    """
    theirs = CLIP(**architecture)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    model, spec = _build(architecture, tmp_path / "epoch_3.pt")
    model.eval(), theirs.eval()
    tokens = spec.loader("text").load(["a red shoe", "x"])
    pixels = spec.loader("image").to_inputs(torch.zeros((2, 32, 32, 3), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(
            model.embed("text", tokens), theirs.encode_text(tokens, normalize=True)
        )
        torch.testing.assert_close(
            model.embed("image", pixels), theirs.encode_image(pixels, normalize=True)
        )


@pytest.mark.parametrize("layout", ["coembed", "open_clip"])
def test_a_tower_that_the_checkpoint_lacks_keeps_its_random_start(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    trained, spec = load_model(folder)
    if layout == "open_clip":
        export_open_clip(trained, spec, tmp_path)
    source = folder if layout == "coembed" else tmp_path
    architecture = {**spec.architecture, "audio_cfg": tiny_architecture(audio=True)["audio_cfg"]}
    model, _ = _build(architecture, source)
    _assert_same_towers(trained, model)
    assert "has no audio tower: it starts from random weights" in capsys.readouterr().err
    random = build_towers(architecture, seed=1).towers["audio"].state_dict()
    for name, value in model.towers["audio"].state_dict().items():
        assert torch.equal(value, random[name]), name


@pytest.mark.parametrize("layout", ["coembed", "open_clip"])
def test_a_tower_that_the_model_lacks_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    trained, spec = load_model(folder)
    if layout == "open_clip":
        export_open_clip(trained, spec, tmp_path)
    architecture = {**tiny_architecture(audio=True), "embed_dim": spec.embed_dim}
    del architecture["vision_cfg"]
    model, _ = _build(architecture, folder if layout == "coembed" else tmp_path)
    assert model.modalities == ("audio", "text")
    text = trained.towers["text"].state_dict()
    for name, value in model.towers["text"].state_dict().items():
        assert torch.equal(value, text[name]), name
    notes = capsys.readouterr().err
    assert "the image tower of" in notes and "is left out: the model has none" in notes


def test_half_a_tower_is_refused(folder: Path, tmp_path: Path) -> None:
    """A random start is for towers of which the checkpoint holds nothing at all."""
    spec = load_model(folder)[1]
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    state = load_file(path)
    texts = sorted(name for name in state if name.startswith("towers.text."))
    save_file({name: state[name] for name in state if name not in texts[1:]}, path)
    with pytest.raises(ModelError, match=rf"{len(texts) - 1} missing"):
        _build(dict(spec.architecture), tmp_path / "copy")


def test_a_checkpoint_of_nothing_known_is_refused(architecture: Change, tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"missing .*1 unknown \(encoder.weight\)"):
        _build(architecture, tmp_path / "other.safetensors")


def test_the_champion_as_fetch_leaves_it(folder: Path, tmp_path: Path) -> None:
    """`coembed fetch` puts a model directory under runs/models, named after its fingerprint."""
    spec = load_model(folder)[1]
    place = "runs/models/0f3a9c02"
    shutil.copytree(folder, tmp_path / place)
    settings = ModelSettings(architecture=dict(spec.architecture), pretrained=place)
    model, _ = build_model(settings, seed=1, root=tmp_path)
    _assert_same_towers(load_model(folder)[0], model)
    shutil.rmtree(tmp_path / place)
    with pytest.raises(ModelError, match=f"no file or folder {place}") as caught:
        build_model(settings, seed=1, root=tmp_path)
    assert "`coembed fetch`" in (caught.value.hint or "")


def test_settings_come_before_the_checkpoints_scale(folder: Path) -> None:
    spec = load_model(folder)[1]
    model, _ = _build(dict(spec.architecture), folder, init_logit_scale=1.5, init_logit_bias=-3.0)
    assert model.logit_scale.item() == 1.5 and model.logit_bias.item() == -3.0


def test_positional_embeddings_of_another_size_are_resampled(
    architecture: Change, tmp_path: Path
) -> None:
    trained, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    export_open_clip(trained, spec, tmp_path)
    architecture["vision_cfg"]["image_size"] = 48
    architecture["text_cfg"]["context_length"] = 24
    model, larger = _build(architecture, tmp_path)
    assert larger.image.px == 48
    assert model.towers["image"].positional_embedding.shape == (37, 32)
    assert model.towers["text"].encoder.positional_embedding.shape == (24, 32)


def test_a_checkpoint_of_another_architecture_is_refused(
    folder: Path, architecture: Change
) -> None:
    architecture["text_cfg"]["layers"] = 1
    architecture["embed_dim"] = 16
    with pytest.raises(ModelError, match="does not fit the architecture") as caught:
        _build(architecture, folder)
    assert "unknown (" in caught.value.message or "missing (" in caught.value.message


def test_pickled_code_is_never_run(architecture: Change, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ModelError, match="cannot be read as plain tensors") as caught:
        _build(architecture, path)
    assert "no pickled code" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.safetensors", b"nonsense", "not a readable safetensors file"),
        ("weights.pt", b"nonsense", "cannot be read as plain tensors"),
        ("weights.npz", b"nonsense", "does not end in .safetensors"),
    ],
)
def test_unreadable_files_are_named(
    architecture: Change, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}.*{message}"):
        _build(architecture, tmp_path / name)


def test_what_does_not_hold_tensors_is_refused(architecture: Change, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="does not hold tensors by name"):
        _build(architecture, tmp_path / "list.pt")


def test_an_empty_folder_is_refused(architecture: Change, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint in the folder"):
        _build(architecture, tmp_path)


def test_a_truncated_own_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    save_file(dict(list(state.items())[:-1]), copy / "model.safetensors")
    spec = load_model(folder)[1]
    with pytest.raises(ModelError, match="1 missing"):
        _build(dict(spec.architecture), copy)


def test_an_unknown_tag_lists_the_known_ones(tmp_path: Path) -> None:
    settings = ModelSettings(architecture="ViT-B-32", pretrained="laion9b")
    with pytest.raises(ModelError, match=r"has no such tag; it has .*laion2b_s34b_b79k"):
        build_model(settings, seed=0, root=tmp_path)


def test_a_tag_needs_a_named_architecture(architecture: Change) -> None:
    with pytest.raises(ModelError, match="only open_clip's own models have tags"):
        _build(architecture, "laion2b_s34b_b79k")


def test_a_model_based_on_a_named_one_has_its_tags(tmp_path: Path) -> None:
    architecture = {"base": "ViT-B-32", "audio_cfg": tiny_architecture(audio=True)["audio_cfg"]}
    settings = ModelSettings(architecture=architecture, pretrained="laion9b")
    with pytest.raises(ModelError, match=r"ViT-B-32 has no such tag; it has .*laion2b_s34b_b79k"):
        build_model(settings, seed=0, root=tmp_path)


def test_a_tag_of_the_other_activation_is_refused() -> None:
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    with pytest.raises(ModelError, match="trained with QuickGELU") as caught:
        _build("ViT-B-32", "openai")
    assert caught.value.hint == "name the architecture ViT-B-32-quickgelu"


def test_a_tag_that_cannot_be_downloaded_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("offline mode is enabled")

    monkeypatch.setattr("coembed.models.pretrained.download_pretrained", offline)
    settings = ModelSettings(architecture="ViT-B-32", pretrained="laion2b_s34b_b79k")
    with pytest.raises(ModelError, match="not in the cache and cannot be downloaded") as caught:
        build_model(settings, seed=0, root=tmp_path)
    assert "offline" in str(caught.value)


def test_export_leaves_the_audio_tower_out(tmp_path: Path) -> None:
    architecture = tiny_architecture(audio=True)
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    assert export_open_clip(model, spec, tmp_path) == ("audio",)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = spec.loader("text").load(["a red shoe"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().embed("text", tokens), theirs.encode_text(tokens, normalize=True)
        )


def test_export_of_sounds_and_texts_is_refused(tmp_path: Path) -> None:
    architecture = tiny_architecture(audio=True)
    del architecture["vision_cfg"]
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    with pytest.raises(ModelError, match="holds an image and a text tower; this model has") as e:
        export_open_clip(model, spec, tmp_path)
    assert "--format onnx" in (e.value.hint or "")


def test_export_refuses_what_open_clip_cannot_hold(architecture: Change, tmp_path: Path) -> None:
    architecture["vision_cfg"] = {"image_size": 64, "timm_model_name": "vit_tiny_patch16_224"}
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    with pytest.raises(ModelError, match=r"other shapes: visual\.trunk\.pos_embed"):
        export_open_clip(model, spec, tmp_path)
    assert not list(tmp_path.iterdir())

"""Architectures and settings that cannot be are refused with one clear message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from open_clip import list_models
from pydantic import ValidationError

from coembed.errors import ModelError
from coembed.models.architecture import architecture_names, open_clip_name, read_architecture
from coembed.models.settings import ModelSettings

Change = dict[str, Any]


def test_reading_the_settings_imports_no_torch() -> None:
    code = "import sys, coembed.models.settings as s; s.ModelSettings(architecture='ViT-B-32');"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_names_are_open_clips() -> None:
    assert set(list_models()) <= set(architecture_names())


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32", "RN50", "convnext_base_w"])
def test_named_architectures_are_read(name: str) -> None:
    assert read_architecture(name)["embed_dim"] > 0


def test_every_architecture_of_open_clip_is_read_or_refused_for_a_reason() -> None:
    refused = {}
    for name in architecture_names():
        try:
            read_architecture(name)
        except ModelError as error:
            refused[name] = error.message
    assert all("CoCa" in text or "transformers model" in text for text in refused.values()), refused
    assert len(refused) < len(architecture_names()) / 5


def test_a_json_file_is_read(tmp_path: Path, architecture: Change) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(architecture))
    assert read_architecture("tiny.json", root=tmp_path) == architecture
    exported = {"model_cfg": architecture, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(exported))
    assert read_architecture("open_clip_config.json", root=tmp_path) == architecture


def test_named_architectures_ask_for_no_download() -> None:
    # open_clip's file says timm_model_pretrained: true for some; nobody asked for it here.
    for name in architecture_names():
        try:
            assert not read_architecture(name)["vision_cfg"].get("timm_model_pretrained")
        except ModelError:
            continue


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable JSON"), ("[]", "holds list"), ("{}", "lacks embed_dim")],
)
def test_a_bad_json_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ModelError, match=f"bad.json.*{message}"):
        read_architecture("bad.json", root=tmp_path)


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no architecture file at .*nowhere.json"):
        read_architecture("nowhere.json", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B32", "unknown architecture 'ViT-B32'; nearest: .*ViT-B-32"),
        ("vit-b-32", "nearest: .*ViT-B-32"),
        ("something else altogether", "for example: ViT-B-32|nearest"),
        ("hf-hub:laion/CLIP", "names a place, not an architecture"),
        ("local-dir:models/x", "names a place, not an architecture"),
    ],
)
def test_unknown_names_are_refused_with_their_nearest(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings(architecture=name)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"embed_dim": 0}, "embed_dim in architecture is 0, expected a whole number above 0"),
        (None, {"embed_dim": "64"}, "embed_dim in architecture is '64'"),
        (None, {"embed_dmi": 4}, "unknown keys: embed_dmi"),
        (None, {"vision_cfg": 3}, "vision_cfg of architecture is 3"),
        (None, {"multimodal_cfg": {}}, "CoCa"),
        (None, {"init_logit_scale": "big"}, "init_logit_scale of architecture is 'big'"),
        ("vision_cfg", {"patch_size": 7}, "image_size 32 .* not a multiple of patch_size 7"),
        ("vision_cfg", {"patch_size": 64}, "patch_size 64 .* larger than image_size 32"),
        ("vision_cfg", {"head_width": 24, "width": 64}, None),
        ("vision_cfg", {"head_width": 13}, None),
        ("vision_cfg", {"head_width": 12}, None),
        ("vision_cfg", {"head_width": 64}, "not a whole number of heads of head_width 64"),
        ("vision_cfg", {"width": 40, "head_width": 13}, "width 40 .* head_width 13"),
        ("vision_cfg", {"image_size": [32, 48]}, "one side of a square"),
        ("vision_cfg", {"layers": [1, 1, 1, 1], "image_size": 40}, "multiple of 32"),
        ("text_cfg", {"heads": 5}, "heads 5 .* does not divide width 32"),
        ("text_cfg", {"context_length": 2}, "leaves no room for a word"),
        ("text_cfg", {"vocab_size": -1}, "vocab_size .* is -1"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "roberta-base.*not supported"),
    ],
)
def test_impossible_architectures_are_refused(
    architecture: Change, section: str | None, change: Change, message: str | None
) -> None:
    (architecture if section is None else architecture[section]).update(change)
    if message is None:  # odd, but torch can build it: open_clip rounds the number of heads down
        ModelSettings(architecture=architecture)
        return
    with pytest.raises(ValidationError, match=message):
        ModelSettings(architecture=architecture)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["embed_dim"], "architecture lacks embed_dim"),
        (["vision_cfg"], "architecture has text_cfg; expected two or more of vision_cfg, text_cfg"),
        (["text_cfg"], "architecture has vision_cfg; expected two or more"),
        (["vision_cfg", "text_cfg"], "architecture has no tower; expected two or more"),
    ],
)
def test_an_incomplete_architecture_is_refused(
    architecture: Change, keys: list[str], message: str
) -> None:
    for key in keys:
        del architecture[key]
    with pytest.raises(ValidationError, match=message):
        ModelSettings(architecture=architecture)


AUDIO = {"timm_model_name": "test_resnet", "clip_s": 1.0, "sample_rate_hz": 8000, "num_mels": 32}


@pytest.mark.parametrize("left_out", [None, "vision_cfg", "text_cfg"])
def test_any_two_towers_or_all_three_are_an_architecture(
    architecture: Change, left_out: str | None
) -> None:
    architecture["audio_cfg"] = AUDIO
    architecture.pop(left_out, None)
    assert ModelSettings(architecture=architecture).architecture == architecture
    assert set(read_architecture(architecture)) == set(architecture)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (3, "audio_cfg of architecture is 3, expected a mapping"),
        ({}, "audio_cfg of architecture names no timm_model_name"),
        ({**AUDIO, "num_mel": 3}, "audio_cfg of architecture has unknown keys: num_mel"),
        ({**AUDIO, "clip_s": -1.0}, "clip_s in audio_cfg of architecture is -1.0"),
        ({**AUDIO, "f_max_hz": 9000.0}, "audio_cfg of architecture: f_max_hz is 9000, above half"),
    ],
)
def test_impossible_audio_sections_are_refused(
    architecture: Change, section: Any, message: str
) -> None:
    architecture["audio_cfg"] = section
    with pytest.raises(ValidationError, match=message):
        ModelSettings(architecture=architecture)


def test_a_base_lends_its_sections(tmp_path: Path) -> None:
    value = {
        "base": "ViT-B/32",
        "embed_dim": 256,
        "vision_cfg": {"image_size": 64, "patch_size": 16},
        "audio_cfg": AUDIO,
    }
    ModelSettings(architecture=value)
    found = read_architecture(value)
    named = read_architecture("ViT-B-32")
    assert found["embed_dim"] == 256 and "base" not in found
    assert found["vision_cfg"] == {**named["vision_cfg"], "image_size": 64, "patch_size": 16}
    assert found["text_cfg"] == named["text_cfg"]
    assert found["audio_cfg"].items() >= AUDIO.items()
    assert value["vision_cfg"] == {"image_size": 64, "patch_size": 16}  # left as it was
    (tmp_path / "based.json").write_text(json.dumps(value))
    assert read_architecture("based.json", root=tmp_path) == found


def test_the_defaults_of_the_audio_section_are_written_out() -> None:
    found = read_architecture({"base": "ViT-B-32", "audio_cfg": AUDIO})["audio_cfg"]
    assert found["hop_s"] == 0.010 and found["max_windows"] == 6 and found["f_max_hz"] is None
    assert read_architecture({"base": "ViT-B-32", "audio_cfg": found})["audio_cfg"] == found


def test_a_section_of_the_base_can_be_left_out() -> None:
    found = read_architecture({"base": "ViT-B-32", "vision_cfg": None, "audio_cfg": AUDIO})
    assert set(found) == {"embed_dim", "text_cfg", "audio_cfg"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"base": "ViT-B32"}, "unknown architecture 'ViT-B32'; nearest: .*ViT-B-32"),
        ({"base": 3}, "base of architecture is 3, expected the name of an open_clip model"),
        ({"base": "tiny.json"}, "base of architecture is 'tiny.json'"),
        ({"base": "ViT-B-32", "text_cfg": None}, "architecture has vision_cfg; expected two"),
        ({"base": "ViT-B-32", "text_cfg": {"heads": 5}}, "heads 5 .* does not divide width 512"),
        ({"base": "ViT-B-32", "vision_cfg": 4}, "vision_cfg of architecture is 4"),
        ({"base": "coca_ViT-B-32"}, "CoCa"),
    ],
)
def test_impossible_bases_are_refused(value: Change, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings(architecture=value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("ViT-B/32", "ViT-B-32"),
        ({"base": "ViT-B/32", "audio_cfg": AUDIO}, "ViT-B-32"),
        ("tiny.json", None),
        ({"embed_dim": 8}, None),
    ],
)
def test_whose_tags_fit(value: str | Change, name: str | None) -> None:
    assert open_clip_name(value) == name


def test_an_exponentiated_scale_is_refused_with_its_log() -> None:
    with pytest.raises(ValidationError, match=r"for a scale of 14\.3 write 2\.6603"):
        ModelSettings(architecture="ViT-B-32", init_logit_scale=14.3)
    assert ModelSettings(architecture="ViT-B-32", init_logit_scale=2.6603).init_logit_scale

"""Models with an audio tower: built, saved, loaded, embedding sounds beside images and texts."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from coembed.errors import DataError, ModelError
from coembed.losses.softmax import Softmax
from coembed.models.build import build_model
from coembed.models.checkpoint import load_model, save_model
from coembed.models.encoder import Encoder, load_encoder
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec, spec_from_json

AUDIO = {
    "timm_model_name": "test_resnet",
    "clip_s": 1.0,
    "sample_rate_hz": 8000,
    "num_mels": 32,
    "max_windows": 3,
}
TOWERS: dict[str, Any] = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "width": 32, "heads": 2, "layers": 1},
    "audio_cfg": AUDIO,
}


def _architecture(*sections: str) -> dict[str, Any]:
    return {"embed_dim": 24, **{section: dict(TOWERS[section]) for section in sections}}


def _sound(number: int) -> bytes:
    samples = np.random.default_rng(number).normal(0, 0.1, 3000 + 5000 * (number % 5))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="FLAC" if number % 2 else "WAV")
    return buffer.getvalue()


SOUNDS = [_sound(number) for number in range(11)]


@pytest.fixture(scope="module")
def model_and_spec() -> tuple[JointModel, ModelSpec]:
    settings = ModelSettings(architecture=_architecture(*TOWERS))
    return build_model(settings, seed=3)


@pytest.fixture(scope="module")
def model_folder(
    model_and_spec: tuple[JointModel, ModelSpec], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("three-towers")
    save_model(folder, *model_and_spec, {})
    return folder


@pytest.fixture(scope="module")
def sound_encoder(model_folder: Path) -> Encoder:
    return load_encoder(model_folder, device="cpu", batch_size=4, num_threads=2)


def test_three_towers_come_out_of_one_architecture(
    model_and_spec: tuple[JointModel, ModelSpec],
) -> None:
    model, spec = model_and_spec
    assert set(model.modalities) == set(spec.inputs) == {"image", "text", "audio"}
    assert spec.audio.window_samples == 8000
    assert spec_from_json(json.loads(json.dumps(spec.to_json())), source="here") == spec


@pytest.mark.parametrize("sections", [("text_cfg", "audio_cfg"), ("vision_cfg", "audio_cfg")])
def test_audio_needs_no_images_and_no_texts(sections: tuple[str, str], tmp_path: Path) -> None:
    model, spec = build_model(ModelSettings(architecture=_architecture(*sections)), seed=0)
    save_model(tmp_path, model, spec, {})
    loaded, again = load_model(tmp_path)
    assert again == spec and "audio" in loaded.modalities
    missing = "image" if "text_cfg" in sections else "text"
    with pytest.raises(ModelError, match=f"no {missing} tower"):
        spec.loader(missing)


def test_the_other_towers_do_not_depend_on_the_audio_tower(
    model_and_spec: tuple[JointModel, ModelSpec],
) -> None:
    settings = ModelSettings(architecture=_architecture("vision_cfg", "text_cfg"))
    two, _ = build_model(settings, seed=3)
    three = model_and_spec[0].state_dict()
    assert all(torch.equal(three[name], value) for name, value in two.state_dict().items())


def test_model_json_does_not_ask_for_weights_that_are_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(name, **options | {"pretrained": False}),
    )
    architecture = _architecture("text_cfg", "audio_cfg")
    architecture["audio_cfg"]["timm_model_pretrained"] = True
    _, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    assert "timm_model_pretrained" not in spec.architecture["audio_cfg"]


def test_a_timm_model_that_cannot_take_spectrograms_is_refused() -> None:
    architecture = _architecture("text_cfg", "audio_cfg")
    architecture["audio_cfg"]["timm_model_name"] = "test_maxvit"
    with pytest.raises(ModelError, match="audio tower cannot take inputs of shape") as caught:
        build_model(ModelSettings(architecture=architecture), seed=0)
    assert caught.value.hint is not None and "audio_cfg" in caught.value.hint


def test_sounds_become_unit_embeddings_whatever_their_company(
    sound_encoder: Encoder, model_folder: Path
) -> None:
    embeddings = sound_encoder.encode_sounds(SOUNDS)
    assert embeddings.shape == (11, 24) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    alone = np.concatenate([sound_encoder.encode_sounds([sound]) for sound in SOUNDS])
    np.testing.assert_allclose(alone, embeddings, atol=1e-5)
    for batch_size, num_threads in ((1, 1), (3, 3), (64, 2)):
        other = load_encoder(
            model_folder, device="cpu", batch_size=batch_size, num_threads=num_threads
        )
        np.testing.assert_allclose(other.encode_sounds(SOUNDS), embeddings, atol=1e-5)


def test_nothing_and_nonsense(sound_encoder: Encoder) -> None:
    assert sound_encoder.encode_sounds([]).shape == (0, 24)
    with pytest.raises(DataError, match=r"^audio 9: not a readable sound"):
        sound_encoder.encode_sounds([*SOUNDS[:9], b"nonsense"])


def test_long_sounds_come_in_smaller_batches(
    sound_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sound_encoder.encode_sounds(SOUNDS)
    monkeypatch.setattr("coembed.models.encoder._MAX_BATCH_BYTES", 2 * 3 * 8000 * 2)
    parts = list(sound_encoder.stream("audio", SOUNDS))
    assert [len(part) for part in parts] == [2, 2, 2, 2, 2, 1]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)


def test_bf16_is_near_fp32_for_sounds(sound_encoder: Encoder, model_folder: Path) -> None:
    near = load_encoder(model_folder, device="cpu", precision="bf16").encode_sounds(SOUNDS)
    assert (near * sound_encoder.encode_sounds(SOUNDS)).sum(axis=1).min() > 0.998


def test_audio_and_text_learn_together() -> None:
    settings = ModelSettings(architecture=_architecture("text_cfg", "audio_cfg"))
    model, spec = build_model(settings, seed=0)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sounds = spec.loader("audio").to_inputs(spec.loader("audio").load(SOUNDS[:4]))
    texts = spec.loader("text").load(["rain", "a bell", "steps", "a kettle"])
    losses = []
    for _ in range(12):
        z = model({"audio": sounds, "text": texts})
        loss = Softmax()(z["audio"], z["text"], logit_scale=model.logit_scale)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_what_weight_decay_leaves_alone_in_an_audio_vit() -> None:
    architecture = _architecture("text_cfg", "audio_cfg")
    architecture["audio_cfg"]["timm_model_name"] = "test_vit"
    model, _ = build_model(ModelSettings(architecture=architecture), seed=0)
    assert "towers.audio.trunk.pos_embed" in model.no_weight_decay()
    assert "towers.audio.proj.weight" not in model.no_weight_decay()


# The joint model


def test_the_scale_is_brought_back_to_its_limit() -> None:
    towers = {name: torch.nn.Identity() for name in ("image", "text")}
    model = JointModel(towers, logit_scale=5.0)
    model.clamp_logit_scale(None)
    model.clamp_logit_scale(1000.0)
    assert model.logit_scale.item() == 5.0
    parameter = model.logit_scale
    model.clamp_logit_scale(100.0)
    assert model.logit_scale is parameter and parameter.requires_grad
    assert parameter.item() == pytest.approx(math.log(100))


def test_cached_features_become_the_same_embeddings(
    model_and_spec: tuple[JointModel, ModelSpec],
) -> None:
    model, spec = model_and_spec
    model.eval()
    tokens = spec.loader("text").load(["rain", "a bell"])
    with torch.no_grad():
        features = model.features("text", tokens)
        assert torch.equal(model.embed_features(features), model.embed("text", tokens))
        assert model.embed_features(features.bfloat16()).dtype == torch.float32

"""The registered model, loaded by MLflow alone: no pickle, no coembed installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from release_case import World, make_world
from training_pairs import SMALL_MODEL

from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import load_encoder
from coembed.models.settings import ModelSettings
from coembed.registry.package import requirements, save_package
from coembed.registry.store import open_registry

TEXTS = ["a red disc", "", "zwei grüne Ringe"]

SCRIPT = """
import sys
sys.path = [path for path in sys.path if path.rstrip("/") != {source!r}]
import json
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri({uri!r})
mlflow.set_registry_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/shop@challenger")
import coembed
assert not coembed.__file__.startswith({source!r}), coembed.__file__
texts, media = {texts!r}, [open(path, "rb").read() for path in {media!r}]
np.savez(
    {out!r},
    texts=model.predict(pd.DataFrame({{"text": texts}})),
    images=model.predict(pd.DataFrame({{"image": media}})),
    mixed=model.predict(pd.DataFrame({{"text": [texts[0], None], "image": [None, media[0]]}})),
    wide=model.predict(
        pd.DataFrame({{"text": [texts[0]] * 2, "image": [None] * 2, "audio": [None] * 2}})
    ),
    dicts=model.predict([{{"text": text}} for text in texts]),
    plain=model.unwrap_python_model().predict(None, texts),
)
errors = []
both, neither, broken, sound = (
    {{"text": ["a"], "image": [media[0]]}}, {{"text": [None]}}, {{"image": [b"no image"]}},
    {{"audio": [b"RIFF"]}},
)
for rows in (*map(pd.DataFrame, (both, neither, broken, sound)), texts):
    try:
        model.predict(rows)
    except Exception as error:
        errors.append(str(error))
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    made = make_world(tmp_path_factory.mktemp("pyfunc"), store=empty_store)
    made.make_model("a", 1)
    made.register("a")
    return made


def test_mlflow_loads_it_elsewhere_without_pickle_and_embeds_as_we_do(
    world: World, tmp_path: Path
) -> None:
    media = [str(world.path("data") / "media" / f"0-{i}.jpg") for i in range(3)]
    out = tmp_path / "out.npz"
    script = SCRIPT.format(
        source=str(Path(__file__).parents[3] / "src"), uri=world.services.tracking_uri,
        texts=TEXTS, media=media, out=str(out),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    both, neither, broken, sound, bare = json.loads(done.stdout)
    assert "row 0 has text and image; expected one of them" in both
    assert "row 0 has no text, image or audio" in neither
    assert "image 0" in broken
    assert "the model encodes image and text, not audio" in sound
    assert "expected a column text, image or audio" in bare
    encoder = load_encoder(world.path("a"), device="cpu")
    texts = encoder.encode_texts(TEXTS)
    images = encoder.encode_images([Path(path).read_bytes() for path in media])
    found = np.load(out)
    np.testing.assert_allclose(found["texts"], texts, atol=1e-5)
    np.testing.assert_allclose(found["plain"], texts, atol=1e-5)
    np.testing.assert_allclose(found["dicts"], texts, atol=1e-5)
    np.testing.assert_allclose(found["images"], images, atol=1e-5)
    np.testing.assert_allclose(found["mixed"], [texts[0], images[0]], atol=1e-5)
    np.testing.assert_allclose(found["wide"], [texts[0], texts[0]], atol=1e-5)
    assert found["texts"].dtype == np.float32


def test_texts_pictures_and_sounds_go_in_together(tmp_path: Path) -> None:
    audio = {"timm_model_name": "test_resnet", "clip_s": 0.5, "sample_rate_hz": 8000}
    architecture = {**SMALL_MODEL["architecture"], "audio_cfg": {**audio, "num_mels": 32}}
    built = build_model(ModelSettings(architecture=architecture), seed=0)
    model = tmp_path / "model"
    model.mkdir()
    save_model(model, *built, {})
    save_package(tmp_path / "package", model, dim=32, precision="fp32")
    sounds, pictures = [_sound(3000), _sound(9000)], [_picture()]
    rows = [
        {"audio": sounds[0]},
        {"text": TEXTS[0]},
        {"image": pictures[0]},
        {"audio": sounds[1]},
        {"text": TEXTS[1]},
    ]
    # In the process of its own that MLflow serves a model in: here its code would shadow ours.
    script = f"""
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model({str(tmp_path / "package")!r})
given = eval(open({str(tmp_path / "rows")!r}).read())
np.save({str(tmp_path / "out.npy")!r}, model.predict(pd.DataFrame(given)))

# As `mlflow models serve` answers: JSON, in which a file is base64.
import base64, json
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
client = TestClient(scoring_server.init(model))

def as_json(row):
    return {{k: v if k == "text" else base64.b64encode(v).decode() for k, v in row.items()}}

def ask(body):
    answer = client.post("/invocations", json=body)
    return answer.json()["predictions"] if answer.status_code == 200 else answer.text

records = [as_json(row) for row in given]
whole = [{{"text": None, "image": None, "audio": None, **row}} for row in records]
image = next(row["image"] for row in records if "image" in row)
print(json.dumps([
    ask({{"dataframe_records": records}}),
    ask({{"dataframe_records": whole}}),
    ask({{"inputs": records}}),
    ask({{"dataframe_split": {{"columns": ["image"], "data": [[image]]}}}}),
    ask({{"dataframe_records": [{{"image": "shoe.jpg"}}]}}),
]))
"""
    (tmp_path / "rows").write_text(repr(rows))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    encoder = load_encoder(model, device="cpu")
    heard, read = encoder.encode_sounds(sounds), encoder.encode_texts(TEXTS[:2])
    seen = encoder.encode_images(pictures)
    expected = [heard[0], read[0], seen[0], heard[1], read[1]]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    *served, split, wrong = json.loads(done.stdout.splitlines()[-1])
    for answer in served:
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    np.testing.assert_allclose(split, seen, atol=1e-5)
    assert "the image of row 0 is text that is no base64" in wrong


def _sound(num_samples: int) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(num_samples).normal(0, 0.1, num_samples)
    soundfile.write(buffer, samples, 8000, format="FLAC")
    return buffer.getvalue()


def _picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_there_is_no_pickle_in_the_package(world: World) -> None:
    registry = open_registry(world.services, world.cfg.register_)
    source = Path(registry.versions()[0].source.removeprefix("file://"))
    names = [path.name for path in source.rglob("*") if path.is_file()]
    assert {"MLmodel", "model.safetensors", "pyfunc_model.py", "requirements.txt"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    assert not [name for name in names if name.endswith(".pyc")]


def test_a_model_that_dvc_linked_into_place_is_packed_as_files(
    world: World, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in world.path("a").iterdir():
        (linked / path.name).symlink_to(path)
    save_package(tmp_path / "package", linked, dim=32, precision="fp32")
    packed = tmp_path / "package" / "artifacts" / "linked" / "model.safetensors"
    assert not packed.is_symlink()
    assert packed.read_bytes() == (world.path("a") / "model.safetensors").read_bytes()


def test_requirements_are_exact_and_public() -> None:
    found = requirements()
    assert all("==" in line and "+" not in line for line in found)
    for name in ("torch", "soundfile", "soxr"):
        assert any(line.startswith(f"{name}==") for line in found)

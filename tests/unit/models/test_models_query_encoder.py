"""The query encoder: the encoder's embeddings, by the fastest engine that is right."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_towers import tiny_architecture

from coembed.errors import ConfigError, DataError, ModelError
from coembed.modalities.text import TextTower
from coembed.models import text_engine, text_parity
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import Encoder, load_encoder
from coembed.models.onnx_text import GRAPH, write_text_graph
from coembed.models.query_encoder import QueryEncoder, load_query_encoder
from coembed.models.settings import ModelSettings

pytest.importorskip("onnxruntime")

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Writes a model directory with these settings of its text tower."""

    def save(*, audio: bool = False, quick_gelu: bool = False, **text: Any) -> Path:
        architecture = tiny_architecture(audio=audio)
        architecture["text_cfg"] |= text
        architecture["quick_gelu"] = quick_gelu
        folder = tmp_path_factory.mktemp("model")
        save_model(folder, *build_model(ModelSettings(architecture=architecture), seed=3), {})
        return folder

    return save


@pytest.fixture(scope="module")
def plain(save: Save) -> Path:
    """Read it; don't write into it."""
    return save(audio=True)


@pytest.fixture(scope="module")
def encoder(plain: Path) -> Encoder:
    return load_encoder(plain, device="cpu")


def _measured(cache: Path) -> Path:
    (path,) = cache.glob("query-encoders/*/measured.json")
    return path


def _load(folder: Path, cache: Path, engine: Any = "auto", **more: Any) -> QueryEncoder:
    settings: dict[str, Any] = {"precision": "fp32", "num_threads": 1} | more
    return load_query_encoder(folder, cache=cache, engine=engine, **settings)


@pytest.mark.parametrize("engine", ["torch", "onnx", "onnx-int8", "auto"])
def test_any_engine_gives_the_encoders_embeddings(
    plain: Path, encoder: Encoder, texts: list[str], tmp_path: Path, engine: str
) -> None:
    queries = _load(plain, tmp_path, engine)
    assert queries.fingerprint == encoder.fingerprint
    assert (queries.embed_dim, queries.modalities) == (24, encoder.modalities)
    assert queries.logit_scale == encoder.logit_scale
    queries.warm()
    found, wanted = queries.encode("text", texts), encoder.encode_texts(texts)
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    least = 0.998 if queries.engines["text"] == "onnxruntime int8" else 0.99999
    assert (found * wanted).sum(axis=1).min() > least
    assert queries.parity["text"] > least
    assert queries.encode("text", []).shape == (0, 24)
    named = {"torch": "torch fp32", "onnx": "onnxruntime fp32", "onnx-int8": "onnxruntime int8"}
    assert queries.engines["text"] == named.get(engine, queries.engines["text"])
    with pytest.raises(DataError, match="text 1 is bytes, expected a string"):
        queries.encode("text", ["a", b"b"])
    with pytest.raises(ModelError, match="not video"):
        queries.encode("video", [b""])


def test_pictures_go_through_torch(
    plain: Path, encoder: Encoder, images: list[bytes], tmp_path: Path
) -> None:
    queries = _load(plain, tmp_path, "onnx")
    np.testing.assert_array_equal(queries.encode("image", images), encoder.encode_images(images))
    assert queries.engines["image"] == queries.engines["audio"] == "torch fp32"


@pytest.mark.parametrize("engine", ["onnx", "onnx-int8"])
def test_company_and_threads_do_not_matter(
    plain: Path, texts: list[str], tmp_path: Path, engine: str
) -> None:
    queries = _load(plain, tmp_path, engine)
    alone = np.concatenate([queries.encode("text", [text]) for text in texts])
    many = texts * 9
    order = np.random.default_rng(0).permutation(len(many))
    together = queries.encode("text", [many[place] for place in order])
    np.testing.assert_allclose(together, np.tile(alone, (9, 1))[order], atol=1e-5)
    wrong: list[str] = []

    def ask(place: int) -> None:
        for _ in range(20):
            found = queries.encode("text", [texts[place]])[0]
            if np.abs(found - alone[place]).max() > 1e-5:
                wrong.append(texts[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        {"no_causal_mask": True, "pool_type": "first", "proj_type": "none", "width": 24},
        {"pool_type": "eos", "eos_id": 49407, "ls_init_value": 0.3},
        {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
        {"quick_gelu": True, "layers": 1, "mlp_ratio": 1.5},
    ],
    ids=lambda text: ",".join(text),
)
def test_every_kind_of_text_tower(
    save: Save, texts: list[str], tmp_path: Path, text: dict[str, Any]
) -> None:
    folder = save(**text)
    wanted = load_encoder(folder, device="cpu").encode_texts(texts)
    queries = _load(folder, tmp_path, "onnx")
    np.testing.assert_allclose(queries.encode("text", texts), wanted, atol=1e-5)
    # A tower that needs all of its padding keeps it, in 8 bits too.
    eight = _load(folder, tmp_path, "auto")
    assert (eight.encode("text", texts) * wanted).sum(axis=1).min() > 0.998


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"embed_cls": True}, "a class token (embed_cls)"),
        ({"qk_norm": True}, "blocks of the type CustomResidualAttentionBlock"),
    ],
)
def test_unusual_towers_go_through_torch_and_say_why(
    save: Save, texts: list[str], tmp_path: Path, text: dict[str, Any], reason: str
) -> None:
    folder = save(**text)
    queries = _load(folder, tmp_path)
    assert queries.engines["text"] == "torch fp32" and reason in queries.notes["text"]
    wanted = load_encoder(folder, device="cpu").encode_texts(texts)
    np.testing.assert_allclose(queries.encode("text", texts), wanted, atol=1e-6)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="texts cannot go through onnx-int8: the text tower has"):
        _load(folder, tmp_path, "onnx-int8")


def test_the_next_start_measures_nothing(
    plain: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(plain, tmp_path)
    before = _measured(tmp_path).read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(text_engine, "measure", refuse)
    if first.engines["text"] != "torch fp32":
        monkeypatch.setattr(text_engine, "write_text_graph", refuse)
    again = _load(plain, tmp_path)
    assert (again.engines, again.parity, again.notes) == (first.engines, first.parity, first.notes)
    np.testing.assert_array_equal(again.encode("text", texts), first.encode("text", texts))
    assert _measured(tmp_path).read_bytes() == before


def test_only_the_graph_that_is_used_stays(plain: Path, tmp_path: Path) -> None:
    for engine in ("onnx", "onnx-int8", "onnx"):
        _load(plain, tmp_path, engine)
        found = {path.name for path in _measured(tmp_path).parent.iterdir()}
        assert found == {"measured.json", engine}


@pytest.mark.parametrize("harm", ["graph", "weights", "measurements", "half"])
def test_a_damaged_cache_is_made_anew(
    plain: Path, texts: list[str], tmp_path: Path, harm: str
) -> None:
    wanted = _load(plain, tmp_path, "onnx").encode("text", texts)
    folder = _measured(tmp_path).parent
    graph = folder / "onnx" / GRAPH
    if harm == "graph":
        graph.write_bytes(graph.read_bytes()[:1000])
    elif harm == "weights":
        path = folder / "onnx" / "weights.bin"
        size = path.stat().st_size
        # Floats that are fine in themselves, so nothing but the answer tells.
        path.write_bytes(np.full(size // 4, 0.01, dtype=np.float32).tobytes())
    elif harm == "measurements":
        _measured(tmp_path).write_text('{"onnx": {"wrong": null}}')
    else:  # what a killed export leaves
        graph.unlink()
        (folder / ".onnx.partial").mkdir()
        (folder / ".onnx.partial" / GRAPH).write_bytes(b"half")
    found = _load(plain, tmp_path, "onnx").encode("text", texts)
    np.testing.assert_array_equal(found, wanted)
    assert json.loads(_measured(tmp_path).read_text()).keys() == {"torch", "onnx", "onnx-int8"}


def test_a_wrong_graph_is_refused(
    plain: Path, encoder: Encoder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_wrong(tower: TextTower, folder: Path, *, int8: bool) -> None:
        kept = tower.encoder.ln_final.weight.detach().clone()
        with torch.no_grad():
            tower.encoder.ln_final.weight[0] += 2.0
            try:
                write_text_graph(tower, folder, int8=int8)
            finally:
                tower.encoder.ln_final.weight.copy_(kept)

    monkeypatch.setattr(text_engine, "write_text_graph", slightly_wrong)
    queries = _load(plain, tmp_path)
    assert queries.engines["text"] == "torch fp32"
    assert "onnx is not taken: its embeddings are up to" in queries.notes["text"]
    assert "onnx-int8 is not taken: its least cosine with float32 is" in queries.notes["text"]
    np.testing.assert_allclose(
        queries.encode("text", texts), encoder.encode_texts(texts), atol=1e-6
    )
    with pytest.raises(ModelError, match="cannot go through onnx: its embeddings are up to"):
        _load(plain, tmp_path, "onnx")


def test_a_full_disk_costs_speed_only(
    plain: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(onnx, "save_model", full)
        queries = _load(plain, tmp_path)
    assert queries.engines["text"] == "torch fp32"
    assert "no space left on the disk" in queries.notes["text"]
    assert queries.encode("text", texts).shape == (len(texts), 24)
    # It is no property of the model, so it is not kept.
    assert "no space" not in _load(plain, tmp_path).notes["text"]


def test_bf16_vectors_are_searched_with_float32_texts(
    plain: Path, encoder: Encoder, texts: list[str], images: list[bytes], tmp_path: Path
) -> None:
    theirs = load_encoder(plain, device="cpu", precision="bf16")
    queries = _load(plain, tmp_path, "onnx", precision="bf16")
    assert queries.fingerprint == theirs.fingerprint != encoder.fingerprint
    assert queries.engines == {
        "text": "onnxruntime fp32", "image": "torch bf16", "audio": "torch bf16",
    }  # fmt: skip
    found = queries.encode("text", texts)
    np.testing.assert_allclose(found, encoder.encode_texts(texts), atol=1e-5)
    assert (found * theirs.encode_texts(texts)).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(queries.encode("image", images), theirs.encode_images(images))


@pytest.mark.slow
def test_processes_at_once(plain: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from coembed.models.query_encoder import load_query_encoder\n"
        "queries = load_query_encoder(Path(sys.argv[1]), precision='fp32',"
        " cache=Path(sys.argv[2]), num_threads=1, engine='onnx-int8')\n"
        "print(queries.encode('text', ['a red shoe']).tobytes().hex())\n"
    )
    command = [sys.executable, "-c", code, str(plain), str(tmp_path)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert len({out for out, _ in ended}) == 1
    assert _measured(tmp_path)


def test_impossible_wishes_and_the_end(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine is 'tensorrt'; expected one of auto, torch"):
        _load(plain, tmp_path, "tensorrt")
    queries = _load(plain, tmp_path, "torch")
    queries.close()
    with pytest.raises(RuntimeError, match="closed"):
        queries.encode("text", ["a"])


def test_the_cache_keeps_the_last_models(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}").mkdir()
        text_engine.os.utime(tmp_path / f"{number:02}", (number, number))
    text_engine._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n:02}" for n in range(4, 12)]


def test_the_gate_sees_what_a_cosine_does_not() -> None:
    """Texts near one another: a small change of angle turns their order about."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((70, 64)).astype(np.float32)
    common = 40 * generator.standard_normal(64).astype(np.float32)

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    near = unit(common + directions)
    shaken = unit(near + 0.004 * generator.standard_normal(near.shape).astype(np.float32))

    def first(vectors: np.ndarray) -> text_parity.Run:
        return lambda texts: vectors[: len(texts)]

    measured = text_parity.measure(
        {"onnx-int8": lambda: first(shaken), "torch": lambda: first(near)}, first(near), ()
    )
    assert measured["onnx-int8"]["least_cosine"] > text_parity.MIN_COSINE
    assert "of the ten nearest it keeps" in measured["onnx-int8"]["wrong"]
    assert measured["torch"]["overlap_at_10"] == 1.0
    assert text_parity.best(measured) == "torch"

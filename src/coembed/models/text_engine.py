"""What a text query goes through: torch, or ONNX Runtime where that is faster and right.

    torch        as Encoder runs it
    onnx         ONNX Runtime in float32
    onnx-int8    ONNX Runtime with 8-bit products (models/onnx_text.py)

Which is best is measured once on this machine (models/text_parity.py), and kept:

    CACHE/query-encoders/<key>/measured.json   what was measured, by candidate
    CACHE/query-encoders/<key>/<candidate>/    the graph that is used

The key covers the model, the kind of machine, ONNX Runtime and the number of threads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coembed.errors import DataError, ModelError, ServiceError
from coembed.files import disk_errors, read_json, sha256_json, write_json
from coembed.locking import exclusive
from coembed.modalities.text import TextTower
from coembed.models.encoder import Embeddings, Encoder
from coembed.models.joint import JointModel
from coembed.models.onnx_text import GRAPH, VERSION, refuse_unusual, write_text_graph
from coembed.models.spec import ModelSpec
from coembed.models.text_parity import (
    Measured,
    best,
    describe,
    is_whole,
    measure,
    same_as_before,
)

Engine = Literal["auto", "torch", "onnx", "onnx-int8"]

_CACHE = "query-encoders"
_MEASURED = "measured.json"
_GRAPHS: Final = {"onnx": "onnxruntime fp32", "onnx-int8": "onnxruntime int8"}
# Folders of the cache that are kept: as many models as a service may go back to.
_KEPT = 8
# In float32 so many texts go through together; int8 takes them one by one.
_TOGETHER = 32


@dataclass(frozen=True)
class Choice:
    """What texts go through, and why.

    session: None for torch. name: as a person reads it. least_cosine: with torch's float32, over
    all probes. note: what was measured, or why an engine was passed over.
    """

    session: TextSession | None
    name: str
    least_cosine: float
    note: str


def choose_text_engine(
    model: JointModel,
    encoder: Encoder,
    engine: Engine,
    cache: Path,
    num_threads: int | None,
    probes: Sequence[str],
) -> Choice:
    """The engine for texts, as measured now or before. See query_encoder.load_query_encoder.

    Raises ModelError: an engine asked for by name that cannot be had, or is not right.
    """
    tower = model.tower("text")
    try:
        import onnxruntime

        refuse_unusual(tower)
    except ImportError as error:
        return _fall_back(engine, f"onnxruntime cannot be imported: {error}")
    except ModelError as error:
        return _fall_back(engine, error.message)
    assert isinstance(tower, TextTower)
    threads = num_threads or torch.get_num_threads()
    key = sha256_json(
        {
            "graphs": VERSION,
            "model": encoder.fingerprint,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "machine": _machine(),
            "threads": threads,
        }
    )[:16]
    bench = _Bench(tower, encoder, cache / _CACHE / key, threads)
    try:
        with disk_errors(bench.folder):
            bench.folder.mkdir(parents=True, exist_ok=True)
            lock = bench.folder.with_suffix(".lock")
            with exclusive(lock, doing="measuring how texts are encoded fastest", wait=True):
                return _chosen(bench, engine, probes)
    except ServiceError as error:  # a full or forbidden disk: nothing to refuse a query for
        return _fall_back(engine, error.message)


def _chosen(bench: _Bench, engine: Engine, probes: Sequence[str]) -> Choice:
    """The engine for texts. One process at a time."""
    measured = _measured_before(bench.folder)
    if measured is None:
        measured = bench.measure(probes)
        write_json(bench.folder / _MEASURED, measured)
        _prune(bench.folder.parent)
    os.utime(bench.folder)
    name = best(measured) if engine == "auto" else engine
    if measured[name]["wrong"]:
        return _fall_back(engine, measured[name]["wrong"])
    session = None if name == "torch" else bench.proven(name, measured[name])
    for other in {*_GRAPHS} - {name}:
        shutil.rmtree(bench.folder / other, ignore_errors=True)  # only what is used stays
    return Choice(
        session, _GRAPHS.get(name, name), measured[name]["least_cosine"], describe(measured)
    )


def _fall_back(engine: Engine, reason: str) -> Choice:
    """Torch, where the choice is free. Raises ModelError where it is not."""
    if engine != "auto":
        raise ModelError(
            f"texts cannot go through {engine}: {reason}", hint="take the engine auto or torch"
        )
    return Choice(None, "torch", 1.0, f"torch, because {reason}")


class TextSession:
    """A text tower in ONNX Runtime. Safe to call from several threads."""

    def __init__(
        self, folder: Path, tower: TextTower, spec: ModelSpec, *, alone: bool, num_threads: int
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        # Threads that wait for the next query by turning would take the cores from what else runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            folder / GRAPH, options, providers=["CPUExecutionProvider"]
        )
        self._trim, self._loader, self._alone = tower.trim, spec.loader("text"), alone
        self._embed_dim = spec.embed_dim

    def encode(self, texts: Sequence[Any]) -> Embeddings:
        """Unit embeddings [len(texts), embed_dim]. Raises DataError."""
        tokens = self._loader.load(texts)
        result = np.empty((len(tokens), self._embed_dim), dtype=np.float32)
        if self._alone or len(tokens) == 1:
            for place in range(len(tokens)):
                result[place] = self._run(tokens[place : place + 1])[0]
            return result
        # By length, for a batch is as long as its longest text.
        lengths = [self._trim(tokens[place : place + 1]).shape[1] for place in range(len(tokens))]
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _TOGETHER):
            places = order[start : start + _TOGETHER]
            result[places] = self._run(tokens[torch.from_numpy(places)])
        return result

    def _run(self, tokens: Tensor) -> Embeddings:
        (features,) = self._session.run(["features"], {"tokens": self._trim(tokens).numpy()})
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        embeddings: Embeddings = features / np.maximum(norms, 1e-12)  # as torch's normalize
        return embeddings


@dataclass
class _Bench:
    """Where candidates are made, measured and loaded."""

    tower: TextTower
    encoder: Encoder
    folder: Path
    num_threads: int
    sessions: dict[str, TextSession] = field(default_factory=dict)

    def measure(self, probes: Sequence[str]) -> Measured:
        """See text_parity.measure."""
        return measure(
            {
                "torch": lambda: partial(self.encoder.encode, "text"),
                "onnx": lambda: self.session("onnx").encode,
                "onnx-int8": lambda: self.session("onnx-int8").encode,
            },
            self._reference,
            probes,
        )

    def session(self, name: str) -> TextSession:
        """Of the graph in the cache, which is written where it is missing or cannot be read."""
        if name not in self.sessions:
            try:
                self.sessions[name] = self._open(name)
            except Exception:  # none yet, or one that another version or a bad disk left
                write_text_graph(self.tower, self.folder / name, int8=name == "onnx-int8")
                self.sessions[name] = self._open(name)
        return self.sessions[name]

    def proven(self, name: str, found: Mapping[str, Any]) -> TextSession:
        """The session of a candidate, once it gives the embedding it gave when it was measured."""
        if not same_as_before(self.session(name).encode, found):
            del self.sessions[name]
            shutil.rmtree(self.folder / name)
            if not same_as_before(self.session(name).encode, found):
                raise ModelError(
                    f"texts come out of {name} otherwise than when it was measured",
                    hint=f"remove {self.folder} and start again",
                )
        return self.sessions[name]

    def _open(self, name: str) -> TextSession:
        return TextSession(
            self.folder / name,
            self.tower,
            self.encoder.spec,
            alone=name == "onnx-int8",
            num_threads=self.num_threads,
        )

    def _reference(self, texts: Sequence[str]) -> Embeddings:
        """Torch's float32 embeddings, whatever the precision of the encoder."""
        tokens = self.encoder.spec.loader("text").load(texts)
        with torch.inference_mode():
            batches = (tokens[at : at + _TOGETHER] for at in range(0, len(tokens), _TOGETHER))
            parts = [
                F.normalize(self.tower(self.tower.trim(some)), dim=-1).numpy() for some in batches
            ]
        reference: Embeddings = np.concatenate(parts)
        return reference


def _measured_before(folder: Path) -> Measured | None:
    """What an earlier start measured; None where there is nothing whole."""
    with suppress(DataError):
        measured = read_json(folder / _MEASURED, what="measurements")
        if is_whole(measured, ("torch", *_GRAPHS)):
            result: Measured = measured
            return result
    return None


def _machine() -> str:
    """The kind of processor: which kernels are chosen, and how fast they are, depends on it."""
    known = [platform.system(), platform.machine(), sys.byteorder, str(os.cpu_count())]
    with suppress(OSError):
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known += sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(known).encode()).hexdigest()


def _prune(root: Path) -> None:
    """Remove the folders that were not used for longest; one in use by a process stays open."""
    folders = sorted(
        (path for path in root.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime
    )
    for path in folders[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)

"""The encoder of a service: the same embeddings as Encoder, one query at a time and fast.

A text is cut at its end token where that is exact, and goes through torch or ONNX Runtime,
whichever is faster here and right (models/text_engine.py). Images and sounds go through torch, in
the precision of the vectors: nearly all their time is in large products, which torch does as well.

Text queries are float32 (or the int8 near it) whatever precision the vectors were made in: that is
nearer to what bf16 vectors stand for than a second rounding would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from coembed.errors import ConfigError
from coembed.models.checkpoint import load_model, read_card
from coembed.models.encoder import Embeddings, Encoder, Precision
from coembed.models.text_engine import Engine, TextSession, choose_text_engine

# Queries that go through torch together.
_BATCH = 32


class QueryEncoder:
    """A model that encodes queries. Safe to call from several threads.

    What a query's embedding is does not depend on what is encoded beside it (to 1e-5 in fp32).

    spec, embed_dim, fingerprint, logit_scale, logit_bias: as Encoder has them. engines: modality →
    what it runs in ("torch fp32", "onnxruntime int8"). parity: modality → least cosine with torch's
    float32 embedding; 1 where torch itself runs as the vectors were made. notes: modality → what
    was measured, or why an engine was passed over.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        engines: Mapping[str, str],
        parity: Mapping[str, float],
        notes: Mapping[str, str],
        text: TextSession | None,
    ) -> None:
        self.spec = encoder.spec
        self.embed_dim = encoder.embed_dim
        self.fingerprint = encoder.fingerprint
        self.logit_scale, self.logit_bias = encoder.logit_scale, encoder.logit_bias
        self.modalities = encoder.modalities
        self.engines, self.parity, self.notes = dict(engines), dict(parity), dict(notes)
        self._encoder: Encoder | None = encoder
        self._text = text

    def encode(self, modality: str, items: Sequence[str | bytes]) -> Embeddings:
        """Unit embeddings [len(items), embed_dim].

        Raises DataError (an item that cannot be read, named by its place) and ModelError (the model
        has no such tower).
        """
        encoder, text = self._encoder, self._text
        if encoder is None:
            raise RuntimeError("the query encoder is closed")
        if modality == "text" and text is not None:
            return text.encode(items)
        return encoder.encode(modality, items)

    def warm(self) -> None:
        """Go through every tower, for a first query waits for memory and threads to be set up."""
        for modality in self.modalities:
            if modality == "text":
                for text in ("a", "a photo of a red shoe", "red and blue stripes " * 30):
                    self.encode(modality, [text])
            elif self._encoder is not None:
                self._encoder.warm(modality)

    def close(self) -> None:
        """Let go of the weights, once no call is under way; later calls are refused."""
        self._encoder = self._text = None


def load_query_encoder(
    folder: Path,
    *,
    precision: Precision,
    cache: Path,
    num_threads: int | None = None,
    engine: Engine = "auto",
    probes: Sequence[str] = (),
) -> QueryEncoder:
    """The query encoder of the model directory `folder`, on the processor.

    precision: what the vectors to be searched were made in. cache: folder for graphs and what was
    measured; any number of processes may share it. num_threads: of one query; sets torch's for the
    whole process, and one a core where None. engine: for texts; `auto` takes the fastest that is
    right. probes: texts like those to come, to measure parity with (some are always there).

    Raises:
        ModelError: a missing or damaged model; an engine asked for by name that this text tower
            has none of, or that is not right.
        ConfigError: an unknown engine or precision.
    """
    if engine not in get_args(Engine):
        raise ConfigError(f"engine is {engine!r}; expected one of {', '.join(get_args(Engine))}")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    card = read_card(folder)
    model, spec = load_model(folder)
    encoder = Encoder(
        model,
        spec,
        weights_sha256=card.weights_sha256,
        precision=precision,
        batch_size=_BATCH,
        num_threads=num_threads,
    )
    engines = dict.fromkeys(encoder.modalities, f"torch {precision}")
    parity = dict.fromkeys(encoder.modalities, 1.0)
    notes: dict[str, str] = {}
    session = None
    if "text" in encoder.modalities and engine != "torch":
        choice = choose_text_engine(
            model, encoder, engine=engine, cache=cache, num_threads=num_threads, probes=probes
        )
        notes["text"] = choice.note
        session = choice.session
        if session is not None:
            engines["text"], parity["text"] = choice.name, choice.least_cosine
            # ONNX Runtime has weights of its own; cutting texts needs none.
            model.tower("text").register_module("encoder", None)
    return QueryEncoder(encoder, engines=engines, parity=parity, notes=notes, text=session)

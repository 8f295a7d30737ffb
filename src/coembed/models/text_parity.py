"""How near and how fast the ways to encode a text are, and which of them is best.

Torch's float32 embeddings are the measure. Float32 elsewhere has to be within MAX_DIFFERENCE of
them. An 8-bit embedding has to be near in angle and has to keep the order of neighbours: a cosine
alone flatters a model whose texts are all near one another.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ServiceError
from coembed.models.encoder import Embeddings

MIN_COSINE: Final = 0.998
"""Least cosine that int8 may have with torch's float32, over all probes."""

MIN_OVERLAP: Final = 0.95
"""Least share that the ten nearest probes by int8 and by float32 have in common, on average."""

MAX_DIFFERENCE: Final = 1e-4
"""Largest difference of an element of a float32 embedding from torch's."""

CHECKED: Final = "a photo of a red shoe"
"""The text by whose embedding a graph is known again at the next start."""

Run = Callable[[Sequence[str]], Embeddings]
Measured = dict[str, dict[str, Any]]

# int8 is taken where it is so much faster than float32, which is nearer to the model.
_WORTH = 1.1
_NUM_PROBES, _MAX_PROBES = 64, 256
_TIMED, _ROUNDS = 16, 3
_TOP = 10
# Cosine with its own embedding of when it was measured: a damaged graph is far below.
_SAME = 0.9999
_COLOURS = ("red", "dark blue", "green", "black", "white", "yellow", "grey", "pink")
_THINGS = (
    "shoe", "wooden chair", "dog", "bus", "guitar", "cup of coffee", "leather jacket", "bird",
)  # fmt: skip
_SETTINGS = (
    "{colour} {thing}", "a photo of a {colour} {thing}", "{thing} in the rain, {colour} light",
    "the {colour} {thing} on the table", "close-up of a small {thing} with {colour} stripes",
)  # fmt: skip
_ODD = ("", "?", "blue " * 200, "ein rotes Kleid für 20 €", "赤い靴", "SKU 4711-0815/b")


def measure(
    ways: Mapping[str, Callable[[], Run]], reference: Run, probes: Sequence[str]
) -> Measured:
    """By name of a way: ms a text, least cosine, largest difference and overlap at 10 with what
    `reference` gives, the embedding of CHECKED, and what is wrong with it (None where nothing is).

    A way is a function that makes what encodes; where it cannot, that is what is wrong with it.
    Raises ServiceError: a full disk says nothing about a way.
    """
    texts = _texts(probes)
    wanted = reference(texts)
    order = _nearest(wanted, wanted)
    runs: dict[str, Run] = {}
    measured: Measured = {}
    for name, make in ways.items():
        try:
            run = make()
            found = run(texts)
            check = run([CHECKED])[0].tolist()
        except ServiceError:
            raise
        except Exception as error:  # onnx and onnxruntime raise nearly everything
            measured[name] = {"wrong": f"{type(error).__name__}: {error}"}
            continue
        if not np.isfinite(found).all():
            measured[name] = {"wrong": "it gives embeddings that are not finite"}
            continue
        runs[name] = run
        measured[name] = {
            "least_cosine": float((found * wanted).sum(axis=1).min()),
            "largest_difference": float(np.abs(found - wanted).max()),
            "overlap_at_10": _overlap(order, _nearest(found, wanted)),
            "check": check,
        }
        measured[name]["wrong"] = _wrong(name, measured[name])
    for name, ms in _milliseconds(runs, texts).items():
        measured[name]["ms"] = ms
    return measured


def best(measured: Measured) -> str:
    """The fastest way that is right; int8 only where it is well worth it."""
    right = {one: found["ms"] for one, found in measured.items() if not found["wrong"]}
    if "onnx-int8" in right:
        right["onnx-int8"] *= _WORTH
    return min(right, key=lambda one: right[one])


def describe(measured: Measured) -> str:
    """One clause a way, for people."""
    parts = []
    for name, found in sorted(measured.items()):
        if found["wrong"]:
            parts.append(f"{name} is not taken: {found['wrong']}")
        else:
            parts.append(
                f"{name} takes {found['ms']:.1f} ms a text, least cosine "
                f"{found['least_cosine']:.5f}, overlap at 10 {found['overlap_at_10']:.3f}"
            )
    return "; ".join(parts)


def same_as_before(run: Run, found: Mapping[str, Any]) -> bool:
    """Whether `run` still gives the embedding of CHECKED that it gave when it was measured."""
    wanted = np.asarray(found["check"], dtype=np.float32)
    return float(run([CHECKED])[0] @ wanted) >= _SAME


def is_whole(measured: Any, names: Sequence[str]) -> bool:
    """Whether `measured`, from a file, is what `measure` gives for the ways `names`."""
    if not isinstance(measured, dict) or set(measured) != set(names):
        return False
    numbers = ("ms", "least_cosine", "overlap_at_10")
    return all(
        isinstance(found, dict)
        and "wrong" in found
        and (
            bool(found["wrong"])
            or (
                isinstance(found.get("check"), list)
                and all(isinstance(found.get(number), float) for number in numbers)
            )
        )
        for found in measured.values()
    )


def _wrong(name: str, found: Mapping[str, Any]) -> str | None:
    """Why embeddings are not good enough; None where they are."""
    difference, cosine = found["largest_difference"], found["least_cosine"]
    if name == "onnx" and difference > MAX_DIFFERENCE:
        return (
            f"its embeddings are up to {difference:.2g} away; at most {MAX_DIFFERENCE:g} is right"
        )
    if name == "onnx-int8":
        if cosine < MIN_COSINE:
            return f"its least cosine with float32 is {cosine:.4f}, below {MIN_COSINE:g}"
        if found["overlap_at_10"] < MIN_OVERLAP:
            return (
                f"of the ten nearest it keeps {found['overlap_at_10']:.1%}, below {MIN_OVERLAP:.0%}"
            )
    return None


def _milliseconds(runs: Mapping[str, Run], texts: Sequence[str]) -> dict[str, float]:
    """Median time of a text alone: turn about, so that what else runs slows all of them down."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for text in list(texts[:_TIMED]) * _ROUNDS:
        for name, run in runs.items():
            began = time.perf_counter()
            run([text])
            times[name].append(time.perf_counter() - began)
    return {name: round(1e3 * statistics.median(spent), 3) for name, spent in times.items()}


def _nearest(queries: Embeddings, texts: Embeddings) -> NDArray[np.intp]:
    """Places of the ten nearest other texts, by query."""
    scores = queries @ texts.T
    np.fill_diagonal(scores, -np.inf)
    nearest: NDArray[np.intp] = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
    return nearest


def _overlap(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a, b, strict=True)]))


def _texts(given: Sequence[str]) -> list[str]:
    """Texts to measure with: given ones first, composed ones up to enough, and odd ones last."""
    texts = list(dict.fromkeys(given))[:_MAX_PROBES]
    for number in range(_NUM_PROBES):
        if len(texts) >= _NUM_PROBES:
            break
        text = _SETTINGS[number % len(_SETTINGS)].format(
            colour=_COLOURS[number % 8], thing=_THINGS[number // 8]
        )
        if text not in texts:
            texts.append(text)
    return [*texts, *(odd for odd in _ODD if odd not in texts)]

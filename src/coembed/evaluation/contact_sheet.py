"""The contact sheet: some searches with the pictures that they find, right and wrong ones marked.

Which searches are shown is a function of their words alone, so that the same evaluation gives the
same sheet, and two models' sheets can be laid side by side.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from coembed.evaluation.attribute_queries import AttributeQuery
from coembed.evaluation.evaluation_set import EvaluationSet
from coembed.evaluation.retrieval import Embeddings, Floats, Ints, Positives
from coembed.files import sha256_bytes
from coembed.modalities.image import decode_image
from coembed.types import Sample

_JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class ShownHit:
    """One hit. `parts` are the words below the picture, each with whether it is as asked.

    `right` is None where nobody can say: another item may fit a caption as well as its own.
    """

    item: int
    score: float
    right: bool | None
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class ShownSearch:
    """One search: `wanted` is the item whose caption it is (None for attributes), at `rank`."""

    text: str
    hits: tuple[ShownHit, ...]
    num_right: int
    wanted: int | None = None
    rank: float | None = None


def choose(texts: Sequence[str], num: int) -> list[int]:
    """Places of `num` distinct texts, picked by the hash of their words, as if at random."""
    by_hash = sorted(set(texts), key=lambda text: sha256_bytes(text.encode()))[:num]
    return [texts.index(text) for text in by_hash]


def worst(texts: Sequence[str], ranks: Floats, num: int) -> list[int]:
    """Places of the `num` distinct texts with the worst ranks above 1, worst first."""
    order = sorted(range(len(texts)), key=lambda place: (-ranks[place], texts[place]))
    found: dict[str, int] = {}
    for place in order:
        if len(found) == num or ranks[place] <= 1:
            break
        found.setdefault(texts[place], place)
    return list(found.values())


def attribute_searches(
    queries: Sequence[AttributeQuery],
    places: Iterable[int],
    embedded: Embeddings,
    items: Embeddings,
    labels: Sequence[Sequence[str | None]],
    *,
    num_hits: int,
) -> list[ShownSearch]:
    """Searches of attribute queries; hits are shown by their values, `labels[column][item]`."""
    shown = []
    for place in places:
        query = queries[place]
        scores = items @ embedded[place]
        hits = []
        for item in top_items(scores, num_hits):
            parts = tuple(
                (values[item] or "–", values[item] == asked)
                for values, asked in zip(labels, query.values, strict=True)
            )
            right = all(ok for _, ok in parts)
            hits.append(ShownHit(int(item), float(scores[item]), right, parts))
        shown.append(ShownSearch(query.text, tuple(hits), len(query.right)))
    return shown


def caption_searches(
    data: EvaluationSet,
    positives: Positives,
    places: Iterable[int],
    embedded_texts: Embeddings,
    items: Embeddings,
    ranks: Floats,
    *,
    num_hits: int,
) -> list[ShownSearch]:
    """Searches of text queries, with the item that each caption belongs to."""
    shown = []
    for place in places:
        wanted, text = data.queries[place]
        right = positives.candidates[positives.starts[place] : positives.starts[place + 1]]
        scores = items @ embedded_texts[text]
        hits = tuple(
            ShownHit(
                int(item),
                float(scores[item]),
                True if item in right else None,
                ((data.items[item].captions[0], True),),
            )
            for item in top_items(scores, num_hits)
        )
        shown.append(ShownSearch(data.texts[text], hits, len(right), wanted, float(ranks[place])))
    return shown


def top_items(scores: Embeddings, num: int) -> Ints:
    """The `num` items with the highest scores, best first; equal scores in item order."""
    order: Ints = np.argsort(-scores, kind="stable")[:num]
    return order


def needed_items(searches: Iterable[ShownSearch]) -> set[int]:
    """Numbers of all items that the searches show."""
    found: set[int] = set()
    for search in searches:
        found.update(hit.item for hit in search.hits)
        if search.wanted is not None:
            found.add(search.wanted)
    return found


def thumbnail(sample: Sample, *, px: int) -> str:
    """The item's picture as a data URI: a JPEG whose longer side has at most `px` pixels."""
    image = Image.fromarray(decode_image(sample.media))
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

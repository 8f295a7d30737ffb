"""One search in one release: the vectors of its terms are there, the index is asked, hits are
ordered and explained. Runs in a thread; no event loop here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.errors import UserError
from coembed.index.base import Point, VectorIndex
from coembed.index.filters import Filter, matches
from coembed.search.diversity import diverse_order
from coembed.search.explain import explain
from coembed.search.fusion import fuse
from coembed.search.mix import Mix, mix
from coembed.search.settings import ServeSettings
from coembed.serve import answers
from coembed.serve.bound import BoundRelease
from coembed.serve.queries import Query
from coembed.serve.refusals import invalid, not_found
from coembed.types import Hit

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Hits, best first, and what ranked them where that is not the score alone: by item id the
    fused score, its vector part and its keyword part."""

    hits: list[Hit]
    ranked_by: Mapping[str, tuple[float, float, float]] | None = None


def find(
    index: VectorIndex,
    bound: BoundRelease,
    query: Query,
    where: Filter,
    vectors: Mapping[tuple[str, str], Vector],
    settings: ServeSettings,
) -> dict[str, Any]:
    """A `SearchAnswer` without its release and times. vectors: by the identity of
    each term that is no item, [dim].

    Raises Refusal, and UserError where the collection is gone.
    """
    own = _named_items(index, bound, query)
    vectors = {**vectors, **{("item", key): point.vector for key, point in own.items()}}
    try:
        mixed = mix(
            np.stack([vectors[term.identity] for term in query.terms]),
            np.asarray([term.weight for term in query.terms], dtype=np.float64),
        )
    except UserError as error:
        raise invalid(error.message, hint=error.hint) from None
    candidates = _candidates(index, bound, query, where, mixed, frozenset(own), settings)
    page = candidates.hits[query.offset : query.depth]
    page = [replace(hit, rank=query.offset + place) for place, hit in enumerate(page, start=1)]
    asked_with = _asked_with(query, own)
    floor, nothing = _judge(bound, candidates.hits, asked_with, settings)
    ranked_by = candidates.ranked_by
    return {
        "hits": answers.hits(
            page,
            calibration=bound.calibration,
            asked_with=asked_with,
            fused=None if ranked_by is None else {key: by[0] for key, by in ranked_by.items()},
            explained=_explain(index, bound, query, mixed, page, ranked_by),
        ),
        "nothing_matches_well": nothing,
        "floor": floor,
        "next_offset": _next_offset(query, candidates.hits, settings),
    }


def _named_items(index: VectorIndex, bound: BoundRelease, query: Query) -> dict[str, Point]:
    """The items that are terms of the query."""
    wanted = [term.key for term in query.terms if term.kind == "item"]
    found = index.retrieve(bound.collection, wanted) if wanted else {}
    for item_id in wanted:
        if item_id not in found:
            raise not_found(
                f"no item {item_id} in the release that is served",
                hint="it may have left the corpus; search again",
            )
    return found


def _candidates(
    index: VectorIndex,
    bound: BoundRelease,
    query: Query,
    where: Filter,
    mixed: Mix,
    but: frozenset[str],
    settings: ServeSettings,
) -> _Candidates:
    """At least the best `query.depth` hits and one more, as far as there are; none of `but`."""
    reordered = query.diversity > 0 or query.keywords > 0
    # One more than asked for tells whether there is a next page.
    most = settings.pool if reordered else min(query.depth + 1, settings.max_depth)
    found = index.query(
        bound.collection, bound.vector_name, mixed.vector, where=where, limit=most + len(but)
    )
    hits = [hit for hit in found if hit.item_id not in but][:most]
    if not reordered or not hits:
        return _Candidates(hits)
    ranked_by = None
    if query.keywords > 0:
        hits, ranked_by = _with_keywords(index, bound, query, where, mixed, hits, but, settings)
    if query.diversity > 0:
        hits = _diverse(index, bound, query, hits, ranked_by)
    return _Candidates(hits, ranked_by)


def _with_keywords(
    index: VectorIndex,
    bound: BoundRelease,
    query: Query,
    where: Filter,
    mixed: Mix,
    hits: Sequence[Hit],
    but: frozenset[str],
    settings: ServeSettings,
) -> tuple[list[Hit], dict[str, tuple[float, float, float]]]:
    """Hits and the items that keyword search finds, in one order."""
    worded = {
        found.item_id: found.bm25
        for found in bound.catalogue.find(query.words, limit=settings.pool)
        if found.item_id not in but
    }
    known = {hit.item_id: hit for hit in hits}
    others = index.retrieve(bound.collection, [key for key in worded if key not in known])
    for item_id, point in others.items():
        if matches(where, point.payload):
            score = float(point.vector @ mixed.vector)
            known[item_id] = Hit(0, score, item_id, point.payload)
    everyone = list(known.values())
    fused, vector_part, keyword_part = fuse(
        np.asarray([hit.score for hit in everyone], dtype=np.float64),
        np.asarray([worded.get(hit.item_id, 0.0) for hit in everyone], dtype=np.float64),
        keywords=query.keywords,
    )
    ranked_by = {
        hit.item_id: (float(fused[at]), float(vector_part[at]), float(keyword_part[at]))
        for at, hit in enumerate(everyone)
    }
    everyone.sort(key=lambda hit: (-ranked_by[hit.item_id][0], -hit.score, hit.item_id))
    return everyone, ranked_by


def _diverse(
    index: VectorIndex,
    bound: BoundRelease,
    query: Query,
    hits: Sequence[Hit],
    ranked_by: Mapping[str, tuple[float, float, float]] | None,
) -> list[Hit]:
    points = index.retrieve(bound.collection, [hit.item_id for hit in hits])
    there = [hit for hit in hits if hit.item_id in points]
    relevance = [hit.score if ranked_by is None else ranked_by[hit.item_id][0] for hit in there]
    order = diverse_order(
        np.asarray(relevance),
        np.stack([points[hit.item_id].vector for hit in there]),
        diversity=query.diversity,
        num=query.depth + 1,
    )
    return [there[place] for place in order]


def _asked_with(query: Query, own: Mapping[str, Point]) -> str | None:
    """The modality whose calibration holds for the query: that of its one term."""
    if len(query.terms) != 1 or query.terms[0].weight <= 0:
        return None
    (term,) = query.terms
    return str(own[term.key].payload.get("modality")) if term.kind == "item" else term.kind


def _judge(
    bound: BoundRelease,
    hits: Sequence[Hit],
    asked_with: str | None,
    settings: ServeSettings,
) -> tuple[float | None, bool]:
    """(floor, whether nothing matches well): by the best hit of each modality."""
    if not hits:
        return None, True
    if asked_with is None:
        return None, False
    best: dict[str, float] = {}
    for hit in hits:
        modality = str(hit.payload.get("modality"))
        best[modality] = max(hit.score, best.get(modality, hit.score))
    floors = {
        modality: bound.calibration.floor(settings.weak_share, query=asked_with, item=modality)
        for modality in best
    }
    measured = {modality: floor for modality, floor in floors.items() if floor is not None}
    if not measured:
        return None, False
    # Of pictures and sounds, the floor shown is that of what is nearest to being good.
    nearest = max(measured, key=lambda modality: best[modality] - measured[modality])
    weak = all(best[modality] < floor for modality, floor in measured.items())
    return measured[nearest], weak and len(measured) == len(best)


def _explain(
    index: VectorIndex,
    bound: BoundRelease,
    query: Query,
    mixed: Mix,
    page: Sequence[Hit],
    ranked_by: Mapping[str, tuple[float, float, float]] | None,
) -> list[list[dict[str, Any]]] | None:
    if not query.explain:
        return None
    if not page:
        return []
    points = index.retrieve(bound.collection, [hit.item_id for hit in page])
    vectors = np.stack([points[hit.item_id].vector for hit in page])
    parts = explain(mixed, vectors)
    explained = []
    for place, hit in enumerate(page):
        keywords = None
        if ranked_by is not None:
            keywords = (query.words, query.keywords, *ranked_by[hit.item_id][1:])
        explained.append(answers.explanation(query.terms, parts, place, keywords=keywords))
    return explained


def _next_offset(query: Query, hits: Sequence[Hit], settings: ServeSettings) -> int | None:
    more = len(hits) > query.depth and query.depth < settings.max_depth
    return query.depth if more else None

"""Answers as plain JSON values, in the shape that schemas.py declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coembed.search.calibration import Calibration
from coembed.search.explain import Parts
from coembed.search.settings import ServeSettings
from coembed.serve.bound import BoundRelease
from coembed.serve.queries import QueryTerm
from coembed.types import Hit


def item(item_id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """An `ItemShown`."""
    return {
        "item_id": item_id,
        "modality": str(payload.get("modality") or "image"),
        "path": str(payload.get("path") or ""),
        "captions": [str(caption) for caption in payload.get("captions") or ()],
        "attributes": dict(payload.get("attributes") or {}),
        "split": payload.get("split"),
        "media": f"/items/{item_id}/media",
        "thumbnail": f"/items/{item_id}/thumbnail",
    }


def hits(
    found: Sequence[Hit],
    *,
    calibration: Calibration,
    asked_with: str | None,
    fused: Mapping[str, float] | None,
    explained: Sequence[Sequence[dict[str, Any]]] | None,
) -> list[dict[str, Any]]:
    """`HitShown`s. asked_with: the query's modality; None for a mix, whose scores mean nothing
    beyond their order."""
    shown = []
    for place, hit in enumerate(found):
        entry = item(hit.item_id, hit.payload)
        match = None
        if asked_with is not None:
            match = calibration.match(hit.score, query=asked_with, item=entry["modality"])
        entry |= {
            "rank": hit.rank,
            "score": hit.score,
            "match": match,
            "fused": None if fused is None else fused[hit.item_id],
        }
        if explained is not None:
            entry["explain"] = explained[place]
        shown.append(entry)
    return shown


def explanation(
    terms: Sequence[QueryTerm],
    parts: Parts,
    place: int,
    *,
    keywords: tuple[str, float, float, float] | None,
) -> list[dict[str, Any]]:
    """`Explained`s of the item in row `place` of `parts`.

    keywords: the words, their weight, and the vector part and the keyword part of what ranks it.
    """
    near = 1.0
    last = []
    if keywords is not None:
        words, weight, vector_part, keyword_part = keywords
        total = vector_part + keyword_part
        share = keyword_part / total if total > 0 else 0.0
        near = 1.0 - share
        last = [
            {
                "term": words,
                "kind": "keywords",
                "weight": weight,
                "score": keyword_part,
                "cosine": None,
                "share": share,
            }
        ]
    entries: list[dict[str, Any]] = [
        {
            "term": term.label,
            "kind": term.kind,
            "weight": term.weight,
            "score": float(parts.scores[place, column]),
            "cosine": float(parts.cosines[place, column]),
            "share": float(parts.shares[place, column]) * near,
        }
        for column, term in enumerate(terms)
    ]
    return entries + last


def release(bound: BoundRelease, settings: ServeSettings) -> dict[str, Any]:
    """A `ReleaseShown`."""
    encoder, facets = bound.encoding.encoder, bound.catalogue.facets
    return {
        **bound.named,
        "corpus": bound.release.corpus,
        "engines": dict(encoder.engines),
        "columns": [
            {
                "name": column.name,
                "kind": column.kind,
                "values": [{"value": one.value, "count": one.count} for one in column.values],
                "num_values": column.num_values,
                "min": column.min,
                "max": column.max,
            }
            for column in facets.columns
        ],
        "modalities": list(encoder.modalities),
        "item_modalities": dict(facets.modalities),
        "keywords": bound.catalogue.has_keywords,
        "calibrated": [list(pair) for pair in bound.calibration.quantiles],
        "limits": {
            "max_limit": settings.max_limit,
            "max_depth": settings.max_depth,
            "max_query_chars": settings.max_query_chars,
            "max_terms": settings.max_terms,
            "max_filters": settings.max_filters,
            "max_labels": settings.max_labels,
            "max_prompts": settings.max_prompts,
            "max_batch": settings.max_batch,
            "max_upload_bytes": int(settings.max_upload_mb * 1e6),
            "max_image_pixels": settings.max_image_pixels,
            "max_clip_s": settings.max_clip_s,
        },
    }

"""What the review page shows of a pair: its words as JSON, its picture or sound as bytes.

Pictures are decoded and encoded anew: what reaches the browser is pixels, never the file that
somebody put into the pool.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from coembed.curation.reading import read_media
from coembed.curation.report.look import FACT_COLUMNS, Manifest, PairRow
from coembed.curation.report.report_pictures import SOUND_TYPES, UNDECODABLE, small_picture
from coembed.curation.report.report_sections import chips, explain, filter_of_reason
from coembed.curation.report.report_text import column_label, number, visible, words
from coembed.curation.settings import CurateSettings
from coembed.serve.decisions import Entry, Review

_PX = 1024
_QUALITY = 85


class PairViews:
    """Makes views of pairs. The manifest is asked once, and may be closed after that."""

    def __init__(self, manifest: Manifest, pool: Path, settings: CurateSettings) -> None:
        self._pool = pool
        self._max_pixels = settings.max_pixels
        self._max_bytes = settings.max_media_bytes
        self._filter_of = filter_of_reason(manifest)
        self._about = {reason: explain(manifest, reason)[1] for reason in manifest.reasons()}
        self._measured = {chosen.name: chosen.columns for chosen in manifest.filters}
        self._attributes = manifest.attributes

    def view(self, entry: Entry) -> dict[str, Any]:
        """The pair as JSON; all texts are safe to be shown as text."""
        row = entry.row
        reason = row.text("drop_reason")
        by = self._by(row)
        about = self._about.get(reason, "")
        return {
            **self._pair(row),
            "kept": row.kept,
            "state": f"dropped as {words(reason).lower()}" if reason else "kept, in doubt",
            "about": about,
            "detail": visible(row.text("drop_detail"), 400),
            "doubt": row["doubt"],
            "by": words(by) if by else "",
            "scores": [list(chip) for chip in chips(row, self._measured.get(by, ()), of=by)],
            "facts": [list(fact) for fact in self._facts(row)],
            "partner": None if entry.partner is None else self._pair(entry.partner),
        }

    def media_urls(self, entry: Entry) -> list[str]:
        """The pictures of a pair, for the browser to load ahead."""
        rows = (entry.row, entry.partner)
        return [_url(row) for row in rows if row is not None and self._kind(row) == "image"]

    def media(self, number: int, review: Review) -> tuple[str, bytes] | None:
        """Media type and bytes of the row `number`, if it is in `review` and can be shown."""
        row = self._find(number, review.entries)
        if row is None or self._kind(row) not in ("image", "audio"):
            return None
        data, _, _ = read_media(self._pool, row.text("path"), self._max_bytes)
        if not data:
            return None
        if row.text("modality") == "audio":
            return SOUND_TYPES[row.text("format").upper()], data
        picture = small_picture(data, px=_PX, max_pixels=self._max_pixels)
        return None if picture is None else ("image/webp", _encode(picture))

    def _find(self, number: int, entries: Mapping[str, Entry]) -> PairRow | None:
        for entry in entries.values():
            for row in (entry.row, entry.partner):
                if row is not None and row.number == number:
                    return row
        return None

    def _by(self, row: PairRow) -> str:
        if row.kept:
            return row.text("doubt_by").removesuffix("_doubt")
        return self._filter_of.get(row.text("drop_reason"), "")

    def _pair(self, row: PairRow) -> dict[str, Any]:
        kind = self._kind(row)
        text = ""
        if kind == "text":
            data, _, _ = read_media(self._pool, row.text("path"), self._max_bytes)
            text = visible(data[:4000].decode("utf-8", "replace"), 1000)
        return {
            "pair_id": row.text("pair_id"),
            "shown_id": visible(row.text("pair_id"), 100),
            "caption": visible(row.text("caption"), 1500),
            "path": visible(row.text("path"), 200),
            "kind": kind,
            "media": _url(row) if kind in ("image", "audio") else "",
            "text": text,
        }

    def _kind(self, row: PairRow) -> str:
        """image, audio or text; none where there is nothing that can be shown."""
        modality = row.text("modality")
        if row.text("drop_reason") in UNDECODABLE:
            return "none"
        if modality == "audio":
            return "audio" if row.text("format").upper() in SOUND_TYPES else "none"
        return modality if modality in ("image", "text") else "none"

    def _facts(self, row: PairRow) -> list[tuple[str, str]]:
        facts = []
        for name in (*FACT_COLUMNS, "split", *self._attributes):
            cell = row.cells.get(name)
            if cell is None or (name == "num_frames" and cell == 1):
                continue
            label, unit = column_label(name)
            text = number(cell) if isinstance(cell, (int, float)) else visible(cell, 60)
            facts.append((visible(label, 40), f"{text} {unit}".strip()))
        return facts


def _url(row: PairRow) -> str:
    return f"/media/{row.number}"


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()

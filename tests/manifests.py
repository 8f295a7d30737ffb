"""A manifest of curated pairs as the engine writes it, with made-up rows, for the tests of what is
read from one: the report, `coembed pairs`, the review page."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.curation.filters.base import Filter

_TYPES = {
    "kept": pa.bool_(),
    "doubt": pa.float64(),
    "num_bytes": pa.int64(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "num_frames": pa.int64(),
    "duration_s": pa.float64(),
    "sample_rate_hz": pa.int64(),
    "num_channels": pa.int64(),
}
_OWN = (
    "pair_id", "path", "caption", "modality", "item_id", "kept", "drop_reason", "drop_detail",
    "duplicate_of", "decided_by", "split", "split_reason", "doubt", "doubt_by", "num_bytes",
    "format", "width_px", "height_px", "colour_mode", "num_frames", "duration_s", "sample_rate_hz",
    "num_channels",
)  # fmt: skip


class MadeUpFilter(Filter):
    """Stands for a filter that is not there: its reasons and columns."""

    def __init__(self, reasons: tuple[str, ...], columns: Mapping[str, Any]) -> None:
        self.reasons = reasons  # type: ignore[misc]
        self.columns = columns  # type: ignore[misc]


def write_curated(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write manifest.parquet and summary.json into `folder`. A row needs a pair_id; it is a kept
    image in train unless it says otherwise. Returns the rows with all of their cells."""
    whole = [_whole(row) for row in rows]
    names = list(dict.fromkeys([*_OWN, *(name for row in whole for name in row)]))
    columns = {
        name: pa.array([row.get(name) for row in whole], _TYPES.get(name) or _kind(name, whole))
        for name in names
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_arrays(list(columns.values()), names=names)
    pq.write_table(table, folder / "manifest.parquet", row_group_size=7)
    splits = Counter(row["split"] for row in whole if row["split"])
    summary = {
        "num_pairs": len(whole),
        "num_kept": sum(row["kept"] for row in whole),
        "num_items": len({row["item_id"] for row in whole if row["kept"]}),
        "num_captions": sum(splits.values()),
        "num_captions_joined": 0,
        "splits": {n: {"num_items": num, "num_captions": num} for n, num in splits.items()},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return whole


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = row.get("drop_reason") is None
    number = sum(map(ord, row["pair_id"]))
    return {
        **dict.fromkeys(_OWN),
        "path": f"media/{row['pair_id']}.jpg",
        "caption": f"caption of {row['pair_id']}",
        "modality": "image",
        "item_id": hashlib.sha256(str(row.get("path", number)).encode()).hexdigest(),
        "kept": kept,
        "split": "train" if kept else None,
        "split_reason": "hashed" if kept else None,
        "num_bytes": 1000 + number,
        "format": "JPEG",
        "width_px": 48,
        "height_px": 40,
        "colour_mode": "RGB",
        "num_frames": 1,
        **row,
    }


def _kind(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.DataType:
    cells = [row.get(name) for row in rows if row.get(name) is not None]
    return pa.infer_type(cells) if cells else pa.string()

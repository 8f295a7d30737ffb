"""The manifest: one row for every pool pair, kept or not, in pool order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.curation.ledger import KEPT, Codes, Ledger
from coembed.curation.split import NO_SPLIT, SPLIT_REASONS, Assignment
from coembed.curation.spool import Spool
from coembed.types import SPLITS

_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("pair_id", pa.string()),
    ("path", pa.string()),
    ("caption", pa.string()),
    ("modality", pa.string()),
    ("item_id", pa.string()),
    ("kept", pa.bool_()),
    ("drop_reason", pa.string()),
    ("drop_detail", pa.string()),
    ("duplicate_of", pa.string()),
    ("split", pa.string()),
    ("split_reason", pa.string()),
    ("num_bytes", pa.int64()),
    ("width_px", pa.int32()),
    ("height_px", pa.int32()),
)
_SCORE_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
_FROM_POOL = ("pair_id", "path", "caption", "modality")


def write_manifest(
    path: Path, *, spool: Spool, ledger: Ledger, codes: Codes, splits: Assignment
) -> None:
    """Write the manifest. A cell that is unknown or does not apply is null.

    A pool column that is called like one of the manifest's own gets the prefix `pool_`.
    """
    scores = {n: t for n, t in ledger.score_types.items() if not n.startswith("_")}
    own = [*_COLUMNS, *((name, _SCORE_TYPES[kind]) for name, kind in scores.items())]
    taken = {name for name, _ in own}
    attributes = [f for f in spool.schema if f.name not in (*_FROM_POOL, "split")]
    renamed: dict[str, str] = {}
    for attribute in attributes:
        name = attribute.name
        while name in taken:
            name = f"pool_{name}"
        taken.add(name)
        renamed[attribute.name] = name
    schema = pa.schema([*own, *((renamed[f.name], f.type) for f in attributes)])
    duplicates = _duplicate_ids(ledger, spool)
    start = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in spool.batches():
            rows = np.arange(start, start + batch.num_rows)
            start += batch.num_rows
            columns = {name: batch.column(name) for name in _FROM_POOL}
            columns |= _judgement(rows, ledger, codes, splits, duplicates)
            columns |= {
                name: _score_cells(ledger.scores[name][rows], _SCORE_TYPES[kind])
                for name, kind in scores.items()
            }
            columns |= {renamed[f.name]: batch.column(f.name) for f in attributes}
            cells = [columns[field.name] for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(cells, schema=schema))


def _duplicate_ids(ledger: Ledger, spool: Spool) -> dict[int, str]:
    """The pair_id that each duplicate row is a duplicate of."""
    rows = np.flatnonzero(ledger.duplicate_of >= 0).tolist()
    targets = [int(ledger.duplicate_of[row]) for row in rows]
    found = spool.pick(targets)
    return {row: found[target].pair_id for row, target in zip(rows, targets, strict=True)}


def _judgement(
    rows: NDArray[np.int64],
    ledger: Ledger,
    codes: Codes,
    splits: Assignment,
    duplicates: dict[int, str],
) -> dict[str, pa.Array]:
    """The manifest's own columns for `rows`."""
    numbers = rows.tolist()
    reason = ledger.reason[rows]
    items = codes.items[rows].tolist()
    sizes = {
        "num_bytes": ledger.num_bytes[rows],
        "width_px": ledger.width_px[rows],
        "height_px": ledger.height_px[rows],
    }
    return {
        "item_id": pa.array([codes.item_ids[i] if i >= 0 else None for i in items], pa.string()),
        "kept": pa.array(reason == KEPT),
        "drop_reason": _names(reason, ledger.reasons, KEPT),
        "drop_detail": pa.array([ledger.details.get(row) for row in numbers], pa.string()),
        "duplicate_of": pa.array([duplicates.get(row) for row in numbers], pa.string()),
        "split": _names(splits.splits[rows], SPLITS, NO_SPLIT),
        "split_reason": _names(splits.reasons[rows], SPLIT_REASONS, NO_SPLIT),
        # Nothing has no size: 0 stands for unknown.
        **{name: pa.array(cells, mask=cells == 0) for name, cells in sizes.items()},
    }


def _names(places: NDArray[Any], names: tuple[str, ...], none: int) -> pa.Array:
    return pa.array([None if p == none else names[p] for p in places.tolist()], pa.string())


def _score_cells(cells: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if cells.dtype == object:
        return pa.array(cells.tolist(), kind)
    return pa.array(cells, mask=np.isnan(cells)).cast(kind)

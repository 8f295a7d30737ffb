"""The points of a collection, read from the parts in artifacts/embeddings.

A part is a Parquet file `part-NNNNN.parquet` with `item_id`, `vector` (float32 lists of one length)
and the payload: path, modality, captions, split, and `attributes` as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.errors import DataError
from coembed.index.base import Point
from coembed.index.filters import ColumnKind, column_kinds, merge_kinds

_PAYLOAD = ("path", "modality", "captions", "split")
_ROWS = 1024
_HINT = "run `coembed embed` again"


def read_points(folder: Path) -> Iterator[Point]:
    """All points of the parts in `folder`, in order. Raises DataError naming the file and row."""
    for table, where in _tables(folder, ("item_id", "vector", *_PAYLOAD, "attributes")):
        item_ids = table.column("item_id").to_pylist()
        vectors = _vectors(table.column("vector"), where)
        _check_unit(item_ids, vectors, where)
        payloads = _payloads(table, where)
        for item_id, vector, payload in zip(item_ids, vectors, payloads, strict=True):
            yield Point(item_id, vector, payload)


def read_vectors(folder: Path) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Item ids and vectors [n, dim] of the parts in `folder`, in batches, in order."""
    for table, where in _tables(folder, ("item_id", "vector")):
        item_ids = table.column("item_id").to_pylist()
        vectors = _vectors(table.column("vector"), where)
        _check_unit(item_ids, vectors, where)
        yield item_ids, vectors


def read_columns(folder: Path) -> dict[str, ColumnKind]:
    """The attribute columns of the parts in `folder`, and what is in each."""
    kinds: dict[str, set[ColumnKind]] = {}
    for table, where in _tables(folder, ("attributes",)):
        for column, kind in column_kinds(_payloads(table, where)).items():
            kinds.setdefault(column, set()).add(kind)
    return {column: merge_kinds(found) for column, found in sorted(kinds.items())}


def _tables(folder: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
    """Row batches of the parts, with the name to use in errors."""
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                    yield pa.Table.from_batches([batch]), str(path)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint=_HINT) from error


def _vectors(column: Any, where: str) -> NDArray[np.float32]:
    """The vectors [n, dim] of a column of lists."""
    flat = column.combine_chunks()
    if not pa.types.is_fixed_size_list(flat.type) or flat.null_count:
        raise DataError(
            f"{where}: column vector is {flat.type}, expected lists of one length without nulls",
            hint=_HINT,
        )
    values = flat.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(-1, flat.type.list_size)


def _payloads(table: Any, where: str) -> list[dict[str, Any]]:
    names = [name for name in _PAYLOAD if name in table.column_names]
    rows = table.select([*names, "attributes"]).to_pylist()
    for row in rows:
        try:
            attributes = json.loads(row["attributes"] or "{}")
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: attributes are not JSON: {error}", hint=_HINT) from error
        row["attributes"] = {key: value for key, value in attributes.items() if value is not None}
    return rows


def _check_unit(item_ids: list[str], vectors: NDArray[np.float32], where: str) -> None:
    """Refuse embeddings [n, dim] that are not finite and of unit length."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = ~(np.abs(lengths - 1.0) <= 1e-3)  # NaN compares false, so it is wrong too
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where}: the embedding of item {item_ids[row]} has the length {lengths[row]:.4g}, "
            "expected 1",
            hint=_HINT + "; if it stays, the model diverged in training",
        )

"""What `coembed embed` leaves beside the embeddings to prove and to read a search with.

`queries.parquet` holds text queries: captions of the validation split ("sample") and the fixed
queries of `embed.canaries` ("canary"). `calibration.json` says what scores true matches have. Both
may be missing: embeddings of an older coembed have neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.errors import DataError
from coembed.files import read_json
from coembed.types import Attribute

QUERIES = "queries.parquet"
CALIBRATION = "calibration.json"
_HINT = "run `coembed embed` again"


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its embedding, `vector` float32 [dim], unit L2.

    `item_id` is the item whose caption it is; a canary has none, but may `expect` attributes: some
    hit among the first must have them all.
    """

    text: str
    vector: NDArray[np.float32]
    modality: str = "text"
    item_id: str | None = None
    kind: str = "sample"
    expect: Mapping[str, Attribute] | None = None


def read_queries(folder: Path, *, dim: int) -> tuple[Query, ...]:
    """The queries in `folder`, none where it has no file. Raises DataError naming file and row."""
    path = folder / QUERIES
    if not path.exists():
        return ()
    try:
        columns = ["text", "vector", "item_id", "modality", "kind", "expect"]
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_HINT) from error
    return tuple(_query(row, dim, f"{path}, row {number}") for number, row in enumerate(rows))


def _query(row: Mapping[str, Any], dim: int, where: str) -> Query:
    vector = np.asarray(row["vector"], dtype=np.float32)
    if vector.shape != (dim,) or not abs(float(np.linalg.norm(vector)) - 1.0) <= 1e-3:
        raise DataError(
            f"{where}: the embedding of {row['text']!r} is not a unit vector of {dim} dimensions",
            hint=_HINT,
        )
    try:
        expect = json.loads(row["expect"] or "{}")
    except ValueError as error:
        raise DataError(f"{where}: what is expected is not JSON: {error}", hint=_HINT) from error
    return Query(
        str(row["text"]), vector, str(row["modality"]), row["item_id"], str(row["kind"]), expect
    )


def read_calibration(folder: Path) -> dict[str, Any]:
    """The scores of true matches, as they are in `folder`; empty where it has no such file."""
    path = folder / CALIBRATION
    if not path.exists():
        return {}
    found = read_json(path, what="calibration", hint=_HINT)
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object", hint=_HINT)
    return found

"""What is found of each row, against a slow and obvious way to find it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from examined_pools import Examined, write_pool
from hostile_filters import settings
from PIL import Image

from coembed.curation.candidate import Facts
from coembed.curation.examination.examine import (
    PART_ROWS,
    declared_columns,
    declared_reasons,
    normal_caption,
    part_schema,
)
from coembed.curation.examination.part_cells import FACT_NAMES
from coembed.curation.examination.parts import OWN_FIELDS, rows_hash
from coembed.curation.filters.base import ColumnType, Filter
from coembed.curation.media.media import Media
from coembed.errors import ConfigError


def _picture(number: int, kind: str) -> bytes:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than two parts, with several captions of a file, copies, faults and rewritten texts."""
    folder = tmp_path_factory.mktemp("pool")
    media = {f"m/{i}.txt": b"text %d" % i for i in range(40)}
    media |= {f"p/{i}.jpg": _picture(i, "JPEG") for i in range(8)}
    media |= {f"p/{i}.png": _picture(i, "PNG") for i in range(8)}
    media |= {"m/copy.txt": b"text 7", "m/empty.txt": b"", "p/page.jpg": b"<html>404</html>"}
    media["m/large.txt"] = b"x" * 200_000
    paths = [*media, "m/none.txt", "", "../out.txt"]
    assert len(paths) == 63
    rows: list[dict[str, Any]] = []
    for i in range(2 * PART_ROWS + 100):
        path = paths[i * 5 % len(paths)]
        row = {"path": path, "caption": f"Caption  {i % 500}", "shop": i % 9, "modality": "text"}
        if path.startswith("p/"):
            row["modality"] = "image"
        if i % 11 == 0:
            row["caption"] = f"ALL CAPITALS {i % 50}"
        if i % 13 == 0:
            row["caption"] = "REFUSE this"
        if i % 101 == 0:
            row["modality"] = "smell"
        rows.append(row)
    write_pool(folder, rows, media)
    return folder


@pytest.fixture(scope="module")
def examined(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    """It, examined."""
    return Examined(
        pool,
        tmp_path_factory.mktemp("runs"),
        [settings(longest_caption=14)],
        num_workers=2,
        max_media_bytes=100_000,
    )


def _expected(pool: Path, row: int, cells: dict[str, Any]) -> dict[str, Any]:
    """One row, examined by itself."""
    caption, path, modality = cells["caption"], cells["path"], cells["modality"]
    file = pool / path
    found: dict[str, Any] = dict.fromkeys([*OWN_FIELDS, "byte_sum", "words", "_blob", "share"])
    found |= {"row": row, "path_key": _digest(path)}
    found["caption_key"] = _digest(normal_caption(caption))
    if modality == "smell":
        return found | {"reason": "unknown_modality"}
    if not path:
        return found | {"reason": "missing_path"}
    if path.startswith(".."):
        return found | {"reason": "path_outside_pool"}
    if not file.exists():
        return found | {"reason": "missing_file"}
    found["file_size"], found["file_mtime_ns"] = file.stat().st_size, file.stat().st_mtime_ns
    if not found["file_size"]:
        return found | {"reason": "empty_file"}
    if found["file_size"] > 100_000:
        return found | {"reason": "file_too_large"}
    data = file.read_bytes()
    facts = Media(data, modality=modality, max_pixels=10**6).facts()
    found |= {name: getattr(facts, name) for name in FACT_NAMES}
    found["fault_detail"] = facts.fault_detail or None
    found["item_id"] = hashlib.sha256(data).digest()
    if facts.fault:
        return found | {"reason": facts.fault}
    found |= {"byte_sum": sum(data), "_blob": data[:9][::-1], "share": len(data) / 3}
    if caption.startswith("REFUSE"):
        return found | {"reason": "refused", "words": "none"}
    if len(caption) > 14:
        return found | {"reason": "long_words"}
    found["words"] = str(len(caption.split()))
    if caption.isupper():
        found |= {"caption": caption.lower(), "caption_key": _digest(caption.lower())}
    return found


def test_every_row_is_as_if_examined_by_itself(pool: Path, examined: Examined) -> None:
    rows = pa.parquet.read_table(pool / "pairs" / "a.parquet").to_pylist()
    found = examined.table.to_pylist()
    assert len(found) == len(rows)
    for row, (cells, given) in enumerate(zip(rows, found, strict=True)):
        detail = given.pop("detail")
        expected = _expected(pool, row, cells)
        expected.pop("detail")
        assert given == expected, cells
        assert bool(detail) == bool(given["reason"])
    reasons = set(examined.reasons.values())
    assert reasons == {
        "unknown_modality", "missing_path", "path_outside_pool", "missing_file", "empty_file",
        "file_too_large", "unreadable", "refused", "long_words",
    }  # fmt: skip


def test_parts_are_of_one_size_and_have_all_columns(examined: Examined) -> None:
    tables = [pa.parquet.read_table(part) for part in examined.parts]
    assert [table.num_rows for table in tables] == [PART_ROWS, PART_ROWS, 100]
    columns = declared_columns({"hostile": settings().build()})
    for table in tables:
        assert table.schema.remove_metadata().equals(part_schema(columns))
    assert examined.num_advanced == len(examined.table)


def test_costs_say_who_took_the_time(examined: Examined) -> None:
    costs = examined.costs
    assert {"read", "hash", "media", "hostile", "parts", "cache"} <= set(costs.seconds)
    assert min(costs.seconds.values()) >= 0
    assert costs.num_rows == len(examined.table) and costs.num_reused == costs.num_deaths == 0
    assert costs.num_measured + costs.num_cached >= 57 and costs.num_bytes > 0


def test_a_pool_without_filters_is_examined_all_the_same(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", [{"path": "a.txt", "caption": "a"}], {"a.txt": b"a"})
    found = Examined(tmp_path / "pool", tmp_path / "runs")
    assert found.table.schema.names == list(OWN_FIELDS) and found.reasons == {}


class _Fault(Filter):
    """A filter of its own columns."""

    columns: ClassVar[Mapping[str, ColumnType]] = {"byte_sum": "int64"}
    reasons = ("a", "unreadable")


class _Clash(Filter):
    columns: ClassVar[Mapping[str, ColumnType]] = {"num_bytes": "int64"}
    reasons = ()


def test_columns_are_declared_once() -> None:
    with pytest.raises(ConfigError, match="'byte_sum', as another one does"):
        declared_columns({"one": _Fault(), "two": _Fault()})
    with pytest.raises(ConfigError, match="'num_bytes', which every part has"):
        part_schema(declared_columns({"clash": _Clash()}))


def test_reasons_come_once_and_in_order() -> None:
    reasons = declared_reasons({"one": _Fault()})
    assert reasons[0] == "missing_path" and reasons[-1] == "a"
    assert len(set(reasons)) == len(reasons)
    assert {"unreadable", "crashes_decoder", "timed_out", "repeated_pair_id"} <= set(reasons)


def test_the_hash_of_rows_is_that_of_their_cells() -> None:
    def batch(*cells: object, name: str = "a") -> pa.RecordBatch:
        return pa.record_batch({name: pa.array(cells, pa.string())})

    whole = batch("a", "b", None, "d")
    assert rows_hash([whole.slice(2, 2)]) == rows_hash([batch(None, "d")])
    assert rows_hash([whole.slice(0, 2)]) == rows_hash([batch("a", "b")])
    longer = batch("aa", "", "bb").slice(1)
    assert rows_hash([longer]) == rows_hash([batch("", "bb")]) != rows_hash([batch("b", "b")])
    numbers = pa.record_batch({"a": pa.array([1, None, 0, 0])})
    flags = pa.record_batch({"a": pa.array([True, None, False])})
    assert len({rows_hash([numbers.slice(i, 1)]) for i in range(4)}) == 3
    assert len({rows_hash([flags.slice(i, 1)]) for i in range(3)}) == 3
    different = [batch("a"), batch("b"), batch(None), batch(""), batch("a", name="b"), batch()]
    assert len({rows_hash([one]) for one in different}) == len(different)


def test_facts_have_a_column_each() -> None:
    assert set(FACT_NAMES) == set(Facts.__slots__)

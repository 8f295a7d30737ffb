"""Thousands of malformed tables, read as pools and as sources: pairs, refusals or one error."""

from __future__ import annotations

import io
import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import MAX_RSS_BYTES, run_watched

from coembed.errors import CoembedError
from coembed.pairs.ingest import ingest
from coembed.pairs.pool import open_pool

ENDINGS = ("csv", "tsv", "jsonl", "parquet")
PICTURE = b"\xff\xd8\xff\xe0 as good as a picture here"


def case(number: int, folder: Path) -> str:
    """Write table `number`, read it as a pool and take it in as a source."""
    rng = random.Random(number)
    ending = ENDINGS[number % len(ENDINGS)]
    damages: list[Damage] = rng.sample(DAMAGES, rng.choice((1, 1, 1, 2)))
    data = _table(rng, ending)
    for damage in damages:
        data = damage(rng, data, ending)
    pairs = folder / "pairs"
    pairs.mkdir(parents=True)
    (folder / "media").mkdir()
    for name in "ab":
        (folder / "media" / f"{name}.jpg").write_bytes(PICTURE)
    table = pairs / f"table.{ending}"
    table.write_bytes(data)
    try:
        return f"{_read_as_pool(folder)}, {_take_in(table, folder)}"
    finally:
        shutil.rmtree(folder)


def _read_as_pool(folder: Path) -> str:
    try:
        pool = open_pool(folder)
        num_rows = 0
        for batch in pool.batches(max_rows=64):
            batch.validate(full=True)
            num_rows += batch.num_rows
            assert all(len(i) and t is not None for i, t in _columns(batch, "pair_id", "caption"))
    except CoembedError as error:
        _check(error, folder / "pairs")
        return "refused pool"
    return "pool" if num_rows else "empty pool"


def _columns(batch: pa.RecordBatch, *names: str) -> zip[Any]:
    return zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def _take_in(table: Path, folder: Path) -> str:
    target = folder / "new"
    try:
        summary = ingest(table, target, media_root=folder, max_media_bytes=1 << 20)
    except CoembedError as error:
        _check(error, folder)
        return "refused source"
    num = sum(batch.num_rows for batch in open_pool(target).batches())
    assert num == summary.num_added
    assert ingest(table, target, media_root=folder, max_media_bytes=1 << 20).num_added == 0
    return "some refused" if summary.num_refused else "taken"


def _check(error: CoembedError, folder: Path) -> None:
    assert str(folder) in str(error) or "table." in str(error), str(error)
    assert len(str(error)) < 6000, len(str(error))
    assert all(c.isprintable() or c == "\n" for c in str(error)), repr(str(error))


def _table(rng: random.Random, ending: str) -> bytes:
    rows = [
        {
            "path": f"media/{rng.choice('abc')}.jpg",
            "caption": "".join(
                rng.choices(string.printable[:95] + "äß\u4e16", k=rng.randrange(40))
            ),
            "price": rng.choice([1, 2.5, -3, None]),
            "flag": rng.choice([True, False]),
            "word": rng.choice(["red", "", "007", "null"]),
        }
        for _ in range(rng.randrange(1, 120))
    ]
    return _written(rows, ending)


def _written(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=50)
        return buffer.getvalue()
    if ending == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    sign = "," if ending == "csv" else "\t"
    lines = [sign.join(rows[0])]
    lines += [sign.join(_quoted(cell) for cell in row.values()) for row in rows]
    return "\n".join(lines).encode() + b"\n"


def _quoted(cell: Any) -> str:
    return "" if cell is None else '"' + str(cell).replace('"', '""') + '"'


Damage = Callable[[random.Random, bytes, str], bytes]


def _truncate(rng: random.Random, data: bytes, _: str) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes, ending: str) -> bytes:
    flipped = bytearray(data)
    # A Parquet file is understood from its end.
    start = max(0, len(data) - 600) if ending == "parquet" and rng.random() < 0.6 else 0
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        if flipped:
            flipped[rng.randrange(start, len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _overwrite(rng: random.Random, data: bytes, _: str) -> bytes:
    at = rng.randrange(len(data) + 1)
    some = rng.randbytes(rng.randrange(1, 200))
    return data[:at] + some + data[at + len(some) :]


def _insert(rng: random.Random, data: bytes, _: str) -> bytes:
    at = rng.randrange(len(data) + 1)
    some = rng.choice(
        (
            b"\xff\xfe",
            b"caf\xe9",
            b"\0",
            b"\0" * 300,
            b"\xef\xbb\xbf",
            b'"',
            b'"\n"\n',
            b"\r",
            b"\n\n",
            b"a,b,c,d,e,f,g,h,i,j\n",
            b"\x1b[2J\x1b]0;owned\x07",
            b"\xed\xa0\xbd",
            b"<script>",
            b"{",
            b"\xf4\x90\x80\x80",
            b"=cmd|' /C calc'!A0",
            b"../../../../etc/passwd",
            b"\xe2\x80\xae",
        )
    )
    return data[:at] + some + data[at:]


def _begin(rng: random.Random, data: bytes, _: str) -> bytes:
    start = (
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xfe\xff",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"\n\n",
        b"PAR1",
    )
    return rng.choice(start) + data


def _other_text(rng: random.Random, data: bytes, _: str) -> bytes:
    text = data.decode("latin-1")
    return text.encode(rng.choice(("utf-16", "utf-32", "cp037", "utf-7")), "replace")


def _renamed(rng: random.Random, _: bytes, ending: str) -> bytes:
    other = rng.choice([e for e in (*ENDINGS, "rubbish") if e != ending])
    return rng.randbytes(500) if other == "rubbish" else _table(rng, other)


def _columns_changed(rng: random.Random, _: bytes, ending: str) -> bytes:
    row: dict[str, Any] = {"path": "media/a.jpg", "caption": "x"}
    kind = rng.randrange(5)
    if kind == 0:
        row |= {f"c{i}": i for i in range(rng.choice((4090, 5000)))}
    elif kind == 1:
        row |= {rng.choice(("\x1b[31m", "a\nb", "", " ", "x" * 5000, "'; DROP", "Path")): 1}
    elif kind == 2:
        del row[rng.choice(("path", "caption"))]
    elif kind == 3 and ending in ("csv", "tsv"):
        sign = b"," if ending == "csv" else b"\t"
        return (
            sign.join((b"path", b"caption", b"n", b"n"))
            + b"\n"
            + sign.join(b"abcd"[i : i + 1] for i in range(4))
        )
    else:
        row = {name.upper(): cell for name, cell in row.items()} | row
    return _written([row] * 3, ending)


def _odd_cells(rng: random.Random, _: bytes, ending: str) -> bytes:
    if ending == "parquet":
        return _odd_parquet(rng)
    odd: list[Any] = [
        None,
        1e308,
        10**30,
        -(2**63),
        2**64,
        "9" * 5000,
        True,
        [],
        {},
        [[1, None]],
        {"a": {"b": [1]}},
        "x" * 300_000,
        "nan",
        "inf",
        "1e999",
        "0x1F",
        "٣",
        "\u202e",
        "\x00",
        "a" * 70_000 + "\n" * 1000,
    ]
    rows = [
        {
            "path": rng.choice(["media/a.jpg", *odd]),
            "caption": rng.choice(["words", *odd]),
            "n": rng.choice(odd),
        }
        for _ in range(rng.randrange(1, 12))
    ]
    return _written(rows, ending)


def _odd_parquet(rng: random.Random) -> bytes:
    num = 3
    columns: dict[str, Any] = {
        "path": pa.array(["media/a.jpg", "media/b.jpg", None]),
        "caption": pa.array(["one", None, "three"]),
    }
    odd: list[Any] = [
        pa.array([b"\xff\xfe", b"ok", None]).cast(pa.binary()),
        pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff\xfe", b"ok", b""]).buffers()),
        pa.array([2**50, -(2**50), 0], pa.timestamp("s")),
        pa.array([2**31 - 1, -(2**31), 0], pa.date32()),
        pa.array([2**62, 0, None], pa.duration("s")),
        pa.array([[1], [], None]),
        pa.array([{"a": {"b": b"\xff"}}, None, {"a": None}]),
        pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        pa.array([float("nan"), float("inf"), None], pa.float16()),
        pa.array([1, 2, 3], pa.decimal128(38, 10)),
        pa.array([2**64 - 1, 0, None], pa.uint64()),
        pa.array([b"12345678"] * 3, pa.binary(8)),
        pa.array(["x", "y", None]).dictionary_encode(),
        pa.nulls(num),
        pa.array(["x" * 400_000] * 3),
    ]
    name = rng.choice(["path", "caption", "pair_id", "split", "modality", "other"])
    columns[name] = rng.choice(odd)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, version="2.6", use_dictionary=rng.random() < 0.7)
    return buffer.getvalue()


def _deep(rng: random.Random, data: bytes, ending: str) -> bytes:
    depth = rng.choice((50, 900, 990, 1100, 20_000))
    nested = (
        '{"a":' * depth + "1" + "}" * depth if rng.random() < 0.5 else "[" * depth + "]" * depth
    )
    if ending == "jsonl":
        return data + f'{{"path": "media/a.jpg", "caption": "x", "n": {nested}}}\n'.encode()
    return data + nested.encode()


def _footer(rng: random.Random, data: bytes, ending: str) -> bytes:
    if ending != "parquet" or len(data) < 8:
        return _flip(rng, data, ending)
    lie = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(data), len(data) - 8, len(data) + 1))
    return data[:-8] + lie.to_bytes(4, "little") + b"PAR1"


DAMAGES: list[Damage] = [
    _truncate, _flip, _flip, _overwrite, _insert, _insert, _begin, _other_text, _renamed,
    _columns_changed, _odd_cells, _odd_cells, _deep, _footer,
]  # fmt: skip


def _run(folder: Path, numbers: range, *, timeout_s: float) -> None:
    outcome = run_watched("test_fuzz_tables", numbers, folder, timeout_s=timeout_s)
    print(outcome)
    assert sum(outcome.answers.values()) == len(numbers)
    assert outcome.max_rss_bytes < MAX_RSS_BYTES, outcome
    # A fuzzer whose every case is refused, or none, tests nothing.
    assert len(outcome.answers) >= 4, outcome


def test_hundreds_of_malformed_tables(tmp_path: Path) -> None:
    _run(tmp_path / "work", range(300), timeout_s=200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_malformed_tables(tmp_path: Path) -> None:
    _run(tmp_path / "work", range(1000, 4700), timeout_s=2700)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ending", ENDINGS)
def test_very_many_columns(tmp_path: Path, ending: str) -> None:
    """A million names of columns in text; a hundred thousand columns in Parquet."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    path = folder / f"wide.{ending}"
    if ending == "parquet":
        names = [f"c{i}" for i in range(100_000)]
        pq.write_table(pa.table([pa.array([1])] * len(names), names=names), path)
    else:
        path.write_bytes(_written([{f"c{i}": i for i in range(1_000_000)}], ending))
    for read in (lambda: open_pool(tmp_path), lambda: ingest(path, tmp_path / "new")):
        with pytest.raises(CoembedError) as caught:
            read()
        _check(caught.value, folder)
    assert not (tmp_path / "new").exists()

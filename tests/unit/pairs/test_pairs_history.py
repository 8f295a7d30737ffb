"""What a pool remembers of its ingests, and what an ingest knows of its pool."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pandas as pd
import pytest

from coembed.errors import DataError, ServiceError
from coembed.files import sha256_bytes, sha256_tree
from coembed.pairs import intake, known_pairs
from coembed.pairs.history import HISTORY, Ingested, read_history
from coembed.pairs.ingest import ingest
from coembed.pairs.known_pairs import KnownPairs


def _source(folder: Path, name: str, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        (folder / f"{i}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([i]))
    rows = [f"{i}.jpg,caption {i}" for i in numbers] + ["lost.jpg,nothing"]
    (folder / name).write_text("\n".join(["path,caption", *rows]))
    return folder / name


def test_each_ingest_that_added_something_is_an_entry(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assert read_history(pool) == ()
    first = ingest(_source(tmp_path / "in", "one.csv", range(5)), pool)
    second = ingest(_source(tmp_path / "in", "two.csv", range(3, 9)), pool)
    ingest(tmp_path / "in" / "two.csv", pool)  # nothing new
    expected = (
        Ingested(1, "one.csv", "csv", (first.parts[0].name,), 5, 5, 1, True),
        Ingested(2, "two.csv", "csv", (second.parts[0].name,), 4, 4, 1, True),
    )
    assert read_history(pool) == expected
    assert str(tmp_path) not in (pool / HISTORY).read_text()


@pytest.mark.parametrize("moment", ["before the table", "before the index", "after the last"])
def test_a_killed_ingest_ends_with_the_same_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(intake, "PART_PAIRS", 2)
    source = _source(tmp_path / "in", "one.csv", range(7))
    ingest(source, tmp_path / "whole")

    pool, index = tmp_path / "cut", tmp_path / "runs" / "index.sqlite"
    with monkeypatch.context() as patch:
        if moment == "before the table":
            _kill_at(patch, intake.pq, "write_table", 3)
        elif moment == "before the index":
            _kill_at(patch, KnownPairs, "learn", 2)
        else:
            _kill_at(patch, intake.HistoryWriter, "complete", 1)
        with pytest.raises(KeyboardInterrupt):
            ingest(source, pool, index=index)
    assert not read_history(pool)[-1].complete
    ingest(source, pool, index=index)
    assert sha256_tree(pool) == sha256_tree(tmp_path / "whole")
    (entry,) = read_history(pool)
    assert (entry.num_pairs, entry.num_media, len(entry.tables)) == (7, 7, 4)


def _kill_at(patch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    real = getattr(owner, name)
    calls = 0

    def killed(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    patch.setattr(owner, name, killed)


def test_another_source_does_not_claim_what_a_killed_one_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PART_PAIRS", 2)
    one = _source(tmp_path / "a", "one.csv", range(6))
    two = _source(tmp_path / "b", "two.csv", range(10, 13))
    pool = tmp_path / "pool"
    with monkeypatch.context() as patch:
        _kill_at(patch, intake.pq, "write_table", 2)
        with pytest.raises(KeyboardInterrupt):
            ingest(one, pool)
    ingest(two, pool)
    ingest(one, pool)
    entries = read_history(pool)
    assert [(e.version, e.source, e.num_pairs, e.complete) for e in entries] == [
        (1, "one.csv", 6, True),
        (2, "two.csv", 3, True),
    ]
    assert sorted(name for e in entries for name in e.tables) == sorted(
        path.name for path in (pool / "pairs").iterdir()
    )


def test_a_damaged_history_is_named_with_its_line(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    ingest(_source(tmp_path / "in", "one.csv", range(3)), pool)
    with (pool / HISTORY).open("a") as file:
        file.write('{"version": 2}\n')
    with pytest.raises(DataError, match=r"history\.jsonl, line 2 is not an entry"):
        read_history(pool)


def _ids(*numbers: int) -> list[str]:
    return [sha256_bytes(bytes([n]))[:32] for n in numbers]


def _table(pairs: Path, name: str, ids: list[str]) -> Path:
    pairs.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"pair_id": ids, "path": "a.jpg", "caption": "x"})
    if name.endswith(".csv"):
        frame.to_csv(pairs / name, index=False)
    else:
        frame.to_parquet(pairs / name)
    return pairs / name


def _known(pairs: Path, index: Path, ids: list[str]) -> list[bool]:
    with KnownPairs(pairs, index, lasting=True) as known:
        return [i in known for i in ids]


def test_the_index_follows_the_tables(tmp_path: Path) -> None:
    pairs, index = tmp_path / "pairs", tmp_path / "runs" / "index.sqlite"
    a, b, c, d = _ids(1, 2, 3, 4)
    assert _known(pairs, index, [a]) == [False]
    _table(pairs, "hand.csv", [a, "a name", "", b[:-1]])
    part = _table(pairs, "part-0123456789abcdef.parquet", [c])
    assert _known(pairs, index, [a, b, c, d]) == [True, False, True, False]
    held = part.read_bytes()
    part.unlink()  # as a checkout of an older version does
    assert _known(pairs, index, [a, c]) == [True, False]
    part.write_bytes(held)
    assert _known(pairs, index, [a, c]) == [True, True]
    _table(pairs, "hand.csv", [d])  # edited by hand
    assert _known(pairs, index, [a, c, d]) == [False, True, True]


def test_tables_that_are_known_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, index = tmp_path / "pairs", tmp_path / "index.sqlite"
    (a,) = _ids(1)
    hand = _table(pairs, "hand.parquet", [a])
    part = _table(pairs, "part-0123456789abcdef.parquet", [a])
    assert _known(pairs, index, [a]) == [True]

    def no_reading(_: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(known_pairs, "_pair_ids", no_reading)
    os.utime(part, ns=(1, 1))  # a checkout gives files new times
    assert _known(pairs, index, [a]) == [True]
    os.utime(hand, ns=(1, 1))  # the same bytes
    assert _known(pairs, index, [a]) == [True]
    with pytest.raises(AssertionError, match="read again"):
        _known(pairs, tmp_path / "other.sqlite", [a])


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    pairs, index = tmp_path / "pairs", tmp_path / "index.sqlite"
    (a,) = _ids(1)
    _table(pairs, "hand.parquet", [a])
    assert _known(pairs, index, [a]) == [True]
    index.write_bytes(b"this is no database" * 500)
    assert _known(pairs, index, [a]) == [True]
    index.write_bytes(b"")
    assert _known(pairs, index, [a]) == [True]


def test_two_ingests_do_not_meet(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    source = _source(tmp_path / "in", "one.csv", range(3))
    ingest(source, pool)
    (pool / ".ingest").mkdir()
    holder = os.open(pool, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(ServiceError, match="another process is ingesting"):
        ingest(source, pool)
    assert (pool / ".ingest").exists(), "the other's files are its own"
    os.close(holder)
    ingest(source, pool)

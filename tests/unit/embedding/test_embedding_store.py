"""The store: what it finds, what survives, what a damaged file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated_pairs import catalogue, write_pairs

from coembed.embedding.corpus import Corpus, as_ids, list_corpus
from coembed.embedding.parts import write_parts
from coembed.embedding.store import StaleVectorsError, VectorStore
from coembed.files import sha256_bytes
from coembed.types import Sample

DIM = 6


def ids(*numbers: int) -> list[str]:
    return [sha256_bytes(bytes([number])) for number in numbers]


def vectors(*numbers: int) -> np.ndarray:
    return np.stack([np.full(DIM, number, dtype=np.float32) for number in numbers])


def list_items(folder: Path, samples: list[Sample]) -> Corpus:
    rows = folder / "rows"
    rows.mkdir(parents=True)
    pairs = write_pairs(folder / "pairs", train=samples)
    return list_corpus(pairs, ("train", "val", "test"), ("image",), part_size=8, folder=rows)


def finish(store: VectorStore, corpus: Corpus, out: Path, texts: list[str]) -> None:
    out.mkdir()
    write_parts(corpus, store, {}, out)
    store.keep(corpus, out, texts)


def fill(store: VectorStore, samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for start in range(0, len(samples), 5):
        few = [sample.item_id for sample in samples[start : start + 5]]
        store.add("image", few, rng.standard_normal((len(few), DIM)).astype(np.float32))
    store.settle()


def test_what_is_added_is_found_by_modality_and_id(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dim=DIM)
    assert store.find("image", as_ids(ids(1, 2))).tolist() == [-1, -1]
    store.add("image", ids(5, 2, 9), vectors(5, 2, 9))
    store.add("text", ids(2, 7), vectors(20, 70))
    store.settle()
    store.add("image", ids(3), vectors(3))
    store.settle()
    for opened in (store, VectorStore(tmp_path, dim=DIM)):
        found = opened.find("image", as_ids(ids(9, 1, 3, 2)))
        assert (found >= 0).tolist() == [True, False, True, True]
        assert opened.take(found[found >= 0]).tolist() == vectors(9, 3, 2).tolist()
        assert opened.take(opened.find("text", as_ids(ids(7, 2)))).tolist() == (
            vectors(70, 20).tolist()
        )
        assert opened.find("audio", as_ids(ids(2))).tolist() == [-1]
        assert opened.find("image", as_ids([])).tolist() == []


def test_more_files_than_are_held(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dim=DIM)
    for number in range(40):
        store.add("image", ids(number), vectors(number))
    store.settle()
    order = np.random.default_rng(0).permutation(40).tolist()
    rows = store.find("image", as_ids(ids(*order)))
    assert store.take(rows).tolist() == vectors(*order).tolist()


def test_the_last_corpus_stays_and_the_blocks_go(tmp_path: Path) -> None:
    samples = catalogue(20, seed=1)
    corpus = list_items(tmp_path / "first", samples)
    store = VectorStore(tmp_path / "store", dim=DIM)
    fill(store, samples)
    store.add("text", ids(1, 2), vectors(1, 2))
    store.settle()
    everything = store.take(store.find("image", as_ids([one.item_id for one in samples])))
    finish(store, corpus, tmp_path / "out", ids(2))
    assert not list((tmp_path / "store").glob("block-*"))
    again = VectorStore(tmp_path / "store", dim=DIM)
    rows = again.find("image", as_ids([one.item_id for one in samples]))
    np.testing.assert_array_equal(again.take(rows), everything)
    assert (again.find("text", as_ids(ids(1, 2))) >= 0).tolist() == [False, True]
    # A later corpus without some of them takes its place.
    fewer = list_items(tmp_path / "second", samples[5:])
    finish(again, fewer, tmp_path / "out2", [])
    last = VectorStore(tmp_path / "store", dim=DIM)
    assert (last.find("image", as_ids([one.item_id for one in samples])) >= 0).sum() == 15


def test_links_to_what_was_written_out_not_copies(tmp_path: Path) -> None:
    samples = catalogue(4, seed=1)
    store = VectorStore(tmp_path / "store", dim=DIM)
    fill(store, samples)
    finish(store, list_items(tmp_path, samples), tmp_path / "out", [])
    name = "part-00000.parquet"
    kept, out = tmp_path / "store" / "corpus" / name, tmp_path / "out" / name
    assert kept.stat().st_ino == out.stat().st_ino
    out.unlink()  # as DVC does before a stage runs
    assert VectorStore(tmp_path / "store", dim=DIM).find("image", as_ids([samples[0].item_id])) >= 0


def test_changes_since_the_last_corpus(tmp_path: Path) -> None:
    from dataclasses import replace

    samples = catalogue(20, seed=1)
    store = VectorStore(tmp_path / "store", dim=DIM)
    fill(store, samples)
    corpus = list_items(tmp_path / "first", samples)
    assert store.changes(corpus) == {"new": 20, "unchanged": 0, "changed": 0, "removed": 0}
    finish(store, corpus, tmp_path / "out", [])
    changed = [
        *samples[3:10],
        replace(samples[10], captions=("another",)),
        replace(samples[11], attributes={"colour": "another"}),
        *samples[12:],
        *catalogue(4, seed=2),
    ]
    now = list_items(tmp_path / "second", changed)
    found = VectorStore(tmp_path / "store", dim=DIM).changes(now)
    assert found == {"new": 4, "unchanged": 15, "changed": 2, "removed": 3}


def test_a_file_that_cannot_be_opened_is_as_good_as_not_there(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dim=DIM)
    store.add("image", ids(1), vectors(1))
    store.add("image", ids(2), vectors(2))
    first = min(tmp_path.glob("block-*"))
    first.write_bytes(first.read_bytes()[:-20])
    again = VectorStore(tmp_path, dim=DIM)
    assert (again.find("image", as_ids(ids(1, 2))) >= 0).sum() == 1
    assert not first.exists()


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dim=DIM)
    numbers = range(200)
    store.add("image", ids(*numbers), vectors(*numbers))
    (block,) = tmp_path.glob("block-*")
    data = bytearray(block.read_bytes())
    column = pq.ParquetFile(block).metadata.row_group(0).column(1)
    assert column.path_in_schema == "vector.list.element" and column.compression == "UNCOMPRESSED"
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    block.write_bytes(data)
    again = VectorStore(tmp_path, dim=DIM)
    rows = again.find("image", as_ids(ids(*numbers)))
    with pytest.raises(StaleVectorsError, match="is damaged"):
        again.take(rows)
    again.forget()
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_length_are_not_known(tmp_path: Path) -> None:
    VectorStore(tmp_path, dim=DIM).add("image", ids(1), vectors(1))
    assert VectorStore(tmp_path, dim=DIM + 1).find("image", as_ids(ids(1))).tolist() == [-1]


def test_what_a_killed_writer_left_goes_in_the_end(tmp_path: Path) -> None:
    samples = catalogue(4, seed=1)
    (tmp_path / "store").mkdir()
    half = tmp_path / "store" / ".block-1.parquet.1.partial"
    half.write_bytes(b"PAR1")
    store = VectorStore(tmp_path / "store", dim=DIM)
    fill(store, samples)
    finish(store, list_items(tmp_path, samples), tmp_path / "out", [])
    assert not half.exists()

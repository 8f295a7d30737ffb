"""Parts: their content, what is resumed, what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated_pairs import tree_bytes
from training_pairs import make_samples

from coembed.embedding import parts
from coembed.embedding.parts import EmbeddedCorpus, Unreadable, assemble, embed_parts
from coembed.errors import DataError, ModelError
from coembed.types import Modality, Sample, Split

BAD = b"cannot be decoded"


class Embedder:
    """Vectors made of the bytes' length and sum; counts what it was given.

    The place within a call goes into the vector too, so that another grouping gives other bytes.
    """

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.num_embedded = 0
        self.asked: list[tuple[Modality, int]] = []
        self.stop_after = stop_after

    def encode(self, modality: Modality, media: Sequence[bytes]) -> np.ndarray:
        self.asked.append((modality, len(media)))
        for place, data in enumerate(media):
            if data == BAD:
                raise DataError(f"{modality} {place}: not readable")
        if self.stop_after is not None and self.num_embedded >= self.stop_after:
            raise KeyboardInterrupt
        self.num_embedded += len(media)
        rows = [[len(data), sum(data[:50]), place] for place, data in enumerate(media)]
        return np.asarray(rows, dtype=np.float32)

    def decode(self, modality: Modality, data: bytes) -> None:
        if data == BAD:
            raise DataError(f"{modality} 0: not readable")


def embed(
    samples: Sequence[Sample], work: Path, embedder: Embedder, *, part_size: int = 8
) -> EmbeddedCorpus:
    def corpus() -> Iterator[tuple[Split, Sample]]:
        for place, sample in enumerate(samples):
            yield ("test" if place % 3 == 0 else "train"), sample

    return embed_parts(
        corpus(),
        embedder.encode,
        embedder.decode,
        dim=3,
        batch_size=4,
        part_size=part_size,
        work=work,
        advance=lambda num: None,  # noqa: ARG005
    )


SAMPLES = make_samples(30, seed=5)


def test_rows_hold_the_vectors_and_the_payload(tmp_path: Path) -> None:
    corpus = embed(SAMPLES, tmp_path, Embedder())
    assert [part.num_items for part in corpus.parts] == [8, 8, 8, 6]
    rows = [row for part in corpus.parts for row in pq.read_table(tmp_path / part.file).to_pylist()]
    assert [row["item_id"] for row in rows] == [sample.item_id for sample in SAMPLES]
    assert rows[3]["captions"] == list(SAMPLES[3].captions)
    assert json.loads(rows[3]["attributes"]) == dict(SAMPLES[3].attributes)
    assert (rows[3]["split"], rows[4]["split"]) == ("test", "train")
    assert rows[3]["path"] == SAMPLES[3].path and rows[3]["modality"] == "image"
    assert rows[9]["vector"][0] == len(SAMPLES[9].media)
    field = pq.read_schema(tmp_path / "part-00000.parquet").field("vector")
    assert str(field.type) == "fixed_size_list<element: float>[3]"


@pytest.mark.parametrize("num", [1, 7, 8, 9, 16, 17])
def test_any_number_of_items(tmp_path: Path, num: int) -> None:
    corpus = embed(SAMPLES[:num], tmp_path, Embedder())
    assert corpus.num_items == num
    assert len(corpus.parts) == -(-num // 8)


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = embed(SAMPLES, tmp_path / "whole", Embedder())
    for stop_after in (0, 5, 8, 17, 24):
        work = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            embed(SAMPLES, work, Embedder(stop_after=stop_after))
        again = Embedder()
        resumed = embed(SAMPLES, work, again)
        assert resumed.parts == whole.parts
        assert resumed.content_hash == whole.content_hash
        assert again.num_embedded == 30 - resumed.num_resumed * 8
        assert tree_bytes(work) == tree_bytes(tmp_path / "whole")
    assert resumed.num_resumed == 3


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    first = embed(SAMPLES, tmp_path, Embedder())
    before = tree_bytes(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"x")
    (tmp_path / "part-00002.parquet.receipt.json").write_text('{"file": ')
    again = Embedder()
    assert embed(SAMPLES, tmp_path, again).parts == first.parts
    assert again.num_embedded == 16
    assert tree_bytes(tmp_path) == before


def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path: Path) -> None:
    samples = list(SAMPLES)
    for place in (2, 9, 10):
        samples[place] = replace(samples[place], media=BAD)
    corpus = embed(samples, tmp_path, Embedder())
    assert corpus.unreadable == tuple(
        Unreadable(samples[place].item_id, samples[place].path, "not readable")
        for place in (2, 9, 10)
    )
    assert corpus.num_items + len(corpus.unreadable) == 30
    ids = [
        item
        for part in corpus.parts
        for item in pq.read_table(tmp_path / part.file)["item_id"].to_pylist()
    ]
    assert ids == [sample.item_id for sample in samples if sample.media != BAD]
    # A resumed run still knows them.
    assert embed(samples, tmp_path, Embedder()).unreadable == corpus.unreadable


def test_a_part_of_unreadable_items_only(tmp_path: Path) -> None:
    samples = [replace(sample, media=BAD) for sample in SAMPLES[:8]] + list(SAMPLES[8:12])
    corpus = embed(samples, tmp_path, Embedder())
    assert [part.num_items for part in corpus.parts] == [0, 4]
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.schema.equals(pq.read_schema(tmp_path / "part-00001.parquet"))


def test_each_modality_goes_through_its_own_tower_and_the_order_stays(tmp_path: Path) -> None:
    samples = [
        replace(sample, modality="audio") if place % 3 == 1 else sample
        for place, sample in enumerate(SAMPLES)
    ]
    samples[4] = replace(samples[4], media=BAD)
    samples[6] = replace(samples[6], media=BAD)
    embedder = Embedder()
    corpus = embed(samples, tmp_path, embedder, part_size=12)
    rows = [row for part in corpus.parts for row in pq.read_table(tmp_path / part.file).to_pylist()]
    readable = [sample for sample in samples if sample.media != BAD]
    assert [row["item_id"] for row in rows] == [sample.item_id for sample in readable]
    assert [row["modality"] for row in rows] == [sample.modality for sample in readable]
    for row, sample in zip(rows, readable, strict=True):
        assert row["vector"][:2] == [len(sample.media), sum(sample.media[:50])]
    assert [lost.path for lost in corpus.unreadable] == [samples[4].path, samples[6].path]
    assert corpus.modalities == {"image": 19, "audio": 9}
    # Both had an item that cannot be read in the first part, so they were asked twice.
    assert embedder.asked[:4] == [("image", 8), ("image", 7), ("audio", 4), ("audio", 3)]
    again = Embedder()
    assert embed(samples, tmp_path, again, part_size=12) == replace(corpus, num_resumed=3)
    assert not again.asked


def test_large_files_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embed(SAMPLES, tmp_path / "whole", Embedder())
    monkeypatch.setattr(parts, "_CHUNK_BYTES", 3 * max(len(one.media) for one in SAMPLES))
    embedder = Embedder()
    small = embed(SAMPLES, tmp_path / "small", embedder)
    assert max(num for _, num in embedder.asked) in (3, 4)
    assert small.content_hash == whole.content_hash
    assert [part.num_items for part in small.parts] == [8, 8, 8, 6]


def test_an_error_that_no_single_item_explains_is_not_swallowed(tmp_path: Path) -> None:
    embedder = Embedder()
    embedder.decode = lambda modality, data: None  # type: ignore[method-assign]  # noqa: ARG005
    with pytest.raises(DataError, match="not readable"):
        embed([replace(SAMPLES[0], media=BAD)], tmp_path, embedder)


def test_content_hash_covers_payload_order_and_split(tmp_path: Path) -> None:
    hashes = {
        embed(samples, tmp_path / str(number), Embedder()).content_hash
        for number, samples in enumerate(
            (
                SAMPLES,
                SAMPLES[:-1],
                [*SAMPLES[1:], SAMPLES[0]],
                [replace(SAMPLES[0], captions=("new",)), *SAMPLES[1:]],
                [replace(SAMPLES[0], attributes={"colour": "new"}), *SAMPLES[1:]],
            )
        )
    }
    assert len(hashes) == 5
    # How the corpus is cut into parts is no part of what it is.
    other = embed(SAMPLES, tmp_path / "other", Embedder(), part_size=12)
    assert other.content_hash in hashes


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    embedder = Embedder()
    embedder.encode = lambda _, media: np.full((len(media), 3), np.nan, dtype=np.float32)  # type: ignore[method-assign, assignment, misc]
    with pytest.raises(ModelError, match="not finite"):
        embed(SAMPLES, tmp_path, embedder)
    assert not list(tmp_path.glob("part-*"))


def test_an_error_while_reading_reaches_the_caller(tmp_path: Path) -> None:
    def corpus() -> Iterator[tuple[Split, Sample]]:
        yield "test", SAMPLES[0]
        raise DataError("shard is damaged")

    with pytest.raises(DataError, match="shard is damaged"):
        embed_parts(
            corpus(), Embedder().encode, Embedder().decode, dim=3, batch_size=4, part_size=8,
            work=tmp_path, advance=lambda num: None,  # noqa: ARG005
        )  # fmt: skip


def test_assembled_parts_are_the_work(tmp_path: Path) -> None:
    corpus = embed(SAMPLES, tmp_path / "work", Embedder())
    (tmp_path / "out").mkdir()
    assemble(corpus, tmp_path / "work", tmp_path / "out")
    parts = {f"part-{number:05d}.parquet" for number in range(4)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == parts
    for name in parts:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "work" / name).read_bytes()

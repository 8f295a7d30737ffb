"""The corpus's rows: their content, their order, and the way back to the media."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_pairs import catalogue, sounds, write_pairs

from coembed.embedding.corpus import Corpus, MediaPlace, list_corpus
from coembed.errors import DataError
from coembed.types import Modality, Sample, Split


def list_items(
    folder: Path,
    *,
    part_size: int = 8,
    splits: Sequence[Split] = ("train", "val", "test"),
    modalities: Sequence[Modality] = ("image", "audio"),
    **items: list[Sample],
) -> Corpus:
    rows = folder / "rows"
    rows.mkdir(parents=True)
    pairs = write_pairs(folder / "pairs", shard_items=7, **items)
    return list_corpus(pairs, splits, modalities, part_size=part_size, folder=rows)


def places(corpus: Corpus) -> list[MediaPlace]:
    return [
        MediaPlace(*(row[name] for name in MediaPlace._fields))
        for table in corpus.tables()
        for row in table.to_pylist()
    ]


def test_rows_hold_the_payload_and_lead_to_the_media(tmp_path: Path) -> None:
    train, test = catalogue(20, seed=1), sounds(5, seed=2)
    corpus = list_items(tmp_path, train=train, test=test)
    assert [len(table) for table in corpus.tables()] == [8, 8, 8, 1]
    assert corpus.num_items == {"image": 20, "audio": 5} and not corpus.left_out
    rows = [row for table in corpus.tables() for row in table.to_pylist()]
    for row, sample, place in zip(rows, [*train, *test], places(corpus), strict=True):
        assert (row["item_id"], row["path"]) == (sample.item_id, sample.path)
        assert row["captions"] == list(sample.captions) and row["modality"] == sample.modality
        assert json.loads(row["attributes"]) == dict(sample.attributes)
        assert row["split"] == ("train" if sample.modality == "image" else "test")
        assert corpus.fetch(place) == sample.media


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    train, test = catalogue(6, seed=1), [*sounds(5, seed=2), *catalogue(3, seed=3)]
    corpus = list_items(tmp_path, train=train, test=test, splits=["test"], modalities=["image"])
    assert corpus.num_items == {"image": 3} and corpus.left_out == {"audio": 5}
    assert [corpus.fetch(place) for place in places(corpus)] == [one.media for one in test[5:]]


def test_the_content_hash_covers_payload_order_and_split_but_not_the_parts(tmp_path: Path) -> None:
    items = catalogue(10, seed=1)
    hashes = [
        list_items(tmp_path / str(number), **splits).content_hash
        for number, splits in enumerate(
            (
                {"train": items},
                {"train": items[:-1]},
                {"train": [*items[1:], items[0]]},
                {"train": items[:9], "test": items[9:]},
                {"train": [replace(items[0], captions=("new",)), *items[1:]]},
                {"train": [replace(items[0], attributes={"colour": "new"}), *items[1:]]},
            )
        )
    ]
    assert len(set(hashes)) == 6
    other = list_items(tmp_path / "other", train=items, part_size=3)
    assert other.content_hash == hashes[0]


def test_a_digest_changes_with_what_is_told_of_an_item(tmp_path: Path) -> None:
    items = catalogue(3, seed=1)
    other = [items[0], replace(items[1], captions=("new",)), items[2]]
    one, two = (
        [row["digest"] for table in list_items(folder, train=these).tables()
         for row in table.to_pylist()]
        for folder, these in ((tmp_path / "a", items), (tmp_path / "b", other))
    )  # fmt: skip
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, True]


def test_an_empty_corpus_has_no_files(tmp_path: Path) -> None:
    corpus = list_items(tmp_path, train=sounds(2, seed=1), modalities=["image"])
    assert corpus.files == () and corpus.num_items == {}


def test_a_shard_that_was_cut_since(tmp_path: Path) -> None:
    corpus = list_items(tmp_path, train=catalogue(3, seed=1))
    last = places(corpus)[-1]
    shard = corpus.shards[last.shard]
    shard.write_bytes(shard.read_bytes()[: last.offset + 10])
    with pytest.raises(DataError, match=f"{shard.name} is damaged: it ends in the middle"):
        corpus.fetch(last)
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name} cannot be read: No such file"):
        corpus.fetch(last)

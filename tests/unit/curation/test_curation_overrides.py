"""What people decide: read with clear errors, honoured, and never against what cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pytest
from curation_pools import faulty_pool

from coembed.curation.candidate import Candidate
from coembed.curation.engine import curate
from coembed.curation.filters.base import Filter, PoolView, Verdict
from coembed.curation.filters.caption_length import Settings as CaptionLength
from coembed.curation.filters.exact_duplicate import Settings as ExactDuplicate
from coembed.curation.filters.image_size import Settings as ImageSize
from coembed.curation.filters.readable import Settings as Readable
from coembed.curation.overrides import read_overrides, remove_decision, write_decision
from coembed.curation.settings import CurateSettings
from coembed.errors import DataError
from coembed.files import sha256_file
from coembed.pairs.pool import open_pool
from coembed.pairs.shards import read_shard
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Masks a word in captions, says how long they are, and drops all of one length at the end."""

    name: Literal["masking"] = "masking"

    def build(self) -> Filter:
        return Masking()


class Masking(Filter):
    reasons = ("six_words",)
    columns = {"num_words": "int64"}  # noqa: RUF012

    def judge(self, candidate: Candidate) -> Verdict:
        words = candidate.caption.split()
        caption = " ".join("[masked]" if word.endswith(".jpg") else word for word in words)
        return Verdict(columns={"num_words": len(words)}, caption=caption)

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        for batch in pool.query("SELECT row FROM kept WHERE num_words = 6"):
            num = batch.num_rows
            yield pa.table(
                {"row": batch["row"], "reason": ["six_words"] * num, "detail": ["6 words"] * num}
            )


def _curate(tmp_path: Path, overrides: str) -> tuple[pd.DataFrame, dict[str, object]]:
    (tmp_path / "overrides.csv").write_text(overrides)
    (tmp_path / "out").mkdir()
    filters = (Readable(), ImageSize(), CaptionLength(), Settings(), ExactDuplicate())
    summary = curate(
        open_pool(tmp_path / "pool"), tmp_path / "out",
        CurateSettings().model_copy(update={"filters": filters}),
        seed=0, root=tmp_path, runs=tmp_path / "runs",
    )  # fmt: skip
    assert summary.unknown_overrides == ("nobody", "nothing")
    table = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert summary.num_kept == table["kept"].sum()
    return table.set_index("path"), summary.as_dict()


def test_what_people_decide_is_honoured(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    table = pd.read_parquet(tmp_path / "pool" / "pairs" / "a.parquet")
    table["pair_id"] = [f"id{i}" for i in range(len(table))]
    table.loc[table["path"] == "media/good9.jpg", "caption"] = "these are six words good9.jpg ok"
    ids = dict(zip(table["path"], table["pair_id"], strict=True))  # the last of good2's two rows
    table.loc[5, "pair_id"] = "id4"
    table.to_parquet(tmp_path / "pool" / "pairs" / "a.parquet")
    decided = [
        ("good0.jpg", "drop", "an ugly, old one"),
        ("tiny.png", "keep", "our smallest"),
        ("good9.jpg", "keep", ""),
        ("zother.jpg", "keep", "another view"),
        ("cut.jpg", "keep", "please"),
        ("lost.jpg", "KEEP", "please"),
        ("mute.jpg", "drop", "says nothing"),
        ("good3.jpg", "keep", "nobody doubts it"),
    ]
    lines = [f'{ids[f"media/{name}"]},{decision},"{why}"' for name, decision, why in decided]
    found, summary = _curate(
        tmp_path, "\n".join(["pair_id,decision,reason", *lines, "nobody,keep,", "nothing,drop,x"])
    )

    def row(name: str) -> list[object]:
        cells = found.loc[f"media/{name}", ["kept", "drop_reason", "drop_detail", "decided_by"]]
        return [None if pd.isna(cell) else cell for cell in cells]

    assert row("good0.jpg") == [False, "dropped_by_override", "an ugly, old one", "override"]
    # Its copy with the same caption is no duplicate of anything any more.
    assert row("zcopy.jpg")[0]
    said = "kept by overrides.csv (our smallest); else small_image: width 12 px < 32 px"
    assert row("tiny.png") == [True, None, said, "override"]
    said = "kept by overrides.csv; else six_words: 6 words"
    assert row("good9.jpg") == [True, None, said, "override"]
    assert row("zother.jpg")[0] and row("zother.jpg")[3] == "override"
    assert row("cut.jpg")[:2] == [False, "truncated"]
    assert str(row("cut.jpg")[2]).endswith("; overrides.csv cannot keep it")
    assert row("lost.jpg")[:2] == [False, "missing_file"] and row("lost.jpg")[3] is None
    assert row("mute.jpg")[:2] == [False, "empty_caption"]
    assert row("good3.jpg") == [True, None, None, None]
    assert found.loc["media/good5.jpg", "drop_reason"] == "repeated_pair_id"
    assert summary["overrides"] == {"num_dropped": 1, "num_kept": 3, "unknown": 2}

    # Kept against a filter, and masked by the one behind it all the same.
    assert found.loc["media/tiny.png", ["caption", "num_words"]].tolist() == ["tiny", 1]
    assert found.loc["media/good9.jpg", "caption"] == "these are six words [masked] ok"
    samples = {s.path: s for p in (tmp_path / "out").glob("*.tar") for s in read_shard(p)}
    assert samples["media/good1.jpg"].captions == ("caption of [masked]", "the other caption")
    assert "media/zother.jpg" not in samples
    splits = found.loc[["media/good1.jpg", "media/zother.jpg"], "split"]
    assert splits.nunique() == 1


def test_a_masked_caption_of_a_pair_kept_against_an_earlier_filter(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    table = pd.read_parquet(tmp_path / "pool" / "pairs" / "a.parquet")
    table["pair_id"] = [f"id{i}" for i in range(len(table))]
    tiny = table["path"] == "media/tiny.png"
    table.loc[tiny, "caption"] = "a photo tiny.jpg"
    table.to_parquet(tmp_path / "pool" / "pairs" / "a.parquet")
    pair_id = table.loc[tiny, "pair_id"].item()
    found, _ = _curate(
        tmp_path, f"pair_id,decision,reason\n{pair_id},keep,\nnobody,drop,\nnothing,drop,\n"
    )
    assert found.loc["media/tiny.png", ["caption", "num_words"]].tolist() == ["a photo [masked]", 3]
    samples = {s.path: s for p in (tmp_path / "out").glob("*.tar") for s in read_shard(p)}
    assert samples["media/tiny.png"].captions == ("a photo [masked]",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair_id,decision\na,keep\n", "no column 'reason' in its header 'pair_id', 'decision'"),
        ("x\n", "no column 'pair_id'"),
        ("pair_id,decision,reason,reason\n", "more than one column 'reason'"),
        ("pair_id,decision,reason\na,keep,\nb,maybe,x\n", "row 3: decision is 'maybe'; expected k"),
        ("pair_id,decision,reason\n,keep,\n", "row 2: no pair_id"),
        ("pair_id,decision,reason\na\n", "row 2: 1 cells, fewer"),
        ("pair_id,decision,reason\na,keep,\na,drop,\n", "row 3: drop 'a', but row 2 says keep"),
        ('pair_id,decision,reason\na,keep,"x\n', "line 2: unexpected end of data"),
    ],
)
def test_malformed_overrides_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "overrides.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"overrides\.csv") as caught:
        read_overrides(path)
    said = str(caught.value)
    assert message in said and ("pair_id" in said or "leave one" in said)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "overrides.csv").write_bytes(b"pair_id,decision,reason\n\xff\xfe,keep,\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_overrides(tmp_path / "overrides.csv")


def test_a_spreadsheets_way_of_writing_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "overrides.csv"
    path.write_bytes(
        b'\xef\xbb\xbfreason,note,pair_id,decision\r\n"a, b",mine, x ,Keep\r\n\r\n,,,\r\n'
    )
    assert dict(read_overrides(path).decisions) == {"x": ("keep", "a, b")}
    (tmp_path / "empty.csv").write_text("\n")
    assert not read_overrides(tmp_path / "empty.csv").decisions
    assert not read_overrides(tmp_path / "none.csv").decisions


def test_decisions_are_written_sorted_and_taken_back(tmp_path: Path) -> None:
    path, other = tmp_path / "overrides.csv", tmp_path / "other.csv"
    write_decision(path, "b", "drop", 'says "hello",\n twice')
    write_decision(path, "a", "keep", "")
    write_decision(path, "b", "keep", "on second thoughts")
    assert path.read_text() == "pair_id,decision,reason\na,keep,\nb,keep,on second thoughts\n"
    for pair_id, why in (("b", "on second thoughts"), ("c", "x"), ("a", "")):
        write_decision(other, pair_id, "keep", why)
    remove_decision(other, "c")
    remove_decision(other, "nobody")
    assert sha256_file(path) == sha256_file(other)
    write_decision(path, '=1+1,"', "drop", 'quote " and, comma')
    assert read_overrides(path).decisions['=1+1,"'] == ("drop", 'quote " and, comma')
    with pytest.raises(DataError, match="cannot decide 'drop' about pair ' '"):
        write_decision(path, " ", "drop", "")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

"""A filter with scores and working columns, as a near-duplicate filter will have them: adding it
takes nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from curation_pools import picture

from coembed.curation.candidate import Candidate
from coembed.curation.engine import curate
from coembed.curation.filters.base import Filter, PoolDrop, Records, Verdict
from coembed.curation.settings import CurateSettings
from coembed.pairs.pool import open_pool
from coembed.pairs.shards import read_shard
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """A filter that takes pictures of one width for the same picture."""

    name: Literal["same_width"] = "same_width"

    def build(self) -> Filter:
        return SameWidth()


class SameWidth(Filter):
    reasons = ("same_width",)
    scores = {"num_words": "int64", "shape": "float64", "kind": "string", "_width": "string"}  # noqa: RUF012

    def check(self, candidate: Candidate) -> Verdict:
        if "unscored" in candidate.pair.caption:
            return Verdict()
        kind, width, height = candidate.header
        words = len(candidate.pair.caption.split())
        return Verdict(
            scores={"num_words": words, "shape": width / height, "kind": kind, "_width": str(width)}
        )

    def check_pool(self, records: Records) -> Iterator[PoolDrop]:
        first: dict[str, int] = {}
        for row in np.flatnonzero(records.kept).tolist():
            width = records.scores["_width"][row]
            if width is None:
                continue
            if width in first:
                owner = first[width]
                # The last kept row, not the first: chains must be followed to their end.
                detail = f"as wide as {records.path(owner)}"
                yield PoolDrop(row, "same_width", detail, owner, keep_caption=True)
            first[width] = row


def test_scores_reach_the_manifest_and_captions_cross_to_the_kept_item(tmp_path: Path) -> None:
    sizes = {"a": 40, "b": 50, "c": 40, "d": 60, "e": 40, "f": 40}
    (tmp_path / "pool" / "media").mkdir(parents=True)
    (tmp_path / "pool" / "pairs").mkdir()
    for number, (name, width) in enumerate(sizes.items()):
        media = picture(number, size=(width, 20))
        (tmp_path / "pool" / "media" / f"{name}.jpg").write_bytes(media)
    rows = [{"path": f"media/{name}.jpg", "caption": f"picture {name}"} for name in sizes]
    rows[-1]["caption"] = "unscored"
    pd.DataFrame(rows).to_csv(tmp_path / "pool" / "pairs" / "a.csv", index=False)
    settings = CurateSettings(min_pairs=1).model_copy(update={"filters": (Settings(),)})
    (tmp_path / "out").mkdir()
    summary = curate(open_pool(tmp_path / "pool"), tmp_path / "out", settings, seed=0)
    assert summary.dropped["same_width"] == 2 and summary.num_items == 4

    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["kept"].tolist() == [True, True, False, True, False, True]
    assert manifest["num_words"].tolist()[:5] == [2] * 5 and pd.isna(manifest["num_words"][5])
    assert manifest["shape"].tolist()[:4] == [2.0, 2.5, 2.0, 3.0]
    assert manifest["kind"].fillna("-").tolist() == ["JPEG"] * 5 + ["-"]
    assert "_width" not in manifest.columns
    owner = manifest["pair_id"][0]
    assert manifest["duplicate_of"].fillna("-").tolist() == ["-", "-", owner, "-", owner, "-"]
    assert manifest["split"][2] == manifest["split"][4] == manifest["split"][0]

    samples = {s.path: s for p in (tmp_path / "out").glob("*.tar") for s in read_shard(p)}
    assert samples["media/a.jpg"].captions == ("picture a", "picture c", "picture e")
    assert samples["media/f.jpg"].captions == ("unscored",)

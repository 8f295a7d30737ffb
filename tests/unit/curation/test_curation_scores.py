"""A filter with scores and working columns, as a near-duplicate filter will have them: adding it
takes nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
from curation_pools import picture

from coembed.curation.candidate import Candidate
from coembed.curation.engine import curate
from coembed.curation.filters.base import Cell, Filter, PoolView, Verdict
from coembed.curation.media.media import Media
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
    columns = {  # noqa: RUF012
        "num_words": "int64", "shape": "float64", "kind": "string", "_bytes": "binary",
        "same_width_doubt": "float64", "width_group": "int64",
    }  # fmt: skip

    def measure(self, media: Media) -> Mapping[str, Cell]:
        facts = media.facts()
        assert facts.width_px and facts.height_px and facts.format
        return {
            "shape": facts.width_px / facts.height_px,
            "kind": facts.format,
            "_bytes": facts.width_px.to_bytes(4, "big"),
        }

    def judge(self, candidate: Candidate) -> Verdict:
        if "unscored" in candidate.caption:
            return Verdict()
        return Verdict(
            columns={"num_words": len(candidate.caption.split())},
            caption=candidate.caption.replace("picture", "photo"),
        )

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        latest: dict[bytes, tuple[int, str]] = {}
        rows = pa.Table.from_batches(
            pool.query("SELECT row, path, _bytes, num_words FROM kept ORDER BY row")
        ).to_pylist()
        for cells in rows:
            yield pa.table(
                {"row": [cells["row"]], "width_group": [int.from_bytes(cells["_bytes"], "big")]}
            )
            if cells["num_words"] is None:
                continue
            if cells["_bytes"] in latest:
                # The last row, not the first: chains must be followed to their end.
                owner, path = latest[cells["_bytes"]]
                found = {"row": cells["row"], "reason": "same_width", "duplicate_of": owner}
                found |= {"detail": f"as wide as {path}", "keep_caption": True}
                yield pa.Table.from_pylist([found])
                # What comes second does not count.
                yield pa.Table.from_pylist([{**found, "detail": "again", "keep_caption": False}])
            else:
                yield pa.table({"row": [cells["row"]], "same_width_doubt": [0.25]})
            latest[cells["_bytes"]] = cells["row"], cells["path"]


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
    summary = curate(
        open_pool(tmp_path / "pool"), tmp_path / "out", settings,
        seed=0, root=tmp_path, runs=tmp_path / "runs",
    )  # fmt: skip
    assert summary.dropped["same_width"] == 2 and summary.num_items == 4

    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["kept"].tolist() == [True, True, False, True, False, True]
    assert manifest["num_words"].tolist()[:5] == [2] * 5 and pd.isna(manifest["num_words"][5])
    assert manifest["shape"].tolist()[:4] == [2.0, 2.5, 2.0, 3.0]
    assert manifest["kind"].fillna("-").tolist() == ["JPEG"] * 6
    assert "_bytes" not in manifest.columns
    assert manifest["width_group"].tolist() == list(sizes.values())
    assert manifest["doubt"].fillna(-1).tolist() == [0.25, 0.25, -1, 0.25, -1, -1]
    assert manifest["doubt_by"][0] == "same_width" and pd.isna(manifest["doubt_by"][2])
    assert manifest["caption"].tolist()[4:] == ["photo e", "unscored"]
    assert manifest["drop_detail"][4] == "as wide as media/c.jpg"
    owner = manifest["pair_id"][0]
    assert manifest["duplicate_of"].fillna("-").tolist() == ["-", "-", owner, "-", owner, "-"]
    assert manifest["split"][2] == manifest["split"][4] == manifest["split"][0]

    samples = {s.path: s for p in (tmp_path / "out").glob("*.tar") for s in read_shard(p)}
    assert samples["media/a.jpg"].captions == ("photo a", "photo c", "photo e")
    assert samples["media/f.jpg"].captions == ("unscored",)

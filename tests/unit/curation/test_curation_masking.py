"""Personal data in a caption do not reach the manifest, whatever became of the pair."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from curation_pools import picture

from coembed.curation.engine import curate
from coembed.curation.settings import CurateSettings
from coembed.pairs.pool import open_pool


def test_dropped_pairs_are_masked_as_well(tmp_path: Path) -> None:
    secret = "ask me@shop.example for it"
    media = {f"{i}.jpg": picture(i) for i in range(40)}
    media["cut.jpg"] = picture(50)[:-200]
    media["tiny.jpg"] = picture(51, size=(8, 8))
    pool = tmp_path / "pool"
    (pool / "pairs").mkdir(parents=True)
    for name, data in media.items():
        (pool / name).write_bytes(data)
    rows = [{"path": name, "caption": f"picture number {name}: {secret}"} for name in media]
    rows.append({"path": "lost.jpg", "caption": secret})
    rows.append({"path": "0.jpg", "caption": f"{secret} " * 300})
    pd.DataFrame(rows).to_parquet(pool / "pairs" / "a.parquet")
    (tmp_path / "out").mkdir()
    # `image_size` drops its pair before `personal_data` is asked.
    settings = CurateSettings.model_validate(
        {"filters": ["readable", "image_size", "personal_data", "caption_length"]}
    )
    curate(
        open_pool(pool), tmp_path / "out", settings,
        seed=0, root=tmp_path, runs=tmp_path / "runs",
    )  # fmt: skip
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    reasons = set(manifest["drop_reason"].dropna())
    assert reasons == {"truncated", "small_image", "missing_file", "long_caption"}
    assert manifest["caption"].str.contains("[email]", regex=False).all()
    for path in (tmp_path / "out").iterdir():
        assert b"me@shop.example" not in path.read_bytes(), path.name
    text = manifest.to_csv()
    assert "shop.example" not in text

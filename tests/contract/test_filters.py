"""What every filter keeps. A new module of coembed.curation.filters is picked up unasked."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from curation_pools import faulty_pool, picture

from coembed.curation.candidate import Candidate, Undecodable
from coembed.curation.engine import curate
from coembed.curation.examine import DECODE_REASONS
from coembed.curation.filters.base import Filter, Records
from coembed.curation.settings import CurateSettings
from coembed.pairs.pool import open_pool
from coembed.settings import ComponentSettings, component_names, component_settings
from coembed.types import Modality, Pair

PACKAGE = "coembed.curation.filters"
SCORE_TYPES = {"int64": int, "float64": float, "string": str}
MEDIA = {
    "good": picture(1),
    "png": picture(2, kind="PNG"),
    "tiny": picture(3, size=(4, 4)),
    "strip": picture(4, size=(600, 5)),
    "cut": picture(5)[:-100],
    "page": b"<html>",
    "one byte": b"\0",
}
CAPTIONS = (
    "a red mug",
    "",
    "  ",
    "x",
    "\u3042\u3044",
    "\U0001f600" * 5,
    "long " * 2000,
    "a\0b\n<b>",
)


@pytest.fixture(params=component_names(PACKAGE))
def settings(request: pytest.FixtureRequest) -> ComponentSettings:
    return component_settings(PACKAGE, request.param)()  # type: ignore[call-arg]


@pytest.fixture
def chosen(settings: ComponentSettings) -> Filter:
    built = settings.build()  # type: ignore[attr-defined]
    assert isinstance(built, Filter)
    return built


def _candidates(modality: Modality) -> list[Candidate]:
    return [
        Candidate(Pair(f"p{i}", "media/a.jpg", caption, modality), media, max_pixels=10**6)
        for i, media in enumerate(MEDIA.values())
        for caption in CAPTIONS
    ]


def _verdict(chosen: Filter, candidate: Candidate) -> tuple[str | None, str, dict[str, object]]:
    try:
        verdict = chosen.check(candidate)
    except Undecodable as finding:
        assert finding.reason in DECODE_REASONS
        return finding.reason, finding.detail, {}
    return verdict.reason, verdict.detail, dict(verdict.scores)


def test_the_settings_travel(settings: ComponentSettings) -> None:
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert CurateSettings.model_validate({"filters": [settings.name]}).filters == (settings,)
    assert type(settings).__doc__ and type(settings).__module__.endswith(f".{settings.name}")


def test_reasons_and_scores_are_declared_in_snake_case(chosen: Filter) -> None:
    assert chosen.reasons
    for name in (*chosen.reasons, *chosen.scores):
        assert re.fullmatch(r"_?[a-z][a-z0-9_]*", name)
    assert set(chosen.scores.values()) <= set(SCORE_TYPES)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_verdicts_are_as_declared_and_the_same_each_time(
    settings: ComponentSettings, chosen: Filter, modality: Modality
) -> None:
    again = settings.build()  # type: ignore[attr-defined]
    for first, second in zip(_candidates(modality), _candidates(modality), strict=True):
        verdict = _verdict(chosen, first)
        assert verdict == _verdict(again, second)
        reason, detail, scores = verdict
        assert reason in (None, *chosen.reasons, *DECODE_REASONS)
        assert bool(reason) == bool(detail)
        for name, score in scores.items():
            assert isinstance(score, SCORE_TYPES[chosen.scores[name]])


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_other_modalities_are_not_judged_as_pictures(chosen: Filter, modality: Modality) -> None:
    pair = Pair("p", "media/a.wav", "a caption that says enough", modality)
    assert _verdict(chosen, Candidate(pair, b"no picture", max_pixels=10**6))[0] is None


def test_a_good_pair_stays(chosen: Filter) -> None:
    pair = Pair("p", "media/a.jpg", "a red mug on a table")
    assert _verdict(chosen, Candidate(pair, MEDIA["good"], max_pixels=10**6))[0] is None


def _records(num: int, items: list[int], captions: list[int], kept: list[bool]) -> Records:
    return Records(
        kept=np.array(kept, np.bool_),
        items=np.array(items, np.int64),
        paths=np.arange(num, dtype=np.int64),
        captions=np.array(captions, np.int64),
        scores={},
        pair_id=lambda row: f"p{row}",
        path=lambda row: f"media/{row}.jpg",
    )


def test_of_the_whole_pool_only_kept_rows_are_dropped_once(chosen: Filter) -> None:
    if any(name.startswith("_") for name in chosen.scores):
        pytest.skip("needs its own working columns: its unit test covers this")
    rng = np.random.default_rng(0)
    for num in (0, 1, 60):
        items = rng.integers(0, 10, num).tolist()
        captions = rng.integers(0, 5, num).tolist()
        kept = rng.random(num).round().astype(bool).tolist()
        drops = list(chosen.check_pool(_records(num, items, captions, kept)))
        rows = [drop.row for drop in drops]
        assert len(set(rows)) == len(rows) and all(kept[row] for row in rows)
        for drop in drops:
            assert drop.reason in chosen.reasons and drop.detail
            if drop.duplicate_of is not None:
                assert kept[drop.duplicate_of] and drop.duplicate_of != drop.row


def test_alone_in_a_curation_its_drops_are_in_the_manifest(
    settings: ComponentSettings, chosen: Filter, tmp_path: Path
) -> None:
    faulty_pool(tmp_path / "pool")
    (tmp_path / "out").mkdir()
    alone = CurateSettings(filters=(settings,))
    summary = curate(open_pool(tmp_path / "pool"), tmp_path / "out", alone, seed=0)
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert (manifest["kept"] == manifest["drop_reason"].isna()).all()
    assert set(chosen.reasons) <= set(summary.dropped)
    visible = [name for name in chosen.scores if not name.startswith("_")]
    assert set(visible) <= set(manifest.columns)

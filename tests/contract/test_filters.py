"""What every filter keeps. A new module of coembed.curation.filters is picked up unasked."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from curation_pools import faulty_pool, picture, sound
from PIL import Image, ImageDraw

from coembed.curation.candidate import Candidate
from coembed.curation.engine import curate
from coembed.curation.filters.base import Cell, Filter
from coembed.curation.media.media import Media
from coembed.curation.media.undecodable import DECODE_REASONS, Undecodable
from coembed.curation.settings import CurateSettings
from coembed.errors import CoembedError
from coembed.files import sha256_tree
from coembed.pairs.pool import open_pool
from coembed.settings import ComponentSettings, component_names, component_settings
from coembed.types import Pair

PACKAGE = "coembed.curation.filters"
CELL_TYPES: dict[str, Any] = {"int64": int, "float64": float, "string": str, "binary": bytes}


def photograph() -> bytes:
    """A picture with soft ground, sharp edges and some grain, as a camera gives."""
    image = Image.open(io.BytesIO(picture(1, size=(160, 140)))).convert("RGB")
    ImageDraw.Draw(image).rectangle((40, 30, 110, 100), fill=(200, 30, 30), outline="white")
    grain = np.random.default_rng(0).normal(0, 6, (140, 160, 3))
    buffer = io.BytesIO()
    noisy = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


MEDIA = {
    "good": ("image", photograph()),
    "png": ("image", picture(2, kind="PNG")),
    "tiny": ("image", picture(3, size=(4, 4))),
    "strip": ("image", picture(4, size=(600, 5))),
    "cut": ("image", picture(5)[:-100]),
    "page": ("image", b"<html>"),
    "one byte": ("image", b"\0"),
    "sound": ("audio", sound(6)),
    "no sound": ("audio", b"RIFF"),
    "words": ("text", b"some words"),
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
    "IMG_2041.JPG",
    "write to me@shop.example or +44 20 7946 0958",
    "\u202eevil\u2066 <script>alert(1)</script> http://a.example/" + "x" * 300,
)
# What these settings name is the user's, and not there.
NEEDS_MORE: dict[str, dict[str, Any]] = {
    "evaluation_leak": {"against": ["no-such-set"]},
    "semantic_duplicate": {"model": "no-such-model"},
}


@pytest.fixture(params=component_names(PACKAGE))
def settings(request: pytest.FixtureRequest) -> ComponentSettings:
    more = NEEDS_MORE.get(request.param, {})
    return component_settings(PACKAGE, request.param).model_validate(more)


@pytest.fixture
def chosen(settings: ComponentSettings) -> Filter:
    built = settings.build()  # type: ignore[attr-defined]
    assert isinstance(built, Filter)
    return built


def _measure(chosen: Filter, modality: str, data: bytes) -> dict[str, Cell] | str:
    media = Media(data, modality=modality)
    try:
        return dict(chosen.measure(media))
    except Undecodable as finding:
        assert finding.reason in DECODE_REASONS and finding.detail
        return finding.reason


def _is_declared(chosen: Filter, cells: dict[str, Cell]) -> bool:
    return all(isinstance(cell, CELL_TYPES[chosen.columns[name]]) for name, cell in cells.items())


def test_the_settings_travel(settings: ComponentSettings) -> None:
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    given = {"filters": [settings.model_dump(mode="json")]}
    assert CurateSettings.model_validate(given).filters == (settings,)
    assert type(settings).__doc__ and type(settings).__module__.endswith(f".{settings.name}")


def test_reasons_and_columns_are_declared_in_snake_case(
    settings: ComponentSettings, chosen: Filter
) -> None:
    assert chosen.reasons
    for name in (*chosen.reasons, *chosen.columns):
        assert re.fullmatch(r"_?[a-z][a-z0-9_]*", name)
    assert set(chosen.columns.values()) <= set(CELL_TYPES)
    assert all(n == f"{settings.name}_doubt" for n in chosen.columns if n.endswith("_doubt"))


@pytest.mark.parametrize("kind", MEDIA)
def test_what_is_measured_is_declared_and_the_same_each_time(
    settings: ComponentSettings, chosen: Filter, kind: str
) -> None:
    modality, data = MEDIA[kind]
    found = _measure(chosen, modality, data)
    again = settings.build()  # type: ignore[attr-defined]
    assert found == _measure(again, modality, data)
    assert isinstance(found, str) or _is_declared(chosen, found)


@pytest.mark.parametrize("kind", MEDIA)
def test_verdicts_are_as_declared_and_the_same_each_time(
    settings: ComponentSettings, chosen: Filter, kind: str
) -> None:
    modality, data = MEDIA[kind]
    measured = _measure(chosen, modality, data)
    if isinstance(measured, str):
        return  # the engine drops it before any filter judges
    facts = Media(data, modality=modality).facts()
    again = settings.build()  # type: ignore[attr-defined]
    for caption in CAPTIONS:
        pair = Pair("p", "media/a", caption, modality)  # type: ignore[arg-type]
        verdict = chosen.judge(Candidate(pair, caption, facts, measured))
        assert verdict == again.judge(Candidate(pair, caption, facts, measured))
        assert verdict.reason in (None, *chosen.reasons)
        assert bool(verdict.reason) == bool(verdict.detail)
        assert _is_declared(chosen, dict(verdict.columns))


def test_a_good_pair_stays(chosen: Filter) -> None:
    modality, data = MEDIA["good"]
    measured = _measure(chosen, modality, data)
    assert isinstance(measured, dict)
    caption = "a red mug on a table"
    pair = Pair("p", "media/a.jpg", caption)
    candidate = Candidate(pair, caption, Media(data, modality=modality).facts(), measured)
    verdict = chosen.judge(candidate)
    assert verdict.reason is None and verdict.caption in (None, caption)


def test_alone_in_a_curation_its_drops_are_in_the_manifest(
    settings: ComponentSettings, chosen: Filter, tmp_path: Path
) -> None:
    faulty_pool(tmp_path / "pool")
    hashes = []
    for name, num_workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        alone = CurateSettings(filters=(settings,), num_workers=num_workers)
        arguments: dict[str, Any] = {"seed": 0, "root": tmp_path, "runs": tmp_path / f"runs-{name}"}
        if settings.name in NEEDS_MORE:
            with pytest.raises(CoembedError, match="no-such-"):
                curate(open_pool(tmp_path / "pool"), tmp_path / name, alone, **arguments)
            return
        summary = curate(open_pool(tmp_path / "pool"), tmp_path / name, alone, **arguments)
        hashes.append(sha256_tree(tmp_path / name))
    manifest = pd.read_parquet(tmp_path / "one" / "manifest.parquet")
    assert (manifest["kept"] == manifest["drop_reason"].isna()).all()
    assert set(chosen.reasons) <= set(summary.dropped)
    visible = [name for name in chosen.columns if not name.startswith("_")]
    assert set(visible) <= set(manifest.columns)
    assert hashes[0] == hashes[1]

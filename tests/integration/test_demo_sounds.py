"""The demo with its sounds: what is pinned is what is drawn, and curation finds their faults."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import Project, small_project

pytestmark = pytest.mark.slow

_AUDIO_FILTERS = ("audio_rate", "audio_length", "audio_level")
_REASONS = {
    "silent_sound": {"silent_audio"},
    "clipped_sound": {"clipped_audio"},
    "short_sound": {"short_audio"},
    "truncated": {"truncated"},
    "corrupt": {"unreadable", "empty_file"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = small_project(tmp_path_factory.mktemp("sounds") / "shop", num_pairs=100)
    done = project.coembed("demo-pool", "--num-pairs", "100", "--overwrite")
    assert "none" in done.stdout, done.stdout
    done = project.coembed("demo-pool", "--audio", code=2)
    assert "has none of the demo's sounds" in done.stderr and "--overwrite" in done.stderr
    done = project.coembed("demo-pool", "--num-pairs", "100", "--audio", "--overwrite")
    assert "96, " in done.stdout, done.stdout
    params = project.root / "params.yaml"
    values = yaml.safe_load(params.read_text())
    filters = values["curate"]["filters"]
    named = [item if isinstance(item, str) else item["name"] for item in filters]
    filters[1:1] = [name for name in _AUDIO_FILTERS if name not in named]
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    project.git("add", "--all")
    project.git("commit", "--quiet", "-m", "sounds")
    return project


def test_a_pool_that_is_here_is_left_alone(project: Project) -> None:
    for flags in ((), ("--audio",)):
        assert "nothing to draw" in project.coembed("demo-pool", *flags).stdout


def test_a_clone_draws_the_pinned_pool(project: Project, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", str(project.root), str(clone))
    pinned = (clone / "data.dvc").read_bytes()
    done = Project(clone).coembed("demo-pool", "--num-pairs", "100", code=2)
    assert "try it with --audio" in done.stderr, done.stderr
    assert not (clone / "data").exists()
    done = Project(clone).coembed("demo-pool", "--num-pairs", "100", "--audio")
    assert "data.dvc unchanged" in done.stdout, done.stdout
    assert (clone / "data.dvc").read_bytes() == pinned


def test_curation_finds_the_faults_and_keeps_the_rest(project: Project) -> None:
    project.coembed("curate")
    manifest = pd.read_parquet(project.root / "artifacts" / "pairs" / "manifest.parquet")
    truth = pd.read_parquet(project.root / "data" / "truth.parquet")
    pairs = manifest[manifest["modality"] == "audio"].merge(truth, on="pair_id", how="left")
    assert len(pairs) > 96
    found = dict(zip(pairs["pair_id"], pairs["drop_reason"], strict=True))
    copies = set()
    for row in pairs[pairs["fault"] == "exact_duplicate"].itertuples():
        copies |= {row.pair_id, row.partner}
        assert [found[row.pair_id], found[row.partner]].count("exact_duplicate") == 1
    for row in pairs.itertuples():
        if row.fault in _REASONS:
            assert row.drop_reason in _REASONS[row.fault], row
        elif row.pair_id not in copies:
            # Swapped captions too: mismatched_pair judges pictures only.
            assert row.kept, row
    assert set(pairs[pairs["kept"]]["split"]) >= {"train", "test"}
    split_of = pairs[pairs["kept"]].groupby("product_id")["split"].nunique()
    assert (split_of == 1).all(), "takes of one recording are in one split"

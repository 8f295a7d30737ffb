"""`coembed pairs why` and `show` on pairs that the engine itself has curated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from curation_pools import faulty_pool
from PIL import Image
from typer.testing import CliRunner

from coembed.cli.pairs import pairs_app
from coembed.config import load_config
from coembed.curation.overrides import write_decision
from coembed.errors import UserError
from coembed.stages import curate

PARAMS = Path(__file__).parents[2] / "params.yaml"


def curated(root: Path) -> Path:
    """A project in `root` with a pool of one fault a kind, curated."""
    params = yaml.safe_load(PARAMS.read_text())
    params["curate"] = {"filters": ["readable", "aspect_ratio", "image_size", "caption_length",
                                    "exact_duplicate"], "min_pairs": 10}  # fmt: skip
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    faulty_pool(root / "data")
    # Two more: a hostile caption, and a pair that people decide about.
    table = pd.read_parquet(root / "data" / "pairs" / "a.parquet")
    table["pair_id"] = [f"pair-{i:03d}" for i in range(len(table))]
    table.loc[6, "caption"] = "\x1b[31m[bold]red[/bold] \u202etxet"
    table.to_parquet(root / "data" / "pairs" / "a.parquet")
    write_decision(root / "overrides.csv", "pair-004", "drop", "shows a competitor")
    run_curate(root)
    return root


def run_curate(root: Path) -> None:
    """The stage, as `coembed curate` runs it."""
    curate.run(
        load_config(root / "params.yaml"),
        root=root,
        pool=root / "data",
        out=root / "artifacts" / "pairs",
        runs=root / "runs",
        overrides=root / "overrides.csv",
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curated(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def manifest(project: Path) -> pd.DataFrame:
    return pd.read_parquet(project / "artifacts" / "pairs" / "manifest.parquet")


def run(project: Path, *arguments: str) -> str:
    """What the verb prints."""
    done = CliRunner().invoke(pairs_app, [*arguments, "-C", str(project)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def lines_of(text: str) -> dict[str, str]:
    """The table's labels and values."""
    found = re.findall(r"^ {2}(\S.*?) {2,}(\S.*?)\s*$", text, re.MULTILINE)
    return dict(found)


def test_every_dropped_pair_is_explained(project: Path, manifest: pd.DataFrame) -> None:
    dropped = manifest[~manifest.kept].head(100)
    assert dropped.drop_reason.nunique() >= 10
    for row in dropped.itertuples():
        told = lines_of(run(project, "why", str(row.pair_id)))
        assert told["dropped"].startswith(f"as {row.drop_reason}")
        assert told["found"].split()[0] == row.drop_detail.split()[0]
        assert told["split"].startswith(row.split if isinstance(row.split, str) else "none")
    titles = re.findall(r"^pair-\d+", run(project, "why", *dropped.pair_id), re.MULTILINE)
    assert titles == list(dropped.pair_id)


def test_a_kept_pair_tells_its_split_and_its_duplicates(
    project: Path, manifest: pd.DataFrame
) -> None:
    copy = manifest[manifest.drop_reason == "exact_duplicate"].iloc[0]
    told = lines_of(run(project, "why", str(copy.duplicate_of)))
    assert "kept" in told
    assert f"{copy.pair_id} (exact_duplicate)" in told["its duplicates"]
    row = manifest[manifest.pair_id == copy.duplicate_of].iloc[0]
    assert told["split"].startswith(f"{row.split}; nobody said")
    assert row.path in told["file"] and "48 × 40 px" in told["file"]
    told = lines_of(run(project, "why", str(copy.pair_id)))
    assert told["duplicates"].startswith(f"{copy.duplicate_of}, kept: {row.path}")


def test_people_are_named(project: Path) -> None:
    told = lines_of(run(project, "why", "pair-004"))
    assert told["dropped"].startswith("as dropped_by_override")
    assert told["people"] == "overrides.csv says drop: shows a competitor"


def test_a_decision_that_is_not_yet_followed_is_called_so(tmp_path: Path) -> None:
    root = curated(tmp_path)
    write_decision(root / "overrides.csv", "pair-005", "drop", "")
    write_decision(root / "overrides.csv", "pair-007", "keep", "")
    assert "next `coembed curate` follows it" in run(root, "why", "pair-005")
    assert "the filters say the same" in run(root, "why", "pair-007")
    small = "pair-045"
    assert lines_of(run(root, "why", small))["dropped"].startswith("as small_image")
    write_decision(root / "overrides.csv", small, "keep", "an icon, and wanted")
    run_curate(root)
    told = lines_of(run(root, "why", small))
    assert told["kept"] == "overrides.csv says so; it is in the curated pairs"
    assert told["people"] == "overrides.csv says keep: an icon, and wanted"
    page = (root / "artifacts" / "pairs" / "report.html").read_text()
    assert "Kept because somebody said so" in page
    assert "next `coembed curate`" not in run(root, "why", "pair-005")
    facts = json.loads(run(root, "why", "pair-005", "--json"))
    assert facts[0]["decided_by"] == "override"
    assert facts[0]["override"] == {"decision": "drop", "reason": ""}


def test_why_as_json_is_the_manifest_row(project: Path, manifest: pd.DataFrame) -> None:
    ids = ["pair-003", "pair-045"]
    facts = json.loads(run(project, "why", *ids, "--json"))
    assert [one["pair_id"] for one in facts] == ids
    row = manifest[manifest.pair_id == "pair-045"].iloc[0]
    assert facts[1]["drop_reason"] == row.drop_reason
    assert facts[1]["filter"] in ("readable", "image_size", "aspect_ratio", "caption_length", None)


def test_an_unknown_id_names_what_is_like_it(project: Path) -> None:
    with pytest.raises(UserError, match="no pair 'pair-0041'") as error:
        run(project, "why", "pair-0041")
    assert "pair-004" in str(error.value)
    with pytest.raises(UserError, match="is no pair_id") as error:
        run(project, "why", "media/good3.jpg")
    assert "pair-003" in str(error.value)


def test_captions_cannot_steer_the_terminal(project: Path) -> None:
    for text in (run(project, "why", "pair-006"), run(project, "show", "--limit", "60")):
        assert "\x1b" not in text and "\u202e" not in text
        assert "[U+001B][31m[bold]red[/bold] [U+202E]txet" in text


def test_show_by_reason_split_and_kept(project: Path, manifest: pd.DataFrame) -> None:
    def asked(*arguments: str) -> dict[str, Any]:
        return dict(json.loads(run(project, "show", "--json", *arguments)))

    for reason, num in manifest.drop_reason.value_counts().items():
        found = asked("--reason", str(reason), "--limit", "100")
        assert found["num"] == num == len(found["pairs"])
        assert {pair["drop_reason"] for pair in found["pairs"]} == {reason}
    assert asked("--kept")["num"] == manifest.kept.sum()
    assert len(asked("--kept")["pairs"]) == 20
    train = asked("--split", "train", "--limit", "999")
    assert {p["pair_id"] for p in train["pairs"]} == set(
        manifest[manifest.split == "train"].pair_id
    )
    ids = [pair["pair_id"] for pair in asked("--limit", "999")["pairs"]]
    assert ids == list(manifest.pair_id)
    assert asked("--doubtful")["num"] == (manifest.doubt > 0).sum()


def test_an_unknown_reason_lists_those_there_are(project: Path, manifest: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="'blurry' is no drop reason here") as error:
        run(project, "show", "--reason", "blurry")
    for reason, num in manifest.drop_reason.value_counts().items():
        assert f"{reason} ({num})" in str(error.value)
    assert "repeated_pair_id" not in set(manifest.drop_reason)
    with pytest.raises(UserError, match="no pair was dropped as 'repeated_pair_id'"):
        run(project, "show", "--reason", "repeated_pair_id")
    with pytest.raises(UserError, match="was not kept"):
        run(project, "show", "--reason", "truncated", "--kept")


def test_a_contact_sheet_shows_the_pictures(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    text = run(project, "show", "--reason", "exact_duplicate", "--sheet", str(out))
    assert "contact sheet" in text
    with Image.open(out) as sheet:
        pixels = sheet.convert("RGB").resize((64, 64))
        colours = {pixels.getpixel((x, y)) for x in range(64) for y in range(64)}
    assert len(colours) > 50  # pictures, not empty frames


def test_before_curation_the_next_step_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    with pytest.raises(UserError, match="run `coembed curate` first"):
        run(tmp_path, "show")

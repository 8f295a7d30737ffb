"""What the README promises to someone with pairs of their own is run as it is written."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from project import REPOSITORY, Project, small_project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a table of its own beside it: other column names, a bad row, an own column."""
    project = small_project(tmp_path_factory.mktemp("readme") / "shop", num_pairs=300)
    rows = pq.read_table(project.root / "data" / "pairs" / "shop.parquet").to_pylist()
    photos = project.root.parent / "photos"
    (project.root / "data" / "media").rename(photos)
    with (project.root / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "colour", "price"])
        for row in rows:
            path = photos / Path(row["path"]).relative_to("media")
            writer.writerow([path, row["caption"], row["colour"], row["price"]])
        writer.writerow([photos / "nowhere.jpg", "a thing that is not there", "red", 1])
    project.run("dvc", "checkout", "--force", "data.dvc")
    return project


def _four_commands() -> list[list[str]]:
    readme = (REPOSITORY / "README.md").read_text()
    block = readme.split("in four commands:")[1].split("```console\n")[1].split("```")[0]
    commands = [shlex.split(line) for line in block.splitlines() if line.strip()]
    assert len(commands) == 4
    return commands


def test_from_a_csv_to_search_results_in_the_readmes_four_commands(project: Project) -> None:
    copy, ingest, retrain, search = _four_commands()
    project.run(*copy)
    params = project.root / "params.yaml"
    # The recipe as it stands, only shorter: this tests the way, not the learning.
    params.write_text(re.sub(r"epochs: \d+", "epochs: 1", params.read_text()))
    done = project.run(*ingest)
    assert re.search(r"rows refused\s+[1-9]", done.stdout), done.stdout
    assert "nowhere.jpg" in done.stdout
    project.run(*retrain)
    done = project.run(*search)
    assert "pairs__v1" in done.stdout
    assert (project.root / "hits.png").read_bytes().startswith(b"\x89PNG")
    filtered = project.coembed("search", "boots", "--filter", "price<30", "--json")
    assert all(h["attributes"]["price"] < 30 for h in json.loads(filtered.stdout)["hits"])


def test_ingesting_twice_changes_nothing(project: Project) -> None:
    before = (project.root / "data.dvc").read_bytes()
    done = project.coembed("ingest", "products.csv")
    assert re.search(r"pairs added\s+0\b", done.stdout), done.stdout
    assert (project.root / "data.dvc").read_bytes() == before

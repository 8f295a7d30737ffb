"""What `coembed data diff` says of versions made with git and DVC, against what was done."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from coembed.cli.data_versions import data_app
from coembed.errors import DataError, UserError
from coembed.lineage import dvc
from coembed.lineage.data_diff import DataDiff, diff_data
from coembed.lineage.data_versions import find_version

POOL = Path("data")


def _git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


def _commit(project: Path, tag: str) -> None:
    dvc.add(project, POOL)
    _git(project, "add", "--all")
    _git(project, "commit", "--quiet", "--allow-empty", "-m", tag)
    _git(project, "tag", tag)


def _write(project: Path, rows: list[dict[str, object]], name: str = "a.csv") -> None:
    folder = project / POOL / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)  # DVC may have made it a link to its cache
    pd.DataFrame(rows).to_csv(folder / name, index=False)


def _media(project: Path, **contents: str) -> None:
    folder = project / POOL / "media"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / f"{name}.jpg").unlink(missing_ok=True)
        (folder / f"{name}.jpg").write_text(text)


def _row(item: str, caption: str, **more: object) -> dict[str, object]:
    return {"path": f"media/{item}.jpg", "caption": caption, **more}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tags: `first`; `grown`, with one change of every kind; `plain`, where ids were left out."""
    root = tmp_path_factory.mktemp("diff")
    _git(root, "init", "--quiet")
    dvc.dvc(root, "init", "--quiet")
    letters = "abcdefghij"
    _media(root, **{name: f"picture {name}" for name in letters})
    first = [
        _row(name, f"caption of {name}", pair_id=f"p{i}", colour="red", price=i, split="train")
        for i, name in enumerate(letters)
    ]
    _write(root, first)
    _commit(root, "first")

    rows = [dict(row) for row in first]
    del rows[9]  # j goes
    rows[0]["caption"] = "a | new <b>caption</b>"
    rows[1]["colour"] = "blue"
    rows[2]["price"] = 500
    rows[3]["split"] = "test"
    rows[4]["path"] = "media/moved.jpg"
    rows[5]["pair_id"] = "renamed"  # the id only
    rows[6] |= {"pair_id": "other", "caption": "another caption of g"}  # its item tells
    _media(root, h="another picture of h", moved="picture e", k="picture k")
    rows.append(_row("k", "caption of k", pair_id="p10", colour="red", price=1, split="train"))
    for row in rows:
        row["brand"] = "x"
    _write(root, rows)
    _commit(root, "grown")
    return root


def _diff(project: Path, old: str, new: str | None = None) -> DataDiff:
    return diff_data(project, POOL, old, new)


def test_every_kind_of_change_is_counted(project: Path) -> None:
    diff = _diff(project, "first", "grown")
    assert diff.num_pairs == (10, 10) and diff.num_items == (10, 10)
    # j's and h's old pictures are gone; k's and h's new ones came.
    assert (diff.items_added, diff.items_removed) == (2, 2)
    assert (diff.added, diff.removed) == (1, 1)
    assert (diff.recaptioned, diff.media_replaced, diff.moved) == (2, 1, 1)
    assert (diff.resplit, diff.modality_changed) == (1, 0)
    assert diff.attributes_changed == {"colour": 1, "price": 1}
    assert diff.attributes_added == ("brand",) and diff.attributes_removed == ()
    assert [e.pair_id for e in diff.examples["recaptioned"]] == ["p0", "other"]
    assert diff.examples["recaptioned"][0].before == "caption of a"
    assert diff.examples["added"][0].path == "media/k.jpg"
    assert diff.examples["removed"][0].before == "caption of j"
    assert diff.examples["media_replaced"][0].pair_id == "p7"
    colour = next(shift for shift in diff.shifts if shift.name == "colour")
    assert colour.distance == pytest.approx(0.1)
    assert set(colour.values) == {("red", 10, 9), ("blue", 0, 1)}
    (price,) = diff.numbers
    assert (price.old.median, price.new.maximum) == (4, 500)
    old = pd.Series([len(f"caption of {name}") for name in "abcdefghij"])
    assert diff.caption_lengths.old.mean == old.mean()


def test_back_is_the_mirror_image(project: Path) -> None:
    there, back = _diff(project, "first", "grown"), _diff(project, "grown", "first")
    assert (there.added, there.items_added) == (back.removed, back.items_removed)
    assert there.recaptioned == back.recaptioned
    assert back.attributes_removed == ("brand",)
    assert back.caption_lengths.old == there.caption_lengths.new


def test_a_version_does_not_differ_from_itself(project: Path) -> None:
    diff = _diff(project, "grown")  # the working tree is at "grown"
    assert diff.is_empty and not diff.note
    assert "Nothing changed" in diff.as_markdown()
    assert diff.rows()[2] == ("pairs", "10 → 10 (+0 −0)")


def test_markup_in_captions_is_text(project: Path) -> None:
    page = _diff(project, "first", "grown").as_markdown()
    assert "<b>" not in page and r"a \| new &lt;b&gt;" in page


def test_numbers_against_pandas(project: Path, tmp_path: Path) -> None:
    """Larger versions, ids made from content: counts and distributions as pandas finds them."""
    root = tmp_path / "larger"
    subprocess.run(["git", "clone", "--quiet", str(project), str(root)], check=True)
    sizes = range(400)
    _media(root, **{f"m{i}": f"picture {i}" for i in sizes})
    old = [
        _row(f"m{i % 300}", "word " * (i % 17 + 1), n=i * 7 % 101, kind="abc"[i % 3]) for i in sizes
    ]
    new = [row | ({"kind": "d"} if i % 5 == 0 else {}) for i, row in enumerate(old[50:], 50)]
    new += [_row(f"m{i}", "fresh", n=1000, kind="a") for i in range(300, 340)]
    _write(root, old)
    _commit(root, "old")
    _write(root, new)
    _commit(root, "new")
    diff = _diff(root, "old", "new")
    before, after = pd.DataFrame(old), pd.DataFrame(new)
    assert diff.num_items == (before["path"].nunique(), after["path"].nunique())
    assert diff.items_added == len(set(after["path"]) - set(before["path"]))
    assert diff.items_removed == len(set(before["path"]) - set(after["path"]))
    assert (diff.added - diff.removed, diff.recaptioned) == (len(new) - len(old), 0)
    assert (diff.added, diff.removed) == (40, 50)
    assert diff.attributes_changed == {"kind": sum(i % 5 == 0 for i in range(50, 400))}
    shares = [frame["kind"].value_counts(normalize=True) for frame in (before, after)]
    distance = shares[0].subtract(shares[1], fill_value=0).abs().sum() / 2
    kind = next(shift for shift in diff.shifts if shift.name == "kind")
    assert kind.distance == pytest.approx(distance)
    for found, frame in ((diff.numbers[0].old, before), (diff.numbers[0].new, after)):
        n = frame["n"]
        assert found.mean == pytest.approx(n.mean())
        assert (found.minimum, found.maximum) == (n.min(), n.max())
        for share, value in ((0.05, found.p5), (0.5, found.median), (0.95, found.p95)):
            # The least value that so large a share of all values does not exceed.
            assert value == n.sort_values().iloc[math.ceil(share * len(n)) - 1]


def test_the_verb_prints_a_table_or_json(project: Path) -> None:
    (project / "params.yaml").write_text(
        (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    )

    def run(*more: str) -> str:
        command = ["diff", "first", "grown", "-C", str(project), *more]
        done = CliRunner().invoke(data_app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "recaptioned" in run() and "What changed in the data" in run("--limit", "1")
    told = json.loads(run("--json"))
    assert told["recaptioned"] == 2 and told["old"]["name"] == "first"
    assert str(project) not in json.dumps(told)


def _lose(project: Path, keep: Callable[[Path], bool]) -> Path:
    """A clone whose cache has only the files to `keep`."""
    root = project.parent / f"{project.name}-lost-{keep.__name__}"
    subprocess.run(["git", "clone", "--quiet", str(project), str(root)], check=True)
    files = project / ".dvc" / "cache" / "files" / "md5"
    for path in files.rglob("*"):
        if path.is_file() and keep(path):
            target = root / ".dvc" / "cache" / "files" / "md5" / path.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return root


def test_what_is_wrong_is_said(project: Path) -> None:
    with pytest.raises(UserError, match="git knows no revision 'nowhere'"):
        _diff(project, "nowhere")
    with pytest.raises(UserError, match="git knows no revision '--help'"):
        _diff(project, "--help")
    with pytest.raises(
        DataError, match=r"first has no other\.dvc: the pool was not versioned there"
    ):
        diff_data(project, Path("other"), "first", "grown")
    with pytest.raises(DataError, match=r"there is no other\.dvc"):
        find_version(project, Path("other"), None, cache=project)

    def nothing(_: Path) -> bool:
        return False

    def lists(path: Path) -> bool:
        return path.name.endswith(".dir")

    with pytest.raises(DataError, match=r"the list of its files is missing\n.*dvc fetch"):
        _diff(_lose(project, nothing), "first", "grown")
    with pytest.raises(DataError, match=r"pairs/a\.csv is missing\n.*dvc fetch"):
        _diff(_lose(project, lists), "first", "grown")


def test_a_pool_changed_since_it_was_versioned_is_said(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "edited"
    subprocess.run(["cp", "-r", str(project), str(root)], check=True)
    _write(root, [_row("a", "only one")])
    diff = _diff(root, "first")
    assert "data/ has changed since data.dvc was written" in diff.note
    assert diff.num_pairs == (10, 10)

"""What a reproduction says: equal, or exactly what is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from coembed.errors import DataError
from coembed.files import write_json
from coembed.lineage.environment import Environment, leave_record, record
from coembed.lineage.reproduce import Reproduction, close_enough, compare
from coembed.registry.past_runs import PastRun

RUNS = Path("runs")
DATA = f"{1:032x}.dir"
METRICS = {"retrieval": {"text_to_image": {"recall_at_10": 0.5, "median_rank": 4.0}}, "num": 72}
RECALL = "retrieval/text_to_image/recall_at_10"


def _lock(**outs: str) -> dict[str, Any]:
    """A dvc.lock; keywords change the hash of what a stage made."""
    made = {"curate": "pairs", "train": "model", "evaluate": "evaluation", "embed": "embeddings"}
    hashes = {name: f"{i:032x}.dir" for i, name in enumerate(made, 10)} | outs
    both = ["curate", "train"]
    needs = {"curate": [], "train": ["curate"], "evaluate": both, "embed": both}
    stages: dict[str, Any] = {
        name: {
            "cmd": f"coembed {name}",
            "deps": [
                *({"path": f"artifacts/{made[need]}", "md5": hashes[need]} for need in needs[name]),
                {"path": f"src/{name}.py", "md5": "c" * 32},
            ],
            "params": {"params.yaml": {name: {"a": 1}}},
            "outs": [{"path": f"artifacts/{folder}", "md5": hashes[name]}],
        }
        for name, folder in made.items()
    }
    stages["curate"]["deps"].insert(0, {"path": "data", "md5": DATA})
    return stages


def _logged(environment: Environment) -> Any:
    """As MLflow gives it back."""
    return json.loads(json.dumps(asdict(environment)))


@pytest.fixture
def run() -> PastRun:
    return PastRun(
        name="version 3 of shop",
        run_id="ab" * 16,
        commit="cd" * 20,
        data_md5=DATA,
        weights_sha256=hashlib.sha256(b"weights").hexdigest(),
        dvc_lock=yaml.safe_dump({"schema": "2.0", "stages": _lock()}),
        environment=_logged(record("training", "cpu")),
        metrics=METRICS,
        intervals={RECALL: [0.4, 0.6]},
    )


def _make(
    tree: Path,
    *,
    lock: Mapping[str, Any] | None = None,
    weights: bytes = b"weights",
    metrics: Mapping[str, Any] = METRICS,
    data: str = DATA,
    device: str = "cpu",
) -> Path:
    """A worktree as `dvc repro` leaves it."""
    (tree / "artifacts" / "model").mkdir(parents=True)
    (tree / "artifacts" / "model" / "model.safetensors").write_bytes(weights)
    write_json(tree / "artifacts" / "evaluation" / "metrics.json", metrics)
    stages = lock or _lock()
    (tree / "dvc.lock").write_text(yaml.safe_dump({"stages": dict(stages)}, sort_keys=False))
    (tree / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": dict.fromkeys(_lock())}, sort_keys=False)
    )
    (tree / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": data, "path": "data"}]}))
    (tree / "params.yaml").write_text("seed: 1\n")
    leave_record(tree / RUNS, hashlib.sha256(weights).hexdigest(), record("training", device))
    return tree


def _compare(tree: Path, run: PastRun, **options: Any) -> tuple[Reproduction, dict[str, str]]:
    found = compare(tree, run, runs=RUNS, **options)
    return found, {finding.name: finding.verdict for finding in found.findings}


def test_the_same_is_equal(tmp_path: Path, run: PastRun) -> None:
    found, verdicts = _compare(_make(tmp_path), run)
    assert found.is_equal and set(verdicts.values()) == {"equal"}
    assert found.environment == () and found.recipe == () and found.metrics == {}
    rows = dict(found.rows())
    assert rows["metrics"] == "equal (3 values, report and all)"
    assert rows["weights"] == f"equal ({run.weights_sha256})"
    assert rows["environment"] == "the same packages, Python and machine"
    assert json.loads(json.dumps(found.as_dict()))["equal"] is True


def test_other_weights_and_metrics_are_told_one_by_one(tmp_path: Path, run: PastRun) -> None:
    metrics = {"retrieval": {"text_to_image": {"recall_at_10": 0.41, "median_rank": 4.0}}, "new": 1}
    lock = _lock(train="e" * 32 + ".dir", evaluate="f" * 32 + ".dir")
    found, verdicts = _compare(_make(tmp_path, weights=b"w", metrics=metrics, lock=lock), run)
    assert not found.is_equal
    assert [name for name, verdict in verdicts.items() if verdict == "differs"] == [
        "weights", "metrics",
    ]  # fmt: skip
    assert found.metrics == {RECALL: (0.5, 0.41), "num": (72.0, None), "new": (None, 1.0)}
    rows = found.rows()
    assert ("metrics", "differs: 3 of 3 values") in rows
    assert ("", f"{RECALL}: 0.5 → 0.41") in rows and ("", "new: not there → 1.0") in rows
    now = hashlib.sha256(b"w").hexdigest()
    assert ("weights", f"differs: {run.weights_sha256} → {now}") in rows


def test_other_packages_and_hardware_are_named(tmp_path: Path, run: PastRun) -> None:
    then = dict(run.environment)
    torch = then["packages"]["torch"]
    then["packages"] = {**then["packages"], "torch": "1.0+cpu"}
    then |= {"num_cores": 96, "kernels": "AVX2"}
    found, _ = _compare(_make(tmp_path), replace(run, environment=then))
    assert found.is_equal, "what it was made with is told; what came out decides"
    rows = found.rows()
    assert ("packages", f"torch 1.0+cpu → {torch}") in rows
    hardware = [str(one) for one in found.environment or () if one.what == "hardware"]
    now = record("training")
    assert f"cores 96 → {now.num_cores}" in hardware
    assert {one.split()[0] for one in hardware} <= {"cores", "CPU"}
    assert ("hardware", hardware[0]) in rows


def test_other_data_and_another_recipe_are_named(tmp_path: Path, run: PastRun) -> None:
    other = f"{2:032x}.dir"
    lock = _lock()
    lock["curate"]["deps"][0]["md5"] = other
    lock["train"]["deps"][-1]["md5"] = "d" * 32
    lock["embed"]["params"] = {"params.yaml": {"embed": {"a": 2}}}
    found, verdicts = _compare(_make(tmp_path, lock=lock, data=other), run)
    assert verdicts["data"] == "differs" and not found.is_equal
    assert ("data", f"differs: {DATA} → {other}") in found.rows()
    assert found.recipe == (
        "curate: data is another",
        "train: src/train.py is another",
        "embed: its settings in params.yaml are others",
    )


def test_a_gpu_is_held_to_the_intervals_and_not_to_the_bits(tmp_path: Path, run: PastRun) -> None:
    metrics = {
        "retrieval": {"text_to_image": {"recall_at_10": 0.58, "median_rank": 4.05}}, "num": 72,
    }  # fmt: skip
    lock = _lock(train="e" * 32, evaluate="f" * 32, embed="a" * 32)
    lock["embed"]["deps"][1]["md5"] = lock["evaluate"]["deps"][1]["md5"] = "e" * 32
    tree = _make(tmp_path / "a", weights=b"w", metrics=metrics, lock=lock, device="cuda")
    found, verdicts = _compare(tree, run)
    assert found.on_gpu and found.is_equal
    assert verdicts == {
        "data": "equal", "curated pairs": "equal", "weights": "differs", "metrics": "close",
        "embeddings": "differs",
    }  # fmt: skip
    assert dict(found.rows())["weights"].startswith("differs, which a GPU may do: ")
    assert "95 % interval" in dict(found.rows())["tolerance"]
    on_cpu = replace(run, environment={**run.environment, "device": "cuda"})
    assert _compare(_make(tmp_path / "b"), on_cpu)[0].on_gpu, "it was one then"

    metrics["retrieval"]["text_to_image"]["recall_at_10"] = 0.61  # type: ignore[index]
    tree = _make(tmp_path / "c", weights=b"w", metrics=metrics, lock=lock, device="cuda")
    assert not _compare(tree, run)[0].is_equal
    # With no metric to judge by, other weights are another model.
    assert not _compare(tree, run, stage="train")[0].is_equal


@pytest.mark.parametrize(
    ("then", "now", "interval", "close"),
    [
        (0.5, 0.4, (0.4, 0.6), True),
        (0.5, 0.39, (0.4, 0.6), False),
        (0.9, 0.919, None, True),
        (0.9, 0.921, None, False),
        (100.0, 102.0, None, True),
        (100.0, 102.1, None, False),
    ],
)
def test_the_tolerance(
    then: float, now: float, interval: tuple[float, float] | None, close: bool
) -> None:
    assert close_enough(then, now, interval) is close


def test_embeddings_of_the_run_before_are_not_taken_for_its_own(
    tmp_path: Path, run: PastRun
) -> None:
    """A flow's first dvc.lock, and one by hand, is logged before the model has embedded."""
    stale = _lock()
    stale["embed"]["deps"][1]["md5"] = "0" * 32
    stale["embed"]["outs"][0]["md5"] = "9" * 32
    before = replace(run, dvc_lock=yaml.safe_dump({"stages": stale}))
    found, verdicts = _compare(_make(tmp_path), before)
    assert verdicts["embeddings"] == "not compared" and found.is_equal
    assert dict(found.rows())["embeddings"] == "not compared (the run recorded none)"


def test_one_stage_is_compared_with_what_it_needs(tmp_path: Path, run: PastRun) -> None:
    lock = _lock(evaluate="0" * 32)  # as the run's own entry stands there: it did not run
    found, verdicts = _compare(_make(tmp_path, lock=lock, metrics={}), run, stage="train")
    assert found.is_equal
    assert verdicts == {
        "data": "equal", "curated pairs": "equal", "weights": "equal",
        "metrics": "not compared", "embeddings": "not compared",
    }  # fmt: skip
    assert dict(found.rows())["metrics"] == "not compared (not made)"


def test_an_older_run_recorded_less(tmp_path: Path, run: PastRun) -> None:
    older = replace(run, environment=None, weights_sha256=None, intervals={})
    found, verdicts = _compare(_make(tmp_path / "a"), older)
    assert found.is_equal and verdicts["weights"] == "equal", "DVC's hash of the folder says so"
    assert dict(found.rows())["environment"] == "the run recorded none"
    tree = _make(tmp_path / "b", weights=b"w", lock=_lock(train="e" * 32))
    assert dict(_compare(tree, older)[0].rows())["weights"].startswith(
        "differs: a hash that was not recorded → "
    )
    elsewhere = replace(run, environment=_logged(record("registration")))
    rows = _compare(_make(tmp_path / "c"), elsewhere)[0].rows()
    assert [told for label, told in rows if label == "environment"] == [
        "recorded of the machine that registered it, which had not trained it itself",
        "the same packages, Python and machine",
    ]


def test_many_differences_fold_in_the_table_and_not_in_the_file(
    tmp_path: Path, run: PastRun
) -> None:
    then = {f"m{i:03}": 0.5 for i in range(100)}
    now = dict.fromkeys(then, 0.25)
    found, _ = _compare(_make(tmp_path, metrics=now), replace(run, metrics=then))
    assert ("", "and 88 more, in the file") in found.rows()
    assert len(found.as_dict()["metrics"]) == 100


@pytest.mark.parametrize("text", ["{}", "stages: []", "stages: {}", "- 1"])
def test_a_lock_that_says_nothing_is_refused(tmp_path: Path, run: PastRun, text: str) -> None:
    with pytest.raises(DataError, match=r"the run's dvc\.lock names no stages"):
        _compare(_make(tmp_path), replace(run, dvc_lock=text))

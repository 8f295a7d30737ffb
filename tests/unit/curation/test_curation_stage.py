"""The curate stage: what it leaves, and what a kill leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from curation_pools import faulty_pool

from coembed.config import Config
from coembed.curation.settings import CurateSettings
from coembed.errors import DataError
from coembed.files import read_receipt, sha256_tree
from coembed.locking import exclusive
from coembed.pairs.shards import num_samples, read_samples
from coembed.stages import curate
from coembed.stages.result import Result
from coembed.types import SPLITS


def _run(config: Config, pool: Path, out: Path, *, runs: str = "runs") -> Result:
    return curate.run(
        config, root=out.parent, pool=pool, out=out, runs=out.parent / runs,
        overrides=out.parent / "overrides.csv",
    )  # fmt: skip


def _config(**settings: object) -> Config:
    """Only what the stage may look at: an access to another section fails."""
    return Config.model_construct(seed=0, curate=CurateSettings.model_validate(settings))


def test_it_leaves_shards_manifest_summary_and_receipt(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    result = _run(_config(), tmp_path / "pool", tmp_path / "out")
    rows = dict(result.rows)
    assert rows["pairs in"] == "53" and rows["kept"] == "40 (75.5%)"
    assert rows["dropped: exact_duplicate"] == "2" and "dropped: missing_path" not in rows
    assert read_receipt(tmp_path / "out", what="pairs", made_by="x") == result.receipt
    nums = [num_samples(tmp_path / "out", split) for split in SPLITS]
    assert sum(nums) == result.receipt["num_items"] == 40
    for split, num in zip(SPLITS, nums, strict=True):
        assert len(list(read_samples(tmp_path / "out", split, verify=True))) == num
    for name in ("receipt.json", "summary.json", "report.html"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()
    assert "examine" in rows["slowest"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["dropped"]["missing_path"] == 0  # a reason without a drop is said too
    assert set(summary["splits"]) == set(SPLITS)
    assert summary["modalities"] == {"image": {"num_pairs": 53, "num_kept": 40}}
    assert summary["balance"]["shop"]["8"] == {"num_pairs": 4, "num_kept": 4}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failed_run_leaves_what_was_there(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    _run(_config(), tmp_path / "pool", tmp_path / "out")
    before = sha256_tree(tmp_path / "out")
    with pytest.raises(DataError, match="fewer than 50"):
        _run(_config(min_pairs=50), tmp_path / "pool", tmp_path / "out")
    assert sha256_tree(tmp_path / "out") == before
    _run(_config(), tmp_path / "pool", tmp_path / "out")
    assert sha256_tree(tmp_path / "out") == before


FEW = {"filters": ["readable", "caption_length", "exact_duplicate"]}
_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
from test_curation_stage import FEW, _config, _run
if __name__ == "__main__":
    _run(_config(num_workers=2, **FEW), Path({pool!r}), Path({out!r}), runs="killed-runs")
"""


def test_two_runs_at_once_take_turns(tmp_path: Path) -> None:
    """The second must not clear the folder that the first fills."""
    faulty_pool(tmp_path / "pool")
    pool, out = tmp_path / "pool", tmp_path / "both"
    _run(_config(num_workers=2, **FEW), pool, tmp_path / "alone")
    script = tmp_path / "script.py"
    here, tests = str(Path(__file__).parent), str(Path(__file__).parents[2])
    script.write_text(_SCRIPT.format(here=here, tests=tests, pool=str(pool), out=str(out)))
    lock = tmp_path / "killed-runs" / "curate" / "lock"
    with exclusive(lock, doing="holding both back", wait=False):
        both = [
            subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for run in both:
            assert run.stderr is not None
            assert "waiting for another process" in run.stderr.readline()
    said = [run.communicate(timeout=120)[1] for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    assert sha256_tree(out) == sha256_tree(tmp_path / "alone")


def test_sigkill_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool", num_good=1050)
    pool, out = tmp_path / "pool", tmp_path / "killed"
    _run(_config(num_workers=1, **FEW), pool, tmp_path / "whole")
    tests = Path(__file__).parents[2]
    script = tmp_path / "script.py"
    script.write_text(
        _SCRIPT.format(
            here=str(Path(__file__).parent), tests=str(tests), pool=str(pool), out=str(out)
        )
    )
    partial = tmp_path / ".killed.partial"
    lasting = tmp_path / "killed-runs" / "curate"
    moments = (  # killed while it examines, while it judges the pool, and while it packs
        (lasting, "examined/*/part-000000.parquet"),
        (lasting, "scratch/ledger.duckdb"),
        (partial, "t*.tar"),
    )
    for folder, moment in moments:
        process = subprocess.Popen([sys.executable, str(script)])
        deadline = time.monotonic() + 60
        while not any(folder.glob(moment)) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert any(folder.glob(moment)) and not out.exists()
    _run(_config(num_workers=1, **FEW), pool, out)
    assert sha256_tree(out) == sha256_tree(tmp_path / "whole")
    assert not partial.exists()
    # And from what the killed runs left in their runs/, too.
    _run(_config(num_workers=1, **FEW), pool, out, runs="killed-runs")
    assert sha256_tree(out) == sha256_tree(tmp_path / "whole")
    assert not (lasting / "scratch").exists()
    costs = json.loads((lasting / "costs.json").read_text())
    assert costs["examine"]["num_reused"] >= 1024
    assert {"examine", "load", "check exact_duplicate", "pack"} <= set(costs["steps_s"])

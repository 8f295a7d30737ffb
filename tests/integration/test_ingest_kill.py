"""An ingest that is killed again and again, with SIGKILL, ends like one that was left in peace."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coembed.files import sha256_tree
from coembed.pairs.history import read_history

_INGEST = """
import sys
from pathlib import Path
from coembed.pairs import intake
intake.PART_PAIRS = 20
from coembed.pairs.ingest import ingest
source, pool, index = map(Path, sys.argv[1:])
print("ready", flush=True)
ingest(source, pool, index=index)
"""


def num_tables(pool: Path) -> int:
    return len(list((pool / "pairs").glob("part-*.parquet")))


@pytest.mark.slow
def test_killed_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "in" / "pairs.csv"
    source.parent.mkdir()
    lines = ["path,caption,n"]
    for i in range(600):
        (source.parent / f"{i}.jpg").write_bytes(b"\xff\xd8\xff" + i.to_bytes(2, "big"))
        lines.append(f"{i}.jpg,caption {i},{i}")
    source.write_text("\n".join(lines))

    def start(pool: str) -> subprocess.Popen[str]:
        index = tmp_path / f"{pool}.sqlite"
        command = [sys.executable, "-c", _INGEST, str(source), str(tmp_path / pool), str(index)]
        return subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    with start("whole") as whole:
        assert whole.stdout is not None and whole.stdout.readline() == "ready\n"
    assert whole.returncode == 0
    rng = random.Random(3)
    num_killed = 0
    while True:
        with start("cut") as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            # By progress rather than by the clock, so that a slow machine is killed as often.
            enough = num_tables(tmp_path / "cut") + rng.randrange(6)
            while child.poll() is None and num_tables(tmp_path / "cut") < enough:
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.02)
            child.kill()
        if child.returncode == 0:
            break
        num_killed += 1
        assert num_killed < 100
    assert num_killed >= 2
    assert sha256_tree(tmp_path / "cut") == sha256_tree(tmp_path / "whole")
    (entry,) = read_history(tmp_path / "cut")
    assert (entry.num_pairs, entry.num_media, entry.complete) == (600, 600, True)

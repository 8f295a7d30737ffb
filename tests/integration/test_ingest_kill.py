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

    began = time.monotonic()
    with start("whole") as whole:
        assert whole.stdout is not None and whole.stdout.readline() == "ready\n"
        began = time.monotonic()
    took_s = time.monotonic() - began
    assert whole.returncode == 0
    rng = random.Random(3)
    num_killed = 0
    for _ in range(60):
        with start("cut") as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            try:
                # More time after each kill: on a machine that has slowed down it must end as well.
                child.wait(timeout=rng.random() * took_s * (0.6 + 0.1 * num_killed))
            except subprocess.TimeoutExpired:
                child.kill()
        if child.returncode == 0:
            break
        num_killed += 1
    assert child.returncode == 0 and num_killed >= 2
    assert sha256_tree(tmp_path / "cut") == sha256_tree(tmp_path / "whole")
    (entry,) = read_history(tmp_path / "cut")
    assert (entry.num_pairs, entry.num_media, entry.complete) == (600, 600, True)

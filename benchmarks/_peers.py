"""The peers of the benchmarks, each in an environment of its own, because they pin others' versions
of what we use. Made by pip on the first use, under runs/peers/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent / "peers"
_HOME = Path(__file__).parents[1] / "runs" / "peers"
_LIMIT_S = 900
# The speed of these is first of all that of their torch or NumPy, so they run on ours: only what
# they pin otherwise is installed, and found before our packages.
_ON_OUR_PACKAGES = {"clip_benchmark", "faiss", "open_clip_train"}


class PeerFailed(Exception):  # noqa: N818 - an outcome to report
    """The peer could not be installed, crashed or hung: its last line says how."""


def run_peer(name: str, script: str, arguments: Sequence[str]) -> Any:
    """What `peers/<script>.py` printed last, run in the environment of peer `name`.

    Raises PeerFailed.
    """
    python = _environment(name)
    # Nobody's usage statistics, and nothing downloaded while the clock runs.
    environment = {**os.environ, "DO_NOT_TRACK": "1", "SENTRY_OPT_OUT": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [python, _HERE / f"{script}.py", *arguments],
            capture_output=True, text=True, env=environment, timeout=_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"did not end within {_LIMIT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise PeerFailed(lines[-1])
    # Some peers write to the process's own output past Python: the answer is the last object.
    return json.loads(done.stdout[done.stdout.rindex('{"seconds"') :])


def _environment(name: str) -> Path:
    folder = _HOME / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.exists():
        return python
    wanted = json.loads((_HERE / "requirements.json").read_text())[name]
    alone = ["--no-deps"] if name in _ON_OUR_PACKAGES else []
    print(f"installing {', '.join(wanted)} into an environment of its own", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *alone, *wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            raise PeerFailed(f"cannot be installed: {lines[-1]}")
    if name in _ON_OUR_PACKAGES:
        (theirs,) = folder.glob("lib/python*/site-packages")
        (theirs / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    stamp.touch()
    return python

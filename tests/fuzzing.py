"""Runs many small cases of bad input in a child process that is watched.

Every case must end with an answer or one CoembedError, within its time; the child's memory and what
it wrote outside its folder are looked at in the end.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from coembed.errors import CoembedError
from coembed.files import sha256_tree

CASE_LIMIT_S = 20
# Half of this is torch-free Python with pyarrow and DuckDB at rest.
MAX_RSS_BYTES = 1_000_000_000


class TooSlow(BaseException):
    """A case ran beyond its time. No Exception, so that nothing handles it on the way."""


@dataclass(frozen=True)
class Outcome:
    """What a run of many cases came to: how often each answer came, and what the largest of its
    processes took."""

    answers: Counter[str]
    max_rss_bytes: int
    slowest_s: float


def run_watched(
    module: str,
    numbers: Iterable[int],
    folder: Path,
    *,
    timeout_s: float,
    case_limit_s: int = CASE_LIMIT_S,
) -> Outcome:
    """Run `case(number, folder)` of the test module `module` for all `numbers` in one child."""
    folder.mkdir(parents=True, exist_ok=True)
    canary = folder.parent / "canary"
    canary.mkdir(exist_ok=True)
    (canary / "secret.jpg").write_bytes(b"\xff\xd8\xff not to be read")
    (canary / "secret.txt").write_text("not to be read, not to be written")
    before = sha256_tree(canary), sorted(folder.parent.iterdir())
    report = folder / "report.json"
    here = Path(__file__).parent
    child = subprocess.run(
        [
            sys.executable, "-c", _CHILD, module, str(folder), json.dumps(list(numbers)),
            str(case_limit_s),
        ],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here / 'integration'}"},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert child.returncode == 0, f"{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
    assert (sha256_tree(canary), sorted(folder.parent.iterdir())) == before
    told = json.loads(report.read_text())
    assert not told["failures"], "\n".join(f[:1500] for f in told["failures"][:5])
    return Outcome(Counter(told["answers"]), told["max_rss_bytes"], told["slowest_s"])


_CHILD = """
import importlib, json, sys
from pathlib import Path
from fuzzing import run_here
if __name__ == "__main__":
    module, folder, numbers, limit = sys.argv[1:]
    case = importlib.import_module(module).case
    run_here(case, json.loads(numbers), Path(folder), int(limit))
"""


def run_here(
    case: Callable[[int, Path], str], numbers: list[int], folder: Path, limit_s: int
) -> None:
    """Run the cases one after the other, and write what they came to."""
    signal.signal(signal.SIGALRM, _too_slow)
    answers: Counter[str] = Counter()
    failures: list[str] = []
    slowest_s = 0.0
    for number in numbers:
        start = time.monotonic()
        signal.alarm(limit_s)
        try:
            answers[case(number, folder / f"{number}")] += 1
        except CoembedError as error:
            answers[_kind(error)] += 1
            if problem := _unclear(error):
                failures.append(f"case {number}: {problem}: {error}")
        except (Exception, TooSlow):
            failures.append(f"case {number}:\n{traceback.format_exc(limit=-6)[-3000:]}")
        finally:
            signal.alarm(0)
        slowest_s = max(slowest_s, time.monotonic() - start)
    rss = 1024 * max(_own_peak_kib(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    told = {
        "answers": answers,
        "failures": failures,
        "max_rss_bytes": rss,
        "slowest_s": slowest_s,
    }
    (folder / "report.json").write_text(json.dumps(told))


def _own_peak_kib() -> int:
    # Not ru_maxrss: that one begins with what the process was that started this one.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _too_slow(_: int, __: FrameType | None) -> None:
    raise TooSlow


def _kind(error: CoembedError) -> str:
    return type(error).__name__


def _unclear(error: CoembedError) -> str | None:
    """What a person could not read in an error."""
    text = str(error)
    if not text.strip():
        return "says nothing"
    if len(text) > 6000:
        return f"has {len(text)} characters"
    if any(not c.isprintable() and c != "\n" for c in text):
        return "has characters that a terminal would obey"
    return None

"""What one call costs a process: time, processor time, and memory on top of what was held before.

To be asked once in a process, after a small call that brings up threads, code and workspaces.
Needs Linux.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Seconds, processor seconds, and the peak of memory less what was held before, in MB."""

    wall_s: float
    cpu_s: float
    extra_mb: float


def cost(run: Callable[[], T]) -> tuple[T, Cost]:
    """The answer of `run` and what it cost."""
    # The peak begins at what is held now: the imports needed more.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_mb("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    answer = run()
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    return answer, Cost(wall_s, cpu_s, _memory_mb("VmHWM") - before)


def _memory_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6

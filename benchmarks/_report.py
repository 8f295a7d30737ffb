"""What every benchmark says at its end: a table for a person, then one line of JSON.

The JSON also goes to `benchmarks/results/<name>.json`. It names the kind of machine, never the
machine itself, and holds no times of day and no paths.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coembed.files import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The kind of machine: processor, usable cores, memory, GPU, and how busy it was."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_gib": round(memory / 2**30),
        "gpu": _gpu(),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def report(
    name: str,
    *,
    question: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    ratios: Mapping[str, float],
    counts: Mapping[str, Any],
    packages: Sequence[str],
    save: bool = True,
) -> None:
    """Print the table and, last, the JSON line; with `save`, write it to the results as well.

    `question` is the one question that the benchmark answers, `ratios` its answer (better is
    higher), `counts` how much was done, `packages` whose versions matter.
    """
    table = Table(title=question)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110).print(table)
    result = {
        "benchmark": name,
        "question": question,
        "ratios": {key: round(value, 3) for key, value in ratios.items()},
        "counts": dict(counts),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
    }
    if save:
        RESULTS.mkdir(exist_ok=True)
        write_json(RESULTS / f"{name}.json", result)
    print(json.dumps(result, sort_keys=True), flush=True)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of neighbours in time: what slows the machine down slows both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # only asked where the benchmark itself uses it
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())

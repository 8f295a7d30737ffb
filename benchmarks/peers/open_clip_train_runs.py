"""open_clip's own trainer, `open_clip_train.main`, run as it is, once for each list of arguments.

    python open_clip_train_runs.py MODEL RUNS

MODEL is the JSON of an architecture, known to the trainer by the file's name without its ending.
RUNS is JSON: a list of {"arguments": [...], "warm_steps": N}. Prints JSON: seconds in all, and for
each run its samples/s from step `warm_steps` to the last, by when the trainer's log lines come
(nothing of it is patched), or null and what went wrong. All runs are one epoch long.
"""

import contextlib
import gc
import json
import logging
import re
import sys
import time
from pathlib import Path

import open_clip
from open_clip_train.main import main

_LINE = re.compile(r"Train Epoch: 0 \[\s*(\d+)/")


class Clock(logging.Handler):
    """When the trainer said how many samples it had seen."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[int, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := _LINE.match(record.getMessage()):
            self.marks.append((int(found[1]), time.perf_counter()))

    def rate(self, warm_samples: int) -> float:
        """Samples a second after the first `warm_samples`."""
        first = next((mark for mark in self.marks if mark[0] > warm_samples), None)
        last = self.marks[-1] if self.marks else None
        if first is None or last is None or first == last:
            raise RuntimeError("the run was too short to have a rate")
        return (last[0] - first[0]) / (last[1] - first[1])


def measure(arguments: list[str], warm_steps: int) -> float:
    """Samples a second of one run."""
    batch_size = int(arguments[arguments.index("--batch-size") + 1])
    accumulated = int(arguments[arguments.index("--accum-freq") + 1])
    clock = Clock()
    logging.root.addHandler(clock)
    handlers = list(logging.root.handlers)
    try:
        if main(arguments):
            raise RuntimeError("the trainer refused its arguments")
        return clock.rate(warm_steps * batch_size * accumulated)
    finally:
        # The trainer adds its own at every run.
        for handler in set(logging.root.handlers) - set(handlers) | {clock}:
            logging.root.removeHandler(handler)
        gc.collect()  # the loader's workers end with the loader


if __name__ == "__main__":
    model = Path(sys.argv[1])
    open_clip.add_model_config(model)
    if model.stem not in open_clip.list_models():
        raise SystemExit(f"open_clip does not take the architecture {model.name}")
    begun = time.perf_counter()
    results: list[dict[str, object]] = []
    with contextlib.redirect_stdout(sys.stderr):
        for run in json.loads(Path(sys.argv[2]).read_text()):
            try:
                rate = measure(run["arguments"], run["warm_steps"])
                results.append({"samples_per_s": rate})
            except Exception as error:  # the other runs still count
                results.append({"samples_per_s": None, "error": f"{type(error).__name__}: {error}"})
    print(json.dumps({"seconds": time.perf_counter() - begun, "runs": results}))

"""What training does on a GPU: speed, the largest batch, exact resume, the distributed code.

One run, inside ten minutes on an H100 (`--minutes`). It makes its own data: 256 px JPEGs in shards.
Each section runs in a process of its own with a time budget, so that one that fails or hangs costs
no other; what a section had found until then is kept, and the results are written after each.

    python benchmarks/gpu.py [--quick] [--minutes N] [--out FILE]

Without a CUDA device, and with --quick, the same sections run on small models and nothing is
written but what --out names: it tries out this script, not the machine.

It runs on a bare machine too: with `src` on PYTHONPATH, coembed itself need not be installed. It
takes torch 2.11 or newer, torchvision, timm, open_clip_torch with ftfy and regex, pyarrow,
pydantic, pyyaml, rich, jaxtyping, safetensors, simplejpeg, pillow and soundfile, and none of the
services' packages (Prefect, MLflow, DVC, Qdrant, FastAPI) nor DuckDB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _report import RESULTS, machine
from _training_pairs import write_pairs
from _training_runs import Length, Setup, bare, ours, run_stage
from safetensors.torch import load_file

from coembed.files import sha256_file, write_json
from coembed.models.build import build_model
from coembed.pairs.shards import read_samples
from coembed.stages import train as stage
from coembed.training import device as training_device
from coembed.training.distributed import torchrun_place

# Forward and backward of one image and one text of 77 tokens, GFLOP (FACTS.md); the text tower's
# part is 6 · parameters · tokens of 12 layers of width 512 and their attention.
GFLOP = {"ViT-B-32": 44.1, "ViT-B-16": 123.0}
TEXT_GFLOP = 17.8
# Dense bf16 without sparsity, H100 SXM data sheet. A card that is not in here has no MFU.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0}
GOALS = {"ViT-B-32": 5600, "ViT-B-16": 3200}
JPEG_PX = (341, 341)  # wide; a quarter less high, so that the shorter side has 256

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
_WHOLE = "whole"  # the run that is not killed
Found = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Where the data are, and how large everything is."""

    home: Path
    quick: bool

    @property
    def num_items(self) -> int:
        return 128 if self.quick else 32768

    def setup(self, name: str, batch_size: int, length: Length, **train: Any) -> Setup:
        """The open_clip model `name` in the device's own precision, from decoded pictures."""
        plain = {"batch_size": batch_size, "cache": {"mode": "decoded"}, "precision": "auto"}
        if self.quick:
            plain |= {"batch_size": max(8, batch_size // 64), "device": "cpu", "num_threads": 1}
            length = Length(2, 2)
        model = TINY if self.quick else name
        return Setup(model, {**plain, **train}, self.home / "pairs", length)

    def place(self, name: str) -> Path:
        """A folder for a run, with the decoded pictures of the others."""
        place = self.home / name
        (place / "runs").mkdir(parents=True, exist_ok=True)
        cache, shared = place / "runs" / "cache", self.home / "cache"
        shared.mkdir(exist_ok=True)
        if not cache.exists():
            cache.symlink_to(shared, target_is_directory=True)
        return place


# --- sections


def throughput(bench: Bench) -> Found:
    """Samples a second from JPEG shards beside the bare loop, MFU, and the wait for data.

    The bare loop is that of each model's first variant, compiled.
    """
    length = Length(warm_steps=15, steps=15)
    text_length = _text_length(bench)
    yield "tokens_a_caption", text_length
    variants: list[tuple[str, int, str, dict[str, Any]]] = [
        ("ViT-B-32", 1024, "decoded_compiled", {"compile": True}),
        ("ViT-B-16", 512, "decoded_compiled", {"compile": True}),
        ("ViT-B-32", 1024, "streamed_compiled", {"compile": True, "cache": {"mode": "shards"}}),
        ("ViT-B-32", 1024, "decoded", {}),
    ]
    if bench.quick:
        # Compiling takes a processor longer than all the rest.
        variants = [(*v[:3], {**v[3], "compile": False}) for v in variants]
    limits: dict[str, float] = {}
    for name, batch_size, how, train in variants:
        setup = bench.setup(name, batch_size, length, **train)
        try:
            if name not in limits:
                limits[name] = bare(setup).rate
                _tidy()
            _reset_peak()
            mine = ours(setup, bench.place("throughput"))
        except Exception as error:  # the others still count
            yield f"{name}_{how}", {"error": _first_line(error)}
            continue
        finally:
            _tidy()
        found = {
            "batch_size": setup.settings().batch_size,
            "samples_per_s": round(mine.rate, 1),
            "bare_samples_per_s": round(limits[name], 1),
            "over_bare": round(mine.rate / limits[name], 3),
            "wait_share": round(mine.wait or 0.0, 4),
            "peak_gib": _peak_gib(),
            "goal_samples_per_s": GOALS[name],
        }
        yield f"{name}_{how}", found | _utilisation(name, mine.rate, text_length)


def losses(bench: Bench) -> Found:
    """Time and memory of the softmax loss, forward and backward, beside open_clip's, which holds
    the matrix of similarities; each doubled until it does not fit."""
    from open_clip.loss import ClipLoss

    from coembed.losses.softmax import Softmax

    device = "cuda" if torch.cuda.is_available() and not bench.quick else "cpu"
    tiled, dense = Softmax(), ClipLoss()

    def ours_of(za: torch.Tensor, zb: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return tiled(za, zb, logit_scale=log_scale)

    def theirs_of(za: torch.Tensor, zb: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return dense(za, zb, log_scale.exp())

    first, last = (64, 128) if bench.quick else (8192, 131072)
    for name, loss_of in (("ours", ours_of), ("open_clip", theirs_of)):
        num = first
        while num <= last:
            try:
                seconds, extra = _time_loss(loss_of, num, device)
            except torch.OutOfMemoryError:
                yield f"{name}_{num}", "out of memory"
                break
            finally:
                _tidy()
            extra_mib = None if device == "cpu" else round(extra / 2**20)
            yield f"{name}_{num}", {"seconds": round(seconds, 4), "extra_mib": extra_mib}
            num *= 2


def _time_loss(loss_of: Callable[..., torch.Tensor], num: int, device: str) -> tuple[float, int]:
    """Seconds of forward and backward, and the bytes that they need at their peak."""
    za, zb = (
        torch.nn.functional.normalize(torch.randn(num, 512, device=device), dim=-1).requires_grad_()
        for _ in range(2)
    )
    log_scale = torch.tensor(2.66, device=device, requires_grad=True)
    loss_of(za, zb, log_scale).backward()  # the first call loads kernels
    _reset_peak()
    before, start = _allocated(), time.perf_counter()
    loss_of(za, zb, log_scale).backward()
    _wait()
    return time.perf_counter() - start, _peak() - before


def largest_batch(bench: Bench) -> Found:
    """The largest batch of ViT-B/32, doubled until it does not fit: whole, and in micro-batches
    with gradient caching. All pairs there are is the end of it."""
    ways: list[tuple[str, int, dict[str, Any]]] = [
        ("gradient_caching", 16384, {"micro_batch_size": 1024}),
        ("whole", 2048, {}),
    ]
    for way, first, train in ways:
        if bench.quick:
            first, train = 8, {"micro_batch_size": 4} if train else {}
        largest, size, why = 0, first, "all pairs"
        while size <= bench.num_items:
            setup = bench.setup("ViT-B-32", size, Length(1, 1), **train)
            setup = replace(setup, train={**setup.train, "batch_size": size}, length=Length(1, 1))
            _reset_peak()
            try:
                rate = ours(setup, bench.place("largest")).rate
            except torch.OutOfMemoryError:
                why = "memory"
                break
            finally:
                _tidy()
            yield f"{way}_{size}", {"samples_per_s": round(rate, 1), "peak_gib": _peak_gib()}
            largest = size
            if bench.quick and size > first:
                why = "a quick run"
                break
            size *= 2
        yield f"{way}_largest", {"batch_size": largest, "ended_by": why}


def resume(bench: Bench) -> Found:
    """Whether a run that is killed and started again ends with the bits of one that is not."""
    setup = _short_run(bench)
    whole = run_stage(setup, bench.place(_WHOLE))
    yield "steps", setup.settings().steps
    place = bench.place("killed")
    child = subprocess.Popen(
        [*_own_command(bench, "_short_run"), "--place", str(place)], stdout=subprocess.DEVNULL
    )
    try:
        first = _first_checkpoint(place, child)
    finally:
        child.kill()
    yield "killed_after_checkpoint", first
    yield "exit_code", child.wait()
    result = stage.run(
        setup.config(), root=place, pairs=setup.pairs, out=place / "model", runs=place / "runs"
    )
    yield "taken_up", dict(result.rows)["steps"]
    again = next((place / "runs" / "train").glob("*/log.jsonl")).parent
    yield "same_weights", _same(bench.place(_WHOLE), place, "model/model.safetensors")
    yield "same_history", _same(bench.place(_WHOLE), place, "model/history.csv")
    last = [sorted((run / "checkpoints").glob("step-*.safetensors"))[-1] for run in (whole, again)]
    yield "same_weights_and_moments", sha256_file(last[0]) == sha256_file(last[1])


def one_rank(bench: Bench) -> Found:
    """The distributed code with a world of one process: same bits as without it; and sharded by
    FSDP2, whose sums are rounded otherwise. In fp32, where that says how far they are apart: bf16's
    rounding, of gradients near zero, becomes whole steps of Adam's."""
    setup = _short_run(bench)
    setup = replace(setup, train={**setup.train, "precision": "fp32"})
    plain = bench.place("one-plain") / "model"
    run_stage(setup, plain.parent)
    place_of_one = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    for sharding in ("none", "fsdp"):
        each = replace(setup, train={**setup.train, "distributed": {"sharding": sharding}})
        place = bench.place(f"rank-{sharding}")
        os.environ |= {**place_of_one, "MASTER_PORT": str(_free_port())}
        start = time.perf_counter()
        try:
            spied = training_device.shard
            with patch.object(training_device, "shard", wraps=spied) as sharded:
                stage.run(
                    each.config(), root=place, pairs=each.pairs, out=place / "model",
                    runs=place / "runs", place=torchrun_place(os.environ),
                )  # fmt: skip
        except Exception as error:  # the other one still counts
            yield sharding, {"error": _first_line(error)}
            continue
        found = {
            "seconds": round(time.perf_counter() - start, 1),
            "sharded": sharded.called,
            "same_weights": _same(plain, place / "model", "model.safetensors"),
            "largest_difference": _largest_difference(plain, place / "model"),
        }
        yield sharding, found


SECTIONS: dict[str, tuple[Callable[[Bench], Found], float]] = {
    # With the minutes that each may take at most.
    "throughput": (throughput, 5.0),
    "resume": (resume, 1.5),
    "one_rank": (one_rank, 1.5),
    "losses": (losses, 0.5),
    "largest_batch": (largest_batch, 2.0),
}


# --- their parts


def _short_run(bench: Bench) -> Setup:
    """A run that lasts long enough to be killed."""
    train = {"checkpoint": {"every_steps": 4, "every_minutes": None}, "log_every": 1}
    length = Length(1, 39) if bench.quick else Length(1, 11)
    return replace(bench.setup("ViT-B-32", 256, length, **train), length=length)


def _first_checkpoint(place: Path, child: subprocess.Popen[bytes]) -> str:
    """Wait for a checkpoint of the child's; its name."""
    while child.poll() is None:
        found = sorted(place.glob("runs/train/*/checkpoints/step-*.json"))
        if found:
            return found[0].stem
        time.sleep(0.005)
    raise RuntimeError(f"the run that was to be killed ended by itself with {child.returncode}")


def _own_command(bench: Bench, section: str) -> list[str]:
    quick = ["--quick"] if bench.quick else []
    own = str(Path(__file__).resolve())
    return [sys.executable, own, "--section", section, "--home", str(bench.home), *quick]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _same(a: Path, b: Path, name: str) -> bool:
    return sha256_file(a / name) == sha256_file(b / name)


def _largest_difference(a: Path, b: Path) -> float:
    """Of any two weights of two model directories."""
    ours, theirs = (load_file(model / "model.safetensors") for model in (a, b))
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def _text_length(bench: Bench) -> int:
    """Tokens that are left of a large batch's captions when they are trimmed, as compiled towers
    have it."""
    setup = bench.setup("ViT-B-32", 1024, Length(1, 1))
    model, spec = build_model(setup.model(), seed=0)
    num = setup.settings().batch_size
    captions = [s.captions[0] for s in islice(read_samples(setup.pairs, "train"), num)]
    return int(model.trim("text", spec.loader("text").load(captions), multiple=16).shape[1])


def _utilisation(name: str, rate: float, text_length: int) -> dict[str, Any]:
    """MFU by FACTS.md's figures, of the padded model and of what is left when texts are trimmed."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((tflops for key, tflops in PEAK_TFLOPS.items() if key in card), None)
    if peak is None:
        return {"mfu_of_989_tflops": None}
    trimmed = GFLOP[name] - TEXT_GFLOP * (1 - text_length / 77)
    return {
        f"mfu_of_{peak:.0f}_tflops": round(rate * GFLOP[name] / (1000 * peak), 4),
        "mfu_of_trimmed_texts": round(rate * trimmed / (1000 * peak), 4),
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _tidy() -> None:
    torch.compiler.reset()  # each model is compiled anew, and there is a limit to how often
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset_peak() -> None:
    _wait()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _peak_gib() -> float | None:
    return round(_peak() / 2**30, 2) if torch.cuda.is_available() else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# --- running them


def run_section(bench: Bench, name: str, limit_s: float) -> dict[str, Any]:
    """What a section found in a process of its own, and how it ended if not well."""
    start = time.perf_counter()
    child = subprocess.Popen(
        _own_command(bench, name), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = child.communicate(timeout=limit_s)
        ended = None if child.returncode == 0 else f"ended with {child.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # and all that it has started
        output, _ = child.communicate()
        ended = f"stopped after {limit_s:.0f} s"
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith(_FOUND):
            key, value = json.loads(line.removeprefix(_FOUND))
            found[key] = value
    if ended is not None and "error" not in found:
        found["error"] = ended
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


_FOUND = "found "


def be_section(bench: Bench, name: str) -> int:
    """Run a section in this process; each find is a line for the parent."""
    try:
        for found in SECTIONS[name][0](bench):
            print(_FOUND + json.dumps(found), flush=True)
    except Exception as error:
        print(_FOUND + json.dumps(("error", _first_line(error))), flush=True)
        raise
    return 0


def main() -> None:
    """Make the data, run the sections, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models on the CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    parser.add_argument("--out", type=Path, help="where to write the results")
    parser.add_argument("--section", help="run this one in this process, on the data under --home")
    parser.add_argument("--home", type=Path, help="with --section")
    parser.add_argument("--place", type=Path, help="of the run that is going to be killed")
    options = parser.parse_args()
    start = time.perf_counter()
    quick = options.quick or not torch.cuda.is_available()
    if options.section is not None:
        bench = Bench(options.home, quick)
        # Decoding every picture once more, to note what each model was trained on, is none of what
        # is measured, and takes longer than many of these runs.
        with patch.object(stage, "write_trained_on", return_value=""):
            if options.section == "_short_run":
                run_stage(_short_run(bench), options.place)
            else:
                be_section(bench, options.section)
        return
    out = options.out or (None if quick else RESULTS / "gpu.json")
    results: dict[str, Any] = {
        "benchmark": "gpu",
        "question": "speed, largest batch, exact resume and distributed code on one GPU",
        "quick": quick,
        "machine": machine(),
        "versions": {name: _version(name) for name in ("torch", "timm", "open_clip_torch")},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), quick)
        write_pairs(bench.home / "pairs", bench.num_items, JPEG_PX, long_every=64)
        results["data"] = {"items": bench.num_items, "seconds": round(time.perf_counter() - start)}
        for name, (_, minutes) in SECTIONS.items():
            left = 60 * options.minutes - (time.perf_counter() - start)
            if left < 15:
                results[name] = {"error": "no time was left for it"}
            else:
                # Small models on a processor that others use as well: time is not what is measured.
                patience = 3 if quick else 1
                results[name] = run_section(bench, name, min(left, 60 * minutes * patience))
            print(name, json.dumps(results[name], indent=1), flush=True)
            if out is not None:
                write_json(out, results)
    print(json.dumps(results, sort_keys=True), flush=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a copy on the path, as carried wheels are
        return None


if __name__ == "__main__":
    main()

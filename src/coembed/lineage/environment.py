"""What a model was trained on: packages, Python, processor, GPU. What may change a weight's bits.

The record cannot lie in the model's folder, whose bytes are the same wherever it was trained. It
lies under `runs/environments/`, by the SHA-256 of the weights, from where `register` logs it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

from coembed.errors import DataError
from coembed.files import read_json, write_json
from coembed.models.checkpoint import read_card

FILE = "environment.json"
_FOLDER = "environments"
_CPUINFO = Path("/proc/cpuinfo")
# The instruction sets between which torch, oneDNN and MKL choose their kernels.
_FLAGS = (
    "avx", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "f16c", "fma", "asimd", "asimdhp", "bf16",
    "i8mm", "sve", "sve2",
)  # fmt: skip
# Settings of those libraries that choose kernels or the number of threads.
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip

What = Literal["package", "python", "system", "hardware", "setting"]


@dataclass(frozen=True, slots=True)
class Environment:
    """One machine with one Python.

    describes: "training", or "registration" where the model was trained elsewhere.
    device: what trained, "cpu" or "cuda"; "" where that is not known.
    kernels: the instruction set whose kernels torch takes on the CPU.
    num_cores: cores that the process may use. num_threads: what torch would use by itself;
    `train.num_threads` in params.yaml is the training's own.
    packages: name → version, local builds ("+cu130") included.
    """

    describes: str
    device: str
    python: str
    system: str
    processor: str
    flags: tuple[str, ...]
    kernels: str
    num_cores: int
    num_threads: int
    gpus: tuple[str, ...]
    cuda: str | None
    variables: Mapping[str, str]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """`name` was `then` and is `now`; None where there was, or is, no such thing."""

    what: What
    name: str
    then: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.then or 'not there'} → {self.now or 'not there'}"


def record(describes: str, device: str = "") -> Environment:
    """This process's environment, now."""
    import torch

    cuda = torch.cuda.is_available()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor, flags = _processor()
    return Environment(
        describes=describes,
        device=device,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=platform.platform(),
        processor=processor,
        flags=flags,
        kernels=torch.backends.cpu.get_cpu_capability(),
        num_cores=usable or 1,
        num_threads=torch.get_num_threads(),
        gpus=tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
        if cuda
        else (),
        cuda=torch.version.cuda if cuda else None,
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        packages=_packages(),
    )


def record_path(runs: Path, weights_sha256: str) -> Path:
    """Where the record of what made these weights lies, or would lie."""
    return runs / _FOLDER / weights_sha256[:16] / FILE


def leave_record(runs: Path, weights_sha256: str, environment: Environment) -> Path:
    """Write the record of what made these weights, and say where."""
    path = record_path(runs, weights_sha256)
    write_json(path, asdict(environment))
    return path


def record_of(runs: Path, model: Path) -> Path:
    """The file that says what the model in `model` was trained on.

    Where it was not trained with this `runs` folder (another machine's DVC cache brought it),
    nobody here knows: the record is then of this machine, and says so.
    """
    weights = read_card(model).weights_sha256
    path = record_path(runs, weights)
    if path.exists() and read_record(path).describes == "training":
        return path
    return leave_record(runs, weights, record("registration"))


def read_record(path: Path) -> Environment:
    """Read a record's file. Raises DataError."""
    return parse_record(read_json(path, what="record of the environment"))


def parse_record(values: Any) -> Environment:
    """A record from its JSON. What an older one does not say stays empty. Raises DataError."""
    kinds: dict[str, Any] = {"packages": dict, "variables": dict, "flags": list, "gpus": list}
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name, kind()), kind) for name, kind in kinds.items()
    ):
        raise DataError("the record of the environment is not one that coembed wrote")
    empty: dict[str, Any] = {"num_cores": 0, "num_threads": 0, "cuda": None}
    known = {
        field.name: values.get(field.name, empty.get(field.name, kinds.get(field.name, str)()))
        for field in fields(Environment)
    }
    return Environment(**{**known, "flags": tuple(known["flags"]), "gpus": tuple(known["gpus"])})


def differences(then: Environment, now: Environment) -> tuple[Difference, ...]:
    """What is not as it was, packages first."""
    return tuple(_differing(then, now))


def _differing(then: Environment, now: Environment) -> Iterator[Difference]:
    tables: tuple[tuple[What, Mapping[str, str], Mapping[str, str]], ...] = (
        ("package", then.packages, now.packages),
        ("setting", then.variables, now.variables),
    )
    for what, was, became in tables:
        for key in sorted(was.keys() | became.keys()):
            if was.get(key) != became.get(key):
                yield Difference(what, key, was.get(key), became.get(key))
    singles: tuple[tuple[What, str, str], ...] = (
        ("python", "python", "Python"),
        ("system", "system", "system"),
        ("hardware", "processor", "processor"),
        ("hardware", "flags", "instruction sets"),
        ("hardware", "kernels", "CPU kernels"),
        ("hardware", "num_cores", "cores"),
        ("hardware", "num_threads", "threads of torch"),
        ("hardware", "gpus", "GPUs"),
        ("hardware", "cuda", "CUDA"),
        ("hardware", "device", "trained on"),
    )
    for what, field, name in singles:
        before, after = getattr(then, field), getattr(now, field)
        if before != after and not (field == "device" and "" in (before, after)):
            yield Difference(what, name, _shown(before), _shown(after))


def _packages() -> dict[str, str]:
    """Name → version; of several of one name the one that is imported, which is found first."""
    found: dict[str, str] = {}
    for package in distributions():
        if package.name:  # what a broken installation left behind has none
            found.setdefault(package.name, package.version)
    return dict(sorted(found.items()))


def _shown(value: Any) -> str | None:
    if isinstance(value, tuple):
        return ", ".join(value) or None
    return None if value in (None, "", 0) else str(value)


def _processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name and those of its instruction sets that matter, from the kernel."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), ()
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    name = first.get("model name") or platform.machine()
    # A cloud's "Xeon Processor" may be any: the numbers tell which.
    numbers = [
        f"{label} {first[key]}"
        for label, key in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
        if key in first
    ]
    present = set((first.get("flags") or first.get("Features") or "").split())
    shown = f"{name} ({', '.join(numbers)})" if numbers else name
    return shown, tuple(flag for flag in _FLAGS if flag in present)

"""The record of a machine: what it holds, where it lies, and what differs between two."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from training_pairs import SMALL_MODEL

from coembed.errors import DataError
from coembed.files import write_json
from coembed.lineage import environment
from coembed.lineage.environment import differences, leave_record, read_record, record, record_of
from coembed.models.build import build_model
from coembed.models.checkpoint import read_card, save_model
from coembed.models.settings import ModelSettings


def test_a_record_says_what_is_installed_and_survives_its_file(tmp_path: Path) -> None:
    now = record("training", "cpu")
    assert now.packages["torch"] == version("torch")
    assert list(now.packages) == sorted(now.packages)
    assert now.python.startswith("CPython 3.")
    assert now.num_cores == len(os.sched_getaffinity(0))
    assert now.processor and now.kernels
    path = leave_record(tmp_path, "ab" * 32, now)
    assert path == tmp_path / "environments" / ("ab" * 8) / "environment.json"
    assert read_record(path) == now
    assert differences(now, read_record(path)) == ()


def test_the_processor_is_told_apart_by_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "_CPUINFO", cpuinfo)
    cpuinfo.write_text(
        "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A Processor\n"
        "stepping\t: 8\nflags\t\t: fpu avx2 amx_bf16 avx512f sse\n\nprocessor\t: 1\nmodel\t: 9\n"
    )
    told = record("training")
    assert told.processor == "A Processor (family 6, model 143, stepping 8)"
    assert told.flags == ("avx2", "avx512f", "amx_bf16")
    cpuinfo.unlink()
    assert record("training").flags == ()


def test_what_differs_is_named_and_nothing_else() -> None:
    then = record("training", "cpu")
    packages = {**then.packages, "torch": "0.9+cu1", "gone": "1.0"}
    del packages["numpy"]
    other = replace(
        then, packages=packages, python="CPython 3.10.1", num_cores=then.num_cores + 2,
        gpus=("NVIDIA H100",), device="cuda", variables={"MKL_CBWR": "AVX2"},
        describes="registration",
    )  # fmt: skip
    found = {str(one) for one in differences(other, replace(then, variables={}))}
    assert found == {
        "gone 1.0 → not there",
        f"numpy not there → {version('numpy')}",
        f"torch 0.9+cu1 → {version('torch')}",
        "MKL_CBWR AVX2 → not there",
        f"Python CPython 3.10.1 → {then.python}",
        f"cores {then.num_cores + 2} → {then.num_cores}",
        "GPUs NVIDIA H100 → not there",
        "trained on cuda → cpu",
    }
    # Where the device was not recorded, nothing is claimed about it.
    assert differences(replace(then, device=""), then) == ()


def test_a_model_trained_elsewhere_gets_a_record_that_says_so(tmp_path: Path) -> None:
    folder, runs = tmp_path / "model", tmp_path / "runs"
    folder.mkdir()
    model, spec = build_model(ModelSettings.model_validate(SMALL_MODEL), seed=1)
    save_model(folder, model, spec, {})
    path = record_of(runs, folder)
    assert read_record(path).describes == "registration"
    trained = record("training", "cpu")
    assert leave_record(runs, read_card(folder).weights_sha256, trained) == path
    assert record_of(runs, folder) == path
    assert read_record(path) == trained


def test_an_older_record_says_less_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    write_json(path, {"packages": {"torch": "2.0"}, "unheard_of": 1})
    older = read_record(path)
    assert older.packages == {"torch": "2.0"} and older.gpus == () and older.python == ""
    for strange in ([], {"packages": ["torch"]}, {"flags": "avx2"}):
        path.write_text(json.dumps(strange))
        with pytest.raises(DataError, match="not one that coembed wrote"):
            read_record(path)

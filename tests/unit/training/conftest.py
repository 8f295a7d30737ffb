"""What the tests of training share: real pairs, a run, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_pairs import make_pairs
from training_runs import Run, settings_of


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors are quicker on one thread, and other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 train and 16 val items, with two captions each."""
    return make_pairs(tmp_path_factory.mktemp("training") / "pairs")


@pytest.fixture
def run(pairs: Path, tmp_path: Path) -> Run:
    """A run of six steps."""
    return Run(pairs, tmp_path, settings_of())

"""Tuning: what is measured, what is recommended, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import (
    DIM,
    NAME,
    NUM,
    SETTINGS,
    build_with,
    embedded_services,
    make_points,
    make_queries,
    unit,
)  # fmt: skip

from coembed.index.base import Point, SearchParams, VectorIndex
from coembed.index.exact import ExactIndex
from coembed.index.opening import open_index
from coembed.index.settings import IndexSettings
from coembed.index.tune import Tuned, sweep, tune
from coembed.index.verify import in_batches

Open = Callable[[IndexSettings], AbstractContextManager[VectorIndex]]


def tune_with(open_: Open, points: list[Point] | None = None, **changes: Any) -> Tuned:
    chosen = make_points() if points is None else points
    arguments: dict[str, Any] = {
        "vector_name": "item@abababab", "dim": len(chosen[0].vector),
        "columns": {"price": "number"}, "num_items": len(chosen), "settings": SETTINGS,
        "queries": make_queries(chosen) if points is None else (),
        "vectors": lambda: in_batches(chosen), "holder": "here",
    }  # fmt: skip
    return tune(open_, lambda: iter(chosen), **(arguments | changes))


class Coarse(ExactIndex):
    """Finds as a quantised graph does: the less, the narrower the walk; `searched` is how."""

    def __init__(self) -> None:
        super().__init__()
        self.quantization = "none"
        self.searched: list[tuple[str, SearchParams | None]] = []

    def query(self, *arguments: Any, search: SearchParams | None = None, **changes: Any) -> Any:
        self.searched.append((self.quantization, search))
        hits = super().query(*arguments, **changes)
        assert search is not None and search.ef is not None
        if self.quantization == "binary":
            return hits[:5]
        if self.quantization == "int8" and (search.oversampling or 1) < 2:
            return hits[:8]
        return hits if search.ef >= 64 else hits[:9]

    def opened(self, settings: IndexSettings) -> AbstractContextManager[VectorIndex]:
        self.quantization = settings.quantization
        return nullcontext(self)


def test_every_setting_is_measured_and_the_smallest_that_finds_enough_recommended() -> None:
    index = Coarse()
    build_with(ExactIndex())  # nothing to do with it
    tuned = tune_with(index.opened)
    assert (tuned.num_items, tuned.num_queries) == (NUM, NUM + 10)
    found = {
        (one.quantization, one.ef, one.oversampling): one.recall_by_modality
        for one in tuned.settings
    }
    assert len(found) == len(tuned.settings) == 4 + 12 + 12
    assert found["none", 32, None] == {"item": pytest.approx(0.9), "text": pytest.approx(0.9)}
    assert found["int8", 64, 1.0]["text"] == pytest.approx(0.8)
    assert found["int8", 64, 2.0] == {"item": 1.0, "text": 1.0}
    assert found["binary", 256, 4.0]["item"] == pytest.approx(0.5)
    assert tuned.best is not None
    assert (tuned.best.quantization, tuned.best.memory_bytes) == ("int8", NUM * DIM)
    assert tuned.best.ef >= 64 and (tuned.best.oversampling or 0) >= 2
    quickest = min(
        one.p50_ms
        for one in tuned.settings
        if one.quantization == "int8" and min(one.recall_by_modality.values()) == 1.0
    )
    assert tuned.best.p50_ms == quickest
    # Scoring again is what oversampling is for.
    assert all(
        search is not None and search.rescore == (quantization != "none")
        for quantization, search in index.searched
    )


def test_where_nothing_finds_enough_nothing_is_recommended() -> None:
    class Blind(Coarse):
        def query(self, *arguments: Any, **changes: Any) -> Any:
            return super().query(*arguments, **changes)[:9]

    assert tune_with(Blind().opened).best is None


def test_nothing_that_is_there_is_touched_and_nothing_stays() -> None:
    index = Coarse()
    seen: list[list[str]] = []

    class Noting(Coarse):
        def finish(self, name: str) -> None:
            super().finish(name)
            seen.append(self.collections())

    index = Noting()
    ExactIndex.create(index, NAME, vector_name="v", dim=DIM, metadata={"a": 1}, columns={})
    index.set_alias("items", NAME)
    tune_with(index.opened)
    assert len(seen) == 3
    for names in seen:
        (temporary,) = set(names) - {NAME}
        assert temporary.startswith("items__tune__")
    assert index.collections() == [NAME]
    assert index.aliases() == {"items": NAME}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(kind: type[BaseException]) -> None:
    class Interrupted(Coarse):
        def query(self, *arguments: Any, **changes: Any) -> Any:
            if self.quantization == "int8":
                raise kind
            return super().query(*arguments, **changes)

    index = Interrupted()
    with pytest.raises(kind):
        tune_with(index.opened)
    assert index.collections() == []


def test_only_what_a_killed_process_of_this_project_left_is_swept() -> None:
    index = ExactIndex()
    now, old = "2999-01-01T00:00:00+00:00", "2001-01-01T00:00:00+00:00"
    for name, metadata in {
        "items__tune__int8_a": {"tune": "here", "since": now},
        "items__tune__int8_b": {"tune": "elsewhere", "since": now},
        "items__tune__int8_c": {"tune": "elsewhere", "since": old},
        "items__tune__int8_d": {"tune": "elsewhere"},
        "items__v2__abababab_cdcdcdcd": {"tune": "here", "since": old},
        "others__tune__int8_e": {"tune": "here", "since": old},
    }.items():
        index.create(name, vector_name="v", dim=2, metadata=metadata, columns={})
    swept = sweep(index, SETTINGS, holder="here")
    assert swept == ["items__tune__int8_a", "items__tune__int8_c", "items__tune__int8_d"]
    assert sweep(index, SETTINGS, holder="here") == []


@pytest.mark.slow
def test_on_the_embedded_engine(tmp_path: Path) -> None:
    """Real graphs, real quantisation: enough points that they are not scanned whole."""
    rng = np.random.default_rng(3)
    points = [
        Point(f"{i:064x}", unit(vector), {"path": f"{i}.jpg", "attributes": {"price": i % 7}})
        for i, vector in enumerate(rng.normal(size=(12_000, 256)))
    ]
    settings = IndexSettings(verify_sample=40)
    services = embedded_services(tmp_path)
    tuned = tune_with(lambda own: open_index(services, own), points, settings=settings)
    by = {(one.quantization, one.ef, one.oversampling): one for one in tuned.settings}

    def recall(*key: Any) -> float:
        return by[key].recall_by_modality["item"]

    # A wider walk finds more, and so does choosing among more by scoring again.
    assert recall("none", 256, None) > recall("none", 32, None)
    assert recall("int8", 256, 4.0) >= recall("int8", 32, 1.0)
    assert recall("binary", 256, 4.0) > recall("binary", 256, 1.0)
    assert recall("binary", 256, 1.0) < recall("int8", 256, 4.0)
    sizes = {one.quantization: one for one in tuned.settings}
    assert sizes["none"].memory_bytes == 4 * sizes["int8"].memory_bytes == 12_000 * 256 * 4
    assert sizes["binary"].memory_bytes * 8 == sizes["int8"].memory_bytes
    disk = {name: one.disk_bytes or 0 for name, one in sizes.items()}
    assert disk["int8"] > disk["none"] > 12_000 * 256 * 4
    with open_index(services, SETTINGS) as index:
        assert index.collections() == []


TUNER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import test_index_tune as case
from coembed.index.opening import open_index
from coembed.index import tune as tuning

def slow(*arguments, **changes):
    print("measuring", flush=True)
    time.sleep(60)

tuning._measure = slow
services = case.embedded_services(Path(sys.argv[1]))
case.tune_with(lambda settings: open_index(services, settings))
"""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_stopped_process_leaves_nothing_or_has_it_swept(
    tmp_path: Path, signal_: signal.Signals
) -> None:
    here = Path(__file__).parent
    script = TUNER.format(paths=[str(here), str(here.parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "measuring\n"
    # As a terminal does it: everything that was started gets it.
    os.killpg(process.pid, signal_)
    process.wait(timeout=240)
    services = embedded_services(tmp_path)
    with open_index(services, SETTINGS) as index:
        left = index.collections()
        assert len(left) == (0 if signal_ == signal.SIGINT else 1)
        assert sweep(index, SETTINGS, holder="elsewhere") == []
    tune_with(lambda settings: open_index(services, settings), queries=())
    with open_index(services, SETTINGS) as index:
        assert index.collections() == []


def test_the_layout_of_a_temporary_collection_is_that_of_a_release() -> None:
    asked: list[Any] = []

    class Noting(Coarse):
        def create(self, *arguments: Any, columns: Any, **changes: Any) -> bool:
            asked.append(dict(columns))
            return super().create(*arguments, columns=columns, **changes)

    tune_with(Noting().opened, settings=SETTINGS.model_copy(update={"payload_indexes": ()}))
    assert asked == [{"modality": "text"}] * 3


def test_sampled_points_of_a_modality_ask_for_themselves() -> None:
    points = [
        replace(point, payload={**point.payload, "modality": "audio" if i < 5 else "image"})
        for i, point in enumerate(make_points())
    ]
    tuned = tune_with(Coarse().opened, points)
    assert set(tuned.settings[0].recall_by_modality) == {"audio", "image"}

"""Crashes, hangs and errors in a decoder or a filter: the item goes, everything else stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from examined_pools import Examined, write_pool
from hostile_filters import settings

from coembed.curation.examination.supervise import Death, Supervised, Watch
from coembed.errors import DataError, ServiceError

NUM = 90


def _pool(folder: Path, hostile: dict[int, str], captions: dict[int, str] | None = None) -> None:
    """NUM rows; three share each file; file i begins with the word that `hostile` has for it."""
    rows = [
        {"path": f"m/{i // 3}.txt", "caption": (captions or {}).get(i, f"caption {i}")}
        for i in range(NUM)
    ]
    media = {
        f"m/{i}.txt": f"{hostile.get(i, 'fine')} text {i}".encode() for i in range((NUM + 2) // 3)
    }
    write_pool(folder, rows, media)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.curation.examination.examine.PART_ROWS", 32)


@pytest.fixture(scope="module")
def hostile_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files 1 and 20 crash, 11 (rows 33 to 35) hangs; the judging of row 50 crashes."""
    pool = tmp_path_factory.mktemp("hostile")
    _pool(pool, {1: "SEGFAULT", 20: "EXIT", 11: "SLEEP"}, {50: "SEGFAULT now", 51: "REFUSE me"})
    return pool


_SLOW = [pytest.param(num, marks=pytest.mark.slow) for num in (1, 3)]


@pytest.mark.parametrize("num_workers", [2, *_SLOW])
def test_only_what_crashes_or_hangs_is_dropped(
    hostile_pool: Path, tmp_path: Path, num_workers: int
) -> None:
    found = Examined(
        hostile_pool, tmp_path, [settings()], num_workers=num_workers, seconds_per_item=2
    )
    crashed = dict.fromkeys([3, 4, 5, 50, 60, 61, 62], "crashes_decoder")
    assert found.reasons == crashed | dict.fromkeys([33, 34, 35], "timed_out") | {51: "refused"}
    details = found.column("detail")
    assert (details[3], details[50], details[60]) == ("SIGSEGV", "SIGSEGV", "exit code 7")
    assert details[33] == "more than 2 s"
    # An item that cannot be measured is known by its bytes all the same.
    assert all(found.column("item_id")) and found.column("fault")[3] == "crashes_decoder"
    assert found.column("fault")[50] is None and found.column("byte_sum")[50] is None
    assert found.column("row") == list(range(NUM)) and found.num_advanced == NUM
    assert found.costs.num_rows == NUM
    # Every file that is well was measured as if nothing had happened.
    for row in set(range(NUM)) - set(found.reasons):
        assert found.column("byte_sum")[row] == sum(f"fine text {row // 3}".encode())
    again = Examined(
        hostile_pool, tmp_path, [settings()], num_workers=num_workers, seconds_per_item=2
    )
    assert again.table.equals(found.table)
    assert again.costs.num_reused == NUM and again.costs.num_deaths == 0


def test_a_crash_that_does_not_repeat_is_not_blamed_on_the_item(tmp_path: Path) -> None:
    _pool(tmp_path / "pool", {13: "ONCE"})
    found = Examined(tmp_path / "pool", tmp_path / "runs", [settings(notes=str(tmp_path))])
    assert found.costs.num_deaths == 1 and not found.reasons
    assert None not in found.column("byte_sum")


def test_a_crash_that_comes_later_is_not_blamed_on_whoever_is_at_work(tmp_path: Path) -> None:
    captions = dict.fromkeys(range(NUM), "word " * 150)
    _pool(tmp_path / "pool", {4: "LATER"}, captions)
    found = Examined(tmp_path / "pool", tmp_path / "runs", [settings()])
    assert not found.reasons and None not in found.column("byte_sum")


def test_a_part_of_nothing_but_crashes_is_got_through(tmp_path: Path) -> None:
    rows = [{"path": f"m/{i}.txt", "caption": "c"} for i in range(3)]
    write_pool(tmp_path / "pool", rows, {f"m/{i}.txt": b"SEGFAULT %d" % i for i in range(3)})
    found = Examined(tmp_path / "pool", tmp_path / "runs", [settings()], num_workers=2)
    assert found.reasons == dict.fromkeys(range(3), "crashes_decoder")
    assert found.costs.num_deaths == 6  # each once among others and once alone


def test_an_error_in_a_filter_names_the_row(tmp_path: Path) -> None:
    _pool(tmp_path / "pool", {7: "ERROR"})
    with pytest.raises(ZeroDivisionError, match="as asked") as caught:
        Examined(tmp_path / "pool", tmp_path / "runs", [settings()])
    assert any("pool row 22, 'm/7.txt'" in note for note in caught.value.__notes__)


# The processes by themselves.


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes a function that adds one; on some numbers it fails in another way."""

    trouble: str = ""

    def __call__(self, watch: Watch) -> Any:  # noqa: ARG002
        """Make it, in the worker process."""
        if self.trouble == "make":
            raise DataError("no such model", hint="name another")
        if self.trouble == "exit":
            raise SystemExit(3)
        return self._add

    def _add(self, number: int) -> int:
        if self.trouble == "unpicklable":
            raise type("Local", (Exception,), {})("told")
        return number + 1


def _none(task: int, death: Death) -> list[int]:
    raise AssertionError((task, death))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_task_comes_back_with_its_result(num_workers: int) -> None:
    with Supervised[int, int](num_workers, Maker(), seconds_per_item=9) as workers:
        for num in (0, 1, 50):
            assert dict(workers.run(range(num), _none)) == {n: n + 1 for n in range(num)}


def test_an_error_of_the_maker_arrives_whole() -> None:
    with (
        pytest.raises(DataError, match="no such model") as caught,
        Supervised[int, int](1, Maker("make"), seconds_per_item=9) as workers,
    ):
        list(workers.run(range(3), _none))
    assert caught.value.hint == "name another"


def test_an_error_that_cannot_be_sent_is_told() -> None:
    with (
        pytest.raises(RuntimeError, match="told"),
        Supervised[int, int](1, Maker("unpicklable"), seconds_per_item=9) as workers,
    ):
        list(workers.run(range(3), _none))


def test_processes_that_cannot_start_are_a_clear_error() -> None:
    with (
        pytest.raises(ServiceError, match=r"could not start \(it ended with exit code 3\)"),
        Supervised[int, int](1, Maker("exit"), seconds_per_item=9) as workers,
    ):
        list(workers.run(range(3), _none))

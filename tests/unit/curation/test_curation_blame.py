"""Who is blamed for a worker's death: simulated workers that die of rows, named or not, or once."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.curation.examination import examine
from coembed.curation.examination.part_task import JUDGING, READING, Costs, PartResult, PartTask
from coembed.curation.examination.parts import PartStore, part_schema
from coembed.curation.examination.supervise import IDLE, Death
from coembed.curation.spool import PAIR_FIELDS, write_spool
from coembed.errors import ServiceError

NUM = 40
_ROWS = st.sets(st.integers(0, NUM - 1), max_size=6)


class _World:
    """Rows `named` kill a worker that is at them, `unnamed` one that has been; `once` do it once,
    `always` whatever is done with them."""

    def __init__(
        self, named: set[int], unnamed: set[int], once: set[int], always: set[int] = frozenset()
    ) -> None:  # fmt: skip
        self.named, self.unnamed, self.once, self.always = named, unnamed, set(once), always
        self.num_tasks = 0

    def run(self, task: PartTask) -> PartResult | Death:
        """What a worker would do with the task."""
        self.num_tasks += 1
        runs = [(task.start, task.stop)]
        if task.suspect is not None:
            row = task.suspect.row
            runs = [(row, row + 1), (task.start, row), (row + 1, task.stop)]
        marked = {mark.row: mark for mark in task.marks}
        for start, stop in runs:
            for row in range(start, stop):
                if row in self.always:
                    return Death(False, "SIGBUS", row, READING)
                if row in self.once:
                    self.once.remove(row)
                    return Death(False, "SIGKILL", row, JUDGING)
                if row in self.named and row not in marked:
                    return Death(row % 2 == 0, "as named", row, JUDGING)
            if any(row in self.unnamed and row not in marked for row in range(start, stop)):
                return Death(False, "SIGSEGV", IDLE, JUDGING)
        rows = range(task.start, task.stop)
        cells = {
            "row": [*rows],
            "reason": [marked[row].reason if row in marked else None for row in rows],
        }
        schema = part_schema({})
        table = pa.table(
            [pa.array(cells.get(part.name, [None] * len(rows)), part.type) for part in schema],
            schema=schema,
        )
        return PartResult(table, [], Costs())


def _blamed(world: _World, folder: Path) -> dict[int, str]:
    """Run the one part of NUM rows in `world` to its end; the rows that are dropped, and why."""
    schema = pa.schema([(name, pa.string()) for name in PAIR_FIELDS])
    batch = pa.record_batch([[str(i) for i in range(NUM)]] * len(PAIR_FIELDS), schema=schema)
    write_spool(folder / "spool", schema, [batch])
    store = PartStore(folder / "parts", "x")
    store.prepare(1)
    gather = examine._Gather(store, folder / "spool", NUM)
    waiting = deque([PartTask(0, 0, NUM, is_whole=False)])
    gather.mourn(waiting[0], Death(False, "SIGKILL", IDLE, READING))  # the whole part's worker
    finished = False
    while waiting:
        assert not finished
        task = waiting.popleft()
        result = world.run(task)
        if isinstance(result, Death):
            waiting.extendleft(reversed(gather.mourn(task, result)))
        else:
            finished = gather.take(task, result)
    assert finished
    table = pq.read_table(store.path(0))
    assert table["row"].to_pylist() == list(range(NUM))
    reasons = enumerate(table["reason"].to_pylist())
    return {row: reason for row, reason in reasons if reason}


@settings(deadline=None, max_examples=60)
@given(named=_ROWS, unnamed=_ROWS, once=_ROWS)
def test_only_rows_that_kill_again_are_blamed(
    named: set[int], unnamed: set[int], once: set[int]
) -> None:
    world = _World(named, unnamed, once)
    with tempfile.TemporaryDirectory() as folder:
        found = _blamed(world, Path(folder))
    assert set(found) == named | unnamed
    for row in named - unnamed:
        assert found[row] == ("timed_out" if row % 2 == 0 else "crashes_decoder")
    # Nothing is tried over and over: a few tasks a fault, and halving for those without a name.
    assert world.num_tasks <= 4 + 6 * len(named | once) + 16 * len(unnamed)


def test_a_row_that_kills_whatever_is_done_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="die at pool row 8, though nothing is done with it"):
        _blamed(_World(set(), set(), set(), {7}), tmp_path)


class _Storm(_World):
    """Every worker dies, each time elsewhere."""

    def run(self, task: PartTask) -> PartResult | Death:
        """Die, but never of a suspect."""
        self.num_tasks += 1
        if task.suspect is not None:
            return super().run(task)
        return Death(False, "SIGKILL (perhaps out of memory)", task.start, READING)


def test_workers_that_always_die_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "_MAX_UNEXPLAINED", 0)
    with pytest.raises(ServiceError, match="died 1 times for no reason in the files") as caught:
        _blamed(_Storm(set(), set(), set()), tmp_path)
    assert "perhaps out of memory" in str(caught.value) and caught.value.hint

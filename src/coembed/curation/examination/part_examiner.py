"""What a worker process does: examine a run of rows, or find that it is examined already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import pyarrow as pa

from coembed.curation.candidate import Candidate, Facts
from coembed.curation.examination.item_cache import CacheReader, Measured, encode, item_key
from coembed.curation.examination.part_cells import Cells, LazyPairs, normal_caption, text_key
from coembed.curation.examination.part_task import (
    JUDGING,
    MEASURING,
    READING,
    Costs,
    Mark,
    PartResult,
    PartTask,
)
from coembed.curation.examination.parts import PartStore, part_schema, rows_hash
from coembed.curation.examination.supervise import Watch
from coembed.curation.filters.base import Cell, ColumnType, Filter
from coembed.curation.media.media import Media, Undecodable
from coembed.curation.reading import MediaReader
from coembed.curation.spool import Spool
from coembed.types import MODALITIES

# Media held while the cache is asked about them, all at once.
_CHUNK_ITEMS = 256
_CHUNK_BYTES = 32_000_000
_CLEAN: dict[ColumnType, Any] = {"int64": int, "float64": float, "string": str, "binary": bytes}


class FilterBuilder(Protocol):
    """The Settings of a filter."""

    @property
    def name(self) -> str:
        """The filter's registered name."""

    def build(self) -> Filter:
        """Make the filter."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The settings as JSON."""


@dataclass(frozen=True)
class PartJob:
    """What all tasks share. `filters` are those that measure or judge, `columns` those of all."""

    spool: Path
    pool: Path
    filters: tuple[FilterBuilder, ...]
    columns: Mapping[str, ColumnType]
    max_pixels: int
    max_media_bytes: int
    cache: Path
    parts: PartStore

    def __call__(self, watch: Watch) -> PartExaminer:
        """Make the examiner, in the worker process."""
        return PartExaminer(self, watch)


def measures(chosen: Filter) -> bool:
    """Whether a filter looks at media."""
    return type(chosen).measure is not Filter.measure


def judges(chosen: Filter) -> bool:
    """Whether a filter judges single pairs."""
    return type(chosen).judge is not Filter.judge


@dataclass(slots=True)
class _Item:
    """A file of the part and its rows (`places` in the range). `data` is b"" once it is judged."""

    places: list[int]
    path: str
    modality: str
    data: bytes
    key: bytes


@dataclass(slots=True)
class _Range:
    """Rows `start` onwards while they are examined. `bad_rows`: those that are not to be judged."""

    start: int
    cells: Cells
    pairs: LazyPairs
    bad_rows: Mapping[int, Mark]


class PartExaminer:
    """Examines tasks; says to `watch` what it is at."""

    def __init__(self, job: PartJob, watch: Watch) -> None:
        self._job = job
        self._watch = watch
        self._spool = Spool(job.spool)
        self._reader = MediaReader(job.pool, job.max_media_bytes)
        self._cache = CacheReader(job.cache)
        filters = [(settings.name, settings.build()) for settings in job.filters]
        self._measuring = [(name, chosen.measure) for name, chosen in filters if measures(chosen)]
        self._judging = [(name, chosen.judge) for name, chosen in filters if judges(chosen)]
        self._masking = [chosen.judge for _, chosen in filters if chosen.masks]
        self._schema = part_schema(job.columns)
        self._clean = {name: _CLEAN[kind] for name, kind in job.columns.items()}
        self._begin(0)

    def _begin(self, num_rows: int) -> None:
        self._costs = Costs(num_rows=num_rows)
        self._entries: list[tuple[bytes, bytes]] = []

    def __call__(self, task: PartTask) -> PartResult:
        """Do one task."""
        self._begin(task.stop - task.start)
        if not task.is_whole:
            return PartResult(self._examine_task(task), self._entries, self._costs)
        costs, store, began = self._costs, self._job.parts, perf_counter()
        rows = rows_hash(self._spool.rows(task.start, task.stop))
        is_current = store.is_current(
            task.number, self._spool, task.start, task.stop, rows, self._reader
        )
        costs.spend("parts", began)
        if is_current:
            costs.num_reused = costs.num_rows
        else:
            table = self._examine_task(task)
            began = perf_counter()
            store.write(task.number, table, rows)
            costs.spend("parts", began)
        return PartResult(None, self._entries, costs)

    def _examine_task(self, task: PartTask) -> pa.Table:
        if task.suspect is None:
            return self.examine(task.start, task.stop, task.marks)
        row = task.suspect.row
        alone = self.examine(row, row + 1, task.marks)
        before = self.examine(task.start, row, task.marks)
        return pa.concat_tables([before, alone, self.examine(row + 1, task.stop, task.marks)])

    def examine(self, start: int, stop: int, marks: Sequence[Mark] = ()) -> pa.Table:
        """The examined rows `start` to `stop` (exclusive), of one part."""
        batches = self._spool.rows(start, stop)
        paths, captions, modalities = (
            [cell for batch in batches for cell in batch[name].to_pylist()]
            for name in ("path", "caption", "modality")
        )
        cells = Cells(self._schema, start, stop - start)
        cells.columns["path_key"] = [text_key(path) for path in paths]
        cells.columns["caption_key"] = [text_key(normal_caption(text)) for text in captions]
        bad_items, bad_rows = self._resolve(marks)
        here = _Range(start, cells, LazyPairs(self._spool, start, stop), bad_rows)
        # Rows of one file are examined together, so that it is read and decoded once.
        groups: dict[tuple[str, str], list[int]] = {}
        for place, key in enumerate(zip(paths, modalities, strict=True)):
            groups.setdefault(key, []).append(place)
        chunk: list[_Item] = []
        num_bytes = 0
        for key, places in groups.items():
            item = self._read(here, *key, places, bad_items.get(key))
            if item is None:
                continue
            chunk.append(item)
            num_bytes += len(item.data)
            if len(chunk) >= _CHUNK_ITEMS or num_bytes >= _CHUNK_BYTES:
                self._judge_chunk(here, chunk)
                chunk, num_bytes = [], 0
        self._judge_chunk(here, chunk)
        self._mask_dropped(here)
        return cells.table()

    def _mask_dropped(self, here: _Range) -> None:
        """Mask the captions of dropped pairs, which the manifest shows."""
        if not self._masking:
            return
        cells = here.cells
        for place, reason in enumerate(cells.columns["reason"]):
            if reason is None:
                continue
            pair = here.pairs[place]
            caption = cells.columns["caption"][place]
            caption = before = pair.caption if caption is None else caption
            if here.start + place in here.bad_rows:
                caption = ""  # a filter crashed on this very caption: it is not looked at again
            else:
                for judge in self._masking:
                    verdict = judge(Candidate(pair, caption, Facts(0), {}))
                    caption = caption if verdict.caption is None else verdict.caption
            if caption != before:
                cells.columns["caption"][place] = caption

    def _resolve(
        self, marks: Sequence[Mark]
    ) -> tuple[dict[tuple[str, str], Mark], dict[int, Mark]]:
        """The marks by item, and those of single rows."""
        pairs = self._spool.pick([mark.row for mark in marks]) if marks else {}
        items: dict[tuple[str, str], Mark] = {}
        for mark in marks:
            if mark.phase < JUDGING:
                pair = pairs[mark.row]
                items[pair.path, pair.modality] = mark
        return items, {mark.row: mark for mark in marks if mark.phase >= JUDGING}

    def _read(
        self, here: _Range, path: str, modality: str, places: list[int], mark: Mark | None
    ) -> _Item | None:
        """Read a file; None where nothing is left to be said of its rows."""
        cells, costs = here.cells, self._costs
        if modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            detail = f"modality {modality!r}; expected {known}"
            cells.refuse(places, "unknown_modality", detail)
            return None
        if mark is not None and mark.phase == READING:
            cells.refuse(places, mark.reason, mark.detail)
            return None
        self._watch.at(here.start + places[0], READING)
        began = perf_counter()
        data, reason, detail, size, mtime_ns = self._reader.read(path)
        began = costs.spend("read", began)
        if size is not None:
            cells.set("file_size", places, size)
            cells.set("file_mtime_ns", places, mtime_ns)
        if reason:
            cells.refuse(places, reason, detail)
            return None
        costs.num_read += 1
        costs.num_bytes += len(data)
        digest = hashlib.sha256(data).digest()
        costs.spend("hash", began)
        cells.set("item_id", places, digest)
        if mark is not None:
            cells.set_facts(places, Facts(len(data), mark.reason, mark.detail))
            cells.refuse(places, mark.reason, mark.detail)
            return None
        return _Item(places, path, modality, data, item_key(digest, modality))

    def _judge_chunk(self, here: _Range, chunk: list[_Item]) -> None:
        """Measure the items of a chunk, or know them from the cache, and judge their pairs."""
        self._watch.idle()
        began = perf_counter()
        known = self._cache.look_up([item.key for item in chunk])
        self._costs.spend("cache", began)
        self._costs.num_cached += len(known)
        for item in chunk:
            try:
                self._judge_item(here, item, known)
            except Exception as error:
                row = here.start + item.places[0]
                error.add_note(f"while examining pool row {row + 1}, {item.path!r}")
                raise
        self._watch.idle()

    def _judge_item(self, here: _Range, item: _Item, known: dict[bytes, Measured]) -> None:
        measured = known.get(item.key)
        if measured is None:
            self._watch.at(here.start + item.places[0], MEASURING)
            measured = known[item.key] = self._measure(item)
            self._entries.append((item.key, encode(item.key, *measured)))
            self._costs.num_measured += 1
        item.data = b""
        facts, columns = measured
        here.cells.set_facts(item.places, facts)
        if facts.fault is not None:
            here.cells.refuse(item.places, facts.fault, facts.fault_detail)
            return
        if not self._judging:
            for name, cell in columns.items():
                here.cells.set(name, item.places, cell)
            return
        for place in item.places:
            mark = here.bad_rows.get(here.start + place) if here.bad_rows else None
            if mark is not None:
                here.cells.refuse([place], mark.reason, mark.detail)
            else:
                self._watch.at(here.start + place, JUDGING)
                self._judge(here, place, facts, columns)

    def _measure(self, item: _Item) -> Measured:
        """What is known of an item, and what the filters measure; only the facts where it cannot
        be decoded."""
        spend, began = self._costs.spend, perf_counter()
        media = Media(item.data, modality=item.modality, max_pixels=self._job.max_pixels)
        columns: dict[str, Cell] = {}
        for name, measure in self._measuring:
            try:
                for column, cell in measure(media).items():
                    columns[column] = self._clean[column](cell)
            except Undecodable as found:
                began = spend(name, began)
                return replace(media.facts(), fault=found.reason, fault_detail=found.detail), {}
            began = spend(name, began)
        facts = media.facts()
        spend("media", began)
        return facts, columns if facts.fault is None else {}

    def _judge(self, here: _Range, place: int, facts: Facts, measured: Mapping[str, Cell]) -> None:
        """Ask the filters in order until one drops the pair."""
        pair, cells, spend, began = here.pairs[place], here.cells, self._costs.spend, perf_counter()
        columns = dict(measured)
        candidate = Candidate(pair, pair.caption, facts, columns)
        for name, judge in self._judging:
            verdict = judge(candidate)
            if verdict.columns:
                columns.update(verdict.columns)
            if verdict.caption is not None:
                candidate.caption = verdict.caption
            began = spend(name, began)
            if verdict.reason is not None:
                cells.refuse([place], verdict.reason, verdict.detail)
                break
        for name, cell in columns.items():
            cells.columns[name][place] = cell
        if candidate.caption != pair.caption:
            cells.columns["caption"][place] = candidate.caption
            cells.columns["caption_key"][place] = text_key(normal_caption(candidate.caption))

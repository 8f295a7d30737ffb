"""Find pictures that are copies of one another: hashes propose pairs, thumbnails decide.

    proposed = propose(hashes, hashes[:, 0], rank, radius=6, folder=..., map_tasks=pool.map)
    found = orient(proposed, hashes, hashes)
    scores = Judge(thumbnails_file, look, folder, pool.map).score(proposed, found, radius=6)

The outcome depends neither on the number of workers nor on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coembed.curation.lookalikes.hamming import Places, Table, Values, plan_search, search_table
from coembed.curation.lookalikes.perceptual import MIRROR, NUM_WINDOWS, THUMBNAIL_PX, Hashes
from coembed.curation.lookalikes.resemblance import Proposal, resemblance

T = TypeVar("T")
R = TypeVar("R")

MOST_OF_ONE_HASH = 16
"""Of pictures with one and the same whole-frame hash this many, the best by rank, are compared with
others and with the rest of them: ten thousand placeholders make 160,000 pairs, not 50 million."""
MOST_NEIGHBOURS = 64
"""A picture's nearest by hash that are compared with it, unless it is among the other's nearest."""

DOUBTFUL, CERTAIN = 0.55, 0.9
"""Scores between which a pair's pictures are looked at once more. Copies that thumbnails leave
below 0.55 were not found among the demo shop's, nor other pictures above 0.78."""
_CLOSER_PX = 56
_CLOSER_WEIGHT = 2 / 3

# Below this many lookups or pairs, starting worker processes takes longer than the work.
_FEW_LOOK_UPS = 50_000_000
_FEW_PAIRS = 20_000
_PAIRS_AT_ONCE = 1 << 16
_PAIRS_A_TASK = 4096


class Map(Protocol):
    """`PoolView.map`."""

    def __call__(self, function: Callable[[T], R], tasks: Iterable[T], /) -> Iterator[R]: ...


class Pairs(NamedTuple):
    """`asking`, `answering` [pair]: rows of the two tables of hashes."""

    asking: Places
    answering: Places


@dataclass(frozen=True)
class _Lookup:
    """One table of a search, for a worker process. The files hold uint64 numbers."""

    queries: Path
    frames: Path
    table: Table
    radius: int


def propose(
    windows: Hashes,
    frames: Values,
    rank: Places,
    *,
    radius: int,
    folder: Path,
    map_tasks: Map,
) -> Pairs:
    """Pairs of which some window of one is within `radius` bits of the whole frame of the other or
    of its mirror image, each once, in order.

    `windows` [asking, NUM_WINDOWS]; `frames` [answering]: whole-frame hashes; `rank` [answering]:
    the better a picture, the lower. `folder` is for files of the worker processes.
    """
    values, starts, members = _group(frames, rank)
    queries, hashes = folder / "queries.u64", folder / "frames.u64"
    windows.reshape(-1).tofile(queries)
    values.tofile(hashes)
    plan = plan_search(windows.size, len(values), radius)
    tasks = [_Lookup(queries, hashes, table, radius) for table in plan]
    few = len(plan) * windows.size < _FEW_LOOK_UPS
    found = map(_look_up, tasks) if few else map_tasks(_look_up, tasks)
    codes = np.zeros(0, np.int64)
    fresh: list[Places] = []
    for flat, value in chain([_equal(windows, values)], found):
        fresh.append(_codes(flat, value, starts, members, len(frames)))
        if sum(map(len, fresh)) > max(len(codes), 1 << 20):
            codes = np.unique(np.concatenate([codes, *fresh]))
            fresh = []
    codes = np.unique(np.concatenate([codes, *fresh]))
    asking, answering = np.divmod(codes, max(len(frames), 1))
    return Pairs(asking, answering)


def _group(frames: Values, rank: Places) -> tuple[Values, Places, Places]:
    """Distinct hashes of the frames and of their mirror images; where the members of each start
    (one more at the end); members: rows of `frames`, MOST_OF_ONE_HASH a hash at most."""
    both = np.concatenate([frames, frames ^ MIRROR])
    order = np.lexsort((np.concatenate([rank, rank]), both))
    ordered = both[order]
    is_new = np.ones(len(both), np.bool_)
    is_new[1:] = ordered[1:] != ordered[:-1]
    begins = np.flatnonzero(is_new)
    sizes = np.diff(np.append(begins, len(both)))
    within = np.arange(len(both)) - np.repeat(begins, sizes)
    members = order[within < MOST_OF_ONE_HASH] % max(len(frames), 1)
    starts = np.concatenate([[0], np.cumsum(np.minimum(sizes, MOST_OF_ONE_HASH))])
    return ordered[begins], starts, members


def _equal(windows: Hashes, values: Values) -> tuple[Places, Places]:
    """(window, value) that are equal: never left to tables, which may pass over full buckets."""
    flat = windows.reshape(-1)
    if len(values) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    hits = []
    for start in range(0, len(flat), _PAIRS_AT_ONCE * NUM_WINDOWS):
        part = flat[start : start + _PAIRS_AT_ONCE * NUM_WINDOWS]
        places = np.minimum(np.searchsorted(values, part), len(values) - 1)
        equal = np.flatnonzero(values[places] == part)
        hits.append(np.stack([equal + start, places[equal]]))
    both = np.concatenate(hits, axis=1) if hits else np.zeros((2, 0), np.int64)
    return both[0], both[1]


def _look_up(task: _Lookup) -> tuple[Places, Places]:
    queries = np.memmap(task.queries, np.uint64, "r") if task.queries.stat().st_size else _NONE
    frames = np.fromfile(task.frames, np.uint64)
    found = list(search_table(queries, frames, task.table, task.radius))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([flat for flat, _ in found]), np.concatenate([at for _, at in found])


_NONE = np.zeros(0, np.uint64)


def _codes(flat: Places, value: Places, starts: Places, members: Places, num_frames: int) -> Places:
    """asking * num_frames + answering of what a table found, each once."""
    counts = starts[value + 1] - starts[value]
    ends = np.cumsum(counts)
    asking = np.repeat(flat // NUM_WINDOWS, counts)
    offsets = np.arange(len(asking)) - np.repeat(ends - counts, counts)
    answering = members[np.repeat(starts[value], counts) + offsets]
    return np.unique(asking * num_frames + answering)


def nearest(pairs: Pairs, distance: Places, rank: Places) -> NDArray[np.bool_]:
    """Which pairs of one table with itself are among the MOST_NEIGHBOURS nearest of either side."""
    ends = np.concatenate(pairs)
    others = np.concatenate([pairs.answering, pairs.asking])
    order = np.lexsort((rank[others], np.concatenate([distance, distance]), ends))
    begins = np.searchsorted(ends[order], ends[order], side="left")
    near = np.zeros(len(ends), np.bool_)
    near[order] = np.arange(len(ends)) - begins < MOST_NEIGHBOURS
    return near[: len(distance)] | near[len(distance) :]


class Orientation(NamedTuple):
    """For each pair the best way to lay one over the other, plain ([0]) and mirrored ([1]).

    `distance` [2, pair] in bits, `window` [2, pair], `swapped` [2, pair]: the window is one of the
    answering picture.
    """

    distance: Places
    window: Places
    swapped: NDArray[np.bool_]

    def only(self, pairs: NDArray[np.bool_] | Places) -> Orientation:
        """Some of the pairs."""
        return Orientation(self.distance[:, pairs], self.window[:, pairs], self.swapped[:, pairs])


def orient(pairs: Pairs, asking: Hashes, answering: Hashes) -> Orientation:
    """Compare all windows of each with the whole frame of the other. Hashes [n, NUM_WINDOWS]."""
    num = len(pairs.asking)
    distance, window = np.empty((2, num), np.int64), np.empty((2, num), np.int64)
    swapped = np.empty((2, num), np.bool_)
    for start in range(0, num, _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        one, other = asking[pairs.asking[part]], answering[pairs.answering[part]]
        for mirrored, mask in enumerate((np.uint64(0), MIRROR)):
            bits = np.concatenate(
                [one ^ (other[:, :1] ^ mask), other ^ (one[:, :1] ^ mask)], axis=1
            )
            counts = np.bitwise_count(bits)
            best = counts.argmin(axis=1)
            distance[mirrored, part] = counts.min(axis=1)
            window[mirrored, part] = best % NUM_WINDOWS
            swapped[mirrored, part] = best >= NUM_WINDOWS
    return Orientation(distance, window, swapped)


@dataclass(frozen=True)
class _Check:
    """Pairs for a worker process. The file holds thumbnails, one after another."""

    thumbnails: Path
    px: int
    proposal: Proposal


@dataclass(frozen=True)
class Judge:
    """Scores pairs by thumbnails, and by the pictures themselves where thumbnails leave a doubt.

    `thumbnails`: a file of them, by place. `look(place)`: the picture, mode RGB, or None where it
    cannot be had. `folder` is for files of the worker processes.
    """

    thumbnails: Path
    look: Callable[[int], Image.Image | None]
    folder: Path
    map_tasks: Map

    def score(self, pairs: Pairs, found: Orientation, *, radius: int) -> NDArray[np.float64]:
        """Scores [pair], the better of plain and mirrored, of those within `radius` bits.

        Between DOUBTFUL and CERTAIN, two thirds of the score come from a comparison at twice the
        resolution, which tells apart what 28 px cannot: the pattern of a fabric, a pose a few
        degrees off.
        """
        score = self._score(pairs, found, radius, self.thumbnails, THUMBNAIL_PX)
        unsure = np.flatnonzero((score >= DOUBTFUL) & (score < CERTAIN))
        places = np.unique(np.concatenate([pairs.asking[unsure], pairs.answering[unsure]]))
        file = self.folder / "closer.u8"
        seen = self._draw(places, file)
        one = np.searchsorted(places, pairs.asking[unsure])
        other = np.searchsorted(places, pairs.answering[unsure])
        both = seen[one] & seen[other]
        unsure, close = unsure[both], Pairs(one[both], other[both])
        closer = self._score(close, found.only(unsure), radius, file, _CLOSER_PX)
        score[unsure] += _CLOSER_WEIGHT * (closer - score[unsure])
        return score.round(4)

    def _draw(self, places: Places, file: Path) -> NDArray[np.bool_]:
        """Write thumbnails of _CLOSER_PX. Returns which pictures could be had."""
        seen = np.zeros(len(places), np.bool_)
        with file.open("wb") as out:
            for at, place in enumerate(places.tolist()):
                picture = self.look(place)
                seen[at] = picture is not None
                picture = picture or Image.new("RGB", (1, 1))
                side = (_CLOSER_PX, _CLOSER_PX)
                out.write(picture.resize(side, Image.Resampling.BILINEAR).tobytes())
        return seen

    def _score(
        self, pairs: Pairs, found: Orientation, radius: int, file: Path, px: int
    ) -> NDArray[np.float64]:
        scores = np.zeros(len(pairs.asking))
        mirrored, pair = np.nonzero(found.distance <= radius)
        swapped = found.swapped[mirrored, pair]
        one, other = pairs.asking[pair], pairs.answering[pair]
        proposal = Proposal(
            np.where(swapped, other, one),
            np.where(swapped, one, other),
            found.window[mirrored, pair],
            mirrored == 1,
        )
        parts = [slice(at, at + _PAIRS_A_TASK) for at in range(0, len(pair), _PAIRS_A_TASK)]
        tasks = (_Check(file, px, proposal.part(part)) for part in parts)
        results = map(_check, tasks) if len(pair) < _FEW_PAIRS else self.map_tasks(_check, tasks)
        for part, result in zip(parts, results, strict=True):
            np.maximum.at(scores, pair[part], result)
        return scores


def _check(task: _Check) -> NDArray[np.float64]:
    thumbnails = np.memmap(task.thumbnails, np.uint8, "r").reshape(-1, task.px, task.px, 3)
    return resemblance(thumbnails, task.proposal)

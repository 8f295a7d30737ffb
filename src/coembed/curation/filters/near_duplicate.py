"""Drop a picture that is another one once more: scaled, cropped, recoloured, stamped, mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from coembed.curation.filters.base import Cell, ColumnType, Filter, PoolView
from coembed.curation.lookalikes.fingerprints import Fingerprints, Pictures
from coembed.curation.lookalikes.grouping import components, stars
from coembed.curation.lookalikes.hamming import Places
from coembed.curation.lookalikes.lookalikes import Judge, Pairs, nearest, orient, propose
from coembed.curation.lookalikes.perceptual import NUM_BITS, fingerprint
from coembed.curation.media.media import Media
from coembed.settings import ComponentSettings

# Of a larger component only direct neighbours of a representative join it.
_MOST_COMPLETED = 1000


class Settings(ComponentSettings):
    """`radius`: bits by which a hash may differ for a pair to be looked at. 6 of 63 found 97 to 99
    in 100 copies of sets that it was not chosen on; 8 finds half of the rest for several times the
    work.

    `min_score`: how alike two pictures are that count as one, 0 to 1 (`resemblance`). 0.73 was
    chosen on the demo shop and on synthetic photographs: different photographs of one product came
    up to 0.72, and up to four copies in a hundred stay below. On shops drawn with other seeds it
    drops nothing good. Lower it where a pool holds few lookalikes: the synthetic photographs of
    one scene with another thing in it stay below 0.5.

    `doubt_score`: from here to `min_score` pictures stay, but in one split, and are listed as
    doubtful. A guess.
    """

    name: Literal["near_duplicate"] = "near_duplicate"
    radius: int = Field(default=6, ge=1, le=12)
    min_score: float = Field(default=0.73, gt=0, le=1)
    doubt_score: float = Field(default=0.65, gt=0, le=1)

    @model_validator(mode="after")
    def _doubt_below_certainty(self) -> Settings:
        if self.doubt_score > self.min_score:
            raise ValueError(
                f"doubt_score is {self.doubt_score}, above min_score ({self.min_score});"
                " expected at most as much"
            )
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return NearDuplicate(self.radius, self.min_score, self.doubt_score)


class NearDuplicate(Filter):
    """Perceptual hashes propose pairs of pictures (`perceptual`, `hamming`), a comparison of their
    thumbnails decides (`resemblance`).

    Groups are stars: each dropped picture was itself compared with the one that stays, which is the
    best of them: most pixels as shown, then most bytes, then the smallest item id. All pairs of the
    others are dropped as `near_duplicate`; captions that the one that stays does not have go to it.

    Pictures that are not quite alike enough stay, but in the same split as the one that they are
    most like, so that no test picture has an almost-copy in training.

    A picture without structure is like every other one: only exact copies are found among such.
    Turned pictures, crops of more than about a tenth of a side, and grey copies of colour pictures
    are not found (the last are doubtful at most: they may be another colour of one product).

    Columns: `near_duplicate_group`, the representative's item id (first 16 digits);
    `near_duplicate_score`, a member's likeness to it; `near_duplicate_doubt`, 0 to 1 for pictures
    that stay, the nearness of their best score to the limit; `near_duplicate_nearest`, the pair_id
    of the picture that they had it with (its first pair's). Other modalities pass.
    """

    reasons = ("near_duplicate",)
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "_near_thumbnail": "binary",
        "near_duplicate_group": "string",
        "near_duplicate_score": "float64",
        "near_duplicate_doubt": "float64",
        "near_duplicate_nearest": "string",
    }

    def __init__(self, radius: int, min_score: float, doubt_score: float) -> None:
        self._radius = radius
        self._min_score = min_score
        self._doubt_score = doubt_score

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Make the thumbnail. Raises Undecodable."""
        return {"_near_thumbnail": fingerprint(media.thumbnail)} if media.is_image else {}

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Find the groups, and what is almost in one."""
        prints = Fingerprints(pool, "_near_thumbnail")
        rank = _rank(pool, prints.items)
        found = propose(
            prints.hashes, np.ascontiguousarray(prints.hashes[:, 0]), rank,
            radius=self._radius, folder=pool.scratch, map_tasks=pool.map,
        )  # fmt: skip
        pairs = _unordered(found)
        oriented = orient(pairs, prints.hashes, prints.hashes)
        near = nearest(pairs, oriented.distance.min(axis=0), rank)
        pairs = Pairs(pairs.asking[near], pairs.answering[near])
        oriented = oriented.only(near)
        del near

        # From here on, places are among the pictures that are in some pair.
        involved = np.unique(np.concatenate(pairs))
        thumbnails = pool.scratch / "thumbnails.u8"
        prints.write_thumbnails(involved, thumbnails)
        judge = Judge(thumbnails, Pictures(pool, prints.items[involved]), pool.scratch, pool.map)
        rank, items = rank[involved], prints.items[involved]
        pairs = Pairs(*(np.searchsorted(involved, side) for side in pairs))
        score = judge.score(pairs, oriented, radius=self._radius)

        # A member that the search did not compare with the best of its component is compared now.
        more = _incomplete(pairs, score >= self._min_score, rank)
        hashes = prints.hashes[involved]
        added = judge.score(more, orient(more, hashes, hashes), radius=NUM_BITS)
        one, other = (np.concatenate(sides) for sides in zip(pairs, more, strict=True))
        score = np.concatenate([score, added])
        sure = score >= self._min_score
        by = stars(one[sure], other[sure], rank)
        yield from self._drops(pool, items, by, _scores_of_members(one, other, score, by))
        yield from self._doubts(pool, items, by, one, other, score, rank)

    def _drops(
        self, pool: PoolView, items: Places, by: Places, score: NDArray[np.float64]
    ) -> Iterator[pa.Table]:
        member = np.flatnonzero(by != np.arange(len(by)))
        table = pa.table({"item": items[member], "best": items[by[member]], "score": score[member]})
        pool.execute("CREATE TEMP TABLE near_members AS FROM members", members=table)
        pool.execute(_NEAR_ROWS)
        for batch in pool.query(_VERDICTS.format(min_score=self._min_score)):
            yield pa.Table.from_batches([batch])

    def _doubts(
        self,
        pool: PoolView,
        items: Places,
        by: Places,
        one: Places,
        other: Places,
        score: NDArray[np.float64],
        rank: Places,
    ) -> Iterator[pa.Table]:
        # A member is dropped: what it is like concerns the one that stands for it.
        one, other = by[one], by[other]
        unsure = (score >= self._doubt_score) & (one != other)
        one, other, score = one[unsure], other[unsure], score[unsure]
        best, partner = _best_partners(one, other, score, rank)
        doubtful = np.flatnonzero(best)
        # A member's own score may lie above the limit where its representative's does not.
        room = max(self._min_score - self._doubt_score, 1e-9)
        doubt = np.clip((best[doubtful] - self._doubt_score) / room, 0, 1).round(4)
        nearest_items = items[partner[doubtful]]
        table = pa.table({"item": items[doubtful], "doubt": doubt, "nearest": nearest_items})
        for batch in pool.query(_DOUBTS, doubts=table):
            yield pa.Table.from_batches([batch])


# Rows of all pictures in groups, and to each the first row that has its caption; the captions of
# the one that stays come first.
_NEAR_ROWS = """
CREATE TEMP TABLE near_rows AS
WITH placed AS (
    SELECT item, best, score FROM near_members
    UNION ALL SELECT DISTINCT best, best, NULL FROM near_members
),
owners AS (
    SELECT item AS best, min(row) AS owner FROM kept
    SEMI JOIN near_members ON kept.item = near_members.best GROUP BY item
)
SELECT kept.row, placed.score, owners.owner, first_value(kept.row) OVER (
    PARTITION BY placed.best, kept.caption_key ORDER BY placed.score IS NOT NULL, kept.row
) AS earliest FROM kept JOIN placed USING (item) JOIN owners USING (best)
"""
_VERDICTS = """
SELECT near_rows.row,
    if(score IS NULL, NULL, 'near_duplicate') AS reason,
    if(score IS NULL, NULL, printf('likeness %.3f >= {min_score:g} with ', score) || own.path
        || if(earliest = near_rows.row, '; its caption was added there',
              '; its caption was there already')) AS detail,
    if(score IS NULL, NULL, owner) AS duplicate_of,
    score IS NOT NULL AND earliest = near_rows.row AS keep_caption,
    own.item_id[:16] AS near_duplicate_group,
    score AS near_duplicate_score
FROM near_rows JOIN kept AS own ON own.row = near_rows.owner
"""
_DOUBTS = """
WITH owners AS (
    SELECT item AS nearest, min(row) AS same_split_as, arg_min(pair_id, row) AS pair_id FROM kept
    SEMI JOIN doubts ON kept.item = doubts.nearest GROUP BY item
)
SELECT kept.row, owners.same_split_as, doubts.doubt AS near_duplicate_doubt,
    owners.pair_id AS near_duplicate_nearest
FROM kept JOIN doubts USING (item) JOIN owners USING (nearest)
"""


def _rank(pool: PoolView, items: Places) -> Places:
    """Ranks of the pictures, the best first: most pixels, most bytes, smallest item id."""
    pixels, num_bytes = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
    for batch in pool.query(
        "SELECT item, width_px * height_px AS pixels, num_bytes FROM kept"
        " WHERE width_px IS NOT NULL"
    ):
        at = np.searchsorted(items, batch.column("item").to_numpy())
        at = np.minimum(at, len(items) - 1)
        here = items[at] == batch.column("item").to_numpy() if len(items) else at > at
        pixels[at[here]] = batch.column("pixels").to_numpy()[here]
        num_bytes[at[here]] = batch.column("num_bytes").to_numpy()[here]
    rank = np.empty(len(items), np.int64)
    # Items are numbered in order of their ids.
    rank[np.lexsort((items, -num_bytes, -pixels))] = np.arange(len(items))
    return rank


def _unordered(found: Pairs) -> Pairs:
    """Pairs of different places, each once, the smaller place first."""
    low, high = np.minimum(*found), np.maximum(*found)
    different = low != high
    pairs = np.unique(np.stack([low[different], high[different]], axis=1), axis=0)
    return Pairs(pairs[:, 0], pairs[:, 1])


def _incomplete(pairs: Pairs, sure: NDArray[np.bool_], rank: Places) -> Pairs:
    """(best, member) of each component of sure pairs that were not compared."""
    compared = set(zip(*(side.tolist() for side in pairs), strict=True))
    bests: list[int] = []
    members: list[int] = []
    for component in components(pairs.asking[sure], pairs.answering[sure]):
        if 2 < len(component) <= _MOST_COMPLETED:
            best = int(component[rank[component].argmin()])
            for member in component.tolist():
                pair = (min(best, member), max(best, member))
                if member != best and pair not in compared:
                    bests.append(pair[0])
                    members.append(pair[1])
    return Pairs(np.array(bests, np.int64), np.array(members, np.int64))


def _best_partners(
    one: Places, other: Places, score: NDArray[np.float64], rank: Places
) -> tuple[NDArray[np.float64], Places]:
    """Each place's greatest score (0: it is in no pair) and whom it has it with: of several the
    best by rank."""
    best, partner = np.zeros(len(rank)), np.arange(len(rank))
    a, b, both = np.concatenate([one, other]), np.concatenate([other, one]), np.tile(score, 2)
    # The last of several assignments to one place stands.
    order = np.lexsort((-rank[b], both))
    best[a[order]], partner[a[order]] = both[order], b[order]
    return best, partner


def _scores_of_members(
    one: Places, other: Places, score: NDArray[np.float64], by: Places
) -> NDArray[np.float64]:
    """Each place's score with its representative; 0 where it has none."""
    scores = np.zeros(len(by))
    for a, b in ((one, other), (other, one)):
        own = by[a] == b
        np.maximum.at(scores, a[own], score[own])
    return scores

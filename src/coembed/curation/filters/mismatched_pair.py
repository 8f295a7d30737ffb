"""Drop pairs whose caption is not of their picture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from coembed.curation.filters.base import ColumnType, Filter, PoolView
from coembed.curation.matching.cross_fit_settings import CrossFitSettings
from coembed.curation.matching.given_model import GivenModelSettings
from coembed.files import sha256_json

if TYPE_CHECKING:
    from coembed.curation.matching.judged_pairs import JudgedPairs
    from coembed.curation.matching.match_scores import MatchScores
    from coembed.curation.matching.mismatch import Limits

# Part of the cache's key: to be changed whenever the same pairs would get other scores.
_VERSION = 1


class Settings(GivenModelSettings):
    """`scorer`: `cross_fit` trains small towers on parts of the pool and scores the rest with them;
    it needs no model. `model` scores with the model that `model` or `open_clip` names.

    min_precision: of the pairs dropped, the share that must be mismatched, as estimated from pairs
        that are mispaired on purpose.
    num_spreads: how far below the median of its cluster a pair must be in any case, in distances
        from that median to the 5 % quantile.
    min_separation: share of the pairs mispaired on purpose that must score below the median pair
        (0.5 is guessing), and
    min_power: share of them that must be found; otherwise the scorer knows too little of the pool
        to drop anything.
    All were chosen on draws of the demo shop with none to 30 % of its captions swapped, and
    held on one more draw; real pools may want others.
    """

    name: Literal["mismatched_pair"] = "mismatched_pair"
    scorer: Literal["cross_fit", "model"] = "cross_fit"
    cross_fit: CrossFitSettings = CrossFitSettings()
    min_precision: float = Field(default=0.9, ge=0.5, le=1)
    num_spreads: float = Field(default=2.75, ge=0, le=20)
    min_separation: float = Field(default=0.95, ge=0.5, le=1)
    min_power: float = Field(default=0.6, ge=0, le=1)

    @model_validator(mode="after")
    def _one_scorer(self) -> Settings:
        if (self.scorer == "model") != self.names_model:
            raise ValueError(
                "scorer `model` goes with `model` or `open_clip`, and scorer `cross_fit` without: "
                f"scorer is {self.scorer!r}, model {self.model!r}, open_clip {self.open_clip!r}"
            )
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return MismatchedPair(self)


class MismatchedPair(Filter):
    """Scores every pair and drops those that fit no better than pairs thrown together. Audio
    passes: no tower of coembed takes it yet.

    Columns: `match_score`, by how much the pair is likelier than chance (0), a natural log; missing
    where it cannot be told (no word that others use, say). `mismatched_pair_doubt`: 1 at the
    limit, 0 from the median of the caption's cluster on.
    """

    reasons = ("mismatched_pair",)
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "match_score": "float64",
        "mismatched_pair_doubt": "float64",
    }

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.notes: list[str] = []

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge all kept pairs of images."""
        from coembed.curation.matching.judged_pairs import JudgedPairs

        self.notes = []
        pairs = JudgedPairs(pool)
        found = self._score(pool, pairs)
        if found is None:
            return
        judged = np.flatnonzero(np.isfinite(found.scores))
        if not len(judged) or not len(found.mispaired):
            self.notes.append("no pair could be scored; nothing is dropped")
            return
        limits = self._limits(found, judged)
        num_dropped = 0
        for rows, places in pairs.rows():
            table, num = _judge(rows, places, found, limits)
            num_dropped += num
            yield table
        self._report(limits, len(judged), num_dropped)

    def _score(self, pool: PoolView, pairs: JudgedPairs) -> MatchScores | None:
        """Scores, from an earlier run of the same where there are any. None: nothing to go by."""
        settings = self._settings
        least = settings.cross_fit.min_pairs if settings.scorer == "cross_fit" else 2
        if pairs.num_pairs < least:
            self.notes.append(
                f"{pairs.num_pairs:,} pairs of images are too few to learn from "
                f"(cross_fit.min_pairs is {least:,}); nothing is dropped"
            )
            return None
        from coembed.curation.matching.match_scores import MatchScores

        if settings.scorer == "model":
            return self._score_by_model(pool, pairs)
        import torch

        from coembed.curation.matching.match_cross_fit import TooLittle, score_by_cross_fit

        identity = [torch.__version__, settings.cross_fit.model_dump(mode="json")]
        folder = self._folder(pool, pairs, "cross_fit", identity)
        found = MatchScores.load(folder / "scores.npz")
        if found is None:
            try:
                found = score_by_cross_fit(pool, pairs, settings.cross_fit, checkpoints=folder)
            except TooLittle as reason:
                self.notes.append(f"{reason}; nothing is dropped")
                return None
            found.save(folder / "scores.npz")
        _keep_only(folder)
        return found

    def _score_by_model(self, pool: PoolView, pairs: JudgedPairs) -> MatchScores:
        from coembed.curation.matching.match_model import score_by_model
        from coembed.curation.matching.match_scores import MatchScores

        encoder = self._settings.open(pool.root)
        notice = self._settings.pin_notice(encoder)
        if notice is not None:
            self.notes.append(notice)
        folder = self._folder(pool, pairs, "model", [encoder.fingerprint])
        found = MatchScores.load(folder / "scores.npz")
        if found is None:
            found = score_by_model(pool, pairs, self._settings, encoder)
            found.save(folder / "scores.npz")
        _keep_only(folder)
        return found

    def _folder(
        self, pool: PoolView, pairs: JudgedPairs, scorer: str, identity: Sequence[object]
    ) -> Path:
        key = sha256_json([_VERSION, scorer, list(identity), pool.seed, pairs.content_hash()])
        folder = pool.lasting / "scores" / key[:32]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _limits(self, found: MatchScores, judged: np.ndarray) -> Limits:
        from coembed.curation.matching.mismatch import find_limits

        settings = self._settings
        return find_limits(
            found.scores[judged],
            found.clusters[judged],
            found.mispaired,
            found.mispaired_clusters,
            num_clusters=found.num_clusters,
            min_precision=settings.min_precision,
            num_spreads=settings.num_spreads,
            min_separation=settings.min_separation,
            min_power=settings.min_power,
        )

    def _report(self, limits: Limits, num_pairs: int, num_dropped: int) -> None:
        power = f"{limits.power:.0%} of pairs mispaired on purpose are found"
        if limits.reliable:
            self.notes.append(
                f"about {limits.share:.1%} of {num_pairs:,} pairs look mismatched; "
                f"{num_dropped:,} rows fit too badly to stay ({power})"
            )
            return
        if limits.separation < self._settings.min_separation:
            short = (
                f"only {limits.separation:.0%} of pairs mispaired on purpose score below the "
                f"median pair, less than min_separation ({self._settings.min_separation:.0%})"
            )
        else:
            short = f"only {power}, less than min_power ({self._settings.min_power:.0%})"
        self.notes.append(
            f"the scores are no safe guide to {num_pairs:,} pairs: {short}; nothing is dropped"
        )


def _judge(
    rows: np.ndarray, places: np.ndarray, found: MatchScores, limits: Limits
) -> tuple[pa.Table, int]:
    """The verdicts on some rows, and how many of them are drops."""
    scores, clusters = found.scores[places], found.clusters[places]
    known = np.isfinite(scores)
    below = known & (scores < limits.limits[clusters]) & limits.reliable
    details: list[str | None] = [None] * len(rows)
    for place in np.flatnonzero(below).tolist():
        limit = limits.limits[clusters[place]]
        details[place] = (
            f"fits {_times(scores[place])} as well as the average picture, {_times(limit)} needed "
            f"(score {scores[place]:.2f} < {limit:.2f})"
        )
    doubts = limits.doubts(scores, clusters)
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "reason": pa.array(
                ["mismatched_pair" if drop else None for drop in below.tolist()], pa.string()
            ),
            "detail": pa.array(details, pa.string()),
            "match_score": pa.array(scores, pa.float64(), mask=~known),
            "mismatched_pair_doubt": pa.array(doubts, pa.float64(), mask=~known),
        }
    )
    return table, int(below.sum())


def _times(score: float) -> str:
    """A score as the factor that it is the logarithm of."""
    return f"{np.exp(score):.2g} ×" if score > np.log(0.01) else "< 0.01 ×"


def _keep_only(folder: Path) -> None:
    """Remove what earlier pools left behind: only an unchanged pool can use it."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)

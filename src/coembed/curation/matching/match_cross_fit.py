"""Scores of all pairs of a pool by towers that never saw them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coembed.curation.filters.base import PoolView
from coembed.curation.matching.cross_fit import TrainingPairs, count_steps, fit_fold, torch_threads
from coembed.curation.matching.cross_fit_settings import CrossFitSettings
from coembed.curation.matching.folds import assign_folds
from coembed.curation.matching.judged_pairs import JudgedPairs
from coembed.curation.matching.match_scores import (
    MAX_FITTED,
    MAX_REFERENCES,
    CaptionClusters,
    MatchScores,
)
from coembed.curation.matching.pair_scores import References, score_mispaired, score_pairs
from coembed.curation.matching.small_towers import SmallTowers, Vocabulary
from coembed.curation.matching.thumbnails import Thumbnails, picture_keys
from coembed.progress import tracker

Numbers = NDArray[np.int64]

_BATCH = 4096


class TooLittle(Exception):  # noqa: N818 - a finding, not a fault
    """There is too little to learn from."""


def score_by_cross_fit(
    pool: PoolView, pairs: JudgedPairs, settings: CrossFitSettings, *, checkpoints: Path
) -> MatchScores:
    """Train a model a fold and score each fold's pairs with its own. NaN where no word of a caption
    is known, or the picture cannot be decoded.

    Raises TooLittle, and DataError when media cannot be read any more.
    """
    with (
        torch_threads(settings.num_threads),
        Thumbnails(pool, px=settings.image_px, num_threads=settings.num_threads) as thumbnails,
    ):
        learnt, good = _gather(pool, pairs, settings, thumbnails)
        num_usable = int((learnt.bags.sizes > 0).sum())
        if num_usable < settings.min_pairs:
            raise TooLittle(
                f"only {num_usable:,} of {pairs.num_pairs:,} captions hold words that come up in "
                f"{settings.min_word_count} captions or more"
            )
        towers = _fit(learnt, settings, seed=pool.seed, checkpoints=checkpoints)
        copies: dict[int, int] = {}
        if len(learnt.pixels) < pairs.num_items:
            keys = picture_keys(learnt.pixels).tolist()
            copies = dict(zip(keys, learnt.folds.tolist(), strict=True))
        return _Scorer(pairs, learnt, good, towers, thumbnails, pool.seed, copies).score()


def _gather(
    pool: PoolView, pairs: JudgedPairs, settings: CrossFitSettings, thumbnails: Thumbnails
) -> tuple[TrainingPairs, NDArray[np.bool_]]:
    """The pairs to learn from, and which items' pictures could be decoded."""
    num_items = pairs.num_items_within(settings.max_train_pairs)
    progress = tracker(total=num_items, label="decode for cross-fitting", unit="images")
    try:
        pixels, good = thumbnails.write(
            pool.scratch / "thumbnails.npy",
            (paths for _, paths in pairs.items(num_items=num_items)),
            num_items,
            progress,
        )
    finally:
        progress.close()
    numbers, captions = [], []
    for batch in pairs.batches(num_items=num_items):
        numbers.append(batch.numbers)
        captions.extend(batch.captions)
    items = np.concatenate(numbers)
    texts = [" ".join(caption.casefold().split()) for caption in captions]
    places: dict[str, int] = {}
    vocabulary = Vocabulary(
        captions, min_count=settings.min_word_count, max_words=settings.max_words
    )
    folds = assign_folds(picture_keys(pixels).tolist(), items, texts, num_folds=settings.num_folds)
    learnt = TrainingPairs(
        pixels=pixels,
        items=items,
        texts=np.array([places.setdefault(text, len(places)) for text in texts], np.int64),
        folds=folds,
        bags=vocabulary.bags(captions),
        vocabulary=vocabulary,
    )
    return learnt, good


def _fit(
    learnt: TrainingPairs, settings: CrossFitSettings, *, seed: int, checkpoints: Path
) -> list[SmallTowers]:
    sizes = np.bincount(learnt.folds[learnt.items], minlength=settings.num_folds)
    total = sum(count_steps(len(learnt.items) - int(size), settings) for size in sizes)
    progress = tracker(total=total, label="cross-fit", unit="steps")
    try:
        return [
            fit_fold(
                learnt,
                fold,
                settings,
                seed=seed,
                checkpoint=checkpoints / f"fold-{fold}.safetensors",
                progress=progress,
            )
            for fold in range(settings.num_folds)
        ]
    finally:
        progress.close()


@dataclass(frozen=True)
class _Scorer:
    pairs: JudgedPairs
    learnt: TrainingPairs
    good: NDArray[np.bool_]
    towers: list[SmallTowers]
    thumbnails: Thumbnails
    seed: int
    fold_of_picture: dict[int, int]

    def score(self) -> MatchScores:
        """Scores of all pairs, streamed."""
        some = torch.arange(min(len(self.learnt.bags), MAX_FITTED))
        first = self.towers[0]
        with torch.inference_mode():
            sample = first.embed_captions(*self.learnt.bags.take(some))
        clusters = CaptionClusters(sample, num_captions=self.pairs.num_pairs, seed=self.seed)
        references, wrong, wrong_clusters = [], [], []
        for fold in range(len(self.towers)):
            rows = self._reference_rows(fold)
            references.append(self._references(fold, rows))
            scores, places = score_mispaired(references[-1], seed=self.seed)
            with torch.inference_mode():
                vectors = first.embed_captions(*self.learnt.bags.take(torch.from_numpy(rows)))
            wrong.append(scores)
            wrong_clusters.append(clusters.of(vectors)[places])
        scores = np.full(self.pairs.num_pairs, np.nan)
        found = np.zeros(self.pairs.num_pairs, np.int64)
        progress = tracker(total=self.pairs.num_pairs, label="score", unit="pairs")
        try:
            for start, numbers, captions, pixels, good in self._batches():
                part = slice(start, start + len(numbers))
                bags = self.learnt.vocabulary.bags(captions)
                found[part] = clusters.of(first.caption_vectors(bags))
                folds = self._folds(numbers, pixels)
                usable = good & (bags.sizes.numpy() > 0)
                for fold, towers in enumerate(self.towers):
                    own = np.flatnonzero(usable & (folds == fold))
                    at = torch.from_numpy(own)
                    with torch.inference_mode():
                        texts = towers.embed_captions(*bags.take(at))
                    scores[start + own] = score_pairs(
                        towers.picture_vectors(pixels[own]),
                        texts,
                        torch.from_numpy(numbers[own]),
                        references[fold],
                    )
                progress.advance(len(numbers))
        finally:
            progress.close()
        return MatchScores(scores, found, np.concatenate(wrong), np.concatenate(wrong_clusters))

    def _reference_rows(self, fold: int) -> Numbers:
        """Held-out pairs that the others of the fold are compared with."""
        learnt = self.learnt
        usable = (learnt.folds[learnt.items] == fold) & (learnt.bags.sizes.numpy() > 0)
        usable &= self.good[learnt.items]
        rows: Numbers = np.flatnonzero(usable)[:MAX_REFERENCES]
        return rows

    def _references(self, fold: int, rows: Numbers) -> References:
        towers, learnt = self.towers[fold], self.learnt
        items = learnt.items[rows]
        with torch.inference_mode():
            captions = towers.embed_captions(*learnt.bags.take(torch.from_numpy(rows)))
        pictures = towers.picture_vectors(learnt.pixels[items])
        return References(pictures, captions, torch.from_numpy(items))

    def _batches(
        self,
    ) -> Iterator[tuple[int, Numbers, list[str], NDArray[np.uint8], NDArray[np.bool_]]]:
        """Start, item numbers, captions, pixels and whether they are decoded, of all pairs."""
        num_kept = len(self.learnt.pixels)
        for batch in self.pairs.batches():
            for at in range(0, len(batch.numbers), _BATCH):
                part = slice(at, at + _BATCH)
                numbers, paths = batch.numbers[part], batch.paths[part]
                kept = numbers < num_kept
                if kept.all():
                    pixels, good = self.learnt.pixels[numbers], self.good[numbers]
                else:
                    # Read again: keeping the thumbnails of any number of items takes a disk.
                    pixels, good = self.thumbnails.read(paths)
                yield batch.start + at, numbers, batch.captions[part], pixels, good

    def _folds(self, numbers: Numbers, pixels: NDArray[np.uint8]) -> Numbers:
        """Folds of items; one that nobody learnt from goes where its near copies are."""
        folds = self.learnt.folds
        inside = numbers < len(folds)
        # Item numbers follow hashes: their remainders are as good as random.
        found: Numbers = np.where(
            inside, folds[np.minimum(numbers, len(folds) - 1)], numbers % len(self.towers)
        )
        if not inside.all():
            keys = picture_keys(pixels).tolist()
            for place in np.flatnonzero(~inside).tolist():
                found[place] = self.fold_of_picture.get(keys[place], found[place])
        return found

"""Settings of cross-fitting, apart from it: reading them must not import torch."""

from __future__ import annotations

from pydantic import Field

from coembed.settings import Settings


class CrossFitSettings(Settings):
    """How the small towers are trained. The defaults take half a minute of one core for 5,600 pairs
    of the demo; twice the `epochs` ranked its swapped captions only a little better (mean average
    precision 0.98 for 0.97, over two draws, at half this `lr`).

    num_folds: how often the pool is learnt, each time without one fold.
    image_px: side of the thumbnails.
    epochs, min_steps: passes over the training folds, and the least number of steps.
    max_train_pairs: of a larger pool, the pairs that the towers learn from; all pairs are scored.
    min_pairs: fewer are not even tried (a guess; 1,000 pairs of the demo are too few to learn
        from).
    max_words, min_word_count: size of the vocabulary, and in how many captions a word must be.
    num_threads: of torch; a setting, because sums depend on it in their last digits. More than one
        gains little on so small towers, and loses much where other programs use the cores too.
    """

    num_folds: int = Field(default=3, ge=2, le=20)
    image_px: int = Field(default=32, ge=16, le=128)
    epochs: int = Field(default=10, ge=1, le=1000)
    min_steps: int = Field(default=150, ge=1)
    batch_size: int = Field(default=128, ge=8, le=8192)
    lr: float = Field(default=4e-3, gt=0, le=1)
    max_train_pairs: int = Field(default=200_000, ge=100)
    min_pairs: int = Field(default=500, ge=50)
    max_words: int = Field(default=20_000, ge=10)
    min_word_count: int = Field(default=5, ge=1)
    num_threads: int = Field(default=1, ge=1, le=256)

"""Cross-fitting: small towers learn from all folds but one, for judging the pairs of that one.

What a model was trained on it finds plausible, wrong captions included; a held-out wrong caption
contradicts what the other folds taught (confident learning, Northcutt et al. 2021, arXiv
1911.00068, section 3). A pure function of the pairs, the settings and the seed, on one kind of
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coembed.curation.matching.cross_fit_settings import CrossFitSettings
from coembed.curation.matching.small_towers import Bags, SmallTowers, Vocabulary, to_inputs
from coembed.files import atomic_path, sha256_json
from coembed.losses.softmax import Softmax
from coembed.progress import Tracker

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingPairs:
    """What the towers learn from. pixels: uint8 [items, px, px, 3]; items, texts: of each pair, the
    number of its item, and a number that equal captions share; folds: of each item; bags: words."""

    pixels: NDArray[np.uint8]
    items: Numbers
    texts: Numbers
    folds: Numbers
    bags: Bags
    vocabulary: Vocabulary


def fit_fold(
    pairs: TrainingPairs,
    fold: int,
    settings: CrossFitSettings,
    *,
    seed: int,
    checkpoint: Path,
    progress: Tracker,
) -> SmallTowers:
    """Towers that learnt from every fold but `fold`. Reads them from `checkpoint` when they are
    there, and writes it when they are not."""
    known = np.flatnonzero((pairs.folds[pairs.items] != fold) & (pairs.bags.sizes.numpy() > 0))
    num_steps = count_steps(len(known), settings)
    towers = _load(checkpoint, len(pairs.vocabulary))
    if towers is None:
        # Dropout draws from torch's own generator, which is given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_seed(seed, fold, "weights"))
            towers = SmallTowers(len(pairs.vocabulary))
            _train(
                towers, pairs, torch.from_numpy(known), num_steps, settings, seed, fold, progress
            )
        with atomic_path(checkpoint) as partial:
            state = {name: value.contiguous() for name, value in towers.state_dict().items()}
            save_file(state, partial)
    else:
        progress.advance(num_steps)
    return towers.eval()


def count_steps(num_pairs: int, settings: CrossFitSettings) -> int:
    """Steps of training on `num_pairs` pairs."""
    batches = num_pairs // min(settings.batch_size, max(num_pairs, 1))
    return max(settings.epochs * batches, settings.min_steps)


@contextmanager
def torch_threads(num: int) -> Iterator[None]:
    """Let torch use `num` threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    towers: SmallTowers,
    pairs: TrainingPairs,
    known: Tensor,
    num_steps: int,
    settings: CrossFitSettings,
    seed: int,
    fold: int,
    progress: Tracker,
) -> None:
    optimiser = torch.optim.AdamW(towers.parameters(), lr=settings.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.lr, total_steps=num_steps, pct_start=0.15
    )
    loss_of, log_scale = Softmax(), torch.zeros(())
    items, texts = torch.from_numpy(pairs.items), torch.from_numpy(pairs.texts)
    generator = torch.Generator().manual_seed(_seed(seed, fold, "batches"))
    towers.train()
    for step, rows in enumerate(_batches(known, settings.batch_size, generator)):
        if step == num_steps:
            break
        own_items, own_texts = items[rows], texts[rows]
        pixels = torch.from_numpy(pairs.pixels[own_items.numpy()])
        pictures = towers.embed_pictures(_vary(to_inputs(pixels), generator))
        captions = towers.embed_captions(*pairs.bags.take(rows))
        alike = (own_items[:, None] == own_items) | (own_texts[:, None] == own_texts)
        matches = (alike & ~torch.eye(len(rows), dtype=torch.bool)).nonzero()
        loss = loss_of(captions, pictures, logit_scale=log_scale, positives=matches)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        progress.advance()


def _batches(known: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches; each pass in another order, its last and smaller batch left out."""
    size = min(size, len(known))
    while True:
        order = known[torch.randperm(len(known), generator=generator)]
        yield from (order[at : at + size] for at in range(0, len(order) - size + 1, size))


def _vary(
    pictures: Float[Tensor, "batch 3 px px"], generator: torch.Generator
) -> Float[Tensor, "batch 3 px px"]:
    """Mirror half of the pictures, and shift all of them by up to an eighth."""
    mirrored = torch.rand(len(pictures), generator=generator) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    px = pictures.shape[-1]
    margin = px // 8
    top, left = torch.randint(0, 2 * margin + 1, (2,), generator=generator).tolist()
    padded = F.pad(pictures, [margin] * 4, mode="replicate")
    shifted = padded[:, :, top : top + px, left : left + px]
    return shifted.contiguous(memory_format=torch.channels_last)


def _load(checkpoint: Path, num_words: int) -> SmallTowers | None:
    if not checkpoint.is_file():
        return None
    towers = SmallTowers(num_words)
    try:
        towers.load_state_dict(load_file(checkpoint))
    except (SafetensorError, RuntimeError, OSError):
        return None  # damaged: it is made again
    return towers


def _seed(seed: int, fold: int, what: str) -> int:
    return int(sha256_json([seed, fold, what])[:15], 16)

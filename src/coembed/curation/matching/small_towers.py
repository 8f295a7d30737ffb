"""Two small towers that learn a pool's own words and pictures within seconds on a CPU.

The image tower is a residual network of a few layers on thumbnails; the text tower adds up one
vector a word. Their dot product, trained with CLIP's loss, approaches the log of how much likelier
a caption is beside this picture than beside any other (van den Oord et al. 2018, arXiv 1807.03748,
section 2.3). Predicting the words of a caption from the picture (Joulin et al. 2016, arXiv
1511.02251) with the same network was tried as well: at a precision of 0.9 it found 0.7 to 0.8 of
the demo's swapped captions where this finds more than 0.9.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from coembed.modalities.image import normalise

_WIDTH = 16
_DROPOUT = 0.2
VECTOR_DIM = 16 * _WIDTH + 1
"""Length of the towers' vectors; the last number carries a word's own frequency."""

_MEAN, _STD = (0.48, 0.46, 0.41), (0.255, 0.255, 0.255)
_WORD = re.compile(r"\w+")
# Scripts written without spaces: a character and each pair of neighbours stand for words.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Sums over more words than this are scaled down: the logits of a page would dwarf a phrase's.
_FULL_WORDS = 16
_MAX_WORDS = 64


def words(caption: str) -> list[str]:
    """The different words of a caption, in order; at most 64."""
    found: dict[str, None] = {}
    for word in _WORD.findall(caption[:4000].casefold()):
        if _UNSPACED.search(word):
            found.update(dict.fromkeys(word))
            found.update(dict.fromkeys(a + b for a, b in pairwise(word)))
        else:
            found[word[:32]] = None
        if len(found) >= _MAX_WORDS:
            break
    return list(found)[:_MAX_WORDS]


class Vocabulary:
    """Words that come up often enough to be learnt.

    Words in fewer than `min_count` captions are unknown; of more than `max_words`, the most
    frequent count.
    """

    def __init__(self, captions: Iterable[str], *, min_count: int, max_words: int) -> None:
        counts = Counter(word for caption in captions for word in words(caption))
        often = sorted(
            (word for word, num in counts.items() if num >= min_count),
            key=lambda word: (-counts[word], word),
        )
        self._places = {word: place for place, word in enumerate(often[:max_words])}

    def __len__(self) -> int:
        return len(self._places)

    def bags(self, captions: Sequence[str]) -> Bags:
        """The known words of each caption."""
        known = [[p for w in words(c) if (p := self._places.get(w)) is not None] for c in captions]
        return Bags(known)


class Bags:
    """Bags of words: the places of each caption's words in the vocabulary, back to back."""

    def __init__(self, places: Sequence[Sequence[int]]) -> None:
        self.sizes = torch.tensor([len(bag) for bag in places], dtype=torch.int64)
        self._starts = torch.cumsum(self.sizes, 0) - self.sizes
        self._places = torch.tensor([p for bag in places for p in bag], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, rows: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor, Tensor]:
        """Places, start of each bag among them, and sizes, of some captions."""
        sizes = self.sizes[rows]
        starts = torch.cumsum(sizes, 0) - sizes
        within = torch.arange(int(sizes.sum())) - torch.repeat_interleave(starts, sizes)
        flat = torch.repeat_interleave(self._starts[rows], sizes) + within
        return self._places[flat], starts, sizes


class SmallTowers(nn.Module):
    """Thumbnails and bags of words into one space of VECTOR_DIM numbers (not of unit length)."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        w = _WIDTH
        self.trunk = nn.Sequential(
            nn.Conv2d(3, w, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            _Block(w, 2 * w),
            _Block(2 * w, 4 * w),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(_DROPOUT),
        ).to(memory_format=torch.channels_last)
        self.words = nn.EmbeddingBag(num_words, VECTOR_DIM, mode="sum")
        bound = (VECTOR_DIM - 1) ** -0.5  # what a linear layer on the features would start with
        nn.init.uniform_(self.words.weight, -bound, bound)

    def embed_pictures(
        self, inputs: Float[Tensor, "batch 3 px px"]
    ) -> Float[Tensor, "batch {VECTOR_DIM}"]:
        """Vectors of normalised pictures."""
        features = self.trunk(inputs)
        return F.pad(features, (0, 1), value=1.0)

    def embed_captions(
        self, places: Tensor, starts: Tensor, sizes: Tensor
    ) -> Float[Tensor, "batch {VECTOR_DIM}"]:
        """Vectors of bags of words, as `Bags.take` gives them."""
        scale = (_FULL_WORDS / sizes.clamp(min=_FULL_WORDS)).sqrt()
        return self.words(places, starts) * scale[:, None]

    @torch.inference_mode()
    def picture_vectors(self, pixels: NDArray[np.uint8]) -> Float[Tensor, "items dim"]:
        """Vectors of thumbnails [items, px, px, 3]: the mean of the picture's and its mirror's."""
        found = []
        for start in range(0, len(pixels), 512):
            inputs = to_inputs(torch.from_numpy(np.ascontiguousarray(pixels[start : start + 512])))
            found.append((self.embed_pictures(inputs) + self.embed_pictures(inputs.flip(3))) / 2)
        return torch.cat(found) if found else torch.empty((0, VECTOR_DIM))

    @torch.inference_mode()
    def caption_vectors(self, bags: Bags) -> Float[Tensor, "captions dim"]:
        """Vectors of all captions of `bags`."""
        return self.embed_captions(*bags.take(torch.arange(len(bags))))


def to_inputs(pixels: UInt8[Tensor, "batch px px 3"]) -> Float[Tensor, "batch 3 px px"]:
    """Normalised inputs of the image tower."""
    return normalise(pixels, _MEAN, _STD)


class _Block(nn.Module):
    """A residual block that halves the size."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(num_out)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(num_out)
        self.skip = nn.Conv2d(num_in, num_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = F.relu(self.first_norm(self.first(x)))
        found = self.second_norm(self.second(found))
        return F.relu(found + self.skip(F.avg_pool2d(x, 2, ceil_mode=True)))

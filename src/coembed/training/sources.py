"""Opens the pairs of a split for training: finds them in the shards, tokenises them, and chooses
where each modality's media come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from coembed.code import code_hash
from coembed.errors import DataError, ModelError
from coembed.files import read_json, sha256_json, write_json
from coembed.modalities.base import View, make_view
from coembed.models.encoder import Encoder
from coembed.models.spec import ModelSpec
from coembed.pairs.shards import Place, locate_samples, num_samples, read_samples, shard_paths
from coembed.progress import tracker
from coembed.settings import Settings
from coembed.training.cache_folder import CacheFolder
from coembed.training.data import Stream
from coembed.training.items import (
    INDEX_FORMAT,
    Items,
    read_captions,
    read_items,
    write_items,
)
from coembed.training.media import (
    Decoded,
    Embedded,
    FromShards,
    Media,
    num_cores,
    read_media,
    write_decoded,
)
from coembed.training.settings import CacheSettings
from coembed.types import MODALITIES, Modality, Sample, Split

_TRIED = 64  # items that are decoded to find out how large they are and how long it takes
_MAX_THREADS = 8
_MODALITIES = "modalities.json"


@dataclass(frozen=True)
class Source:
    """A split of curated pairs and what its cached forms are named after.

    content: all that they depend on besides the settings of each form, as plain JSON values.
    limit: only so many items of each modality.
    """

    pairs: Path
    split: Split
    spec: ModelSpec
    cache: CacheFolder
    content: Mapping[str, Any]
    limit: int | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities of its items, for which the model must have towers."""
        found = cast(tuple[Modality, ...], self._found())
        missing = sorted(set(found) - set(self.spec.inputs))
        if missing:
            raise ModelError(
                f"the {self.split} split of {self.pairs} holds items of modality "
                f"{', '.join(missing)}, for which the model has no tower; it has "
                f"{', '.join(self.spec.inputs)}",
                hint="give model.architecture such a section (audio_cfg), or keep these items out "
                "of the pool",
            )
        return found

    def open_items(self, modality: Modality, *, hard_negatives: str | None) -> tuple[Items, Path]:
        """The items of `modality`, and the folder they lie in."""
        texts = self.spec.loader("text")
        key = self.key(
            form="items", modality=modality, format=INDEX_FORMAT, hard_negatives=hard_negatives,
            text=[self.spec.text.model_dump(mode="json"), dict(texts.identity())],
        )  # fmt: skip

        def write(folder: Path) -> None:
            write_items(
                folder, self._located(modality), tokenise=texts.load,
                hard_negatives=hard_negatives, label=f"{self.split} {modality}s",
            )  # fmt: skip

        num = num_samples(self.pairs, self.split)
        folder = self.cache.open(key, num * (64 + 4 * self.spec.text.context_length), write)
        if folder is None:
            raise DataError(
                f"the captions of the {num:,} items of the {self.split} split do not fit the cache",
                hint="raise train.cache.max_gb, or free some space on the disk of runs/",
            )
        return read_items(folder, modality), folder

    def open_media(
        self,
        items: Items,
        augment: Settings | None,
        settings: CacheSettings,
        *,
        passes: float,
        num_threads: int,
    ) -> tuple[Media, str]:
        """The media of `items` as `augment` varies them, and in a few words where they come from.

        `passes` is how often each of them is going to be seen.
        """
        view = make_view(items.modality, self.spec.inputs[items.modality], augment)
        size, decode_s = self._try_out(items, view)
        estimate = size * len(items)
        timed = f"decoding takes {1e3 * decode_s:.2g} ms on a core"
        if settings.mode == "decoded" or (settings.mode == "auto" and passes > 1):
            key = self.key(form="decoded", modality=items.modality, view=dict(view.identity()))

            def write(folder: Path) -> None:
                label = f"{self.split} {items.modality}s"
                write_decoded(folder, self._samples(items.modality), view, label=label)

            folder = self.cache.open(key, estimate, write)
            if folder is not None:
                words = f"decoded once into {_gigabytes(estimate)} ({timed}; seen {passes:.3g} x)"
                return Decoded(folder, view, num_threads=num_threads), words
            if settings.mode == "decoded":
                raise DataError(
                    f"decoded, the {items.modality}s of the {self.split} split take "
                    f"{_gigabytes(estimate)}, which do not fit the cache",
                    hint="raise train.cache.max_gb, free some space, or set train.cache.mode to "
                    "shards",
                )
            why = f"decoded they would take {_gigabytes(estimate)}"
        else:
            why = "each is seen once" if settings.mode == "auto" else "as train.cache.mode asks"
        shards = shard_paths(self.pairs, self.split)
        media = FromShards(shards, items, view, num_threads=num_threads)
        return media, f"from the shards, decoded when needed ({timed}; {why})"

    def embed_media(self, items: Items, encoder: Encoder, *, name: str) -> NDArray[np.float32]:
        """Embeddings of `items` by `encoder`, float32 [num_items, dim]; made once and kept."""
        media = (sample.media for sample in self._samples(items.modality))
        return self._embed(encoder, items.modality, media, items, len(items), name)

    def embed_captions(
        self, items: Items, folder: Path, encoder: Encoder, *, name: str
    ) -> NDArray[np.float32]:
        """Embeddings of the captions of `items`, float32 [num_captions, dim]; `folder` is where
        `open_items` found these."""
        num = len(items.tokens)
        return self._embed(encoder, "text", read_captions(folder), items, num, name)

    def key(self, **form: Any) -> str:
        """The name of a cached form."""
        about = {**self.content, "split": self.split, "limit": self.limit, **form}
        return sha256_json(about)[:32]

    def _embed(
        self, encoder: Encoder, modality: str, found: Iterator[Any], items: Items, num: int,
        name: str,
    ) -> NDArray[np.float32]:  # fmt: skip
        key = self.key(
            form="embeddings", modality=modality, of=items.modality, encoder=encoder.fingerprint,
            device=encoder.device.type, models=code_hash("models"),
        )  # fmt: skip

        def write(folder: Path) -> None:
            task = tracker(total=num, label=f"{name}: {self.split} {modality}s", unit="items")
            with (folder / "embeddings.f32").open("wb") as file:
                for part in encoder.stream(modality, found):
                    file.write(part.astype(np.float32).tobytes())
                    task.advance(len(part))
            task.close()

        folder = self.cache.open(key, 4 * num * encoder.embed_dim, write)
        if folder is None:
            raise DataError(
                f"the embeddings of {num:,} {modality}s ({_gigabytes(4 * num * encoder.embed_dim)})"
                " do not fit the cache",
                hint="raise train.cache.max_gb, or free some space on the disk of runs/",
            )
        found_there = np.memmap(folder / "embeddings.f32", dtype=np.float32, mode="r")
        return found_there.reshape(num, encoder.embed_dim)

    def _found(self) -> tuple[str, ...]:
        """Kept too: going over the headers of a hundred million items takes its time."""

        def write(folder: Path) -> None:
            seen = {sample.modality for sample, _ in locate_samples(self.pairs, self.split)}
            write_json(folder / _MODALITIES, [name for name in MODALITIES if name in seen])

        folder = self.cache.open(self.key(form="modalities"), 1024, write)
        if folder is None:
            raise DataError("no space is left for train's cache under runs/", hint="free some")
        return tuple(read_json(folder / _MODALITIES, what="list of modalities"))

    def _located(self, modality: Modality) -> Iterator[tuple[Sample, Place]]:
        found = locate_samples(self.pairs, self.split)
        return islice(((s, p) for s, p in found if s.modality == modality), self.limit)

    def _samples(self, modality: Modality) -> Iterator[Sample]:
        found = read_samples(self.pairs, self.split, verify=True)
        return islice((sample for sample in found if sample.modality == modality), self.limit)

    def _try_out(self, items: Items, view: View) -> tuple[float, float]:
        """Bytes that an item takes decoded, and seconds that decoding it takes on one core."""
        shards = shard_paths(self.pairs, self.split)
        rows = range(min(len(items), _TRIED))
        media = [read_media(shards, items, row) for row in rows]
        began = time.perf_counter()
        num_bytes = num_kept = 0
        for data in media:
            with suppress(DataError):  # named, with its path, where the item is wanted
                num_bytes += view.keep(data).nbytes
                num_kept += 1
        each_s = (time.perf_counter() - began) / max(1, num_kept)
        return num_bytes / max(1, num_kept), each_s


def open_stream(
    source: Source,
    modality: Modality,
    *,
    augment: Settings | None,
    cache: CacheSettings,
    passes: float,
    hard_negatives: str | None,
    device: torch.device,
    frozen: Mapping[str, Encoder],
    teacher: Encoder | None,
    num_neighbours: int = 1,
) -> tuple[Stream, str]:
    """The pairs of `modality` beside text, and in a few words where their media come from.

    `frozen` holds encoders of the towers that never learn, by modality: what these make is made
    once. `num_neighbours` counts the processes of this run on this machine, which share its cores.
    """
    items, folder = source.open_items(modality, hard_negatives=hard_negatives)
    media: Media
    if modality in frozen:
        media = Embedded(source.embed_media(items, frozen[modality], name="frozen tower"))
        words = "embedded once by the frozen tower"
    else:
        threads = cache.num_threads or _threads(device, num_neighbours)
        media, words = source.open_media(items, augment, cache, passes=passes, num_threads=threads)
    texts = None
    if "text" in frozen:
        texts = source.embed_captions(items, folder, frozen["text"], name="frozen tower")
    taught = None
    if teacher is not None:
        taught = (
            source.embed_media(items, teacher, name="teacher"),
            source.embed_captions(items, folder, teacher, name="teacher"),
        )
    return Stream(items, media, texts, taught), words


def _threads(device: torch.device, num_neighbours: int) -> int:
    """Threads that make batches: on a CPU the arithmetic needs the cores, and one keeps up."""
    return 1 if device.type == "cpu" else max(1, min(num_cores() // num_neighbours, _MAX_THREADS))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"

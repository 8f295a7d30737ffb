"""The interface of a modality.

A modality is one module of this package, named as in `coembed.types.Modality`. It decodes media,
transforms them into a tower's inputs and builds the tower. The module holds

    SECTION      the name of its section in an architecture ("vision_cfg")
    OPEN_CLIP    the name of its tower inside an open_clip model ("visual")
    Spec         subclass of InputSpec: everything about the inputs that a model depends on
    describe     (section, preprocess) → Spec
    build_tower  (embed_dim, section, quick_gelu) → tower
    Loader       subclass of Loader
    View         subclass of View; a modality of captions (text) has none

so that a model, its checkpoint and its encoder work for every modality alike.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coembed import draws
from coembed.settings import Settings, component_names

MAX_PIXELS = 64_000_000
"""Default limit of an image's size, in pixels: 192 MB once decoded."""

MAX_AUDIO_S = 3600.0
"""Default limit of a sound's length, in seconds: 115 MB once decoded at 16 kHz."""


class InputSpec(Settings):
    """What a tower's inputs are: model.json holds it, and the fingerprint covers it."""

    def local_files(self, root: Path) -> Path | None:  # noqa: ARG002
        """The folder under `root` that holds the loader's files, where the spec names one."""
        return None


class Loader(ABC):
    """Turns raw items of one modality into a tower's inputs. Safe to call from several threads."""

    dtype: ClassVar[torch.dtype]
    """Of what `load` returns."""

    @abstractmethod
    def load(self, items: Sequence[Any], *, first: int = 0) -> Tensor:
        """Decode and transform on the host, as compactly as can be: [len(items), ...].

        `first` is the number of the first item, by which an error names the item.
        Raises DataError.
        """

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One batch from what `load` gave for its parts (one or more), in their order."""
        return torch.cat(list(parts))

    def max_item_bytes(self) -> int:
        """The most that an item takes up as `load` gives it."""
        return self.example().nbytes

    @abstractmethod
    def to_inputs(self, batch: Tensor) -> Tensor:
        """The tower's inputs from what `load` gave, on whatever device it is by now."""

    @abstractmethod
    def example(self) -> Tensor:
        """What `load` could give for one item: to try a tower out with."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What, beside the Spec, decides about the inputs (a hash of the vocabulary)."""

    def save(self, folder: Path) -> None:  # noqa: B027 (most modalities need no files)
        """Write the files that the loader needs beside the Spec into `folder`."""


class View(ABC):
    """What training keeps of an item, and what a step sees of it. Built as `View(spec, augment)`.

    Without `augment` an item is always seen in the one way in which a query is embedded, as
    `Loader.load` gives it. Safe to call from several threads.
    """

    dtype: ClassVar[np.dtype[Any]]
    """Of what is kept and of what is seen."""

    @abstractmethod
    def keep(self, media: bytes) -> NDArray[Any]:
        """Decode media into what the cache holds: an array of `dtype` in C order whose shape
        follows from its size (`shape`). Raises DataError.
        """

    @abstractmethod
    def shape(self, size: int) -> tuple[int, ...]:
        """Shape of a kept array of `size` elements."""

    @abstractmethod
    def see(
        self, kept: Sequence[NDArray[Any]], keys: draws.Keys, *, seed: int, epoch: int
    ) -> NDArray[Any]:
        """What a step in `epoch` sees of items, [len(kept), ...], for `Loader.to_inputs`.

        `keys` are the items' keys, [len(kept)]; every random choice is one of `coembed.draws`.
        """

    def join(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One batch from what `see` gave for its parts (one or more), in their order."""
        return parts[0] if len(parts) == 1 else np.concatenate(list(parts))

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What `keep` depends on, beside the media and the code, as plain JSON values."""


class ModalityModule(Protocol):
    """What a module of this package holds."""

    SECTION: str
    OPEN_CLIP: str
    Spec: type[InputSpec]
    Loader: type[Any]
    View: type[Any]

    def describe(self, section: Mapping[str, Any], preprocess: Mapping[str, Any]) -> InputSpec:
        """The Spec that an architecture's section stands for. Raises ModelError.

        `preprocess` holds what a pretrained checkpoint asks for, as in open_clip's
        `preprocess_cfg`; empty for a model that starts from random weights.
        """

    def build_tower(
        self, embed_dim: int, section: Mapping[str, Any], *, quick_gelu: bool
    ) -> nn.Module:
        """The tower, with random weights from torch's generator. Raises ModelError."""


def modality_names() -> tuple[str, ...]:
    """Names of the modalities that have a module here."""
    return component_names("coembed.modalities")


def modality_module(name: str) -> ModalityModule:
    """The module of the modality `name`."""
    return cast(ModalityModule, importlib.import_module(f"coembed.modalities.{name}"))


def load_loader(name: str, spec: InputSpec, *, files: Path | None = None) -> Loader:
    """The loader of modality `name`; `files` is the folder that `Loader.save` wrote."""
    loader = modality_module(name).Loader(spec, files=files)
    assert isinstance(loader, Loader)
    return loader


def make_view(name: str, spec: InputSpec, augment: Settings | None) -> View:
    """The view of modality `name`; `augment` None sees every item as a query is seen."""
    view = modality_module(name).View(spec, augment)
    assert isinstance(view, View)
    return view

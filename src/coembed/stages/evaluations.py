"""Evaluations of registered versions on one and the same frozen evaluation set.

A version's evaluation is attached to its run. It stands where it was taken of the same items, in
the same way and by the same code; else the version's model is evaluated again, here and now, and
what comes of that is kept in the project's folder of runs.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import DataError, ModelError
from coembed.evaluation.outcomes_file import OUTCOMES
from coembed.files import RECEIPT, read_receipt
from coembed.locking import exclusive
from coembed.registry.settings import EVALUATED
from coembed.registry.store import ModelVersion, Registry
from coembed.stages import evaluate

_MADE_BY = "coembed evaluate"


class GoneError(ModelError):
    """A version whose files are not in the registry any more."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a project keeps things: its own `evaluation`, its curated `pairs`, its `runs`."""

    evaluation: Path
    pairs: Path
    runs: Path

    @property
    def models(self) -> Path:
        """Downloaded models, each in a folder named after its fingerprint."""
        return self.runs / "models"


@dataclass(frozen=True, slots=True)
class Comparable:
    """What two evaluations must share: the items and captions, and how they were measured."""

    evaluation_set: str
    measured: str

    @classmethod
    def of(cls, folder: Path) -> Comparable:
        """What the evaluation in `folder` is. Raises DataError where there is none."""
        receipt = read_receipt(folder, what="evaluation", made_by=_MADE_BY)
        if "measured" not in receipt:
            raise DataError(
                f"the evaluation in {folder} was made by an older coembed: no other can be "
                "compared with it",
                hint=f"run `{_MADE_BY}` again",
            )
        return cls(str(receipt["evaluation_set"]), str(receipt["measured"]))


def evaluation_of(
    cfg: Config, registry: Registry, version: ModelVersion, *, like: Comparable, places: Places
) -> Path:
    """The folder of an evaluation of `version` that can be compared with others `like` it.

    The project's own, if it is that version's; else the one kept here from before, the one attached
    to the version's run, or one that is made now.

    Raises:
        GoneError: it has to be made, but the version's files are not there any more.
        ModelError: the model has no tower for any of the items.
        DataError: the curated pairs are another evaluation set than `like` says.
    """
    if _is(places.evaluation, version, like):
        return places.evaluation
    kept = (
        places.runs / "evaluations"
        / f"{version.fingerprint[:12]}-{like.evaluation_set[:12]}-{like.measured[:12]}"
    )  # fmt: skip
    with exclusive(places.runs / "evaluations.lock", doing="evaluating a model", wait=True):
        if not _is(kept, version, like):
            _make(cfg, registry, version, kept, like=like, places=places)
    return kept


def _make(
    cfg: Config,
    registry: Registry,
    version: ModelVersion,
    kept: Path,
    *,
    like: Comparable,
    places: Places,
) -> None:
    """Put the evaluation of `version` into `kept`: the one attached to its run, or a new one."""
    if version.run_id in registry.runs_of([version]):
        registry.fetch_files(version.run_id, "evaluation", kept)
        if _is(kept, version, like):
            return
    evaluate.run(cfg, model=model_of(registry, version, places), pairs=places.pairs, out=kept)
    if Comparable.of(kept) != like:
        shutil.rmtree(kept)
        raise DataError(
            f"the curated pairs in {places.pairs} are not what the evaluation in "
            f"{places.evaluation} was taken on, or it was taken in another way",
            hint=f"run `{_MADE_BY}` first",
        )


def model_of(registry: Registry, version: ModelVersion, places: Places) -> Path:
    """The model directory of a version, downloaded if need be. Raises GoneError."""
    folder = places.models / version.fingerprint
    if folder.is_dir():
        return folder
    if not registry.has_package(version):
        raise GoneError(
            f"the files of version {version.version} are not in the registry any more: its run "
            f"{version.run_id} was deleted",
            hint="register the model again",
        )
    with exclusive(places.runs / "models.lock", doing="fetching a model", wait=True):
        return registry.download(version, folder)


def _is(folder: Path, version: ModelVersion, like: Comparable) -> bool:
    """Whether `folder` holds such an evaluation of that version."""
    if not ((folder / RECEIPT).is_file() and (folder / OUTCOMES).is_file()):
        return False
    receipt: dict[str, Any] = read_receipt(folder, what="evaluation", made_by=_MADE_BY)
    fingerprint = version.tags.get(EVALUATED, version.fingerprint)
    found = (receipt["fingerprint"], receipt["evaluation_set"], receipt.get("measured"))
    return found == (fingerprint, like.evaluation_set, like.measured)

"""Train: curated pairs → a model directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, cast

import torch

from coembed.code import code_hash
from coembed.config import Config
from coembed.errors import ConfigError, DataError
from coembed.files import (
    RECEIPT,
    atomic_folder,
    sha256_file,
    sha256_json,
    write_receipt,
    write_text,
)
from coembed.locking import exclusive
from coembed.losses.base import Loss
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model, weights_hash
from coembed.models.encoder import Encoder
from coembed.models.joint import JointModel
from coembed.models.lora import merge_lora
from coembed.models.spec import ModelSpec
from coembed.pairs.shards import num_samples
from coembed.stages.result import Result
from coembed.stages.trained_on import find_ancestors, write_trained_on
from coembed.training.cache_folder import CacheFolder
from coembed.training.data import Batches, Stream
from coembed.training.device import choose_device, choose_precision, repeatable
from coembed.training.distributed import Place, World, open_world, own_device
from coembed.training.loop import HISTORY_COLUMNS, Trained, Validate, train
from coembed.training.media import num_cores
from coembed.training.optim import add_adapters
from coembed.training.resume import Row
from coembed.training.settings import CacheSettings, Precision, TrainSettings
from coembed.training.sources import Source, open_stream
from coembed.training.teacher import open_teacher
from coembed.training.validation import headline, validate
from coembed.types import plural

_RECALL_AT = 10
_ROOMS = ("draws", "losses", "modalities", "models", "training", "stages/train", "pairs/shards")
# What decides about pixels, samples, tokens and arithmetic, besides our own code.
_LIBRARIES = ("torch", "timm", "open_clip_torch", "simplejpeg", "pillow", "soundfile", "soxr")


def run(
    cfg: Config, *, root: Path, pairs: Path, out: Path, runs: Path, place: Place | None = None
) -> Result:
    """Train the model of `cfg` on the curated pairs at `pairs` and write it to `out`.

    Relative paths in `model` and `train.loss` (an architecture's file, a checkpoint, a teacher)
    start at `root`. What survives a kill lies under `runs`: decoded pairs and frozen towers'
    embeddings in `cache/`, checkpoints and the log of rates in `train/<key>/`. The same command
    goes on from there. `place` is this process's among several (torchrun's), of which the first one
    writes. Raises UserError.
    """
    device = own_device(place, choose_device(cfg.train))
    with open_world(place, device) as world:
        num_neighbours = 1 if place is None else place.local_size
        return _run(cfg, root, pairs, out, runs, device, world, num_neighbours)


def _run(
    cfg: Config,
    root: Path,
    pairs: Path,
    out: Path,
    runs: Path,
    device: torch.device,
    world: World,
    num_neighbours: int,
) -> Result:
    settings = cfg.train
    if not num_samples(pairs, "train"):
        raise DataError(
            "the train split holds no items",
            hint="look at the drop reasons in the pairs' summary.json, and at the split's shares",
        )
    precision = choose_precision(settings, device)
    identity = {
        "pairs": sha256_file(pairs / RECEIPT),  # it holds the hashes of the shards
        "params": sha256_json(_deciding(cfg)),
        "code": code_hash(*_ROOMS),
        "seed": cfg.seed,
        "precision": precision,
    }
    loss = cast(Loss, cast(Any, settings.loss).build())
    teacher, name = None, None
    if loss.uses_teacher:
        name = cast(Any, settings.loss).teacher
        teacher = open_teacher(name, root=root, device=str(device))
        identity["teacher"] = teacher.fingerprint
    ancestors = find_ancestors(cfg.model, teacher=name, root=root)
    model, spec = build_model(cfg.model, seed=cfg.seed, root=root)
    # Architectures, tokenizers and checkpoints may be named by a path: what they hold counts.
    identity["model"] = sha256_json(_description(spec))
    key = {
        **identity, "device": device.type, "start": weights_hash(model.state_dict()),
        "libraries": _versions(),
    }  # fmt: skip
    loss.check_logit_bias(model.logit_bias)
    _check_val(cfg, pairs)
    _require_alike(key, world)
    run_folder = runs / "train" / sha256_json(key)[:16]
    with (
        _lock(run_folder, world),
        CacheFolder(runs / "cache", int(settings.cache.max_gb * 1e9)) as cache,
        repeatable(device, settings.num_threads),
    ):
        add_adapters(model, settings, seed=cfg.seed)
        opened = _Opener(
            cfg, pairs, cache, identity, model, spec, device, precision, teacher, num_neighbours
        ).open()
        # Frozen encoders took it along; the trainer brings what it needs to the device.
        model.to("cpu")
        del teacher
        batches = Batches(
            opened.train, settings, seed=cfg.seed, num_processes=world.size,
            pin=device.type == "cuda",
        )  # fmt: skip
        trained = train(
            model, spec, batches, settings,
            loss=loss, seed=cfg.seed,
            device=device, precision=precision, run_folder=run_folder,
            validate=_validator(opened.val, spec, device, precision),
            headline=headline(_RECALL_AT), world=world,
        )  # fmt: skip
        merge_lora(model)
        receipt = _receipt(
            identity, batches, trained, batch_size=settings.batch_size, num_processes=world.size
        )
        if world.is_main:
            with atomic_folder(out) as folder:
                save_model(folder, model, spec, identity)
                write_text(folder / "history.csv", _to_csv(trained.history))
                receipt["trained_on"] = write_trained_on(
                    folder, pairs, num_val=_num_val(settings), val_decides=_val_decides(settings),
                    ancestors=ancestors, num_threads=num_cores(),
                )  # fmt: skip
                write_receipt(folder, receipt)
        world.barrier()
    return _result(receipt, trained, batches, opened.words)


def _require_alike(key: dict[str, Any], world: World) -> None:
    """Refuse processes, of several machines, that would train something else than the first one."""
    theirs = world.same(key)
    if theirs != key:
        differ = ", ".join(name for name in key if key[name] != theirs[name])
        raise ConfigError(
            f"training process {world.rank} differs from the first one in: {differ}",
            hint="give all machines the same code, params.yaml, pairs and kind of device",
        )


@contextmanager
def _lock(run_folder: Path, world: World) -> Iterator[None]:
    """Keep other runs of this very model out; of several processes the first one holds the lock."""
    if not world.is_main:
        yield
        return
    with exclusive(run_folder / "lock", doing="training this very model", wait=False):
        yield


def _versions() -> dict[str, str | None]:
    """Versions of the libraries that decide; one that is not installed is not used either."""
    installed = {found.name.lower().replace("-", "_"): found.version for found in distributions()}
    return {name: installed.get(name) for name in _LIBRARIES}


def _description(spec: ModelSpec) -> dict[str, Any]:
    """What the model is made of, the vocabularies of its tokenizers included."""
    loaders = {name: dict(spec.loader(name).identity()) for name in spec.inputs}
    return {"spec": spec.to_json(), "loaders": loaders}


def _check_val(cfg: Config, pairs: Path) -> None:
    """Refuse to go by a val split that is not there."""
    settings = cfg.train
    wanting = "early_stopping" if settings.early_stopping is not None else None
    wanting = "save_weights: best" if settings.save_weights == "best" else wanting
    if wanting and not num_samples(pairs, "val"):
        raise ConfigError(
            f"train has {wanting}, but the val split holds no items",
            hint="give it a larger share in curate.split, or leave that setting out",
        )


def _num_val(settings: TrainSettings) -> int:
    """How many items of each modality of the val split are looked at."""
    return 0 if settings.validate_every_epochs is None else settings.max_val_items


def _val_decides(settings: TrainSettings) -> bool:
    """Whether the weights that are kept depend on the val split."""
    return settings.early_stopping is not None or settings.save_weights == "best"


def _deciding(cfg: Config) -> dict[str, Any]:
    """The settings that decide about the weights; how often state is saved and where decoded items
    come from do not. Nor does, so that another number may take a run up, how many processes share
    the work, though sums are then rounded otherwise and batch norms see other shares."""
    apart = {"checkpoint", "cache", "distributed"}
    return {
        "seed": cfg.seed,
        "model": cfg.model.model_dump(mode="json"),
        "train": cfg.train.model_dump(mode="json", exclude=apart),
    }


@dataclass(frozen=True)
class _Opened:
    """The streams of a run, and where the media come from, in words."""

    train: tuple[Stream, ...]
    val: tuple[Stream, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Opener:
    """Opens the train and val splits, with what the towers that never learn make of them."""

    cfg: Config
    pairs: Path
    cache: CacheFolder
    identity: Mapping[str, Any]
    model: JointModel
    spec: ModelSpec
    device: torch.device
    precision: Precision
    teacher: Encoder | None
    num_neighbours: int

    def open(self) -> _Opened:
        settings = self.cfg.train
        frozen = self._frozen()
        source = self._source("train", None)
        words = []
        streams = []
        for modality in source.modalities:
            stream, said = open_stream(
                source, modality, augment=getattr(settings.augment, modality),
                cache=settings.cache, passes=self._passes(), hard_negatives=settings.hard_negatives,
                device=self.device, frozen=frozen,
                teacher=self.teacher, num_neighbours=self.num_neighbours,
            )  # fmt: skip
            streams.append(stream)
            words.append(f"{plural(modality)} {said}")
        wanted = settings.hard_negatives
        if wanted and not any((stream.items.negatives >= 0).any() for stream in streams):
            raise DataError(
                f"train.hard_negatives names the column {wanted!r}, in which no item of the train "
                "split has a text",
                hint="name a column of the pool that holds captions that do not describe the item",
            )
        val = []
        if settings.validate_every_epochs is not None and num_samples(self.pairs, "val"):
            source = self._source("val", settings.max_val_items)
            for modality in source.modalities:
                # At the size and in the windows in which a query is embedded; few enough to keep.
                stream, _ = open_stream(
                    source, modality, augment=None, cache=CacheSettings(mode="auto"), passes=2,
                    hard_negatives=None, device=torch.device("cpu"), frozen=frozen, teacher=None,
                )  # fmt: skip
                val.append(stream)
        return _Opened(tuple(streams), tuple(val), tuple(words))

    def _source(self, split: Any, limit: int | None) -> Source:
        content = {
            "pairs": self.identity["pairs"],
            "code": code_hash("draws", "modalities", "training", "pairs/shards"),
            "libraries": _versions(),
        }
        return Source(self.pairs, split, self.spec, self.cache, content, limit)

    def _passes(self) -> float:
        """How often an item is seen, roughly: what `auto` needs to know."""
        settings = self.cfg.train
        passes = float(settings.epochs or 0)
        if settings.steps is not None:
            num = num_samples(self.pairs, "train")
            passes = settings.steps * settings.batch_size / max(1, num)
        return passes * (2 if settings.micro_batch_size else 1)  # gradient caching sees it twice

    def _frozen(self) -> dict[str, Encoder]:
        """Encoders of the towers that stay as they are to the end."""
        found: dict[str, Encoder] = {}
        for modality, settings in self.cfg.train.towers.items():
            unlocks = settings.unlock_at is not None
            if not settings.locked or unlocks or not settings.cache_features:
                continue
            tower = self.model.tower(modality).state_dict()
            found[modality] = Encoder(
                self.model, self.spec, weights_sha256=weights_hash(tower), device=str(self.device),
                precision="bf16" if self.precision == "bf16" else "fp32",
                num_threads=self.cfg.train.cache.num_threads,
            )  # fmt: skip
        return found


def _validator(
    streams: Sequence[Stream], spec: ModelSpec, device: torch.device, precision: Precision
) -> Validate | None:
    if not streams:
        return None

    def look(model: JointModel) -> dict[str, float]:
        return validate(_RECALL_AT, model, spec, streams, device=device, precision=precision)

    return look


def _receipt(
    identity: Mapping[str, Any],
    batches: Batches,
    trained: Trained,
    *,
    batch_size: int,
    num_processes: int,
) -> dict[str, Any]:
    num_items = batches.num_items
    return {
        "identity": dict(identity),
        "num_items": sum(num_items.values()),
        "num_items_by_modality": num_items,
        "num_steps": trained.num_steps,
        "num_pairs": batches.num_pairs(0, trained.num_steps),
        "batch_size": batch_size,
        "num_processes": num_processes,
        "best_step": trained.best.step if trained.best else None,
        "last": trained.history[-1],
    }


def _to_csv(history: Sequence[Row]) -> str:
    """The history, the columns that validation and the measures added last; repr keeps every
    digit."""
    added = sorted({key for row in history for key in row} - set(HISTORY_COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*HISTORY_COLUMNS, *added], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _result(
    receipt: dict[str, Any], trained: Trained, batches: Batches, sources: Sequence[str]
) -> Result:
    last = receipt["last"]
    steps = f"{trained.num_steps:,}"
    if trained.num_steps < batches.num_steps:
        steps += f" of {batches.num_steps:,} (validation gained no more)"
    if trained.resumed_from:
        steps += f" (taken up at {trained.resumed_from:,})"
    name = headline(_RECALL_AT)
    looks = [row[name] for row in trained.history if row.get(name) is not None]
    counts = ", ".join(
        f"{num:,} {plural(m)}" for m, num in receipt["num_items_by_modality"].items()
    )
    rows = [
        ("items", counts),
        *(("data", words) for words in sources),
        ("steps", steps),
        ("epochs", f"{trained.num_steps / batches.steps_per_epoch:.1f}"),
        ("samples seen", f"{receipt['num_pairs']:,}"),
        ("precision", receipt["identity"]["precision"]),
        ("final loss", f"{last['loss']:.4f}"),
        (f"val Recall@{_RECALL_AT}", "no val split" if not looks else f"{looks[-1]:.3f}"),
    ]
    if trained.best is not None:
        rows.append(("weights kept", f"of step {trained.best.step:,}, the best look at val"))
    if trained.pairs_per_s:
        rate = f"{trained.pairs_per_s:,.0f} samples/s, {trained.wait_share:.1%} waiting for data"
        rows.append(("rate", rate))
    return Result("Trained model", tuple(rows), receipt)

"""Train: curated pairs → a model directory."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from coembed.code import code_hash
from coembed.config import Config
from coembed.files import (
    RECEIPT,
    atomic_folder,
    sha256_file,
    sha256_json,
    write_receipt,
    write_text,
)
from coembed.locking import exclusive
from coembed.modalities.image import transform
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.pairs.shards import num_samples, read_samples
from coembed.stages.result import Result
from coembed.training.cache import CachedSplit, open_cached_split
from coembed.training.data import Batches, cache_side
from coembed.training.device import choose_device, choose_precision
from coembed.training.loop import HISTORY_COLUMNS, Trained, train
from coembed.training.resume import Row
from coembed.training.validation import recall_at
from coembed.types import Split

_RECALL_AT = 10
_RECALL = f"val_recall_at_{_RECALL_AT}"


def run(cfg: Config, *, root: Path, pairs: Path, out: Path, runs: Path) -> Result:
    """Train the model of `cfg` on the curated pairs at `pairs` and write it to `out`.

    Relative paths in the `model` section (an architecture's file, a checkpoint) start at `root`.
    What survives a kill lies under `runs`: the decoded pairs in `cache/`, checkpoints and the log
    of rates in `train/<key>/`. The same command goes on from there. Raises UserError.
    """
    settings = cfg.train
    device = choose_device(settings)
    precision = choose_precision(settings, device)
    num_items = num_samples(pairs, "train")
    identity = {
        "pairs": sha256_file(pairs / RECEIPT),  # it holds the hashes of the shards
        "params": sha256_json(_deciding(cfg)),
        "code": code_hash("losses", "modalities", "models", "training"),
        "seed": cfg.seed,
        "precision": precision,
    }
    model, spec = build_model(cfg.model, seed=cfg.seed, root=root)
    # A pretrained checkpoint is named by its path, so the weights themselves are part of the key.
    key = {**identity, "device": device.type, "start": _weights_hash(model)}
    run_folder = runs / "train" / sha256_json(key)[:16]
    with exclusive(run_folder / "lock", doing="training this very model", wait=False):
        side = cache_side(spec.image.px, settings.augment)
        split = _open_split(pairs, "train", spec, runs, identity, side=side, limit=None)
        batches = Batches(
            split, settings, px=spec.image.px, seed=cfg.seed, pin=device.type == "cuda"
        )
        val = _open_val(pairs, spec, runs, identity, settings.max_val_items)

        def validate(model: JointModel) -> dict[str, float]:
            assert val is not None
            recall = recall_at(_RECALL_AT, model, spec, val, device=device, precision=precision)
            return {_RECALL: recall}

        trained = train(
            model, spec, batches, settings,
            loss=cast(Any, settings.loss).build(), seed=cfg.seed,
            device=device, precision=precision, run_folder=run_folder,
            validate=validate if val is not None else None,
        )  # fmt: skip
        receipt = {
            "identity": identity,
            "num_items": num_items,
            "num_steps": batches.num_steps,
            "batch_size": settings.batch_size,
            "last": trained.history[-1],
        }
        with atomic_folder(out) as folder:
            save_model(folder, model, spec, identity)
            write_text(folder / "history.csv", _to_csv(trained.history))
            write_receipt(folder, receipt)
    return _result(receipt, trained, batches)


def _deciding(cfg: Config) -> dict[str, Any]:
    """The settings that decide about the weights; how often state is saved does not."""
    return {
        "seed": cfg.seed,
        "model": cfg.model.model_dump(mode="json"),
        "train": cfg.train.model_dump(mode="json", exclude={"checkpoint"}),
    }


def _weights_hash(model: JointModel) -> str:
    """SHA-256 over the names and bytes of a model's tensors."""
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def _open_split(
    pairs: Path,
    name: Split,
    spec: ModelSpec,
    runs: Path,
    identity: dict[str, Any],
    *,
    side: int,
    limit: int | None,
) -> CachedSplit:
    """The decoded split `name`, images at `side` pixels."""
    texts = spec.loader("text")
    at_side = spec.image.model_copy(update={"px": side})
    return open_cached_split(
        runs / "cache",
        lambda: read_samples(pairs, name, verify=True),
        side=side,
        decode=lambda media: transform(media, at_side),
        tokenise=texts.load,
        content={
            "pairs": identity["pairs"],
            "split": name,
            "code": code_hash("modalities"),
            "image": at_side.model_dump(mode="json"),
            "text": [spec.text.model_dump(mode="json"), dict(texts.identity())],
        },
        limit=limit,
        label=name,
    )


def _open_val(
    pairs: Path, spec: ModelSpec, runs: Path, identity: dict[str, Any], limit: int
) -> CachedSplit | None:
    """The decoded val split, at the size in which a query is embedded; None where it is empty."""
    if num_samples(pairs, "val") == 0:
        return None
    return _open_split(pairs, "val", spec, runs, identity, side=spec.image.px, limit=limit)


def _to_csv(history: Sequence[Row]) -> str:
    """The history, the columns that validation added last; repr keeps every digit."""
    added = sorted({key for row in history for key in row} - set(HISTORY_COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*HISTORY_COLUMNS, *added], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _result(receipt: dict[str, Any], trained: Trained, batches: Batches) -> Result:
    last = receipt["last"]
    steps = f"{batches.num_steps:,}"
    if trained.resumed_from:
        steps += f" (taken up at {trained.resumed_from:,})"
    recall = last.get(_RECALL)
    rows = [
        ("items", f"{receipt['num_items']:,}"),
        ("steps", steps),
        ("epochs", f"{batches.num_steps / batches.steps_per_epoch:.1f}"),
        ("samples seen", f"{batches.num_steps * receipt['batch_size']:,}"),
        ("precision", receipt["identity"]["precision"]),
        ("final loss", f"{last['loss']:.4f}"),
        (f"val Recall@{_RECALL_AT}", "no val split" if recall is None else f"{recall:.3f}"),
    ]
    if trained.pairs_per_s:
        rate = f"{trained.pairs_per_s:,.0f} samples/s, {trained.wait_share:.1%} waiting for data"
        rows.append(("rate", rate))
    return Result("Trained model", tuple(rows), receipt)

"""Evaluate: a model and the held-out split of the curated pairs → metrics, slices, a report."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from coembed.config import Config
from coembed.errors import DataError, ModelError
from coembed.evaluation.evaluation_set import (
    ITEM_MODALITIES,
    EvaluatedItem,
    EvaluationSet,
)
from coembed.evaluation.measure import Measurements, Retrieval, measure, metrics_tree
from coembed.evaluation.page import make_report, search_groups, show_items
from coembed.evaluation.report import percent, render, words
from coembed.evaluation.retrieval import Embeddings, summarise
from coembed.evaluation.settings import EvaluateSettings
from coembed.evaluation.slices import SliceScore
from coembed.files import atomic_folder, write_json, write_receipt, write_text
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import num_samples, read_samples
from coembed.progress import tracker
from coembed.stages.result import Result
from coembed.types import Modality, Sample, Split, plural

_CURVE_KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)


def run(cfg: Config, *, model: Path, pairs: Path, out: Path) -> Result:
    """Evaluate the model directory `model` on `evaluate.split` of the curated pairs at `pairs`.

    Writes metrics.json, slices.csv, plots/, report.html and receipt.json into `out`.

    Raises:
        DataError: an empty split, a label column that is not there, a damaged shard or item.
        ModelError: no usable model, or one without a tower for any of the items.
    """
    settings = cfg.evaluate
    encoder = load_encoder(
        model,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    data, embedded = _read_and_embed(encoder, pairs, settings)
    found = measure(data, embedded, encoder.encode_texts, settings, device=str(encoder.device))
    groups = search_groups(found, settings)
    items = show_items(read_samples(pairs, settings.split), found, groups, settings.contact_sheet)
    history = model / "history.csv"
    report = make_report(
        found,
        settings,
        groups=groups,
        items=items,
        facts=_facts(found, settings, encoder),
        history=history if history.is_file() else None,
    )
    receipt = {
        "stage": "evaluate",
        "split": settings.split,
        "num_items": found.num_items,
        "num_captions": found.num_captions,
        "evaluation_set": data.content_hash(),
        "fingerprint": encoder.fingerprint,
    }
    with atomic_folder(out) as folder:
        write_json(folder / "metrics.json", metrics_tree(found, settings))
        write_text(folder / "slices.csv", _slices_csv(found.slices))
        _write_plots(folder / "plots", found, settings)
        write_text(folder / "report.html", render(report))
        write_receipt(folder, receipt)
    return Result(f"Evaluated on {settings.split}", _table(found, settings), receipt)


def _read_and_embed(
    encoder: Encoder, pairs: Path, settings: EvaluateSettings
) -> tuple[EvaluationSet, dict[Modality, Embeddings]]:
    """The evaluated items without their media, and the embeddings of each modality that the model
    has a tower for. The shards are read once a modality."""
    split = settings.split
    total = num_samples(pairs, split)
    if total < 2:
        raise DataError(
            f"the {split} split of {pairs} has {total} items: there is nothing to evaluate on",
            hint="give it a larger share in curate.split, then curate and train again, or name "
            "another split in evaluate.split",
        )
    first = next(read_samples(pairs, split)).modality
    items: dict[Modality, list[EvaluatedItem]] = {}
    embedded: dict[Modality, Embeddings] = {}
    task = tracker(total=total, label="evaluate", unit="items")
    try:
        media = _list_items(pairs, split, first, items)
        if first in encoder.modalities:
            embedded[first] = _embed(encoder, first, media, pairs, split, task.advance)
        else:
            deque(media, maxlen=0)  # for the list alone
        for modality in items:
            if modality in encoder.modalities and modality not in embedded:
                media = _media(pairs, split, modality)
                embedded[modality] = _embed(encoder, modality, media, pairs, split, task.advance)
    finally:
        task.close()
    if not embedded:
        raise ModelError(
            f"the items of the {split} split are of modality {' and '.join(items)}, but the model "
            f"encodes {' and '.join(encoder.modalities)} only",
            hint="evaluate a model that was trained on these pairs",
        )
    grouped = (item for modality in ITEM_MODALITIES for item in items.get(modality, ()))
    return EvaluationSet(list(grouped)), embedded


def _list_items(
    pairs: Path, split: Split, modality: Modality, items: dict[Modality, list[EvaluatedItem]]
) -> Iterator[bytes]:
    """The media of the items of one modality; all items, of any, go into `items` without theirs."""
    for sample in read_samples(pairs, split):
        items.setdefault(sample.modality, []).append(_without_media(sample, split))
        if sample.modality == modality:
            yield sample.media


def _media(pairs: Path, split: Split, modality: Modality) -> Iterator[bytes]:
    return (sample.media for sample in read_samples(pairs, split) if sample.modality == modality)


def _embed(
    encoder: Encoder,
    modality: Modality,
    media: Iterator[bytes],
    pairs: Path,
    split: Split,
    advance: Callable[[int], None],
) -> Embeddings:
    """Embeddings of `media`, batch by batch. An error names the item that cannot be decoded."""
    embedded: list[Embeddings] = []
    try:
        for part in encoder.stream(modality, media):
            embedded.append(part)
            advance(len(part))
    except DataError:
        _explain_undecodable(encoder, pairs, split, modality)
        raise
    return np.concatenate(embedded)


def _without_media(sample: Sample, split: Split) -> EvaluatedItem:
    if sample.modality not in ITEM_MODALITIES:
        raise DataError(
            f"item {sample.path!r} of the {split} split is of modality {sample.modality}; only "
            f"items of modality {' and '.join(ITEM_MODALITIES)} can be evaluated",
            hint="take such items out of the pool: a text is the caption of an item here",
        )
    if not sample.captions:
        raise DataError(
            f"item {sample.path!r} of the {split} split has no caption",
            hint="run `coembed curate` again: it keeps only items with captions",
        )
    return EvaluatedItem(
        sample.item_id, sample.modality, sample.path, sample.captions, sample.attributes
    )


def _explain_undecodable(encoder: Encoder, pairs: Path, split: Split, modality: Modality) -> None:
    """Name the item that cannot be decoded; the encoder knows only its place."""
    loader = encoder.spec.loader(modality)
    for sample in read_samples(pairs, split):
        if sample.modality != modality:
            continue
        try:
            loader.load([sample.media])
        except DataError as error:
            raise DataError(
                f"item {sample.path!r} of the {split} split cannot be decoded: "
                f"{error.message.removeprefix(f'{modality} 0: ')}",
                hint="run `coembed curate` again: it drops what cannot be decoded",
            ) from error


def _facts(
    found: Measurements, settings: EvaluateSettings, encoder: Encoder
) -> list[tuple[str, str]]:
    return [
        ("split", settings.split),
        *_counts(found),
        ("embedding dimension", str(encoder.embed_dim)),
        ("precision", settings.precision),
        ("model", encoder.fingerprint[:12]),
        ("evaluation set", found.data.content_hash()[:12]),
    ]


def _counts(found: Measurements) -> list[tuple[str, str]]:
    """How much was measured, by modality, and what the model has no tower for."""
    return [
        *((plural(part.modality), f"{len(part.items):,}") for part in found.parts),
        ("captions", f"{found.num_captions:,}"),
        *(
            (f"{plural(modality)} not measured", f"{num:,} (the model has no {modality} tower)")
            for modality, num in found.left_out.items()
        ),
    ]


def _slices_csv(slices: Iterable[SliceScore]) -> str:
    names = [field.name for field in fields(SliceScore)]
    rows = ([_cell(asdict(row)[name]) for name in names] for row in slices)
    return _csv(names, rows)


def _write_plots(folder: Path, found: Measurements, settings: EvaluateSettings) -> None:
    """CSV files for `dvc plots`: Recall@k curves, recall by slice, zero-shot confusion.

    The first modality's curves and slices have plain names, the others' end in the modality.
    """
    folder.mkdir()
    metric = f"recall_at_{settings.ks[-1]}"
    for part in found.parts:
        ending = "" if part is found.parts[0] else f"_{part.modality}"
        write_text(folder / f"recall_at_k{ending}.csv", _curves_csv(part.retrieval))
        task = part.text_to_item.outcomes.task
        by_slice = [
            [f"{row.column} = {row.value}", _cell(row.score)]
            for row in sorted(found.slices, key=lambda row: (row.score, row.column, row.value))
            if row.task == task and row.metric == metric and not row.small
        ]
        write_text(folder / f"recall_by_slice{ending}.csv", _csv(["slice", metric], by_slice))
    crossings = [way.retrieval for way in found.crossings if way.retrieval is not None]
    if crossings:
        write_text(folder / "recall_at_k_between.csv", _curves_csv(crossings))
    for key, one in found.zero_shot.items():
        classes = one.result.classes
        confusion = [
            [classes[actual], classes[predicted]]
            for actual, predicted in zip(one.result.actual, one.result.predicted, strict=True)
        ]
        write_text(folder / f"confusion_{key}.csv", _csv(["actual", "predicted"], confusion))


def _curves_csv(ways: Sequence[Retrieval]) -> str:
    """Recall of each direction for a range of k that all of them have candidates for."""
    curve = [
        [k, *(_cell(float((way.ranks <= k).mean())) for way in ways)]
        for k in _CURVE_KS
        if k <= min(way.num_candidates for way in ways)
    ]
    return _csv(["k", *(way.outcomes.task for way in ways)], curve)


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else value


def _table(found: Measurements, settings: EvaluateSettings) -> tuple[tuple[str, str], ...]:
    rows = _counts(found)
    main = [(way.outcomes, f"recall_at_{settings.ks[-1]}") for way in found.retrieval]
    main += [(one.result.outcomes, "top_1") for one in found.zero_shot.values()]
    main += [
        (search.outcomes, f"precision_at_{search.settings.ks[0]}")
        for search in found.attribute_queries.values()
    ]
    for outcomes, metric in main:
        summary = summarise(outcomes)
        shown = f"{percent(summary[metric])} (guessing: {percent(summary[f'chance_{metric}'])})"
        rows.append((f"{words(outcomes.task)}, {words(metric)}", shown))
    for crossing in found.crossings:
        if crossing.retrieval is None:
            rows.append(
                (words(crossing.task), "not measured: they share no caption, and no column of "
                "evaluate.meets_on")
            )  # fmt: skip
    return tuple(rows)

"""Evaluate: a model and the held-out split of the curated pairs → metrics, slices, a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from coembed.config import Config
from coembed.errors import DataError, ModelError
from coembed.evaluation.evaluation_set import EvaluatedItem, EvaluationSet
from coembed.evaluation.measure import Measurements, measure, metrics_tree
from coembed.evaluation.page import make_report, search_groups, thumbnails, wanted_items
from coembed.evaluation.report import percent, render, words
from coembed.evaluation.retrieval import Embeddings, summarise
from coembed.evaluation.settings import EvaluateSettings
from coembed.evaluation.slices import SliceScore
from coembed.files import atomic_folder, write_json, write_receipt, write_text
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import num_samples, read_samples
from coembed.progress import tracker
from coembed.stages.result import Result
from coembed.types import Modality, Sample, Split

_CURVE_KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)


def run(cfg: Config, *, model: Path, pairs: Path, out: Path) -> Result:
    """Evaluate the model directory `model` on `evaluate.split` of the curated pairs at `pairs`.

    Writes metrics.json, slices.csv, plots/, report.html and receipt.json into `out`.

    Raises:
        DataError: an empty split, a label column that is not there, a damaged shard or item.
        ModelError: no usable model, or one without a tower for the items' modality.
    """
    settings = cfg.evaluate
    encoder = load_encoder(
        model,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    data, items = _read_and_embed(encoder, pairs, settings)
    found = measure(data, items, encoder.encode_texts, settings, device=str(encoder.device))
    groups = search_groups(found, settings.contact_sheet)
    pictures = thumbnails(
        read_samples(pairs, settings.split),
        wanted_items(found, groups),
        px=settings.contact_sheet.thumbnail_px,
    )
    history = model / "history.csv"
    report = make_report(
        found,
        settings,
        groups=groups,
        pictures=pictures,
        facts=_facts(found, settings, encoder),
        history=history if history.is_file() else None,
    )
    receipt = {
        "stage": "evaluate",
        "split": settings.split,
        "num_items": len(data.items),
        "num_captions": found.text_to_item.outcomes.num_queries,
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
) -> tuple[EvaluationSet, Embeddings]:
    """The evaluated items without their media, and their embeddings, batch by batch."""
    split = settings.split
    total = num_samples(pairs, split)
    if total < 2:
        raise DataError(
            f"the {split} split of {pairs} has {total} items: there is nothing to evaluate on",
            hint="give it a larger share in curate.split, then curate and train again, or name "
            "another split in evaluate.split",
        )
    modality = next(read_samples(pairs, split)).modality
    if modality not in encoder.modalities:
        raise ModelError(
            f"the items of the {split} split are of modality {modality}, but the model encodes "
            f"{' and '.join(encoder.modalities)} only",
            hint="evaluate a model that was trained on these pairs",
        )
    evaluated: list[EvaluatedItem] = []

    def media() -> Iterator[bytes]:
        for sample in read_samples(pairs, split):
            evaluated.append(_without_media(sample, modality, split))
            yield sample.media

    embedded: list[Embeddings] = []
    task = tracker(total=total, label="evaluate", unit="items")
    try:
        for part in encoder.stream(modality, media()):
            embedded.append(part)
            task.advance(len(part))
    except DataError:
        _explain_undecodable(encoder, pairs, split, modality)
        raise
    finally:
        task.close()
    return EvaluationSet(evaluated), np.concatenate(embedded)


def _without_media(sample: Sample, modality: Modality, split: Split) -> EvaluatedItem:
    if sample.modality != modality:
        raise DataError(
            f"the {split} split mixes modalities: its first item is of modality {modality}, "
            f"{sample.path!r} of {sample.modality}",
            hint="curate and evaluate one modality at a time",
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
            return
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
        (f"{found.data.items[0].modality}s", f"{len(found.data.items):,}"),
        ("captions", f"{found.text_to_item.outcomes.num_queries:,}"),
        ("embedding dimension", str(encoder.embed_dim)),
        ("precision", settings.precision),
        ("model", encoder.fingerprint[:12]),
        ("evaluation set", found.data.content_hash()[:12]),
    ]


def _slices_csv(slices: Iterable[SliceScore]) -> str:
    names = [field.name for field in fields(SliceScore)]
    rows = ([_cell(asdict(row)[name]) for name in names] for row in slices)
    return _csv(names, rows)


def _write_plots(folder: Path, found: Measurements, settings: EvaluateSettings) -> None:
    """CSV files for `dvc plots`: Recall@k curves, recall by slice, zero-shot confusion."""
    folder.mkdir()
    ways = found.retrieval
    curve = [
        [k, *(_cell(float((way.ranks <= k).mean())) for way in ways)]
        for k in _CURVE_KS
        if k <= min(way.num_candidates for way in ways)
    ]
    names = ["k", *(way.outcomes.task for way in ways)]
    write_text(folder / "recall_at_k.csv", _csv(names, curve))
    task, metric = found.text_to_item.outcomes.task, f"recall_at_{settings.ks[-1]}"
    by_slice = [
        [f"{row.column} = {row.value}", _cell(row.score)]
        for row in sorted(found.slices, key=lambda row: (row.score, row.column, row.value))
        if row.task == task and row.metric == metric and not row.small
    ]
    write_text(folder / "recall_by_slice.csv", _csv(["slice", metric], by_slice))
    for key, (_, result) in found.zero_shot.items():
        confusion = [
            [result.classes[actual], result.classes[predicted]]
            for actual, predicted in zip(result.actual, result.predicted, strict=True)
        ]
        write_text(folder / f"confusion_{key}.csv", _csv(["actual", "predicted"], confusion))


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
    rows = [
        (f"{found.data.items[0].modality}s", f"{len(found.data.items):,}"),
        ("captions", f"{found.text_to_item.outcomes.num_queries:,}"),
    ]
    main = [(way.outcomes, f"recall_at_{settings.ks[-1]}") for way in found.retrieval]
    main += [(result.outcomes, "top_1") for _, result in found.zero_shot.values()]
    main += [
        (search.outcomes, f"precision_at_{search.settings.ks[0]}")
        for search in found.attribute_queries.values()
    ]
    for outcomes, metric in main:
        summary = summarise(outcomes)
        shown = f"{percent(summary[metric])} (guessing: {percent(summary[f'chance_{metric}'])})"
        rows.append((f"{words(outcomes.task)}, {words(metric)}", shown))
    return tuple(rows)

"""Evaluate: a model and the held-out split of the curated pairs → metrics, slices, a report."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coembed.code import code_hash
from coembed.config import Config
from coembed.errors import DataError, ModelError
from coembed.evaluation.calibration import Logits
from coembed.evaluation.corruptions import Corruption, picture_corruptions, sound_corruptions
from coembed.evaluation.evaluation_set import (
    ITEM_MODALITIES,
    EvaluatedItem,
    EvaluationSet,
)
from coembed.evaluation.measure import (
    Measurements,
    measure,
    text_searches,
)
from coembed.evaluation.metrics import intervals, metrics_tree
from coembed.evaluation.origins import read_origins
from coembed.evaluation.outcomes_file import (
    HITS,
    INTERVALS,
    OUTCOMES,
    write_hits,
    write_outcomes,
)
from coembed.evaluation.page import make_report, search_groups, show_items
from coembed.evaluation.parts import Retrieval
from coembed.evaluation.report import Interval, Report, percent, render, words
from coembed.evaluation.retrieval import Embeddings
from coembed.evaluation.robustness import CorruptedItems, choose_items, embed_corrupted
from coembed.evaluation.settings import EvaluateSettings
from coembed.evaluation.slices import SliceScore
from coembed.files import atomic_folder, sha256_json, write_json, write_receipt, write_text
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import num_samples, read_samples
from coembed.progress import tracker
from coembed.stages.result import Result
from coembed.types import Modality, Sample, Split, plural

_CURVE_KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)


def run(cfg: Config, *, model: Path, pairs: Path, out: Path) -> Result:
    """Evaluate the model directory `model` on `evaluate.split` of the curated pairs at `pairs`.

    Writes metrics.json, intervals.json, slices.csv, outcomes.parquet, hits.parquet, plots/,
    report.html and receipt.json into `out`.

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
    found = measure(
        data,
        embedded,
        encoder.encode_texts,
        settings,
        logits=Logits(encoder.logit_scale, encoder.logit_bias),
        corrupted=_embed_corrupted(encoder, data, pairs, settings),
        device=str(encoder.device),
    )
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
        origins=read_origins(
            model=model,
            pairs=pairs,
            split=settings.split,
            evaluation_set=data.content_hash(),
            fingerprint=encoder.fingerprint,
        ),
    )
    receipt = {
        "stage": "evaluate",
        "split": settings.split,
        "num_items": found.num_items,
        "num_captions": found.num_captions,
        "evaluation_set": data.content_hash(),
        "measured": _measured(settings),
        "fingerprint": encoder.fingerprint,
    }
    item_ids = [item.item_id for item in data.items]
    with atomic_folder(out) as folder:
        write_json(folder / "metrics.json", metrics_tree(found, settings))
        write_json(folder / INTERVALS, intervals(found, settings))
        write_text(folder / "slices.csv", _slices_csv(found.slices))
        write_outcomes(
            folder / OUTCOMES,
            found.answered,
            item_ids=item_ids,
            evaluation_set=data.content_hash(),
        )
        hits = text_searches(found, device=str(encoder.device))
        write_hits(folder / HITS, hits, item_ids=item_ids)
        _write_plots(folder / "plots", found, report, settings)
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


def _embed_corrupted(
    encoder: Encoder, data: EvaluationSet, pairs: Path, settings: EvaluateSettings
) -> dict[Modality, CorruptedItems]:
    """Some items of each modality, corrupted in each way that `evaluate.robustness` asks for. The
    shards are read once a modality."""
    asked = settings.robustness
    found: dict[Modality, CorruptedItems] = {}
    if asked is None:
        return found
    corruptions: dict[Modality, dict[str, Corruption]] = {
        "image": picture_corruptions(asked.image) if asked.image is not None else {},
        "audio": sound_corruptions(asked.audio) if asked.audio is not None else {},
    }
    for modality in data.first_items:
        kinds = corruptions[modality]
        if not kinds or modality not in encoder.modalities:
            continue
        item_ids = [item.item_id for item in data.of_modality(modality).items]
        chosen = choose_items(item_ids, asked.max_items)
        wanted = set(chosen.tolist())
        media = (
            (item_ids[number], file)
            for number, file in enumerate(_media(pairs, settings.split, modality))
            if number in wanted
        )
        batches = embed_corrupted(
            media, kinds, partial(encoder.encode, modality), batch_size=settings.batch_size
        )
        parts: dict[str, list[Embeddings]] = {name: [] for name in kinds}
        with closing(
            tracker(total=len(chosen), label=f"corrupted {plural(modality)}", unit="items")
        ) as task:
            for batch in batches:
                for name, part in batch.items():
                    parts[name].append(part)
                task.advance(len(next(iter(batch.values()))))
        embedded = {name: np.concatenate(one) for name, one in parts.items()}
        found[modality] = CorruptedItems(chosen, embedded)
    return found


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


def _measured(settings: EvaluateSettings) -> str:
    """What two evaluations of one set must share to be compared: settings and code that decide
    about single outcomes."""
    apart = {
        "device", "batch_size", "contact_sheet", "bootstrap", "min_slice", "slices",
        "slices_in_metrics", "geometry", "calibration",
    }  # fmt: skip
    return sha256_json(
        {
            "settings": settings.model_dump(mode="json", exclude=apart),
            "code": code_hash("evaluation", "modalities", "models", "stages/evaluate"),
        }
    )


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


def _write_plots(
    folder: Path, found: Measurements, report: Report, settings: EvaluateSettings
) -> None:
    """CSV files for `dvc plots`: each task's leading figure with its interval, Recall@k curves,
    recall by slice, zero-shot confusion, what corrupted queries cost, reliability.

    The first modality's curves and slices have plain names, the others' end in the modality.
    """
    folder.mkdir()
    figures = [
        [task, row.metric, _cell(row.score), *_bounds(row.interval)]
        for task, rows in report.metrics
        for row in rows
        if row.leads
    ]
    write_text(folder / "figures.csv", _csv(["task", "metric", "score", "low", "high"], figures))
    if report.robustness:
        names = ["task", "metric", "clean", "corrupted", "drop", "low", "high"]
        corrupted = [
            [
                row.task.removeprefix("robustness_"),
                row.metric,
                *(_cell(value) for value in (row.clean, row.score, row.drop)),
                *_bounds(row.drop_interval),
            ]
            for row in report.robustness
        ]
        write_text(folder / "robustness.csv", _csv(names, corrupted))
    for key, calibration in found.calibration.items():
        bins = [
            [_cell(one.confidence), _cell(one.share_right), one.num_queries]
            for one in calibration.reliability
        ]
        names = ["confidence", "share_right", "num_queries"]
        write_text(folder / f"reliability_{key}.csv", _csv(names, bins))
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


def _bounds(interval: Interval | None) -> tuple[Any, Any]:
    """Cells of low and high, empty where there is no interval."""
    return ("", "") if interval is None else (_cell(interval[0]), _cell(interval[1]))


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
    recall = f"recall_at_{settings.ks[-1]}"
    main = [(f"retrieval/{way.outcomes.task}", way.outcomes, recall) for way in found.retrieval]
    main += [
        (f"zero_shot/{key}", one.result.outcomes, "top_1") for key, one in found.zero_shot.items()
    ]
    main += [
        (f"attribute_queries/{key}", search.outcomes, f"precision_at_{search.settings.ks[0]}")
        for key, search in found.attribute_queries.items()
    ]
    figures = {figure.path: figure for figure in found.figures}
    for path, outcomes, metric in main:
        figure = figures[f"{path}/{metric}"]
        shown = f"{percent(figure.value)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
        guessing = percent(float(outcomes.chance[metric].mean()))
        rows.append((f"{words(outcomes.task)}, {words(metric)}", f"{shown} (guessing: {guessing})"))
    for crossing in found.crossings:
        if crossing.retrieval is None:
            rows.append(
                (words(crossing.task), "not measured: they share no caption, and no column of "
                "evaluate.meets_on")
            )  # fmt: skip
    return tuple(rows)

"""What a worse query costs: the same questions asked with corrupted pictures, sounds and captions.

Each task here asks some of the queries of a clean task, under their names, in the same collection:
a blurred picture looks for its captions among all captions, a mistyped caption for its picture
among all pictures, a blurred picture for its class. So query by query the drop is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.answered import Answered
from coembed.evaluation.corruptions import Corruption, caption_corruptions
from coembed.evaluation.parts import EncodeTexts, Part, Recognition
from coembed.evaluation.retrieval import (
    Embeddings,
    Ints,
    Outcomes,
    Positives,
    PositiveSource,
    chance_recall,
    check_embeddings,
    ranks,
)
from coembed.evaluation.selection import positives_of, select
from coembed.evaluation.settings import RobustnessSettings
from coembed.evaluation.statistics import ClusterSums, Figure, Resamples, draw
from coembed.types import Modality, plural

# Of corrupted files at hand at one time, if one alone has not more.
_MAX_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CorruptedItems:
    """Some items of one modality: their numbers `items` [num_items] among those of the modality,
    rising, and the embeddings [num_items, dim] by what was done to them."""

    items: Ints
    embedded: Mapping[str, Embeddings]


_NOTHING = CorruptedItems(np.empty(0, dtype=np.int64), {})


@dataclass(frozen=True, slots=True)
class Degraded:
    """A task with corrupted queries: `answered`, whose queries have the numbers `queries`
    [num_queries] in the task `clean`; that one has all of its metrics."""

    clean: Answered
    queries: Ints
    answered: Answered


def choose_items(item_ids: Sequence[str], most: int) -> Ints:
    """Places of the items that are corrupted, at most `most`, rising."""
    return select(item_ids, most, "robustness")


def embed_corrupted(
    media: Iterable[tuple[str, bytes]],
    corruptions: Mapping[str, Corruption],
    encode: Callable[[Sequence[bytes]], Embeddings],
    *,
    batch_size: int,
    max_bytes: int = _MAX_BATCH_BYTES,
) -> Iterator[dict[str, Embeddings]]:
    """Embeddings of corrupted items, a batch at a time and in order: [batch, dim] by corruption.

    `media` are (item_id, file), at least one. Each batch has at most `batch_size` items, and its
    corrupted files at most `max_bytes` of one kind, or it has one item. Raises DataError.
    """
    waiting: dict[str, list[bytes]] = {name: [] for name in corruptions}
    sizes = dict.fromkeys(corruptions, 0)
    num = 0
    for item_id, file in media:
        made = {name: corrupt(file, item_id) for name, corrupt in corruptions.items()}
        too_large = any(sizes[name] + len(one) > max_bytes for name, one in made.items())
        if num == batch_size or (num and too_large):
            yield {name: encode(files) for name, files in waiting.items()}
            waiting, sizes, num = {name: [] for name in corruptions}, dict.fromkeys(sizes, 0), 0
        for name, one in made.items():
            waiting[name].append(one)
            sizes[name] += len(one)
        num += 1
    if num:
        yield {name: encode(files) for name, files in waiting.items()}


def degrade(
    parts: Sequence[Part],
    zero_shot: Sequence[Recognition],
    tasks: Mapping[str, Answered],
    corrupted: Mapping[Modality, CorruptedItems],
    encode_texts: EncodeTexts,
    asked: RobustnessSettings,
    *,
    ks: Sequence[int],
    device: str = "cpu",
) -> list[Degraded]:
    """Queries asked again with corrupted items and captions.

    `tasks` hold the clean tasks by their names. Of a part's classifications in `zero_shot` the
    first one is asked again. Raises ModelError where embeddings are not finite.
    """
    recall = {f"recall_at_{k}": k for k in ks}
    found = []
    for part in parts:
        clean = tasks[part.item_to_text.outcomes.task]
        worse = corrupted.get(part.modality, _NOTHING)
        for name, embedded in worse.embedded.items():
            check_embeddings(embedded, f"corrupted {plural(part.modality)}")
            positives = positives_of(part.item_to_text.positives, worse.items)
            found.append(
                ask_again(clean, worse.items, f"{name}_{clean.key}", embedded, part.texts,
                          positives, recall, device=device)
            )  # fmt: skip
            found += _classify_again(part, zero_shot, tasks, worse.items, name, embedded, device)
        clean = tasks[part.text_to_item.outcomes.task]
        for name, corrupt in caption_corruptions(asked.text).items() if asked.text else ():
            chosen = choose_items([item.item_id for item in part.data.items], asked.max_items)
            queries = np.flatnonzero(np.isin(part.data.query_items, chosen))
            texts = [corrupt(part.data.texts[text]) for text in part.data.query_texts[queries]]
            positives = positives_of(part.text_to_item.positives, queries)
            found.append(
                ask_again(clean, queries, f"{name}_{clean.key}", encode_texts(texts), part.items,
                          positives, recall, device=device)
            )  # fmt: skip
    return found


def _classify_again(
    part: Part,
    zero_shot: Sequence[Recognition],
    tasks: Mapping[str, Answered],
    items: Ints,
    name: str,
    embedded: Embeddings,
    device: str,
) -> list[Degraded]:
    """The first classification of a part, of its corrupted items `items` that have a label."""
    first = next((one for one in zero_shot if one.part is part), None)
    if first is None or not (labelled := np.isin(items, first.result.items)).any():
        return []
    clean, result = tasks[first.result.outcomes.task], first.result
    queries = np.searchsorted(result.items, items[labelled])
    positives = Positives(np.arange(len(queries) + 1, dtype=np.int64), result.actual[queries])
    key = f"{name}_{result.outcomes.task}"
    again = ask_again(clean, queries, key, embedded[labelled], first.classes, positives,
                      {"top_1": 1}, device=device)  # fmt: skip
    return [again]


def ask_again(
    clean: Answered,
    queries: Ints,
    key: str,
    embedded: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    metrics: Mapping[str, int],
    *,
    device: str = "cpu",
) -> Degraded:
    """The queries `queries` of `clean`, asked with `embedded` [num_queries, dim] in their stead.

    `positives` are those of these queries among `candidates` [num_candidates, dim]. Each of
    `metrics` is the share of queries with a positive among so many best.
    """
    found = ranks(embedded, candidates, positives, device=device)
    outcomes = Outcomes(
        f"robustness_{key}",
        values={name: (found <= k).astype(np.float64) for name, k in metrics.items()},
        chance={
            name: chance_recall(len(candidates), positives.counts, k) for name, k in metrics.items()
        },
    )
    answered = Answered(
        "robustness",
        key,
        outcomes,
        queries=tuple(clean.queries[number] for number in queries.tolist()),
        items=clean.items[queries],
        clusters=clean.clusters[queries],
        # Sliced as well, there would be so many figures that none of them could be told from luck.
        labels={},
    )
    return Degraded(clean, queries, answered)


def drop_figures(found: Degraded, resample: Callable[[int], Resamples]) -> list[Figure]:
    """`METRIC_drop` of each metric: the clean queries' mean minus the corrupted ones', with the
    interval of the paired difference. `resample` draws so many clusters."""
    worse = found.answered
    metrics = list(worse.outcomes.values)
    drops = np.stack(
        [
            found.clean.outcomes.values[metric][found.queries] - worse.outcomes.values[metric]
            for metric in metrics
        ],
        axis=1,
    )
    members, clusters = np.unique(worse.clusters, return_inverse=True)
    sums = ClusterSums.of(drops, clusters)
    (draws,) = draw([sums.weigh], resample(len(members)))
    low, high = sums.difference_interval(draws)
    return [
        Figure(worse.path(f"{metric}_drop"), float(mean), float(least), float(most))
        for metric, mean, least, most in zip(metrics, sums.means, low, high, strict=True)
    ]

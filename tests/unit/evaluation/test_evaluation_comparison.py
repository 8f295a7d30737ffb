"""Champion against challenger: hand-made outcomes, and simulated ones whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from coembed.errors import DataError, UserError
from coembed.evaluation.comparison import (
    NO_METRIC,
    ONLY_CHALLENGER,
    ONLY_CHAMPION,
    Comparison,
    Difference,
    _Family,
    compare,
)
from coembed.evaluation.outcomes_file import RecordedOutcomes, TaskOutcomes
from coembed.evaluation.settings import BootstrapSettings

BOOTSTRAP = BootstrapSettings(num_resamples=500)
RECALL = "retrieval/text_to_image/recall_at_1"


def task(
    ranks: Sequence[float],
    *,
    group: str = "retrieval",
    key: str = "text_to_image",
    queries: Sequence[str] | None = None,
    clusters: Sequence[int] | None = None,
    **labels: Sequence[str | None],
) -> TaskOutcomes:
    """One query an item unless `clusters` says otherwise; item 3 is called "i3"."""
    found = np.asarray(ranks, dtype=float)
    items = list(range(len(found))) if clusters is None else list(clusters)
    return TaskOutcomes(
        group=group,
        key=key,
        queries=[f"q{place}" for place in range(len(found))] if queries is None else queries,
        item_ids=[f"i{item}" for item in items],
        clusters=np.asarray(items),
        labels=labels,
        values={"recall_at_1": (found <= 1).astype(float), "mrr": 1 / found},
        ranks=found,
    )


def recorded(*tasks: TaskOutcomes, evaluation_set: str = "s" * 64) -> RecordedOutcomes:
    return RecordedOutcomes(evaluation_set, {f"{one.group}/{one.key}": one for one in tasks})


def compared(
    champion: RecordedOutcomes, challenger: RecordedOutcomes, min_slice: int = 1, **settings: object
) -> Comparison:
    return compare(
        champion,
        challenger,
        headline=RECALL,
        bootstrap=BOOTSTRAP,
        min_slice=min_slice,
        **settings,  # type: ignore[arg-type]
    )


def test_differences_by_hand() -> None:
    before = task([1, 1, 1, 2, 4, 1], colour=["old"] * 6)
    after = task([1, 1, 2, 1, 1, 1], colour=["red", "red", "red", "blue", None, "blue"])
    found = compared(recorded(before), recorded(after), min_slice=3)
    assert (found.num_queries, found.left_out) == (6, ())
    recall = found.difference(RECALL)
    assert recall is not None
    assert recall.champion == pytest.approx(4 / 6)
    assert recall.challenger == pytest.approx(5 / 6)
    assert recall.difference == pytest.approx(1 / 6)
    assert recall.low < 0 < recall.high and not recall.significant and not recall.small
    reciprocal = found.difference("retrieval/text_to_image/mrr")
    assert reciprocal is not None
    assert reciprocal.difference == pytest.approx((-0.5 + 0.5 + 0.75) / 6)
    slices = {(row.column, row.value): row for row in found.slices if row.path == RECALL}
    assert set(slices) == {("colour", "red"), ("colour", "blue")}  # the challenger's labels
    red, blue = slices["colour", "red"], slices["colour", "blue"]
    assert red.difference == pytest.approx(-1 / 3) and blue.difference == pytest.approx(0.5)
    assert (red.num_queries, red.small, blue.num_queries, blue.small) == (3, False, 2, True)
    assert blue.p_adjusted == 1
    assert found.difference(RECALL, "colour", "green") is None


def test_queries_are_matched_by_name_in_whatever_order() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(1, 4, size=(2, 50))
    order = rng.permutation(50)
    names = [f"q{place}" for place in order]
    straight = compared(recorded(task(before)), recorded(task(after)))
    shuffled = task(before[order], queries=names, clusters=order.tolist())
    assert compared(recorded(shuffled), recorded(task(after))) == straight


def test_what_is_not_compared_is_counted_by_reason() -> None:
    before = recorded(
        task([1, 1, 1, 1], queries=["a", "b", "c", "old"]), task([1, 2], group="gone", key="k")
    )
    other = task([1, 1], group="other", key="metrics")
    before.tasks["other/metrics"] = other  # type: ignore[index]
    after = recorded(
        task([1, 1, 2, 1, 1], queries=["a", "b", "c", "new", "newer"]),
        TaskOutcomes(**{**_fields(other), "values": {"else": np.ones(2)}}),
    )
    leave_out = {"i1": "the challenger was trained on the item", "i77": "never met"}
    found = compared(before, after, leave_out=leave_out)
    assert dict(found.left_out) == {
        "the challenger was trained on the item": 2,  # of two tasks
        NO_METRIC: 1,
        ONLY_CHAMPION: 3,
        ONLY_CHALLENGER: 2,
    }
    assert found.num_queries == 2
    assert [row.num_queries for row in found.overall] == [2, 2]


def _fields(one: TaskOutcomes) -> dict[str, object]:
    return {name: getattr(one, name) for name in TaskOutcomes.__slots__}


def test_broken_and_mended_queries_by_the_change_of_rank() -> None:
    before = task([1, 1, 9, 30, 1, 2])
    after = task([2, 40, 1, 1, 1, 3])
    found = compared(recorded(before), recorded(after))
    assert [(row.query, row.champion_rank, row.challenger_rank) for row in found.broken] == [
        ("q1", 1, 40), ("q0", 1, 2),
    ]  # fmt: skip
    assert [(row.query, row.item_id, row.path) for row in found.mended] == [
        ("q3", "i3", RECALL), ("q2", "i2", RECALL),
    ]  # fmt: skip
    assert (found.num_broken, found.num_mended) == (2, 2)


def test_only_so_many_changes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.evaluation.comparison.NUM_CHANGES", 3)
    found = compared(recorded(task([1] * 9)), recorded(task(range(2, 11))))
    assert [row.query for row in found.broken] == ["q8", "q7", "q6"]
    assert (found.num_broken, found.num_mended) == (9, 0)


def test_different_sets_are_refused() -> None:
    one = recorded(task([1, 2]))
    with pytest.raises(UserError, match=r"set aaaaaaaaaaaa and the challenger on ssssssssssss"):
        compared(recorded(task([1, 2]), evaluation_set="a" * 64), one)


def test_nothing_in_common() -> None:
    before, after = recorded(task([1, 2])), recorded(task([1, 2]))
    renamed = recorded(task([1, 2], queries=["x", "y"]))
    with pytest.raises(DataError, match="no query in common") as caught:
        compared(before, renamed)
    assert f"2 because {ONLY_CHALLENGER}" in str(caught.value)
    leave_out = {"i0": "both were trained on it", "i1": "both were trained on it"}
    with pytest.raises(DataError, match="2 because both were trained on it"):
        compared(before, after, leave_out=leave_out)
    with pytest.raises(DataError, match="no query in common"):
        compared(recorded(), recorded())


def test_captions_of_one_item_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    items = np.repeat(np.arange(60), 5)
    shift = rng.choice([-1, 0, 1], size=60)[items]  # all captions of an item change alike
    before = np.where(shift < 0, 1, 2)
    after = np.where(shift > 0, 1, 2)
    together = compared(
        recorded(task(before, clusters=items.tolist())),
        recorded(task(after, clusters=items.tolist())),
    ).overall[0]
    apart = compared(recorded(task(before)), recorded(task(after))).overall[0]
    assert (together.num_queries, together.num_clusters, apart.num_clusters) == (300, 60, 300)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(5**0.5, rel=0.15)


def test_twice_gives_the_same_and_json_gives_it_back() -> None:
    rng = np.random.default_rng(2)
    labels = {"colour": rng.choice(["red", "blue"], size=80).tolist()}
    before = recorded(task(rng.integers(1, 4, size=80), **labels))
    after = recorded(task(rng.integers(1, 4, size=80), **labels))
    found = compared(before, after)
    assert compared(before, after) == found
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(DataError, match="this is no comparison of two models"):
        Comparison.from_json({"overall": []})
    with pytest.raises(DataError, match="this is no comparison"):
        Comparison.from_json([1])


def difference(value: float, p: float = 0.01, small: bool = False) -> Difference:
    return Difference("p", "c", "v", 50, 50, small, 0, 0, value, 0, 0, p, 1)


MANY = np.full(20, 100)  # changed clusters: as many as ever count


def test_corrected_p_values_by_hand() -> None:
    """Four resamples of three differences."""
    family = _Family(4)
    draws = np.asarray([[4.0, 1.0, 3.0], [2.0, -1.0, -3.0], [4.0, 1.0, 1.0], [2.0, -1.0, -1.0]])
    family.add([difference(3), difference(0.5), difference(0.0, p=1)], draws, MANY)
    # Standard deviations 1, 1 and 2.24. Away from the measured values, in such units:
    # 1 1 1 1, 0.5 1.5 0.5 1.5 and 1.34 1.34 0.45 0.45, the largest of each resample 1.34 1.5 1 1.5.
    # The measured values are 3, 0.5 and 0 away from zero: none, all and all are larger.
    first, second, third = family.corrected()
    assert first.p_adjusted == pytest.approx((1 + 0) / 5)
    assert second.p_adjusted == pytest.approx((1 + 4) / 5)
    assert third.p_adjusted == 1


def test_a_difference_alone_needs_no_correction_and_copies_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    draws = 0.4 + rng.normal(0, 0.2, size=(2000, 1))
    alone, copied, apart = (_Family(2000) for _ in range(3))
    alone.add([difference(0.4)], draws, MANY)
    copied.add([difference(0.4)] * 20, np.repeat(draws, 20, axis=1), MANY)
    many = np.concatenate([draws, rng.normal(0, 0.2, size=(2000, 19))], axis=1)
    apart.add([difference(0.4), *[difference(0.0, p=1)] * 19], many, MANY)
    p = alone.corrected()[0].p_adjusted
    assert p == pytest.approx(0.0455, abs=0.012)  # of two standard deviations
    assert copied.corrected()[0].p_adjusted == p  # Holm would say 20 p
    assert apart.corrected()[0].p_adjusted == pytest.approx(1 - (1 - p) ** 20, abs=0.06)


@pytest.mark.parametrize(("num", "needed"), [(1, 6), (60, 12), (1000, 16), (20_000, 20)])
def test_what_changed_in_too_few_clusters_is_not_judged(num: int, needed: int) -> None:
    """2^(1 - changed) has to reach 0.05 / num: so many clusters have to change."""
    for changed, counts in ((needed, True), (needed - 1, False)):
        family = _Family(3)
        draws = np.repeat([[0.1], [0.2], [0.3]], num, axis=1)
        family.add([difference(5.0)] * num, draws, np.full(num, changed))
        assert {row.p_adjusted for row in family.corrected()} == {0.25 if counts else 1.0}


def test_slices_where_nothing_happens_do_not_hide_one_where_much_does() -> None:
    """300 slices of 40 queries, of which next to none change, and one of 1,000 that gets worse."""
    rng = np.random.default_rng(9)
    labels = [str(place // 40) for place in range(12_000)] + ["all worse"] * 1000
    before = np.ones(13_000)
    before[:12_000] += rng.random(12_000) < 0.02
    after = np.ones(13_000)
    after[:12_000] += rng.random(12_000) < 0.02
    before[12_000:] += rng.random(1000) < 0.20
    after[12_000:] += rng.random(1000) < 0.30
    found = compared(
        recorded(task(before, c=labels)), recorded(task(after, c=labels)), min_slice=30
    )
    significant = {row.value for row in found.slices if row.significant}
    assert len(found.slices) == 602 and significant == {"all worse"}


def simulate(rng: np.random.Generator, broken: float) -> tuple[RecordedOutcomes, RecordedOutcomes]:
    """3,000 queries in 30 x 2 slices; a share of those of the first slice is broken."""
    slices = {column: rng.integers(30, size=3000).astype(str).tolist() for column in ("one", "two")}
    before = np.where(rng.random(3000) < 0.6, 1, 2)
    flipped = rng.random(3000) < 0.1
    after = np.where(flipped, 3 - before, before)
    first = np.asarray(slices["one"]) == "0"
    after = np.where(first & (rng.random(3000) < broken), 2, after)
    return recorded(task(before, **slices)), recorded(task(after, **slices))


def test_one_broken_slice_of_many_is_found_and_no_other() -> None:
    found = compared(*simulate(np.random.default_rng(4), broken=0.7), min_slice=30)
    significant = {(row.column, row.value) for row in found.slices if row.significant}
    assert len(found.slices) == 120 and significant == {("one", "0")}
    row = found.difference(RECALL, "one", "0")
    assert row is not None
    # 120 differences by Holm: even the least p-value of 500 resamples would be too much.
    assert row.p_adjusted < 0.05 < 120 * row.p_value


def test_where_nothing_differs_seldom_anything_is_found() -> None:
    rng = np.random.default_rng(6)
    found = [compared(*simulate(rng, broken=0), min_slice=30) for _ in range(40)]
    by_chance = sum(any(row.p_value < 0.05 for row in one.slices) for one in found)
    wrong = sum(any(row.significant for row in one.slices) for one in found)
    assert by_chance > 30  # uncorrected, nearly always something
    assert wrong <= 6  # 2 expected; 7 or more of 40 would be a chance of 0.7 %

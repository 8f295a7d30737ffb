"""The gates as pure functions: what the policy asks, at and on both sides of every limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from coembed.errors import ConfigError
from coembed.evaluation.comparison import Comparison, Difference
from coembed.index.release import SearchMeasured
from coembed.registry.settings import PromoteSettings
from coembed.stages import gates
from coembed.stages.decision import Gate
from coembed.stages.gates import Facts, Measured, decide, holm
from coembed.stages.leakage import Leak, Leaks

HEAD, GUARD = "retrieval/text_to_image/recall_at_10", "zero_shot/kind/top_1"
HEARS = "retrieval/text_to_audio/recall_at_10"
METRICS = {
    "retrieval": {"text_to_image": {"recall_at_10": 0.5}, "text_to_audio": {"recall_at_10": 0.2}},
    "zero_shot": {"kind": {"top_1": 0.75}},
    "geometry": {"image": {"gap": 0.3}},
}
NO_LEAKS = Leaks(known=True, unknown=(), num_evaluated=100, num_trained=900, found=())


def difference(
    path: str = HEAD,
    *,
    low: float,
    high: float,
    column: str | None = None,
    value: str | None = None,
    small: bool = False,
    p_value: float = 0.001,
) -> Difference:
    middle = (low + high) / 2
    return Difference(
        path=path, column=column, value=value, num_queries=200, num_clusters=100, small=small,
        champion=0.5 - middle, challenger=0.5, difference=middle, low=low, high=high,
        p_value=p_value, p_adjusted=1.0,
    )  # fmt: skip


def compared(overall: Sequence[Difference], slices: Sequence[Difference] = ()) -> Comparison:
    return Comparison(
        evaluation_set="e" * 64, headline=HEAD, num_queries=200, left_out=(), overall=overall,
        slices=slices, broken=(), mended=(), num_broken=0, num_mended=0,
    )  # fmt: skip


def facts(comparison: Comparison | None = None, **changes: Any) -> Facts:
    known = Facts(
        version=2,
        champion=1 if comparison else None,
        evaluation_set="e" * 64,
        measured=Measured(METRICS, (HEAD, GUARD, HEARS), ("colour", "kind")),
        comparison=comparison,
        incomparable="",
        search=SearchMeasured(0.99, 1.0, 2.0, 100),
        model_mb=10.0,
        leaks=NO_LEAKS,
        rolled_back_to="",
        asked_for=False,
        approved_by="",
    )
    return replace(known, **changes)


def verdicts(policy: PromoteSettings, known: Facts, key: str) -> list[str]:
    return [gate.verdict for gate in decide(policy, known).gates if gate.key == key]


def the(policy: PromoteSettings, known: Facts, key: str) -> Gate:
    (found,) = [gate for gate in decide(policy, known).gates if gate.key == key]
    return found


@pytest.mark.parametrize(
    ("margin", "low", "high", "surely_worse", "surely_as_good"),
    [
        (0.0, 0.01, 0.03, False, True),
        (0.0, -0.01, 0.03, False, False),
        (0.0, -0.03, -0.001, True, False),
        (0.0, -0.03, 0.0, False, False),
        (0.0, 0.0, 0.0, False, True),  # the very same answers
        (0.02, -0.015, -0.001, False, True),  # worse, and within the margin
        (0.02, -0.03, -0.01, False, False),
        (0.02, -0.03, -0.02, False, False),  # not all of it is beyond
        (0.02, -0.04, -0.0201, True, False),
        (0.02, -0.02, 0.01, False, True),
        (0.02, -0.0201, 0.01, False, False),
    ],
)
def test_a_regression_is_refused_when_it_is_sure_and_beyond_the_margin(
    margin: float, low: float, high: float, surely_worse: bool, surely_as_good: bool
) -> None:
    known = facts(compared([difference(low=low, high=high)]))
    regression = PromoteSettings(margin=margin)
    inferiority = PromoteSettings(margin=margin, proof="non_inferiority")
    assert verdicts(regression, known, "metric") == ["refused" if surely_worse else "passed"]
    assert verdicts(inferiority, known, "metric") == ["passed" if surely_as_good else "refused"]


def test_the_line_of_a_regression_says_by_how_much_and_how_surely() -> None:
    policy = PromoteSettings(margin=0.02)
    found = the(policy, facts(compared([difference(low=-0.06, high=-0.04)])), "metric")
    assert found == Gate(
        key="metric",
        name="Text → image, Recall@10: no regression",
        value="−5.00 points (55.00 % → 50.00 %)",
        limit="no sure loss of more than 2 points",
        verdict="refused",
        detail="95 % interval −6.00 to −4.00 points, p 0.001, 200 queries about 100 items",
    )
    decision = decide(policy, facts(compared([difference(low=-0.06, high=-0.04)])))
    assert decision.verdict == "refused"
    assert decision.reason == (
        "Text → image, Recall@10: no regression: −5.00 points (55.00 % → 50.00 %), asked for no "
        "sure loss of more than 2 points"
    )


def test_what_is_no_share_is_not_told_in_percent() -> None:
    reciprocal = "retrieval/text_to_image/mrr"
    metrics = {**METRICS, "retrieval": {"text_to_image": {"mrr": 0.4, "recall_at_10": 0.5}}}
    known = facts(
        compared([difference(low=0.0, high=0.1), difference(reciprocal, low=-0.04, high=0.02)]),
        measured=Measured({**metrics, "num_items": 90}, (HEAD, reciprocal), ()),
    )
    floors = {reciprocal: 0.35, HEAD: 0.455, "geometry/image/gap": 0.1, "num_items": 50}
    policy = PromoteSettings(guards={reciprocal: 0.01}, floors=floors)
    found = [gate for gate in decide(policy, known).gates if gate.key == "floors"]
    assert [(gate.value, gate.limit) for gate in found] == [
        ("0.4000", "0.35 or more"), ("50.00 %", "45.5 % or more"), ("0.3000", "0.1 or more"),
        ("90.0000", "50 or more"),
    ]  # fmt: skip
    guard = the(policy, known, "guards")
    assert guard.value == "−0.0100 (0.5100 → 0.5000)"
    assert guard.limit == "no sure loss of more than 0.01"
    assert guard.detail.startswith("95 % interval −0.0400 to +0.0200, p")
    assert the(PromoteSettings(margin=0.01), known, "metric").limit.endswith("more than 1 point")


def test_guards_have_margins_of_their_own() -> None:
    policy = PromoteSettings(guards={GUARD: 0.05})
    rows = [difference(low=0.0, high=0.1), difference(GUARD, low=-0.2, high=-0.04)]
    assert verdicts(policy, facts(compared(rows)), "guards") == ["passed"]
    rows[1] = difference(GUARD, low=-0.2, high=-0.06)
    assert verdicts(policy, facts(compared(rows)), "guards") == ["refused"]
    assert verdicts(policy, facts(compared(rows)), "metric") == ["passed"]


def test_what_the_champion_cannot_do_has_nothing_to_beat() -> None:
    policy = PromoteSettings(guards={HEARS: 0.0})
    guard = the(policy, facts(compared([difference(low=0.0, high=0.1)])), "guards")
    assert (guard.verdict, guard.value) == ("passed", "20.00 %")
    assert guard.detail == "the champion was not measured there"


def test_the_first_version_is_asked_for_the_floors_alone() -> None:
    policy = PromoteSettings(floors={HEAD: 0.5, GUARD: 0.7501}, protected_slices={"kind": 0.0})
    decision = decide(policy, facts())
    assert [gate.verdict for gate in decision.gates if gate.key == "floors"] == [
        "passed", "refused",
    ]  # fmt: skip
    assert decision.champion is None
    assert decision.verdict == "refused"
    policy = PromoteSettings(floors={HEAD: 0.5})
    assert decide(policy, facts()).reason == "the first version: there is no champion to beat"
    itself = decide(policy, facts(champion=2))
    assert itself.reason == "it is the champion already"
    assert itself.gates[1].detail == "it is the champion itself"


def test_what_is_no_number_never_passes() -> None:
    metrics = {"retrieval": {"text_to_image": {"recall_at_10": math.nan}}}
    known = facts(measured=Measured(metrics, (HEAD,), ()))
    assert verdicts(PromoteSettings(floors={HEAD: 0.0}), known, "floors") == ["refused"]
    assert verdicts(PromoteSettings(), known, "metric") == ["refused"]
    broken = compared([difference(low=math.nan, high=math.nan)])
    assert verdicts(PromoteSettings(), facts(broken), "metric") == ["refused"]


def test_protected_slices_are_judged_one_by_one_and_small_ones_are_not() -> None:
    def colour(value: str, **changes: Any) -> Difference:
        return difference(column="colour", value=value, **changes)

    rows = [
        colour("blue", low=-0.2, high=-0.1),
        colour("green", low=-0.2, high=-0.1, small=True),
        colour("grey", low=-0.2, high=-0.1, p_value=0.04),
        colour("red", low=-0.2, high=0.01, p_value=0.3),
        difference(column="kind", value="mug", low=-0.2, high=-0.1),
        difference(GUARD, column="colour", value="blue", low=-0.2, high=-0.1),
    ]
    known = facts(compared([difference(low=0.0, high=0.1)], rows))
    policy = PromoteSettings(protected_slices={"colour": 0.02})
    found = [gate for gate in decide(policy, known).gates if gate.key == "protected_slices"]
    assert [(gate.name.rpartition(" = ")[2], gate.verdict) for gate in found] == [
        ("blue", "refused"), ("grey", "passed"), ("red", "passed"),
    ]  # fmt: skip
    assert "p 0.04 (corrected 0.08)" in found[1].detail
    wide = PromoteSettings(protected_slices={"colour": 0.1})
    assert set(verdicts(wide, known, "protected_slices")) == {"passed"}
    all_small = facts(compared([difference(low=0.0, high=0.1)], rows[1:2]))
    line = the(policy, all_small, "protected_slices")
    assert (line.value, line.verdict) == ("too few queries", "passed")


def test_holm_multiplies_by_how_many_are_left() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_gate_that_cannot_be_asked_is_an_error_that_says_what_there_is() -> None:
    for settings, message in (
        ({"metric": "retrieval/recall"}, r"promote.metric names the metric 'retrieval/recall', "
         "which was not measured; there are geometry/image/gap, "),
        ({"guards": {"zero_shot/x/top_1": 0}}, "promote.guards names the metric 'zero_shot/x"),
        ({"floors": {"zero_shot/kind": 0}}, "promote.floors names the metric 'zero_shot/kind'"),
        ({"guards": {"geometry/image/gap": 0}}, "no mean over single queries.*those that can are "
         f"{HEARS}, {HEAD}, {GUARD}"),
        ({"protected_slices": {"color": 0}}, "the column 'color'; the slices of .* colour, kind"),
    ):  # fmt: skip
        policy = PromoteSettings.model_validate(settings)
        with pytest.raises(ConfigError, match=message):
            decide(policy, facts())
        with pytest.raises(ConfigError, match=message):
            decide(policy, facts(incomparable="its run was deleted"))
        with pytest.raises(ConfigError, match=message):
            decide(policy, facts(compared([difference(low=0.0, high=0.1)])))


def test_what_cannot_be_compared_is_refused_with_the_reason() -> None:
    decision = decide(PromoteSettings(), facts(champion=1, incomparable="its run was deleted"))
    assert (decision.verdict, decision.reason) == ("refused", "its run was deleted")


@pytest.mark.parametrize(
    ("limits", "search", "expected"),
    [
        ({}, SearchMeasured(0.95, 1, 900, 10), ["passed", "passed"]),
        ({}, SearchMeasured(0.9499, 1, 900, 10), ["refused", "passed"]),
        ({"max_p95_ms": 20.0}, SearchMeasured(1.0, 1, 20.0, 10), ["passed", "passed"]),
        ({"max_p95_ms": 20.0}, SearchMeasured(1.0, 1, 20.1, 10), ["passed", "refused"]),
        ({}, None, ["refused", "passed"]),
        ({"min_recall": 0.0}, None, ["passed", "passed"]),
        ({"min_recall": 0.0, "max_p95_ms": 9.0}, None, ["passed", "refused"]),
    ],
)
def test_the_search_has_limits(
    limits: dict[str, float], search: SearchMeasured | None, expected: list[str]
) -> None:
    policy = PromoteSettings.model_validate({"index": limits})
    assert verdicts(policy, facts(search=search), "index") == expected


def test_the_model_has_a_limit() -> None:
    assert verdicts(PromoteSettings(max_model_mb=10.0), facts(), "max_model_mb") == ["passed"]
    assert verdicts(PromoteSettings(max_model_mb=9.9), facts(), "max_model_mb") == ["refused"]
    assert the(PromoteSettings(), facts(), "max_model_mb").limit == "any"


def test_a_model_that_saw_what_it_is_asked_is_refused_with_the_list() -> None:
    def leak(number: int) -> Leak:
        return Leak(f"{number:064x}", f"{number}.jpg", "image", "same_item", "0" * 64, "train",
                    None, "")  # fmt: skip

    seen = replace(NO_LEAKS, found=tuple(leak(number) for number in range(22)))
    line = the(PromoteSettings(), facts(leaks=seen), "leakage")
    assert (line.value, line.limit, line.verdict) == ("22 of 100", "none", "refused")
    assert line.detail.startswith("0.jpg (the same file, seen in train); 1.jpg")
    assert line.detail.endswith("and 2 more, in decision.json")
    allowed = the(PromoteSettings(leakage="allow"), facts(leaks=seen), "leakage")
    assert (allowed.value, allowed.verdict) == ("22 of 100", "passed")
    silent = replace(NO_LEAKS, known=False)
    assert the(PromoteSettings(), facts(leaks=silent), "leakage").verdict == "refused"
    tagged = replace(NO_LEAKS, unknown=("open_clip laion2b",))
    line = the(PromoteSettings(), facts(leaks=tagged), "leakage")
    assert line.verdict == "passed"
    assert "not known: what open_clip laion2b was trained on" in line.detail


def test_a_version_that_was_rolled_back_needs_a_person_who_names_it() -> None:
    back = facts(champion=1, comparison=compared([difference(low=0, high=0)]), rolled_back_to="1")
    decision = decide(PromoteSettings(), back)
    assert decision.verdict == "refused"
    assert decision.reason == (
        "version 2 was rolled back; `coembed promote 2` serves it all the same"
    )
    assert decide(PromoteSettings(), replace(back, asked_for=True)).verdict == "passed"
    assert verdicts(PromoteSettings(), replace(back, champion=2), "rollback") == []


def test_an_approval_is_waited_for_unless_something_else_refuses() -> None:
    policy = PromoteSettings(approval=True)
    assert decide(policy, facts()).verdict == "waiting"
    assert decide(policy, facts(approved_by="Grace")).verdict == "passed"
    assert decide(policy, facts(champion=2)).verdict == "passed"  # it is served already
    assert decide(policy, facts(leaks=replace(NO_LEAKS, known=False))).verdict == "refused"
    assert verdicts(PromoteSettings(), facts(), "approval") == []


def test_the_policy_s_hash_changes_with_any_of_its_settings() -> None:
    hashes = {
        gates.policy_hash(PromoteSettings.model_validate(settings))
        for settings in ({}, {"margin": 0.1}, {"leakage": "allow"}, {"index": {"min_recall": 0.9}})
    }
    assert len(hashes) == 4
    assert decide(PromoteSettings(), facts()).policy in hashes

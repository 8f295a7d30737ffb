"""What the report shows of single pairs: examples of every reason, duplicates, doubtful ones.

Which pairs are shown is a function of their content alone, so that the same curation gives the
same page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.curation.overrides import OVERRIDE_REASON
from coembed.curation.report.look import PICK_KEY, Manifest, Measured, PairRow
from coembed.curation.report.report_pictures import Pictures, Shown
from coembed.curation.report.report_text import (
    FAMILIES,
    column_label,
    is_telling,
    meaning,
    number,
    visible,
)

_SAMPLES = 12
_GROUPS_A_REASON = 6
_MEMBERS = 7
_DOUBTFUL_A_FILTER = 6
_DOUBTFUL = 30
_CAPTIONS_AN_ITEM = 8  # a guess


@dataclass(frozen=True, slots=True)
class Card:
    """One pair as the page shows it. `chips` are measured values, `note` the drop's detail."""

    shown: Shown
    caption: str
    note: str
    pair_id: str
    path: str
    reason: str
    chips: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ReasonSection:
    """A drop reason: what it means, how many pairs it took, some of them, and what the filter that
    gives it says of the whole pool."""

    reason: str
    family: str
    about: str
    num: int
    cards: tuple[Card, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_media(self) -> bool:
        """Whether there is anything to be seen or heard."""
        return any(card.shown.kind != "note" for card in self.cards)


@dataclass(frozen=True, slots=True)
class FilterCost:
    """What one filter took, by reason; `label` is the filter's name or says that none did it,
    `about` what the filter says of itself, and `notes` what it says of this pool."""

    label: str
    about: str
    reasons: tuple[tuple[str, int], ...]
    num: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """A kept pair (None where it was dropped in its turn) and pairs that duplicate it."""

    kept: Card | None
    members: tuple[Card, ...]
    num_members: int


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Kept pairs that one filter was least sure of, most doubtful first; `num` are nearer to going
    than to staying."""

    filter_name: str
    cards: tuple[tuple[float, Card, Card | None], ...]
    num: int


class Cards:
    """Makes cards of rows."""

    def __init__(self, manifest: Manifest, pictures: Pictures) -> None:
        self._pictures = pictures
        self._columns = {chosen.name: chosen.columns for chosen in manifest.filters}
        self._filter_of = filter_of_reason(manifest)

    def card(self, row: PairRow, *, by: str | None = None) -> Card:
        """The card of a pair, with what the filter `by` measured (else the one that dropped it)."""
        reason = row.text("drop_reason")
        name = by or self._filter_of.get(reason, "")
        note = visible(row.text("drop_detail"), 260)
        measured = chips(row, self._columns.get(name, ()), of=name)
        return Card(
            shown=self._pictures.show(row),
            caption=visible(row.text("caption"), 200),
            note=note,
            pair_id=visible(row.text("pair_id"), 80),
            path=visible(row.text("path"), 120),
            reason=reason,
            chips=tuple(chip for chip in measured if not _says(note, chip[1])),
        )


def chips(row: PairRow, columns: Iterable[str], *, of: str) -> Iterable[tuple[str, str]]:
    """The row's values of `columns`, which the filter `of` measured, as (label, text); those that
    are null are left out."""
    for name in columns:
        cell = row.cells.get(name)
        if cell is None or not is_telling(name) or isinstance(cell, (bytes, bytearray)):
            continue
        if name == "match_score":
            factor = math.exp(min(float(cell), 99))
            times = f"{factor:.2g} ×" if factor > 0.01 else "< 0.01 ×"
            yield "Fits", f"{times} as well as the average picture"
            continue
        # Under the filter's own heading its name need not stand before every value.
        label, unit = column_label(name.removeprefix(f"{of}_") if of else name)
        text = number(cell) if isinstance(cell, (int, float)) else visible(cell, 60)
        yield visible(label, 40), f"{text} {unit}".strip()


def _says(note: str, value: str) -> bool:
    """Whether the line under a picture names `value` already."""
    zeros = "0*" if re.fullmatch(r"\d+\.\d+", value) else ""
    return re.search(rf"(?<![\w.]){re.escape(value)}{zeros}(?![\w.]*\w)", note) is not None


def filter_of_reason(manifest: Manifest) -> dict[str, str]:
    """The first filter that may give each reason."""
    return {reason: chosen.name for reason, chosen in _givers(manifest).items()}


def explain(manifest: Manifest, reason: str) -> tuple[str, str]:
    """The family of a drop reason, and one sentence that says what it means."""
    by = _givers(manifest).get(reason)
    return meaning(reason, by.name, by.about) if by else meaning(reason)


def _givers(manifest: Manifest) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for chosen in manifest.filters:
        for reason in chosen.reasons:
            found.setdefault(reason, chosen)
    return found


def filter_notes(summary: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What filters say of the pool as a whole, by filter: a summary's `notes`."""
    notes = summary.get("notes", {})
    return {name: tuple(visible(note, 400) for note in own) for name, own in notes.items()}


def reason_sections(
    manifest: Manifest, cards: Cards, notes: Mapping[str, Sequence[str]]
) -> list[ReasonSection]:
    """Every reason that dropped a pair, in the order of the families, most pairs first. `notes` are
    those of `filter_notes`."""
    filters = filter_of_reason(manifest)
    picked = manifest.ask(
        f"SELECT drop_reason, count(*), arg_min(row, {PICK_KEY}, {_SAMPLES}) FROM pairs "
        "WHERE NOT kept GROUP BY drop_reason"
    )
    rows = manifest.numbered(number for *_, numbers in picked for number in numbers)
    order = {family.key: place for place, family in enumerate(FAMILIES)}
    sections = []
    for reason, num, numbers in picked:
        family, about = explain(manifest, reason)
        shown = tuple(cards.card(rows[place]) for place in numbers)
        said = tuple(notes.get(filters.get(reason, ""), ()))
        sections.append(ReasonSection(reason, family, about, num, shown, said))
    sections.sort(key=lambda section: (order[section.family], -section.num, section.reason))
    return sections


def kept_sample(manifest: Manifest, cards: Cards) -> tuple[Card, ...]:
    """Some kept pairs, picked as if at random."""
    ((numbers,),) = manifest.ask(
        f"SELECT arg_min(row, {PICK_KEY}, {_SAMPLES}) FROM pairs WHERE kept"
    )
    rows = manifest.numbered(numbers or ())
    return tuple(cards.card(rows[place]) for place in numbers or ())


def overruled(manifest: Manifest, cards: Cards) -> tuple[int, tuple[Card, ...]]:
    """How many pairs stayed because somebody said so, and some of them."""
    decided = "kept AND decided_by = 'override'"
    ((num,),) = manifest.ask(f"SELECT count(*) FROM pairs WHERE {decided}")
    rows = manifest.rows(decided, order=PICK_KEY, limit=_SAMPLES)
    return num, tuple(cards.card(row) for row in rows)


def filter_costs(
    manifest: Manifest, dropped: Mapping[str, int], notes: Mapping[str, Sequence[str]]
) -> list[FilterCost]:
    """Drops by filter in the order in which the filters judge; `dropped` is by reason, `notes` as
    in `filter_notes`."""
    filters = filter_of_reason(manifest)
    own = {reason: num for reason, num in dropped.items() if reason not in filters}
    people = own.pop(OVERRIDE_REASON, 0)
    costs = [_cost("reading the files", "Whether there is a file that can be decoded.", own)]
    for chosen in manifest.filters:
        mine = {r: dropped.get(r, 0) for r in chosen.reasons if filters[r] == chosen.name}
        costs.append(_cost(chosen.name, chosen.about, mine, notes.get(chosen.name, ())))
    if people:
        costs.append(_cost("people", "What overrides.csv says.", {OVERRIDE_REASON: people}))
    return costs


def _cost(
    label: str, about: str, reasons: Mapping[str, int], notes: Sequence[str] = ()
) -> FilterCost:
    some = sorted(
        ((r, n) for r, n in reasons.items() if n), key=lambda found: (-found[1], found[0])
    )
    return FilterCost(label, about, tuple(some), sum(num for _, num in some), tuple(notes))


def duplicate_groups(manifest: Manifest, cards: Cards) -> list[DuplicateGroup]:
    """The largest groups under each reason that names what a pair duplicates."""
    found = manifest.ask(
        "SELECT duplicate_of FROM ("
        " SELECT drop_reason, duplicate_of, count(*) AS num FROM pairs"
        " WHERE duplicate_of IS NOT NULL GROUP BY ALL"
        ") QUALIFY row_number() OVER ("
        "  PARTITION BY drop_reason ORDER BY num DESC, md5(duplicate_of)"
        f") <= {_GROUPS_A_REASON} ORDER BY drop_reason, num DESC, md5(duplicate_of)"
    )
    wanted = list(dict.fromkeys(pair_id for (pair_id,) in found))
    if not wanted:
        return []
    marks = ", ".join("?" * len(wanted))
    members = {
        pair_id: (num, numbers)
        for pair_id, num, numbers in manifest.ask(
            f"SELECT duplicate_of, count(*), arg_min(row, {PICK_KEY}, {_MEMBERS}) FROM pairs "
            f"WHERE duplicate_of IN ({marks}) GROUP BY duplicate_of",
            wanted,
        )
    }
    rows = manifest.numbered(number for _, numbers in members.values() for number in numbers)
    keepers = manifest.with_ids(wanted, only_kept=True)
    groups = []
    for pair_id in wanted:
        num, numbers = members[pair_id]
        kept = keepers.get(pair_id)
        groups.append(
            DuplicateGroup(
                kept=None if kept is None else cards.card(kept),
                members=tuple(cards.card(rows[place]) for place in numbers),
                num_members=num,
            )
        )
    return groups


def group_sizes(manifest: Manifest) -> list[tuple[int, int]]:
    """(pairs in a group, the kept one counted; number of such groups), smallest first."""
    found = manifest.ask(
        "SELECT num + 1, count(*) FROM ("
        " SELECT count(*) AS num FROM pairs WHERE duplicate_of IS NOT NULL GROUP BY duplicate_of"
        ") GROUP BY num ORDER BY num"
    )
    return [(size, num) for size, num in found]


def doubtful_pairs(manifest: Manifest, cards: Cards) -> list[Doubtful]:
    """The most doubtful kept pairs of each filter that doubts."""
    by = manifest.ask(
        "SELECT doubt_by, count(*) FILTER (doubt >= 0.5) FROM pairs "
        "WHERE kept AND decided_by IS NULL AND doubt > 0 AND doubt_by IS NOT NULL "
        "GROUP BY doubt_by ORDER BY max(doubt) DESC, doubt_by"
    )
    each = max(2, min(_DOUBTFUL_A_FILTER, _DOUBTFUL // max(len(by), 1)))
    found = []
    for name, num in by:
        rows = manifest.rows(
            "kept AND decided_by IS NULL AND doubt_by = ? AND doubt > 0",
            [name],
            order=f"doubt DESC, {PICK_KEY}",
            limit=each * _CAPTIONS_AN_ITEM,
        )
        filter_name = name.removesuffix("_doubt") if name.endswith("_doubt") else name
        partners = manifest.with_ids(filter(None, (partner_id(r, filter_name) for r in rows)))
        shown: list[tuple[float, Card, Card | None]] = []
        seen: set[str] = set()
        for row in rows:
            # One picture six times, under six captions or from both sides of a couple, would say
            # less than six pictures.
            if row.text("item_id") in seen or len(shown) == each:
                continue
            partner = partners.get(partner_id(row, filter_name) or "")
            other = None if partner is None else cards.card(partner, by="")
            shown.append((float(row["doubt"]), cards.card(row, by=filter_name), other))
            seen |= {own.text("item_id") for own in (row, partner) if own is not None}
        found.append(Doubtful(filter_name, tuple(shown), num))
    return found


def partner_id(row: PairRow, filter_name: str) -> str | None:
    """The pair that this one duplicates, or that its filter holds against it."""
    if row.text("duplicate_of"):
        return row.text("duplicate_of")
    for ending in ("_nearest", "_partner", "_of", "_nearest_pair"):
        cell = row.cells.get(f"{filter_name}{ending}")
        if isinstance(cell, str) and cell:
            return cell
    return None

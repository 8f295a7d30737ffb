"""A difference between two versions of the data, in words: rows for a terminal, a Markdown page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from coembed.lineage.data_diff import DataDiff, Example
from coembed.lineage.data_measures import Distribution, Numbers, Shift
from coembed.pairs.limits import shown

_MAX_CHARACTERS = 100
_MIN_DISTANCE = 0.005  # half a percent of pairs: less is not worth a line
_KINDS = {
    "added": "Pairs added",
    "removed": "Pairs removed",
    "recaptioned": "Pairs recaptioned",
    "media_replaced": "Pairs with other media",
}


def rows(diff: DataDiff) -> tuple[tuple[str, str], ...]:
    """(label, value): what changed, the shifts worth a line, and the examples."""
    table = [
        ("from", _version(diff.old.name, diff.old.commit, diff.old.md5)),
        ("to", _version(diff.new.name, diff.new.commit, diff.new.md5)),
        *_counts(diff),
    ]
    for shift in _worth_a_line(diff.shifts):
        moves = ", ".join(
            f"{_short(value)} {before:,} → {after:,}" for value, before, after in shift.values[:3]
        )
        table.append((f"{shift.name} shifted by {shift.distance:.1%}", moves))
    table += [(n.name, f"{_summary(n.old)} → {_summary(n.new)}") for n in _moved(diff)]
    for kind, examples in diff.examples.items():
        for index, example in enumerate(examples):
            table.append((_KINDS[kind].lower() if not index else "", _said(example)))
    if diff.note:
        table.append(("note", diff.note))
    return tuple(table)


def markdown(diff: DataDiff) -> str:
    """A page with tables of counts, shifts, distributions and examples."""
    names = (_version(v.name, v.commit, v.md5) for v in (diff.old, diff.new))
    lines = [f"# Data: {' → '.join(map(_escaped, names))}", ""]
    if diff.note:
        lines += [f"> {_escaped(diff.note)}", ""]
    if diff.is_empty:
        lines += ["Nothing changed.", ""]
    lines += _table(("", ""), _counts(diff))
    shifts = list(_worth_a_line(diff.shifts))
    if shifts:
        lines += ["## What shifted", ""]
        cells = [
            (
                s.name if not i else "",
                f"{s.distance:.1%}" if not i else "",
                value,
                f"{a:,}",
                f"{b:,}",
            )
            for s in shifts
            for i, (value, a, b) in enumerate(s.values)
        ]
        lines += _table(("attribute", "shifted by", "value", "before", "after"), cells)
    lines += ["## Numbers", ""]
    heads = ("", "", "values", "mean", "least", "5%", "median", "95%", "greatest")
    figures = [
        (numbers.name if side == "before" else "", side, f"{found.num:,}", *_figures(found))
        for numbers in (diff.caption_lengths, *diff.numbers)
        for side, found in (("before", numbers.old), ("after", numbers.new))
    ]
    lines += _table(heads, figures)
    for kind, examples in diff.examples.items():
        if examples:
            lines += [f"## {_KINDS[kind]}", ""]
            pairs = [(e.path, e.before or "", e.after or "") for e in examples]
            lines += _table(("path", "caption before", "caption after"), pairs)
    return "\n".join(lines)


def _counts(diff: DataDiff) -> list[tuple[str, str]]:
    table = [
        ("pairs", _grown(diff.num_pairs, diff.added, diff.removed)),
        ("items", _grown(diff.num_items, diff.items_added, diff.items_removed)),
    ]
    changes = {
        "recaptioned": diff.recaptioned,
        "with other media": diff.media_replaced,
        "at another path": diff.moved,
        "with another given split": diff.resplit,
        "of another modality": diff.modality_changed,
    }
    changes |= {f"with another {name}": num for name, num in diff.attributes_changed.items()}
    table += [(f"pairs {label}", f"{num:,}") for label, num in changes.items() if num]
    for label, names in (
        ("attributes added", diff.attributes_added),
        ("attributes removed", diff.attributes_removed),
    ):
        if names:
            table.append((label, ", ".join(map(_short, names))))
    return table


def _grown(num: tuple[int, int], added: int, removed: int) -> str:
    return f"{num[0]:,} → {num[1]:,} (+{added:,} −{removed:,})"


def _version(name: str, commit: str | None, md5: str) -> str:
    at = f" ({commit[:10]})" if commit and not commit.startswith(name) else ""
    return f"{name}{at}, {md5[:10]}"


def _worth_a_line(shifts: Sequence[Shift]) -> Iterator[Shift]:
    return (shift for shift in shifts if shift.distance >= _MIN_DISTANCE and shift.values)


def _moved(diff: DataDiff) -> Iterator[Numbers]:
    for numbers in (diff.caption_lengths, *diff.numbers):
        if _figures(numbers.old)[:1] + _figures(numbers.old)[2:5] != (
            _figures(numbers.new)[:1] + _figures(numbers.new)[2:5]
        ):
            yield numbers


def _summary(found: Distribution) -> str:
    mean, _, p5, median, p95, _ = _figures(found)
    return f"median {median}, mean {mean}, 90% in {p5} to {p95}" if found.num else "no value"


def _figures(found: Distribution) -> tuple[str, ...]:
    values = (found.mean, found.minimum, found.p5, found.median, found.p95, found.maximum)
    return tuple("" if value is None else f"{value:.4g}" for value in values)


def _said(example: Example) -> str:
    captions = [c for c in (example.before, example.after) if c is not None]
    if len(captions) == 2 and captions[0] == captions[1]:
        captions = captions[:1]
    return f"{_short(example.path)}: {' → '.join(map(_short, captions))}"


def _short(text: str) -> str:
    line = shown(text)
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]}…"


def _table(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_escaped(_short(cell)) for cell in row)} |" for row in cells]
    return [*lines, ""]


def _escaped(text: str) -> str:
    """Foreign text that is no markup: neither Markdown's nor HTML's."""
    return re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", html.escape(text, quote=False))

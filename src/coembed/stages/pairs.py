"""Questions about curated pairs, answered from the manifest: why is this one in or out, which are.

Everything that comes from data is made visible text before it is returned as words: a caption may
hold what steers a terminal. What is returned for programs is as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.curation.examination.examine import declared_reasons
from coembed.curation.overrides import OVERRIDE_REASON, Decision, Overrides, read_overrides
from coembed.curation.report.look import FACT_COLUMNS, PICK_KEY, Manifest, Measured, PairRow
from coembed.curation.report.report import MANIFEST, build_filters
from coembed.curation.report.report_pictures import UNDECODABLE
from coembed.curation.report.report_sections import explain, filter_of_reason, partner_id
from coembed.curation.report.report_splits import SPLIT_REASONS
from coembed.curation.report.report_text import column_label, number, visible, words
from coembed.errors import UserError

_NUM_DUPLICATES = 5


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of one pair: `lines` are (label, sentence), `facts` the same as JSON."""

    title: str
    lines: tuple[tuple[str, str], ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """Pairs that were asked for: `num` in all, the first of them as `rows`."""

    title: str
    rows: Sequence[PairRow]
    num: int

    def to_json(self) -> dict[str, Any]:
        """Counts and whole rows."""
        return {"num": self.num, "pairs": [plain_cells(row) for row in self.rows]}


def open_manifest(cfg: Config, pairs: Path) -> Manifest:
    """The manifest in the folder `pairs`, its columns told apart by the filters of `cfg`."""
    return Manifest(pairs / MANIFEST, build_filters(cfg.curate))


def why(cfg: Config, *, pairs: Path, overrides: Path, pair_ids: Sequence[str]) -> list[Explanation]:
    """Explain each of `pair_ids`; several rows of one id are all explained.

    Raises UserError for an id that is not in the manifest; the error names what looks like it.
    """
    decided = read_overrides(overrides)
    with open_manifest(cfg, pairs) as manifest:
        limits = _limits(cfg)
        found = []
        for pair_id in pair_ids:
            rows = manifest.rows("pair_id = ?", [pair_id], limit=20)
            if not rows:
                raise _unknown(manifest, pair_id)
            found += [_explain(manifest, row, decided, limits) for row in rows]
    return found


def show(
    cfg: Config,
    *,
    pairs: Path,
    reason: str | None = None,
    kept: bool = False,
    split: str | None = None,
    doubtful: bool = False,
    limit: int = 20,
) -> Shown:
    """Pairs by what became of them. Doubtful ones come most doubtful first; of those that were
    dropped for a `reason` the report's examples come first; others are in pool order.

    Raises UserError for a reason that no pair has, naming those that there are.
    """
    if reason is not None and (kept or doubtful):
        raise UserError(
            "a pair with a drop reason was not kept",
            hint="ask for --reason, or for --kept or --doubtful",
        )
    with open_manifest(cfg, pairs) as manifest:
        if reason is not None:
            _check_reason(manifest, reason, declared_reasons(build_filters(cfg.curate)))
        where, parameters = ["true"], list[str]()
        if reason is not None:
            where, parameters = ["drop_reason = ?"], [reason]
        if kept or doubtful:
            where.append("kept")
        if doubtful:
            where.append("doubt > 0")
        if split is not None:
            where.append("split = ?")
            parameters.append(split)
        condition = " AND ".join(where)
        order = f"doubt DESC, {PICK_KEY}" if doubtful else PICK_KEY if reason else "row"
        ((num,),) = manifest.ask(f"SELECT count(*) FROM pairs WHERE {condition}", parameters)
        rows = manifest.rows(condition, parameters, order=order, limit=limit)
    what = "most doubtful kept" if doubtful else "kept" if kept else "dropped" if reason else "all"
    title = f"{what} pairs" + (f" ({reason})" if reason else "") + (f" in {split}" if split else "")
    return Shown(title[:1].upper() + title[1:], rows, num)


def draw(shown: Shown, *, pool: Path, out: Path) -> None:
    """Write a contact sheet of the shown pairs as a PNG."""
    from coembed.stages.contact_sheet import Cell, draw_cells  # brings torch

    cells = [
        Cell(row.text("path"), _mark(row), row.text("pair_id"), row.text("caption"))
        for row in shown.rows
    ]
    count = f"{len(cells):,} of {shown.num:,} pairs"
    draw_cells(cells, title=shown.title, count=count, pool=pool, out=out)


def _mark(row: PairRow) -> str:
    if row.kept:
        return row.text("split") if row["doubt"] is None else f"doubt {row['doubt']:.2f}"
    return row.text("drop_reason").replace("_", " ")


def plain_cells(row: PairRow) -> dict[str, Any]:
    """The row's cells that are not null, as JSON holds them."""
    return {
        name: cell.hex() if isinstance(cell, (bytes, bytearray)) else cell
        for name, cell in row.cells.items()
        if cell is not None
    }


def _check_reason(manifest: Manifest, reason: str, declared: Sequence[str]) -> None:
    reasons = manifest.reasons()
    if reason in reasons:
        return
    known = reason in (*declared, OVERRIDE_REASON)
    what = f"no pair was dropped as {reason!r}" if known else f"{reason!r} is no drop reason here"
    if not reasons:
        raise UserError(f"{what}: every pair was kept")
    listed = ", ".join(f"{visible(name, 60)} ({num:,})" for name, num in reasons.items())
    raise UserError(what, hint=f"there are: {listed}")


def _unknown(manifest: Manifest, pair_id: str) -> UserError:
    shown = visible(pair_id, 100)
    at_path = manifest.rows("path = ? OR item_id = ?", [pair_id, pair_id], limit=5)
    if at_path:
        ids = ", ".join(visible(row["pair_id"], 80) for row in at_path)
        return UserError(f"{shown!r} is no pair_id", hint=f"pairs of that file: {ids}")
    near = [visible(found, 80) for found in manifest.nearest_ids(pair_id)]
    hint = f"did you mean {', '.join(near)}?" if near else "`coembed pairs show` lists some"
    return UserError(f"no pair {shown!r} in {manifest.path}", hint=hint)


def _limits(cfg: Config) -> dict[str, str]:
    """What each filter's settings say, as `name value, ...`."""
    limits = {}
    for chosen in cfg.curate.filters:
        values = chosen.model_dump(mode="json", exclude={"name"})
        said = [
            f"{name} {_value(value)}"
            for name, value in values.items()
            if isinstance(value, (int, float, str)) and value != ""
        ]
        limits[chosen.name] = ", ".join(said)
    return limits


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else visible(value, 60)


def _explain(
    manifest: Manifest, row: PairRow, decided: Overrides, limits: Mapping[str, str]
) -> Explanation:
    filters = filter_of_reason(manifest)
    reason = row.text("drop_reason")
    lines = [_outcome(manifest, row, filters.get(reason))]
    if row.text("drop_detail"):
        lines.append(("found", visible(row["drop_detail"], 400)))
    if row["doubt"] is not None and row.kept:
        by = visible(row.text("doubt_by").removesuffix("_doubt"), 60)
        lines.append(
            ("doubt", f"{row['doubt']:.2f} by {by} (0 is sound, 1 just short of being dropped)")
        )
    lines.append(("caption", repr(visible(row.text("caption"), 600))))
    lines.append(("file", _file(row)))
    lines += _duplicates(manifest, row, filters.get(reason, ""))
    lines += _measurements(manifest.filters, row, limits)
    lines.append(("split", _split(row)))
    lines += _people(row, decided)
    attributes = [
        f"{visible(name, 40)} {_value(row[name])}"
        for name in manifest.attributes
        if row[name] is not None
    ]
    if attributes:
        lines.append(("columns", ", ".join(attributes)))
    facts = plain_cells(row)
    decision = decided.decisions.get(row.text("pair_id"))
    if decision is not None:
        facts["override"] = {"decision": decision[0], "reason": decision[1]}
    facts["filter"] = filters.get(reason)
    return Explanation(visible(row["pair_id"], 100), tuple(lines), facts)


def _outcome(manifest: Manifest, row: PairRow, filter_name: str | None) -> tuple[str, str]:
    if row.kept:
        why_kept = "overrides.csv says so" if row.text("decided_by") else "it passed every filter"
        return "kept", f"{why_kept}; it is in the curated pairs"
    reason = row.text("drop_reason")
    _, about = explain(manifest, reason)
    by = f", by the filter {filter_name}" if filter_name else ""
    return "dropped", f"as {visible(reason, 60)}{by}: {about[:1].lower()}{about[1:]}"


def _file(row: PairRow) -> str:
    parts = [visible(row.text("path"), 200) or "no path", row.text("modality")]
    for name in FACT_COLUMNS:
        cell = row[name]
        if cell is None or name == "height_px" or (name == "num_frames" and cell == 1):
            continue
        if name == "width_px":
            parts.append(f"{cell:,} × {row['height_px'] or 0:,} px")
        else:
            label, unit = column_label(name)
            plain = name in ("num_bytes", "format", "duration_s")
            text = f"{_value(cell)} {unit}".strip()
            parts.append(text if plain else f"{label.lower()} {text}")
    return ", ".join(part for part in parts if part)


def _duplicates(manifest: Manifest, row: PairRow, filter_name: str) -> list[tuple[str, str]]:
    lines = []
    partner = partner_id(row, filter_name)
    if partner:
        found = manifest.with_ids([partner]).get(partner)
        what = "" if found is None else f", {_short(found)}"
        lines.append(("duplicates", f"{visible(partner, 80)}{what}"))
    copies = manifest.rows(
        "duplicate_of = ?", [row.text("pair_id")], order=PICK_KEY, limit=_NUM_DUPLICATES
    )
    if copies and row.kept:
        ((num,),) = manifest.ask(
            "SELECT count(*) FROM pairs WHERE duplicate_of = ?", [row.text("pair_id")]
        )
        listed = "; ".join(
            f"{visible(copy['pair_id'], 80)} ({copy.text('drop_reason')})" for copy in copies
        )
        more = f"; and {num - len(copies):,} more" if num > len(copies) else ""
        lines.append(("its duplicates", f"{listed}{more}"))
    return lines


def _short(row: PairRow) -> str:
    state = "kept" if row.kept else f"itself dropped as {row.text('drop_reason')}"
    caption, path = visible(row.text("caption"), 80), visible(row.text("path"), 80)
    return f"{state}: {path}, {caption!r}"


def _measurements(
    filters: Sequence[Measured], row: PairRow, limits: Mapping[str, str]
) -> list[tuple[str, str]]:
    """A line for every filter that measured something of the pair, its limits beside it."""
    lines = []
    for chosen in filters:
        measured = []
        for name in chosen.columns:
            cell = row.cells.get(name)
            if cell is None or isinstance(cell, (bytes, bytearray)):
                continue
            label, unit = column_label(name.removeprefix(f"{chosen.name}_"))
            measured.append(f"{label.lower()} {_value(cell)} {unit}".strip())
        if measured:
            limit = f"  (settings: {limits[chosen.name]})" if limits.get(chosen.name) else ""
            lines.append((chosen.name, ", ".join(measured) + limit))
    return lines


def _split(row: PairRow) -> str:
    split = row.text("split")
    if not split:
        return "none: it is not in the curated pairs"
    because = SPLIT_REASONS.get(row.text("split_reason"), words(row.text("split_reason")))
    lives_on = "" if row.kept else "its caption lives on with the pair it duplicates; "
    return f"{split}; {lives_on}{because[:1].lower()}{because[1:]}"


def _people(row: PairRow, decided: Overrides) -> list[tuple[str, str]]:
    """What overrides.csv says, and whether this manifest knows of it."""
    said = decided.decisions.get(row.text("pair_id"))
    took_effect = bool(row.text("decided_by"))
    if said is None:
        if took_effect:
            gone = "overrides.csv decided it when these pairs were curated, but says nothing now"
            return [("people", f"{gone}; the next `coembed curate` goes by the filters")]
        return []
    decision, reason = said
    sentence = f"overrides.csv says {decision}" + (f": {visible(reason, 200)}" if reason else "")
    if not took_effect:
        sentence += f"; {_pending(row, decision)}"
    return [("people", sentence)]


def _pending(row: PairRow, decision: Decision) -> str:
    if row.kept == (decision == "keep"):
        return "the filters say the same"
    if row.text("drop_reason") in (*UNDECODABLE, "repeated_pair_id"):
        return "but there is nothing to keep"
    return "the next `coembed curate` follows it"

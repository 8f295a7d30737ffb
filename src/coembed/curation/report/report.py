"""The report on curated pairs: report.html, one file that needs nothing else, not even a script.

It is made of manifest.parquet, summary.json and the pool's media, and of nothing else: the same
curation gives the same bytes. Everything that comes from data is escaped, and the page's own
policy forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, StrictUndefined

from coembed.curation.filters.base import Filter
from coembed.curation.report.look import Manifest
from coembed.curation.report.report_change import Change, last_change
from coembed.curation.report.report_numbers import (
    HEIGHT,
    WIDTH,
    Categories,
    Constant,
    Distribution,
    Histogram,
    attribute_distributions,
    fact_distributions,
    score_distributions,
)
from coembed.curation.report.report_pictures import Pictures
from coembed.curation.report.report_sections import (
    Card,
    Cards,
    Doubtful,
    DuplicateGroup,
    FilterCost,
    ReasonSection,
    doubtful_pairs,
    duplicate_groups,
    filter_costs,
    filter_notes,
    group_sizes,
    kept_sample,
    overruled,
    reason_sections,
)
from coembed.curation.report.report_splits import (
    Balance,
    SplitRow,
    balances,
    split_reasons,
    split_rows,
)
from coembed.curation.report.report_text import (
    FAMILIES,
    Family,
    number,
    percent,
    plural,
    short,
    words,
)
from coembed.curation.settings import CurateSettings
from coembed.files import read_json, write_text
from coembed.types import SPLITS

MANIFEST = "manifest.parquet"
SUMMARY = "summary.json"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows, as plain values."""

    num_pairs: int
    num_kept: int
    summary: Mapping[str, Any]
    families: Sequence[tuple[Family, Sequence[ReasonSection], int]]
    kept_sample: Sequence[Card]
    overruled: tuple[int, Sequence[Card]]
    costs: Sequence[FilterCost]
    facts: Sequence[Distribution]
    scores: Sequence[Distribution]
    attributes: Sequence[Distribution]
    groups: Sequence[DuplicateGroup]
    group_sizes: Sequence[tuple[int, int]]
    doubtful: Sequence[Doubtful]
    balances: Sequence[Balance]
    splits: Sequence[SplitRow]
    split_reasons: Sequence[tuple[str, str, int]]
    change: Change | None

    @property
    def num_dropped(self) -> int:
        """Pairs that went."""
        return self.num_pairs - self.num_kept


def build_filters(settings: CurateSettings) -> dict[str, Filter]:
    """The filters of `settings` by name, in their order."""
    built = {chosen.name: cast(Any, chosen).build() for chosen in settings.filters}
    return cast("dict[str, Filter]", built)


def write_report(folder: Path, *, pool: Path, settings: CurateSettings) -> None:
    """Write `folder`/report.html from its manifest and summary, with pictures from `pool`.

    Raises DataError when the manifest or the summary is missing or malformed.
    """
    summary = read_json(folder / SUMMARY, what="summary of the curated pairs")
    pictures = Pictures(
        pool, max_pixels=settings.max_pixels, max_media_bytes=settings.max_media_bytes
    )
    with Manifest(folder / MANIFEST, build_filters(settings)) as manifest:
        report = gather(manifest, summary, pictures, pool=pool)
    write_text(folder / REPORT, render(report))


def gather(
    manifest: Manifest, summary: Mapping[str, Any], pictures: Pictures, *, pool: Path
) -> Report:
    """Ask the manifest for all that the page shows."""
    cards = Cards(manifest, pictures)
    ((num_pairs, num_kept),) = manifest.ask("SELECT count(*), count(*) FILTER (kept) FROM pairs")
    notes = filter_notes(summary)
    sections = reason_sections(manifest, cards, notes)
    families = []
    for family in FAMILIES:
        own = [section for section in sections if section.family == family.key]
        if own:
            families.append((family, own, sum(section.num for section in own)))
    return Report(
        num_pairs=num_pairs,
        num_kept=num_kept,
        summary=summary,
        families=families,
        kept_sample=kept_sample(manifest, cards),
        overruled=overruled(manifest, cards),
        costs=filter_costs(manifest, {s.reason: s.num for s in sections}, notes),
        facts=fact_distributions(manifest),
        scores=score_distributions(manifest),
        attributes=attribute_distributions(manifest),
        groups=duplicate_groups(manifest, cards),
        group_sizes=group_sizes(manifest),
        doubtful=doubtful_pairs(manifest, cards),
        balances=balances(manifest),
        splits=split_rows(summary),
        split_reasons=split_reasons(manifest),
        change=last_change(manifest, pool),
    )


def render(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent, number=number, words=words, short=short, plural=plural
    )
    environment.tests["histogram"] = lambda view: isinstance(view, Histogram)
    environment.tests["categories"] = lambda view: isinstance(view, Categories)
    environment.tests["constant"] = lambda view: isinstance(view, Constant)
    source = (files("coembed.curation.report") / "report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        report=report, chart_width=WIDTH, chart_height=HEIGHT, split_names=SPLITS
    )
    return page + "\n"

"""Judge to the end what people keep: the filters behind the one that dropped the pair.

A worker stops at the first filter that drops a pair. Where overrides.csv keeps the pair all the
same, the filters behind it have still to be asked, not for their verdict but for what they do: a
telephone number is masked in a kept caption, whoever kept it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa

from coembed.curation.candidate import Candidate, Facts
from coembed.curation.database import Database, quote
from coembed.curation.examination.part_cells import normal_caption, text_key
from coembed.curation.filters.base import Cell, Filter
from coembed.curation.ledger import ARROW_TYPES
from coembed.curation.rows_table import Examined
from coembed.curation.spool import Spool

REJUDGED = "rejudged"
_FACTS = tuple(field.name for field in fields(Facts) if not field.name.startswith("fault"))


def judge_spared(
    database: Database, spool: Spool, examined: Examined, filters: Mapping[str, Filter]
) -> tuple[str, ...]:
    """Ask all filters about the rows in `spared`; their captions and columns go into `rows`.

    Returns the columns of the table `rejudged`, which holds the same for the manifest: `caption`
    and the filters' columns.
    """
    columns = list(examined.light)
    wanted = ", ".join(map(quote, ("row", *_FACTS, *examined.columns)))
    found: list[dict[str, Any]] = []
    for batch in database.query(f"SELECT {wanted} FROM parts SEMI JOIN spared USING (row)"):
        cells_of = {cells.pop("row"): cells for cells in batch.to_pylist()}
        for row, pair in spool.pick(list(cells_of)).items():
            cells = cells_of[row]
            facts = Facts(**{name: cells.pop(name) for name in _FACTS})
            own: dict[str, Cell] = {n: cell for n, cell in cells.items() if cell is not None}
            candidate = Candidate(pair, pair.caption, facts, own)
            for judge in filters.values():
                if type(judge).judge is Filter.judge:
                    continue
                verdict = judge.judge(candidate)
                own.update(verdict.columns)
                if verdict.caption is not None:
                    candidate.caption = verdict.caption
            key = text_key(normal_caption(candidate.caption)).hex()
            found.append({"row": row, "caption": candidate.caption, "caption_key": key, **own})
    schema = pa.schema(
        [("row", pa.int64()), ("caption", pa.string()), ("caption_key", pa.string())]
        + [(name, ARROW_TYPES[examined.columns[name]]) for name in columns]
    )
    database.execute(
        f"CREATE TABLE {REJUDGED} AS"
        " SELECT * REPLACE (caption_key::UUID AS caption_key) FROM found",
        found=pa.Table.from_pylist(found, schema=schema),
    )
    cells_sql = ", ".join(
        f"{quote(name)} = {REJUDGED}.{quote(name)}" for name in ("caption", "caption_key", *columns)
    )
    database.execute(f"UPDATE rows SET {cells_sql} FROM {REJUDGED} WHERE rows.row = {REJUDGED}.row")
    return ("caption", *columns)

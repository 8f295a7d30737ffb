"""Drawing the whole pool: plan it in one process, draw its pictures in several."""

import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import UserError
from coembed.files import atomic_folder
from coembed.pairs.shop import captions, catalogue, faults
from coembed.pairs.shop.faults import Damage, Item, Row
from coembed.pairs.shop.photo import Photo
from coembed.pairs.shop.seeds import stream
from coembed.progress import track

# Below this the faults cannot all be planted with room to spare.
MIN_PAIRS = 100
_CHUNK = 16

_POOL = pa.schema(
    [
        *((name, pa.string()) for name in ("pair_id", "path", "caption", "split", "product_id")),
        *((name, pa.string()) for name in ("kind", "colour", "pattern", "style", "background")),
        ("price", pa.float64()),
        ("composition", pa.string()),
    ]
)
_TRUTH = pa.schema(
    [(name, pa.string()) for name in ("pair_id", "path", "fault", "partner", "detail")]
)


@dataclass(frozen=True, slots=True)
class PoolSummary:
    """What was drawn. `num_items` counts files, `unseen` holds (colour, kind)."""

    num_pairs: int
    num_items: int
    num_products: int
    faults: dict[str, int]
    unseen: tuple[tuple[str, str], ...]


def draw_pool(
    out: Path,
    *,
    seed: int = 7,
    num_pairs: int = 6000,
    image_px: int = 128,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> PoolSummary:
    """Draw the demo shop into the folder `out`: the pool, its media and the table of its faults.

    The same seed, `num_pairs` and `image_px` give the same bytes on any number of workers
    (default: one a CPU). `out` appears whole or not at all.

    Raises:
        UserError: `out` holds something and `overwrite` is false, or an argument is out of range.
    """
    _check(
        out, num_pairs=num_pairs, image_px=image_px, num_workers=num_workers, overwrite=overwrite
    )
    num_workers = num_workers or os.cpu_count() or 1
    rows = plan(seed, num_pairs, image_px)
    items = {row.item.number: row.item for row in rows}
    with atomic_folder(out) as folder:
        tasks = [
            (str(folder / _path(item)), item.photo, item.damage)
            for _, item in sorted(items.items())
        ]
        for parent in sorted({str(Path(path).parent) for path, _, _ in tasks}):
            Path(parent).mkdir(parents=True)
        (folder / "pairs").mkdir()
        _draw_all(tasks, num_workers)
        _write(folder / "pairs" / "shop.parquet", _POOL, [_pool_row(row) for row in rows])
        planted = sorted((row for row in rows if row.fault), key=lambda row: row.pair_id)
        _write(folder / "truth.parquet", _TRUTH, [_truth_row(row) for row in planted])
    return PoolSummary(
        num_pairs=len(rows),
        num_items=len(items),
        num_products=len({row.item.product.product_id for row in rows}),
        faults=dict(sorted(Counter(row.fault for row in planted).items())),
        unseen=catalogue.unseen_combos(seed),
    )


def plan(seed: int, num_pairs: int, image_px: int) -> list[Row]:
    """Every row of the pool in its final order, before anything is drawn."""
    planned = faults.counts(num_pairs)
    num_sound = num_pairs - planned["exact_duplicate"] - planned["near_duplicate"]
    unseen = frozenset(catalogue.unseen_combos(seed))
    rng = stream(seed, "captions")
    rows: list[Row] = []
    for product in catalogue.stock(seed):
        if len(rows) >= num_sound:
            break
        for photo in catalogue.photographs(seed, product, image_px):
            item = Item(photo, product)
            num = rng.choice((2, 2, 3)) if rng.random() < 0.15 else 1
            num = min(num, num_sound - len(rows))
            texts = captions.write(rng, product, photo.background, num, unseen)
            split = "test" if product.unseen else None
            rows += [Row(item, text, i, split) for i, text in enumerate(texts)]
    rows = faults.plant(seed, rows, num_pairs)

    # Numbers and order tell nothing about what was planted.
    items = list({id(row.item): row.item for row in rows}.values())
    stream(seed, "numbers").shuffle(items)
    for number, item in enumerate(items):
        item.number = number
    stream(seed, "order").shuffle(rows)
    return rows


def _check(
    out: Path, *, num_pairs: int, image_px: int, num_workers: int | None, overwrite: bool
) -> None:
    if num_pairs < MIN_PAIRS:
        raise UserError(
            f"num_pairs is {num_pairs}; the shop needs at least {MIN_PAIRS}",
            hint="ask for more pairs: the default is 6000",
        )
    if not 64 <= image_px <= 1024:
        raise UserError(f"image_px is {image_px}; expected 64 to 1024", hint="the default is 128")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; expected 1 or more")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder", hint="name a folder for the pool")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"{out} exists and is not empty",
            hint="choose another folder, or overwrite it to lose what it holds",
        )


def _path(item: Item) -> str:
    return f"media/{item.number // 100:02d}/{item.number:06d}.jpg"


def _draw_all(tasks: list[tuple[str, Photo, Damage]], num_workers: int) -> None:
    if num_workers == 1:
        for task in track(tasks, total=len(tasks), label="draw the shop", unit="image"):
            _draw_item(task)
        return
    # Spawned, not forked: the caller may have threads (torch, a progress bar).
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        done = pool.imap_unordered(_draw_item, tasks, chunksize=_CHUNK)
        for _ in track(done, total=len(tasks), label="draw the shop", unit="image"):
            pass


def _draw_item(task: tuple[str, Photo, Damage]) -> None:
    path, photo, damage = task
    Path(path).write_bytes(faults.media(photo, damage))


def _pool_row(row: Row) -> dict[str, object]:
    product = row.item.product
    return {
        "pair_id": row.pair_id,
        "path": _path(row.item),
        "caption": row.caption,
        "split": row.split,
        "product_id": product.product_id,
        "kind": product.kind,
        "colour": product.colour,
        "pattern": product.pattern,
        "style": product.style,
        "background": row.item.photo.background,
        "price": product.price,
        "composition": "unseen" if product.unseen else "seen",
    }


def _truth_row(row: Row) -> dict[str, object]:
    return {
        "pair_id": row.pair_id,
        "path": _path(row.item),
        "fault": row.fault,
        "partner": row.partner.pair_id if row.partner else None,
        "detail": row.detail,
    }


def _write(path: Path, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, path, compression="zstd", version="2.6", data_page_version="1.0")

"""Drawing the whole pool: plan it in one process, draw its pictures and sounds in several."""

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
from coembed.pairs.shop.faults import Item, Row
from coembed.pairs.shop.seeds import stream
from coembed.pairs.shop.sounds.faults import SoundItem, SoundRow
from coembed.pairs.shop.sounds.plan import MIN_SOUNDS, plan_sounds
from coembed.progress import track

# Below this the faults cannot all be planted with room to spare.
MIN_PAIRS = 100
SOUNDS_TABLE = Path("pairs/sounds.parquet")
_CHUNK = 16

_POOL = pa.schema(
    [
        *((name, pa.string()) for name in ("pair_id", "path", "caption", "split", "product_id")),
        *((name, pa.string()) for name in ("kind", "colour", "pattern", "style", "background")),
        ("price", pa.float64()),
        ("composition", pa.string()),
    ]
)
# A column that only one of the tables has is null in the other's rows.
_SOUNDS = pa.schema(
    [
        *((name, pa.string()) for name in ("pair_id", "path", "caption", "product_id")),
        *((name, pa.string()) for name in ("kind", "pitch", "tempo", "place")),
    ]
)
_TRUTH = pa.schema(
    [(name, pa.string()) for name in ("pair_id", "path", "fault", "partner", "detail")]
)


@dataclass(frozen=True, slots=True)
class PoolSummary:
    """What was drawn. `num_pairs` and `num_products` are those of the `num_items` pictures,
    `num_sound_pairs` those of the `num_sounds` sound files; `faults` counts all pairs by their
    fault, `unseen` holds (colour, kind)."""

    num_pairs: int
    num_items: int
    num_products: int
    num_sound_pairs: int
    num_sounds: int
    faults: dict[str, int]
    unseen: tuple[tuple[str, str], ...]


def draw_pool(
    out: Path,
    *,
    seed: int = 7,
    num_pairs: int = 6000,
    image_px: int = 128,
    num_sounds: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> PoolSummary:
    """Draw the demo shop into the folder `out`: the pool, its media and the table of its faults.

    `num_pairs` counts pairs of pictures. With `num_sounds` there are so many sound files beside
    them, in a table of their own; the pictures and their table do not change by that.

    The same seed, `num_pairs`, `image_px` and `num_sounds` give the same bytes on any number of
    workers (default: one a CPU). `out` appears whole or not at all.

    Raises:
        UserError: `out` holds something and `overwrite` is false, or an argument is out of range.
    """
    _check(
        out, num_pairs=num_pairs, image_px=image_px, num_sounds=num_sounds,
        num_workers=num_workers, overwrite=overwrite,
    )  # fmt: skip
    num_workers = num_workers or os.cpu_count() or 1
    rows = plan(seed, num_pairs, image_px)
    items = {row.item.number: row.item for row in rows}
    sounds = plan_sounds(seed, num_sounds) if num_sounds else []
    with atomic_folder(out) as folder:
        # The slower sounds first, so that no worker is left alone with the last of them.
        every: list[Row | SoundRow] = [*sounds, *rows]
        media = {row.item.path: row.item for row in every}
        tasks = [(folder / path, item) for path, item in media.items()]
        for parent in {path.parent for path, _ in tasks}:
            parent.mkdir(parents=True, exist_ok=True)
        (folder / "pairs").mkdir()
        _draw_all(tasks, num_workers)
        _write(folder / "pairs" / "shop.parquet", _POOL, [_pool_row(row) for row in rows])
        if sounds:
            _write(folder / SOUNDS_TABLE, _SOUNDS, [_sound_row(row) for row in sounds])
        planted = sorted((row for row in every if row.fault), key=lambda row: row.pair_id)
        _write(folder / "truth.parquet", _TRUTH, [_truth_row(row) for row in planted])
    return PoolSummary(
        num_pairs=len(rows),
        num_items=len(items),
        num_products=len({row.item.product.product_id for row in rows}),
        num_sound_pairs=len(sounds),
        num_sounds=num_sounds,
        faults=dict(sorted(Counter(row.fault for row in planted).items())),
        unseen=catalogue.unseen_combos(seed),
    )


def plan(seed: int, num_pairs: int, image_px: int) -> list[Row]:
    """Every row of the pool's pictures in its final order, before anything is drawn."""
    planned = faults.counts(num_pairs)
    num_good = num_pairs - planned["exact_duplicate"] - planned["near_duplicate"]
    unseen = frozenset(catalogue.unseen_combos(seed))
    rng = stream(seed, "captions")
    rows: list[Row] = []
    for product in catalogue.stock(seed):
        if len(rows) >= num_good:
            break
        for photo in catalogue.photographs(seed, product, image_px):
            item = Item(photo, product)
            num = rng.choice((2, 2, 3)) if rng.random() < 0.15 else 1
            num = min(num, num_good - len(rows))
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
    out: Path,
    *,
    num_pairs: int,
    image_px: int,
    num_sounds: int,
    num_workers: int | None,
    overwrite: bool,
) -> None:
    if num_pairs < MIN_PAIRS:
        raise UserError(
            f"num_pairs is {num_pairs}; the shop needs at least {MIN_PAIRS}",
            hint="ask for more pairs: the default is 6000",
        )
    if not 64 <= image_px <= 1024:
        raise UserError(f"image_px is {image_px}; expected 64 to 1024", hint="the default is 128")
    if num_sounds and num_sounds < MIN_SOUNDS:
        raise UserError(
            f"num_sounds is {num_sounds}; expected none, or {MIN_SOUNDS} or more",
            hint="ask for more sounds: every kind of them should come up",
        )
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; expected 1 or more")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder", hint="name a folder for the pool")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"{out} exists and is not empty",
            hint="choose another folder, or overwrite it to lose what it holds",
        )


def _draw_all(tasks: list[tuple[Path, Item | SoundItem]], num_workers: int) -> None:
    if num_workers == 1:
        for task in track(tasks, total=len(tasks), label="draw the shop", unit="file"):
            _draw_item(task)
        return
    # Spawned, not forked: the caller may have threads (torch, a progress bar).
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        done = pool.imap_unordered(_draw_item, tasks, chunksize=_CHUNK)
        for _ in track(done, total=len(tasks), label="draw the shop", unit="file"):
            pass


def _draw_item(task: tuple[Path, Item | SoundItem]) -> None:
    path, item = task
    path.write_bytes(item.media())


def _pool_row(row: Row) -> dict[str, object]:
    product = row.item.product
    return {
        "pair_id": row.pair_id,
        "path": row.item.path,
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


def _sound_row(row: SoundRow) -> dict[str, object]:
    recording = row.item.take.recording
    return {
        "pair_id": row.pair_id,
        "path": row.item.path,
        "caption": row.caption,
        "product_id": row.item.take.product_id,
        "kind": recording.kind,
        "pitch": recording.pitch,
        "tempo": recording.tempo,
        "place": recording.place,
    }


def _truth_row(row: Row | SoundRow) -> dict[str, object]:
    return {
        "pair_id": row.pair_id,
        "path": row.item.path,
        "fault": row.fault,
        "partner": row.partner.pair_id if row.partner else None,
        "detail": row.detail,
    }


def _write(path: Path, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, path, compression="zstd", version="2.6", data_page_version="1.0")

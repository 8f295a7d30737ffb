"""A contact sheet: one picture of many, for a look at what a search finds, or at a pool's pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from coembed.errors import DataError
from coembed.evaluation.sound_picture import sound_picture
from coembed.files import atomic_path
from coembed.modalities.image import decode_image
from coembed.pairs.media_types import modality_of
from coembed.types import Hit

_COLUMNS = 5
_CELL = 224  # pixels: the side of a picture's frame
_GAP = 20
_MARGIN = 28
_TEXT = 15
_TITLE = 26
_LINES = 2
_MAX_PIXELS = 100_000_000
_PAPER, _INK, _FAINT, _FRAME = "#ffffff", "#1d1d1f", "#6e6e73", "#f2f2f4"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Cell:
    """One item of a sheet: its path in the pool (None: no picture), a word at its left and one at
    its right, the caption below, and its modality, else what the file's ending says."""

    path: object
    left: str
    right: str
    caption: str
    modality: object = None


def draw_sheet(hits: Sequence[Hit], *, title: str, pool: Path, out: Path) -> None:
    """Write a PNG with a picture, rank, score and caption for each hit.

    Media are read from `pool` by the payload's path; a sound is drawn. One that is not there,
    cannot be decoded or lies outside the pool leaves its frame empty. Same hits and media, same
    bytes.
    """
    cells = [
        Cell(
            hit.payload.get("path"),
            f"{hit.rank}",
            f"{hit.score:.3f}",
            _caption(hit),
            hit.payload.get("modality"),
        )
        for hit in hits
    ]
    count = "no hits" if not hits else f"{len(hits)} hit{'s' if len(hits) != 1 else ''}"
    draw_cells(cells, title=title, count=count, pool=pool, out=out)


def draw_cells(cells: Sequence[Cell], *, title: str, count: str, pool: Path, out: Path) -> None:
    """Write a PNG of `cells` under a title and a line that says how many there are."""
    columns = max(1, min(_COLUMNS, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    cell_height = _CELL + 8 + (1 + _LINES) * (_TEXT + 6)
    width = max(2 * _MARGIN + columns * (_CELL + _GAP) - _GAP, 640)
    top = _MARGIN + _TITLE + 14 + _TEXT + 18
    sheet = Image.new("RGB", (width, top + rows * (cell_height + _GAP) + _MARGIN - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    plain = all(text.isascii() for text in (title, *(cell.caption for cell in cells)))
    title_font, text_font = _font(_TITLE, plain=plain), _font(_TEXT, plain=plain)
    draw.text(
        (_MARGIN, _MARGIN),
        _fit(title, title_font, width - 2 * _MARGIN),
        fill=_INK,
        font=title_font,
    )
    draw.text((_MARGIN, _MARGIN + _TITLE + 14), count, fill=_FAINT, font=text_font)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (_CELL + _GAP)
        upper = top + row * (cell_height + _GAP)
        _draw_cell(sheet, draw, cell, pool, (left, upper), text_font)
    with atomic_path(out) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def read_media(pool: Path, path: object) -> bytes | None:
    """The bytes of a pool's media file; None if it is missing or the path leads out of the pool."""
    if not isinstance(path, str) or not path or "\0" in path:
        return None
    root = pool.resolve()
    try:
        # Links are followed before the check: a link that leads out is out.
        target = (root / path).resolve()
        return target.read_bytes() if target.is_relative_to(root) and target.is_file() else None
    except OSError:
        return None


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: Cell,
    pool: Path,
    corner: tuple[int, int],
    font: Font,
) -> None:
    left, upper = corner
    picture = _picture(pool, cell)
    draw.rectangle((left, upper, left + _CELL - 1, upper + _CELL - 1), fill=_FRAME)
    if picture is None:
        note = "no sound" if _is_sound(cell) else "no picture"
        draw.text(
            (left + (_CELL - draw.textlength(note, font=font)) / 2, upper + _CELL / 2 - _TEXT),
            note,
            fill=_FAINT,
            font=font,
        )
    else:
        sheet.paste(
            picture,
            (left + (_CELL - picture.width) // 2, upper + (_CELL - picture.height) // 2),
        )
    line = upper + _CELL + 8
    right = _fit(cell.right, font, _CELL // 2)
    room = _CELL - draw.textlength(right, font=font)
    draw.text((left, line), _fit(cell.left, font, int(room) - 8), fill=_INK, font=font)
    draw.text((left + room, line), right, fill=_FAINT, font=font)
    for number, text in enumerate(_caption_lines(cell, font), start=1):
        draw.text((left, line + number * (_TEXT + 6)), text, fill=_INK, font=font)


def _font(size: int, *, plain: bool) -> Font:
    """Pillow's own font, which has only ASCII letters; for others the one matplotlib brings."""
    found = None if plain else find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _caption(hit: Hit) -> str:
    captions = hit.payload.get("captions")
    return str(captions[0]) if isinstance(captions, list | tuple) and captions else ""


def _picture(pool: Path, cell: Cell) -> Image.Image | None:
    data = read_media(pool, cell.path)
    if data is None:
        return None
    try:
        if _is_sound(cell):
            return sound_picture(data, width=_CELL, height=_CELL)
        picture = Image.fromarray(decode_image(data, max_pixels=_MAX_PIXELS))
    except DataError:
        return None
    return ImageOps.contain(picture, (_CELL, _CELL), Image.Resampling.LANCZOS)


def _is_sound(cell: Cell) -> bool:
    return (cell.modality or modality_of(str(cell.path))) == "audio"


def _caption_lines(cell: Cell, font: Font) -> list[str]:
    words = _plain(cell.caption[: 4 * _CELL])
    average = max(1.0, font.getlength("abcdefghij lmnop") / 16)
    lines = textwrap.wrap(words, max(8, int(_CELL / average)))
    if len(lines) > _LINES:
        lines[_LINES - 1] = " ".join(lines[_LINES - 1 :])
    return [_fit(line, font, _CELL) for line in lines[:_LINES]]


def _fit(text: str, font: Font, width: int) -> str:
    """`text` in one line of at most `width` pixels, cut with an ellipsis."""
    # No letter is narrower than two pixels, so nothing behind this can be in the line.
    text = _plain(text)[:width]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _plain(text: str) -> str:
    """`text` in one line, without characters that are no letters or signs to draw."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

"""The contact sheet: what is drawn, what is left empty, what is never read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from evaluated_pairs import sounds
from PIL import Image

from coembed.stages.contact_sheet import Cell, draw_cells, draw_sheet, read_media
from coembed.types import Hit


def hit(rank: int, path: str, caption: str = "a red disc") -> Hit:
    return Hit(rank, 0.5 - rank / 100, f"{rank}" * 64, {"path": path, "captions": [caption]})


def make_pool(root: Path) -> Path:
    pool = root / "data"
    (pool / "media").mkdir(parents=True)
    for name, colour, size in (("red", "#ff0000", (400, 200)), ("blue", "#0000ff", (32, 64))):
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        (pool / "media" / f"{name}.png").write_bytes(buffer.getvalue())
    (pool / "media" / "broken.png").write_bytes(b"\x89PNG broken")
    (root / "secret.png").write_bytes((pool / "media" / "red.png").read_bytes())
    (pool / "media" / "link.png").symlink_to(root / "secret.png")
    return pool


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    picture = np.asarray(Image.open(path).convert("RGB"))
    return int((picture == colour).all(axis=2).sum())


def test_pictures_fill_their_frames_and_keep_their_shape(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    out = tmp_path / "sheet.png"
    draw_sheet([hit(1, "media/red.png"), hit(2, "media/blue.png")], title="q", pool=pool, out=out)
    assert pixels(out, (255, 0, 0)) == 224 * 112
    assert pixels(out, (0, 0, 255)) == 112 * 224


def test_sounds_are_drawn_whoever_says_that_they_are_sounds(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    media = sounds(1, seed=1)[0].media
    for name in ("bleep.wav", "bleep.bin"):
        (pool / "media" / name).write_bytes(media)
    sheets = []
    for name, modality in (("bleep.wav", None), ("bleep.bin", "audio"), ("bleep.wav", "audio")):
        sheets.append(tmp_path / f"{len(sheets)}.png")
        cell = Cell(f"media/{name}", "1", "0.5", "a bleep", modality)
        draw_cells([cell], title="q", count="1 hit", pool=pool, out=sheets[-1])
    assert len({sheet.read_bytes() for sheet in sheets}) == 1
    assert pixels(sheets[0], (0, 0, 4)) > 100  # the spectrogram's darkest colour
    gone = tmp_path / "gone.png"
    cell = Cell("media/none.wav", "1", "0.5", "a bleep", "audio")
    draw_cells([cell], title="q", count="1 hit", pool=pool, out=gone)
    assert pixels(gone, (0, 0, 4)) == 0


def test_the_same_hits_give_the_same_bytes(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    hits = [hit(rank, "media/red.png") for rank in range(1, 13)]
    for name in ("one.png", "two.png"):
        draw_sheet(hits, title="red sneakers", pool=pool, out=tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "media/none.png", "media/broken.png", "../secret.png", "media/../../secret.png",
        "media/link.png", "media", "", "/etc/passwd", "media/\0red.png", "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_missing_broken_or_outside_leaves_an_empty_frame(tmp_path: Path, path: str) -> None:
    pool = make_pool(tmp_path)
    out = tmp_path / "sheet.png"
    draw_sheet([hit(1, path)], title="q", pool=pool, out=out)
    assert pixels(out, (255, 0, 0)) == 0
    if path != "media/broken.png":
        assert read_media(pool, path) is None


def test_an_absolute_path_out_of_the_pool_is_not_read(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    assert read_media(pool, str(tmp_path / "secret.png")) is None
    assert read_media(pool, 7) is None
    assert read_media(pool, "media/red.png") is not None


@pytest.mark.parametrize(
    "text", ["", "x" * 3000, "a\nb\tc", "名前 – Ümläut 🙂", "word " * 200, "\x00\x1b[31m"]
)
def test_any_title_and_caption_is_drawn(tmp_path: Path, text: str) -> None:
    pool = make_pool(tmp_path)
    out = tmp_path / "sheet.png"
    draw_sheet([hit(1, "media/red.png", text)], title=text, pool=pool, out=out)
    assert Image.open(out).width == 640


def test_no_hits_is_a_sheet_that_says_so(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    draw_sheet([], title="nothing like it", pool=tmp_path, out=out)
    assert Image.open(out).size[0] == 640

"""A small pool with one fault of each kind, for the tests of the curation."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image


def picture(number: int, *, size: tuple[int, int] = (48, 40), kind: str = "JPEG") -> bytes:
    """A picture of its own for every number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    # Hard edges: a soft picture is a fault of its own.
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


def sound(number: int) -> bytes:
    """Half a second of a tone of its own for every number, as WAV."""
    time_s = np.arange(4000) / 8000
    tone = (8000 * np.sin(2 * np.pi * (200 + 37 * number) * time_s)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(tone.tobytes())
    return buffer.getvalue()


def faulty_pool(folder: Path, *, num_good: int = 40) -> dict[str, str]:
    """Write a pool; the answer maps the path of each faulty row to its drop reason."""
    good = {f"good{i}.jpg": picture(i) for i in range(num_good)}
    faults: dict[str, tuple[bytes | None, str, str]] = {
        "cut.jpg": (picture(100)[:-200], "a cut picture", "truncated"),
        "page.jpg": (b"<html>404</html>", "a page", "unreadable"),
        "empty.jpg": (b"", "an empty file", "empty_file"),
        "lost.jpg": (None, "no file", "missing_file"),
        "../out.jpg": (None, "outside", "path_outside_pool"),
        "tiny.png": (picture(101, size=(12, 40), kind="PNG"), "tiny", "small_image"),
        "strip.jpg": (picture(102, size=(400, 40)), "a strip", "extreme_ratio"),
        "mute.jpg": (picture(103), "  ", "empty_caption"),
        "terse.jpg": (picture(104), "12-34", "short_caption"),
        "wordy.jpg": (picture(105), "word " * 500, "long_caption"),
        "zcopy.jpg": (good["good0.jpg"], "caption of good0.jpg", "exact_duplicate"),
        "zother.jpg": (good["good1.jpg"], "the other caption", "exact_duplicate"),
        "good2.jpg": (good["good2.jpg"], "Caption  of GOOD2.jpg", "repeated_pair"),
    }
    rows: list[dict[str, Any]] = [
        {"path": f"media/{name}", "caption": f"caption of {name}", "shop": i % 9, "price": i / 4}
        for i, name in enumerate(good)
    ]
    (folder / "pairs").mkdir(parents=True)
    (folder / "media").mkdir()
    for name, data in good.items():
        (folder / "media" / name).write_bytes(data)
    for name, (media, caption, _) in faults.items():
        if media is not None:
            (folder / "media" / name).write_bytes(media)
        path = name if name.startswith("..") else f"media/{name}"
        rows.append({"path": path, "caption": caption})
    pd.DataFrame(rows).to_parquet(folder / "pairs" / "a.parquet")
    return {
        (n if n.startswith("..") else f"media/{n}"): reason for n, (*_, reason) in faults.items()
    }

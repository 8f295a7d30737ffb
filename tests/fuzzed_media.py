"""Media files that are broken, lie about themselves, or want more than they should get."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, PngImagePlugin

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
_SOUNDS = ("WAV", "FLAC", "OGG", "MP3")


def fuzzed_media(rng: random.Random) -> tuple[str, bytes]:
    """A file ending and contents: mostly a damaged good file, else a made one."""
    if rng.random() < 0.25:
        return rng.choice(MADE)(rng)
    ending, data = _good(rng.choice((*_FORMATS, *_SOUNDS)), rng.randrange(12))
    for _ in range(rng.choice((1, 1, 2))):
        data = rng.choice(_DAMAGES)(rng, data)
    if rng.random() < 0.2:
        ending = rng.choice(("jpg", "png", "wav", "mp3", "gif", "txt", "svg", "", "tiff", "exe"))
    return ending, data


@cache
def _good(kind: str, number: int) -> tuple[str, bytes]:
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    if kind in _SOUNDS:
        time_s = np.arange(16_000) / 16_000
        sound = 0.4 * np.sin(2 * np.pi * (200 + 40 * number) * time_s) + 0.01 * rng.normal(
            size=16_000
        )
        soundfile.write(buffer, sound, 16_000, format=kind)
        return kind.lower(), buffer.getvalue()
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((120, 100), Image.Resampling.BICUBIC)
    mode = ("RGB", "L", "P", "CMYK", "1", "RGBA")[number % 6]
    if (
        kind == "TIFF"
        or (kind == "JPEG" and mode in ("RGB", "L", "CMYK"))
        or (kind == "PNG" and mode != "CMYK")
    ):
        picture = picture.convert(mode)
    frames = [picture.rotate(90 * i) for i in range(3)] if number % 4 == 3 else []
    if frames and kind in ("GIF", "WEBP", "PNG", "TIFF"):
        picture.save(buffer, kind, save_all=True, append_images=frames)
    elif kind == "JPEG":
        picture.save(buffer, kind, progressive=bool(number % 2), quality=70)
    else:
        picture.save(buffer, kind)
    return {"JPEG": "jpg", "TIFF": "tiff"}.get(kind, kind.lower()), buffer.getvalue()


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    reach = rng.choice((40, len(data)))  # headers break in more ways than pixels do
    for _ in range(rng.choice((1, 3, 20, 200)) if flipped else 0):
        flipped[rng.randrange(min(reach, len(flipped)))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _splice(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + rng.choice((b"", rng.randbytes(64), data[a:b] * 2, b"\0" * 500)) + data[b:]


def _extreme_number(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(min(len(data), 80) + 1)
    number = rng.choice(
        (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\x00\x01")
    )
    return data[:at] + number + data[at + len(number) :]


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice(
        (b"\0" * 3000, rng.randbytes(3000), b"<script>alert(1)</script>", data)
    )


_DAMAGES = (_cut, _flip, _flip, _splice, _extreme_number, _append)


def png(width: int, height: int, *, before: bytes = b"", mode: int = 0) -> bytes:
    """A black grey PNG of 1 bit a pixel, however large, in few bytes."""
    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row * 500) for _ in range(height // 500))
    pixels += packer.compress(row * (height % 500)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, mode, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def _png_bomb(width: int, height: int) -> bytes:
    return png(width, height)


def _large_png(rng: random.Random) -> tuple[str, bytes]:
    size = rng.choice(((20_000, 6_000), (10_000, 10_001), (65_000, 65_000), (100_000_000, 1)))
    if size[0] * size[1] > 10**9:  # so many rows are only claimed
        header = struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0)
        return "png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c\x03\0")
    return "png", _png_bomb(*size)


def _text_bomb(rng: random.Random) -> tuple[str, bytes]:
    packed = zlib.compress(b"a" * (64 << 20), 9)
    kind = rng.choice((b"zTXt", b"iTXt", b"iCCP"))
    head = b"name\0\0" if kind != b"iTXt" else b"name\0\1\0\0\0"
    return "png", png(64, 64, before=chunk(kind, head + packed))


def _many_frames(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(("GIF", "PNG", "WEBP"))
    return kind.lower(), _frames(kind)


@cache
def _frames(kind: str) -> bytes:
    buffer = io.BytesIO()
    num = 3000 if kind == "GIF" else 400
    frames = [Image.new("L", (40, 40), i % 251) for i in range(num)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _gif_claims(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice(((65535, 65535), (65535, 1), (0, 0)))
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0" * 6
    image = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02L\x01\0;"
    return "gif", b"GIF89a" + screen + image


def _webp_claims(rng: random.Random) -> tuple[str, bytes]:
    size = (16_383).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + size + rng.randbytes(40)
    return "webp", b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff_claims(rng: random.Random) -> tuple[str, bytes]:
    tags = {
        256: rng.choice((1, 60_000, 2**31)), 257: rng.choice((1, 60_000, 2**31)), 258: 8,
        259: rng.choice((1, 5, 7, 8, 32773, 34712)), 262: 1, 273: 8, 277: rng.choice((1, 60_000)),
        278: 2**31, 279: rng.choice((10, 2**32 - 1)),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    following = rng.choice((0, 8))  # the next directory: none, or this one again
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return "tiff", head + entries + struct.pack("<I", following) + b"\0" * 64


def _huge_exif(rng: random.Random) -> tuple[str, bytes]:
    data = _good("JPEG", 1)[1]
    exif = (
        b"Exif\0\0" + rng.choice((b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0")) + rng.randbytes(65_000)
    )
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return "jpg", data[:2] + segment * rng.choice((1, 60)) + data[2:]


def _many_scans(rng: random.Random) -> tuple[str, bytes]:
    data = _good("JPEG", 1)[1]
    at = data.rfind(b"\xff\xda")
    scan = data[at:-2]
    return "jpg", data[:-2] + scan * rng.choice((50, 3000)) + b"\xff\xd9"


def _wav_claims(rng: random.Random) -> tuple[str, bytes]:
    channels = rng.choice((0, 1, 2, 1024, 65535))
    rate = rng.choice((0, 1, 8000, 192_000, 2**32 - 1))
    bits = rng.choice((0, 1, 8, 16, 24, 64, 65535))
    kind = rng.choice((1, 3, 6, 7, 2, 17, 85, 65534))
    frame = channels * bits // 8 % 65536
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame % 2**32, frame, bits)
    size = rng.choice((0, 2**32 - 1, 2**31, 4000))
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return "wav", b"RIFF" + struct.pack("<I", rng.choice((0, 2**32 - 1))) + body + rng.randbytes(
        4000
    )


def _flac_claims(rng: random.Random) -> tuple[str, bytes]:
    data = bytearray(_good("FLAC", 0)[1])
    data[21:26] = b"\xff\xff\xff\xff\xff"[: rng.choice((4, 5))]  # 2**36 samples
    return "flac", bytes(data)


def _long_sound(rng: random.Random) -> tuple[str, bytes]:
    return "flac", _silence(rng.choice((1, 3)))


@cache
def _silence(hours: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, format="FLAC") as file:
        for _ in range(hours * 60):
            file.write(np.zeros(8000 * 60, np.int16))
    return buffer.getvalue()


def _zip_bomb(rng: random.Random) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../evil.jpg", b"\0" * (20 << 20))
    return rng.choice(("jpg", "png", "zip", "wav")), buffer.getvalue()


def _other_kinds(rng: random.Random) -> tuple[str, bytes]:
    some = rng.randbytes(900)
    return rng.choice(
        (
            ("svg", b'<!DOCTYPE x [<!ENTITY a "aaaa">]><svg width="9999999">&a;</svg>'),
            ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"),
            ("pdf", b"%PDF-1.7\n1 0 obj<<>>endobj"),
            ("ttf", b"\0\1\0\0\0\x0f" + some),
            ("jpg", b"<html>404</html>"),
            ("jpg", b""),
            ("jpg", b"\xff\xd8\xff"),
            ("jpg", some),
            ("png", b"\0" * 5000),
            ("png", b"a text called .png"),
            ("mp4", b"\0\0\0 ftypisom" + some),
            ("heic", b"\0\0\0 ftypheic" + some),
            ("avif", b"\0\0\0 ftypavif" + some),
            ("ppm", b"P6 999999 999999 255\n"),
            ("pgm", b"P5 1 " + b"9" * 5000 + b" 255\n"),
            ("bmp", b"BM" + some),
            ("jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + some),
            ("ico", b"\0\0\1\0" + some),
            ("psd", b"8BPS\0\1" + some),
            ("mp3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + some),
            ("mp3", b"\xff\xfb\x90\x64" * 400),
            ("ogg", b"OggS\0\2" + b"\xff" * 900),
            ("aac", some),
            ("wav", b"RIFF\xff\xff\xff\xffWAVE"),
            ("fits", b"SIMPLE  =                    T" + b" " * 5000),
        )
    )


def _text_in_png(rng: random.Random) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    about = PngImagePlugin.PngInfo()
    for i in range(rng.choice((10, 4000))):
        about.add_text(f"key{i}", "<script>" * 20)
    Image.new("RGB", (80, 80), "red").save(buffer, "PNG", pnginfo=about)
    return "png", buffer.getvalue()


MADE: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    _large_png, _text_bomb, _many_frames, _gif_claims, _webp_claims, _tiff_claims, _huge_exif,
    _many_scans, _wav_claims, _wav_claims, _flac_claims, _long_sound, _zip_bomb, _other_kinds,
    _other_kinds, _other_kinds, _text_in_png,
)  # fmt: skip


def write_odd_file(rng: random.Random, path: Path, canary: Path) -> None:
    """Put something at `path` that is no file of the pool."""
    kind = rng.randrange(6)
    if kind == 0:
        path.symlink_to(canary / "secret.jpg")
    elif kind == 1:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/nowhere", "/proc/self/maps")))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        os.mkfifo(path)
    else:
        path.touch()

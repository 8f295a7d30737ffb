"""Pictures: what is decoded of every format and mode, how damage is named, what bombs cost."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from coembed.curation.candidate import Facts
from coembed.curation.media import picture as picture_module
from coembed.curation.media.media import DECODE_REASONS, Header, Media, Undecodable
from coembed.modalities.image import decode_image


def _drawing(size: tuple[int, int] = (61, 47), seed: int = 7) -> Image.Image:
    """Smooth shapes with some noise, so that every format has something to compress."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    ramp[: size[1] // 2, :, 1] = 200  # no mirror image of itself, in no direction
    return Image.fromarray(np.clip(ramp + rng.normal(0, 12, ramp.shape), 0, 255).astype(np.uint8))


def _encode(image: Image.Image, kind: str, **save: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)  # type: ignore[arg-type]
    return buffer.getvalue()


def _picture(
    kind: str, *, mode: str = "RGB", size: tuple[int, int] = (61, 47), **save: object
) -> bytes:
    return _encode(_drawing(size).convert(mode), kind, **save)


def _media(data: bytes, max_pixels: int = 10**6) -> Media:
    return Media(data, modality="image", max_pixels=max_pixels)


def _judge(data: bytes, max_pixels: int = 10**6) -> str:
    media = _media(data, max_pixels)
    try:
        media.check()
    except Undecodable as finding:
        assert finding.detail and finding.reason in DECODE_REASONS
        facts = media.facts()
        assert (facts.fault, facts.fault_detail) == (finding.reason, finding.detail)
        return finding.reason
    assert media.facts().fault is None
    return "fine"


WHOLE = {
    "jpeg": _picture("JPEG"),
    "jpeg progressive": _picture("JPEG", progressive=True),
    "jpeg grey": _picture("JPEG", mode="L"),
    "jpeg cmyk": _picture("JPEG", mode="CMYK"),
    "jpeg 4:4:4": _picture("JPEG", subsampling=0),
    "jpeg with a tail": _picture("JPEG") + b"\0" * 100,
    "png": _picture("PNG"),
    "png palette": _picture("PNG", mode="P"),
    "png grey": _picture("PNG", mode="LA"),
    "webp": _picture("WEBP"),
    "webp lossless": _picture("WEBP", lossless=True),
    "gif": _picture("GIF"),
    "bmp": _picture("BMP"),
    "tiff": _picture("TIFF"),
    "tiff lzw": _picture("TIFF", compression="tiff_lzw"),
    "avif": _picture("AVIF"),
    "ppm": _picture("PPM"),
    "one pixel": _picture("PNG", size=(1, 1)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_fine(name: str) -> None:
    assert _judge(WHOLE[name]) == "fine"


@pytest.mark.parametrize("name", [n for n in WHOLE if n not in ("one pixel", "jpeg with a tail")])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_cut_pictures_are_never_fine(name: str, share: float) -> None:
    data = WHOLE[name]
    assert _judge(data[: int(len(data) * share)]) in ("truncated", "unreadable")


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg cmyk", "png", "gif", "bmp"])
def test_a_picture_cut_in_its_pixels_is_called_truncated(name: str) -> None:
    data = WHOLE[name]
    assert _judge(data[: int(len(data) * 0.8)]) == "truncated"


def test_a_jpeg_without_its_last_marker_is_truncated() -> None:
    assert _judge(WHOLE["jpeg"][:-2]) == "truncated"


def test_the_end_marker_of_a_thumbnail_does_not_stand_for_the_picture() -> None:
    exif = b"Exif\0\0" + _picture("JPEG", size=(8, 8))
    whole = WHOLE["jpeg"]
    data = whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]
    assert _judge(data) == "fine"
    assert _judge(data[: int(len(data) * 0.9)]) == "truncated"


def test_a_png_with_wrong_pixels_or_checksum_is_unreadable() -> None:
    data = bytearray(WHOLE["png"])
    data[data.index(b"IDAT") + 40] ^= 0x55
    assert _judge(bytes(data)) == "unreadable"


def test_damaged_jpegs_are_mostly_found_at_any_scale() -> None:
    """One flipped byte often decodes to another valid picture; runs of them do not. The scaled
    decode finds what a whole one does: it reads every coefficient."""
    data = _picture("JPEG", size=(512, 512), quality=90)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(30):
        hurt = bytearray(data)
        start = int(rng.integers(len(data) // 4, len(data) - 64))
        hurt[start : start + 32] = rng.bytes(32)
        try:
            simplejpeg.decode_jpeg(bytes(hurt), strict=True)
            expected = "fine"
        except ValueError:
            expected = "unreadable"
        outcome = _judge(bytes(hurt))
        assert outcome.replace("truncated", "unreadable") == expected
        found += outcome != "fine"
    assert found >= 20


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"<!DOCTYPE html><p>404", "an HTML page, not a picture"),
        (b"  <html><body>", "an HTML page"),
        (b'<?xml version="1.0"?><svg/>', "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04" + b"x" * 40, "an archive, not a picture"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "an ISO media file of brand 'heic'"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV sound, not a picture"),
        (b"\x89PNG\r\n\x1a\n", "begins as PNG, but its header is damaged or cut short"),
        (b"\0" * 64, "zero bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a known picture format"),
        (b"x", "not a known picture format (begins with 78)"),
    ],
)
def test_what_is_no_picture_is_said_to_be_what_it_is(data: bytes, detail: str) -> None:
    facts = _media(data).facts()
    is_cut = "cut short" in detail
    assert facts.fault == ("truncated" if is_cut else "unreadable")
    assert detail in facts.fault_detail
    assert facts == Facts(len(data), facts.fault, facts.fault_detail)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + checksum


def _png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(pixels, 9))
        + _chunk(b"IEND", b"")
    )  # fmt: skip


def _patched(data: bytes, marker: bytes, at: int, value: bytes) -> bytes:
    place = data.index(marker) + at
    return data[:place] + value + data[place + len(value) :]


BOMBS = {
    "png of 60,000 x 60,000": (_png(60_000, 60_000, bytes(99)), "too_many_pixels"),
    "png whose pixels go on for 100 MB": (_png(10, 10, bytes(100_000_000)), "fine"),
    "jpeg of 65,500 x 65,500": (
        _patched(WHOLE["jpeg"], b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)),
        "too_many_pixels",
    ),
    "gif with a frame of 65,535 x 65,535": (
        _patched(_picture("GIF"), b",\0\0\0\0", 5, struct.pack("<HH", 65_535, 65_535)),
        "too_many_pixels",
    ),
    "bmp of 40,000 x 40,000": (
        _patched(WHOLE["bmp"], b"BM", 18, struct.pack("<ii", 40_000, 40_000)),
        "too_many_pixels",
    ),
    "tiff of 40,000 columns": (
        _patched(WHOLE["tiff"], struct.pack("<HHI", 256, 4, 1), 8, struct.pack("<I", 40_000))
        if struct.pack("<HHI", 256, 4, 1) in WHOLE["tiff"]
        else _patched(WHOLE["tiff"], struct.pack("<HHI", 256, 3, 1), 8, struct.pack("<H", 40_000)),
        "too_many_pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header_or_never_inflated(name: str) -> None:
    data, expected = BOMBS[name]
    started = time.perf_counter()
    assert _judge(data) == expected
    assert time.perf_counter() - started < 1.0
    assert len(data) < 1_000_000


def test_the_limit_is_the_number_of_pixels() -> None:
    assert _judge(WHOLE["jpeg"], max_pixels=61 * 47) == "fine"
    assert _judge(WHOLE["jpeg"], max_pixels=61 * 47 - 1) == "too_many_pixels"
    assert _judge(WHOLE["gif"], max_pixels=61 * 47 - 1) == "too_many_pixels"


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    data = _encode(Image.new("RGB", (2000, 2000), "grey"), "JPEG", progressive=True)
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    bomb = data[:end] + data[scan:end] * 2000 + data[end:]
    started = time.perf_counter()
    assert _judge(bomb, 10**7) == "unreadable"
    assert time.perf_counter() - started < 0.5
    assert _judge(data, 10**7) == "fine"


@pytest.mark.parametrize("size", [(61, 47), (200, 150), (640, 400), (700, 1900), (70, 1500)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_thumbnail_is_the_picture_averaged_over_blocks(
    kind: str, size: tuple[int, int]
) -> None:
    """Against Pillow: the whole picture decoded, then reduced."""
    data = _picture(kind, size=size, **({"quality": 95} if kind == "JPEG" else {}))
    media = _media(data, 10**7)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    keep = 16 * min(size)  # of a very long picture, the middle
    left, top = max(0, (size[0] - keep) // 2), max(0, (size[1] - keep) // 2)
    whole = whole.crop((left, top, min(size[0], left + keep), min(size[1], top + keep)))
    scale = 1
    while min(size) // (2 * scale) >= 64:
        scale *= 2
    expected = np.asarray(whole.reduce(scale) if scale > 1 else whole).astype(int)
    found = media.pixels.astype(int)
    assert found.shape == expected.shape and not media.pixels.flags.writeable
    assert 64 <= min(found.shape[:2]) < 128 or min(size) < 64
    assert np.abs(found - expected).mean() < (3 if kind == "JPEG" else 0.5)
    assert np.array_equal(np.asarray(media.thumbnail), media.pixels)
    assert np.array_equal(media.grey, np.asarray(media.thumbnail.convert("L")))
    assert media.thumbnail.mode == "RGB"


def test_large_pictures_are_scaled_in_strips_without_a_seam(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _picture("PNG", size=(900, 1100))
    at_once = _media(data).pixels
    monkeypatch.setattr(picture_module, "_STRIP_PIXELS", 900 * 50)
    assert np.array_equal(_media(data).pixels, at_once)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_colour_modes_become_rgb_as_the_image_modality_reads_them(mode: str) -> None:
    image = _drawing((40, 30))
    if mode in ("I;16", "I"):
        deep = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32)
        image = Image.fromarray(deep * 257)
    else:
        image = image.convert(mode)
    if mode in ("LA", "RGBA", "PA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    kind = "TIFF" if mode in ("CMYK", "PA", "I") else "PNG"
    if mode == "PA":
        kind, image = "PNG", image.convert("RGBA").convert("PA").convert("RGBA")
    data = _encode(image, kind)
    media = _media(data)
    assert np.array_equal(media.pixels, decode_image(data))
    assert media.facts().fault is None and media.facts().colour_mode
    if mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK"):
        assert media.facts().colour_mode == mode


def test_transparency_is_laid_on_white_and_a_transparent_palette_entry_too() -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 20, 40))
    assert _media(_encode(image, "PNG")).pixels[5, 35].tolist() == [255, 255, 255]
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert _media(_encode(palette, "GIF", transparency=1)).pixels[5, 5].tolist() == [255] * 3
    assert _media(_encode(palette, "GIF")).pixels[5, 5].tolist() == [200, 100, 50]


def test_cmyk_jpegs_are_read_as_pillow_reads_them() -> None:
    data = _picture("JPEG", mode="CMYK", size=(60, 50), quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(_media(data).pixels - expected).max() <= 2
    assert _media(data).facts().colour_mode == "CMYK"


def test_floating_point_pixels_are_refused_with_the_reason() -> None:
    data = _encode(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF")
    assert _judge(data) == "unreadable"
    media = _media(data)
    with pytest.raises(Undecodable, match="no agreed range"):
        media.check()
    assert media.facts().width_px == 40  # the header was sound


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animations_give_their_first_frame_and_its_count(kind: str) -> None:
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "lime", "blue")]
    more: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    media = _media(data)
    assert media.facts().num_frames == 3
    assert np.abs(media.pixels[20, 25].astype(int) - (255, 0, 0)).max() < 6
    assert _media(_encode(frames[0], kind)).facts().num_frames == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_to_size_and_pixels(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = _encode(_drawing((61, 47)), kind, exif=exif, **more)
    media = _media(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    height, width = expected.shape[:2]
    assert (media.header.width_px, media.header.height_px) == (width, height)
    assert np.array_equal(media.pixels, expected)
    assert np.array_equal(media.pixels, decode_image(data))


def test_a_scaled_jpeg_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = _drawing((400, 300))
    turned = _media(_encode(upright, "JPEG", exif=exif, quality=95))
    plain = _media(_encode(upright, "JPEG", quality=95))
    assert turned.pixels.shape == (100, 75, 3)
    assert np.array_equal(turned.pixels, np.rot90(plain.pixels, -1))
    assert turned.header[:3] == ("JPEG", 300, 400)


def test_broken_metadata_do_not_spoil_a_sound_picture() -> None:
    whole = WHOLE["jpeg"]
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xee" * 40
    data = whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]
    assert _judge(data) == "fine"
    assert np.array_equal(_media(data).pixels, _media(whole).pixels)
    assert np.array_equal(decode_image(data), decode_image(whole))


def test_facts_of_a_sound_picture() -> None:
    media = _media(WHOLE["jpeg"])
    assert media.facts() == Facts(
        len(WHOLE["jpeg"]), None, "", "JPEG", 61, 47, "RGB", 1, None, None, None
    )
    assert media.header == Header("JPEG", 61, 47, "RGB", 1)


def test_a_fault_is_found_once_and_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    media = _media(WHOLE["jpeg"][:-50])
    with pytest.raises(Undecodable):
        media.check()

    def refuse(*_: object) -> None:
        raise AssertionError("decoded twice")

    monkeypatch.setattr("coembed.curation.media.media.read_pixels", refuse)
    for look in (media.check, lambda: media.pixels, lambda: media.grey):
        with pytest.raises(Undecodable) as caught:
            look()
        assert caught.value.reason == "truncated"
    assert media.facts().fault == "truncated" and media.facts().width_px == 61


def test_pixels_are_decoded_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = picture_module.read_pixels

    def counted(data: bytes, header: Header, orientation: int) -> object:
        calls.append(len(data))
        return real(data, header, orientation)

    monkeypatch.setattr("coembed.curation.media.media.read_pixels", counted)
    media = _media(WHOLE["jpeg"])
    media.facts()
    assert not calls
    media.check()
    _ = media.pixels, media.thumbnail, media.luma, media.grey
    assert len(calls) == 1


def test_other_modalities_have_their_bytes_only() -> None:
    media = Media(b"some words", modality="text")
    media.check()
    assert media.facts() == Facts(10)


def test_undecodable_can_be_pickled() -> None:
    found = pickle.loads(pickle.dumps(Undecodable("truncated", "cut")))
    assert (found.reason, found.detail, str(found)) == ("truncated", "cut", "cut")


def test_decoders_say_nothing_on_the_standard_error() -> None:
    """libtiff and Pillow's warnings would. In a process of its own: file descriptor 2."""
    lines = [
        "import io, sys",
        "from PIL import Image",
        "from coembed.curation.media.media import Media, Undecodable",
        "for compression in ('tiff_lzw', 'tiff_adobe_deflate', 'lzma', 'packbits'):",
        "    buffer = io.BytesIO()",
        "    Image.effect_noise((64, 64), 50).save(buffer, 'TIFF', compression=compression)",
        "    data = bytearray(buffer.getvalue())",
        "    data[40:400:7] = b'\\xff' * len(data[40:400:7])",
        "    media = Media(bytes(data), modality='image')",
        "    print(media.facts().fault)",
        "    try: media.check()",
        "    except Undecodable as finding: print(finding)",
        "assert 'torch' not in sys.modules and 'soundfile' not in sys.modules",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and "broken" in done.stdout


def test_mutated_pictures_never_raise_anything_else() -> None:
    rng = np.random.default_rng(3)
    seeds = [data for name, data in WHOLE.items() if name != "one pixel"]
    outcomes = {"fine": 0, "unreadable": 0, "truncated": 0, "too_many_pixels": 0}
    for _ in range(400):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 90))] = (
                rng.integers(256)
            )
        if rng.random() < 0.3:
            data = data[: rng.integers(len(data))]
        outcomes[_judge(bytes(data))] += 1
    assert outcomes["unreadable"] > 50 and outcomes["truncated"] > 20 and outcomes["fine"] > 20

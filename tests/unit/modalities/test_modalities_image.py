"""Decoding, resizing and normalising images, against Pillow and open_clip."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from coembed.errors import DataError, ModelError
from coembed.modalities import image as image_modality
from coembed.modalities.image import Spec, decode_image, describe, normalise, resize_crop, transform


def _pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with all three channels different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_decodes_to_the_very_pixels_that_pillow_gives(subsampling: int) -> None:
    data = _encode(_pixels(97, 131), "JPEG", quality=80, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_other_formats_decode(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(_pixels(20, 30), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(_pixels(40, 60), kind, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode_image(data)
    assert decoded.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    np.testing.assert_array_equal(decoded, expected)


def test_grey_and_cmyk_jpegs_become_rgb() -> None:
    grey = _encode(Image.fromarray(_pixels(30, 30)).convert("L"), "JPEG")
    decoded = decode_image(grey)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    cmyk = Image.fromarray(_pixels(30, 30)).convert("CMYK")
    data = _encode(cmyk, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    decoded = decode_image(_encode(rgba, "PNG"))
    np.testing.assert_array_equal(decoded[0, 0], (255, 0, 0))
    np.testing.assert_array_equal(decoded[3, 3], (255, 255, 255))


def test_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 200, 0] + [0] * 750)
    palette.putpixel((0, 0), 0)
    decoded = decode_image(_encode(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(decoded[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(decoded[1, 1], (0, 200, 0))


def test_sixteen_bit_grey_keeps_its_range() -> None:
    values = np.array([[0, 257 * 10], [257 * 128, 65535]], dtype=np.uint16)
    decoded = decode_image(_encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(decoded[..., 1], [[0, 10], [128, 255]])


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        data = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_image(data)[4, 4], (255, 0, 0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>404 not found</body></html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    ],
    ids=["empty", "html", "jpeg start only", "png start only", "eps"],
)
def test_what_is_no_image_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_a_data_error(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = _encode(noise, kind)
    with pytest.raises(DataError):
        decode_image(data[: int(len(data) * share)])


def test_a_jpeg_without_its_last_two_bytes_is_a_data_error() -> None:
    with pytest.raises(DataError):
        decode_image(_encode(_pixels(64, 64), "JPEG")[:-2])


def test_a_jpeg_cut_short_and_closed_again_is_a_data_error() -> None:
    data = _encode(_pixels(64, 64), "JPEG")
    with pytest.raises(DataError):
        decode_image(data[: len(data) // 2] + b"\xff\xd9")


def test_jpegs_with_flipped_bits_are_mostly_noticed() -> None:
    """A flip inside the coded pixels leaves the code in step now and then: that is not seen."""
    data = _encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    noticed = 0
    for number in range(40):
        flipped = bytearray(data)
        flipped[len(data) // 2 + 17 * number] ^= 0x55
        try:
            decode_image(bytes(flipped))
        except DataError:
            noticed += 1
    assert noticed >= 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_size_is_checked_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded an image that is too large")

    data = _encode(_pixels(50, 41), kind)
    assert decode_image(data, max_pixels=50 * 41).shape == (50, 41, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    monkeypatch.setattr(Image.Image, "load", refuse)
    with pytest.raises(DataError, match="41 × 50 = 2,050 pixels, at most 2,049"):
        decode_image(data, max_pixels=50 * 41 - 1)


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(DataError, match="too large"):
        decode_image(bomb)


@pytest.mark.parametrize("size", [(480, 640), (641, 333), (64, 64), (20, 31), (224, 300)])
@pytest.mark.parametrize("px", [64, 224])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_resize_is_open_clips_but_for_rounding(
    size: tuple[int, int], px: int, interpolation: str, resize: str
) -> None:
    pixels = _pixels(*size)
    reference = image_transform_v2(
        PreprocessCfg(
            size=px, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=resize
        ),
        is_train=False,
    )(Image.fromarray(pixels))
    expected = (reference * 255).round().permute(1, 2, 0).numpy().astype(int)
    got = resize_crop(pixels, px=px, resize=resize, interpolation=interpolation)
    difference = np.abs(got - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


@given(height=st.integers(1, 90), width=st.integers(1, 90), px=st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_any_size_gives_a_square(height: int, width: int, px: int) -> None:
    image = np.full((height, width, 3), 77, dtype=np.uint8)
    cropped = resize_crop(image, px=px)
    assert cropped.shape == (px, px, 3) and cropped.dtype == np.uint8
    assert (cropped == 77).all()


def test_a_thread_of_an_image_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = image_modality._resize

    def small(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
        assert height * width <= 16 * 224 * 224  # whole, it would be 224 × 4,480,000
        return resize(pixels, height, width, interpolation)

    monkeypatch.setattr(image_modality, "_resize", small)
    image = np.zeros((1, 20_000, 3), dtype=np.uint8)
    image[:, 10_000 - 50 : 10_000 + 50] = 200
    cropped = resize_crop(image, px=224)
    assert cropped.shape == (224, 224, 3)
    assert (cropped == 200).all()


def test_an_image_of_the_right_size_is_left_alone() -> None:
    pixels = _pixels(64, 64)
    np.testing.assert_array_equal(resize_crop(pixels, px=64), pixels)


def test_normalise_against_numpy() -> None:
    batch = np.stack([_pixels(5, 6, seed) for seed in range(3)])
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    got = normalise(torch.from_numpy(batch.copy()), mean, std)
    expected = ((batch / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_transform_follows_the_spec() -> None:
    data = _encode(_pixels(40, 120), "PNG")
    crop = transform(data, Spec(px=20))
    squash = transform(data, Spec(px=20, resize="squash"))
    np.testing.assert_array_equal(crop, resize_crop(_pixels(40, 120), px=20))
    assert not np.array_equal(crop, squash)


def test_describe_reads_open_clips_preprocessing() -> None:
    spec = describe(
        {"image_size": (96, 96)},
        {
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "resize_mode": "squash",
            "interpolation": "bilinear",
        },
    )
    assert (spec.px, spec.resize, spec.interpolation) == (96, "squash", "bilinear")
    assert spec.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ModelError, match=r"resize 'longest'.*shortest, squash"):
        describe({"image_size": 96}, {"resize_mode": "longest"})


def test_the_loader_names_the_image_that_cannot_be_read() -> None:
    loader = image_modality.Loader(Spec(px=8))
    good = _encode(_pixels(9, 9), "PNG")
    with pytest.raises(DataError, match=r"image 11: not a readable image"):
        loader.load([good, b"nonsense"], first=10)

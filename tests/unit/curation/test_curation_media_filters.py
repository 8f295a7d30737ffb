"""The filters that look at pictures and sounds: what they measure, and what they drop."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pydantic import ValidationError

from coembed.curation.candidate import Candidate
from coembed.curation.filters import (
    aspect_ratio,
    audio_length,
    audio_level,
    audio_rate,
    blank_image,
    blurred_image,
    image_size,
    readable,
)
from coembed.curation.filters.base import Filter, Verdict
from coembed.curation.media.media import DECODE_REASONS, Media, Undecodable
from coembed.settings import component_settings
from coembed.types import Modality, Pair


def _encode(image: Image.Image, kind: str = "JPEG", **save: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)  # type: ignore[arg-type]
    return buffer.getvalue()


def _sound(samples: NDArray[np.float64], rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC")
    return buffer.getvalue()


def _run(chosen: Filter, data: bytes, modality: Modality = "image") -> Verdict:
    """Measure and judge; the verdict's columns hold both."""
    media = Media(data, modality=modality)
    columns = dict(chosen.measure(media))
    pair = Pair("p", "media/a", "a red mug", modality)
    verdict = chosen.judge(Candidate(pair, pair.caption, media.facts(), columns))
    assert set(columns) | set(verdict.columns) <= set(chosen.columns)
    types = {"int64": int, "float64": float, "string": str, "binary": bytes}
    for name, cell in {**columns, **verdict.columns}.items():
        assert type(cell) is types[chosen.columns[name]]
    assert verdict.reason is None or (verdict.reason in chosen.reasons and verdict.detail)
    return Verdict(verdict.reason, verdict.detail, {**columns, **verdict.columns})


NAMES = (
    "readable", "image_size", "aspect_ratio", "blank_image", "blurred_image",
    "audio_length", "audio_level", "audio_rate",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_other_modalities_pass_and_are_not_measured(name: str) -> None:
    chosen = component_settings("coembed.curation.filters", name)().build()  # type: ignore[call-arg, attr-defined]
    other: dict[Modality, bytes] = {"text": b"some words"}
    if name != "readable":
        other["audio" if "image" in name or name == "aspect_ratio" else "image"] = b"rubbish"
    for modality, data in other.items():
        assert _run(chosen, data, modality) == Verdict()


def test_readable_decodes_everything() -> None:
    chosen = readable.Settings().build()
    assert chosen.reasons == DECODE_REASONS
    whole = _encode(Image.new("RGB", (60, 50), "red"))
    assert _run(chosen, whole) == Verdict()
    for data, modality in ((whole[:-20], "image"), (_sound(np.zeros((99, 1)))[:-4], "audio")):
        media = Media(data, modality=modality)
        assert media.facts().fault is None  # the header alone is sound
        with pytest.raises(Undecodable):
            chosen.measure(media)
        assert media.facts().fault == "truncated"


def test_size_and_ratio_are_judged_as_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encode(Image.new("RGB", (200, 40)), exif=exif)
    size, ratio = image_size.Settings(min_px=41).build(), aspect_ratio.Settings().build()
    assert _run(size, data) == Verdict("small_image", "width 40 px < 41 px")
    assert _run(ratio, data) == Verdict("extreme_ratio", "40 x 200 px is 5 > 4")
    assert _run(image_size.Settings(min_px=40).build(), data) == Verdict()
    assert _run(aspect_ratio.Settings(max_ratio=5).build(), data) == Verdict()


def _product_on_white(share: float, size: int = 400, level: int = 90) -> Image.Image:
    """A square that covers `share` of the picture."""
    image = Image.new("RGB", (size, size), "white")
    side = round(size * share**0.5)
    ImageDraw.Draw(image).rectangle((30, 30, 29 + side, 29 + side), fill=(level, level, level))
    return image


def _noisy(level: int, sigma: float, size: int = 300) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(
        np.clip(rng.normal(level, sigma, (size, size, 3)), 0, 255).astype(np.uint8)
    )


def test_blank_pictures_are_found_and_small_products_on_white_are_not() -> None:
    chosen = blank_image.Settings().build()
    speck = _product_on_white(0.002)
    for blank in (Image.new("RGB", (90, 70)), Image.new("CMYK", (300, 80)), _noisy(6, 4), speck):
        verdict = _run(chosen, _encode(blank))
        assert verdict.reason == "blank_image" and "< 12" in verdict.detail
    transparent = Image.new("RGBA", (90, 90), (255, 255, 255, 255))
    transparent.paste((0, 0, 0, 0), (20, 20, 60, 60))  # nothing, on white
    assert _run(chosen, _encode(transparent, "PNG")).reason == "blank_image"
    faint = _product_on_white(0.02, level=235)
    for good in (_product_on_white(0.01), faint, Image.linear_gradient("L").convert("RGB")):
        assert _run(chosen, _encode(good)).reason is None


def test_contrast_is_a_range_of_levels() -> None:
    chosen = blank_image.Settings(min_contrast=0).build()
    steps = Image.fromarray(np.repeat(np.uint8([[50, 90, 170, 200]]), 100, axis=0)).resize(
        (100, 100), 0
    )
    assert _run(chosen, _encode(steps, "PNG")).columns == {"contrast": 150}
    # Two colours of one brightness are no blank picture.
    colours = Image.new("RGB", (100, 100), (180, 60, 60))
    colours.paste((60, 118, 60), (0, 0, 50, 100))
    grey = np.asarray(colours.convert("L"))
    assert int(grey.max()) - int(grey.min()) < 12
    assert _run(chosen, _encode(colours, "PNG")).columns == {"contrast": 120}


def _scene(seed: int, size: tuple[int, int], *, slope: float, grain: float) -> Image.Image:
    """Clouds of every scale with a few things in them, and a sensor's noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    reach = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    reach[0, 0] = 1
    clouds = np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / reach**slope).real
    image = Image.fromarray(np.clip(120 + 45 * clouds / clouds.std(), 0, 255).astype(np.uint8))
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = rng.integers(width), rng.integers(height), min(size) // 8
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    pixels = np.asarray(image) + rng.normal(0, grain, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


SCENES = {
    "noisy": {"slope": 1.2, "grain": 15.0},
    "smooth": {"slope": 2.0, "grain": 2.0},
    "fine": {"slope": 0.8, "grain": 3.0},
}


def _blurred(image: Image.Image, share: float) -> bytes:
    """Blurred with a Gaussian of `share` of the shorter side, then what a camera adds to it."""
    soft = image.filter(ImageFilter.GaussianBlur(share * min(image.size)))
    rng = np.random.default_rng(1)
    pixels = np.asarray(soft) + rng.normal(0, 2, (*soft.size[::-1], 3))
    return _encode(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), quality=85)


@pytest.mark.parametrize("size", [(130, 100), (300, 260), (520, 390)])
@pytest.mark.parametrize("kind", SCENES)
def test_blurred_pictures_are_found_at_any_resolution(kind: str, size: tuple[int, int]) -> None:
    chosen = blurred_image.Settings().build()
    for seed in range(2):
        image = _scene(seed, size, **SCENES[kind])
        sharp = _run(chosen, _encode(image, quality=85))
        assert sharp.reason is None and sharp.columns["sharpness"] > 0.4
        assert _run(chosen, _blurred(image, 0.005)).reason is None
        before = sharp.columns["sharpness"]
        for share in (0.03, 0.05, 0.08):
            verdict = _run(chosen, _blurred(image, share))
            assert verdict.reason == "blurred_image" and "< 0.27" in verdict.detail
            assert verdict.columns["sharpness"] <= before + 0.02
            before = verdict.columns["sharpness"]


def test_a_sharp_thing_before_a_blurred_background_is_sharp() -> None:
    image = _scene(5, (400, 300), slope=1.5, grain=0).filter(ImageFilter.GaussianBlur(15))
    assert _run(blurred_image.Settings().build(), _encode(image)).reason == "blurred_image"
    ImageDraw.Draw(image).ellipse((150, 100, 230, 180), fill=(20, 30, 40))
    verdict = _run(blurred_image.Settings().build(), _encode(image))
    assert verdict.reason is None and verdict.columns["sharpness"] > 0.5


def test_sharpness_of_an_edge_and_of_a_ramp() -> None:
    """An edge is all in one step and in 8 windows; a ramp has an eighth of its rise in a step."""
    edge = np.zeros((64, 64), np.uint8)
    edge[:, 32:] = 200
    assert blurred_image.measure_sharpness(edge) == pytest.approx(8 ** (-1 / 8))
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 3, (64, 64))
    found = blurred_image.measure_sharpness(ramp)
    assert found == pytest.approx(1 / 8, rel=0.03)
    assert blurred_image.measure_sharpness(ramp.T) == found
    assert blurred_image.measure_sharpness(np.full((64, 64), 9, np.uint8)) is None
    assert blurred_image.measure_sharpness(edge[:31]) is None


def test_sharpness_against_plain_sums() -> None:
    rng = np.random.default_rng(2)
    grey = rng.integers(0, 256, (70, 100), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(2)))
    steps = contrasts = 0
    rows = [[int(v) for v in row] for row in grey]
    for lines in (rows, [list(column) for column in zip(*rows, strict=True)]):
        for line in lines:
            steps += sum(abs(a - b) ** 8 for a, b in pairwise(line))
            contrasts += sum(abs(a - b) ** 8 for a, b in zip(line, line[8:], strict=False))
    expected = (steps / contrasts) ** 0.125
    assert blurred_image.measure_sharpness(grey) == pytest.approx(expected, rel=1e-4)


def test_blur_doubt_is_one_at_the_limit_and_none_far_from_it() -> None:
    chosen = blurred_image.Settings(min_sharpness=0.2).build()
    media = Media(_encode(Image.new("RGB", (64, 64))), modality="image")
    pair = Pair("p", "media/a", "a red mug")

    def doubt(sharpness: float) -> object:
        found = chosen.judge(Candidate(pair, "", media.facts(), {"sharpness": sharpness}))
        return found.columns.get("blurred_image_doubt"), found.reason

    assert doubt(0.2) == (1.0, None)
    assert doubt(0.3) == (pytest.approx(0.5), None)
    assert doubt(0.9) == (0.0, None)
    assert doubt(0.19) == (None, "blurred_image")
    off = blurred_image.Settings(min_sharpness=0).build()
    assert off.judge(Candidate(pair, "", media.facts(), {"sharpness": 0.0})) == Verdict()


def _tone(seconds: float, level: float = 0.3) -> NDArray[np.float64]:
    return level * np.sin(2 * np.pi * 440 * np.arange(int(8000 * seconds)) / 8000)[:, None]


def test_silent_and_clipped_sounds_are_dropped() -> None:
    chosen = audio_level.Settings().build()
    quiet = _run(chosen, _sound(_tone(1, 0.0005)), "audio")
    assert quiet.reason == "silent_audio" and quiet.detail == "-69.0 dBFS < -60 dBFS"
    assert _run(chosen, _sound(_tone(1, 0.003)), "audio").reason is None
    loud = _run(chosen, _sound(np.clip(_tone(1, 1.5), -1, 1)), "audio")
    assert loud.reason == "clipped_audio" and "> 1.00%" in loud.detail
    full = _run(chosen, _sound(_tone(1, 1.0)), "audio")
    assert full.reason is None and full.columns["peak_dbfs"] == pytest.approx(0, abs=0.01)
    everything = audio_level.Settings(min_rms_dbfs=-120, max_clipped_share=1).build()
    assert _run(everything, _sound(np.zeros((800, 1))), "audio").reason is None


def test_short_and_long_sounds_are_dropped() -> None:
    chosen = audio_length.Settings(min_s=0.5, max_s=2).build()
    assert _run(chosen, _sound(_tone(0.4)), "audio") == Verdict("short_audio", "0.4 s < 0.5 s")
    assert _run(chosen, _sound(_tone(2.5)), "audio") == Verdict("long_audio", "2.5 s > 2 s")
    assert _run(chosen, _sound(_tone(0.5)), "audio") == Verdict()
    with pytest.raises(ValidationError, match="above max_s"):
        audio_length.Settings(min_s=3, max_s=2)


def test_low_rates_are_dropped_only_where_a_minimum_is_set() -> None:
    data = _sound(_tone(1))
    assert _run(audio_rate.Settings().build(), data, "audio") == Verdict()
    chosen = audio_rate.Settings(min_rate_hz=16_000).build()
    assert _run(chosen, data, "audio") == Verdict("low_sample_rate", "8,000 Hz < 16,000 Hz")
    assert _run(audio_rate.Settings(min_rate_hz=8000).build(), data, "audio") == Verdict()

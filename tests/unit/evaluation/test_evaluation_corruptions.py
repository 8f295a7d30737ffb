"""Corrupted files decode, and differ from the clean ones by what the settings state."""

from __future__ import annotations

import io
from string import ascii_letters

import numpy as np
import pytest
import soundfile
from evaluated_pairs import catalogue, encode_sound, sounds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from coembed.errors import DataError
from coembed.evaluation.corruptions import (
    add_typos,
    caption_corruptions,
    picture_corruptions,
    sound_corruptions,
)
from coembed.evaluation.settings import CaptionCorruptions, PictureCorruptions, SoundCorruptions
from coembed.modalities._sound import decode_sound
from coembed.modalities.image import decode_image

ITEM, OTHER = "a" * 64, "b" * 64
HZ = 8_000


def only(**severity: float) -> PictureCorruptions:
    nothing = dict.fromkeys(("blur", "crop", "jpeg", "noise"))
    return PictureCorruptions.model_validate({**nothing, **severity})


def corrupt_picture(media: bytes, item_id: str = ITEM, **severity: float) -> np.ndarray:
    ((_, corrupt),) = picture_corruptions(only(**severity)).items()
    return decode_image(corrupt(media, item_id))


def corrupt_sound(media: bytes, item_id: str = ITEM, **severity: float) -> bytes:
    nothing = dict.fromkeys(("noise_snr_db", "gain_db", "lowpass_hz", "crop"))
    settings = SoundCorruptions.model_validate({**nothing, **severity})
    ((_, corrupt),) = sound_corruptions(settings).items()
    return corrupt(media, item_id)


def photo(height: int = 150, width: int = 200) -> np.ndarray:
    """Smooth shapes and some texture, none of it near black or white."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / step) + np.cos(columns / (step + 3)) for step in (1.5, 4, 9)]
    return (128 + 25 * np.stack(waves, axis=-1)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def samples_of(media: bytes, hz: int = HZ) -> np.ndarray:
    return decode_sound(media, sample_rate_hz=hz, max_s=60).astype(np.float64)


def tone(hz: float = 440, *, num: int = HZ, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(num) / HZ)


def test_noise_has_the_stated_deviation() -> None:
    clean = photo()
    noisy = corrupt_picture(png(clean), noise=0.1)
    assert noisy.shape == clean.shape
    assert psnr_db(noisy, clean) == pytest.approx(20, abs=0.3)  # 20 log10(1 / 0.1)


def test_blur_is_a_gaussian_of_the_stated_width() -> None:
    clean = photo()
    blurred = corrupt_picture(png(clean), blur=0.02)
    expected = gaussian_filter(clean.astype(np.float64), sigma=(3, 3, 0), mode="nearest")
    inside = slice(12, -12)
    assert psnr_db(blurred[inside, inside], expected[inside, inside]) > 40
    assert psnr_db(blurred, clean) < 30


def test_crop_is_a_window_of_the_stated_area_somewhere() -> None:
    clean = photo()
    window = corrupt_picture(png(clean), crop=0.5)
    height, width = window.shape[:2]
    assert (height, width) == (106, 141)  # each side times the root of a half
    places = [
        (top, left)
        for top in range(150 - height + 1)
        for left in range(200 - width + 1)
        if (clean[top : top + height, left : left + width] == window).all()
    ]
    assert len(places) == 1
    assert not np.array_equal(window, corrupt_picture(png(clean), OTHER, crop=0.5))


def test_jpeg_loses_more_the_lower_its_quality() -> None:
    clean = photo()
    ((_, corrupt),) = picture_corruptions(only(jpeg=10)).items()
    file = corrupt(png(clean), ITEM)
    assert file[:3] == b"\xff\xd8\xff"
    losses = [psnr_db(corrupt_picture(png(clean), jpeg=quality), clean) for quality in (5, 30, 90)]
    assert losses == sorted(losses)
    assert 20 < losses[0] < losses[-1] < 60


def test_larger_pictures_are_brought_down_first() -> None:
    clean = photo(600, 300)
    blurred = corrupt_picture(png(clean), jpeg=95, px=100)
    assert blurred.shape == (200, 100, 3)
    assert corrupt_picture(png(photo(90, 300)), jpeg=95, px=100).shape == (90, 300, 3)
    assert corrupt_picture(png(photo(1, 4000)), blur=0.5, px=16).shape[0] == 1


def test_pictures_are_decoded_as_in_search() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(buffer, "PNG", exif=exif)
    turned = corrupt_picture(buffer.getvalue(), noise=0.001)
    assert np.abs(turned.astype(int) - decode_image(buffer.getvalue())).max() <= 2
    assert turned.shape == (200, 150, 3)


def test_every_corruption_of_pictures_is_a_pure_function_of_the_item() -> None:
    sample, other = catalogue(2, seed=1)
    kinds = picture_corruptions(PictureCorruptions())
    assert set(kinds) == {"blur", "crop", "jpeg", "noise"}
    for corrupt in kinds.values():
        made = corrupt(sample.media, sample.item_id)
        assert made == corrupt(sample.media, sample.item_id)
        assert made != corrupt(other.media, other.item_id)
        assert decode_image(made).shape[2] == 3
    assert picture_corruptions(only()) == {}


def test_noise_of_sounds_has_the_stated_ratio() -> None:
    clean = tone()
    noisy = samples_of(corrupt_sound(encode_sound(clean), noise_snr_db=10))
    before = samples_of(encode_sound(clean))
    ratio = (before**2).mean() / ((noisy - before) ** 2).mean()
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.3)
    silent = samples_of(corrupt_sound(encode_sound(np.zeros(HZ)), noise_snr_db=10))
    assert 0.5 < silent.std() < 1.5


def test_noise_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    media = encode_sound(tone())
    whole = corrupt_sound(media, noise_snr_db=10)
    monkeypatch.setattr("coembed.evaluation.corruptions._BLOCK_SAMPLES", 777)
    assert corrupt_sound(media, noise_snr_db=10) == whole


def test_gain_is_louder_or_quieter_and_clips() -> None:
    before = samples_of(encode_sound(tone()))
    quieter = samples_of(corrupt_sound(encode_sound(tone()), gain_db=-20))
    assert np.abs(quieter - before / 10).max() <= 0.51
    louder = samples_of(corrupt_sound(encode_sound(tone()), gain_db=20))
    assert np.abs(louder).max() == 32767


def test_lowpass_leaves_nothing_above() -> None:
    media = encode_sound(tone(300) + tone(3000))
    file = corrupt_sound(media, lowpass_hz=1000)
    assert soundfile.info(io.BytesIO(file)).samplerate == 2000
    spectrum = np.abs(np.fft.rfft(samples_of(file)[1000:7000])) ** 2
    frequencies = np.fft.rfftfreq(6000, 1 / HZ)
    kept, lost = spectrum[frequencies < 900].sum(), spectrum[frequencies > 1200].sum()
    assert 10 * np.log10(kept / lost) > 40
    # A sound that has no more is left as it is.
    assert np.array_equal(samples_of(corrupt_sound(media, lowpass_hz=8000)), samples_of(media))


def test_crop_of_sounds_is_a_stretch_of_the_stated_length() -> None:
    rng = np.random.default_rng(0)
    media = encode_sound(rng.uniform(-0.5, 0.5, HZ))
    clean, cropped = samples_of(media), samples_of(corrupt_sound(media, crop=0.25))
    assert len(cropped) == HZ // 4
    starts = np.flatnonzero(clean == cropped[0])
    assert sum(np.array_equal(clean[at : at + len(cropped)], cropped) for at in starts) == 1
    assert len(samples_of(corrupt_sound(encode_sound(tone(num=1)), crop=0.01))) == 1


def test_stereo_at_another_rate_is_heard_as_in_search() -> None:
    buffer = io.BytesIO()
    left = tone(num=44_100)
    soundfile.write(buffer, np.stack([left, left / 2], axis=1), 44_100, format="FLAC")
    file = corrupt_sound(buffer.getvalue(), gain_db=0)
    assert soundfile.info(io.BytesIO(file)).samplerate == 44_100
    apart = samples_of(file, 16_000) - samples_of(buffer.getvalue(), 16_000)
    assert np.abs(apart).max() <= 1


def test_every_corruption_of_sounds_is_a_pure_function_of_the_item() -> None:
    sample, other = sounds(2, seed=1, extension="flac")
    kinds = sound_corruptions(SoundCorruptions())
    assert set(kinds) == {"noise", "gain", "crop", "lowpass"}
    for corrupt in kinds.values():
        made = corrupt(sample.media, sample.item_id)
        assert made == corrupt(sample.media, sample.item_id)
        assert made != corrupt(other.media, other.item_id)


def test_what_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(DataError, match="not a readable image"):
        corrupt_picture(b"no picture", blur=0.1)
    with pytest.raises(DataError, match="not a readable sound: not a WAV, AIFF, FLAC, Ogg or MP3"):
        corrupt_sound(b"no sound", gain_db=1)


def test_typos_are_as_many_as_stated() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    letters = sum(sign.isalpha() for sign in text)
    for rate in (0.01, 0.05, 0.2):
        typed = add_typos(text, rate=rate)
        assert typed == add_typos(text, rate=rate)
        assert edits(text, typed) == pytest.approx(rate * letters, rel=0.25, abs=1)
    kinds = {len(add_typos(word, rate=0.01)) - len(word) for word in text.split()}
    assert kinds == {-1, 0, 1}  # left out, struck wrongly or exchanged, doubled


def edits(one: str, other: str) -> int:
    """Levenshtein distance with exchanged neighbours as one edit (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, sign in enumerate(one, start=1):
        row = [i]
        for j, against in enumerate(other, start=1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (sign != against))
            if i > 1 and j > 1 and sign == other[j - 2] and one[i - 2] == against:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@given(st.text(max_size=40), st.floats(0.01, 1))
def test_any_text_with_letters_is_mistyped(text: str, rate: float) -> None:
    typed = add_typos(text, rate=rate)
    if any(sign.isalpha() for sign in text):
        assert typed != text
        assert typed.strip()
    else:
        assert typed == text


def test_errors_never_undo_one_another_or_leave_nothing() -> None:
    for letter in ascii_letters:
        assert add_typos(letter, rate=0.01) not in ("", letter)
        for num in (2, 3, 4):
            assert add_typos(letter * num, rate=1.0) != letter * num


def test_typos_keep_what_is_no_letter() -> None:
    typed = add_typos("Größe 42, 日本語 №7!", rate=1.0)
    assert [sign for sign in typed if not sign.isalpha()] == list(" 42,  №7!")
    assert caption_corruptions(CaptionCorruptions(typos=None)) == {}
    assert caption_corruptions(CaptionCorruptions(typos=0.5))["typos"]("a cup") != "a cup"

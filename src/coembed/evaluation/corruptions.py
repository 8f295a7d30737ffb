"""Worse pictures, sounds and captions: what people search with is not what a catalogue holds.

A corruption maps the bytes of a media file to those of another one, which then goes the same way
into the model as any query: decoded, corrupted, encoded without further loss (a picture as BMP, a
sound as WAV; but for `jpeg`, whose loss is the point). Every random choice comes from the item's
content, so that two models get the same corrupted files.

The kinds of pictures' corruption are four of ImageNet-C's (Hendrycks & Dietterich 2019, arXiv
1903.12261), which states its severities for pictures of 224 px. So larger ones are first brought
down to that: two pixels of blur are nothing to a photo of 4,000.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from coembed import draws
from coembed.errors import DataError
from coembed.evaluation.selection import SEED, content_keys
from coembed.evaluation.settings import (
    CaptionCorruptions,
    PictureCorruptions,
    SoundCorruptions,
)
from coembed.modalities._sound import Samples, decode_sound, header_of, opened
from coembed.modalities._sound_files import BrokenSound, sniff_sound
from coembed.modalities.base import MAX_AUDIO_S
from coembed.modalities.image import decode_image

Corruption = Callable[[bytes, str], bytes]
"""(media, item_id) → media. Raises DataError where they cannot be decoded."""

# What no tower hears above; an hour of it is 346 MB.
_MAX_RATE_HZ = 48_000
_BLOCK_SAMPLES = 1 << 20
_FULL_SCALE = 32767

# The keys around each letter, on a QWERTY keyboard.
_NEIGHBOURS = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj",
    "i": "uojk", "o": "ipkl", "p": "ol", "a": "qwsz", "s": "weadzx", "d": "ersfxc", "f": "rtdgcv",
    "g": "tyfhvb", "h": "yugjbn", "j": "uihknm", "k": "iojlm", "l": "opk", "z": "asx", "x": "sdzc",
    "c": "dfxv", "v": "fgcb", "b": "ghvn", "n": "hjbm", "m": "jkn",
}  # fmt: skip


def picture_corruptions(settings: PictureCorruptions) -> dict[str, Corruption]:
    """The corruptions of pictures that `settings` has a severity for, by name."""
    found: dict[str, Callable[[Image.Image, draws.Keys], bytes]] = {}
    if settings.blur is not None:
        found["blur"] = partial(_blur, sigma=settings.blur)
    if settings.crop is not None:
        found["crop"] = partial(_crop_picture, area=settings.crop)
    if settings.jpeg is not None:
        found["jpeg"] = partial(_jpeg, quality=settings.jpeg)
    if settings.noise is not None:
        found["noise"] = partial(_noise_picture, sigma=settings.noise)

    def on_file(corrupt: Callable[[Image.Image, draws.Keys], bytes]) -> Corruption:
        return lambda media, item_id: corrupt(_picture(media, settings.px), content_keys([item_id]))

    return {name: on_file(corrupt) for name, corrupt in found.items()}


def sound_corruptions(settings: SoundCorruptions) -> dict[str, Corruption]:
    """The corruptions of sounds that `settings` has a severity for, by name."""
    found: dict[str, Callable[[Samples, draws.Keys], Samples]] = {}
    if settings.noise_snr_db is not None:
        found["noise"] = partial(_noise_sound, snr_db=settings.noise_snr_db)
    if settings.gain_db is not None:
        found["gain"] = partial(_gain, gain_db=settings.gain_db)
    if settings.crop is not None:
        found["crop"] = partial(_crop_sound, share=settings.crop)

    def on_file(corrupt: Callable[[Samples, draws.Keys], Samples]) -> Corruption:
        def on_bytes(media: bytes, item_id: str) -> bytes:
            samples, rate_hz = _sound(media, _MAX_RATE_HZ)
            return _wav(corrupt(samples, content_keys([item_id])), rate_hz)

        return on_bytes

    on_files = {name: on_file(corrupt) for name, corrupt in found.items()}
    if settings.lowpass_hz is not None:
        # A sound of twice the rate of a frequency holds nothing above it, as on the telephone.
        rate_hz = 2 * settings.lowpass_hz
        on_files["lowpass"] = lambda media, _: _wav(*_sound(media, rate_hz))
    return on_files


def caption_corruptions(settings: CaptionCorruptions) -> dict[str, Callable[[str], str]]:
    """The corruptions of captions that `settings` has a severity for, by name."""
    return {} if settings.typos is None else {"typos": partial(add_typos, rate=settings.typos)}


def add_typos(text: str, *, rate: float) -> str:
    """`text` with typing errors at a share `rate` of its letters, at one at least.

    Each strikes a neighbouring key instead, leaves the letter out, doubles it or strikes it after
    the next one. Text without letters stays as it is.
    """
    letters = [place for place, sign in enumerate(text) if sign.isalpha()]
    if not letters:
        return text
    keys: draws.Keys = np.arange(len(letters), dtype=np.uint64)
    keys += content_keys([text])
    num = min(len(letters), max(1, round(rate * len(letters))))
    order = np.argsort(draws.bits(SEED, "typo place", 0, keys), kind="stable")[:num]
    kinds = draws.below(SEED, "typo kind", 0, keys, np.asarray(4))
    shares = draws.uniform(SEED, "typo key", 0, keys)
    errors = {letters[one]: (int(kinds[one]), float(shares[one])) for one in order.tolist()}
    typed = _type(text, errors)
    if typed == text or not typed.strip():
        # Errors may undo one another ("oo", one left out, the other doubled) or leave nothing.
        first = min(errors)
        typed = text[:first] + text[first] + text[first:]
    return typed


def _type(text: str, errors: Mapping[int, tuple[int, float]]) -> str:
    """`text` with an error at each place in `errors`: its kind, and a share that chooses a key."""
    typed, place = [], 0
    while place < len(text):
        sign, following = text[place], text[place + 1 : place + 2]
        kind, share = errors.get(place, (None, 0.0))
        near = _NEIGHBOURS.get(sign.lower(), "")
        if kind is None:
            typed.append(sign)
        elif kind == 0 and near:
            key = near[int(share * len(near))]
            typed.append(key.upper() if sign.isupper() else key)
        elif kind == 1:
            pass
        elif kind == 2 and following.isalpha() and following != sign and place + 1 not in errors:
            typed.append(following + sign)
            place += 1
        else:
            typed.append(sign + sign)
        place += 1
    return "".join(typed)


def _blur(image: Image.Image, _: draws.Keys, sigma: float) -> bytes:
    """`sigma` is a share of the shorter side."""
    return _bmp(image.filter(ImageFilter.GaussianBlur(sigma * min(image.size))))


def _crop_picture(image: Image.Image, keys: draws.Keys, area: float) -> bytes:
    """A window of the picture's shape and a share `area` of its area, anywhere in it."""
    width, height = (max(1, round(side * area**0.5)) for side in image.size)
    left = int(draws.below(SEED, "left", 0, keys, np.asarray(image.width - width + 1))[0])
    top = int(draws.below(SEED, "top", 0, keys, np.asarray(image.height - height + 1))[0])
    return _bmp(image.crop((left, top, left + width, top + height)))


def _jpeg(image: Image.Image, _: draws.Keys, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _noise_picture(image: Image.Image, keys: draws.Keys, sigma: float) -> bytes:
    """Gaussian noise on each value; `sigma` is a share of the full range."""
    pixels = np.asarray(image, dtype=np.float32)
    noise = _generator(keys).standard_normal(pixels.shape, dtype=np.float32)
    noisy = np.clip(np.rint(pixels + noise * np.float32(255 * sigma)), 0, 255)
    return _bmp(Image.fromarray(noisy.astype(np.uint8)))


def _noise_sound(samples: Samples, keys: draws.Keys, snr_db: float) -> Samples:
    """White noise, `snr_db` below the sound's mean power; one step of 16 bits at least."""
    power = sum(
        float(np.square(block, dtype=np.float64).sum()) for block in _blocks(samples)
    ) / len(samples)
    sigma = np.float32(max(1.0, (power / 10 ** (snr_db / 10)) ** 0.5))
    generator = _generator(keys)
    return _each_block(
        samples,
        lambda block: block + sigma * generator.standard_normal(len(block), dtype=np.float32),
    )


def _gain(samples: Samples, _: draws.Keys, gain_db: float) -> Samples:
    factor = np.float32(10 ** (gain_db / 20))
    return _each_block(samples, lambda block: block * factor)


def _crop_sound(samples: Samples, keys: draws.Keys, share: float) -> Samples:
    """A stretch that lasts a `share` of the sound, anywhere in it."""
    num = max(1, round(len(samples) * share))
    first = int(draws.below(SEED, "first", 0, keys, np.asarray(len(samples) - num + 1))[0])
    return samples[first : first + num]


def _blocks(samples: Samples) -> Iterator[Samples]:
    return (
        samples[start : start + _BLOCK_SAMPLES] for start in range(0, len(samples), _BLOCK_SAMPLES)
    )


def _each_block(
    samples: Samples, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> Samples:
    """`samples` changed a block at a time, rounded, and clipped where they grow too loud."""
    changed = np.empty_like(samples)
    for old, new in zip(_blocks(samples), _blocks(changed), strict=True):
        rounded = np.rint(change(old.astype(np.float32)))
        new[:] = np.clip(rounded, -_FULL_SCALE, _FULL_SCALE)
    return changed


# Each file is asked for once for every corruption, one after the other.
@lru_cache(maxsize=1)
def _picture(media: bytes, px: int) -> Image.Image:
    """The decoded picture, its shorter side at most `px`."""
    image = Image.fromarray(decode_image(media))
    shorter = min(image.size)
    if shorter > px:
        width, height = (max(1, round(side * px / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def _bmp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _sound(media: bytes, max_rate_hz: int) -> tuple[Samples, int]:
    """The samples of one channel, and their rate: the sound's own where it is not above."""
    kind = sniff_sound(media)
    try:
        if kind is None:
            raise BrokenSound("unreadable", "not a WAV, AIFF, FLAC, Ogg or MP3 file")
        with opened(media, kind) as file:
            own_hz = header_of(file, kind).sample_rate_hz
    except BrokenSound as error:
        raise DataError(f"not a readable sound: {error}") from None
    rate_hz = min(own_hz, max_rate_hz)
    return decode_sound(media, sample_rate_hz=rate_hz, max_s=MAX_AUDIO_S), rate_hz


def _wav(samples: Samples, rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _generator(keys: draws.Keys) -> np.random.Generator:
    return np.random.default_rng(int(draws.bits(SEED, "noise", 0, keys)[0]))

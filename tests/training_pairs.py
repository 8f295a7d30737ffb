"""Small curated pairs for the tests of training: coloured shapes with their names, in shards."""

from __future__ import annotations

import hashlib
import io
import wave
from pathlib import Path

import numpy as np
import simplejpeg

from coembed.files import write_receipt
from coembed.pairs.shards import ShardWriter
from coembed.types import Sample

COLOURS = {"red": (220, 30, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "grey": (120,) * 3}
SHAPES = ("square", "disc", "bar", "ring")

# A convnet and a text transformer that train in milliseconds a step.
SMALL_MODEL = {
    "architecture": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_resnet",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
}


def draw(colour: str, shape: str, rng: np.random.Generator) -> np.ndarray:
    """A 48 x 48 picture of one shape on a light ground."""
    rows, columns = np.mgrid[0:48, 0:48]
    y, x = rows - rng.integers(18, 30), columns - rng.integers(18, 30)
    r = rng.integers(9, 15)
    inside = {
        "square": (abs(x) < r) & (abs(y) < r),
        "disc": x * x + y * y < r * r,
        "bar": (abs(x) < 4) & (abs(y) < r),
        "ring": (x * x + y * y < r * r) & (x * x + y * y > (r - 5) ** 2),
    }[shape]
    picture = np.full((48, 48, 3), 235, dtype=np.float64)
    picture[inside] = COLOURS[colour]
    picture += rng.normal(0, 6, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def make_samples(num: int, *, seed: int, broken: int | None = None) -> list[Sample]:
    """`num` items with two captions each. Item number `broken` holds no image."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        media = simplejpeg.encode_jpeg(draw(colour, shape, rng), quality=90)
        if i == broken:
            media = b"not an image"
        samples.append(
            Sample(
                item_id=hashlib.sha256(media).hexdigest(),
                modality="image",
                path=f"media/{seed}-{i}.jpg",
                media=media,
                extension="jpg",
                captions=(f"a {colour} {shape}", f"{shape}, {colour}"),
                pair_ids=(f"{seed}-{i}-a", f"{seed}-{i}-b"),
                attributes={"colour": str(colour), "shape": str(shape)},
            )
        )
    return samples


# The same with a convnet that hears a second at a time.
HEARING_MODEL = {
    "architecture": {
        **SMALL_MODEL["architecture"],
        "audio_cfg": {
            "timm_model_name": "test_resnet", "sample_rate_hz": 8000, "clip_s": 1.0, "num_mels": 32,
        },
    }
}  # fmt: skip

PITCHES_HZ = {"low": 200, "high": 1600}
RHYTHMS_HZ = {"steady": 0, "slow": 3, "fast": 9}


def make_sounds(num: int, *, seed: int) -> list[Sample]:
    """`num` beeps of 0.6 to 2.2 s as 16-bit WAV at 8 kHz, with two captions each."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        pitch, rhythm = str(rng.choice(list(PITCHES_HZ))), str(rng.choice(list(RHYTHMS_HZ)))
        time_s = np.arange(int(8000 * rng.uniform(0.6, 2.2))) / 8000
        tone = np.sin(2 * np.pi * PITCHES_HZ[pitch] * rng.uniform(0.9, 1.1) * time_s)
        if RHYTHMS_HZ[rhythm]:
            tone *= np.sin(2 * np.pi * RHYTHMS_HZ[rhythm] * time_s) > 0
        tone = 0.5 * tone + rng.normal(0, 0.01, tone.shape)
        media = to_wav(np.rint(tone.clip(-1, 1) * 32767).astype("<i2"), rate_hz=8000)
        samples.append(
            Sample(
                item_id=hashlib.sha256(media).hexdigest(),
                modality="audio",
                path=f"media/{seed}-{i}.wav",
                media=media,
                extension="wav",
                captions=(f"a {pitch} {rhythm} beep", f"{rhythm} beeping, {pitch}"),
                pair_ids=(f"sound-{seed}-{i}-a", f"sound-{seed}-{i}-b"),
                attributes={"pitch": pitch, "rhythm": rhythm},
            )
        )
    return samples


def to_wav(samples: np.ndarray, *, rate_hz: int) -> bytes:
    """16-bit samples [frames] as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def make_pairs(
    folder: Path,
    *,
    train: int = 48,
    val: int = 16,
    broken: int | None = None,
    sounds: tuple[int, int] = (0, 0),
) -> Path:
    """Curated pairs as the curate stage leaves them; `sounds` are in train and val."""
    folder.mkdir(parents=True)
    splits = {}
    numbers = {"train": (train, sounds[0]), "val": (val, sounds[1]), "test": (0, 0)}
    for seed, (split, (num, num_sounds)) in enumerate(numbers.items()):
        samples = make_samples(num, seed=seed, broken=broken if not seed else None)
        samples += make_sounds(num_sounds, seed=seed)
        with ShardWriter(folder, split, max_samples=20, max_bytes=1 << 30) as writer:
            for sample in samples:
                writer.write(sample)
        shards = [shard.as_dict() for shard in writer.shards]
        splits[split] = {"num_items": len(samples), "shards": shards}
    write_receipt(folder, {"splits": splits})
    return folder

"""The demo pool's sounds: the same bytes everywhere, heard as captioned, faults as truth says."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from numpy.typing import NDArray

from coembed.curation.media.sound import Sound, measure, read_header
from coembed.curation.media.undecodable import Undecodable
from coembed.errors import UserError
from coembed.files import sha256_tree
from coembed.pairs.pool import read_pool
from coembed.pairs.shop import SOUNDS_TABLE, PoolSummary, catalogue, draw_pool
from coembed.pairs.shop.palette import COLOURS
from coembed.pairs.shop.sounds.captions import PITCHES, TEMPI
from coembed.pairs.shop.sounds.catalogue import takes
from coembed.pairs.shop.sounds.faults import SHARES, counts
from coembed.pairs.shop.sounds.kinds import KINDS
from coembed.pairs.shop.sounds.plan import plan_sounds
from coembed.pairs.shop.sounds.recording import Recording
from coembed.pairs.shop.sounds.render import encoded, render

NUM_SOUNDS = 60
Samples = NDArray[np.float64]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PoolSummary]:
    out = tmp_path_factory.mktemp("shop") / "pool"
    return out, draw_pool(out, num_pairs=100, image_px=64, num_sounds=NUM_SOUNDS, num_workers=1)


@pytest.fixture(scope="module")
def sounds(drawn: tuple[Path, PoolSummary]) -> pd.DataFrame:
    return pq.read_table(drawn[0] / SOUNDS_TABLE).to_pandas().set_index("pair_id")


@pytest.fixture(scope="module")
def truth(drawn: tuple[Path, PoolSummary]) -> pd.DataFrame:
    table = pq.read_table(drawn[0] / "truth.parquet").to_pandas()
    return table[table.pair_id.str.startswith("sound-")]


def _of(truth: pd.DataFrame, fault: str) -> pd.DataFrame:
    found = truth[truth.fault == fault]
    assert len(found), f"no {fault} was planted"
    return found


def _measured(path: Path) -> Sound:
    data = path.read_bytes()
    return measure(data, read_header(data, 60), 60)


def _recordings(num: int) -> list[Recording]:
    found: list[Recording] = []
    for some in takes(7):
        found += [take.recording for take in some]
        if len(found) >= num:
            break
    return found


def _one_of_each() -> Iterator[Recording]:
    seen: dict[tuple[str, str], Recording] = {}
    for recording in _recordings(500):
        seen.setdefault((recording.kind, recording.manner), recording)
    assert len(seen) == sum(len(kind.phrases) for kind in KINDS.values())
    yield from seen.values()


def test_same_bytes_on_any_number_of_workers(
    drawn: tuple[Path, PoolSummary], tmp_path: Path
) -> None:
    again = tmp_path / "pool"
    summary = draw_pool(again, num_pairs=100, image_px=64, num_sounds=NUM_SOUNDS, num_workers=2)
    assert sha256_tree(again) == sha256_tree(drawn[0])
    assert summary == drawn[1]


def test_the_pictures_are_what_they_are_without_sounds(
    drawn: tuple[Path, PoolSummary], tmp_path: Path
) -> None:
    plain = tmp_path / "pool"
    draw_pool(plain, num_pairs=100, image_px=64, num_workers=1)
    files = sorted(path.relative_to(plain) for path in plain.rglob("*") if path.is_file())
    for path in files:
        if path.name != "truth.parquet":
            assert (plain / path).read_bytes() == (drawn[0] / path).read_bytes(), path
    both, alone = (pq.read_table(pool / "truth.parquet") for pool in (drawn[0], plain))
    assert both.slice(0, len(alone)).equals(alone)
    more = {path.relative_to(drawn[0]) for path in drawn[0].rglob("*") if path.is_file()}
    assert all("sounds" in str(path) for path in more - set(files))


_DIGESTS = """
import hashlib, sys
from coembed.pairs.shop.sounds.render import encoded, render
from coembed.pairs.shop.sounds.catalogue import takes
played = iter(takes(7))
for _ in range(28):
    recording = next(played)[0].recording
    data = encoded(render(recording), recording.rate_hz, recording.ending)
    print(hashlib.sha256(data).hexdigest())
"""


def test_same_bytes_without_the_processors_vector_units() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    if not present:
        pytest.skip("numpy has one code for all processors of this kind")
    printed = [
        subprocess.run(
            [sys.executable, "-c", _DIGESTS], check=True, capture_output=True, text=True,
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": without},
        ).stdout
        for without in ("", " ".join(present))
    ]  # fmt: skip
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 28


def test_flac_is_predicted_with_whole_numbers(drawn: tuple[Path, PoolSummary]) -> None:
    # The byte after a frame's header says how its first channel is predicted (RFC 9639, 9.2.1):
    # 1xxxxx would be by coefficients that the encoder found in floating point.
    num = 0
    for path in (drawn[0] / "media" / "sounds").rglob("*.flac"):
        data = path.read_bytes()
        is_last, at = False, 4
        if data[:4] != b"fLaC":
            continue  # planted
        while not is_last:
            is_last = bool(data[at] & 0x80)
            at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        assert data[at : at + 2] == b"\xff\xf8", path
        extra = {6: 1, 7: 2}.get(data[at + 2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(
            data[at + 2] & 15, 0
        )
        assert data[at + 4 + 1 + extra + 1] >> 1 < 0b100000, path
        num += 1
    assert num > NUM_SOUNDS / 2


def test_tables(drawn: tuple[Path, PoolSummary], sounds: pd.DataFrame) -> None:
    out, summary = drawn
    names = "pair_id path caption product_id kind pitch tempo place"
    assert pq.read_table(out / SOUNDS_TABLE).column_names == names.split()
    files = {path.relative_to(out).as_posix() for path in (out / "media/sounds").rglob("*.*")}
    assert set(sounds.path) == files
    assert len(files) == summary.num_sounds == NUM_SOUNDS
    assert len(sounds) == summary.num_sound_pairs > NUM_SOUNDS
    assert sounds.index.is_unique
    assert set(sounds.kind) == set(KINDS)
    pool = read_pool(out)
    heard = pool[pool.modality == "audio"]
    assert len(heard) == len(sounds)
    assert heard[["split", "colour", "price", "composition"]].isna().all(axis=None)
    seen = pool[pool.modality == "image"]
    assert len(seen) == summary.num_pairs == 100
    assert seen[["pitch", "tempo", "place"]].isna().all(axis=None)
    assert not set(heard.product_id) & set(seen.product_id)


def test_pictures_and_sounds_share_kinds() -> None:
    shared = set(KINDS) & set(catalogue.KINDS)
    assert shared >= {"guitar", "boots", "sneakers", "watch", "teapot", "bottle", "umbrella"}
    for kind in shared:
        said = [text for texts in KINDS[kind].phrases.values() for text in texts]
        assert any(kind in text for text in said), kind


def test_takes_are_one_or_two_and_differ() -> None:
    by_product: dict[str, set[str]] = defaultdict(set)
    for row in plan_sounds(7, 200):
        by_product[row.item.take.product_id].add(row.item.take.recording.take_seed)
    assert set(map(len, by_product.values())) == {1, 2}
    pair = next(some for some in takes(7) if len(some) == 2)
    one, other = (replace(take.recording, length_s=1.5) for take in pair)
    assert not np.array_equal(render(one), render(other))


def test_good_sounds_are_whole_loud_and_of_many_lengths(
    drawn: tuple[Path, PoolSummary], sounds: pd.DataFrame, truth: pd.DataFrame
) -> None:
    faulty = set(truth[truth.fault.isin(set(SHARES) - {"exact_duplicate", "swapped_caption"})].path)
    found = {path: _measured(drawn[0] / path) for path in sorted(set(sounds.path) - faulty)}
    for path, sound in found.items():
        assert 1 <= sound.duration_s <= 6, path
        assert -56 < sound.rms_dbfs < -8, path
        assert sound.clipped_share == 0, path
    lengths = [sound.duration_s for sound in found.values()]
    assert max(lengths) > 4 > 2 > min(lengths)


def test_rates_formats_and_channels() -> None:
    recordings = _recordings(480)
    rates = Counter(recording.rate_hz for recording in recordings)
    assert set(rates) == {16_000, 22_050, 44_100}
    assert rates[16_000] > 300
    assert Counter(recording.ending for recording in recordings)["wav"] > 20
    stereo = next(recording for recording in recordings if recording.num_channels == 2)
    samples = render(replace(stereo, length_s=1.5))
    assert samples.shape == (round(1.5 * stereo.rate_hz), 2)
    assert not np.array_equal(samples[:, 0], samples[:, 1])
    data = encoded(samples, stereo.rate_hz, stereo.ending)
    again, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == stereo.rate_hz
    assert np.array_equal(again, samples)


def test_every_manner_is_played() -> None:
    for recording, rate_hz in zip(_one_of_each(), itertools.cycle((16_000, 44_100)), strict=False):
        samples = render(replace(recording, rate_hz=rate_hz, length_s=1.0, num_channels=1))
        assert samples.shape == (rate_hz, 1)
        peak = 20 * np.log10(np.abs(samples).max() / 32768)
        assert peak == pytest.approx(recording.peak_dbfs, abs=0.1), recording


def _centroid_hz(samples: Samples, rate_hz: int) -> float:
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / rate_hz)
    heard = hz > 40
    return float(np.exp((np.log(hz[heard]) * power[heard]).sum() / power[heard].sum()))


def _unrest(samples: Samples, rate_hz: int) -> tuple[float, float]:
    """How much spectra change from frame to frame, and how fast the level goes up and down."""
    num = rate_hz // 50
    frames = samples[: len(samples) // num * num].reshape(-1, num) * np.hanning(num)
    magnitudes = np.abs(np.fft.rfft(frames))
    changes = np.abs(np.diff(np.sqrt(magnitudes / magnitudes.max()), axis=0)).mean()
    level = np.sqrt(magnitudes.sum(axis=1))
    power = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)), 1024)) ** 2
    hz = np.fft.rfftfreq(1024, 0.02)
    heard = (hz > 0.15) & (hz < 25)
    return float(changes), float((hz * power)[heard].sum() / power[heard].sum())


def test_pitch_and_tempo_can_be_heard() -> None:
    for given in _one_of_each():
        plain = replace(given, rate_hz=16_000, place="outdoors", length_s=3.0, snr_db=58.0)

        def played(recording: Recording) -> Samples:
            return render(recording)[:, 0] / 32768

        if plain.pitch:
            low, high = (
                _centroid_hz(played(replace(plain, pitch=pitch)), 16_000)
                for pitch in ("low", "high")
            )
            assert high > 1.2 * low, given
        # Waves are slow in any case, and their own hiss hides it from these measures.
        if plain.tempo and plain.kind != "waves":
            slow, fast = (
                _unrest(played(replace(plain, tempo=tempo)), 16_000) for tempo in ("slow", "fast")
            )
            assert max(f / s for f, s in zip(fast, slow, strict=True)) > 1.05, given


def test_captions_say_what_is_heard() -> None:
    names = {name for tones in COLOURS.values() for name in (tone.name for tone in tones)}
    colours = re.compile(rf"\b({'|'.join(sorted(names | set(COLOURS)))})\b")
    pitches = {value: set(words) for value, words in PITCHES.items()}
    tempi = {value: {w for pair in words for w in pair} for value, words in TEMPI.items()}
    captions: dict[int, list[str]] = defaultdict(list)
    for row in plan_sounds(7, 1000):
        text, recording = row.caption, row.item.take.recording
        assert not colours.search(text), text
        assert re.fullmatch(r"[a-z][a-z,: -]*[a-z]", text), text
        assert "  " not in text and " ," not in text and ",," not in text, text
        assert not re.search(r"\ba [aeiou]", text), text
        if row.fault != "swapped_caption":
            for words, value in ((pitches, recording.pitch), (tempi, recording.tempo)):
                said = {v for v, own in words.items() if _says(text, own)}
                assert said <= {value}, (text, recording)
        captions[row.item.number].append(text)
    assert {len(texts) for texts in captions.values()} == {1, 2, 3}
    assert all(len(set(texts)) == len(texts) for texts in captions.values())
    assert len({text for texts in captions.values() for text in texts}) > 500


def _says(text: str, words: set[str]) -> bool:
    # Thunder rumbles low whatever it is; "low" alone is no word of pitch.
    return any(re.search(rf"\b{re.escape(word)}(?![\w-])", text) for word in words)


def test_faults_are_counted_and_one_a_row(
    drawn: tuple[Path, PoolSummary], truth: pd.DataFrame
) -> None:
    assert truth.pair_id.is_unique
    assert Counter(truth.fault) == counts(NUM_SOUNDS)
    every = pq.read_table(drawn[0] / "truth.parquet")["fault"].to_pylist()
    assert drawn[1].faults == Counter(every)
    assert 0.07 < sum(counts(480).values()) / 480 < 0.09


def test_silent_clipped_and_short_sounds(
    drawn: tuple[Path, PoolSummary], truth: pd.DataFrame
) -> None:
    for path in _of(truth, "silent_sound").path:
        assert _measured(drawn[0] / path).rms_dbfs < -70
    for path in _of(truth, "clipped_sound").path:
        assert _measured(drawn[0] / path).clipped_share > 0.02
    for path in _of(truth, "short_sound").path:
        assert 0.05 < _measured(drawn[0] / path).duration_s < 0.4


def test_broken_sounds_do_not_decode(drawn: tuple[Path, PoolSummary], truth: pd.DataFrame) -> None:
    for fault in ("truncated", "corrupt"):
        for path in _of(truth, fault).path:
            with pytest.raises(Undecodable):
                _measured(drawn[0] / path)


def test_copies_and_swaps(
    drawn: tuple[Path, PoolSummary], sounds: pd.DataFrame, truth: pd.DataFrame
) -> None:
    for row in _of(truth, "exact_duplicate").itertuples():
        partner = sounds.loc[row.partner]
        assert row.path != partner.path
        assert sounds.loc[row.pair_id].product_id == partner.product_id
        assert (drawn[0] / row.path).read_bytes() == (drawn[0] / partner.path).read_bytes()
    for row in _of(truth, "swapped_caption").itertuples():
        mine, partner = sounds.loc[row.pair_id], sounds.loc[row.partner]
        assert mine.kind != partner.kind
        assert row.detail == partner.caption


def test_another_seed_is_another_set() -> None:
    digests = {
        hashlib.sha256(repr([r.caption for r in plan_sounds(seed, 100)]).encode()).digest()
        for seed in (7, 8)
    }
    assert len(digests) == 2


def test_too_few_sounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_sounds is 5; expected none, or 60 or more"):
        draw_pool(tmp_path / "pool", num_sounds=5)

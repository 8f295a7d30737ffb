"""Mismatched pairs: found in a pool that can be learnt, left alone in one that cannot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pool_views import SmallPool
from pydantic import ValidationError

from coembed.curation.filters.mismatched_pair import MismatchedPair, Settings
from coembed.curation.matching.mismatch import Limits, find_limits
from coembed.curation.matching.pair_scores import (
    References,
    fit_scale,
    score_mispaired,
    score_pairs,
)
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import load_encoder
from coembed.models.settings import ModelSettings

COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (230, 210, 50),
    "black": (25, 25, 25),
    "white": (240, 240, 240),
}
# Grounds have words of their own: the towers know words, not their order.
GROUNDS = {
    "red": "bricks",
    "green": "grass",
    "blue": "sky",
    "yellow": "sand",
    "black": "night",
    "white": "snow",
}
NUM_PICTURES, NUM_SWAPPED = 600, 24
QUICK = {"image_px": 16, "min_steps": 130, "epochs": 1, "min_pairs": 200, "batch_size": 64}


def _draw_pool(root: Path, *, num: int = NUM_PICTURES) -> list[tuple[str, str]]:
    """Discs on grounds of other colours, each with a caption that names both."""
    rng = np.random.default_rng(5)
    (root / "pool").mkdir(exist_ok=True)
    rows = []
    for number in range(num):
        ground, disc = rng.choice(list(COLOURS), 2, replace=False).tolist()
        image = Image.new("RGB", (24, 24), COLOURS[ground])
        x, y, r = (int(rng.integers(*span)) for span in ((9, 15), (9, 15), (5, 8)))
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[disc])
        noise = rng.normal(0, 9, (24, 24, 3))
        noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "pool" / f"{number}.png")
        said = ("a {} disc on {}", "disc in {}, behind it {}", "photo: {} disc before {}")
        rows.append((f"{number}.png", said[number % 3].format(disc, GROUNDS[ground])))
    return rows


def _swap(rows: list[tuple[str, str]], num: int) -> tuple[list[tuple[str, str]], set[str]]:
    """Exchange captions of pairs that share neither colour."""
    rows, swapped = list(rows), set[str]()
    known = {*GROUNDS, *GROUNDS.values()}
    words = [{word.strip(",:") for word in caption.split()} & known for _, caption in rows]
    for one in range(len(rows)):
        for other in range(one + 1, len(rows)):
            if len(swapped) >= num:
                return rows, swapped
            free = swapped.isdisjoint((rows[one][0], rows[other][0]))
            if free and not words[one] & words[other]:
                (a, first), (b, second) = rows[one], rows[other]
                rows[one], rows[other] = (a, second), (b, first)
                swapped |= {a, b}
    raise AssertionError("too few to swap")


def _judge(
    pool: SmallPool, settings: Settings
) -> tuple[dict[tuple[str, str], dict[str, object]], MismatchedPair]:
    chosen = settings.build()
    assert isinstance(chosen, MismatchedPair)
    paths = {
        row["row"]: (row["path"], row["caption"])
        for batch in pool.query("SELECT row, path, caption FROM kept")
        for row in batch.to_pylist()
    }
    tables = list(chosen.check_pool(pool))
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    return {paths[row.pop("row")]: row for row in rows}, chosen


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    root = tmp_path_factory.mktemp("discs")
    return root, _draw_pool(root)


def test_swapped_captions_are_found_and_a_killed_run_ends_alike(
    drawn: tuple[Path, list[tuple[str, str]]],
) -> None:
    root, clean = drawn
    rows, swapped = _swap(clean, NUM_SWAPPED)
    settings = Settings.model_validate({"cross_fit": QUICK})
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found, chosen = _judge(SmallPool(root, rows), settings)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)

    dropped = {path for (path, _), row in found.items() if row["reason"]}
    assert len(dropped & swapped) / len(swapped) >= 0.8, chosen.notes
    assert len(dropped & swapped) / len(dropped) >= 0.9
    assert all(row["reason"] in (None, "mismatched_pair") for row in found.values())
    details = [str(row["detail"]) for row in found.values() if row["reason"]]
    form = re.compile(
        r"fits (?:< 0\.01|[\d.]+) × as well as the average picture, [\d.]+ × needed "
        r"\(score (-?[\d.]+) < (-?[\d.]+)\)"
    )
    for detail in details:
        told = form.fullmatch(detail)
        assert told and float(told[1]) <= float(told[2]), detail
    doubts = {path: row["mismatched_pair_doubt"] for (path, _), row in found.items()}
    assert all(doubts[path] == 1 for path in dropped)
    assert min(doubts.values()) >= 0 and np.median(list(doubts.values())) < 0.2  # type: ignore
    assert "look mismatched" in chosen.notes[0]

    # Killed after the first fold, with the rows of the pool in another order.
    (scores,) = (root / "lasting").rglob("scores.npz")
    scores.unlink()
    kept = {path: path.stat().st_mtime_ns for path in scores.parent.glob("*.safetensors")}
    (scores.parent / "fold-1.safetensors").write_bytes(b"torn")
    (scores.parent / "fold-2.safetensors").unlink()
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    again, judged_again = _judge(SmallPool(root, [rows[place] for place in order]), settings)
    assert again == found
    assert judged_again.notes == chosen.notes
    first = scores.parent / "fold-0.safetensors"
    assert first.stat().st_mtime_ns == kept[first]

    # Unchanged: no picture is read.
    unchanged = SmallPool(root, rows)
    start = unchanged.num_read
    same, unchanged_judge = _judge(unchanged, settings)
    assert same == found and unchanged_judge.notes == chosen.notes
    assert unchanged.num_read == start

    # Another pool is another matter, and the old one's leftovers go.
    _judge(SmallPool(root, rows[:-1]), settings)
    assert not scores.exists()


def test_what_cannot_be_learnt_is_left_alone(
    tmp_path: Path, drawn: tuple[Path, list[tuple[str, str]]]
) -> None:
    root, clean = drawn
    (tmp_path / "pool").symlink_to(root / "pool")
    captions = np.random.default_rng(1).permutation([caption for _, caption in clean]).tolist()
    rows = [(path, caption) for (path, _), caption in zip(clean, captions, strict=True)][:300]
    cross_fit = QUICK | {"min_steps": 40}
    found, chosen = _judge(
        SmallPool(tmp_path, rows), Settings.model_validate({"cross_fit": cross_fit})
    )
    assert len(found) == 300
    assert not any(row["reason"] for row in found.values())
    assert "no safe guide" in chosen.notes[0]


def test_only_part_is_learnt_from_and_all_is_scored(
    tmp_path: Path, drawn: tuple[Path, list[tuple[str, str]]]
) -> None:
    root, clean = drawn
    (tmp_path / "pool").symlink_to(root / "pool")
    (root / "pool" / "broken.png").write_bytes(b"no picture")
    rows = [*clean[:300], ("0.png", "zyx"), ("broken.png", "a red disc on sky")]
    settings = Settings.model_validate(
        {"cross_fit": QUICK | {"min_steps": 20, "max_train_pairs": 200, "min_pairs": 100}}
    )
    found, _ = _judge(SmallPool(tmp_path, rows), settings)
    unknown = {pair for pair, row in found.items() if row["match_score"] is None}
    assert unknown == {("0.png", "zyx"), ("broken.png", "a red disc on sky")}
    assert all(found[pair]["reason"] is None for pair in unknown)


def test_few_pairs_and_audio_pass(tmp_path: Path) -> None:
    rows = _draw_pool(tmp_path, num=8)
    (tmp_path / "pool" / "a.wav").write_bytes(b"RIFF")
    found, chosen = _judge(SmallPool(tmp_path, [*rows, ("a.wav", "a tone")]), Settings())
    assert not found
    assert "8 pairs of images are too few" in chosen.notes[0]


def test_a_model_that_knows_nothing_drops_nothing(
    tmp_path: Path, drawn: tuple[Path, list[tuple[str, str]]]
) -> None:
    root, clean = drawn
    (tmp_path / "pool").symlink_to(root / "pool")
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1,
        },
    }  # fmt: skip
    joint, spec = build_model(ModelSettings(architecture=architecture), seed=1)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", joint, spec, {})
    settings = Settings(scorer="model", model="model")
    found, chosen = _judge(SmallPool(tmp_path, clean[:200]), settings)
    fingerprint = load_encoder(tmp_path / "model").fingerprint
    assert fingerprint in chosen.notes[0]
    assert not any(row["reason"] for row in found.values())
    assert "no safe guide" in chosen.notes[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"scorer": "model"},
        {"model": "m"},
        {"scorer": "model", "model": "m", "fingerprint": "short"},
        {"cross_fit": {"num_folds": 1}},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(settings)


Drawn = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]


def _draw_scores(*, num: int, share: float, middle: float, seed: int) -> Drawn:
    """Scores of a pool of which `share` is mismatched, and of mispaired ones."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(num) < share
    scores = np.where(wrong, rng.normal(-7, 4, num), rng.normal(middle, 1, num))
    return scores, wrong, rng.normal(-7, 4, 20_000)


def _limits(scores: NDArray[np.float64], mispaired: NDArray[np.float64]) -> Limits:
    return find_limits(
        scores,
        np.zeros(len(scores), np.int64),
        mispaired,
        np.zeros(len(mispaired), np.int64),
        num_clusters=1,
        min_precision=0.9,
        num_spreads=2.75,
        min_separation=0.95,
        min_power=0.6,
    )


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_the_share_of_mismatched_pairs_is_estimated(share: float) -> None:
    scores, wrong, mispaired = _draw_scores(num=6000, share=share, middle=4.5, seed=2)
    limits = _limits(scores, mispaired)
    below = scores < limits.limits[0]
    assert limits.reliable
    assert abs(limits.share - share) < 0.25 * share
    assert wrong[below].mean() >= 0.9
    assert below[wrong].mean() >= 0.8


def test_a_clean_pool_loses_next_to_nothing() -> None:
    scores, _, mispaired = _draw_scores(num=6000, share=0, middle=4.5, seed=3)
    limits = _limits(scores, mispaired)
    assert (scores < limits.limits[0]).sum() <= 6


def test_overlapping_scores_are_no_guide() -> None:
    scores, _, mispaired = _draw_scores(num=600, share=0.05, middle=-5, seed=4)
    assert not _limits(scores, mispaired).reliable


def test_a_hard_cluster_keeps_its_pairs() -> None:
    rng = np.random.default_rng(6)
    easy, hard = rng.normal(6, 0.5, 4000), rng.normal(0, 2.5, 1000)
    wrong = rng.normal(-9, 3, 50)
    scores = np.concatenate([easy, hard, wrong])
    clusters = np.repeat([0, 1, 0], [4000, 1000, 50])
    mispaired = rng.normal(-9, 3, 20_000)
    limits = find_limits(
        scores, clusters, mispaired, np.repeat([0, 1], 10_000), num_clusters=2,
        min_precision=0.9, num_spreads=2.75, min_separation=0.95, min_power=0.6,
    )  # fmt: skip
    assert limits.limits[1] < limits.limits[0] - 3
    assert (hard < limits.limits[1]).mean() <= 0.01
    assert (wrong < limits.limits[0]).mean() >= 0.8


def _references(seed: int, num: int = 12) -> References:
    generator = torch.Generator().manual_seed(seed)
    pictures, captions = torch.randn((2, num, 5), generator=generator)
    return References(pictures, captions, torch.arange(num) // 2)


def test_scores_match_the_formula() -> None:
    references = _references(0)
    pictures, captions = references.pictures.double(), references.captions.double()
    items = references.items.tolist()
    found = score_pairs(references.pictures, references.captions, references.items, references)
    for i in range(len(items)):
        own = float(pictures[i] @ captions[i])
        others = [j for j in range(len(items)) if items[j] != items[i]]
        by_picture = np.mean(
            [np.exp(own), *(np.exp(float(pictures[i] @ captions[j])) for j in others)]
        )
        by_caption = np.mean(
            [np.exp(own), *(np.exp(float(pictures[j] @ captions[i])) for j in others)]
        )
        assert found[i] == pytest.approx(
            own - (np.log(by_picture) + np.log(by_caption)) / 2, abs=1e-4
        )


def test_mispaired_scores_are_never_of_the_same_item() -> None:
    references = _references(1)
    matched = References(references.captions, references.captions, torch.arange(12))
    scores, places = score_mispaired(matched, seed=3)
    assert len(scores) == len(places) <= 32 * 11
    own = score_pairs(matched.pictures, matched.captions, matched.items, matched)
    assert np.median(scores) < np.median(own)
    again, _ = score_mispaired(matched, seed=3)
    assert np.array_equal(again, scores)


def test_the_scale_suits_the_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = torch.nn.functional.normalize(torch.randn((200, 16), generator=generator), dim=1)
    noise = torch.randn((200, 16), generator=generator)
    sharp = torch.nn.functional.normalize(captions + 0.1 * noise, dim=1)
    blunt = torch.nn.functional.normalize(captions + 0.6 * noise, dim=1)
    items = torch.arange(200)
    assert fit_scale(References(sharp, captions, items)) > fit_scale(
        References(blunt, captions, items)
    )

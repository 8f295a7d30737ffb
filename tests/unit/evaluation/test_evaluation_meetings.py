"""Which items of two modalities belong together, and retrieval between them, by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from coembed.errors import DataError
from coembed.evaluation.calibration import Logits
from coembed.evaluation.evaluation_set import EvaluatedItem, EvaluationSet
from coembed.evaluation.measure import Measurements, measure
from coembed.evaluation.meetings import Meetings, meet, meeting_keys
from coembed.evaluation.metrics import metrics_tree
from coembed.evaluation.parts import Crossing
from coembed.evaluation.retrieval import Positives, ranks
from coembed.evaluation.settings import EvaluateSettings
from coembed.types import Modality

AXES = np.eye(4, dtype=np.float32)


def item(name: str, modality: Modality, *captions: str, **attributes: object) -> EvaluatedItem:
    return EvaluatedItem(name, modality, name, captions, attributes)


def as_lists(meetings: Meetings) -> list[list[int]]:
    block = meetings.block(0, len(meetings.queries))
    bounds = zip(block.starts[:-1], block.starts[1:], strict=True)
    return [block.candidates[start:stop].tolist() for start, stop in bounds]


# Two kettles, a clock and a mug; a whistle, a tick, and a boiling kettle.
ITEMS = [
    item("kettle-a", "image", "a Kettle", kind="kettle", colour="red"),
    item("kettle-b", "image", "my old thing", kind="kettle"),
    item("clock", "image", "a clock ticks", kind="clock"),
    item("mug", "image", "a mug", kind="mug"),
    item("whistle", "audio", "it whistles", kind="kettle"),
    item("tick", "audio", "A  clock ticks", "tick", kind="watch", colour="red"),
    item("boiling", "audio", "a kettle", kind="steam"),
]
IMAGES = np.asarray([AXES[0], AXES[0], AXES[1], AXES[2]])
SOUNDS = np.asarray(
    [
        [0.6, 0.8, 0, 0],  # the whistle: nearer to the clock than to the kettles
        [0, 0.6, 0.8, 0],  # the tick: nearer to the mug than to the clock
        [0.8, 0.0, 0.6, 0],  # boiling: nearest to the kettles
    ],
    dtype=np.float32,
)


def encode_texts(texts: Sequence[str]) -> np.ndarray:
    return np.stack([AXES[len(text) % 4] for text in texts])


def measured(
    items: Sequence[EvaluatedItem] = ITEMS,
    embedded: dict[Modality, np.ndarray] | None = None,
    **settings: object,
) -> tuple[Measurements, dict[str, Crossing]]:
    asked = EvaluateSettings.model_validate({"ks": [1, 2], **settings})
    found = measure(
        EvaluationSet(items),
        embedded or {"image": IMAGES, "audio": SOUNDS},
        encode_texts,
        asked,
        logits=Logits(20.0),
        corrupted={},
    )
    return found, {crossing.task: crossing for crossing in found.crossings}


def test_a_caption_or_a_value_in_common_is_a_meeting() -> None:
    queries = [[("", "a"), ("kind", "x")], [("", "b")], [("kind", "y")], [("colour", "x")]]
    candidates = [[("", "a")], [("kind", "x"), ("", "a"), ("", "a")], [("kind", "y"), ("", "y")]]
    found = meet(queries, candidates)
    assert found.queries.tolist() == [0, 2]
    assert found.num_not_asked == 2
    assert as_lists(found) == [[0, 1], [2]]
    assert found.counts.tolist() == [2, 1]
    assert as_lists(meet(candidates, queries)) == [[0], [0], [2]]


def test_captions_meet_by_their_words_and_columns_by_their_values() -> None:
    data = EvaluationSet(ITEMS[:2])
    labels = {"colour": data.labels("colour", setting="s")}
    assert meeting_keys(data, labels) == [
        [("", "a kettle"), ("colour", "red")],
        [("", "my old thing")],
    ]


def test_any_block_is_a_part_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    keys = [[("k", str(key)) for key in rng.integers(0, 9, size=2)] for _ in range(40)]
    others = [[("k", str(key)) for key in rng.integers(0, 12, size=3)] for _ in range(30)]
    found = meet(keys, others)
    expected = [
        [number for number, other in enumerate(others) if set(other) & set(keys[query])]
        for query in found.queries
    ]
    assert as_lists(found) == expected
    for start, stop in ((0, 5), (5, 6), (7, len(expected))):
        block, plain = found.block(start, stop), Positives.from_lists(expected[start:stop])
        assert block.starts.tolist() == plain.starts.tolist()
        assert block.candidates.tolist() == plain.candidates.tolist()
    queries = rng.normal(size=(len(expected), 8)).astype(np.float32)
    candidates = rng.normal(size=(30, 8)).astype(np.float32)
    in_blocks = ranks(queries, candidates, found, query_block=7, candidate_block=11)
    assert in_blocks.tolist() == ranks(queries, candidates, Positives.from_lists(expected)).tolist()


def test_shared_captions_alone_by_hand() -> None:
    _, crossings = measured()
    asked = crossings["image_to_audio"]
    assert asked.meetings.queries.tolist() == [0, 2]  # kettle-a and the clock
    assert asked.meetings.num_not_asked == 2
    assert asked.retrieval is not None
    # The kettle finds boiling (0.8) first; the clock finds the whistle (0.8) before the tick (0.6).
    assert asked.retrieval.ranks.tolist() == [1, 2]
    back = crossings["audio_to_image"]
    assert back.meetings.queries.tolist() == [1, 2]
    assert back.retrieval is not None
    # The tick finds the mug before the clock. For boiling the two kettles tie: 1 + 1 / 2.
    assert back.retrieval.ranks.tolist() == [2, 1.5]


def test_a_column_adds_meetings_by_hand() -> None:
    _, crossings = measured(meets_on="kind")
    asked = crossings["image_to_audio"]
    assert as_lists(asked.meetings) == [[0, 2], [0], [1]]  # the second kettle has the whistle
    assert asked.retrieval is not None
    assert asked.retrieval.ranks.tolist() == [1, 2, 2]
    back = crossings["audio_to_image"]
    assert as_lists(back.meetings) == [[0, 1], [2], [0]]
    assert back.retrieval is not None
    assert back.retrieval.ranks.tolist() == [2, 2, 1.5]


def test_one_of_several_columns_is_enough() -> None:
    _, crossings = measured(meets_on=["kind", "colour"])
    assert as_lists(crossings["image_to_audio"].meetings) == [[0, 1, 2], [0], [1]]


def test_metrics_of_the_directions() -> None:
    settings = EvaluateSettings(ks=(1, 2), meets_on="kind")
    found, _ = measured(meets_on="kind")
    metrics = metrics_tree(found, settings)
    assert metrics["num_items"] == 7
    assert (metrics["num_images"], metrics["num_sounds"], metrics["num_captions"]) == (4, 3, 8)
    assert list(metrics["retrieval"]) == [
        "text_to_image", "image_to_text", "text_to_audio", "audio_to_text",
        "image_to_audio", "audio_to_image",
    ]  # fmt: skip
    assert metrics["retrieval"]["image_to_audio"] == {
        "num_queries": 3,
        "num_not_asked": 1,
        "num_candidates": 3,
        "recall_at_1": round(1 / 3, 6),
        "recall_at_2": 1.0,
        # The kettle finds boiling and the whistle first; the others find theirs at place 2.
        "map_at_10": round((1 + 1 / 2 + 1 / 2) / 3, 6),
        "mrr": round(2 / 3, 6),
        "median_rank": 2.0,
        # By chance: 2, 1 and 1 positives among 3 candidates.
        "chance_recall_at_1": round((2 + 1 + 1) / 9, 6),
        "chance_recall_at_2": round((3 + 2 + 2) / 9, 6),
        # Two positives at 1 and 2, at 1 and 3 or at 2 and 3; one positive at any place.
        "chance_map_at_10": round(
            ((1 + (1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 3 + 2 * (1 + 1 / 2 + 1 / 3) / 3) / 3, 6
        ),
        "chance_mrr": round(((2 / 3 + 1 / 3 / 2) + 2 * (1 + 1 / 2 + 1 / 3) / 3) / 3, 6),
    }
    assert metrics["retrieval"]["audio_to_text"]["num_candidates"] == 4  # the sounds' own captions
    assert metrics["retrieval"]["text_to_image"]["num_candidates"] == 4


def test_where_nothing_meets_the_direction_is_left_out() -> None:
    strangers = [*ITEMS[:4], *(item(str(i), "audio", f"sound {i}", kind="?") for i in range(3))]
    settings = EvaluateSettings(ks=(1, 2), meets_on="kind")
    found, crossings = measured(strangers, meets_on="kind")
    assert [crossing.retrieval for crossing in crossings.values()] == [None, None]
    assert "image_to_audio" not in metrics_tree(found, settings)["retrieval"]


def test_slices_of_a_direction_are_those_of_its_queries() -> None:
    found, _ = measured(meets_on="kind", slices=["kind"])
    rows = {
        (row.value, row.score, row.num_queries)
        for row in found.slices
        if row.task == "image_to_audio" and row.metric == "recall_at_1"
    }
    assert rows == {("kettle", 0.5, 2), ("clock", 0.0, 1)}


def test_labels_are_those_of_the_asked_modality() -> None:
    found, _ = measured(
        zero_shot=[{"column": "kind"}, {"column": "kind", "modality": "audio"}],
        attribute_queries=[{"template": "{colour}", "modality": "audio", "ks": [1]}],
    )
    assert found.zero_shot["kind"].result.classes == ("clock", "kettle", "mug")
    assert found.zero_shot["kind_audio"].result.classes == ("kettle", "steam", "watch")
    (query,) = found.attribute_queries["colour_audio"].queries
    assert query.right.tolist() == [1]
    with pytest.raises(DataError, match="which no evaluated sound has; columns there are: colour"):
        measured(zero_shot=[{"column": "price", "modality": "audio"}])
    with pytest.raises(DataError, match="'kind_audio' of sounds, and the evaluated split has imag"):
        measured(ITEMS[:4], {"image": IMAGES}, zero_shot=[{"column": "kind", "modality": "audio"}])
    with pytest.raises(DataError, match="meets_on names the column 'sort', which no evaluated"):
        measured(meets_on="sort")


def test_what_the_model_has_no_tower_for_is_left_out_and_said() -> None:
    tasks = [{"column": "kind"}, {"column": "kind", "modality": "audio"}]
    whole, _ = measured(meets_on="kind", zero_shot=tasks)
    found, crossings = measured(
        embedded={"image": IMAGES}, meets_on="kind", zero_shot=tasks, slices=["colour"]
    )
    assert found.left_out == {"audio": 3}
    assert found.num_items == 4
    assert not crossings
    assert list(found.zero_shot) == ["kind"]
    assert found.data.content_hash() == whole.data.content_hash()
    # Without a tower for images, what is asked of images by default is not asked of sounds.
    deaf, _ = measured(embedded={"audio": SOUNDS}, zero_shot=tasks)
    assert list(deaf.zero_shot) == ["kind_audio"]


def test_metrics_of_images_do_not_change_when_sounds_are_there() -> None:
    settings = EvaluateSettings.model_validate(
        {"ks": [1, 2], "zero_shot": [{"column": "kind"}], "slices_in_metrics": ["kind"]}
    )
    asked = settings.model_dump(exclude={"ks"})
    pictures, _ = measured(ITEMS[:4], {"image": IMAGES}, **asked)
    both, _ = measured(**asked)
    alone, mixed = metrics_tree(pictures, settings), metrics_tree(both, settings)
    assert set(alone) == {
        "num_items", "num_captions", "retrieval", "zero_shot", "geometry", "calibration", "slices",
    }  # fmt: skip
    for task in ("text_to_image", "image_to_text"):
        assert mixed["retrieval"][task] == alone["retrieval"][task]
        assert mixed["slices"]["kind"]["mug"][task] == alone["slices"]["kind"]["mug"][task]
    assert mixed["zero_shot"] == alone["zero_shot"]
    assert mixed["geometry"]["image"] == alone["geometry"]["image"]
    for task, figures in alone["calibration"].items():
        assert mixed["calibration"][task] == figures


def test_items_of_a_modality_stand_together() -> None:
    data = EvaluationSet(ITEMS)
    assert data.first_items == {"image": 0, "audio": 4}
    assert [one.item_id for one in data.of_modality("audio").items] == [
        "whistle",
        "tick",
        "boiling",
    ]
    with pytest.raises(ValueError, match="item 2 is of modality image, behind another's"):
        EvaluationSet([ITEMS[0], ITEMS[4], ITEMS[1]]).first_items  # noqa: B018


def test_many_positives_give_the_ranks_of_a_full_matrix() -> None:
    rng = np.random.default_rng(4)
    queries, candidates = (rng.normal(size=(1500, 6)).astype(np.float32) for _ in range(2))
    keys = [[("kind", str(place % 3))] for place in range(1500)]
    found = meet(keys, keys)
    assert found.counts.sum() == 3 * 500 * 500  # enough for the dense way, block by block
    right = np.arange(1500)[:, None] % 3 == np.arange(1500) % 3
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    expected = 1 + ((scores > best) & ~right).sum(axis=1)
    for block in (1500, 700):
        assert ranks(queries, candidates, found, query_block=block).tolist() == expected.tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_however_many_items_meet() -> None:
    # In a process of its own: the peak of this one may be higher already.
    code = """
import numpy as np
from coembed.evaluation.meetings import meet
from coembed.evaluation.retrieval import ranks

def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

num = 6000
vectors = np.random.default_rng(2).normal(size=(num, 8)).astype(np.float32)
few = meet([[("kind", "x")]] * 64, [[("kind", "x")]] * 64)
ranks(vectors[:64], vectors[:64], few)
before = peak_mib()
all_alike = meet([[("kind", "x")]] * num, [[("kind", "x")]] * num)
assert all_alike.counts.sum() == num * num  # 275 MiB of candidates, were they all at hand
assert (ranks(vectors, vectors, all_alike) == 1).all()
print(peak_mib() - before)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 180

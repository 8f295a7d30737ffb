"""Searching pictures and sounds by words, pictures and sounds, in one collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_pairs import encode_sound, sounds
from PIL import Image
from release_case import World, make_world

from coembed.errors import DataError, UserError
from coembed.index.opening import open_index
from coembed.index.release import read_release
from coembed.models.encoder import load_encoder
from coembed.pairs.shards import read_samples
from coembed.stages import search
from coembed.stages.search import MediaQuery
from coembed.types import Sample


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    made = make_world(
        tmp_path_factory.mktemp("modalities") / "world", store=empty_store, num_sounds=8
    )
    made.make_model("a", 1)
    made.release("a")
    return made


@pytest.fixture(scope="module")
def items(world: World) -> dict[str, Sample]:
    return {
        sample.item_id: sample
        for split in ("train", "val")
        for sample in read_samples(world.path("pairs"), split)
    }


def find(world: World, query: str | MediaQuery, **changes: Any) -> search.SearchResult:
    return search.run(
        world.cfg,
        services=world.services,
        pool=world.path("data"),
        models=world.path("runs") / "models",
        query=query,
        **changes,
    )


def first(items: dict[str, Sample], modality: str) -> Sample:
    return next(sample for sample in items.values() if sample.modality == modality)


def test_one_collection_holds_both_and_names_neither(world: World) -> None:
    with open_index(world.services, world.cfg.index) as index:
        (name,) = index.collections()
        release = read_release(index.describe(name))
        assert index.describe(name).vector_name == f"item@{release.fingerprint[:8]}"
        assert index.count(name) == 24 + 16 + 8 + 8


def test_an_item_finds_itself_first_by_its_own_tower(
    world: World, items: dict[str, Sample]
) -> None:
    for modality in ("image", "audio"):
        item = first(items, modality)
        query = MediaQuery(modality, world.path("data") / item.path)  # type: ignore[arg-type]
        found = find(world, query, limit=3)
        assert found.hits[0].item_id == item.item_id
        assert found.hits[0].score == pytest.approx(1, abs=1e-4)
        assert found.query == Path(item.path).name
        assert json.loads(json.dumps(found.to_json()))["hits"][0]["modality"] == modality


@pytest.mark.parametrize("query", ["a low beep", "a red disc"])
@pytest.mark.parametrize("modality", [None, "image", "audio"])
def test_hits_are_those_of_a_full_scan(
    world: World, items: dict[str, Sample], query: str, modality: Any
) -> None:
    found = find(world, query, modality=modality, limit=10)
    encoder = load_encoder(world.path("a"))
    vector = encoder.encode_texts([query])[0]
    chosen = [one for one in items.values() if modality in (None, one.modality)]
    scores = np.asarray([encoder.encode(one.modality, [one.media])[0] @ vector for one in chosen])
    best = np.sort(scores)[::-1][:10]
    assert [hit.score for hit in found.hits] == pytest.approx(best, abs=1e-4)
    assert {hit.payload["modality"] for hit in found.hits} <= {one.modality for one in chosen}
    if modality is not None:
        filters = [f"modality={modality}"]
        assert find(world, query, filters=filters, limit=10).hits == found.hits


def test_a_restriction_stands_beside_filters(world: World) -> None:
    found = find(world, "beep", modality="audio", filters=["pitch=low"], limit=50)
    assert found.hits
    assert {hit.payload["modality"] for hit in found.hits} == {"audio"}
    assert {hit.payload["attributes"]["pitch"] for hit in found.hits} == {"low"}  # type: ignore[index]
    assert find(world, "beep", modality="image", filters=["pitch=low"]).hits == ()


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_sounds_of_every_format_search(world: World, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"query.{extension}"
    path.write_bytes(sounds(1, seed=20, extension=extension)[0].media)
    assert len(find(world, MediaQuery("audio", path), limit=5).hits) == 5


def test_what_is_no_sound_is_one_clear_error(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(encode_sound(np.zeros(4000))[:-700])
    with pytest.raises(DataError, match=r"the sound .*broken.wav cannot be searched with: not a r"):
        find(world, MediaQuery("audio", broken))
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (20, 20)).save(picture)
    with pytest.raises(
        DataError, match=r"picture.jpg cannot be(.|\n)*name a WAV, FLAC, OGG or MP3"
    ):
        find(world, MediaQuery("audio", picture))
    with pytest.raises(DataError, match=r"the picture .*broken.wav cannot be(.|\n)*JPEG, PNG or W"):
        find(world, MediaQuery("image", broken))
    with pytest.raises(DataError, match=r"the sound .* cannot be read: No such file"):
        find(world, MediaQuery("audio", tmp_path / "none.wav"))
    with pytest.raises(UserError, match="empty"):
        find(world, "  ", modality="audio")


def test_hits_of_both_kinds_are_drawn(world: World, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    found = find(world, "a low beep", modality="audio", limit=10, sheet=sheet)
    drawn = np.asarray(Image.open(sheet).convert("RGB"))
    # The frame's ground is all that an empty cell would show.
    assert (drawn == (0xF2, 0xF2, 0xF4)).all(axis=2).mean() < 0.01
    assert len(found.hits) == 10
    again = tmp_path / "again.png"
    find(world, "a low beep", modality="audio", limit=10, sheet=again)
    assert again.read_bytes() == sheet.read_bytes()

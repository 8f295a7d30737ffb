"""Every row of the pool's sounds, before anything is played."""

from __future__ import annotations

from coembed.pairs.shop.seeds import stream
from coembed.pairs.shop.sounds import captions, catalogue, faults
from coembed.pairs.shop.sounds.faults import SoundItem, SoundRow

# Below this the faults cannot all be planted with room to spare.
MIN_SOUNDS = 60


def plan_sounds(seed: int, num_sounds: int) -> list[SoundRow]:
    """The pairs of `num_sounds` sounds in their final order: one to three captions each."""
    num_played = num_sounds - faults.counts(num_sounds)["exact_duplicate"]
    rng = stream(seed, "sound captions")
    rows: list[SoundRow] = []
    num = 0
    for takes in catalogue.takes(seed):
        for take in takes[: num_played - num]:
            item = SoundItem(take)
            texts = captions.write(rng, take.recording, rng.choice((1, 1, 1, 2, 3)))
            rows += [SoundRow(item, text, place) for place, text in enumerate(texts)]
        num += len(takes)
        if num >= num_played:
            break
    rows = faults.plant(seed, rows, num_sounds)

    # Numbers and order tell nothing about what was planted.
    items = list({id(row.item): row.item for row in rows}.values())
    stream(seed, "sound numbers").shuffle(items)
    for number, item in enumerate(items):
        item.number = number
    stream(seed, "sound order").shuffle(rows)
    return rows

"""Captions of recordings: what is heard, in some words or others, with things left unsaid."""

from __future__ import annotations

import random
import re

from coembed.pairs.shop.catalogue import KINDS as PRODUCT_KINDS
from coembed.pairs.shop.sounds.kinds import KINDS
from coembed.pairs.shop.sounds.recording import Recording

# No word of a caption is a colour of the shop: a sound has none, and to name one beside a kind that
# must stay unseen in it would teach it.
PITCHES: dict[str, tuple[str, ...]] = {
    "low": ("low-pitched", "deep"),
    "high": ("high-pitched", "high-pitched", "high"),
}
# Adjective and adverb.
TEMPI: dict[str, tuple[tuple[str, str], ...]] = {
    "slow": (("slow", "slowly"), ("unhurried", "at a slow pace")),
    "fast": (("fast", "fast"), ("quick", "quickly"), ("rapid", "rapidly")),
}
_PLACES: dict[str, tuple[str, ...]] = {
    "outdoors": ("outdoors", "in the open air"),
    "room": ("in a room", "indoors"),
    "hall": ("in a large hall", "with a long echo"),
}


# Pictures and sounds meet through what captions of both say alike: some sounds of what the shop
# sells, too, are called by its name and no more.
_PLAIN_SHARE = 0.5
_PLAIN = ("{thing}", "{thing}", "the sound of {thing}")


def write(rng: random.Random, recording: Recording, num: int) -> list[str]:
    """`num` different captions of one recording."""
    captions: list[str] = []
    while len(captions) < num:
        caption = _caption(rng, recording)
        if caption not in captions:
            captions.append(caption)
    return captions


def _caption(rng: random.Random, recording: Recording) -> str:
    if recording.kind in PRODUCT_KINDS and rng.random() < _PLAIN_SHARE:
        return rng.choice(_PLAIN).format(thing=_thing(recording.kind))
    phrase = rng.choice(KINDS[recording.kind].phrases[recording.manner])
    low = slow = slowly = place = ""
    if recording.pitch and rng.random() < 0.7:
        low = rng.choice(PITCHES[recording.pitch])
    if recording.tempo and rng.random() < 0.7:
        slow, slowly = rng.choice(TEMPI[recording.tempo])
    if rng.random() < 0.25:
        place = rng.choice(_PLACES[recording.place])
    said = re.sub(r" +", " ", phrase.format(low=low, slow=slow, slowly=slowly)).strip(" ,")
    text = f"{re.sub(' (?=,)', '', said)} {place}".strip()
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _thing(kind: str) -> str:
    """A kind of product with its article; boots and sneakers come in pairs."""
    if kind.endswith("s"):
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"

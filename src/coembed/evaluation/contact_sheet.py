"""The contact sheet: some searches with the items that they find, right and wrong ones marked.

Which searches are shown is a function of their words alone, so that the same evaluation gives the
same sheet, and two models' sheets can be laid side by side.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from coembed.evaluation.parts import AttributeSearch, Crossing, Part
from coembed.evaluation.retrieval import Embeddings, Floats, Ints
from coembed.evaluation.settings import ContactSheetSettings
from coembed.evaluation.sound_picture import sound_picture
from coembed.files import sha256_bytes
from coembed.modalities.image import decode_image
from coembed.types import Sample

_JPEG_QUALITY = 80
# By the file ending that a shard gives a sound. Browsers play these.
_SOUND_TYPES = {
    "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "oga": "audio/ogg",
    "opus": "audio/ogg", "mp3": "audio/mpeg",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShownItem:
    """An item as data URIs: its picture, and for a sound what is played, None if it is too long."""

    picture: str
    sound: str | None = None
    is_sound: bool = False


@dataclass(frozen=True, slots=True)
class ShownHit:
    """One hit. `item` is its number in the evaluation set; `parts` are the words below the picture,
    each with whether it is as asked.

    `right` is None where nobody can say: another item may fit a caption as well as its own.
    """

    item: int
    score: float
    right: bool | None
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class ShownSearch:
    """One search by words, or by the item `asked`, whose caption `text` is then.

    `wanted` is the item whose caption it is (None for attributes), at `rank`; of a search by an
    item, `rank` is that of the first right hit.
    """

    text: str
    hits: tuple[ShownHit, ...]
    num_right: int
    wanted: int | None = None
    rank: float | None = None
    asked: int | None = None


def choose(texts: Sequence[str], num: int) -> list[int]:
    """Places of `num` distinct texts, picked by the hash of their words, as if at random."""
    by_hash = sorted(set(texts), key=lambda text: sha256_bytes(text.encode()))[:num]
    return [texts.index(text) for text in by_hash]


def worst(texts: Sequence[str], ranks: Floats, num: int) -> list[int]:
    """Places of the `num` distinct texts with the worst ranks above 1, worst first."""
    order = sorted(range(len(texts)), key=lambda place: (-ranks[place], texts[place]))
    found: dict[str, int] = {}
    for place in order:
        if len(found) == num or ranks[place] <= 1:
            break
        found.setdefault(texts[place], place)
    return list(found.values())


def attribute_searches(
    search: AttributeSearch, places: Iterable[int], *, num_hits: int
) -> list[ShownSearch]:
    """Searches of attribute queries; hits are shown by their values of the columns asked about."""
    part, labels = search.part, list(search.labels.values())
    shown = []
    for place in places:
        query = search.queries[place]
        scores = part.items @ search.embedded[place]
        hits = []
        for item in top_items(scores, num_hits):
            parts = tuple(
                (values[item] or "–", values[item] == asked)
                for values, asked in zip(labels, query.values, strict=True)
            )
            right = all(ok for _, ok in parts)
            hits.append(ShownHit(part.first + int(item), float(scores[item]), right, parts))
        shown.append(ShownSearch(query.text, tuple(hits), len(query.right)))
    return shown


def caption_searches(part: Part, places: Iterable[int], *, num_hits: int) -> list[ShownSearch]:
    """Searches of text queries, with the item that each caption belongs to."""
    way, shown = part.text_to_item, []
    for place in places:
        wanted, text = part.data.queries[place]
        right = way.positives.block(place, place + 1).candidates
        hits = _hits(part, part.texts[text], right, wrong=None, num_hits=num_hits)
        shown.append(
            ShownSearch(
                part.data.texts[text],
                hits,
                len(right),
                wanted=part.first + wanted,
                rank=float(way.ranks[place]),
            )
        )
    return shown


def crossing_searches(
    crossing: Crossing, places: Iterable[int], *, wrong: bool | None, num_hits: int
) -> list[ShownSearch]:
    """Searches by items of one modality among those of another; `places` are of asked queries.

    `wrong` is what a hit that is no positive is called: False, or None where nobody can say.
    """
    way, source, shown = crossing.retrieval, crossing.source, []
    assert way is not None
    for place in places:
        item = int(crossing.meetings.queries[place])
        right = way.positives.block(place, place + 1).candidates
        hits = _hits(crossing.target, source.items[item], right, wrong=wrong, num_hits=num_hits)
        shown.append(
            ShownSearch(
                source.data.items[item].captions[0],
                hits,
                len(right),
                rank=float(way.ranks[place]),
                asked=source.first + item,
            )
        )
    return shown


def _hits(
    part: Part, query: Embeddings, right: Ints, *, wrong: bool | None, num_hits: int
) -> tuple[ShownHit, ...]:
    """The items nearest to `query` [dim] with their first captions; those among `right` are
    marked."""
    scores = part.items @ query
    return tuple(
        ShownHit(
            part.first + int(item),
            float(scores[item]),
            True if item in right else wrong,
            ((part.data.items[item].captions[0], True),),
        )
        for item in top_items(scores, num_hits)
    )


def top_items(scores: Embeddings, num: int) -> Ints:
    """The `num` items with the highest scores, best first; equal scores in item order."""
    order: Ints = np.argsort(-scores, kind="stable")[:num]
    return order


def shown_items(searches: Iterable[ShownSearch]) -> Counter[int]:
    """Numbers of all items that the searches show, and how often."""
    found: Counter[int] = Counter()
    for search in searches:
        found.update(hit.item for hit in search.hits)
        found.update(item for item in (search.wanted, search.asked) if item is not None)
    return found


def show_all(
    samples: Iterable[Sample], times: Mapping[str, int], settings: ContactSheetSettings
) -> Iterator[tuple[Sample, ShownItem]]:
    """The items among `samples` whose ids are in `times`, each as it is shown.

    `times` say how often the page holds each: sounds are embedded until they have
    `max_sounds_bytes` in all. Stops reading when all are there.
    """
    left = settings.max_sounds_bytes
    matching = (sample for sample in samples if sample.item_id in times)
    for sample in islice(matching, len(times)):
        held = times[sample.item_id]
        item = show_item(
            sample,
            px=settings.thumbnail_px,
            max_sound_bytes=min(settings.max_sound_bytes, left // held),
        )
        if item.sound is not None:
            left -= held * len(sample.media)
        yield sample, item


def show_item(sample: Sample, *, px: int, max_sound_bytes: int) -> ShownItem:
    """The item's picture, at most `px` pixels wide and high, and its sound.

    A sound is drawn, and embedded as it is where it has at most `max_sound_bytes`.
    """
    if sample.modality != "audio":
        return ShownItem(_jpeg(_small(sample.media, px)))
    media_type = _SOUND_TYPES.get(sample.extension)
    plays = media_type is not None and len(sample.media) <= max_sound_bytes
    return ShownItem(
        _jpeg(sound_picture(sample.media, width=px, height=px)),
        f"data:{media_type};base64,{_base64(sample.media)}" if plays else None,
        is_sound=True,
    )


def _small(media: bytes, px: int) -> Image.Image:
    image = Image.fromarray(decode_image(media))
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    return image


def _jpeg(image: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + _base64(buffer.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

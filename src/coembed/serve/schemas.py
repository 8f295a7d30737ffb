"""What the service is asked and what it answers, as its OpenAPI document has it.

The limits of the settings are not in the types, as they differ from service to service: GET
/release names them, and a request beyond one is answered with 422 (or 413) and the limit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ITEM_ID = r"^[0-9a-f]{64}$"

# Generous bounds of what can be meant at all; the settings draw narrower ones.
Text = Annotated[str, Field(min_length=1, max_length=100_000)]
Base64 = Annotated[str, Field(min_length=4, json_schema_extra={"contentEncoding": "base64"})]
ItemId = Annotated[str, Field(pattern=ITEM_ID, description="SHA-256 of the item's media.")]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Media = Literal["image", "audio"]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Term(_Asked):
    """One part of a query: exactly one of text, image, audio and item."""

    text: Text | None = None
    image: Base64 | None = Field(None, description="A picture: JPEG, PNG, WebP, GIF, ...")
    audio: Base64 | None = Field(None, description="A sound: WAV, FLAC, OGG, MP3, AIFF.")
    item: ItemId | None = Field(None, description='An indexed item: "more like this".')
    weight: Weight = Field(1.0, description="A negative one leads away from the term.")


class SearchAsked(_Asked):
    """A search. `text` is short for a query of one text."""

    query: list[Term] | None = Field(None, min_length=1, max_length=64)
    text: Text | None = None
    filters: list[Annotated[str, Field(min_length=1, max_length=2000)]] = Field(
        default=[], max_length=256, examples=[["colour=red", "price<50", "kind=mug,lamp"]]
    )
    modality: Media | None = Field(None, description="Find only pictures, or only sounds.")
    limit: int = Field(24, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=10_000)
    diversity: Share = Field(
        0.0, description="0: the best hits; above: hits unlike one another (MMR, 1 − λ)."
    )
    keywords: Share = Field(
        0.0, description="Weight of keyword search over captions beside vector search."
    )
    explain: bool = Field(False, description="Say what each term adds to each hit's score.")


class ReleaseNamed(_Answer):
    """The release that gave the answer. recall_at_10: of its search, against a full scan."""

    collection: str
    model: str
    version: int
    fingerprint: str
    num_items: int
    recall_at_10: float | None


class Explained(_Answer):
    """What one term adds to a hit.

    kind: keywords stands for keyword search. score: the term's part of the hit's score; the scores
    of all terms but keywords sum to the hit's. cosine: the term alone against the hit, None for
    keywords. share: of what ranks the hit, −1 to 1; the magnitudes sum to 1.
    """

    term: str
    kind: Literal["text", "image", "audio", "item", "keywords"]
    weight: float
    score: float
    cosine: float | None
    share: float


class ItemShown(_Answer):
    """An indexed item."""

    item_id: str
    modality: str
    path: str
    captions: list[str]
    attributes: dict[str, str | bool | int | float]
    split: str | None
    media: str = Field(description="Where its media are.")
    thumbnail: str = Field(description="Where a small picture of it is.")


class HitShown(ItemShown):
    """A hit. score: cosine with the query. match: the share of true matches of validation queries
    that score no higher; None for mixed queries, and where the release was not calibrated.
    fused: what ranks hits where keywords have a weight, 0 to 1; None elsewhere.
    """

    rank: int
    score: float
    match: float | None
    fused: float | None
    explain: list[Explained] | None = None


class Took(_Answer):
    """Milliseconds: waiting for the tower and encoding, the index, and all together."""

    encode: float
    search: float
    all: float


class SearchAnswer(_Answer):
    """Hits, best first. floor: the score below which nothing matches well; None where the scores of
    this kind of query are not calibrated. next_offset: None where there are no more.
    """

    release: ReleaseNamed
    hits: list[HitShown]
    nothing_matches_well: bool
    floor: float | None
    next_offset: int | None
    took_ms: Took
    cached: bool


class ClassifyAsked(_Asked):
    """Zero-shot classification of one text, picture, sound or item."""

    text: Text | None = None
    image: Base64 | None = None
    audio: Base64 | None = None
    item: ItemId | None = None
    labels: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        min_length=1, max_length=10_000, examples=[["mug", "lamp", "sneaker"]]
    )
    prompts: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        default=["a photo of a {label}"], min_length=1, max_length=100
    )


class LabelShown(_Answer):
    """score: cosine with the label's sentences. probability: over the labels (they sum to 1), or of
    each by itself where the model was trained with a sigmoid loss.
    """

    label: str
    probability: float
    score: float


class ClassifyAnswer(_Answer):
    """Labels, the most probable first."""

    release: ReleaseNamed
    labels: list[LabelShown]


class EmbedAsked(_Asked):
    """Texts, pictures and sounds to embed with the served model."""

    texts: list[Text] = Field(default=[], max_length=4096)
    images: list[Base64] = Field(default=[], max_length=4096)
    sounds: list[Base64] = Field(default=[], max_length=4096)


class EmbedAnswer(_Answer):
    """Unit embeddings, in the order asked."""

    release: ReleaseNamed
    texts: list[list[float]]
    images: list[list[float]]
    sounds: list[list[float]]


class ValueShown(_Answer):
    """One value of a column, and how many items have it."""

    value: str | bool | float
    count: int


class ColumnShown(_Answer):
    """A column that can be filtered on. num_values: distinct ones, None where too many to count."""

    name: str
    kind: Literal["text", "number", "bool", "mixed"]
    values: list[ValueShown]
    num_values: int | None
    min: float | None
    max: float | None


class Limits(_Answer):
    """What a request may ask for."""

    max_limit: int
    max_depth: int
    max_query_chars: int
    max_terms: int
    max_filters: int
    max_labels: int
    max_prompts: int
    max_batch: int
    max_upload_bytes: int
    max_image_pixels: int
    max_clip_s: float


class ReleaseShown(ReleaseNamed):
    """The release that is served. engines: what encodes queries of each modality. modalities: what
    can be searched with. item_modalities: items of each. keywords: whether there is keyword search.
    calibrated: (query, item) modalities whose scores have a meaning.
    """

    corpus: str
    engines: dict[str, str]
    columns: list[ColumnShown]
    modalities: list[str]
    item_modalities: dict[str, int]
    keywords: bool
    calibrated: list[tuple[str, str]]
    limits: Limits


class Failing(_Answer):
    """A release that should be served and cannot be loaded."""

    collection: str
    error: str
    num_tries: int


class Health(_Answer):
    """The process lives."""

    status: Literal["ok"]


class Ready(_Answer):
    """Whether searches can be answered. `failing` is what should be served instead."""

    ready: bool
    release: ReleaseNamed | None
    failing: Failing | None


class Problem(_Answer):
    """Why a request was not served, and what to do."""

    error: str
    hint: str | None

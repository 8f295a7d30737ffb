"""What a request asks for, checked: terms with their media, filters, bounds.

What leaves this module is safe to go on with: texts are text, media are small enough to decode, and
nothing exceeds a limit. Everything else is a Refusal that names the limit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from coembed.errors import UserError
from coembed.index.filters import ColumnKind, Filter, parse_filters, restrict
from coembed.search.settings import ServeSettings
from coembed.serve.media_checks import check_image, check_sound
from coembed.serve.refusals import invalid
from coembed.serve.schemas import ClassifyAsked, SearchAsked, Term

TermKind = Literal["text", "image", "audio", "item"]
_FILTER_HINT = (
    "write COLUMN=VALUE, COLUMN=ONE,OTHER (any of them), COLUMN!=VALUE or COLUMN<NUMBER (also <=, "
    ">, >=), for example colour=red or price<50; GET /release lists the columns"
)
_NAMES = {"image": "a picture", "audio": "a sound"}


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """One term of a query. content: a text, an item id, or media; key: the same, but the hash of
    media."""

    kind: TermKind
    content: str | bytes
    key: str
    weight: float = 1.0

    @property
    def identity(self) -> tuple[str, str]:
        """What stands for its embedding."""
        return self.kind, self.key

    @property
    def label(self) -> str:
        """What it is called in an explanation."""
        return self.key if self.kind in ("text", "item") else _NAMES[self.kind]


@dataclass(frozen=True, slots=True)
class Query:
    """A checked search."""

    terms: tuple[QueryTerm, ...]
    filters: tuple[str, ...]
    modality: Literal["image", "audio"] | None
    limit: int
    offset: int
    diversity: float
    keywords: float
    explain: bool

    @property
    def key(self) -> tuple[object, ...]:
        """What stands for it in a cache."""
        terms = tuple((term.kind, term.key, term.weight) for term in self.terms)
        return (
            terms, self.filters, self.modality, self.limit, self.offset, self.diversity,
            self.keywords, self.explain,
        )  # fmt: skip

    @property
    def words(self) -> str:
        """What keyword search looks for: the texts that lead towards something."""
        return " ".join(
            str(term.content) for term in self.terms if term.kind == "text" and term.weight > 0
        )

    @property
    def depth(self) -> int:
        """How many of the best hits have to be known."""
        return self.offset + self.limit

    def where(self, columns: dict[str, ColumnKind]) -> Filter:
        """Its filters, read against a collection's columns. Raises Refusal."""
        try:
            where = parse_filters(self.filters, columns)
        except UserError as error:
            message = error.message.removeprefix("--")
            raise invalid(message, hint=_FILTER_HINT) from None
        return where if self.modality is None else restrict(where, "modality", self.modality)


def read_search(asked: SearchAsked, settings: ServeSettings) -> Query:
    """Check a search. Decodes base64: to be called in a thread where media are large."""
    if (asked.query is None) == (asked.text is None):
        raise invalid("give either `query`, a list of terms, or `text`")
    given = asked.query or [Term(text=asked.text)]
    _at_most("terms", len(given), settings.max_terms, "max_terms")
    _at_most("filters", len(asked.filters), settings.max_filters, "max_filters")
    _at_most("limit", asked.limit, settings.max_limit, "max_limit")
    _at_most("offset + limit", asked.offset + asked.limit, settings.max_depth, "max_depth")
    for text in asked.filters:
        check_text(text, "a filter", settings)
    terms = tuple(
        _read_term(term.text, term.image, term.audio, term.item, settings, weight=term.weight)
        for term in given
    )
    if not any(term.weight for term in terms):
        raise invalid("all terms of the query have the weight 0: nothing is asked for")
    query = Query(
        terms, tuple(asked.filters), asked.modality, asked.limit, asked.offset, asked.diversity,
        asked.keywords, asked.explain,
    )  # fmt: skip
    if asked.keywords and not query.words:
        raise invalid(
            "keyword search needs a text in the query", hint="set keywords to 0, or add a text"
        )
    return query


def read_classified(asked: ClassifyAsked, settings: ServeSettings) -> QueryTerm:
    """Check what is to be classified, and the labels and prompts."""
    _at_most("labels", len(asked.labels), settings.max_labels, "max_labels")
    _at_most("prompts", len(asked.prompts), settings.max_prompts, "max_prompts")
    for text in (*asked.labels, *asked.prompts):
        check_text(text, "a label or prompt", settings)
    if len(set(asked.labels)) != len(asked.labels):
        raise invalid("a label is named twice")
    without = [prompt for prompt in asked.prompts if "{label}" not in prompt]
    if without:
        raise invalid(
            f"the prompt {without[0][:100]!r} has no place for the label",
            hint='write {label} where it belongs, as in "a photo of a {label}"',
        )
    return _read_term(asked.text, asked.image, asked.audio, asked.item, settings)


def read_media(kind: Literal["image", "audio"], text: str, settings: ServeSettings) -> bytes:
    """The media in base64 `text`, checked to be small enough to decode."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(
            f"the {kind} is not base64: {error}",
            hint="send the file's bytes in standard base64, without a data: prefix",
        ) from None
    if kind == "image":
        check_image(data, max_pixels=settings.max_image_pixels)
    else:
        check_sound(data, max_s=settings.max_clip_s)
    return data


def check_text(text: str, what: str, settings: ServeSettings) -> str:
    """`text` without white space around it. Raises Refusal."""
    if len(text) > settings.max_query_chars:
        raise invalid(
            f"{what} has {len(text):,} characters, at most {settings.max_query_chars:,} are allowed"
        )
    if "\0" in text:
        raise invalid(f"{what} holds a NUL character")
    stripped = text.strip()
    if not stripped:
        raise invalid(f"{what} is empty")
    return stripped


def _read_term(
    text: str | None,
    image: str | None,
    audio: str | None,
    item: str | None,
    settings: ServeSettings,
    *,
    weight: float = 1.0,
) -> QueryTerm:
    given: Sequence[tuple[TermKind, str | None]] = (
        ("text", text), ("image", image), ("audio", audio), ("item", item),
    )  # fmt: skip
    named = [(kind, value) for kind, value in given if value is not None]
    if len(named) != 1:
        found = " and ".join(kind for kind, _ in named) or "none of them"
        raise invalid(f"a term is one of text, image, audio and item; this one has {found}")
    ((kind, value),) = named
    if kind == "text":
        stripped = check_text(value, "the query", settings)
        return QueryTerm(kind, stripped, stripped, weight)
    if kind == "item":
        return QueryTerm(kind, value, value, weight)
    data = read_media(kind, value, settings)
    return QueryTerm(kind, data, hashlib.sha256(data).hexdigest(), weight)


def _at_most(what: str, found: int, limit: int, setting: str) -> None:
    if found > limit:
        raise invalid(f"{what}: {found:,}, at most {limit:,} are allowed", hint=f"serve.{setting}")

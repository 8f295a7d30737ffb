"""A release: what a collection holds, what made it, how it was proved. Never changed once built.

It is kept as the collection's own metadata, so that whoever finds a collection knows which encoder
its queries need, which items are in it, what its scores mean and how well it is searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from coembed.errors import UserError
from coembed.files import sha256_json
from coembed.index.base import Collection, wrong_vector
from coembed.index.filters import BASE_COLUMNS, ColumnKind
from coembed.index.settings import IndexSettings
from coembed.types import Attribute

# Keys of a collection's metadata beside those of its release.
STATE = "state"  # "loading", or "built" once it is verified
BUILT_AT = "built_at"  # when, in ISO 8601
SEARCH = "search"  # its SearchMeasured

# A collection that is laid out like this has no mark of it in its name.
_PLAIN: dict[str, Any] = {
    "quantization": "none",
    "hnsw_m": 16,
    "hnsw_ef_construct": 128,
    "payload_indexes": "auto",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a collection is laid out: the settings that cannot change once it is built."""

    quantization: Literal["none", "int8", "binary"] = "none"
    hnsw_m: int = 16
    hnsw_ef_construct: int = 128
    payload_indexes: Literal["auto"] | tuple[str, ...] = "auto"

    @classmethod
    def of(cls, settings: IndexSettings) -> Layout:
        """The layout that the settings ask for."""
        indexes = settings.payload_indexes
        return cls(
            settings.quantization,
            settings.hnsw_m,
            settings.hnsw_ef_construct,
            indexes if isinstance(indexes, str) else tuple(sorted(set(indexes))),
        )

    def indexed(self, columns: Mapping[str, ColumnKind]) -> dict[str, ColumnKind]:
        """Which of a collection's attribute columns get a payload index, and the modality."""
        wanted = self.payload_indexes
        return {
            # Whatever attributes there are, hits can be asked for by modality.
            "modality": BASE_COLUMNS["modality"],
            **{
                column: kind
                for column, kind in columns.items()
                if wanted == "auto" or column in wanted
            },
        }

    @property
    def mark(self) -> str:
        """What is unusual about it, for a collection's name: "_int8_m32", mostly nothing."""
        marks: list[str] = []
        if self.quantization != _PLAIN["quantization"]:
            marks.append(self.quantization)
        if self.hnsw_m != _PLAIN["hnsw_m"]:
            marks.append(f"m{self.hnsw_m}")
        if self.hnsw_ef_construct != _PLAIN["hnsw_ef_construct"]:
            marks.append(f"ef{self.hnsw_ef_construct}")
        if self.payload_indexes != _PLAIN["payload_indexes"]:
            marks.append(f"p{sha256_json(self.payload_indexes)[:6]}")
        return "".join(f"_{mark}" for mark in marks)


@dataclass(frozen=True, slots=True)
class Release:
    """What a collection holds, and the model version that made it. Stored as its metadata.

    `columns` are the attributes and the kind of each. `calibration` says what scores true matches
    have, by the modality of query and item (quantiles; empty where it was not measured).
    `manifest` names the embeddings that were loaded: `parts`, each with `file`, `num_items` and
    `sha256`, and the whole's `num_items` and `corpus`.
    """

    model: str
    version: int
    fingerprint: str
    precision: str
    corpus: str
    num_items: int
    dim: int
    columns: Mapping[str, ColumnKind]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = Layout()

    def collection_name(self, alias: str) -> str:
        """The physical collection's name: it carries the model version and the corpus."""
        own = f"v{self.version}__{self.fingerprint[:8]}_{self.corpus[:8]}"
        return f"{alias}__{own}{self.layout.mark}"

    @property
    def vector_name(self) -> str:
        """Named after the fingerprint, so that another model's query fails, not misleads."""
        return f"item@{self.fingerprint[:8]}"

    @property
    def identity(self) -> dict[str, Any]:
        """What two releases of one collection's name must have in common.

        The manifest is not: the same items embedded on another machine are the same release, as far
        as their vectors agree. That is for verification to tell.
        """
        return {
            "model": self.model,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "corpus": self.corpus,
            "num_items": self.num_items,
            "dim": self.dim,
            "columns": dict(self.columns),
            "layout": {
                **asdict(self.layout),
                "payload_indexes": self.layout.payload_indexes
                if isinstance(self.layout.payload_indexes, str)
                else list(self.layout.payload_indexes),
            },
        }

    def to_metadata(self) -> dict[str, Any]:
        """As a collection keeps it."""
        return {
            **self.identity,
            "calibration": dict(self.calibration),
            "manifest": dict(self.manifest),
        }


def read_release(collection: Collection) -> Release:
    """The release that a collection holds. Raises UserError if coembed did not make it."""
    data = collection.metadata
    try:
        layout: dict[str, Any] = {**_PLAIN, **(data.get("layout") or {})}
        indexes: Any = layout["payload_indexes"]
        return Release(
            model=str(data["model"]),
            version=int(data["version"]),
            fingerprint=str(data["fingerprint"]),
            precision=str(data["precision"]),
            corpus=str(data["corpus"]),
            num_items=int(data["num_items"]),
            dim=int(data["dim"]),
            columns=dict(data["columns"]),
            # Collections of an older coembed have none of these.
            calibration=dict(data.get("calibration") or {}),
            manifest=dict(data.get("manifest") or {}),
            layout=Layout(
                layout["quantization"],
                int(layout["hnsw_m"]),
                int(layout["hnsw_ef_construct"]),
                "auto" if indexes == "auto" else tuple(indexes),
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"collection {collection.name!r} does not say which model version made it ({error})",
            hint="it was not made by coembed; build one with `coembed index`",
        ) from None


def vector_of(collection: Collection, release: Release) -> str:
    """The name of the vectors of the collection that holds `release`.

    Those made before there were sounds are called `image@...`, and stay searchable. Raises
    UserError where the vectors are another model's.
    """
    if not names_the_model(collection, release):
        raise wrong_vector(collection, release.vector_name)
    return collection.vector_name


def names_the_model(collection: Collection, release: Release) -> bool:
    """Whether the vectors are named after the release's model."""
    return collection.vector_name.rpartition("@")[2] == release.fingerprint[:8]


@dataclass(frozen=True, slots=True)
class CanaryMet:
    """A query of `embed.canaries`, and the rank of the first hit that had what was expected."""

    text: str
    expect: Mapping[str, Attribute]
    rank: int


@dataclass(frozen=True, slots=True)
class SearchMeasured:
    """How a collection was proved, and how well and how fast it is searched.

    `recall_by_modality` holds, by the modality of the query, the mean share of the ten nearest
    items (by a full scan of the embeddings) that the search that serves finds; an item as near as
    the tenth counts as one of them, as in ann-benchmarks (arXiv 1807.05614). Text queries find
    less than an item's own vector does, so `recall_at_10` is the lowest of them. The milliseconds
    are percentiles of one query from this machine, one after another: the network to a server is
    in them, the encoder and other people's load are not. `num_read_back` points came back with the
    vector and payload that were written.
    """

    recall_at_10: float
    p50_ms: float
    p95_ms: float
    num_queries: int
    recall_by_modality: Mapping[str, float] = field(default_factory=dict)
    canaries: tuple[CanaryMet, ...] = ()
    num_read_back: int = 0


def read_search(collection: Collection) -> SearchMeasured | None:
    """What was measured when the collection was last verified; None for one of an older coembed."""
    found: Any = collection.metadata.get(SEARCH)
    try:
        return SearchMeasured(
            recall_at_10=float(found["recall_at_10"]),
            p50_ms=float(found["p50_ms"]),
            p95_ms=float(found["p95_ms"]),
            num_queries=int(found["num_queries"]),
            recall_by_modality=dict(found.get("recall_by_modality") or {}),
            canaries=tuple(
                CanaryMet(str(one["text"]), dict(one["expect"]), int(one["rank"]))
                for one in found.get("canaries") or ()
            ),
            num_read_back=int(found.get("num_read_back") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None

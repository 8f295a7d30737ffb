"""Settings of the index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coembed.settings import Settings


class IndexSettings(Settings):
    """How embeddings become a collection, and how that collection is proved.

    `collection` is the name that searches use: an alias, which points at the collection of the
    release that is served. `payload_indexes` names the attribute columns that filters should be
    fast on: "auto" is all of them.

    `quantization` keeps a small copy of every vector in memory for the search. `oversampling` times
    as many candidates are found with it, and with `rescore` scored again with the full vectors.
    Measured at 100k x 512, ef 128: int8 with oversampling 2 keeps Recall@10 (.990 for text, .991
    without), binary collapses where the modalities lie apart (.524). `coembed index --tune`
    measures it on your own embeddings.
    """

    collection: str = Field(default="items", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")
    payload_indexes: Literal["auto"] | tuple[str, ...] = "auto"
    # Qdrant's own advice for bulk loading is 64 to 256 points a request.
    batch_size: int = Field(default=128, ge=1, le=4096)
    verify_sample: int = Field(default=100, ge=1, le=100_000)
    min_recall: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="least Recall@10 of the search against a full scan, by modality of the query",
    )
    keep: int = Field(default=2, ge=1, description="collections kept beside the served one")

    # m is Qdrant's default, whose ef_construct is 100; search_ef 128 gave Recall@10 .991 for text
    # queries at 100k x 512, 64 gave .958.
    hnsw_m: int = Field(default=16, ge=4, le=128)
    hnsw_ef_construct: int = Field(default=128, ge=8, le=2048)
    search_ef: int = Field(default=128, ge=8, le=2048)

    quantization: Literal["none", "int8", "binary"] = "none"
    oversampling: float = Field(default=2.0, ge=1, le=100)
    rescore: bool = True

    num_streams: int = Field(
        default=2, ge=1, le=32, description="parallel streams of a load into a server"
    )
    timeout_s: int = Field(default=30, ge=1, le=3600)
    num_tries: int = Field(default=6, ge=1, le=50)
    backoff_s: float = Field(default=0.5, gt=0, le=60)
    backoff_max_s: float = Field(default=30.0, gt=0, le=600)
    lock_wait_s: float = Field(
        default=10.0, ge=0, description="how long to wait while another process builds the same"
    )
    ready_wait_s: float = Field(
        default=3600.0, gt=0, description="how long a server may take to build its HNSW graph"
    )

    @model_validator(mode="after")
    def _backoff(self) -> IndexSettings:
        if self.backoff_max_s < self.backoff_s:
            raise ValueError(
                f"backoff_max_s ({self.backoff_max_s}) must not be below backoff_s "
                f"({self.backoff_s})"
            )
        return self

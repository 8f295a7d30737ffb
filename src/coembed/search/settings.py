"""Settings of the search service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coembed.settings import Settings

Engine = Literal["auto", "torch", "onnx", "onnx-int8"]


class ServeSettings(Settings):
    """How releases are kept, how a search is answered, and what nobody may ask for.

    All limits hold for each process of `coembed serve`. `host_names` are the names under which
    people reach the service, beside this machine's own: requests under any other are refused
    wherever this is set, and on loopback always. `trust_proxy` takes the client's address from
    X-Forwarded-For: only behind a proxy that sets it.
    """

    # Releases
    poll_s: float = Field(default=0.2, gt=0, le=60, description="how often the alias is looked up")
    keep_warm: int = Field(
        default=2, ge=1, le=16, description="releases that stay loaded, the served one among them"
    )
    engine: Engine = Field(default="auto", description="what text queries are encoded with")
    num_threads: int | None = Field(default=None, ge=1, le=256, description="of an encoder")

    # Answers
    max_limit: int = Field(default=100, ge=1, le=1000, description="hits on a page")
    max_depth: int = Field(default=1000, ge=1, le=10_000, description="hits that can be paged to")
    pool: int = Field(
        default=200, ge=10, le=2000, description="candidates of diversity and of keyword search"
    )
    weak_share: float = Field(
        default=0.05, gt=0, lt=1,
        description="nothing matches well where the best hit scores below this share of the "
        "validation queries' true matches",
    )  # fmt: skip
    keyword_items: int = Field(
        default=2_000_000, ge=0, description="larger corpora get no keyword search"
    )

    # Queries
    max_query_chars: int = Field(default=2000, ge=1, le=100_000)
    max_terms: int = Field(default=8, ge=1, le=64, description="of a mixed query")
    max_filters: int = Field(default=16, ge=1, le=256)
    max_labels: int = Field(default=100, ge=2, le=10_000)
    max_prompts: int = Field(default=8, ge=1, le=100)
    max_batch: int = Field(default=64, ge=1, le=4096, description="items of one POST /embed")
    max_upload_mb: float = Field(default=16.0, gt=0, le=1024, description="a request's body")
    max_image_pixels: int = Field(default=40_000_000, ge=1, le=400_000_000)
    max_clip_s: float = Field(default=120.0, gt=0, le=3600)
    max_media_mb: float = Field(default=256.0, gt=0, le=4096, description="an item's own file")

    # Load
    batch_queries: int = Field(default=32, ge=1, le=1024, description="through a tower together")
    max_queue: int = Field(default=256, ge=1, le=100_000, description="items that wait for a tower")
    max_concurrent: int = Field(default=64, ge=1, le=10_000, description="requests in work")
    rate_per_s: float = Field(default=50.0, gt=0, le=1e6, description="requests of one client")
    burst: int = Field(default=100, ge=1, le=1_000_000, description="of them at once")
    cache_entries: int = Field(default=4096, ge=1, le=1_000_000, description="of each release")
    cache_mb: float = Field(default=64.0, gt=0, le=65_536, description="of each release")
    thumbnails_mb: float = Field(default=64.0, gt=0, le=65_536)

    host_names: tuple[str, ...] = ()
    trust_proxy: bool = False

    @model_validator(mode="after")
    def _depth(self) -> ServeSettings:
        if self.max_depth < self.max_limit:
            raise ValueError(
                f"max_depth ({self.max_depth}) must not be below max_limit ({self.max_limit})"
            )
        return self

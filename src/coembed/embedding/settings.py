"""Settings of the embed stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from coembed.settings import Settings
from coembed.types import SPLITS, Split


class EmbedSettings(Settings):
    """Which items become the corpus, and how they are embedded.

    `modalities`: of the items; null takes all that the model has a tower for. The corpus is written
    in parts of `part_size` items: a killed run loses at most one part's work.
    A part is embedded in batches of `batch_size`, so `part_size` is a multiple of it.
    """

    splits: tuple[Split, ...] = Field(default=SPLITS, min_length=1)
    modalities: Annotated[tuple[Literal["image", "audio"], ...], Field(min_length=1)] | None = None
    batch_size: int = Field(default=256, ge=1)
    part_size: int = Field(default=4_096, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"

    @field_validator("splits", "modalities")
    @classmethod
    def _once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("names one twice")
        return names

    @model_validator(mode="after")
    def _aligned(self) -> EmbedSettings:
        if self.part_size % self.batch_size:
            raise ValueError(
                f"part_size {self.part_size} is not a multiple of batch_size {self.batch_size}"
            )
        return self

"""Settings of the embed stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from coembed.errors import UserError
from coembed.settings import Settings
from coembed.types import SPLITS, Attribute, Split

Share = tuple[int, int]
"""Share K of N of the work, counted from 1."""


class Canary(Settings):
    """A text whose best hits are known: they have these values of their attributes."""

    text: str = Field(min_length=1)
    expect: dict[str, Attribute] = Field(min_length=1)

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is blank")
        return text


class EmbedSettings(Settings):
    """Which items become the corpus, and how they are embedded.

    `modalities`: of the items; null takes all that the model has a tower for. The corpus is written
    in parts of `part_size` items, and a killed run loses at most the work of so many.
    `precision` is part of what the model is (its fingerprint covers it, and searches use the same),
    so it is named here and not left to the device that happens to be there; bf16 takes less than
    half the time where the device has it. `num_queries` captions of held-out items, and the
    `canaries`, go along for the index to be verified with. The vectors of the last corpus wait in
    runs/embed/ for the next run, those of `kept_models` models at most.
    """

    splits: tuple[Split, ...] = Field(default=SPLITS, min_length=1)
    modalities: Annotated[tuple[Literal["image", "audio"], ...], Field(min_length=1)] | None = None
    batch_size: int = Field(default=256, ge=1)
    part_size: int = Field(default=4_096, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    num_queries: int = Field(default=200, ge=0, le=10_000)
    canaries: tuple[Canary, ...] = ()
    kept_models: int = Field(default=2, ge=1)

    @field_validator("splits", "modalities")
    @classmethod
    def _once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("names one twice")
        return names


def read_share(text: str) -> Share:
    """A share written as K/N. Raises UserError."""
    part, slash, parts = text.partition("/")
    if not (
        slash and part.isascii() and part.isdecimal() and parts.isascii() and parts.isdecimal()
    ):
        raise UserError(f"the share is {text!r}; expected K/N, such as 2/8")
    if not 1 <= int(part) <= int(parts):
        raise UserError(f"the share is {text!r}; expected K/N with K from 1 to N")
    return int(part), int(parts)

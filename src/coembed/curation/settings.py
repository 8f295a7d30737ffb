"""Settings of the curate stage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from coembed.settings import Component, ComponentSettings, Settings

# What suits any pool and needs no model. A wrong media file or caption is called by its plainest
# name, so the coarse filters come first; captions are cleaned before they are compared; duplicates
# go last, so that no filter drops the pair that others were dropped for.
_FILTERS: tuple[Any, ...] = (
    "readable",
    "aspect_ratio",  # before image_size: a strip is dropped for being one, not for its short side
    "image_size",
    "blank_image",
    "blurred_image",
    "audio_length",
    "audio_level",
    "audio_rate",
    "personal_data",  # before any filter whose details quote captions
    "caption_markup",
    "caption_length",
    "caption_file_name",
    "caption_symbols",
    "repeated_caption",
    "mismatched_pair",
    "exact_duplicate",
    "near_duplicate",
    "near_caption",
)


class SplitSettings(Settings):
    """Shares of `val` and `test`; the rest is `train`. How a pair gets its split: see
    `coembed.curation.split`.

    `group_by` names columns of the pool whose equal values must not be parted: with `product_id`,
    all pictures of one product are in one split. Of several, list the coarsest first.
    """

    val: float = Field(default=0.05, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    group_by: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val ({self.val}) and test ({self.test}) leave nothing to train on; "
                "their sum must be below 1"
            )
        return self

    @field_validator("group_by")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("group_by names a column twice")
        return names


class ShardSettings(Settings):
    """A shard is closed at whichever limit comes first."""

    max_samples: int = Field(default=10_000, ge=1)
    max_bytes: int = Field(default=1_000_000_000, ge=1)


class CurateSettings(Settings):
    """What stays in, and how it is split and packed.

    `filters` judge in this order, those that need the whole pool after those that judge one pair;
    a pair's first drop reason stands. `num_workers` 0 means one a core: outputs do not depend on
    it. `max_pixels` and `max_media_bytes` guard against decompression bombs and giant files, and
    `seconds_per_item` against a decoder that never ends (a guess: the slowest honest file of
    max_media_bytes takes a few). Fewer kept pairs than `min_pairs` is an error.
    """

    filters: tuple[Annotated[ComponentSettings, Component("coembed.curation.filters")], ...] = (
        _FILTERS
    )
    split: SplitSettings = SplitSettings()
    shards: ShardSettings = ShardSettings()
    num_workers: int = Field(default=0, ge=0, le=512)
    max_pixels: int = Field(default=64_000_000, ge=1)  # as much as training decodes
    max_media_bytes: int = Field(default=256_000_000, ge=1)
    seconds_per_item: float = Field(default=30.0, gt=0, le=3600)
    min_pairs: int = Field(default=10, ge=1)

    @field_validator("filters")
    @classmethod
    def _named_once(cls, filters: tuple[ComponentSettings, ...]) -> tuple[ComponentSettings, ...]:
        names = [chosen.name for chosen in filters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"filter {name!r} is listed twice")
        return filters

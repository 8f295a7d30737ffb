"""Settings of the evaluate stage."""

from __future__ import annotations

from string import Formatter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from coembed.settings import Settings
from coembed.types import Split

ItemModality = Literal["image", "audio"]


class ZeroShotSettings(Settings):
    """Zero-shot classification by one column: its values are the classes.

    `prompts` are sentences around "{label}"; a class's embedding is the mean over them. With no
    `prompts` the label alone is the sentence. `modality`: which items are classified; without it
    the images, or the sounds where there are no images.
    """

    column: str = Field(min_length=1)
    prompts: tuple[str, ...] = Field(default=("{label}",), min_length=1)
    modality: ItemModality | None = None

    @property
    def name(self) -> str:
        """How metrics.json calls it: "kind", and with a modality "kind_audio"."""
        return _with_modality(self.column, self.modality)

    @field_validator("prompts")
    @classmethod
    def _has_label(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if "{label}" not in prompt:
                raise ValueError(f"prompt {prompt!r} has no {{label}} in it")
        return prompts


class AttributeQuerySettings(Settings):
    """Searches made of attribute values, as a person types them: "{colour} {kind}".

    Every combination of values that the evaluated items have becomes one query; a hit is right when
    it has all of them. `ks`: how many hits are looked at. `modality`: which items are searched;
    without it the images, or the sounds where there are no images.
    """

    template: str
    ks: tuple[int, ...] = Field(default=(1, 10), min_length=1)
    modality: ItemModality | None = None

    @field_validator("template")
    @classmethod
    def _readable(cls, template: str) -> str:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ValueError(f"{error}; write columns in braces: '{{colour}} {{kind}}'") from None
        if not fields or "" in fields:
            raise ValueError("name at least one column in braces, as in '{colour} {kind}'")
        if any(f"{{{field}}}" not in template for field in fields):
            raise ValueError("only plain column names may stand in the braces")
        if len(set(fields)) != len(fields):
            raise ValueError("a column is named twice")
        return template

    @field_validator("ks")
    @classmethod
    def _positive_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return _rising(ks)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names, in its order."""
        return tuple(field for _, field, _, _ in Formatter().parse(self.template) if field)

    @property
    def name(self) -> str:
        """How metrics.json calls these queries: "colour_kind", "colour_kind_audio"."""
        return _with_modality("_".join(self.columns), self.modality)


class ContactSheetSettings(Settings):
    """The pictures and sounds in the report. `thumbnail_px` is the longer side of a thumbnail.

    `num_queries` is for each modality; a quarter as many go from each modality to each other. A
    sound can be played in the report where its file has at most `max_sound_bytes`, until all of
    them together have `max_sounds_bytes` (as often as each is shown).
    """

    num_queries: int = Field(default=12, ge=0, le=100)
    num_hits: int = Field(default=8, ge=1, le=20)
    thumbnail_px: int = Field(default=128, ge=32, le=320)
    max_sound_bytes: int = Field(default=200_000, ge=0)
    max_sounds_bytes: int = Field(default=6_000_000, ge=0)


class EvaluateSettings(Settings):
    """What is measured, on which split.

    `slices`: columns to report by; "auto" takes every column of strings or booleans that has 2 to
    50 values. `slices_in_metrics`: of these, the ones whose figures go into metrics.json too, so
    that a promotion gate can watch them. Slices with fewer than `min_slice` queries are marked.
    `meets_on`: columns by whose values an image and a sound belong together, beside the captions
    that they share; one value in common, in any of the columns, is enough. `precision` should be
    the one that `embed` and the search service use.
    """

    split: Split = "test"
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    zero_shot: tuple[ZeroShotSettings, ...] = ()
    attribute_queries: tuple[AttributeQuerySettings, ...] = ()
    meets_on: str | tuple[str, ...] | None = None
    slices: tuple[str, ...] | Literal["auto"] = "auto"
    slices_in_metrics: tuple[str, ...] = ()
    min_slice: int = Field(default=30, ge=1)
    contact_sheet: ContactSheetSettings = ContactSheetSettings()
    batch_size: int = Field(default=256, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"

    @field_validator("ks")
    @classmethod
    def _positive_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return _rising(ks)

    @field_validator("meets_on")
    @classmethod
    def _named(cls, columns: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = (columns,) if isinstance(columns, str) else columns
        if names is not None and (not names or "" in names):
            raise ValueError("expected the name of a column, several names, or null")
        return columns

    @model_validator(mode="after")
    def _names_once(self) -> EvaluateSettings:
        classified = [task.name for task in self.zero_shot]
        searched = [task.name for task in self.attribute_queries]
        for what, found in (("zero_shot", classified), ("attribute_queries", searched)):
            twice = sorted({name for name in found if found.count(name) > 1})
            if twice:
                raise ValueError(f"{what} names {', '.join(twice)} twice")
        if self.slices != "auto":
            unknown = sorted(set(self.slices_in_metrics) - set(self.slices))
            if unknown:
                raise ValueError(f"slices_in_metrics names {', '.join(unknown)}, not in slices")
        return self

    @property
    def meeting_columns(self) -> tuple[str, ...]:
        """The columns of `meets_on`."""
        if self.meets_on is None:
            return ()
        return (self.meets_on,) if isinstance(self.meets_on, str) else self.meets_on


def _with_modality(name: str, modality: ItemModality | None) -> str:
    return name if modality is None else f"{name}_{modality}"


def _rising(ks: tuple[int, ...]) -> tuple[int, ...]:
    if any(k < 1 for k in ks) or list(ks) != sorted(set(ks)):
        raise ValueError("expected rising whole numbers from 1, each once")
    return ks

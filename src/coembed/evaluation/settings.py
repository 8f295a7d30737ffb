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


class BootstrapSettings(Settings):
    """How often the evaluated items are drawn again for the intervals and p-values, and from which
    seed. Models are compared on the same draws."""

    num_resamples: int = Field(default=2000, ge=200, le=100_000)
    seed: int = Field(default=0, ge=0)


class CompositionalSettings(Settings):
    """Captions with one thing wrong, beside true ones.

    `columns`: whose values are swapped in captions that name them; "auto" takes every column of
    strings that has 2 to 50 values. `order`: whether words change places as well. Each is asked
    about at most `max_items` items, of each modality.
    """

    columns: tuple[str, ...] | Literal["auto"] = "auto"
    order: bool = True
    max_items: int = Field(default=2000, ge=1)


class PictureCorruptions(Settings):
    """How severely pictures are corrupted; null leaves one out.

    `blur`: standard deviation of a Gaussian, as a share of the shorter side. `crop`: share of the
    area that is left. `jpeg`: quality, 1 to 95. `noise`: standard deviation, as a share of the full
    range. `px`: pictures whose shorter side is longer are brought down to this first.
    """

    blur: float | None = Field(default=0.015, gt=0, le=0.5)
    crop: float | None = Field(default=0.5, gt=0, lt=1)
    jpeg: int | None = Field(default=10, ge=1, le=95)
    noise: float | None = Field(default=0.1, gt=0, le=1)
    px: int = Field(default=224, ge=16)


class SoundCorruptions(Settings):
    """How severely sounds are corrupted; null leaves one out.

    `noise_snr_db`: white noise, so much below the sound's mean power. `gain_db`: how much louder,
    or quieter where negative. `lowpass_hz`: the highest frequency that is left. `crop`: share of
    the duration that is left.
    """

    noise_snr_db: float | None = Field(default=10.0, ge=-40, le=80)
    gain_db: float | None = Field(default=-20.0, ge=-60, le=40)
    lowpass_hz: int | None = Field(default=2000, ge=50, le=24_000)
    crop: float | None = Field(default=0.5, gt=0, lt=1)


class CaptionCorruptions(Settings):
    """How severely captions are corrupted: `typos` is the share of letters; null leaves them."""

    typos: float | None = Field(default=0.05, gt=0, le=1)


class RobustnessSettings(Settings):
    """What a worse picture, sound or caption costs; null leaves a modality out.

    At most `max_items` items of each modality are corrupted, chosen by the hash of their content.
    """

    image: PictureCorruptions | None = PictureCorruptions()
    audio: SoundCorruptions | None = SoundCorruptions()
    text: CaptionCorruptions | None = CaptionCorruptions()
    max_items: int = Field(default=1000, ge=1)


class GeometrySettings(Settings):
    """Modality gap, alignment and uniformity; the last takes at most `max_points` items, and
    captions, chosen by the hash of their content."""

    max_points: int = Field(default=2000, ge=2, le=20_000)


class CalibrationSettings(Settings):
    """Whether scores are to be believed: in `num_bins` bins of equally many queries, over at most
    `max_queries` of each task, chosen by the hash of their content."""

    num_bins: int = Field(default=15, ge=2, le=100)
    max_queries: int = Field(default=10_000, ge=1)


class EvaluateSettings(Settings):
    """What is measured, on which split.

    `ks` are those of recall, `map_k` is that of mean average precision. `slices`: columns to report
    by; "auto" takes every column but those that name single items. Numbers are cut at their
    quartiles, and of words the 50 most frequent values count. `slices_in_metrics`: of these, the
    ones whose figures go into metrics.json too. Slices with fewer than `min_slice` queries are
    marked.
    `compositional`, `robustness`, `geometry`, `calibration`: each null leaves that measurement out.
    `meets_on`: columns by whose values an image and a sound belong together, beside the captions
    that they share; one value in common, in any of the columns, is enough. `precision` should be
    the one that `embed` and the search service use.
    """

    split: Split = "test"
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    map_k: int = Field(default=10, ge=1, le=1000)
    zero_shot: tuple[ZeroShotSettings, ...] = ()
    attribute_queries: tuple[AttributeQuerySettings, ...] = ()
    meets_on: str | tuple[str, ...] | None = None
    compositional: CompositionalSettings | None = None
    robustness: RobustnessSettings | None = None
    geometry: GeometrySettings | None = GeometrySettings()
    calibration: CalibrationSettings | None = CalibrationSettings()
    slices: tuple[str, ...] | Literal["auto"] = "auto"
    slices_in_metrics: tuple[str, ...] = ()
    min_slice: int = Field(default=30, ge=1)
    bootstrap: BootstrapSettings = BootstrapSettings()
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

"""Drop captions that say nothing, or too much to be one caption."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coembed.curation.candidate import Candidate
from coembed.curation.captions.words import quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Bounds in characters without the space around the caption.

    `min_letters` counts letters of any script: "---" and "0042" say nothing about a picture, and
    one Chinese character may. `min_words` counts runs between spaces; it is off, because not every
    script puts spaces between words. The bounds are guesses, wide on purpose.
    """

    name: Literal["caption_length"] = "caption_length"
    min_chars: int = Field(default=3, ge=0)
    max_chars: int = Field(default=2000, ge=1)
    min_letters: int = Field(default=2, ge=0)
    min_words: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionLength(self)


class CaptionLength(Filter):
    """Looks at the caption only, whatever the modality."""

    reasons = ("empty_caption", "short_caption", "long_caption")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the caption."""
        bounds = self._settings
        caption = candidate.caption.strip()
        if not caption:
            return Verdict("empty_caption", "no text")
        if len(caption) > bounds.max_chars:
            return Verdict(
                "long_caption",
                f"{quoted(caption)}: {len(caption)} characters > {bounds.max_chars}",
            )
        counts = (
            (len(caption), bounds.min_chars, "characters"),
            (sum(map(str.isalpha, caption)), bounds.min_letters, "letters"),
            (len(caption.split()), bounds.min_words, "words"),
        )
        for num, least, unit in counts:
            if num < least:
                return Verdict("short_caption", f"{quoted(caption)}: {num} {unit} < {least}")
        return Verdict()

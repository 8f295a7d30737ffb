"""Take HTML and web addresses out of captions, or drop the captions that hold them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.captions.markup import urls, without, without_html
from coembed.curation.captions.words import quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

Action = Literal["clean", "drop", "keep"]


class Settings(ComponentSettings):
    """What becomes of a caption with HTML (tags, comments, character references) and of one with
    a web address: `clean` takes it out, and drops the pair where no letter or digit is left; `drop`
    drops the pair; `keep` leaves the caption as it is.

    A caption whose addresses hold more than `max_url_share` of its characters is dropped where
    `url` is clean: the rest of it speaks of the link. The share is a guess. List this filter
    before caption_length, which then judges what was left.
    """

    name: Literal["caption_markup"] = "caption_markup"
    html: Action = "clean"
    url: Action = "clean"
    max_url_share: float = Field(default=0.8, ge=0, le=1)

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionMarkup(self)


class CaptionMarkup(Filter):
    """Looks at the caption only, whatever the modality. `markup` tells what was in the caption."""

    reasons = ("markup_caption", "url_caption")
    columns = {"markup": "string"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge and clean the caption."""
        caption = candidate.caption
        if not ("<" in caption or "&" in caption or "/" in caption or "." in caption):
            return Verdict()
        text, kinds = caption, []
        if self._settings.html != "keep" and (cleaned := without_html(caption)) != caption:
            if self._settings.html == "drop":
                return Verdict(
                    "markup_caption", f"{quoted(caption)} holds HTML", {"markup": "html"}
                )
            if not any(map(str.isalnum, cleaned)):
                found = f"{quoted(caption)}: nothing but HTML"
                return Verdict("markup_caption", found, {"markup": "html"})
            text, kinds = cleaned, ["html"]
        if self._settings.url != "keep" and (places := urls(text)):
            kinds.append("url")
            columns = {"markup": " ".join(kinds)}
            first = quoted(text[slice(*places[0])])
            if self._settings.url == "drop":
                return Verdict("url_caption", f"holds the address {first}", columns)
            num_chars = sum(end - start for start, end in places)
            share = num_chars / len(text.strip())
            if share > self._settings.max_url_share:
                found = (
                    f"{first}: addresses are {share:.2g} of it > {self._settings.max_url_share:g}"
                )
                return Verdict("url_caption", found, columns)
            text = without(text, places)
            if not any(map(str.isalnum, text)):
                return Verdict("url_caption", f"{first} and nothing else", columns)
        if not kinds:
            return Verdict()
        return Verdict(columns={"markup": " ".join(kinds)}, caption=" ".join(text.split()))

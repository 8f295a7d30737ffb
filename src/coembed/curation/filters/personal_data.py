"""Mask personal data in captions, or drop the captions that hold them."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator

from coembed.curation.candidate import Candidate
from coembed.curation.captions.personal import Kind, Place, find
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

_NAMES: dict[Kind, tuple[str, str]] = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("telephone number", "telephone numbers"),
    "card": ("card number", "card numbers"),
    "iban": ("IBAN", "IBANs"),
    "ip": ("IP address", "IP addresses"),
}


class Settings(ComponentSettings):
    """`mask` puts "[email]", "[phone]", "[card]", "[iban]" or "[ip]" in the place of what was
    found; `drop` drops the pair. IP addresses are not looked for by default, because the numbers of
    versions look the same.

    List this filter before the others that judge captions: what those before it drop is masked in
    the manifest as well, but their details quote from the caption as it came.
    """

    name: Literal["personal_data"] = "personal_data"
    action: Literal["mask", "drop"] = "mask"
    kinds: tuple[Kind, ...] = Field(default=("email", "phone", "card", "iban"), min_length=1)

    @field_validator("kinds")
    @classmethod
    def _once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("kinds names a kind twice")
        return kinds

    def build(self) -> Filter:
        """Make the filter."""
        return PersonalData(self)


class PersonalData(Filter):
    """Looks at the caption only, whatever the modality.

    `masked` tells the kinds that were found. Neither the detail nor the manifest shows what was
    found: a dropped pair's caption is masked as well.
    """

    reasons = ("personal_data_caption",)
    masks = True
    columns = {"masked": "string"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._drops = settings.action == "drop"
        self._kinds = frozenset(settings.kinds)

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge and mask the caption."""
        found = find(candidate.caption, self._kinds)
        if not found:
            return Verdict()
        counts = Counter(place.kind for place in found)
        columns = {"masked": " ".join(sorted(counts))}
        masked = _mask(candidate.caption, found)
        if not self._drops:
            return Verdict(columns=columns, caption=masked)
        numbers = (f"{num} {_NAMES[kind][num > 1]}" for kind, num in sorted(counts.items()))
        return Verdict("personal_data_caption", f"holds {', '.join(numbers)}", columns, masked)


def _mask(text: str, found: list[Place]) -> str:
    pieces, at = [], 0
    for place in found:
        pieces += [text[at : place.start], f"[{place.kind}]"]
        at = place.end
    return "".join([*pieces, text[at:]])

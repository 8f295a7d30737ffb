"""Drop captions that are written in a language that is not wanted."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from coembed.curation.candidate import Candidate
from coembed.curation.captions.words import quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Languages that the model cannot tell from a larger one in a caption's few words. Wanting one of a
# group is wanting all of it.
_ALIKE = (
    ("en", "pcm"),
    ("zh", "wuu", "yue"),
    ("no", "nn", "da"),
    ("hr", "bs", "sr"),
    ("id", "ms", "jv"),
    ("de", "lb"),
    ("pt", "gl"),
    ("ar", "ary", "arz"),
    ("uz", "uzs"),
    ("it", "vec", "lij"),
    ("fr", "wa", "oc"),
    ("es", "ext", "an"),
)
# The 97 languages of ISO 639-1 that the model of py3langid 0.4 knows.
_CODES = (
    "af am an ar as az ba be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr fy ga gd "
    "gl gu ha he hi hr ht hu hy id ig is it ja jv ka kk km kn ko ku ky la lb lg ln lo lt lv mg mk "
    "ml mn mr ms mt my ne nl nn no oc om or pa pl ps pt qu ro ru rw sa se si sk sl sn so sq sr st "
    "sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa xh yo zh zu"
)
LANGUAGES = tuple(_CODES.split())

# Scripts other than Latin, as Unicode names them, and the languages that are written in them.
_SCRIPTS = {
    "CYRILLIC": "az be bg kk ku ky mk mn ru sr tg tk tt uk uz",
    "ARABIC": "ar az fa ku ky ps tg tk ug ur uz",
    "DEVANAGARI": "hi mr ne sa",
    "CJK": "ja zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "BENGALI": "as bn",
    "GREEK": "el",
    "HEBREW": "he",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "TIBETAN": "dz",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "ORIYA": "or",
    "ETHIOPIC": "am",
}


class Settings(ComponentSettings):
    """Captions in one of `languages` (ISO 639-1 codes) stay.

    A pair is dropped when another language has at least `min_probability` and all of the wanted
    ones together at most `max_wanted`, by the probabilities of py3langid, which depend on the
    length of the text; or when most of its letters are of a script that no wanted language is
    written in (Latin names occur in all of them). Captions of fewer than `min_letters` letters
    stay, because names and loan words look like any language; a letter counts as its bytes in
    UTF-8, so that a Chinese character counts as three, which is about what it tells.

    The limits are guesses, chosen so that next to nothing clean is dropped: of the demo's 6,000
    English captions none, of 45 product names full of foreign words one.
    """

    name: Literal["caption_language"] = "caption_language"
    languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    min_probability: float = Field(default=0.6, gt=0, le=1)
    max_wanted: float = Field(default=0.02, ge=0, lt=1)
    min_letters: int = Field(default=20, ge=1)

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for language in languages:
            if language not in LANGUAGES:
                raise ValueError(
                    f"language {language!r} is not known; expected ISO 639-1 codes of "
                    + " ".join(LANGUAGES)
                )
        return languages

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionLanguage(self)


class CaptionLanguage(Filter):
    """Looks at the caption only, whatever the modality. Works offline.

    `language` is null where no language has `min_probability`.
    """

    reasons = ("other_language",)
    columns = {"language": "string"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        wanted = set(settings.languages)
        # What is like a wanted language is taken for it.
        self._alike = {
            other: next(language for language in settings.languages if language in group)
            for group in _ALIKE
            for other in group
            if wanted & set(group) and other not in wanted
        }
        self._wanted = wanted | self._alike.keys()
        self._foreign = frozenset(
            script for script, written in _SCRIPTS.items() if wanted.isdisjoint(written.split())
        )

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the caption."""
        limits = self._settings
        caption = candidate.caption
        letters = [char for char in caption if char.isalpha()]
        if not caption.isascii() and (script := self._foreign_script(letters)):
            found = f"{quoted(caption)}: {script} letters; wanted: {', '.join(limits.languages)}"
            return Verdict("other_language", found)
        if sum(len(char.encode()) for char in letters) < limits.min_letters:
            return Verdict()
        ranking = _identifier().rank(caption)
        language, probability = ranking[0]
        if probability < limits.min_probability:
            return Verdict()
        columns = {"language": self._alike.get(language, language)}
        if language in self._wanted:
            return Verdict(columns=columns)
        wanted = sum(p for name, p in ranking if name in self._wanted)
        if wanted > limits.max_wanted:
            return Verdict(columns=columns)
        found = (
            f"{quoted(caption)}: {language} with probability {probability:.2g} >= "
            f"{limits.min_probability:g}; wanted: {', '.join(limits.languages)}"
        )
        return Verdict("other_language", found, columns)

    def _foreign_script(self, letters: list[str]) -> str | None:
        """The script that no wanted language is written in of more than half of `letters`."""
        names = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
        script, num = names.most_common(1)[0] if len(letters) > 1 else ("", 0)
        return script.capitalize() if script in self._foreign and num * 2 > len(letters) else None


@cache
def _identifier() -> LanguageIdentifier:
    """The model, read once a process (half a second) when the first caption asks for it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

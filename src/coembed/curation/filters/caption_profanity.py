"""Drop captions with swear words and slurs."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.captions.words import UNSPACED, quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

# Only what has no innocent meaning in any common language: no cock, tit, pussy willow, spic and
# span, Dick or Swedish "slut" (end). Whole words, so that Scunthorpe stays. A data team adds its
# own with `extra_words`.
_LISTED = """
    fuck fucks fucked fucker fuckers fuckin fucking fuckface clusterfuck motherfucker motherfuckers
    motherfucking shit shits shitty shite shithead bullshit dipshit horseshit cunt cunts asshole
    assholes arsehole arseholes jackass dumbass dickhead cocksucker cocksuckers twat twats wanker
    wankers blowjob blowjobs handjob cumshot cumshots gangbang bukkake creampie deepthroat milf porn
    porno pornographic pornhub xxxporn whore whores slutty sluts nigger niggers nigga niggas faggots
    kike kikes wetback tranny shemale
    scheiße scheisse arschloch arschlöcher hurensohn wichser fotze ficken gefickt
    putain connard connards connasse enculé enculés salope salopes
    mierda gilipollas hijoputa hijodeputa puta putas pendejo
    cazzo stronzo stronza vaffanculo puttana caralho porra kurwa kurwy chuj pierdol
    блядь блять хуй хуйня пизда пиздец ебать ёбаный сука orospu siktir
"""
_LEET = str.maketrans("013457@$!", "oieastasi")
_TOKEN = re.compile(r"[\w@$*#!]+(?:[\u0300-\u036f]+[\w@$*#!]*)*")
_LONG_RUN = re.compile(r"(\w)\1{2,}")
# Without any of these no word is disguised: a letter thrice, or beside what stands for a letter.
_SUSPECT = re.compile(r"([^\W\d_])\1\1|[^\W\d_][\d@$!*]|[\d@$!*][^\W\d_]")
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")


class Settings(ComponentSettings):
    """The built-in list is short: English, and the strongest words of some European languages.

    `extra_words` adds words or phrases, `allow` takes words out. They are compared as whole words
    in one case, with digits read as letters ("sh1t"), letters repeated ("fuuuck") and letters
    starred ("f*ck"); words in scripts without spaces are looked for anywhere in the caption.
    """

    name: Literal["caption_profanity"] = "caption_profanity"
    extra_words: tuple[str, ...] = Field(default=())
    allow: tuple[str, ...] = Field(default=())

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionProfanity(self)


class CaptionProfanity(Filter):
    """Looks at the caption only, whatever the modality."""

    reasons = ("profane_caption",)

    def __init__(self, settings: Settings) -> None:
        allowed = {_fold(word) for word in settings.allow}
        listed = (
            {_fold(word) for word in (*_LISTED.split(), *settings.extra_words)} - allowed - {""}
        )
        self._anywhere = tuple(sorted(word for word in listed if _HAS_UNSPACED.search(word)))
        spaced = listed.difference(self._anywhere)
        self._phrases = tuple(sorted(word for word in spaced if " " in word))
        self._words = frozenset(word for word in spaced if " " not in word)
        self._allowed = frozenset(allowed)
        self._masked = {masked for word in self._words if len(word) > 3 for masked in _mask(word)}

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the caption."""
        found = self._find(_fold(candidate.caption))
        return Verdict("profane_caption", f"holds the word {quoted(found)}") if found else Verdict()

    def _find(self, text: str) -> str | None:
        tokens = [
            token.strip("*") if token.startswith("*") else token for token in _TOKEN.findall(text)
        ]
        if not self._words.isdisjoint(tokens):
            return next(token for token in tokens if token in self._words)
        if _SUSPECT.search(text):
            for token in tokens:
                if self._is_disguised(token):
                    return token
        for phrase in self._phrases:
            if phrase in text and f" {phrase} " in f" {' '.join(t.strip('!*#') for t in tokens)} ":
                return phrase
        return next((word for word in self._anywhere if word in text), None)

    def _is_disguised(self, token: str) -> bool:
        if not _SUSPECT.search(token):
            return False
        token = token.rstrip("!").strip("#")
        plain = token.translate(_LEET)
        if token in self._allowed or plain in self._allowed or token.isdigit():
            return False
        if plain in self._words or _LONG_RUN.sub(r"\1", plain) in self._words:
            return True
        return "*" in token and token in self._masked


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _mask(word: str) -> list[str]:
    """`word` with one or two letters in its inside starred."""
    return [
        word[:at] + "*" * num + word[at + num :]
        for num in (1, 2)
        for at in range(1, len(word) - num)
    ]

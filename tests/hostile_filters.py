"""A filter that dies, hangs or errs on certain bytes and captions, for the curation's tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Cell, ColumnType, Filter, Verdict
from coembed.curation.media.media import Media
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`notes` is a folder for what must be remembered from one process to the next."""

    name: Literal["hostile"] = "hostile"
    notes: str = ""
    longest_caption: int = 1000

    def build(self) -> Filter:
        """Make the filter."""
        return Hostile(self)


class Hostile(Filter):
    """Does what the first word of the media's bytes, or of the caption, says."""

    reasons = ("long_words", "refused")
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "byte_sum": "int64",
        "words": "string",
        "_blob": "binary",
        "share": "float64",
    }

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Obey, or sum up the bytes."""
        self._obey(media.data.split(b" ", 1)[0].decode("latin-1"))
        return {
            "byte_sum": sum(media.data),
            "_blob": media.data[:9][::-1],
            "share": len(media.data) / 3,
        }

    def judge(self, candidate: Candidate) -> Verdict:
        """Obey, or count the words; captions in capitals are rewritten."""
        word = candidate.caption.split(" ", 1)[0]
        self._obey(word)
        if word == "REFUSE":
            return Verdict("refused", "as asked", {"words": "none"})
        if len(candidate.caption) > self._settings.longest_caption:
            return Verdict("long_words", f"{len(candidate.caption)} characters")
        caption = candidate.caption.lower() if candidate.caption.isupper() else None
        return Verdict(columns={"words": str(len(candidate.caption.split()))}, caption=caption)

    def _obey(self, word: str) -> None:
        if word == "SEGFAULT":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif word == "EXIT":
            os._exit(7)
        elif word == "SLEEP":
            time.sleep(600)
        elif word == "LATER":  # like a decoder that spoils the heap: it dies elsewhere
            signal.setitimer(signal.ITIMER_REAL, 0.03)
        elif word == "ERROR":
            raise ZeroDivisionError("as asked")
        elif word == "ONCE":
            note = Path(self._settings.notes) / "once"
            if not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def settings(**values: Any) -> Settings:
    """The settings of the hostile filter."""
    return Settings(**values)

"""The report's words: what a drop reason means to somebody who has never seen the code, numbers as
people write them, and text of unknown origin made safe to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

# Joiners that Persian, Indic scripts and emoji need; every other invisible character is shown.
_HARMLESS_INVISIBLE = frozenset("\u200c\u200d\u00ad\ufe0e\ufe0f")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@dataclass(frozen=True, slots=True)
class Family:
    """A group of drop reasons, as the page names and colours it."""

    key: str
    label: str
    about: str


FAMILIES: tuple[Family, ...] = (
    Family("file", "The file", "The media file is missing, broken or not what it says it is."),
    Family("media", "The picture or sound", "It can be opened, but teaches little."),
    Family("caption", "The caption", "The words are empty, automatic, or describe nothing."),
    Family("duplicate", "Seen before", "The same, or nearly the same, is kept elsewhere."),
    Family("mismatch", "Words that do not fit", "Caption and media are not about the same thing."),
    Family("balance", "Too much of one kind", "Common things are thinned out; rare ones count."),
    Family("leak", "Kept for testing", "It lies in an evaluation set, and may not be trained on."),
    Family("people", "People's decisions", "Somebody said so in overrides.csv."),
)  # fmt: skip

_MEANINGS: Mapping[str, tuple[str, str]] = {
    # the file
    "missing_path": ("file", "The row names no file."),
    "path_outside_pool": ("file", "The path leads out of the pool's folder, and was not followed."),
    "unknown_modality": ("file", "The row says it is of a kind that coembed does not know."),
    "missing_file": ("file", "There is no file at that path."),
    "not_a_file": ("file", "The path is a folder, a device or a pipe."),
    "empty_file": ("file", "The file has no bytes in it."),
    "file_too_large": ("file", "The file is larger than the limit for one item."),
    "unreadable_file": ("file", "The disk would not give the file."),
    "repeated_pair_id": ("file", "Another pair has the same id; the first one keeps it."),
    "unreadable": ("file", "The bytes are no picture or sound that can be decoded."),
    "truncated": ("file", "The file was cut off before its end, as broken downloads are."),
    "too_many_pixels": ("file", "Decoded, the picture would be huge: a bomb or a map."),
    "too_many_seconds": ("file", "Decoded, the sound would be longer than the limit."),
    "crashes_decoder": ("file", "Decoding this file crashes the decoder, so it is left alone."),
    "timed_out": ("file", "Looking at this file took longer than the limit for one item."),
    # the picture or sound
    "small_image": ("media", "The picture has too few pixels to show anything."),
    "extreme_ratio": ("media", "The picture is a strip: far wider than high, or higher than wide."),
    "blank_image": ("media", "The picture is one flat colour, or nearly so."),
    "blurred_image": ("media", "The picture is out of focus."),
    "animated_image": ("media", "The picture moves; only its first frame would be learnt from."),
    "silent_audio": ("media", "There is nothing to be heard."),
    "clipped_audio": ("media", "The recording is distorted: it was louder than it can hold."),
    "short_audio": ("media", "The recording is too short."),
    "long_audio": ("media", "The recording is too long."),
    "low_sample_rate": ("media", "The recording keeps too few samples a second: it sounds dull."),
    # the caption
    "empty_caption": ("caption", "There is no caption."),
    "short_caption": ("caption", "The caption is too short to say anything."),
    "long_caption": ("caption", "The caption is too long to be one."),
    "repeated_caption": ("caption", "The same words stand under very many different items."),
    "file_name_caption": ("caption", "The caption is a file name or a camera's numbering."),
    "markup_caption": ("caption", "The caption is pieces of a web page, and little else."),
    "url_caption": ("caption", "The caption is a web address, and little else."),
    "symbol_caption": ("caption", "The caption is mostly signs, not words."),
    "repeated_characters": ("caption", "The caption repeats one character over and over."),
    "other_language": ("caption", "The caption is not in a language that was asked for."),
    "profane_caption": ("caption", "The caption has a word of the list of words not wanted."),
    "personal_data_caption": ("caption", "The caption holds an e-mail, phone or card number."),
    # seen before
    "exact_duplicate": ("duplicate", "The same bytes under another path; one copy is kept."),
    "repeated_pair": ("duplicate", "The same file with the same caption, listed again."),
    "near_duplicate": ("duplicate", "The same picture again, resized, recoloured or cropped."),
    "semantic_duplicate": ("duplicate", "To the model it is all but the same as another item."),
    "near_repeated_pair": ("duplicate", "The same item with nearly the same words, listed again."),
    "near_repeated_caption": ("caption", "Nearly the same words stand under very many items."),
    # the rest
    "mismatched_pair": ("mismatch", "A model that never saw this pair finds that they do not fit."),
    "over_concept_cap": ("balance", "Its words are so common that some such pairs were left out."),
    "over_attribute_cap": ("balance", "There were more pairs of this kind than the limit."),
    "in_evaluation_set": ("leak", "It is in an evaluation set, or a copy of something there."),
    "dropped_by_override": ("people", "Somebody decided so in overrides.csv."),
}  # fmt: skip
_BY_FILTER = (
    ("audio", "media"), ("image", "media"), ("aspect", "media"), ("readable", "file"),
    ("near_caption", "duplicate"), ("caption", "caption"), ("personal", "caption"),
    ("duplicate", "duplicate"), ("mismatch", "mismatch"), ("cap", "balance"), ("leak", "leak"),
)  # fmt: skip

_COLUMN_LABELS: Mapping[str, tuple[str, str]] = {
    "width_px": ("Width", "px"),
    "height_px": ("Height", "px"),
    "ratio": ("Width to height", ""),
    "num_bytes": ("File size", "bytes"),
    "caption_words": ("Caption length", "words"),
    "caption_chars": ("Caption length", "characters"),
    "duration_s": ("Length of the sound", "s"),
    "sample_rate_hz": ("Sample rate", "Hz"),
    "num_channels": ("Channels", ""),
    "num_frames": ("Frames", ""),
    "format": ("File format", ""),
    "colour_mode": ("Colour mode", ""),
    "modality": ("Kind of media", ""),
    "caption_num_items": ("Items under the same words", ""),
    "letter_share": ("Share of letters", ""),
    "match_score": ("How well the words fit (0: by chance)", ""),
    "masked": ("Masked in captions", ""),
}
_UNITS = (("_px", "px"), ("_bytes", "bytes"), ("_s", "s"), ("_hz", "Hz"), ("_db", "dB"),
          ("_dbfs", "dBFS"), ("_chars", "characters"), ("_words", "words"))  # fmt: skip


def meaning(reason: str, filter_name: str = "", about: str = "") -> tuple[str, str]:
    """The family key of a drop reason, and one sentence that says what it means.

    A reason that this page has never heard of is put by the name of its filter, and explained by
    `about`, what the filter says of itself.
    """
    if reason in _MEANINGS:
        return _MEANINGS[reason]
    name = filter_name or reason
    family = next((family for part, family in _BY_FILTER if part in name), "media")
    return family, about or "The line under each example says why."


def words(name: str) -> str:
    """A column's or reason's name as a person says it: near_duplicate → Near duplicate."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def column_label(name: str) -> tuple[str, str]:
    """What a measured column is called on the page, and its unit ("" where it has none)."""
    if name in _COLUMN_LABELS:
        return _COLUMN_LABELS[name]
    for ending, unit in _UNITS:
        if name.endswith(ending):
            return words(name.removesuffix(ending)), unit
    return words(name), ""


def is_telling(column: str) -> bool:
    """Whether a measured column says something to a person: doubts are drawn in another way, the
    nearest pair is shown, and the name of a group says nothing."""
    return not column.endswith(("_doubt", "_group", "_nearest"))


def visible(text: object, max_chars: int = 240) -> str:
    """`text` in one line that shows what is in it: control and direction characters, which could
    steer a terminal or turn a line around, become [U+202E]; too long a text ends in an ellipsis."""
    # Whatever its length, no more is looked at than can be shown.
    raw = str(text)
    line = " ".join(raw[: 4 * max_chars].split())
    shown = "".join(
        f"[U+{ord(c):04X}]"
        if unicodedata.category(c) in _INVISIBLE and c not in _HARMLESS_INVISIBLE
        else c
        for c in line
    )
    if len(shown) > max_chars or len(raw) > 4 * max_chars:
        return shown[: max_chars - 1].rstrip() + "…"
    return shown


def percent(share: float) -> str:
    """A share from 0 to 1 in percent; what is neither nothing nor all is never shown as such."""
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1 %"
    if 99.95 <= value < 100:
        return "> 99.9 %"
    return f"{value:.1f}".replace("100.0", "100").replace(".0", "") + " %"


def number(value: float) -> str:
    """A figure: whole numbers with thousands marked, others with three significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def short(value: float) -> str:
    """A figure for an axis: 12,000 → 12k, 3,400,000 → 3.4M."""
    for limit, mark in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1000 if mark == 'k' else limit):.3g}{mark}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plural(num: int, one: str, many: str | None = None) -> str:
    """1 pair, 2 pairs."""
    return f"{num:,} {one if num == 1 else many or one + 's'}"

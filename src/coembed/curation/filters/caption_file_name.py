"""Drop captions that are the name of a file: what a camera, a telephone or a program made up."""

from __future__ import annotations

import re
from typing import Literal

from coembed.curation.candidate import Candidate
from coembed.curation.captions.words import quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

# A name longer than any file system allows (255 bytes) is text.
_MAX_CHARS = 255


class Settings(ComponentSettings):
    """Nothing to set. Only a caption that is a file name from end to end is dropped: one that
    mentions a camera or a file among other words says something, and stays."""

    name: Literal["caption_file_name"] = "caption_file_name"

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionFileName()


_ENDING = (
    r"\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|hei[cf]|avif|jxl|svg|psd|ico|raw|cr[23]|nef|arw|"
    r"dng|orf|rw2|raf|mp[34]|m4[av]|mov|avi|mkv|webm|3gp|wav|flac|ogg|opus|aac|aiff?|wma|pdf)"
)
# What is added to a name when a file is copied, resized or edited.
_SUFFIX = r"(?:[ _-]*(?:\(\d{1,4}\)|copy|kopie|copie|edit(?:ed)?|scaled|@\dx|\d{2,5}x\d{2,5}))*"
_DATE = r"(?:(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|[0-3]?\d[-_.][01]?\d[-_.](?:19|20)?\d\d)"
_TIME = r"(?:[0-2]?\d[-_.:h]?[0-5]\d(?:[-_.:m]?[0-5]\d(?:[-_.]?\d{1,6})?)?s?)"
_WHEN = rf"{_DATE}(?:[ _,T-]*(?:at|um|à|a las|om|kl\.?|alle|в)?[ _-]*{_TIME}(?:[ _]?[ap]\.?m\.?)?)?"

_KINDS = (
    # Camera makers' own prefixes (the DCF standard: four characters and four digits), then those of
    # telephones and web sites. What also means something else ("WIN 1000", "MG 1300") counts only
    # with the underscore that a camera puts there.
    (
        "a camera's file name",
        r"(?:_?(?:IMG|DSC[FNI]?|SDC|CIMG|IMGP|HPIM|PICT|DCIM|GOPR|MVIMG|FB_IMG|PXL|YDXJ|RIMG|IMAG|"
        r"BURST)[ _-]?E?\d{4,}|"
        r"_?(?:MG|SAM|DCP|DJI|KIF|MVC|STA|SNC|EOS|WIN|CSC|MOV|MVI|VID|AUD|PANO|WP|received|signal)"
        r"_\d{4,}|snapchat-\d{4,}|photo-\d{10,}|G[PXH]\d{6}|"
        r"P[1-9A-C]\d{6}|L10\d{5}|R00\d{5}|\d{3}_\d{4}|\d{3}_?(?:IMG|FUJI|CANON|PANA)\d{4}|"
        r"(?:IMG|VID|AUD|PTT|STK)-\d{8}-WA\d{4}|\d{6,}(?:_\d{6,}){1,3}_[a-z])"
        r"(?:[_.~-]\d{1,9}){0,3}(?:[_.~-][A-Za-z0-9]{1,12})?",
    ),
    (
        "a messenger's file name",
        rf"(?:WhatsApp|Signal|Telegram|Viber|WeChat)[ _-]*(?:Image|Video|Audio|Photo|Bild|Foto)?"
        rf"[ _-]*{_WHEN}",
    ),
    (
        "a screenshot's file name",
        rf"(?:screen[ _-]?shot|screen[ _-]?capture|screen ?recording|bildschirm(?:foto|aufnahme)|"
        rf"capture d['’]écran|captura de (?:pantalla|tela|ecrã)|schermata|schermafbeelding|"
        rf"skärmavbild|skjermbilde|skærmbillede|snímek obrazovky|zrzut ekranu|снимок экрана|"
        rf"скриншот|スクリーンショット|屏幕截图|屏幕快照|截屏|截图|스크린샷)"
        rf"[ _-]*(?:from|de|le|el|van|vom)?[ _-]*(?:{_WHEN}|\(\d{{1,4}}\)|\d{{1,4}})"
        rf"(?:[ _-]+[A-Za-z.]{{1,40}})?",
    ),
    (
        "a placeholder's file name",
        r"(?:image|img|photo|picture|pic|bild|foto|imagen?|imagem|immagine|scan|download|file|"
        r"untitled|unnamed|unbenannt|изображение|фото|图片|画像|写真)"
        r"(?:[_-]?\d{1,6}|[ ]?\(\d{1,4}\)|[ ]\d{1,4})",
    ),
    ("a time stamp", rf"(?:photo[ _-]?)?(?:on[ _])?{_DATE}[ _T-]*(?:at[ _])?{_TIME}(?: ?[AP]M)?"),
    ("a UUID", r"\{?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\}?"),
    ("a hash", r"(?=[0-9a-f]{0,63}\d)(?=[0-9a-f]{0,63}[a-f])(?:0x)?[0-9a-f]{16,128}"),
)
_NAMES = tuple(
    (kind, re.compile(f"(?:{pattern}){_SUFFIX}(?:{_ENDING})?", re.IGNORECASE))
    for kind, pattern in _KINDS
)
# One word with a media file's ending, or a path with one.
_FILE = re.compile(
    rf"(?:[^\s/\\]+|(?:[A-Za-z]:|[.~]{{0,2}})?[/\\][^\n]*|[^\s]+[/\\][^\s]*){_ENDING}",
    re.IGNORECASE,
)
# Every name above holds a digit, or ends as a file does.
_MAY_BE = re.compile(rf"\d|{_ENDING}$", re.IGNORECASE)
# None of them has more words than a screenshot's name.
_MAX_SPACES = 8


class CaptionFileName(Filter):
    """Looks at the caption only, whatever the modality."""

    reasons = ("file_name_caption",)

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the caption."""
        caption = candidate.caption.strip().strip("\"'`“”«»")
        if len(caption) > _MAX_CHARS or _MAY_BE.search(caption) is None:
            return Verdict()
        kind = _kind(caption)
        if kind is None:
            return Verdict()
        return Verdict("file_name_caption", f"{quoted(caption)} is {kind}, nothing more")


def _kind(caption: str) -> str | None:
    if caption.count(" ") <= _MAX_SPACES:
        for kind, pattern in _NAMES:
            if pattern.fullmatch(caption):
                return kind
    return "a file name" if _FILE.fullmatch(caption) else None

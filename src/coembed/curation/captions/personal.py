"""Personal data in captions: e-mail addresses, telephone and card numbers, IBANs, IP addresses.

Strict on purpose: a price, a size, an article number or an ISBN that is taken for a telephone
number damages a caption, and pools are full of them. Numbers with a checksum must pass it, and a
telephone number without its country's code must be written the way telephone numbers are, or stand
after a word that says what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["email", "phone", "card", "iban", "ip"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where `kind` stands in a caption: characters `start` to `end` (exclusive)."""

    start: int
    end: int
    kind: Kind


# Latin, Greek and Cyrillic: whatever else touches an address ("联系a@b.com购买") is no part of it.
_LETTERS = "A-Za-z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_EMAIL = re.compile(
    rf"(?<![{_LETTERS}._%+-])[{_LETTERS}_%+'-](?:[{_LETTERS}_%+'.-]{{0,62}}[{_LETTERS}_%+'-])?+"
    rf"@(?:[{_LETTERS}](?:[{_LETTERS}-]{{0,61}}[{_LETTERS}])?\.){{1,5}}"
    r"(?P<end>[A-Za-z]{2,24}|xn--[a-z0-9-]{2,59})(?![A-Za-z0-9-])"
)
# "logo@2x.png" is a file.
_FILE_ENDINGS = ("png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "tif", "tiff", "heic", "pdf")

# Length of an IBAN by country, from the SWIFT registry.
_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 "
    "IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 "
    "MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 "
    "SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS = {item[:2]: int(item[2:]) for item in _IBANS.split()}
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})(\d{2})(?=[ -]?[A-Za-z0-9])")

# Sixteen digits in fours, American Express's fifteen as 4-6-5, or without any gaps.
_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -])\d{6}\2\d{5}"
    r"|3(?:0[0-5]|[68]\d)\d([ -])\d{6}\3\d{4}|3[47]\d{13}|\d{16})(?![\w]|[.,-]\d)"
)
_CARD_PREFIX = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|65|64[4-9]|35(?:2[89]|[3-8])|62"
    r"|30[0-5]|36|38"
)

_IP = re.compile(
    r"(?<![\w.-])(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?![\w-]|\.\d)"
)

# Whatever is worth a closer look: seven digits with no more between two of them than numbers have.
_MANY_DIGITS = re.compile(r"\d(?:[ .()/\u00a0-]{0,3}\d){6}")

# Country calling codes in use (ITU E.164).
_CODE = re.compile(
    r"1|7|2(?:0|7|1[1-368]|2\d|3\d|4\d|5[0-8]|6\d|9[0179])|3(?:[0-469]|5\d|7[0-8]|8[0-35-79])|"
    r"4(?:[013-9]|2[013])|5(?:[1-8]|0\d|9\d)|6(?:[0-6]|7[02-9]|8[0-35-9]|9[0-2])|"
    r"8(?:[1246]|5[02356]|0[08]|7[08]|8[0-36])|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68])"
)
_GAP = r"(?:[ .\u00a0/-]|\)[ -]?| ?\()"
_INTERNATIONAL = re.compile(
    rf"(?<![\w+.,/-])(?:\+|00(?=\d{{1,3}}[ .(/-]))\d(?:{_GAP}?\d){{6,16}}(?![\w%°€$]|[.,]\d)"
)
_NATIONAL = re.compile(
    # North America: area and exchange never begin with 0 or 1.
    r"(?<![\w+.,/#-])(?:(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}-)[2-9]\d{2}[ .-]\d{4}"
    r"|[2-9]\d{2}\.[2-9]\d{2}\.\d{4}"
    # France: five pairs. The gap is always the same.
    r"|0[1-9]([ .])\d{2}\1\d{2}\1\d{2}\1\d{2}"
    # Britain: 020 7946 0958, 01632 960001, 07700 900123, (020) ...
    r"|\(?0(?:2\d\)? \d{4} \d{4}|1\d{3}\)? \d{6}|1\d{2}\)? \d{3} \d{4}|7\d{3}\)? \d{6})"
    # Germany's mobiles and cities with a slash; Japan and Korea: 03-1234-5678, 010-1234-5678.
    r"|0[1-9]\d{1,4} ?/ ?\d{5,9}|\(0[1-9]\d{1,4}\) ?\d{5,9}"
    r"|0[1-9]\d{0,2}-\d{3,4}-\d{4}"
    # Brazil: (11) 91234-5678.
    r"|\([1-9]\d\) ?9?\d{4}-\d{4})(?![\w%°€$-]|[.,]\d| ?(?:mm|cm|ml|kg|px)\b)"
)
# Words that announce a number. Without a colon after them they also mean other things ("phone 11
# pro"), so that more digits are asked for; some count only with one ("ring 925").
_CUE = re.compile(
    r"(?:(?P<word>\b(?:tel(?:e(?:ph|f)on[eo]?|éfono|efon|eph)?|t[ée]l[ée]phone|phone(?: number)?|"
    r"call(?: us)?|mobile|fax|whatsapp|hotline|rufnummer|тел(?:ефон)?|звоните))"
    r"|\b(?:cell|handy|ring|sms|ph|mob)(?=\s?[:：])"
    r"|电话|電話|手机|手機|전화|फोन|هاتف|☎️?|📞|📱)"
    r"(?:\s{0,2}(?:no\.?|nr\.?|#))?\s{0,2}(?P<colon>[:：.])?\s{0,2}(?=[(+\d])",
    re.IGNORECASE,
)
_LEAST_AFTER_COLON, _LEAST_AFTER_WORD = 7, 9
_CUED = re.compile(rf"[(+]?\d(?:{_GAP}?\d){{5,14}}(?![\w%°€$]|[.,]\d)")
# A number that says it is something else.
_OTHER_NUMBER = re.compile(
    r"(?:isbn(?:-1[03])?|issn|ean|upc|gtin|sku|art(?:ikel|icle)?|item|model|ref(?:erence)?|part|no|"
    r"nr|order|serial|s/n|p/n|id|lot|cat(?:alog(?:ue)?)?|code|mpn|asin|number|nummer|#|№|"
    r"артикул|货号|型号|品番)[.:# -]{0,3}\Z",
    re.IGNORECASE,
)


def find(text: str, kinds: frozenset[Kind]) -> list[Place]:
    """The personal data of `kinds` in `text`, in order and apart from one another."""
    found: list[Place] = []
    if "email" in kinds and "@" in text:
        found += _emails(text)
    if _MANY_DIGITS.search(text):
        if "card" in kinds:
            found += _cards(text)
        if "phone" in kinds:
            found += _phones(text)
    if "iban" in kinds:
        # Before the others: a card's or telephone's digits inside an IBAN are the IBAN's.
        found = _ibans(text) + found
    if "ip" in kinds:
        found += [Place(*match.span(), "ip") for match in _IP.finditer(text)]
    return _apart(found) if len(found) > 1 else found


def _apart(found: list[Place]) -> list[Place]:
    """Where two overlap, the kind that is harder to meet stands: it was found first."""
    chosen: list[tuple[int, Place]] = []
    for rank, place in sorted(enumerate(found), key=lambda ranked: ranked[1].start):
        if not chosen or place.start >= chosen[-1][1].end:
            chosen.append((rank, place))
        elif rank < chosen[-1][0]:
            chosen[-1] = (rank, place)
    return [place for _, place in chosen]


def _emails(text: str) -> list[Place]:
    return [
        Place(*match.span(), "email")
        for match in _EMAIL.finditer(text)
        if match["end"].lower() not in _FILE_ENDINGS
    ]


def _ibans(text: str) -> list[Place]:
    found = []
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[1].upper(), 0)
        end, code = match.start(), ""
        while len(code) < length and end < len(text):
            char = text[end]
            if char.isascii() and char.isalnum():
                code += char.upper()
            elif char not in " -" or len(code) % 4:
                break
            end += 1
        is_whole = end == len(text) or not text[end].isalnum()
        if length and len(code) == length and is_whole and _mod_97(code) == 1:
            found.append(Place(match.start(), end, "iban"))
    return found


def _mod_97(code: str) -> int:
    """ISO 13616: the first four characters last, letters as 10 to 35."""
    return int("".join(str(int(char, 36)) for char in code[4:] + code[:4])) % 97


def _cards(text: str) -> list[Place]:
    found = []
    for match in _CARD.finditer(text):
        digits = _digits(match.group())
        if _CARD_PREFIX.match(digits) and _passes_luhn(digits) and len(set(digits)) > 1:
            found.append(Place(*match.span(), "card"))
    return found


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _phones(text: str) -> list[Place]:
    found = []
    for match in _INTERNATIONAL.finditer(text):
        digits = _digits(match.group()).removeprefix("00")
        if 8 <= len(digits) <= 15 and _is_subscriber(digits) and _is_balanced(match.group()):
            found.append(Place(*match.span(), "phone"))
    for match in _CUE.finditer(text):
        number = _CUED.match(text, match.end())
        is_sure = match["colon"] or not match["word"]
        least = _LEAST_AFTER_COLON if is_sure else _LEAST_AFTER_WORD
        if number and least <= len(_digits(number.group())) <= 15:
            found.append(Place(*number.span(), "phone"))
    for match in _NATIONAL.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        if not _OTHER_NUMBER.search(before):
            found.append(Place(*match.span(), "phone"))
    return found


def _is_subscriber(digits: str) -> bool:
    """Whether `digits` begin with a country's code; the North American plan has ten more."""
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789"
    return _CODE.match(digits) is not None


def _is_balanced(text: str) -> bool:
    return text.count("(") == text.count(")") <= 1


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))

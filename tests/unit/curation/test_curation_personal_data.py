"""Personal data are found in many ways of writing, and numbers of products are not taken for
them. No address or number here is anybody's: the example ranges of RFC 2606, Ofcom, the North
American plan and the card networks' test numbers."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from coembed.curation.candidate import Candidate, Facts
from coembed.curation.captions.personal import Kind, find
from coembed.curation.filters import personal_data
from coembed.curation.filters.base import Verdict
from coembed.types import Pair

MASKS = personal_data.Settings().build()
ALL: frozenset[Kind] = frozenset({"email", "phone", "card", "iban", "ip"})


def judge(caption: str, settings: personal_data.Settings | None = None) -> Verdict:
    chosen = settings.build() if settings else MASKS
    return chosen.judge(Candidate(Pair("p", "a.jpg", caption), caption, Facts(num_bytes=1)))


@pytest.mark.parametrize(
    ("caption", "masked"),
    [
        ("write to jane.doe+x@example.co.uk now", "write to [email] now"),
        ("联系abc@example.com购买", "联系[email]购买"),
        ("<müller@example.de>.", "<[email]>."),
        ("call +49 30 1234567!", "call [phone]!"),
        ("+1 (212) 555-0123", "[phone]"),
        ("+442079460958", "[phone]"),
        ("+44 20 7946 0958, or 020 7946 0958.", "[phone], or [phone]."),
        ("0049 30 1234567", "[phone]"),
        ("(212) 555-0123 or 212-555-0123 or 1-800-555-0199", "[phone] or [phone] or [phone]"),
        ("01 23 45 67 89", "[phone]"),
        ("07700 900123", "[phone]"),
        ("Tel. 0171 1234567", "Tel. [phone]"),
        ("Tel: 12345678", "Tel: [phone]"),
        ("0171/1234567", "[phone]"),
        ("03-1234-5678, 090-1234-5678, 010-1234-5678", "[phone], [phone], [phone]"),
        ("电话：13800138000", "电话：[phone]"),
        ("☎ 555 0123 4", "☎ [phone]"),
        ("(11) 91234-5678", "[phone]"),
        ("+33 (0)1 23 45 67 89", "[phone]"),
        ("card 4111 1111 1111 1111 exp 12/27", "card [card] exp 12/27"),
        ("4111-1111-1111-1111", "[card]"),
        ("5555555555554444", "[card]"),
        ("3782 822463 10005 or 378282246310005", "[card] or [card]"),
        ("IBAN DE89 3704 0044 0532 0130 00, thanks", "IBAN [iban], thanks"),
        ("DE89370400440532013000 is mine", "[iban] is mine"),
        ("GB29 NWBK 6016 1331 9268 19 and more", "[iban] and more"),
        ("a@example.com, a@example.com", "[email], [email]"),
    ],
)
def test_personal_data_are_masked(caption: str, masked: str) -> None:
    verdict = judge(caption)
    assert verdict.reason is None and verdict.caption == masked
    kinds = {kind for kind in ("email", "phone", "card", "iban") if f"[{kind}]" in masked}
    assert verdict.columns == {"masked": " ".join(sorted(kinds))}


NUMBERS = """\
iPhone 12 Pro Max 256GB
phone case for iPhone 12
phone 11 pro max 256
ISBN 978-0-306-40615-7
ISBN 0-306-40615-2
9780306406157
EAN 4006381333931
4006381333931
00012345678905
SKU 212-555-0123
Art. Nr. 01 23 45 67 89
part no. 555-234-5678
model 800-555-0199
size 10 x 20 x 30 cm
1920x1080
1,299.00 USD
$1,234,567.89
2021-03-04 10:11:12
03.04.2021 10:11
1999-2005, 1914-1918
lot of 1000 pieces 12 34 56
200 x 300 x 4000 mm
10-20-30
12.5 - 13.5 mm
+20% more
+5 1234
+1 2021 2022 2023
LEGO 75192 7541 pieces
Nikon 70-200mm f/2.8 SN 20034567
3M 1860 N95 20/box 120/case
1234 5678 9012 3456
0000 0000 0000 0000
4111 1111 1111 1112
tracking 9400 1000 0000 0000 0000 00
IMEI 356938035643809
GTIN 04006381333931
@nike shoes
logo@2x.png
5 @ 3.99
user@localhost
100-200-3000 series
123-456-7890
555-1234
51.5074 -0.1278
40.712776, -74.005974
Bosch 0 601 9J1 100
Bosch 06019J1100
0445110002
5W-30 4 litre
24 36 48 60 72
00 gauge 1234567
call of duty 4 2007
mobile 5000 mAh 10000
ring 925-1234 silver
cell 18650 3000
fax machine 1995
tel aviv 2020 2021
SMS 1234567 converter
DIN 912 M8x20 8.8 100 pcs
2020 2021 2022 2023
pH 7 1000 ml
+/- 0.5 1000 2000
A4 210 x 297 mm
Casio F-91W-1YER
ref 116610LN-0001
Rolex 126710 2021-2022
3 for 10 20 for 50
DE12 by 34 by 56 cm board
GB29 NWBK 6016 1331 9268 18
220-240V 50-60Hz 2000W
700.100.2000
size 36 37 38 39 40 41 42
0.7 x 1.2 x 2000 m
1.2.3.4.5
12 000 000 views
10 000 000 km""".splitlines()


@pytest.mark.parametrize("caption", NUMBERS)
def test_numbers_of_products_stay(caption: str) -> None:
    assert judge(caption) == Verdict()


def test_dropping_tells_what_but_not_which() -> None:
    caption = "mail a@example.com or b@example.com, call +49 30 1234567"
    verdict = judge(caption, personal_data.Settings(action="drop"))
    assert verdict.reason == "personal_data_caption"
    assert verdict.detail == "holds 2 e-mail addresses, 1 telephone number"
    assert verdict.caption == "mail [email] or [email], call [phone]"
    assert "example" not in repr(verdict) and "1234567" not in repr(verdict)


def test_only_the_kinds_of_the_settings_are_looked_for() -> None:
    caption = "a@example.com 192.0.2.1"
    assert judge(caption).caption == "[email] 192.0.2.1"
    assert judge(caption, personal_data.Settings(kinds=("ip",))).caption == "a@example.com [ip]"
    for version in ("1.2.3.4.5", "256.1.1.1", "1.2.3", "v1.2.3.4-beta"):
        assert find(version, ALL) == []
    with pytest.raises(ValueError, match="names a kind twice"):
        personal_data.Settings(kinds=("ip", "ip"))


def test_luhn_and_mod_97_reject_what_random_numbers_would_pass() -> None:
    """One digit changed anywhere in a valid number is always found."""
    for valid in ("4111111111111111", "DE89370400440532013000"):
        for at in range(len(valid)):
            if valid[at].isdigit():
                other = valid[:at] + str((int(valid[at]) + 1) % 10) + valid[at + 1 :]
                assert find(other, frozenset({"card", "iban"})) == []


def test_places_are_apart_and_in_order_whatever_the_text() -> None:
    rng = random.Random(0)
    pieces = [
        *("a@example.com", "+49 30 1234567", "DE89370400440532013000", "4111 1111 1111 1111"),
        *("212-555-0123", "tel: ", "192.0.2.1", " ", "-", "1", "(", "+", "@", "红", "00", "\0"),
    ]
    num = 0
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 10)))
        places = find(text, ALL)
        num += len(places)
        assert all(0 <= p.start < p.end <= len(text) for p in places)
        assert all(a.end <= b.start for a, b in pairwise(places))
    assert num > 1000


@pytest.mark.parametrize(
    "piece",
    ["@", "a@", "a.", "1", "+1", "1 ", "tel ", "(1", "DE89 ", "0 /", "212-", "a@b.com ", "'"],
)
def test_hostile_captions_take_linear_time(piece: str) -> None:
    began = time.process_time()
    judge(piece * (100_000 // len(piece)) + "@")
    assert time.process_time() - began < 5

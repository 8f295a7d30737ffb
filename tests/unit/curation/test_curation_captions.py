"""Filters that judge one caption: what is no caption goes, and nothing that says something does."""

from __future__ import annotations

import random
import re
import time

import pytest

from coembed.curation.candidate import Candidate, Facts
from coembed.curation.captions.words import quoted, words
from coembed.curation.filters import (
    caption_file_name,
    caption_language,
    caption_length,
    caption_markup,
    caption_profanity,
    caption_symbols,
)
from coembed.curation.filters.base import Filter, Verdict
from coembed.types import Pair

PRODUCTS = (
    "iPhone 12 Pro Max 256GB",
    "Nike Air Max 90 Essential",
    "LEGO 75192 Millennium Falcon, 7541 pieces",
    "Canon EOS 5D Mark IV body",
    "WD-40 multi-use spray 400 ml",
    "Levi's 501 original fit jeans, W32 L34",
    "3M 1860 N95 mask, 20/box",
    "Boeing 747-400 in flight",
    "size 10 x 20 x 30 cm",
    '24" × 36" poster (framed)',
    "$12.99 mug",
    "AT&T phone, R&D sample",
    "C++ primer",
    "AC/DC t-shirt, size XXXXXL",
    "1/2 cup of sugar & 3 < 5 eggs",
    "Route 66",
    "Photo album with 100 pockets",
    "a photo taken with a DSC camera",
    "Screenshot of Super Mario 64",
    "untitled",
    "Booking.com headquarters",
    "I <3 NY mug",
    "<PERSON> in front of a house",
    "★★★★★ great shoes 🔥",
    "e.g. a shoe, w/ laces",
)
ANY_SCRIPT = (
    "红色的鞋子放在木桌上",
    "赤い靴と白い靴下",
    "빨간 운동화 한 켤레",
    "लाल जूते मेज पर रखे हैं",
    "حذاء أحمر على طاولة خشبية",
    "נעליים אדומות על השולחן",
    "รองเท้าสีแดงบนโต๊ะ",
    "красные туфли на столе",
    "κόκκινα παπούτσια",
    "կարմիր կոշիկներ",
    "ქალის ფეხსაცმელი",
    "ቀይ ጫማ",
    "giày đỏ trên bàn gỗ",
    "czerwone buty na stole",
    "лалын гутал ширээн дээр",
)
WITHOUT_LANGUAGE: tuple[Filter, ...] = (
    caption_length.Settings().build(),
    caption_file_name.Settings().build(),
    caption_markup.Settings().build(),
    caption_symbols.Settings().build(),
    caption_profanity.Settings().build(),
)

MARKUP = caption_markup.Settings().build()
PROFANITY = caption_profanity.Settings().build()


def judge(chosen: Filter, caption: str) -> Verdict:
    return chosen.judge(Candidate(Pair("p", "a.jpg", caption), caption, Facts(num_bytes=1)))


@pytest.mark.parametrize("chosen", WITHOUT_LANGUAGE, ids=lambda chosen: type(chosen).__name__)
@pytest.mark.parametrize("caption", [*PRODUCTS, *ANY_SCRIPT])
def test_what_says_something_stays_as_it_is(chosen: Filter, caption: str) -> None:
    verdict = judge(chosen, caption)
    assert (verdict.reason, verdict.caption) == (None, None)


def test_they_judge_the_caption_as_rewritten() -> None:
    candidate = Candidate(Pair("p", "a.jpg", "a red mug"), "x", Facts(num_bytes=1))
    assert caption_length.Settings().build().judge(candidate).reason == "short_caption"


@pytest.mark.parametrize(
    ("caption", "reason", "detail"),
    [
        (" \n", "empty_caption", "no text"),
        ("x", "short_caption", "'x': 1 characters < 3"),
        ("0042", "short_caption", "'0042': 0 letters < 2"),
        ("word " * 500, "long_caption", "2499 characters > 2000"),
    ],
)
def test_lengths(caption: str, reason: str, detail: str) -> None:
    verdict = judge(caption_length.Settings().build(), caption)
    assert verdict.reason == reason and detail in verdict.detail


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_chars \(5\) is above max_chars \(4\)"):
        caption_length.Settings(min_chars=5, max_chars=4)


FILE_NAMES = {
    "a camera's file name": (
        "IMG_2041.JPG", "DSC00012", "DSC_0123 copy", "_MG_1234.CR2", "P1010023", "DSCF0001",
        "IMG_20210304_101112", "PXL_20210304_101112123.PORTRAIT", "MVIMG_20210304_101112",
        "IMG-20210304-WA0001", "FB_IMG_1612345678901", "GOPR0123.MP4", "DJI_0001", "100_1234",
        "12345678_10154321_987654_n", "IMG_E1234", "L1002345", "img 2041",
    ),
    "a screenshot's file name": (
        "Screenshot 2024-01-02 at 10.11.12", "Screenshot_20210304-101112_Chrome",
        "Screen Shot 2021-03-04 at 10.11.12 PM", "Bildschirmfoto 2021-03-04 um 10.11.12",
        "Capture d’écran 2021-03-04 à 10.11.12", "スクリーンショット 2021-03-04 10.11.12",
    ),
    "a messenger's file name": (
        "WhatsApp Image 2021-03-04 at 10.11.12 AM.jpeg",
        "WhatsApp Image 2021-03-04 at 10.11.12 (1)",
    ),
    "a placeholder's file name": ("untitled-1.png", "image001", "Image (3)", "Foto 12"),
    "a time stamp": ("20210304_120102", "2021-03-04 10.11.12", "Photo on 2021-03-04 at 10.11 AM"),
    "a UUID": ("123e4567-e89b-12d3-a456-426614174000",),
    "a hash": (
        "d41d8cd98f00b204e9800998ecf8427e", "b1946ac92492d2347c6235b4d2611184-1024x768.jpg",
    ),
    "a file name": (
        "red_leather_shoe.jpg", "photo.JPEG", "C:\\Users\\me\\My Pictures\\a b.jpg",
        "/home/x/my pictures/a b.png", "画像.webp",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "kind"), [(name, kind) for kind, names in FILE_NAMES.items() for name in names]
)
def test_file_names_are_told(caption: str, kind: str) -> None:
    verdict = judge(caption_file_name.Settings().build(), f" {caption} ")
    assert verdict.reason == "file_name_caption"
    assert verdict.detail == f"{quoted(caption)} is {kind}, nothing more"


@pytest.mark.parametrize(
    "caption",
    """\
P51 Mustang
Boeing 747
IMG
R2D2 and C3PO
Sony DSC-RX100 camera
sunset 2021
WIN 10000
MG 1300
image of a cat
Photo 51 by Rosalind Franklin
a download.jpg icon on a screen
effaced facade
GP 5000
Apollo 11
IMG_2041.JPG, a red mug on a table
decade
Windows 10
1999
3.5 mm jack""".splitlines(),
)
def test_what_only_looks_like_a_file_name_stays(caption: str) -> None:
    assert judge(caption_file_name.Settings().build(), caption) == Verdict()


@pytest.mark.parametrize(
    ("caption", "cleaned", "kinds"),
    [
        ("<b>red</b> shoe", "red shoe", "html"),
        ("r<b>e</b>d<br>shoe<p>", "red shoe", "html"),
        ("Tom &amp; Jerry", "Tom & Jerry", "html"),
        ("&amp;lt;b&amp;gt;mug&amp;lt;/b&amp;gt;", "mug", "html"),
        ("<img src='a.jpg' alt=\"x > y\"/> blue", "blue", "html"),
        ('<div class="a b" id=x hidden>chair</DIV>', "chair", "html"),
        ("<script>alert('<b>')</script>mug", "mug", "html"),
        ("<!-- <b> hi --> mug", "mug", "html"),
        ('a mug <a href="http://exa', "a mug", "html"),
        ("see https://x.com/a?b=c. A red shoe on a table", "see. A red shoe on a table", "url"),
        ("Red shoe (https://a.io/x_(1)) with laces", "Red shoe with laces", "url"),
        ("请看https://t.co/abc图片和红色的鞋子", "请看图片和红色的鞋子", "url"),
        ("a mug www.shop.example/1", "a mug", "url"),
        ("shop.example.com/products/1 a red shoe", "a red shoe", "url"),
        ('<a href="https://x.com">a mug</a> https://x.com', "a mug", "html url"),
    ],
)
def test_markup_is_taken_out(caption: str, cleaned: str, kinds: str) -> None:
    verdict = judge(MARKUP, caption)
    assert (verdict.reason, verdict.caption) == (None, cleaned)
    assert verdict.columns == {"markup": kinds}


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("<p>&nbsp;</p>", "markup_caption"),
        ("<script>var a = 'red mug'</script>", "markup_caption"),
        ("https://example.com/a/b.jpg", "url_caption"),
        ("> https://example.com/a/very/long/path/to/some/page.html !", "url_caption"),
    ],
)
def test_nothing_but_markup_is_dropped(caption: str, reason: str) -> None:
    assert judge(MARKUP, caption).reason == reason


@pytest.mark.parametrize(
    "caption",
    """\
a < b and c > d
if a <b and c> d
x <y> z
5 < 6 & 7 > 3
fish &chips; yes
&c.
and/or
4.5/5
a@b.com
Dr.Who/Tardis
</3
a<b
<b?
&#xZZ;
john@example.com/x""".splitlines(),
)
def test_text_is_no_markup(caption: str) -> None:
    assert judge(MARKUP, caption) == Verdict()


def test_markup_may_be_dropped_or_kept() -> None:
    drops = caption_markup.Settings(html="drop", url="drop").build()
    assert judge(drops, "<b>red</b> mug").reason == "markup_caption"
    verdict = judge(drops, "a red mug, https://x.com/a")
    assert (verdict.reason, verdict.detail) == (
        "url_caption",
        "holds the address 'https://x.com/a'",
    )
    keeps = caption_markup.Settings(html="keep", url="keep").build()
    assert judge(keeps, "<b>red</b> https://x.com/a") == Verdict()


NUM = 30_000
HOSTILE = {
    "open": "<" * NUM,
    "tags": "<b " * NUM,
    "attributes": "<b " + "a=a " * NUM,
    "values": '<b a="' * NUM,
    "comments": "<!--" * NUM,
    "scripts": "<script>" * NUM,
    "references": "&" + "amp;" * NUM,
    "hosts": "a." * NUM + "/",
    "dashes": "a-" * NUM + "/",
    "schemes": "http://" * NUM,
    "brackets": "http://a" + ")" * NUM,
    "spaces": "<b" + " " * NUM,
    "runs": "a" * NUM,
    "digits": "1 " * NUM,
    "marks": "a\u0301" * NUM,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_captions_take_linear_time(name: str) -> None:
    began = time.process_time()
    for chosen in WITHOUT_LANGUAGE:
        judge(chosen, HOSTILE[name])
    # A tenth of a second or so; a quadratic pattern takes minutes.
    assert time.process_time() - began < 5


def test_cleaning_is_finished_and_never_fails_on_noise() -> None:
    rng = random.Random(0)
    pieces = [
        *(
            "<b>",
            "</b",
            ">",
            "<",
            "&amp;",
            "&lt;",
            "&#60;",
            "&#0;",
            "&#x110000;",
            "<script>",
            "<!--",
        ),
        *("a", " ", "\0", "https://", "x.com/", "(", ")", "'", '"', "=", "\u200b", "红"),
    ]
    for _ in range(3000):
        caption = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        verdict = judge(MARKUP, caption)
        assert verdict.reason in (None, *MARKUP.reasons)
        if verdict.caption is not None:
            assert not re.search(r"</?b>|<!--.*-->", verdict.caption)


@pytest.mark.parametrize(
    ("caption", "reason", "detail"),
    [
        ("🔥🔥", "symbol_caption", "nothing but emoji"),
        ("👨‍👩‍👧‍👦 ❤️", "symbol_caption", "nothing but emoji"),
        ("-=-=-=-=-", "symbol_caption", "0 letters and digits < 0.4"),
        ("a -------- b", "symbol_caption", "0.2 letters and digits < 0.4"),
        ("\u200b\u200e", "symbol_caption", "shows nothing"),
        ("aaaaaaa", "repeated_characters", "'a' 7 times in a row"),
        ("哈哈哈哈哈哈", "repeated_characters", "'哈' 6 times in a row"),
    ],
)
def test_symbols(caption: str, reason: str, detail: str) -> None:
    verdict = judge(caption_symbols.Settings().build(), caption)
    assert verdict.reason == reason and detail in verdict.detail


def test_marks_count_as_letters_and_shares_are_told() -> None:
    chosen = caption_symbols.Settings().build()
    assert judge(chosen, "हिन्दी में जूते").columns == {"letter_share": 1.0}
    assert judge(chosen, "C++").reason is None
    assert judge(chosen, "ab, !").columns == {"letter_share": 0.5}
    assert judge(chosen, "shhhhhhhh, the baby sleeps").reason is None


@pytest.mark.parametrize(
    ("caption", "wanted", "reason"),
    [
        ("ein roter Schuh auf einem Tisch", ("en",), "other_language"),
        ("ein roter Schuh auf einem Tisch", ("en", "de"), None),
        ("une chaussure rouge sur la table", ("en",), "other_language"),
        ("桌子上的红色鞋子", ("en",), "other_language"),
        ("красный ботинок на столе", ("en", "de"), "other_language"),
        ("красный ботинок на столе", ("uk",), None),  # too like it to tell
        ("탁자 위의 빨간 신발", ("ja",), "other_language"),
        ("kimono", ("en",), None),
        ("Château Margaux", ("en",), None),
        ("Birkenstock Arizona Birko-Flor sandals", ("en",), None),
        ("12.99", ("en",), None),
        ("Nike Air Max 90", ("zh",), None),
    ],
)
def test_languages(caption: str, wanted: tuple[str, ...], reason: str | None) -> None:
    assert judge(caption_language.Settings(languages=wanted).build(), caption).reason == reason


def test_english_captions_of_products_are_english() -> None:
    chosen = caption_language.Settings().build()
    assert [c for c in PRODUCTS if judge(chosen, c).reason] == []


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="'english' is not known; expected ISO 639-1"):
        caption_language.Settings(languages=("english",))


def test_the_languages_of_the_settings_are_the_models() -> None:
    known = set(caption_language._identifier().labels)
    assert set(caption_language.LANGUAGES) == {code for code in known if len(code) == 2}


@pytest.mark.parametrize(
    "caption",
    """\
what the fuck
FUCKING mug
sh1t happens
f*ck this
f**k
fuuuuck
a$$hole
bullsh!t
SCHEISSE
ＦＵＣＫ
fuck!!!
*shit*
хуй""".splitlines(),
)
def test_profanity_is_found(caption: str) -> None:
    verdict = judge(PROFANITY, caption)
    assert verdict.reason == "profane_caption" and verdict.detail.startswith("holds the word '")


@pytest.mark.parametrize(
    "caption",
    """\
Scunthorpe United
Moby Dick
great tits on a branch
a cock crowing
Penistone
shiitake
#1 mug
2** hotel
a****
pussy willow
class assassin
Matsushita
sofa ***
sh*rt
f*rk
spic and span
5417
Sussex""".splitlines(),
)
def test_innocent_words_stay(caption: str) -> None:
    assert judge(PROFANITY, caption) == Verdict()


def test_words_can_be_added_and_allowed() -> None:
    chosen = caption_profanity.Settings(
        extra_words=("darn", "son of a gun", "笨蛋"), allow=("shit",)
    ).build()
    assert judge(chosen, "D4RN it").reason and judge(chosen, "you son of a gun!").reason
    assert judge(chosen, "你是笨蛋吗").reason
    assert judge(chosen, "shit, sh1t, grandson of a gunner, darning").reason is None


def test_words_of_any_script() -> None:
    assert words("A Red-Mug, 2x!") == ["a", "red", "mug", "2x"]
    assert words("हिन्दी जूते") == ["हिन्दी", "जूते"]
    assert words("红mug色") == ["红", "mug", "色"]
    assert words("cafe\u0301 ßtraße") == ["cafe\u0301", "sstrasse"]

"""Captions as shop assistants write them: synonyms, several word orders, things left unsaid.

A word for a colour or a kind belongs to that one colour or kind. Where a detail would name another
colour ("white laces"), it is left out if that colour with this kind must stay unseen.
"""

import random
from collections.abc import Collection

from coembed.pairs.shop.catalogue import Combo, Product
from coembed.pairs.shop.palette import COLOURS

# The first noun is the usual one.
NOUNS: dict[str, tuple[str, ...]] = {
    "sneakers": ("sneakers", "trainers", "gym shoes"),
    "boots": ("boots",),
    "dress": ("dress", "frock"),
    "t-shirt": ("t-shirt", "tee", "tee shirt"),
    "hat": ("hat",),
    "backpack": ("backpack", "rucksack"),
    "handbag": ("handbag", "purse"),
    "umbrella": ("umbrella", "brolly"),
    "watch": ("watch", "wristwatch"),
    "mug": ("mug", "cup"),
    "teapot": ("teapot",),
    "bottle": ("bottle", "flask"),
    "lamp": ("lamp",),
    "chair": ("chair",),
    "sofa": ("sofa", "couch", "settee"),
    "guitar": ("guitar",),
}
_PLURAL = frozenset({"sneakers", "boots"})
# Before the noun, or after it; an empty place means that this style is never said there.
_STYLES: dict[tuple[str, str], tuple[str, str]] = {
    ("sneakers", "low-top"): ("low-top", "with rubber toe caps"),
    ("sneakers", "high-top"): ("high-top", "with a round ankle patch"),
    ("sneakers", "running"): ("running", "with chunky soles"),
    ("sneakers", "slip-on"): ("slip-on", "without laces"),
    ("boots", "ankle"): ("ankle", "with elastic sides"),
    ("boots", "knee-high"): ("knee-high", "with a buckle"),
    ("boots", "lace-up"): ("lace-up", "with laces"),
    ("boots", "wellington"): ("wellington", "for rainy days"),
    ("dress", "A-line"): ("A-line", "with puff sleeves and a bow"),
    ("dress", "maxi"): ("maxi", "with a long skirt"),
    ("dress", "mini"): ("mini", "with a short skirt"),
    ("dress", "long-sleeved"): ("long-sleeved", "with long sleeves"),
    ("t-shirt", "crew-neck"): ("crew-neck", "with a round neck"),
    ("t-shirt", "V-neck"): ("V-neck", "with a V-neck"),
    ("t-shirt", "long-sleeved"): ("long-sleeved", "with long sleeves"),
    ("t-shirt", "pocket"): ("", "with a chest pocket"),
    ("hat", "wide-brim"): ("wide-brimmed", "with a ribbon and a bow"),
    ("hat", "fedora"): ("fedora", "with a band"),
    ("hat", "bucket"): ("bucket", "with a soft brim"),
    ("hat", "beanie"): ("knitted bobble", "with a pompom"),
    ("hat", "baseball"): ("baseball", "with a curved peak"),
    ("backpack", "rounded"): ("rounded", "with a front pocket"),
    ("backpack", "square"): ("square", "with leather buckles"),
    ("backpack", "rolltop"): ("roll-top", "with a single buckle"),
    ("handbag", "tote"): ("tote-style", "with a tall handle"),
    ("handbag", "satchel"): ("satchel-style", "with two buckles"),
    ("handbag", "clasp"): ("", "with a brass clasp"),
    ("umbrella", "crook-handled"): ("open", "with a crook handle"),
    ("umbrella", "straight-handled"): ("open", "with a straight handle"),
    ("umbrella", "folded"): ("folded", "rolled up tight"),
    ("watch", "round"): ("round", "with a round face"),
    ("watch", "square"): ("square", "with a square face"),
    ("watch", "sport"): ("sports", "with a chunky case"),
    ("mug", "straight"): ("", "with straight sides"),
    ("mug", "rounded"): ("rounded", "with a round belly"),
    ("mug", "tall"): ("tall", ""),
    ("mug", "espresso"): ("espresso", "with a saucer"),
    ("teapot", "round"): ("round", "with a round belly"),
    ("teapot", "tall"): ("tall", ""),
    ("teapot", "squat"): ("squat", "with a wooden handle"),
    ("bottle", "sports"): ("sports", "with a spout"),
    ("bottle", "slender"): ("slender", "with a paper label"),
    ("bottle", "insulated"): ("insulated", "with a carrying loop"),
    ("lamp", "cone"): ("table", "with a cone shade"),
    ("lamp", "drum"): ("table", "with a drum shade"),
    ("lamp", "mushroom"): ("mushroom", "with a domed shade"),
    ("lamp", "desk"): ("desk", "with a jointed arm"),
    ("chair", "slatted"): ("slatted", "with a slatted back"),
    ("chair", "padded"): ("dining", "with four straight legs"),
    ("chair", "shell"): ("shell", "with wooden legs"),
    ("chair", "armchair"): ("upholstered", "with padded arms"),
    ("chair", "office"): ("office", "on castors"),
    ("sofa", "two-seater"): ("two-seater", "for two"),
    ("sofa", "three-seater"): ("three-seater", "with three seats"),
    ("sofa", "rolled-arm"): ("", "with rolled arms"),
    ("guitar", "acoustic"): ("acoustic", "with a round sound hole"),
    ("guitar", "double-cut"): ("electric", "with two horns"),
    ("guitar", "single-cut"): ("electric", "with a single cutaway"),
}
_PATTERNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("plain", "solid"), ("",)),
    "striped": (("striped", "striped", "stripy"), ("with stripes",)),
    "dotted": (("dotted", "polka-dot", "spotted"), ("with dots", "with polka dots")),
    "checked": (("checked", "checked", "gingham"), ("with checks", "in gingham check")),
}
_PLACES: dict[str, tuple[str, ...]] = {
    "studio": ("on a plain background", "in the studio", "on a pale backdrop"),
    "pastel": ("on a pastel backdrop", "against a pastel wall"),
    "table": ("on a wooden table", "on a table"),
    "shelf": ("on a shelf", "on a wooden shelf"),
    "room": ("in a room", "on the floor of a room"),
    "counter": ("on a kitchen counter", "on a counter by a tiled wall"),
    "window": ("in window light", "in the light of a window"),
    "boards": ("on wooden boards", "lying on wooden planks"),
}
_WHITE_PARTS: dict[str, tuple[str, frozenset[str]]] = {
    "sneakers": ("soles", frozenset({"low-top", "high-top", "running", "slip-on"})),
    "hat": ("trim", frozenset({"wide-brim", "fedora", "beanie"})),
    "guitar": ("details", frozenset({"double-cut", "single-cut"})),
}
# White parts are painted white only beside these colours.
_WHITE_TRIM = frozenset({"red", "blue", "green", "orange", "purple", "pink", "brown"})


def write(
    rng: random.Random,
    product: Product,
    background: str,
    num: int,
    unseen: Collection[Combo],
) -> list[str]:
    """`num` different captions of one photograph."""
    captions: list[str] = []
    while len(captions) < num:
        caption = _caption(rng, product, background, unseen)
        if caption not in captions:
            captions.append(caption)
    return captions


def _caption(
    rng: random.Random, product: Product, background: str, unseen: Collection[Combo]
) -> str:
    kind = product.kind
    noun = NOUNS[kind][0] if rng.random() < 0.72 else rng.choice(NOUNS[kind])
    colour = product.colour
    if rng.random() < 0.18:
        colour = COLOURS[colour][product.tone].name
    before, after = _STYLES[(kind, product.style)]
    style = before if rng.random() < 0.4 else ""
    detail = after if after and not style and rng.random() < 0.3 else ""
    white = ("white", kind) not in unseen and product.colour in _WHITE_TRIM
    part, on_styles = _WHITE_PARTS.get(kind, ("", frozenset()))
    if not detail and white and product.style in on_styles and rng.random() < 0.25:
        detail = f"with white {part}"
    adjectives, phrases = _PATTERNS[product.pattern]
    said = rng.random() < (0.2 if product.pattern == "plain" else 0.8)
    pattern = rng.choice(adjectives) if said else ""
    place = rng.choice(_PLACES[background]) if rng.random() < 0.3 else ""

    form = rng.random()
    if form < 0.52:
        words = _joined(*rng.choice(((pattern, colour), (colour, pattern))), style, noun)
        if rng.random() < 0.55:
            words = _with_article(words, plural=kind in _PLURAL)
        return _joined(words, detail, place)
    if form < 0.66:
        words = _with_article(_joined(pattern, style, noun), plural=kind in _PLURAL)
        return _joined(words, f"in {colour}", detail, place)
    if form < 0.78 and said and phrases[0]:
        words = _with_article(_joined(colour, style, noun), plural=kind in _PLURAL)
        return _joined(words, rng.choice(phrases), place)
    if form < 0.9:
        parts = [_joined(style, noun), *rng.choice(((colour, pattern), (pattern, colour)))]
        return ", ".join(part for part in (*parts, detail) if part)
    lead = rng.choice(("a photo of", "a picture of", "product photo:", "for sale:", "new in:"))
    words = _joined(pattern, colour, style, noun)
    if not lead.endswith(":") or rng.random() < 0.5:
        words = _with_article(words, plural=kind in _PLURAL)
    return _joined(lead, words, detail, place)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _with_article(words: str, *, plural: bool) -> str:
    if plural:
        return f"a pair of {words}"
    return f"an {words}" if words[0].lower() in "aeiou" else f"a {words}"

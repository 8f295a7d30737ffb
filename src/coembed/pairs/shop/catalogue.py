"""What the shop sells: kinds, their styles, the products, and the photographs of each."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from coembed.pairs.shop.palette import COLOURS, PATTERNS
from coembed.pairs.shop.photo import Photo
from coembed.pairs.shop.seeds import stream

_INDOORS = ("studio", "pastel", "room", "window")
_SURFACES = ("studio", "pastel", "table", "shelf", "counter")
_HUNG = ("studio", "pastel", "boards", "window")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of product: its styles, where it is photographed, what it may cost."""

    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]
    prices: tuple[int, int]


KINDS: dict[str, Kind] = {
    "sneakers": Kind(
        ("low-top", "high-top", "running", "slip-on"),
        ("studio", "pastel", "table", "shelf", "room", "window"),
        (39, 149),
    ),
    "boots": Kind(
        ("ankle", "knee-high", "lace-up", "wellington"),
        ("studio", "pastel", "shelf", "room", "window"),
        (49, 219),
    ),
    "dress": Kind(("A-line", "maxi", "mini", "long-sleeved"), _HUNG, (29, 189)),
    "t-shirt": Kind(("crew-neck", "V-neck", "long-sleeved", "pocket"), _HUNG, (9, 45)),
    "hat": Kind(
        ("wide-brim", "fedora", "bucket", "beanie", "baseball"),
        ("studio", "pastel", "table", "shelf"),
        (12, 89),
    ),
    "backpack": Kind(
        ("rounded", "square", "rolltop"),
        ("studio", "pastel", "table", "shelf", "room", "window"),
        (29, 139),
    ),
    "handbag": Kind(
        ("tote", "satchel", "clasp"), ("studio", "pastel", "table", "shelf"), (35, 299)
    ),
    "umbrella": Kind(("crook-handled", "straight-handled", "folded"), _HUNG, (14, 69)),
    "watch": Kind(("round", "square", "sport"), _HUNG, (49, 399)),
    "mug": Kind(("straight", "rounded", "tall", "espresso"), _SURFACES, (6, 29)),
    "teapot": Kind(("round", "tall", "squat"), _SURFACES, (19, 89)),
    "bottle": Kind(("sports", "slender", "insulated"), _SURFACES, (8, 45)),
    "lamp": Kind(("cone", "drum", "mushroom", "desk"), (*_INDOORS, "table", "shelf"), (24, 179)),
    "chair": Kind(("slatted", "padded", "shell", "armchair", "office"), _INDOORS, (49, 449)),
    "sofa": Kind(("two-seater", "three-seater", "rolled-arm"), _INDOORS, (299, 1899)),
    "guitar": Kind(("acoustic", "double-cut", "single-cut"), (*_INDOORS, "boards"), (89, 999)),
}

Combo = tuple[str, str]


def unseen_combos(seed: int) -> tuple[Combo, ...]:
    """The (colour, kind) pairs that no training caption ever names: one of each kind.

    Each colour is left out of one or two kinds, so that every colour and every kind is well known
    and only their meeting is new.
    """
    rng = stream(seed, "unseen")
    colours = list(COLOURS)
    kinds = list(KINDS)
    rng.shuffle(colours)
    rng.shuffle(kinds)
    taken = (colours * 2)[: len(kinds)]
    return tuple(sorted(zip(taken, kinds, strict=True)))


@dataclass(frozen=True, slots=True)
class Product:
    """One thing for sale."""

    product_id: str
    kind: str
    style: str
    colour: str
    tone: int
    pattern: str
    price: float
    unseen: bool


def _product(seed: int, index: int, combo: Combo, *, unseen: bool) -> Product:
    colour, kind = combo
    rng = stream(seed, "product", index)
    low, high = KINDS[kind].prices
    return Product(
        product_id=f"product-{index:05d}",
        kind=kind,
        style=rng.choice(KINDS[kind].styles),
        colour=colour,
        tone=rng.randrange(len(COLOURS[colour])),
        pattern=rng.choice(("plain", *PATTERNS)),
        price=round(rng.randrange(low, high) + rng.choice((0.0, 0.5, 0.9, 0.95, 0.99)), 2),
        unseen=unseen,
    )


def stock(seed: int) -> Iterator[Product]:
    """Endless products, every (colour, kind) as often as every other."""
    unseen = frozenset(unseen_combos(seed))
    grid = [(colour, kind) for colour in COLOURS for kind in KINDS]
    rng = stream(seed, "stock")
    index = 0
    while True:
        rng.shuffle(grid)
        for combo in grid:
            yield _product(seed, index, combo, unseen=combo in unseen)
            index += 1


def photographs(seed: int, product: Product, image_px: int) -> list[Photo]:
    """One to four photographs of a product, each with another angle, background and light."""
    rng = stream(seed, "photographs", product.product_id)
    places = list(KINDS[product.kind].backgrounds)
    rng.shuffle(places)
    return [
        _photo(seed, product, number, places[number], rng, image_px)
        for number in range(rng.choice((1, 2, 2, 3, 4)))
    ]


def _photo(
    seed: int, product: Product, number: int, background: str, rng: random.Random, image_px: int
) -> Photo:
    long = image_px * 5 // 4
    shape = rng.random()
    return Photo(
        product_seed=f"{seed}/{product.product_id}",
        photo_seed=f"{seed}/{product.product_id}/{number}",
        kind=product.kind,
        style=product.style,
        colour=product.colour,
        tone=product.tone,
        pattern=product.pattern,
        background=background,
        width=long if shape < 0.03 else image_px,
        height=long if 0.03 <= shape < 0.06 else image_px,
        quality=rng.randrange(80, 96),
    )

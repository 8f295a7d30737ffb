"""The ten colours of the shop, their shades, and the paints a product is painted with."""

import random
from dataclasses import dataclass

from coembed.pairs.shop.brush import Paint, Rgb, mixed


@dataclass(frozen=True, slots=True)
class Tone:
    """One shade of a colour, and the synonym a caption may call it by."""

    name: str
    rgb: Rgb


# A synonym belongs to one colour only, and no colour's name or synonym is used for anything else
# in a caption: the promise that an unseen (colour, kind) leaks into no caption rests on it.
COLOURS: dict[str, tuple[Tone, ...]] = {
    "red": (Tone("scarlet", (214, 38, 42)), Tone("crimson", (176, 22, 46))),
    "blue": (
        Tone("cobalt", (36, 88, 204)),
        Tone("navy", (28, 52, 126)),
        Tone("azure", (52, 128, 222)),
    ),
    "green": (
        Tone("emerald", (34, 148, 80)),
        Tone("olive", (104, 128, 48)),
        Tone("forest green", (26, 100, 60)),
    ),
    "yellow": (Tone("lemon", (250, 220, 66)), Tone("mustard", (228, 180, 34))),
    "orange": (Tone("tangerine", (246, 132, 28)), Tone("pumpkin", (232, 106, 30))),
    "purple": (Tone("violet", (122, 62, 178)), Tone("plum", (100, 46, 126))),
    "pink": (Tone("rose", (246, 148, 186)), Tone("fuchsia", (238, 92, 156))),
    "black": (Tone("jet-black", (34, 34, 38)), Tone("ebony", (46, 44, 46))),
    "white": (Tone("snow-white", (246, 246, 244)), Tone("ivory", (244, 239, 226))),
    "brown": (Tone("chestnut", (128, 78, 44)), Tone("chocolate", (94, 60, 42))),
}

PATTERNS = ("plain", "striped", "dotted", "checked")


_DARK = Paint((58, 58, 64))
_METAL = Paint((176, 180, 188))
_WOOD = Paint((190, 144, 96))


@dataclass(frozen=True, slots=True)
class Paints:
    """What a drawing may paint with: the product's colour, and neutrals beside it."""

    main: Paint
    trim: Paint
    dark: Paint = _DARK
    metal: Paint = _METAL
    wood: Paint = _WOOD


def mix_paints(rng: random.Random, colour: str, tone: Tone) -> Paints:
    """The paints of one product: its tone a little varied, a second colour that is neutral."""
    # A small wobble is a large one for a dark colour: brown would turn into olive.
    wobble = 3 if colour in ("black", "white", "brown") else 8
    r, g, b = (min(max(v + rng.randrange(-wobble, wobble + 1), 0), 250) for v in tone.rgb)
    main = (r, g, b)
    cream, white, slate = (246, 238, 220), (250, 250, 248), (92, 96, 106)
    if colour == "white":
        second, trim = rng.choice(((150, 154, 164), (122, 128, 140))), (206, 204, 200)
    elif colour == "black":
        second, trim = rng.choice(((226, 226, 226), (168, 170, 176))), (222, 220, 214)
    elif colour == "yellow":
        second, trim = rng.choice((white, mixed(main, 0.62))), rng.choice((white, slate))
    elif colour == "pink":
        second, trim = rng.choice((white, mixed(main, 0.6))), white
    else:
        second = rng.choice((white, cream, mixed(main, 0.5)))
        trim = rng.choice((white, cream))
    gloss = 0.8 if colour == "black" else 1.0
    return Paints(main=Paint(main, second, gloss), trim=Paint(trim))

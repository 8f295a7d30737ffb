"""Drawings of the living room: lamp, chair, sofa, guitar."""

from coembed.pairs.shop.brush import Brush, Paint
from coembed.pairs.shop.palette import Paints
from coembed.pairs.shop.shapes import arc, box, ellipse, mirrored, path, spline, stroke

_WHITE = (255, 255, 255)
_WARM = (255, 246, 206)


def lamp(b: Brush, p: Paints, style: str) -> None:
    """The shade carries the colour and, lit, glows from below."""
    if style == "desk":
        _desk_lamp(b, p)
        return
    top, low, narrow, wide = {
        "cone": (-0.84, -0.08, 0.24, 0.62),
        "drum": (-0.8, -0.12, 0.5, 0.56),
        "mushroom": (-0.7, -0.1, 0.2, 0.7),
    }[style]
    if style == "cone":
        stem = mirrored(
            spline(
                path("0,0 0.06,0 0.05,0.14 0.2,0.36 0.22,0.5 0.1,0.68 0.26,0.76 0.28,0.84 0,0.85"),
                closed=False,
            )
        )
        b.part(stem, p.trim.shaded(0.94), "round")
    elif style == "drum":
        b.part(box(-0.035, -0.2, 0.035, 0.76), p.metal.shaded(0.9), "metal")
        b.part(ellipse(0, 0.78, 0.34, 0.075), p.metal.shaded(0.9), "metal")
    else:
        b.part(
            mirrored(
                spline(path("0,-0.2 0.16,-0.2 0.13,0.2 0.22,0.66 0.36,0.8 0,0.84"), closed=False)
            ),
            p.main.shaded(1.1),
            "round",
        )
    b.part(ellipse(0, low, wide, 0.09), Paint(_WARM), "flat")
    if style == "mushroom":
        dome = [
            *arc(0, low, wide, low - top, 180, 360, 30),
            *arc(0, low, wide, 0.08, 0, 180, 20)[1:-1],
        ]
        b.part(dome, p.main, "round")
    else:
        lower = arc(0, low, wide, 0.09, 0, 180, 20)
        upper = arc(0, top, narrow, 0.05, 180, 360, 16)
        b.part([*upper, *lower], p.main, "round")
    b.glow(ellipse(0, low + 0.04, wide * 0.72, 0.2), _WARM, 0.5, 0.08)
    b.line(arc(0, low, wide, 0.09, 0, 180, 20), p.main.shaded(0.72).rgb, 0.03)


def _desk_lamp(b: Brush, p: Paints) -> None:
    b.part(ellipse(0.2, 0.76, 0.42, 0.1), p.main.shaded(0.7), "flat")
    b.part(ellipse(0.2, 0.72, 0.42, 0.1), p.main, "round")
    b.part(stroke([(0.2, 0.7), (0.56, 0.06)], 0.075), p.main.shaded(0.8), "flat")
    b.part(stroke([(0.56, 0.06), (0.0, -0.56)], 0.075), p.main.shaded(0.8), "flat")
    b.part(ellipse(0.56, 0.06, 0.085, 0.085), p.metal, "ball")
    b.part(ellipse(0.2, 0.68, 0.08, 0.06), p.metal, "ball")
    with b.at(-0.18, -0.5, 1.0, 28.0):
        b.part(ellipse(0, 0.28, 0.44, 0.12), Paint(_WARM), "flat")
        shade = [*arc(0, -0.2, 0.14, 0.1, 180, 360, 12), *arc(0, 0.28, 0.46, 0.1, 0, 180, 20)]
        b.part(shade, p.main, "round")
        b.glow(ellipse(-0.14, 0.06, 0.07, 0.16), _WHITE, 0.4)
        b.part(ellipse(0, 0.29, 0.42, 0.085), Paint(_WARM), "flat")
        b.part(ellipse(0, 0.3, 0.15, 0.06), Paint((255, 255, 246)), "flat", edge=False)


def chair(b: Brush, p: Paints, style: str) -> None:
    """Turned a little; back, seat and legs are the style."""
    if style == "armchair":
        _armchair(b, p)
    elif style == "office":
        _office_chair(b, p)
    elif style == "shell":
        for x0, x1 in ((-0.3, -0.5), (0.3, 0.5), (-0.16, -0.28), (0.2, 0.3)):
            b.part(
                stroke([(x0, 0.2), (x1, 0.84 if abs(x1) > 0.4 else 0.7)], 0.075, 0.045),
                p.wood,
                "flat",
            )
        b.part(
            spline(
                path(
                    "-0.42,-0.78 0,-0.86 0.42,-0.78 0.5,-0.3 0.56,0.1 0.3,0.26 "
                    "-0.3,0.26 -0.56,0.1 -0.5,-0.3"
                )
            ),
            p.main,
            "round",
        )
        b.glow(ellipse(0.0, -0.02, 0.4, 0.07), (0, 0, 0), 0.3)
        b.part(
            spline(
                path(
                    "-0.5,0.06 -0.3,-0.02 0.3,-0.02 0.5,0.06 0.56,0.2 0.36,0.32 "
                    "-0.36,0.32 -0.56,0.2"
                )
            ),
            p.main.shaded(1.1),
            "down",
        )
    else:
        leg = p.main.shaded(0.82)
        for x, end in ((-0.3, 0.66), (0.44, 0.66)):
            b.part(stroke([(x, 0.1), (x * 1.02, end)], 0.075, 0.06), leg.shaded(0.75), "flat")
        for x in (-0.36, 0.36):
            b.part(stroke([(x, 0.16), (x * 0.94, -0.86)], 0.1, 0.085), leg, "flat")
        if style == "slatted":
            for x in (-0.19, 0.0, 0.19):
                b.part(box(x - 0.045, -0.66, x + 0.045, 0.08), p.main, "round")
            b.part(
                spline(path("-0.4,-0.84 0,-0.92 0.4,-0.84 0.38,-0.6 0,-0.66 -0.38,-0.6")),
                p.main,
                "down",
            )
        else:
            b.part(box(-0.36, -0.82, 0.36, -0.16, 0.1), p.main, "down")
        b.part([(-0.4, 0.0), (0.4, 0.0), (0.54, 0.24), (-0.54, 0.24)], p.main, "down")
        b.part(box(-0.55, 0.23, 0.55, 0.34, 0.03), p.main.shaded(0.78), "down")
        for x in (-0.49, 0.49):
            b.part(stroke([(x, 0.32), (x, 0.88)], 0.1, 0.07), leg, "flat")
        b.part(box(-0.46, 0.56, 0.46, 0.61), leg.shaded(0.8), "flat")


def _armchair(b: Brush, p: Paints) -> None:
    for x in (-0.52, 0.52):
        b.part(stroke([(x, 0.6), (x * 1.04, 0.84)], 0.08, 0.05), p.wood, "flat")
    b.part(
        spline(path("-0.46,-0.68 0,-0.76 0.46,-0.68 0.56,-0.1 0.5,0.4 -0.5,0.4 -0.56,-0.1")),
        p.main,
        "round",
    )
    for x in (-0.2, 0.0, 0.2):
        b.part(ellipse(x, -0.36, 0.025, 0.025), p.main.shaded(0.6), "flat", edge=False)
    b.part(box(-0.46, 0.1, 0.46, 0.34, 0.1), p.main.shaded(1.1), "down")
    b.part(box(-0.52, 0.32, 0.52, 0.68, 0.06), p.main, "down")
    b.glow(box(-0.6, 0.32, 0.6, 0.4), (0, 0, 0), 0.3)
    for side in (-1, 1):
        arm = path("0.42,-0.02 0.58,-0.12 0.74,-0.02 0.74,0.6 0.68,0.7 0.48,0.7 0.44,0.4")
        b.part(spline([(x * side, y) for x, y in arm]), p.main, "round")


def _office_chair(b: Brush, p: Paints) -> None:
    b.part(box(-0.04, 0.26, 0.04, 0.68), p.metal, "metal")
    for x, y in ((-0.46, 0.76), (0.46, 0.76), (-0.2, 0.84), (0.24, 0.84)):
        b.part(stroke([(0, 0.64), (x, y)], 0.07, 0.05), p.dark, "flat")
        b.part(ellipse(x, y + 0.04, 0.06, 0.055), p.dark.shaded(0.7), "ball")
    b.part(stroke([(0.0, -0.2), (0.0, 0.24)], 0.1), p.dark, "flat")
    b.part(
        spline(
            path("-0.36,-0.84 0,-0.9 0.36,-0.84 0.42,-0.4 0.34,-0.1 0,-0.04 -0.34,-0.1 -0.42,-0.4")
        ),
        p.main,
        "round",
    )
    b.glow(ellipse(-0.14, -0.56, 0.1, 0.16), _WHITE, 0.26)
    b.part(
        spline(path("-0.46,0.1 0,0.04 0.46,0.1 0.54,0.24 0.4,0.34 0,0.36 -0.4,0.34 -0.54,0.24")),
        p.main,
        "down",
    )
    for side in (-1, 1):
        rest = [(0.48 * side, 0.2), (0.56 * side, 0.1), (0.56 * side, -0.12), (0.4 * side, -0.14)]
        b.part(stroke(rest, 0.065), p.dark, "flat")


def sofa(b: Brush, p: Paints, style: str) -> None:
    """From the front: seats, arms and feet are the style."""
    b.set_pattern(scale=0.9)
    seats = 3 if style == "three-seater" else 2
    half = 0.92 if seats == 3 else 0.84
    foot = 0.62
    for x in (-half + 0.12, half - 0.12, *((-0.0,) if seats == 3 else ())):
        leg = p.wood if style != "rolled-arm" else Paint((104, 72, 50))
        b.part(stroke([(x, foot - 0.1), (x * 1.02, foot + 0.12)], 0.08, 0.05), leg, "flat")
    top = -0.44 if style != "two-seater" else -0.36
    if style == "rolled-arm":
        back = spline(
            [
                (-half + 0.1, 0.2),
                (-half + 0.14, -0.3),
                (-0.4, -0.46),
                (0.0, -0.56),
                (0.4, -0.46),
                (half - 0.14, -0.3),
                (half - 0.1, 0.2),
            ]
        )
    else:
        back = box(-half + 0.06, top, half - 0.06, 0.3, 0.12)
    b.part(back, p.main.shaded(0.9) if style != "rolled-arm" else p.main, "down")
    span = (2 * half - 0.36) / seats
    left = -half + 0.18
    if style != "rolled-arm":
        for i in range(seats):
            b.part(
                box(left + i * span + 0.01, top + 0.06, left + (i + 1) * span - 0.01, 0.22, 0.1),
                p.main,
                "down",
            )
    else:
        for x, y in ((-0.4, -0.24), (0.0, -0.3), (0.4, -0.24), (-0.2, -0.1), (0.2, -0.1)):
            b.part(ellipse(x, y, 0.022, 0.022), p.main.shaded(0.55), "flat", edge=False)
    b.part(box(-half + 0.1, 0.3, half - 0.1, foot, 0.05), p.main, "down")
    b.glow(box(-half, 0.28, half, 0.38), (0, 0, 0), 0.3)
    for i in range(seats):
        b.part(
            box(left + i * span + 0.005, 0.12, left + (i + 1) * span - 0.005, 0.36, 0.09),
            p.main.shaded(1.08),
            "down",
        )
    for side in (-1, 1):
        if style == "rolled-arm":
            b.part(
                spline(
                    [
                        (x * side, y)
                        for x, y in (
                            (half - 0.18, 0.0),
                            (half, 0.0),
                            (half, foot),
                            (half - 0.2, foot),
                        )
                    ]
                ),
                p.main,
                "round",
            )
            b.part(ellipse((half - 0.07) * side, 0.0, 0.16, 0.15), p.main, "ball")
            b.part(
                ellipse((half - 0.07) * side, 0.0, 0.06, 0.055),
                p.main.shaded(0.75),
                "flat",
                edge=False,
            )
        else:
            x0, x1 = sorted(((half - 0.2) * side, (half + 0.03) * side))
            b.part(box(x0, -0.1, x1, foot, 0.1), p.main, "round")
    if b.rng.random() < 0.6:
        x = b.rng.choice((-0.46, 0.44))
        with b.at(x, 0.02, 1.0, b.rng.choice((-14.0, 12.0))):
            b.part(
                spline(
                    path(
                        "-0.17,-0.16 0,-0.13 0.17,-0.16 0.14,0 0.17,0.16 0,0.13 -0.17,0.16 -0.14,0"
                    )
                ),
                p.trim,
                "ball",
            )


def guitar(b: Brush, p: Paints, style: str) -> None:
    """Leaning: the body carries the colour."""
    with b.at(0.02, 0.0, 1.0, 24.0):
        _guitar(b, p, style)


def _guitar(b: Brush, p: Paints, style: str) -> None:
    neck, board = Paint((150, 104, 66)), Paint((70, 48, 40))
    acoustic = style == "acoustic"
    if acoustic:
        half = path(
            "0,0 0.16,-0.02 0.28,0.06 0.29,0.2 0.24,0.32 0.34,0.46 0.4,0.64 0.3,0.86 0,0.94"
        )
        body = mirrored(spline(half, closed=False))
    elif style == "double-cut":
        body = spline(
            path(
                "-0.1,0.12 -0.2,0.02 -0.32,-0.06 -0.37,0.12 -0.3,0.3 -0.36,0.56 "
                "-0.32,0.82 0,0.94 0.34,0.84 0.4,0.58 0.3,0.32 0.36,0.1 0.3,-0.04 "
                "0.16,0.04 0.1,0.16"
            )
        )
    else:
        body = spline(
            path(
                "-0.12,0.04 -0.28,0.04 -0.35,0.18 -0.29,0.36 -0.39,0.6 -0.32,0.84 "
                "0,0.94 0.32,0.84 0.39,0.6 0.28,0.38 0.34,0.16 0.26,0.06 "
                "0.16,0.24 0.1,0.16"
            )
        )
    b.part([(x + 0.02, y + 0.03) for x, y in body], p.main.shaded(0.5), "flat")
    b.part(body, p.main, "ball")
    b.glow(ellipse(-0.2, 0.62, 0.08, 0.14), _WHITE, 0.36)
    if acoustic:
        b.part(ellipse(0, 0.3, 0.13, 0.13), p.wood, "flat")
        b.part(ellipse(0, 0.3, 0.1, 0.1), Paint((46, 32, 28)), "up")
        b.part(box(-0.16, 0.64, 0.16, 0.71, 0.02), board, "flat")
    else:
        b.part(
            spline(path("-0.14,0.3 0.12,0.26 0.26,0.44 0.28,0.74 0.1,0.66 -0.12,0.7")),
            p.trim,
            "down",
        )
        for y in (0.36, 0.5):
            b.part(box(-0.1, y, 0.1, y + 0.06, 0.02), p.dark, "flat")
        b.part(box(-0.11, 0.66, 0.11, 0.72, 0.01), p.metal, "metal")
        for y in (0.62, 0.7):
            b.part(ellipse(0.2, y, 0.035, 0.035), p.metal, "ball")
    b.part([(-0.055, -0.66), (0.055, -0.66), (0.07, 0.22), (-0.07, 0.22)], board, "round")
    for i in range(7):
        y = -0.56 + 0.11 * i
        b.line([(-0.058, y), (0.058, y)], (188, 180, 166), 0.014)
    head = p.main.shaded(0.85) if not acoustic else neck
    b.part(
        spline(path("-0.06,-0.66 -0.1,-0.78 -0.08,-0.94 0.08,-0.94 0.1,-0.78 0.06,-0.66")),
        head,
        "down",
    )
    for side in (-1, 1):
        for y in (-0.76, -0.83, -0.9):
            b.part(ellipse(0.125 * side, y, 0.03, 0.022), p.metal, "flat")
    for x in (-0.03, 0.0, 0.03):
        b.line([(x, -0.8), (x, 0.68)], (222, 220, 212), 0.008)

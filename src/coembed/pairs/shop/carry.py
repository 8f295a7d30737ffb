"""Drawings of what is carried: backpack, handbag, umbrella, watch."""

from coembed.pairs.shop.brush import Brush, Paint
from coembed.pairs.shop.palette import Paints
from coembed.pairs.shop.shapes import (
    Point,
    arc,
    box,
    ellipse,
    mirrored,
    path,
    rotated,
    spline,
    stroke,
)

_BRASS = Paint((214, 180, 96))
_BALL = Paint((226, 192, 110))


def backpack(b: Brush, p: Paints, style: str) -> None:
    """From the front, straps peeping out at the sides."""
    for side in (-1, 1):
        strap = [(0.3 * side, -0.56), (0.66 * side, -0.2), (0.72 * side, 0.3), (0.5 * side, 0.6)]
        b.part(stroke(spline(strap, closed=False), 0.12), p.main.shaded(0.6), "flat")
    b.part(stroke(arc(0, -0.66, 0.16, 0.18, 180, 360, 14), 0.06), p.main.shaded(0.55), "flat")
    if style == "rolltop":
        b.part(box(-0.52, -0.46, 0.52, 0.76, 0.14), p.main, "round")
        b.part(box(-0.46, -0.8, 0.46, -0.42, 0.1), p.main, "round")
        b.part(box(-0.5, -0.84, 0.5, -0.66, 0.09), p.main.shaded(0.8), "down")
        b.part(box(-0.07, -0.72, 0.07, -0.1, 0.02), p.wood.shaded(0.7), "flat")
        b.part(box(-0.1, -0.2, 0.1, -0.06, 0.02), p.metal, "metal")
    elif style == "square":
        b.part(box(-0.56, -0.68, 0.56, 0.76, 0.16), p.main, "round")
        b.part(
            mirrored(path("0,-0.7 0.44,-0.7 0.57,-0.58 0.57,-0.1 0.42,0 0,0")),
            p.main.shaded(0.9),
            "down",
        )
        for x in (-0.28, 0.28):
            b.part(box(x - 0.055, -0.2, x + 0.055, 0.2, 0.02), p.wood.shaded(0.75), "flat")
            b.part(box(x - 0.075, -0.02, x + 0.075, 0.09, 0.02), p.metal, "metal")
    else:
        b.part(
            spline(
                path(
                    "-0.54,0.7 -0.58,0.2 -0.52,-0.4 -0.3,-0.72 0.3,-0.72 0.52,-0.4 "
                    "0.58,0.2 0.54,0.7 0.2,0.77 -0.2,0.77"
                )
            ),
            p.main,
            "round",
        )
        b.glow(ellipse(-0.2, -0.46, 0.16, 0.1), (255, 255, 255), 0.3)
        b.line(arc(0, -0.1, 0.46, 0.46, 200, 340, 16), p.main.shaded(0.5).rgb, 0.03)
        b.line(arc(0, -0.075, 0.46, 0.46, 200, 340, 16), p.trim.rgb, 0.014)
        b.part(box(0.3, -0.3, 0.36, -0.14, 0.02), p.metal, "flat")
    b.part(box(-0.4, 0.18, 0.4, 0.68, 0.1), p.main, "down")
    b.line([(-0.36, 0.27), (0.36, 0.27)], p.main.shaded(0.5).rgb, 0.03)
    b.line([(-0.36, 0.295), (0.36, 0.295)], p.trim.rgb, 0.014)
    b.part(box(0.18, 0.26, 0.23, 0.42, 0.02), p.metal, "flat")
    b.part(box(-0.12, 0.44, 0.12, 0.56, 0.02), p.trim, "flat")


def handbag(b: Brush, p: Paints, style: str) -> None:
    """From the front; handle and flap are the style."""
    leather = p.main.shaded(0.72)
    if style == "tote":
        b.part(
            stroke(
                spline(path("-0.3,-0.2 -0.26,-0.66 0,-0.86 0.26,-0.66 0.3,-0.2"), closed=False),
                0.07,
            ),
            leather,
            "flat",
        )
        b.part([(-0.62, -0.26), (0.62, -0.26), (0.74, 0.7), (-0.74, 0.7)], p.main, "round")
        b.glow([(-0.6, -0.26), (0.6, -0.26), (0.62, -0.14), (-0.62, -0.14)], (0, 0, 0), 0.2)
        b.line([(-0.62, -0.18), (0.62, -0.18)], leather.rgb, 0.02)
        for x in (-0.3, 0.3):
            b.part(box(x - 0.06, -0.3, x + 0.06, -0.06, 0.03), leather, "flat")
            b.part(ellipse(x, -0.12, 0.025, 0.025), p.metal, "flat")
        b.part(box(-0.72, 0.56, 0.72, 0.72, 0.04), leather, "round")
    elif style == "satchel":
        b.part(
            stroke(
                spline(path("-0.24,-0.26 -0.2,-0.5 0,-0.58 0.2,-0.5 0.24,-0.26"), closed=False),
                0.075,
            ),
            leather,
            "flat",
        )
        b.part(box(-0.74, -0.3, 0.74, 0.62, 0.1), p.main, "round")
        b.part(
            mirrored(path("0,-0.34 0.7,-0.34 0.78,-0.24 0.74,0.12 0.4,0.26 0,0.3")),
            p.main.shaded(0.92),
            "down",
        )
        b.line(
            mirrored(path("0,-0.28 0.68,-0.28 0.7,0.08 0.4,0.2 0,0.24"))[:5],
            leather.rgb,
            0.014,
        )
        for x in (-0.4, 0.4):
            b.part(box(x - 0.06, -0.02, x + 0.06, 0.42, 0.03), leather, "flat")
            b.part(box(x - 0.08, 0.22, x + 0.08, 0.36, 0.02), _BRASS, "metal")
    else:
        b.part(stroke(arc(0, -0.16, 0.36, 0.56, 180, 360, 20), 0.075), leather, "flat")
        b.part(
            spline(
                path("-0.5,-0.22 0,-0.3 0.5,-0.22 0.72,0.3 0.62,0.66 0,0.72 -0.62,0.66 -0.72,0.3")
            ),
            p.main,
            "round",
        )
        b.glow(ellipse(-0.26, 0.1, 0.12, 0.22), (255, 255, 255), 0.28)
        for x in (-0.3, 0.0, 0.3):
            b.line(
                spline([(x * 0.8, -0.16), (x * 1.15, 0.1), (x * 1.2, 0.3)], closed=False),
                leather.rgb,
                0.014,
            )
        b.part(stroke([(-0.5, -0.24), (0.0, -0.3), (0.5, -0.24)], 0.1), _BRASS, "metal")
        b.part(ellipse(-0.05, -0.36, 0.05, 0.05), _BALL, "ball")
        b.part(ellipse(0.05, -0.36, 0.05, 0.05), _BALL, "ball")
        for x in (-0.36, 0.36):
            b.part(ellipse(x, -0.2, 0.06, 0.06), _BRASS, "ball")


def umbrella(b: Brush, p: Paints, style: str) -> None:
    """Open with its scalloped canopy, or folded and standing on its tip."""
    if style == "folded":
        _folded(b, p)
        return
    grip = p.wood if style == "crook-handled" else p.dark
    b.part(box(-0.022, -0.1, 0.022, 0.66), p.metal, "metal")
    if style == "crook-handled":
        hook = [(0.0, 0.5), (0.0, 0.72), *arc(0.13, 0.74, 0.13, 0.15, 180, 0, 12)]
        b.part(stroke(hook, 0.075), grip, "flat")
    else:
        b.part(box(-0.05, 0.5, 0.05, 0.86, 0.05), grip, "round")
    b.line([(0, -0.82), (0, -0.7)], (120, 122, 128), 0.04)
    rib = (-0.88, -0.5, 0.0, 0.5, 0.88)
    edge = [0.08, 0.1, 0.14, 0.1, 0.08]
    # The inside shows dark below the scallops.
    b.part(
        spline(path("-0.84,0.04 0,-0.2 0.84,0.04 0.4,0.1 0,0.06 -0.4,0.1")),
        p.main.shaded(0.5),
        "flat",
    )
    for i in (0, 3, 1, 2):
        x0, x1 = rib[i], rib[i + 1]
        left = [_rib(x0, edge[i], t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
        right = [_rib(x1, edge[i + 1], t) for t in (1.0, 0.75, 0.5, 0.25)]
        scallop = spline(
            [(x0, edge[i]), ((x0 + x1) / 2, min(edge[i], edge[i + 1]) - 0.06), (x1, edge[i + 1])],
            closed=False,
        )
        b.part([*left, *scallop[1:-1], *right], p.main, "down")
        if i in (0, 3):
            dark = i == (3 if b.light_from_left else 0)
            b.glow(
                [(-1, -1), (1, -1), (1, 1), (-1, 1)],
                (0, 0, 0) if dark else (255, 255, 255),
                0.2 if dark else 0.1,
            )
    b.part(ellipse(0.0, -0.75, 0.045, 0.035), p.metal, "flat")


def _rib(x: float, low: float, t: float) -> Point:
    """A place along a rib from the tip (t = 0) to the hem (1); the outer ribs bulge."""
    y = -0.74 + (low + 0.74) * t * t
    bulge = 0.192 * (y + 0.74) * (0.08 - y) if abs(x) > 0.6 else 0.0
    return x * t + (bulge if x > 0 else -bulge), y


def _folded(b: Brush, p: Paints) -> None:
    with b.at(0.0, 0.0, 1.0, 14.0):
        b.part(
            stroke([(0.0, -0.5), (0.0, -0.72), *arc(0.13, -0.74, 0.13, 0.14, 180, 360, 12)], 0.075),
            p.wood,
            "flat",
        )
        b.part(box(-0.02, 0.7, 0.02, 0.92), p.metal, "metal")
        b.part(
            spline(
                path(
                    "-0.08,-0.5 0.08,-0.5 0.2,-0.3 0.16,0.2 0.03,0.76 -0.03,0.76 "
                    "-0.16,0.2 -0.2,-0.3"
                )
            ),
            p.main,
            "round",
        )
        for x in (-0.09, 0.05):
            b.line(
                spline([(x, -0.44), (x * 1.4, 0.0), (x * 0.2, 0.7)], closed=False),
                p.main.shaded(0.6).rgb,
                0.018,
            )
        b.part(box(-0.19, -0.06, 0.19, 0.04, 0.02), p.main.shaded(0.7), "round")
        b.part(ellipse(0.06, -0.01, 0.03, 0.03), p.metal, "flat")


def watch(b: Brush, p: Paints, style: str) -> None:
    """Face on: the strap carries the colour, and so does the ring around the face."""
    b.set_pattern(scale=0.62)
    sport = style == "sport"
    half = 0.27 if sport else 0.22
    b.part(
        mirrored(
            [(0, -0.92), (half * 0.8, -0.92), (half * 0.95, -0.6), (half * 1.3, -0.3), (0, -0.3)]
        ),
        p.main,
        "round",
    )
    b.part(
        mirrored(
            [
                (0, 0.3),
                (half * 1.3, 0.3),
                (half * 0.95, 0.6),
                (half * 0.8, 0.88),
                (half * 0.4, 0.95),
                (0, 0.96),
            ]
        ),
        p.main,
        "round",
    )
    stitch = p.main.shaded(0.6).rgb
    for side in (-1, 1):
        for y0, y1 in ((-0.88, -0.4), (0.4, 0.84)):
            b.line([(half * 0.68 * side, y0), (half * 0.8 * side, y1)], stitch, 0.012)
    for y in (0.6, 0.7, 0.8):
        b.part(ellipse(0, y, 0.03, 0.025), p.main.shaded(0.4), "flat", edge=False)
    b.part(box(-half, -0.95, half, -0.84, 0.03), p.metal, "metal")
    case = p.dark if sport else p.metal
    if style == "square":
        b.part(box(-0.43, -0.43, 0.43, 0.43, 0.12), case, "metal")
        b.part(box(-0.37, -0.37, 0.37, 0.37, 0.08), p.main.shaded(0.9), "down")
        b.part(box(-0.31, -0.31, 0.31, 0.31, 0.05), Paint((250, 249, 244)), "down")
    else:
        if sport:
            for a in (-35, 35, 145, 215):
                b.part(rotated(box(0.4, -0.06, 0.56, 0.06, 0.02), a), p.metal, "metal")
        b.part(ellipse(0, 0, 0.47, 0.47), case, "metal")
        b.part(ellipse(0, 0, 0.41, 0.41), p.main.shaded(0.9), "down")
        b.part(ellipse(0, 0, 0.34, 0.34), Paint((250, 249, 244)), "down")
    b.part(box(0.44, -0.05, 0.53, 0.05, 0.02), p.metal, "metal")
    for i in range(12):
        tick = rotated([(0.26, 0), (0.3, 0)] if i % 3 else [(0.22, 0), (0.3, 0)], i * 30)
        b.line(tick, (60, 60, 66), 0.03)
    # Ten past ten, as in every catalogue, give or take.
    minute = b.rng.choice((50.0, 60.0, 66.0))
    b.part(
        stroke(rotated([(0, 0.04), (0, -0.16)], -62 + b.rng.randrange(-6, 7)), 0.045, 0.02),
        p.dark,
        "flat",
    )
    b.part(stroke(rotated([(0, 0.05), (0, -0.26)], minute), 0.035, 0.015), p.dark, "flat")
    b.part(ellipse(0, 0, 0.03, 0.03), p.dark, "flat")
    b.line(rotated([(0, 0.06), (0, -0.24)], 190), (196, 60, 60), 0.014)

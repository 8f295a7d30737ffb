"""Drawings of the kitchen: mug, teapot, bottle."""

from coembed.pairs.shop.brush import Brush, Paint
from coembed.pairs.shop.palette import Paints
from coembed.pairs.shop.shapes import arc, box, ellipse, mirrored, path, spline, stroke

_COFFEE = Paint((92, 58, 38))
_WHITE = (255, 255, 255)


def mug(b: Brush, p: Paints, style: str) -> None:
    """From slightly above, the handle on the right."""
    top, foot, wide = {
        "straight": (-0.5, 0.62, 0.5),
        "rounded": (-0.36, 0.56, 0.5),
        "tall": (-0.72, 0.7, 0.4),
        "espresso": (-0.26, 0.44, 0.4),
    }[style]
    if style == "espresso":
        b.part(ellipse(0, 0.52, 0.82, 0.2), p.main.shaded(0.8), "flat")
        b.part(ellipse(0, 0.48, 0.82, 0.2), p.main, "round")
        b.part(ellipse(0, 0.46, 0.5, 0.11), p.main.shaded(0.86), "flat", edge=False)
    tall = foot - top
    middle = top + 0.48 * tall
    if style == "rounded":
        handle = arc(wide + 0.02, middle - 0.04, 0.28, 0.26, -100, 110, 18)
    elif style == "tall":
        handle = [
            (wide - 0.05, middle - 0.3),
            (wide + 0.22, middle - 0.28),
            (wide + 0.24, middle + 0.2),
            (wide - 0.05, middle + 0.24),
        ]
        handle = spline(handle, closed=False)
    else:
        handle = arc(wide - 0.02, middle, 0.3 * tall * 0.9, 0.3 * tall, -95, 95, 18)
    b.part(stroke(handle, 0.13), p.main.shaded(0.88), "down")
    b.part(ellipse(0, top, wide, 0.13), p.main.shaded(0.95), "flat")
    if style == "rounded":
        right = spline(
            [(wide, top), (wide + 0.06, middle), (wide - 0.08, foot - 0.08), (wide - 0.26, foot)],
            closed=False,
        )
    elif style == "espresso":
        right = spline([(wide, top), (wide - 0.02, middle), (wide - 0.18, foot)], closed=False)
    else:
        right = [(wide, top), (wide - 0.03, foot - 0.1)]
    end = right[-1][0]
    bottom = arc(0, foot - (0.08 if style != "rounded" else 0.0), end, 0.11, 0, 180, 20)[1:]
    lip = arc(0, top, wide, 0.13, 180, 0, 24)[1:-1]
    b.part([*right, *bottom, *((-x, y) for x, y in reversed(right[:-1])), *lip], p.main, "round")
    b.glow(box(-wide * 0.72, top + 0.16, -wide * 0.5, foot - 0.2, 0.1), _WHITE, 0.42, 0.03)
    b.part(ellipse(0, top, wide, 0.13), p.main.shaded(1.25), "flat")
    b.part(ellipse(0, top + 0.01, wide - 0.05, 0.1), p.main.shaded(0.6), "up")
    b.part(ellipse(0, top + 0.04, wide - 0.09, 0.07), _COFFEE, "down", edge=False)


def teapot(b: Brush, p: Paints, style: str) -> None:
    """Spout on the left, handle on the right, a knob on the lid."""
    wide, top, foot = {
        "round": (0.52, -0.28, 0.62),
        "tall": (0.42, -0.46, 0.68),
        "squat": (0.6, -0.1, 0.58),
    }[style]
    middle = (top + foot) / 2
    reach = wide + 0.36
    spout = spline(
        [
            (-wide + 0.1, middle + 0.22),
            (-wide - 0.12, middle + 0.1),
            (-wide - 0.22, middle - 0.16),
            (-reach, top + 0.06),
        ],
        closed=False,
    )
    b.part(stroke(spout, 0.28, 0.1), p.main.shaded(0.92), "down")
    if style == "squat":
        hoop = arc(0, top + 0.02, wide * 0.72, 0.66, 190, 350, 22)
        b.part(stroke(hoop, 0.075), p.wood, "down")
    else:
        loop = arc(wide - 0.04, middle - 0.04, 0.36, 0.3, -110, 110, 20)
        b.part(stroke(loop, 0.1), p.main.shaded(0.86), "down")
    right = [
        (0.22, top),
        (wide * 0.7, top + 0.1),
        (wide, middle),
        (wide * 0.8, foot - 0.12),
        (wide * 0.52, foot),
    ]
    b.part(
        mirrored(spline([(0.0, top - 0.02), *right, (0.0, foot + 0.03)], closed=False)),
        p.main,
        "ball",
    )
    b.glow(ellipse(-wide * 0.44, middle - 0.16, 0.09, 0.16), _WHITE, 0.6, 0.03)
    b.part(
        mirrored(
            [
                (0.0, foot - 0.02),
                (wide * 0.54, foot - 0.04),
                (wide * 0.5, foot + 0.06),
                (0, foot + 0.08),
            ]
        ),
        p.main.shaded(0.7),
        "round",
    )
    b.part(
        mirrored(
            spline(
                [
                    (0.0, top - 0.16),
                    (0.16, top - 0.12),
                    (0.27, top),
                    (0.24, top + 0.05),
                    (0.0, top + 0.08),
                ],
                closed=False,
            )
        ),
        p.main.shaded(1.06),
        "round",
    )
    b.part(ellipse(0, top - 0.2, 0.08, 0.075), p.wood if style == "squat" else p.trim, "ball")


def bottle(b: Brush, p: Paints, style: str) -> None:
    """A sports flask, a slender glass bottle or an insulated one; a label is the trim."""
    if style == "sports":
        body = mirrored(
            spline(
                path(
                    "0,-0.5 0.22,-0.48 0.32,-0.34 0.32,-0.1 0.27,0.04 0.32,0.2 "
                    "0.32,0.78 0.22,0.84 0,0.86"
                ),
                closed=False,
            )
        )
        b.part(body, p.main, "round")
        b.part(box(-0.24, -0.62, 0.24, -0.46, 0.04), p.dark, "round")
        b.part(box(-0.1, -0.8, 0.1, -0.6, 0.04), p.dark, "round")
        b.part(box(-0.07, -0.9, 0.07, -0.78, 0.04), p.trim, "round")
        for y in (-0.05, 0.04, 0.13):
            b.line([(-0.26, y), (0.26, y)], p.main.shaded(0.7).rgb, 0.016)
    elif style == "slender":
        body = mirrored(
            spline(
                path(
                    "0,-0.86 0.1,-0.86 0.1,-0.5 0.13,-0.36 0.29,-0.12 0.31,0.1 "
                    "0.31,0.76 0.25,0.84 0,0.86"
                ),
                closed=False,
            )
        )
        b.part(body, p.main, "round")
        b.glow(box(0.12, -0.05, 0.2, 0.74, 0.03), _WHITE, 0.24, 0.02)
        b.part(box(-0.125, -0.9, 0.125, -0.8, 0.02), p.main.shaded(0.75), "round")
        b.part(box(-0.075, -0.98, 0.075, -0.88, 0.02), p.wood, "round")
        b.part(box(-0.31, 0.16, 0.31, 0.56, 0.0), p.trim, "round")
        b.line([(-0.18, 0.28), (0.18, 0.28)], p.main.shaded(0.8).rgb, 0.05)
        b.line([(-0.12, 0.4), (0.12, 0.4)], (150, 146, 140), 0.025)
    else:
        b.part(stroke(arc(0, -0.68, 0.17, 0.24, 180, 360, 16), 0.055), p.dark, "flat")
        body = box(-0.38, -0.56, 0.38, 0.86, 0.14)
        b.part(body, p.main, "round")
        b.part(box(-0.28, -0.72, 0.28, -0.5, 0.05), p.metal, "metal")
        b.part(box(-0.38, 0.6, 0.38, 0.68, 0.0), p.metal, "metal")
        b.part(ellipse(0, 0.14, 0.13, 0.13), p.trim, "flat")
        b.part(
            spline([(0.0, 0.05), (0.06, 0.16), (0.0, 0.21), (-0.06, 0.16)]),
            p.main.shaded(0.85),
            "flat",
            edge=False,
        )
    b.glow(box(-0.21, -0.3, -0.14, 0.6, 0.03), _WHITE, 0.4, 0.02)

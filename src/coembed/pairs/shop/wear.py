"""Drawings of what is worn: sneakers, boots, dress, t-shirt, hat."""

from coembed.pairs.shop.brush import Brush, Paint
from coembed.pairs.shop.palette import Paints
from coembed.pairs.shop.shapes import arc, box, ellipse, mirrored, path, spline, stroke


def sneakers(b: Brush, p: Paints, style: str) -> None:
    """A pair in profile, toes to the left; the far shoe behind and above."""
    b.set_pattern(scale=0.72)
    with b.at(0.16, -0.2, 0.86):
        _sneaker(b, p, style)
    with b.at(-0.06, 0.2, 0.98):
        _sneaker(b, p, style)


def _sneaker(b: Brush, p: Paints, style: str) -> None:
    high = style == "high-top"
    top = -0.62 if high else -0.3
    inside = spline(
        [(0.04, top), (0.3, top - 0.08), (0.7, top - 0.06), (0.6, top + 0.2), (0.2, top + 0.2)]
    )
    b.part(inside, p.main.shaded(0.5), "down")
    upper = spline(
        [
            (-0.84, 0.4),
            (-0.87, 0.24),
            (-0.72, 0.1),
            (-0.45, 0.03),
            (-0.2, -0.14),
            (0.0, top - 0.02),
            (0.1, top),
            (0.36, top + 0.14),
            (0.6, top + 0.06),
            (0.74, top - 0.1),
            (0.8, top + 0.1),
            (0.74, 0.05),
            (0.82, 0.4),
        ],
        num=5,
    )
    if style != "slip-on":
        tongue = spline(
            [
                (-0.3, -0.02),
                (-0.12, top - 0.1),
                (0.06, top - 0.18),
                (0.14, top + 0.05),
                (-0.1, 0.05),
            ]
        )
        b.part(tongue, p.trim, "down")
    b.part(upper, p.main, "down")
    b.glow(
        spline([(-0.75, 0.16), (-0.45, 0.06), (-0.2, -0.05), (-0.4, 0.18)]), (255, 255, 255), 0.34
    )
    b.glow(spline([(0.1, 0.28), (0.8, 0.2), (0.84, 0.42), (0.0, 0.44)]), (0, 0, 0), 0.2)
    if style == "slip-on":
        b.part(
            spline([(0.0, -0.2), (0.16, -0.2), (0.26, 0.16), (0.12, 0.2)]),
            p.trim.shaded(0.9),
            "down",
        )
    else:
        for i in range(5 if high else 4):
            t = i / (4 if high else 3)
            x, y = -0.36 + 0.36 * t, 0.02 + (top + 0.06) * t
            b.part(stroke([(x - 0.03, y - 0.02), (x + 0.2, y + 0.1)], 0.055), p.trim, "flat")
    if style == "low-top":
        toe = spline(path("-0.86,0.4 -0.87,0.22 -0.74,0.1 -0.6,0.2 -0.56,0.4"))
        b.part(toe, p.trim, "down")
    if style == "high-top":
        b.part(ellipse(0.36, -0.2, 0.15, 0.15), p.trim, "flat")
        b.part(ellipse(0.36, -0.2, 0.07, 0.07), p.main.shaded(0.85), "flat", edge=False)
    if style == "running":
        swoosh = path("-0.1,0.3 0.28,0.24 0.66,-0.1 0.36,0.34 0.02,0.38")
        b.part(spline(swoosh), p.trim, "down")
        b.part(
            spline([(0.62, -0.18), (0.78, -0.2), (0.76, 0.1), (0.66, 0.1)]),
            p.main.shaded(0.7),
            "down",
        )
    b.line(
        spline([(0.56, top + 0.12), (0.56, 0.1), (0.5, 0.38)], closed=False),
        p.main.shaded(0.7).rgb,
        0.02,
    )
    deep = 0.64 if style == "running" else 0.56
    sole = spline(
        [
            (-0.9, 0.36),
            (-0.5, 0.4),
            (0.1, 0.38),
            (0.84, 0.36),
            (0.88, deep - 0.06),
            (0.7, deep),
            (-0.6, deep),
            (-0.9, deep - 0.08),
        ]
    )
    b.part(sole, p.trim, "down")
    b.line([(-0.84, deep - 0.08), (0.84, deep - 0.08)], p.trim.shaded(0.72).rgb, 0.025)
    b.line([(-0.74, deep), (0.76, deep)], (92, 88, 86), 0.035)


def boots(b: Brush, p: Paints, style: str) -> None:
    """A pair in profile; the shaft's height and the sole are the style."""
    b.set_pattern(scale=0.8)
    with b.at(0.24, -0.06, 0.92):
        _boot(b, p, style)
    with b.at(-0.16, 0.04, 1.0):
        _boot(b, p, style)


def _boot(b: Brush, p: Paints, style: str) -> None:
    top = {"ankle": -0.3, "knee-high": -0.86, "lace-up": -0.5, "wellington": -0.74}[style]
    heel = 0.16 if style in ("ankle", "knee-high") else 0.0
    b.part(ellipse(0.3, top, 0.29, 0.06), p.main.shaded(0.45), "flat")
    wide = 0.3 if style == "wellington" else 0.27
    body = spline(
        [
            (0.3 - wide, top),
            (0.06, top + 0.3 * (0.2 - top)),
            (0.0, 0.06),
            (-0.2, 0.22),
            (-0.5, 0.32),
            (-0.62, 0.48),
            (-0.6, 0.64),
            (-0.2, 0.66),
            (0.1, 0.66 - heel),
            (0.52, 0.64 - heel),
            (0.55, 0.44 - heel / 2),
            (0.5, 0.12),
            (0.54, top + 0.3),
            (0.3 + wide, top),
            (0.3, top + 0.05),
        ],
        num=5,
    )
    b.part(body, p.main, "round")
    b.glow(spline([(-0.52, 0.44), (-0.3, 0.32), (-0.1, 0.26), (-0.3, 0.44)]), (255, 255, 255), 0.4)
    b.glow(box(-0.6, 0.54, 0.6, 0.7), (0, 0, 0), 0.22)
    if style == "wellington":
        b.part(
            spline(
                [
                    (0.0, top - 0.01),
                    (0.3, top + 0.05),
                    (0.6, top - 0.01),
                    (0.6, top + 0.08),
                    (0.3, top + 0.14),
                    (0.0, top + 0.08),
                ]
            ),
            p.main.shaded(0.8),
            "flat",
        )
        b.part(box(0.1, top + 0.2, 0.26, top + 0.32, 0.03), p.trim, "flat")
    if style == "lace-up":
        for i in range(5):
            x, y = -0.14 + 0.05 * i, 0.17 - 0.13 * i
            b.part(stroke([(x, y), (x + 0.2, y + 0.07)], 0.05), p.trim, "flat")
    if style == "ankle":
        gore = spline([(0.22, top + 0.03), (0.4, top + 0.03), (0.34, 0.16), (0.26, 0.16)])
        b.part(gore, p.main.shaded(0.6), "down")
        b.part(stroke([(0.52, top - 0.09), (0.56, top + 0.06)], 0.07), p.trim, "flat")
    if style == "knee-high":
        b.line(
            spline([(0.12, top + 0.1), (0.14, -0.3), (0.1, 0.06)], closed=False),
            p.main.shaded(0.6).rgb,
            0.02,
        )
        b.part(stroke([(0.02, 0.1), (0.52, 0.02)], 0.07), p.main.shaded(0.7), "flat")
        b.part(box(0.2, 0.02, 0.3, 0.13, 0.02), p.metal, "flat")
    sole = Paint((70, 52, 44)) if style != "wellington" else p.trim
    if heel:
        b.part(
            spline(path("-0.64,0.6 -0.2,0.65 0.1,0.6 0.12,0.66 -0.2,0.73 -0.6,0.72")),
            sole,
            "down",
        )
        b.part([(0.22, 0.52), (0.56, 0.5), (0.52, 0.73), (0.3, 0.73)], sole, "down")
    else:
        b.part(box(-0.65, 0.62, 0.58, 0.74, 0.04), sole, "down")
        b.part(box(0.2, 0.68, 0.58, 0.79, 0.02), sole, "down")


def dress(b: Brush, p: Paints, style: str) -> None:
    """On a hanger: bodice, waist, skirt; length and sleeves are the style."""
    b.line(
        spline([(0.0, -0.83), (0.07, -0.88), (0.0, -0.96), (-0.06, -0.9)], closed=False),
        (130, 130, 136),
        0.03,
    )
    b.part(stroke([(-0.3, -0.7), (0.0, -0.83), (0.3, -0.7)], 0.05), p.wood, "flat")
    hem = {"maxi": 0.92, "A-line": 0.6, "mini": 0.42, "long-sleeved": 0.66}[style]
    flare = {"maxi": 0.5, "A-line": 0.66, "mini": 0.46, "long-sleeved": 0.54}[style]
    if style == "long-sleeved":
        for side in (-1, 1):
            sleeve = path("0.24,-0.68 0.38,-0.62 0.56,-0.1 0.62,0.12 0.48,0.15 0.4,-0.05 0.24,-0.4")
            b.part(spline([(x * side, y) for x, y in sleeve]), p.main, "down")
            b.part(stroke([(0.47 * side, 0.15), (0.63 * side, 0.11)], 0.06), p.trim, "flat")
    if style == "A-line":
        for side in (-1, 1):
            puff = path("0.2,-0.7 0.36,-0.7 0.48,-0.56 0.44,-0.42 0.28,-0.44")
            b.part(spline([(x * side, y) for x, y in puff]), p.main, "ball")
    b.part(
        spline(path("-0.2,-0.74 0,-0.78 0.2,-0.74 0.1,-0.52 -0.1,-0.52")),
        p.main.shaded(0.5),
        "flat",
    )
    right = spline(
        [
            (0.12, -0.76),
            (0.27, -0.7),
            (0.27, -0.44),
            (0.21, -0.18),
            (0.32, 0.06),
            (flare * 0.82, hem * 0.6),
            (flare, hem),
        ],
        closed=False,
    )
    wave = [(flare * (1 - i / 4), hem + (0.06 if i % 2 else 0.02)) for i in range(1, 8)]
    neck = spline(path("-0.12,-0.76 -0.06,-0.6 0,-0.56 0.06,-0.6 0.12,-0.76"), closed=False)
    left = [(-x, y) for x, y in reversed(right)]
    b.part([*right, *wave, *left, *neck[1:-1]], p.main, "down")
    b.glow(spline([(0.1, -0.1), (0.5, hem), (0.7, hem), (0.22, -0.1)]), (0, 0, 0), 0.26)
    b.glow(spline([(-0.1, 0.0), (-0.24, hem), (-0.12, hem), (-0.06, 0.0)]), (255, 255, 255), 0.26)
    for x in (-0.56, -0.2, 0.18, 0.55):
        fold = spline(
            [(x * 0.3, -0.1), (x * flare, hem * 0.5), (x * flare * 1.25, hem)], closed=False
        )
        b.line(fold, p.main.shaded(0.74).rgb, 0.014)
    b.part(
        spline(path("-0.22,-0.22 0,-0.18 0.22,-0.22 0.23,-0.12 0,-0.08 -0.23,-0.12")),
        p.trim if style != "maxi" else p.main.shaded(0.62),
        "down",
    )
    if style == "A-line":
        b.part(spline([(0.0, -0.15), (0.12, -0.24), (0.13, -0.06)]), p.trim, "down")
        b.part(spline([(0.0, -0.15), (-0.12, -0.24), (-0.13, -0.06)]), p.trim, "down")


def t_shirt(b: Brush, p: Paints, style: str) -> None:
    """Laid flat; neckline, sleeves and pocket are the style."""
    b.part(ellipse(0.0, -0.6, 0.25, 0.11), p.main.shaded(0.5), "flat")
    for side in (-1, 1):
        if style == "long-sleeved":
            sleeve = path("0.42,-0.62 0.62,-0.5 0.76,0.1 0.84,0.58 0.66,0.62 0.52,0.1 0.4,-0.2")
        else:
            sleeve = path("0.4,-0.64 0.62,-0.52 0.92,-0.14 0.72,0.06 0.44,-0.22")
        b.part([(x * side, y) for x, y in sleeve], p.main, "down")
        if style != "long-sleeved":
            b.line([(0.9 * side, -0.18), (0.7 * side, 0.02)], p.main.shaded(0.7).rgb, 0.016)
        else:
            b.part(
                stroke([(0.65 * side, 0.6), (0.85 * side, 0.56)], 0.07), p.main.shaded(0.75), "flat"
            )
    if style == "V-neck":
        neck = [(-0.24, -0.64), (0.0, -0.3), (0.24, -0.64)]
    else:
        neck = [(x, y) for x, y in reversed(arc(0, -0.64, 0.24, 0.2, 0, 180, 12))]
    side_line = spline(path("0.24,-0.66 0.46,-0.62 0.5,-0.3 0.47,0.2 0.52,0.78"), closed=False)
    hem = spline([(0.52, 0.78), (0.0, 0.83), (-0.52, 0.78)], closed=False)
    b.part(
        [*side_line, *hem[1:-1], *((-x, y) for x, y in reversed(side_line)), *neck], p.main, "down"
    )
    b.glow(spline([(0.28, -0.3), (0.5, -0.2), (0.54, 0.8), (0.3, 0.8)]), (0, 0, 0), 0.2)
    b.glow(spline([(-0.4, -0.5), (-0.2, -0.3), (-0.24, 0.4), (-0.38, 0.3)]), (255, 255, 255), 0.24)
    for x, y in ((0.28, 0.1), (-0.3, 0.3), (0.1, 0.5)):
        fold = spline([(x, y), (x * 0.8, y + 0.1), (x * 0.4, y + 0.2)], closed=False)
        b.line(fold, p.main.shaded(0.8).rgb, 0.014)
    b.line([(-0.5, 0.73), (0.0, 0.78), (0.5, 0.73)], p.main.shaded(0.76).rgb, 0.014)
    band = (
        [(-0.27, -0.65), (0.0, -0.26), (0.27, -0.65)]
        if style == "V-neck"
        else arc(0, -0.64, 0.26, 0.23, 180, 0, 12)
    )
    collar = p.trim if style in ("crew-neck", "long-sleeved") else p.main.shaded(0.78)
    b.part(stroke(band, 0.06), collar, "flat")
    if style == "pocket":
        b.part(path("0.1,-0.2 0.36,-0.2 0.36,0.06 0.23,0.12 0.1,0.06"), p.trim, "down")
        b.line([(0.1, -0.15), (0.36, -0.15)], p.trim.shaded(0.7).rgb, 0.014)


def hat(b: Brush, p: Paints, style: str) -> None:
    """Seen a little from above; brim and crown are the style."""
    b.set_pattern(scale=0.9)
    if style == "beanie":
        _beanie(b, p)
        return
    if style == "baseball":
        _cap(b, p)
        return
    wide = {"wide-brim": 0.92, "fedora": 0.72, "bucket": 0.66}[style]
    if style != "bucket":
        b.part(ellipse(0, 0.36, wide, 0.26), p.main.shaded(0.62), "flat")
        b.part(ellipse(0, 0.31, wide, 0.25), p.main, "round")
        b.glow(ellipse(0.1, 0.36, 0.56, 0.13), (0, 0, 0), 0.36)
    if style == "fedora":
        crown = spline(
            path(
                "-0.46,0.34 -0.42,-0.1 -0.34,-0.44 -0.14,-0.5 0,-0.42 0.14,-0.5 "
                "0.34,-0.44 0.42,-0.1 0.46,0.34 0.2,0.43 -0.2,0.43"
            )
        )
    elif style == "bucket":
        crown = mirrored(
            [
                (0.0, -0.42),
                *arc(0.28, -0.28, 0.14, 0.14, 270, 350, 6),
                (0.5, 0.24),
                (0.3, 0.33),
                (0, 0.35),
            ]
        )
    else:
        crown = spline(
            path(
                "-0.44,0.32 -0.42,0 -0.3,-0.34 0,-0.44 0.3,-0.34 0.42,0 0.44,0.32 "
                "0.2,0.41 -0.2,0.41"
            )
        )
    if style == "bucket":
        b.part(crown, p.main, "round")
        brim = mirrored(path("0,0.26 0.26,0.23 0.48,0.15 0.72,0.46 0.68,0.54 0.36,0.65 0,0.68"))
        b.part(brim, p.main, "round")
        for i in (0.36, 0.68):
            seam = [
                (0.48 + 0.24 * i, 0.15 + 0.33 * i),
                (0.28, 0.25 + 0.34 * i),
                (0, 0.27 + 0.36 * i),
            ]
            b.line(mirrored(seam)[:3] + mirrored(seam)[3:], p.main.shaded(0.75).rgb, 0.014)
        return
    b.part(crown, p.main, "round")
    b.glow(ellipse(-0.12, -0.24, 0.12, 0.14), (255, 255, 255), 0.3)
    band = mirrored(path("0,0.24 0.24,0.22 0.45,0.13 0.46,0.31 0.22,0.41 0,0.43"))
    b.part(band, p.trim, "round")
    if style == "wide-brim":
        b.part(spline([(0.24, 0.3), (0.42, 0.16), (0.42, 0.42)]), p.trim, "down")
        b.part(spline([(0.24, 0.3), (0.08, 0.18), (0.06, 0.42)]), p.trim, "down")


def _beanie(b: Brush, p: Paints) -> None:
    b.part(
        spline(path("-0.58,0.3 -0.56,-0.1 -0.34,-0.48 0,-0.58 0.34,-0.48 0.56,-0.1 0.58,0.3")),
        p.main,
        "round",
    )
    for i in range(-3, 4):
        x = i * 0.16
        b.line(
            spline([(x, 0.24), (x * 0.9, -0.16), (x * 0.3, -0.54)], closed=False),
            p.main.shaded(0.8).rgb,
            0.014,
        )
    b.part(
        mirrored(path("0,0.2 0.4,0.18 0.62,0.12 0.65,0.34 0.62,0.5 0.3,0.56 0,0.57")),
        p.main.shaded(0.86),
        "round",
    )
    for i in range(-7, 8):
        b.line([(i * 0.085, 0.2), (i * 0.085, 0.55)], p.main.shaded(0.66).rgb, 0.014)
    b.part(ellipse(0, -0.64, 0.2, 0.19), p.trim, "ball")
    for dx, dy in ((-0.07, -0.7), (0.06, -0.6), (0.0, -0.54), (0.1, -0.72), (-0.1, -0.58)):
        b.line([(dx, dy), (dx + 0.04, dy + 0.05)], p.trim.shaded(0.75).rgb, 0.02)


def _cap(b: Brush, p: Paints) -> None:
    dome = spline(
        path("-0.5,0.3 -0.5,-0.06 -0.3,-0.4 0.08,-0.5 0.46,-0.36 0.66,0 0.66,0.3 0.1,0.36")
    )
    b.part(dome, p.main, "round")
    b.glow(ellipse(-0.1, -0.2, 0.16, 0.14), (255, 255, 255), 0.3)
    for end in (-0.14, 0.34):
        b.line(
            spline([(0.08, -0.5), (0.08 + end * 0.9, -0.2), (end * 1.3, 0.32)], closed=False),
            p.main.shaded(0.72).rgb,
            0.016,
        )
    b.part(ellipse(0.08, -0.5, 0.06, 0.035), p.main.shaded(0.7), "flat")
    visor = spline(
        path("0.12,0.27 -0.2,0.22 -0.5,0.24 -0.84,0.38 -0.95,0.5 -0.7,0.52 -0.3,0.46 0.06,0.42")
    )
    b.part(visor, p.main.shaded(0.84), "down")
    b.glow(ellipse(-0.6, 0.36, 0.16, 0.05), (255, 255, 255), 0.3)
    b.part(ellipse(-0.16, -0.02, 0.14, 0.14), p.trim, "down")
    b.part(ellipse(-0.16, -0.02, 0.06, 0.06), p.main.shaded(0.85), "flat", edge=False)

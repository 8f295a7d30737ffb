"""What things of the shop sound like: boots, sneakers, watch, teapot, bottle, umbrella, chair, mug,
backpack; and two that work: engine, hammer."""

from __future__ import annotations

import numpy as np

from coembed.pairs.shop.sounds.nature import drops
from coembed.pairs.shop.sounds.recording import Session
from coembed.pairs.shop.sounds.waves import Signal, add, band, burst, curve, fade, glide, ring

_GLASS = ((1, 1, 0.22), (2.32, 0.6, 0.14), (4.25, 0.35, 0.08), (6.63, 0.2, 0.04))
_CHINA = ((1, 1, 0.05), (1.8, 0.7, 0.035), (2.9, 0.5, 0.025), (4.1, 0.3, 0.015))
_PLANK = ((1, 1, 0.05), (2.1, 0.5, 0.03), (3.4, 0.35, 0.02), (5.2, 0.2, 0.012))
_NAIL = ((1, 1, 0.09), (2.7, 0.7, 0.06), (5.1, 0.5, 0.03))


def boots(s: Session) -> Signal:
    """Steps of heel and toe: on gravel a crunch of grains, on wood a knock, in water a splash."""
    out = s.silence()
    hz = s.source.uniform(110, 190)
    for start in s.beats(s.per_s(1.1, 3.6), jitter=0.06):
        for part, lag in ((1.0, 0.0), (0.6, s.play.uniform(0.07, 0.11))):
            at = start + s.samples(lag)
            add(out, at, _step(s, hz), part * s.play.uniform(0.75, 1.0))
    return out


def _step(s: Session, hz: float) -> Signal:
    if s.manner == "wood":
        num = s.samples(0.25)
        knock = ring(num, s.rate_hz, hz * s.play.uniform(0.95, 1.05), _PLANK)
        return knock + 0.35 * s.hiss(600, 3000, num) * fade(num, s.rate_hz, 0.008)
    num = s.samples(0.2)
    if s.manner == "puddle":
        splash = s.hiss(500, 6000, num) * curve(num, ((0, 0), (0.12, 1), (0.4, 0.4), (1, 0)))
        add(splash, s.samples(0.03), _bubble(s, s.play.uniform(350, 700), 0.06), 0.6)
        return splash
    grains = np.zeros(num)
    grain = s.noise(s.samples(0.004)) * fade(s.samples(0.004), s.rate_hz, 0.0012)
    for _ in range(70):
        place = s.play.randrange(num)
        add(grains, place, grain, s.play.uniform(0.2, 1.0) * (1 - place / num))
    crunch = band(grains, s.rate_hz, 700, 6500)
    thud = 0.5 * ring(num, s.rate_hz, 85, ((1, 1, 0.03),))
    return crunch + thud * burst(num, s.rate_hz, 0.003, 1)


def sneakers(s: Session) -> Signal:
    """Rubber squeaks on a court, or soft soles jog along."""
    out = s.silence()
    if s.manner == "squeaking":
        for start in s.beats(s.per_s(1.0, 5.5), jitter=0.3):
            num = s.samples(s.play.uniform(0.07, 0.15))
            hz = s.play.uniform(1100, 1900)
            sweep = hz * curve(num, ((0, 0.85), (0.4, 1.2), (1, s.play.uniform(0.8, 1.5))))
            squeak = glide(sweep * (1 + 0.01 * s.noise(num)), s.rate_hz, num, (1, 0.7, 0.4, 0.2))
            add(out, start, squeak * curve(num, ((0, 0), (0.15, 1), (0.8, 0.7), (1, 0))))
        return out
    for start in s.beats(s.per_s(1.6, 4.2), jitter=0.04):
        num = s.samples(0.18)
        thump = ring(num, s.rate_hz, s.play.uniform(70, 95), ((1, 1, 0.035), (2.2, 0.3, 0.02)))
        scuff = s.hiss(900, 3500, num) * curve(num, ((0, 0), (0.25, 0.35), (1, 0)))
        add(out, start, thump * burst(num, s.rate_hz, 0.004, 1) + 0.6 * scuff)
    return out


def watch(s: Session) -> Signal:
    """Tick and tock: the escapement catches twice, a little apart in pitch."""
    out = s.silence()
    hz = s.hz(2200, 5200)
    for turn, start in enumerate(s.beats(s.per_s(1.2, 8), jitter=0.005)):
        num = s.samples(0.03)
        tick = ring(num, s.rate_hz, hz * (1, 0.86)[turn % 2],
                    ((1, 1, 0.004), (1.31, 0.6, 0.003)))  # fmt: skip
        add(out, start, tick)
        add(out, start + s.samples(0.006), tick, 0.5)
    return out


def _bubble(s: Session, hz: float, length_s: float) -> Signal:
    """An air bubble: its pitch rises as it comes to the surface."""
    num = s.samples(length_s)
    return glide(hz * curve(num, ((0, 1), (1, 1.6))), s.rate_hz, num) * burst(
        num, s.rate_hz, 0.004, length_s / 3
    )


def _pouring(s: Session, low_hz: float, high_hz: float, per_s: float) -> Signal:
    """Water into a vessel that fills up, so that what it sounds like rises."""
    out = 0.08 * s.hiss(800, 5000) * s.wobble(3, 0.3)
    filling = curve(s.num, ((0, 1), (1, 1.5)))
    for start in s.scattered(per_s):
        hz = s.play.uniform(low_hz, high_hz) * float(filling[start])
        add(out, start, _bubble(s, hz, 0.07), s.play.uniform(0.3, 1.0))
    return out


def teapot(s: Session) -> Signal:
    """Whistles on the stove, higher and louder as it boils; or pours."""
    if s.manner == "pouring":
        return _pouring(s, 450, 1300, s.per_s(12, 80))
    hz = s.hz(1100, 3300)
    rise = curve(s.num, ((0, 0.93), (0.5, 1), (1, 1.01)))
    shake = 1 + 0.004 * glide(s.play.uniform(5, 8), s.rate_hz, s.num)
    tone = glide(hz * rise * shake, s.rate_hz, s.num, (1, 0.25, 0.08))
    steam = s.hiss(0.8 * hz, 2.2 * hz)
    return (tone + 0.3 * steam) * curve(s.num, ((0, 0.25), (0.4, 0.9), (1, 1))) * s.wobble(4, 0.1)


def bottle(s: Session) -> Signal:
    """A cork pops and it fizzes; glass clinks; it gurgles as it is emptied."""
    out = s.silence()
    if s.manner == "gurgling":
        for start in s.beats(s.per_s(1.6, 7), jitter=0.1):
            add(out, start, _bubble(s, s.play.uniform(170, 300), 0.16))
        return out + 0.06 * s.hiss(500, 3000)
    if s.manner == "clinking":
        hz = s.hz(1500, 3600)
        for start in s.beats(s.per_s(0.9, 5), jitter=0.15):
            clink = ring(s.samples(0.6), s.rate_hz, hz * s.play.uniform(0.97, 1.03), _GLASS)
            add(out, start, clink, s.play.uniform(0.6, 1.0))
        return out
    at = s.samples(s.play.uniform(0.1, 0.4))
    num = s.samples(0.2)
    pop = glide(
        s.source.uniform(350, 650) * curve(num, ((0, 1.5), (0.2, 1), (1, 0.9))), s.rate_hz, num
    )
    pop = pop * fade(num, s.rate_hz, 0.025) + s.hiss(400, 5000, num) * fade(num, s.rate_hz, 0.004)
    add(out, at, pop * 1.2)
    fizz = s.hiss(3000, 7500) * curve(s.num, ((0, 0.35), (1, 0.1))) + 0.5 * drops(
        s, 150, 3000, 7500, 0.001
    )
    add(out, at + s.samples(0.05), fizz, 0.8)
    return out


def umbrella(s: Session) -> Signal:
    """Rain drums on its cloth; or it is opened with a whoosh and a click."""
    if s.manner == "rain":
        cloth = drops(s, s.source.uniform(50, 130), 180, 900, 0.012)
        return 2 * cloth + 0.05 * s.hiss(1500, 6000)
    out = s.silence()
    for start in s.beats(0.6, jitter=0.2):
        num = s.samples(s.play.uniform(0.25, 0.4))
        whoosh = s.hiss(150, 1800, num) * curve(num, ((0, 0), (0.75, 1), (1, 0)))
        add(out, start, whoosh)
        click = ring(s.samples(0.08), s.rate_hz, 1500, _CHINA)
        add(out, start, click, 0.5)
        add(out, start + num, click, 0.9)
    return out


def chair(s: Session) -> Signal:
    """Creaks: wood sticks and slips, tick by tick. Scrapes: its legs stutter over the floor."""
    out = s.silence()
    hz = s.hz(260, 800)
    slip = ring(s.samples(0.06), s.rate_hz, hz,
                ((1, 1, 0.008), (1.7, 0.8, 0.006), (2.9, 0.5, 0.004)))  # fmt: skip
    scraping = s.manner == "scraping"
    for start in s.beats(s.per_s(0.7, 2.4), jitter=0.15):
        length_s = s.play.uniform(0.25, 0.5)
        num = s.samples(length_s)
        low, high = (90, 130) if scraping else (28, s.play.uniform(60, 110))
        at = 0.0
        while at < length_s:
            add(out, start + s.samples(at), slip, 0.5 + 0.5 * s.play.random())
            at += s.play.uniform(0.9, 1.1) / (low + (high - low) * at / length_s)
        if scraping:
            rub = s.hiss(0.8 * hz, 6 * hz, num) * curve(num, ((0, 0), (0.1, 1), (0.8, 0.8), (1, 0)))
            add(out, start, rub, 0.9)
    return out


def mug(s: Session) -> Signal:
    """A spoon goes round in it, or it is set down, or two of them meet."""
    out = s.silence()
    hz = s.hz(1500, 3300)
    if s.manner == "stirring":
        for start in s.beats(s.per_s(2.2, 7.5), jitter=0.08):
            tap = ring(s.samples(0.15), s.rate_hz, hz * s.play.uniform(0.94, 1.06), _CHINA)
            add(out, start, tap, s.play.uniform(0.4, 1.0))
        return out + 0.05 * s.hiss(2000, 6000) * (1 + glide(s.per_s(1, 3.5), s.rate_hz, s.num))
    modes = [(m, a, 2.2 * d) for m, a, d in _CHINA]
    for start in s.beats(s.per_s(0.7, 3.2), jitter=0.2):
        touch = ring(s.samples(0.3), s.rate_hz, hz * s.play.uniform(0.96, 1.04), modes)
        if s.manner == "set down":
            touch = 0.35 * touch + ring(s.samples(0.3), s.rate_hz, 160, _PLANK)
        add(out, start, touch, s.play.uniform(0.6, 1.0))
    return out


def backpack(s: Session) -> Signal:
    """A zip: its teeth part faster and faster."""
    out = s.silence()
    tooth = s.hiss(1500, 7000, s.samples(0.006)) * fade(s.samples(0.006), s.rate_hz, 0.0015)
    pace = s.per_s(0.6, 2.2)
    for start in s.beats(pace, jitter=0.15):
        length_s = s.play.uniform(0.5, 0.7) / pace
        first, last = 40 * pace + 20, 110 * pace + 40
        at = 0.0
        while at < length_s:
            add(out, start + s.samples(at), tooth, s.play.uniform(0.6, 1.0))
            at += s.play.uniform(0.95, 1.05) / (first + (last - first) * at / length_s)
    return out


def engine(s: Session) -> Signal:
    """Firing strokes and their harmonics; one that is revved goes up and down."""
    hz: Signal | float = s.hz(28, 150) * s.wobble(3, 0.02)
    if s.manner == "revving":
        swing = glide(s.play.uniform(0.3, 0.8), s.rate_hz, s.num)
        hz = hz * (1.35 + 0.5 * swing)
    strokes = [s.source.uniform(0.4, 1.0) / n for n in range(1, 26)]
    tone = glide(hz, s.rate_hz, s.num, strokes)
    puffs = s.hiss(80, 1800) * (1 + 0.8 * glide(hz, s.rate_hz, s.num))
    return tone + 0.5 * puffs


def hammer(s: Session) -> Signal:
    """Blows on a nail ring; on a plank they thud."""
    out = s.silence()
    nail = s.manner == "nail"
    hz = s.hz(1300, 2900) if nail else s.hz(140, 420)
    for start in s.beats(s.per_s(1.0, 5), jitter=0.07):
        num = s.samples(0.4)
        blow = ring(num, s.rate_hz, hz * s.play.uniform(0.98, 1.03), _NAIL if nail else _PLANK)
        knock = s.hiss(150, 2500, num) * fade(num, s.rate_hz, 0.012)
        add(out, start, blow + 0.8 * knock, s.play.uniform(0.75, 1.0))
    return out

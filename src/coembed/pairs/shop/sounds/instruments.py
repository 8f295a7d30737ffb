"""Instruments: guitar, piano, flute, drum, bell."""

from __future__ import annotations

from coembed.pairs.shop.sounds.recording import Session
from coembed.pairs.shop.sounds.waves import Signal, add, burst, curve, fade, glide, pluck, ring

_CHORDS = ((1, 1.5, 2, 2.52, 3, 4), (1, 1.5, 2, 2.38, 3, 4), (1, 1.34, 2, 2.67, 3.36, 4))
_SCALE = (1, 1.122, 1.26, 1.335, 1.498, 1.682, 1.888, 2)
# A hum tone, the prime, a minor third, a fifth, the nominal: Fletcher and Rossing, The Physics of
# Musical Instruments, chapter 21.
_CHURCH_BELL = (
    (0.5, 0.4, 1.6), (1, 1, 1.1), (1.19, 0.6, 0.9), (1.5, 0.35, 0.7), (2, 0.9, 0.6),
    (2.67, 0.3, 0.35), (3.01, 0.25, 0.3), (4.17, 0.15, 0.2),
)  # fmt: skip
_HAND_BELL = ((1, 1, 0.7), (2.76, 0.5, 0.35), (5.4, 0.3, 0.16), (8.9, 0.15, 0.08))
# Of an ideal membrane (zeros of the Bessel functions).
_DRUM = ((1, 1, 0.16), (1.59, 0.6, 0.1), (2.14, 0.4, 0.08), (2.3, 0.3, 0.07), (2.65, 0.2, 0.05))


def guitar(s: Session) -> Signal:
    """Strummed: a chord's strings one after the other. Plucked: its strings one by one."""
    out = s.silence()
    base = s.hz(75, 300)
    chord = s.source.choice(_CHORDS)
    damping = s.source.uniform(0.002, 0.008)
    num = s.samples(1.6)

    def string(ratio: float) -> Signal:
        finger = s.hiss(base, 6 * base * ratio, s.samples(0.02))
        return pluck(num, s.rate_hz, base * ratio, finger, damping)

    if s.manner == "strummed":
        lag = s.samples(s.play.uniform(0.008, 0.022))
        strings = [string(ratio) for ratio in chord]
        for turn, start in enumerate(s.beats(s.per_s(0.8, 3.2))):
            way = strings if turn % 2 == 0 else strings[::-1]
            for place, plucked in enumerate(way):
                add(out, start + place * lag, plucked, s.play.uniform(0.7, 1.0))
    else:
        strings = [string(ratio) for ratio in chord]
        order = s.source.sample(range(6), 6)
        for turn, start in enumerate(s.beats(s.per_s(1.5, 7))):
            add(out, start, strings[order[turn % 6]], s.play.uniform(0.6, 1.0))
    return out


def piano(s: Session) -> Signal:
    """Notes of one scale; stiff strings, so that the upper partials are a little too high."""
    out = s.silence()
    base = s.hz(70, 900)
    stiffness = 4e-4
    modes = [
        (n * (1 + stiffness * n * n) ** 0.5, 1 / n**1.2, 1.1 / (1 + 0.35 * n)) for n in range(1, 11)
    ]
    notes: dict[int, Signal] = {}

    def note(degree: int) -> Signal:
        if degree not in notes:
            notes[degree] = ring(s.samples(1.8), s.rate_hz, base * _SCALE[degree], modes)
            notes[degree] *= 1 - fade(s.samples(1.8), s.rate_hz, 0.003)
        return notes[degree]

    together = s.manner == "chords"
    for start in s.beats(s.per_s(*((0.7, 4.5) if together else (0.9, 6)))):
        degrees = (0, 2, 4) if together else (s.play.randrange(8),)
        shift = s.play.choice((0, 0, 3)) if together else 0
        for degree in degrees:
            add(out, start, note((degree + shift) % 8), s.play.uniform(0.6, 1.0))
        knock = s.hiss(200, 1500, s.samples(0.03)) * fade(s.samples(0.03), s.rate_hz, 0.006)
        add(out, start, knock, 0.15)
    return out


def flute(s: Session) -> Signal:
    """A tune with vibrato and breath, or one long note."""
    base = s.hz(300, 1300)
    starts = [0] if s.manner == "note" else s.beats(s.per_s(0.9, 5), jitter=0.02)
    ends = [*starts[1:], s.num]
    out = s.silence()
    for start, end in zip(starts, ends, strict=True):
        num = max(64, end - start)
        hz = base * (_SCALE[s.play.randrange(8)] if s.manner == "tune" else 1)
        vibrato = glide(s.play.uniform(4.5, 6), s.rate_hz, num)
        note = glide(hz * (1 + 0.006 * vibrato), s.rate_hz, num, (1, 0.35, 0.16, 0.05))
        breath = s.hiss(0.8 * hz, 3 * hz, num)
        shape = curve(num, ((0, 0), (0.08, 0.9), (0.3, 1), (0.85, 0.8), (1, 0)))
        add(out, start, (note * (1 + 0.1 * vibrato) + 0.12 * breath) * shape)
    return out


def drum(s: Session) -> Signal:
    """A beat, every other stroke softer; or a roll that swells."""
    out = s.silence()
    hz = s.hz(55, 260)
    num = s.samples(0.6)
    bend = 1 + 0.35 * fade(num, s.rate_hz, 0.02)
    modes = [glide(hz * m * bend, s.rate_hz, num) * a * fade(num, s.rate_hz, d)
             for m, a, d in _DRUM]  # fmt: skip
    skin = sum(modes, start=0.4 * s.hiss(300, 4000, num) * fade(num, s.rate_hz, 0.012))
    if s.manner == "roll":
        swell = curve(s.num, ((0, 0.3), (s.play.uniform(0.5, 0.9), 1), (1, 0.5)))
        for start in s.beats(s.source.uniform(13, 22), jitter=0.15):
            at = min(start, s.num - 1)
            add(out, start, skin, float(swell[at]) * s.play.uniform(0.6, 1.0))
        return out
    for turn, start in enumerate(s.beats(s.per_s(0.9, 5.5), jitter=0.02)):
        add(out, start, skin, (1.0, 0.45, 0.7, 0.45)[turn % 4] * s.play.uniform(0.9, 1.0))
    return out


def bell(s: Session) -> Signal:
    """A church bell tolls, a hand bell is shaken."""
    out = s.silence()
    church = s.manner == "church"
    hz = s.hz(170, 700) if church else s.hz(900, 2600)
    modes = _CHURCH_BELL if church else _HAND_BELL
    struck = ring(s.samples(4 if church else 1.5), s.rate_hz, hz, modes)
    struck *= burst(len(struck), s.rate_hz, 0.001, 60)
    rate = s.per_s(0.45, 2) if church else s.per_s(2, 8)
    for start in s.beats(rate, jitter=0.03 if church else 0.1):
        add(out, start, struck, s.play.uniform(0.7, 1.0))
    return out

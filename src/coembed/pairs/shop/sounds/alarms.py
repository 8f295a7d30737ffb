"""What calls: siren, alarm clock, smoke alarm, doorbell, telephone."""

from __future__ import annotations

import numpy as np

from coembed.pairs.shop.sounds.recording import Session
from coembed.pairs.shop.sounds.waves import Signal, add, curve, fade, glide, ring

_HORN = (1, 0.6, 0.45, 0.3, 0.2, 0.14, 0.1)
_SQUARE = (1, 0, 1 / 3, 0, 1 / 5)
_GONG = ((1, 1, 0.25), (2.4, 0.7, 0.2), (3.9, 0.5, 0.12), (5.6, 0.3, 0.08))
_CHIME = ((1, 1, 0.7), (2.0, 0.2, 0.4), (2.76, 0.3, 0.25), (5.4, 0.12, 0.1))


def siren(s: Session) -> Signal:
    """Wailing: up and down smoothly. Two-tone: between two pitches a fourth apart."""
    low = s.hz(330, 900)
    swing = glide(
        s.per_s(0.25, 3.5) if s.manner == "wailing" else s.per_s(0.4, 2), s.rate_hz, s.num
    )
    if s.manner == "wailing":
        hz = low * 2 ** (0.55 + 0.55 * swing)
    else:
        # Steep, and yet without a step: which side of it a sample is on must not hang on a bit.
        hz = low * (1 + 0.167 * (1 + np.tanh(60 * swing)))
    passing = curve(s.num, ((0, s.play.uniform(0.3, 1)), (0.5, 1), (1, s.play.uniform(0.3, 1))))
    return glide(hz, s.rate_hz, s.num, _HORN) * passing


def alarm_clock(s: Session) -> Signal:
    """Digital: four beeps and a rest. Ringing: a hammer between two little bells."""
    out = s.silence()
    hz = s.hz(900, 2600)
    if s.manner == "ringing":
        struck = ring(s.samples(0.3), s.rate_hz, hz, _GONG)
        for start in s.beats(s.per_s(7, 26), jitter=0.05):
            add(out, start, struck, s.play.uniform(0.8, 1.0))
        return out
    rate = s.per_s(3.5, 13)
    num = s.samples(0.55 / rate)
    beep = glide(hz, s.rate_hz, num, _SQUARE) * _edges(num)
    for turn, start in enumerate(s.beats(rate, jitter=0)):
        if turn % 6 < 4:
            add(out, start, beep)
    return out


def smoke_alarm(s: Session) -> Signal:
    """Three piercing pulses and a rest (the temporal-three pattern of ISO 8201), here at any speed;
    a buzzing one chirps once and again."""
    out = s.silence()
    hz = s.source.uniform(2900, 3500)
    rate = s.per_s(0.9, 4)
    num = s.samples(0.5 / rate)
    pulse = glide(hz, s.rate_hz, num, (1, 0.3)) * _edges(num)
    for turn, start in enumerate(s.beats(rate, jitter=0)):
        if s.manner == "steady" or turn % 4 < 3:
            add(out, start, pulse)
    return out


def doorbell(s: Session) -> Signal:
    """Ding-dong on two chimes, or an electric buzzer."""
    out = s.silence()
    hz = s.hz(350, 1300)
    if s.manner == "buzzer":
        num = s.samples(s.play.uniform(0.35, 0.8))
        tone = glide(hz * 0.16, s.rate_hz, num, [1 / n**0.6 for n in range(1, 30)])
        for start in s.beats(1.1, jitter=0.1):
            add(out, start, tone * _edges(num))
        return out
    ding = ring(s.samples(2), s.rate_hz, hz * 1.26, _CHIME)
    dong = ring(s.samples(2), s.rate_hz, hz, _CHIME)
    for start in s.beats(0.5, jitter=0.1):
        add(out, start, ding)
        add(out, start + s.samples(s.play.uniform(0.42, 0.6)), dong)
    return out


def telephone(s: Session) -> Signal:
    """An old one rings its two bells, a mobile one plays a jingle, a desk one trills."""
    out = s.silence()
    hz = s.hz(700, 2200)
    if s.manner == "ringing":
        one = ring(s.samples(0.25), s.rate_hz, hz, _GONG)
        other = ring(s.samples(0.25), s.rate_hz, hz * 1.19, _GONG)
        for turn, start in enumerate(s.beats(24, jitter=0.02)):
            if turn % 36 < 26:
                add(out, start, (one, other)[turn % 2])
        return out
    if s.manner == "trilling":
        swing = np.tanh(20 * glide(s.source.uniform(11, 17), s.rate_hz, s.num))
        tone = glide(hz * (1 + 0.12 * swing), s.rate_hz, s.num, _SQUARE)
        num = s.samples(0.9)
        for start in s.beats(0.7, jitter=0):
            add(out, start, tone[:num] * _edges(min(num, s.num)))
        return out
    tune = [2 ** (s.source.choice((0, 2, 4, 7, 9, 12)) / 12) for _ in range(8)]
    for turn, start in enumerate(s.beats(s.source.uniform(5, 8), jitter=0)):
        num = s.samples(0.16)
        add(out, start, glide(hz * tune[turn % 8], s.rate_hz, num, (1, 0.4, 0.2))
            * fade(num, s.rate_hz, 0.09))  # fmt: skip
    return out


def _edges(num: int) -> Signal:
    """On and off within a twentieth each, so that it does not click."""
    return curve(num, ((0, 0), (0.05, 1), (0.95, 1), (1, 0)))

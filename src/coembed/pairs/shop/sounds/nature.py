"""Weather and animals: rain, wind, waves, thunder, birds, crickets, a dog."""

from __future__ import annotations

import numpy as np

from coembed.pairs.shop.sounds.recording import Session
from coembed.pairs.shop.sounds.waves import Signal, add, band, burst, curve, fade, glide


def drops(s: Session, per_s: float, low_hz: float, high_hz: float, decay_s: float) -> Signal:
    """Single drops at random, each a short burst of noise or less."""
    hits = s.silence()
    for place in s.scattered(per_s):
        hits[place] += s.play.uniform(0.1, 1.0) ** 2
    num = s.samples(6 * decay_s)
    shape = s.noise(num) * fade(num, s.rate_hz, decay_s)
    size = 1 << (s.num + num).bit_length()
    spread = np.fft.irfft(np.fft.rfft(hits, size) * np.fft.rfft(shape, size), size)[: s.num]
    return band(spread, s.rate_hz, low_hz, high_hz)


def rain(s: Session) -> Signal:
    """Light and heavy rain differ in how dense it is; a tent's cloth makes the drops dull."""
    if s.manner == "light":
        return 0.1 * s.hiss(1500, 7000) + drops(s, 60, 1200, 7000, 0.004)
    if s.manner == "heavy":
        return s.hiss(400, 6500) * s.wobble(1.5, 0.12) + 0.6 * drops(s, 400, 500, 6000, 0.004)
    return 0.12 * s.hiss(700, 4000) + 1.5 * drops(s, 140, 250, 1600, 0.008)


def wind(s: Session) -> Signal:
    """Noise whose middle wanders with the gusts; a whistle in it where it is high."""
    gusts = s.wobble(1.2, 0.75)
    middle = s.hz(160, 1500)
    out = s.hiss(0.35 * middle, 1.6 * middle) * gusts
    whistle = s.hiss(middle * 0.93, middle * 1.07) * gusts * gusts
    return out + s.source.uniform(0.8, 2.0) * whistle


def waves(s: Session) -> Signal:
    """Each wave rises, breaks and runs back over the shore."""
    out = 0.12 * s.hiss(150, 1500)
    rate = s.per_s(0.22, 1.0)
    num = s.samples(1.3 / rate)
    for start in [-num // 2, *s.beats(rate, jitter=0.12)]:
        breaking = s.hiss(200, 3500, num) * curve(num, ((0, 0), (0.3, 0.5), (0.4, 1), (1, 0)))
        foam = s.hiss(2500, 7000, num) * curve(num, ((0, 0), (0.4, 0), (0.55, 0.45), (1, 0)))
        both = (breaking + foam) * s.play.uniform(0.7, 1.0)
        add(out, max(0, start), both[max(0, -start) :])
    return out


def thunder(s: Session) -> Signal:
    """A clap near by cracks first; far away only the rumbling is left."""
    num = s.num
    rumble = s.hiss(25, 140) * s.wobble(5, 0.8)
    start = s.play.uniform(0.02, 0.12)
    shape = curve(num, ((0, 0.02), (start, 0.1), (start + 0.06, 1), (0.6, 0.5), (1, 0.05)))
    out = rumble * shape
    if s.manner == "clap":
        size = s.samples(0.9)
        crack = s.hiss(150, 5000, size) * burst(size, s.rate_hz, 0.004, 0.14)
        at = round(start * num)
        add(out, at, crack, 1.0)
        add(out, at + s.samples(s.play.uniform(0.06, 0.2)), crack, 0.6)
    return out


def birds(s: Session) -> Signal:
    """One bird repeats its phrase of chirps, each a sweep up or down; another answers at times."""
    out = s.silence()
    base = s.hz(1900, 5200)
    num_birds = 2 if s.manner == "several" else 1
    for bird in range(num_birds):
        own = base * (1 + 0.22 * bird)
        phrase = [
            (s.source.uniform(0.8, 1.15), s.source.uniform(0.75, 1.3), s.source.uniform(0.4, 0.9))
            for _ in range(s.source.randrange(2, 5))
        ]
        rate = s.per_s(2.2, 11)
        for turn, start in enumerate(s.beats(rate, jitter=0.08)):
            if s.play.random() < (0.15 if num_birds == 1 else 0.4):
                continue
            pitch, bend, length = phrase[turn % len(phrase)]
            num = s.samples(0.75 * length / rate)
            sweep = own * pitch * curve(num, ((0, 1), (0.5, (1 + bend) / 2 + 0.08), (1, bend)))
            chirp = glide(np.minimum(sweep, 7000), s.rate_hz, num, (1, 0.15))
            add(
                out,
                start,
                chirp * curve(num, ((0, 0), (0.2, 1), (0.7, 0.8), (1, 0))),
                1 - 0.4 * bird,
            )
    return out


def crickets(s: Session) -> Signal:
    """Chirps of three or four pulses of the wings; in a chorus others shimmer behind."""
    out = s.silence()
    hz = s.hz(3000, 5600)
    pulse = s.samples(0.017)
    pulses = s.source.choice((3, 4))
    call = glide(hz, s.rate_hz, pulse) * curve(pulse, ((0, 0), (0.5, 1), (1, 0)))
    for start in s.beats(s.per_s(1.1, 6.5), jitter=0.05):
        for place in range(pulses):
            add(out, start + place * s.samples(0.027), call, 0.7 + 0.1 * place)
    if s.manner == "chorus":
        shimmer = s.hiss(hz * 0.94, hz * 1.06) * (1 + 0.8 * glide(33, s.rate_hz, s.num))
        out += 0.2 * shimmer
    return out


def dog(s: Session) -> Signal:
    """Barks: a rough voice that rises and falls at once, through the formants of an open mouth."""
    out = s.silence()
    hz = s.hz(170, 900)
    for start in s.beats(s.per_s(0.9, 4), jitter=0.14):
        num = s.samples(s.play.uniform(0.11, 0.17))
        voice = hz * s.play.uniform(0.93, 1.07) * curve(num, ((0, 0.75), (0.3, 1.15), (1, 0.6)))
        rough = 1 + 0.03 * s.noise(num)
        tone = glide(voice * rough, s.rate_hz, num, [1 / n**0.7 for n in range(1, 16)])
        mouth = band(tone, s.rate_hz, 1.3 * hz, 5.5 * hz) + 0.3 * tone
        bark = mouth + 0.25 * s.hiss(hz * 2, hz * 9, num)
        add(out, start, bark * curve(num, ((0, 0), (0.12, 1), (0.5, 0.7), (1, 0))))
    return out

"""What can be heard in the demo pool: kinds, how each may sound, and what captions call it.

Ten of the kinds are kinds of the shop's products too, so that a picture of boots and their steps
share the value of the column `kind`, and words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coembed.pairs.shop.sounds import alarms, instruments, nature, things
from coembed.pairs.shop.sounds.recording import Place, Session
from coembed.pairs.shop.sounds.waves import Signal

_INDOORS: tuple[Place, ...] = ("room", "room", "hall")
_ANYWHERE: tuple[Place, ...] = ("room", "hall", "outdoors")
_OUTDOORS: tuple[Place, ...] = ("outdoors",)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind is played, its manners and the phrases of each, and where it is heard.

    In a phrase {low} is an adjective of pitch, {slow} one of tempo, {slowly} its adverb. Each may
    be left out, and the comma before it with it.

    `pitched`, `paced`: the manners that can be low or high, slow or fast. `min_s`: below it there
    is too little of it to be known by.
    """

    play: Callable[[Session], Signal]
    phrases: dict[str, tuple[str, ...]]
    places: tuple[Place, ...] = _INDOORS
    pitched: frozenset[str] = frozenset()
    paced: frozenset[str] = frozenset()
    min_s: float = 1.0


def _kind(
    play: Callable[[Session], Signal],
    phrases: dict[str, tuple[str, ...]],
    places: tuple[Place, ...] = _INDOORS,
    *,
    pitched: tuple[str, ...] | bool = (),
    paced: tuple[str, ...] | bool = (),
    min_s: float = 1.0,
) -> Kind:
    """True stands for every manner."""

    def chosen(manners: tuple[str, ...] | bool) -> frozenset[str]:
        if isinstance(manners, bool):
            return frozenset(phrases if manners else ())
        return frozenset(manners)

    return Kind(play, phrases, places, chosen(pitched), chosen(paced), min_s)


KINDS: dict[str, Kind] = {
    "guitar": _kind(
        instruments.guitar,
        {
            "strummed": (
                "a {low} guitar strummed {slowly}",
                "someone strums {slow} chords on a guitar",
                "{slow} {low} strumming on an acoustic guitar",
                "the sound of a guitar: {slow} {low} chords",
            ),
            "plucked": (
                "a {low} guitar plucked {slowly}",
                "{slow} fingerpicking on a {low} guitar",
                "{low} guitar strings plucked {slowly} one by one",
                "someone plucks {low} notes on a guitar {slowly}",
            ),
        },
        pitched=True,
        paced=True,
    ),
    "piano": _kind(
        instruments.piano,
        {
            "melody": (
                "a {slow} {low} piano melody",
                "{low} piano notes played {slowly}",
                "someone plays a {slow} tune on the piano",
                "a piano: {slow} {low} single notes",
            ),
            "chords": (
                "{slow} {low} piano chords",
                "{low} chords played {slowly} on a piano",
                "someone plays {slow} chords on the piano",
            ),
        },
        pitched=True,
        paced=True,
    ),
    "flute": _kind(
        instruments.flute,
        {
            "tune": (
                "a {slow} tune on a {low} flute",
                "someone plays the flute {slowly}",
                "a {low} flute playing a {slow} melody",
                "{slow} {low} flute music",
            ),
            "note": (
                "one long {low} note on a flute",
                "a {low} flute holds a single note",
                "a long {low} flute note with vibrato",
            ),
        },
        pitched=True,
        paced=("tune",),
    ),
    "drum": _kind(
        instruments.drum,
        {
            "beat": (
                "a {slow} beat on a {low} drum",
                "a {low} drum beaten {slowly}",
                "{slow} {low} drumming",
                "someone drums a {slow} rhythm",
            ),
            "roll": (
                "a {low} drum roll",
                "a roll on a {low} drum",
                "a {low} drum roll that swells",
            ),
        },
        pitched=True,
        paced=("beat",),
    ),
    "bell": _kind(
        instruments.bell,
        {
            "church": (
                "a {low} church bell tolling {slowly}",
                "the {slow} tolling of a {low} bell",
                "{low} church bells ring {slowly}",
            ),
            "hand": (
                "a {low} hand bell shaken {slowly}",
                "someone rings a {low} little bell",
                "the {slow} ringing of a {low} hand bell",
            ),
        },
        _ANYWHERE,
        pitched=True,
        paced=True,
        min_s=1.6,
    ),
    "siren": _kind(
        alarms.siren,
        {
            "wailing": (
                "a {slow} wailing {low} siren",
                "a {low} siren wails {slowly}",
                "a {slow} {low} emergency siren",
            ),
            "two-tone": (
                "a {slow} {low} two-tone siren",
                "an ambulance with a {low} siren on two notes",
                "a {low} siren switching {slowly} between two tones",
            ),
        },
        _OUTDOORS,
        pitched=True,
        paced=True,
        min_s=1.6,
    ),
    "alarm clock": _kind(
        alarms.alarm_clock,
        {
            "digital": (
                "a {low} alarm clock beeping {slowly}",
                "{slow} {low} beeps of a digital alarm clock",
                "the {slow} beeping of an alarm clock",
            ),
            "ringing": (
                "an old alarm clock ringing",
                "a {low} wind-up alarm clock rattles {slowly}",
                "the {slow} {low} ringing of an alarm clock with two bells",
            ),
        },
        pitched=True,
        paced=True,
    ),
    "smoke alarm": _kind(
        alarms.smoke_alarm,
        {
            "in threes": (
                "a smoke alarm beeps three times and pauses",
                "a piercing smoke alarm, three {slow} beeps at a time",
                "the {slow} pulses of a smoke detector",
            ),
            "steady": (
                "a smoke alarm beeping {slowly} without a pause",
                "a {slow} piercing smoke alarm",
                "a smoke detector goes off with {slow} shrill beeps",
            ),
        },
        paced=True,
        min_s=1.5,
    ),
    "doorbell": _kind(
        alarms.doorbell,
        {
            "chime": (
                "a {low} doorbell chimes ding-dong",
                "someone rings the doorbell, a {low} ding-dong",
                "two {low} chimes of a doorbell",
            ),
            "buzzer": (
                "a {low} doorbell buzzes",
                "an electric buzzer at the door, {low}",
                "the {low} buzz of a doorbell",
            ),
        },
        pitched=True,
        min_s=1.8,
    ),
    "telephone": _kind(
        alarms.telephone,
        {
            "ringing": (
                "an old {low} telephone rings",
                "the {low} bells of a telephone ringing",
                "a {low} phone ringing in the next room",
            ),
            "trilling": (
                "a {low} desk telephone trills",
                "a {low} electronic phone rings",
                "the {low} trill of an office phone",
            ),
            "jingle": (
                "a mobile phone plays a {low} jingle",
                "a {low} ringtone of a mobile phone",
                "a phone rings with some {low} tune",
            ),
        },
        pitched=True,
    ),
    "rain": _kind(
        nature.rain,
        {
            "light": ("light rain falling", "a drizzle of rain", "drops of light rain on leaves"),
            "heavy": ("heavy rain pouring down", "a downpour", "steady heavy rain"),
            "tent": (
                "rain falling on a tent",
                "dull drops of rain on canvas",
                "rain patters on the roof of a tent",
            ),
        },
        _OUTDOORS,
    ),
    "wind": _kind(
        nature.wind,
        {
            "gusts": (
                "{low} wind blowing in gusts",
                "a {low} wind howls",
                "gusts of {low} wind around a house",
                "the {low} whistling of the wind",
            ),
        },
        _OUTDOORS,
        pitched=True,
        min_s=1.6,
    ),
    "waves": _kind(
        nature.waves,
        {
            "shore": (
                "{slow} sea waves on a beach",
                "waves breaking {slowly} on the shore",
                "the sea: {slow} waves rolling in",
                "{slow} surf on a beach",
            ),
        },
        _OUTDOORS,
        paced=True,
        min_s=2.2,
    ),
    "thunder": _kind(
        nature.thunder,
        {
            "clap": ("a clap of thunder", "a crack of thunder close by", "thunder crashes near by"),
            "rumble": (
                "distant thunder rumbling",
                "a low rumble of thunder",
                "thunder rolls far away",
            ),
        },
        _OUTDOORS,
        min_s=2.0,
    ),
    "birds": _kind(
        nature.birds,
        {
            "one": (
                "a bird singing {slowly}, {low}",
                "the {slow} {low} chirping of a bird",
                "a {low} songbird chirps {slowly}",
            ),
            "several": (
                "{low} birds chirping {slowly}",
                "{slow} {low} birdsong",
                "several birds sing in the trees",
            ),
        },
        _OUTDOORS,
        pitched=True,
        paced=True,
    ),
    "crickets": _kind(
        nature.crickets,
        {
            "one": (
                "a {low} cricket chirping {slowly}",
                "the {slow} {low} chirp of a single cricket",
                "a single {low} cricket at night",
            ),
            "chorus": (
                "{low} crickets chirping at night",
                "a {low} chorus of crickets",
                "a field full of {low} crickets",
            ),
        },
        _OUTDOORS,
        pitched=True,
        paced=("one",),
    ),
    "dog": _kind(
        nature.dog,
        {
            "barking": (
                "a dog barks {slowly}",
                "the {slow} {low} barking of a dog",
                "a {low} dog barking",
                "{slow} {low} barks of a dog",
            ),
        },
        _ANYWHERE,
        pitched=True,
        paced=True,
    ),
    "boots": _kind(
        things.boots,
        {
            "gravel": (
                "someone walking {slowly} on gravel",
                "boots crunching {slowly} on a gravel path",
                "{slow} footsteps in boots on gravel",
                "{slow} steps of a pair of boots on small stones",
            ),
            "wood": (
                "boots knocking {slowly} on a wooden floor",
                "{slow} footsteps in heavy boots on wood",
                "someone in boots walks {slowly} over floorboards",
            ),
            "puddle": (
                "wellington boots splashing {slowly} through puddles",
                "{slow} splashing steps in boots",
                "someone in boots wades {slowly} through water",
            ),
        },
        paced=True,
        places=("room", "outdoors"),
        min_s=1.3,
    ),
    "sneakers": _kind(
        things.sneakers,
        {
            "squeaking": (
                "sneakers squeaking {slowly} on a gym floor",
                "{slow} squeaks of gym shoes",
                "trainers squeak {slowly} on a court",
            ),
            "jogging": (
                "someone jogging {slowly} in sneakers",
                "{slow} soft footsteps in running sneakers",
                "the {slow} thud of trainers on a track",
            ),
        },
        paced=True,
        min_s=1.3,
    ),
    "watch": _kind(
        things.watch,
        {
            "ticking": (
                "a watch ticking {slowly}",
                "the {slow} {low} ticking of a watch",
                "a {low} wristwatch ticks {slowly}",
                "{slow} ticks of a mechanical watch",
            ),
        },
        ("room",),
        pitched=True,
        paced=True,
        min_s=1.5,
    ),
    "teapot": _kind(
        things.teapot,
        {
            "whistling": (
                "a teapot whistling on the stove, {low}",
                "a {low} whistling teapot",
                "the {low} whistle of a teapot as it boils",
            ),
            "pouring": (
                "tea poured {slowly} from a teapot",
                "someone pours tea {slowly} out of a teapot",
                "a {slow} stream of tea from a teapot",
            ),
        },
        ("room",),
        pitched=("whistling",),
        paced=("pouring",),
        min_s=1.4,
    ),
    "bottle": _kind(
        things.bottle,
        {
            "popping": (
                "a pop as a bottle is opened, then fizz",
                "the cork of a bottle pops",
                "a fizzy bottle opened with a pop",
            ),
            "clinking": (
                "glass bottles clinking {slowly}",
                "the {slow} {low} clink of bottles",
                "two bottles clink together {slowly}, {low}",
            ),
            "gurgling": (
                "a bottle gurgling {slowly} as it empties",
                "{slow} glugs from a bottle",
                "water glugs {slowly} out of a bottle",
            ),
        },
        pitched=("clinking",),
        paced=("clinking", "gurgling"),
        min_s=1.2,
    ),
    "umbrella": _kind(
        things.umbrella,
        {
            "rain": (
                "rain on an umbrella",
                "raindrops drumming on an open umbrella",
                "standing in the rain under an umbrella",
            ),
            "opening": (
                "an umbrella opened with a whoosh",
                "someone opens a folding umbrella, whoosh and click",
                "an umbrella snaps open",
            ),
        },
        _OUTDOORS,
        min_s=1.2,
    ),
    "chair": _kind(
        things.chair,
        {
            "creaking": (
                "a wooden chair creaking {slowly}",
                "the {slow} {low} creak of a chair",
                "someone rocks {slowly} on a chair that creaks",
            ),
            "scraping": (
                "a chair scraping {slowly} over the floor",
                "chair legs scrape on tiles, {low}",
                "someone pushes a chair back: {slow} {low} scrapes",
            ),
        },
        pitched=True,
        paced=True,
        min_s=1.3,
    ),
    "mug": _kind(
        things.mug,
        {
            "stirring": (
                "a spoon stirring {slowly} in a mug",
                "someone stirs a mug of tea {slowly}",
                "{slow} {low} clinks of a spoon in a mug",
            ),
            "clinking": (
                "two mugs clinking together, {low}",
                "mugs clink {slowly}",
                "{slow} {low} clinks of a mug",
            ),
            "set down": (
                "a mug set down on a table",
                "a mug put {slowly} on a wooden table again and again",
                "someone sets down mugs {slowly}",
            ),
        },
        ("room",),
        pitched=("stirring", "clinking"),
        paced=True,
    ),
    "backpack": _kind(
        things.backpack,
        {
            "zip": (
                "the zip of a backpack opened {slowly}",
                "someone zips up a backpack {slowly}",
                "a {slow} zip on a rucksack",
                "a backpack unzipped {slowly}",
            ),
        },
        ("room",),
        paced=True,
    ),
    "engine": _kind(
        things.engine,
        {
            "idling": (
                "a {low} engine idling",
                "the {low} hum of an engine",
                "a {low} motor runs steadily",
            ),
            "revving": (
                "a {low} engine revving",
                "someone revs a {low} engine",
                "a {low} motor speeds up and slows down",
            ),
        },
        ("outdoors", "hall"),
        pitched=True,
    ),
    "hammer": _kind(
        things.hammer,
        {
            "nail": (
                "a hammer hitting a nail {slowly}",
                "{slow} {low} hammering on a nail",
                "someone hammers in a nail {slowly}",
            ),
            "plank": (
                "a hammer knocking {slowly} on a plank",
                "{slow} dull hammer blows on wood",
                "{slow} {low} hammering on boards",
            ),
        },
        _ANYWHERE,
        pitched=True,
        paced=True,
    ),
}

"""Captions with one thing wrong, made from true ones: a value swapped, or two words exchanged.

The hard negatives of SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610), built from the attributes
that the evaluated items have. It found that altered captions which nobody would write can be told
from true ones without the picture. So a value is swapped only for one that some caption of the set
has in the same place: in the same words all around, or else between the same neighbours. Of these a
value is preferred that another item has beside the very same other attributes, then one that has
been seen with each of them. Exchanged words are less natural.

A caption that stays true proves nothing. A value is never swapped for one that the item, or an item
with the same caption, has in any column; nor for one that the caption names already, or that holds
the old one or lies in it ("light blue" and "blue").
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import combinations
from typing import NamedTuple

from coembed.evaluation.evaluation_set import EvaluationSet, same_text
from coembed.evaluation.parts import Labels
from coembed.evaluation.selection import draw_below, hash_order, select

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
# So many captions show how the set uses its values: 0.1 GB and five seconds for long ones.
_MAX_READ = 50_000
_GAP = "\0"  # stands for the value in a caption's frame; no caption holds it

# Between two of these a caption speaks of one thing: words that change places inside ("black and
# white", "tall, blue") leave it as true as before. English; captions in other languages have no
# `order`.
_LINKS = frozenset({
    "about", "above", "across", "after", "against", "along", "among", "are", "around", "as", "at",
    "before", "behind", "below", "beneath", "beside", "between", "beyond", "by", "down", "for",
    "from", "has", "have", "in", "inside", "into", "is", "near", "next", "of", "off", "on",
    "onto", "out", "over", "past", "that", "through", "to", "toward", "towards", "under", "up",
    "upon", "which", "while", "with", "without",
})  # fmt: skip
_BOTH_WAYS = frozenset({"beside", "between", "by", "near", "next", "with"})
_FILLERS = frozenset({
    "a", "all", "an", "and", "another", "any", "both", "but", "each", "either", "every", "few",
    "he", "her", "his", "it", "its", "many", "more", "my", "no", "not", "one", "or", "other",
    "our", "same", "several", "she", "some", "such", "than", "the", "their", "them", "then",
    "there", "these", "they", "this", "those", "three", "too", "two", "very", "was", "were",
    "you", "your",
})  # fmt: skip


class Found(NamedTuple):
    """A word or value in a caption: from character `start` to `end`, folded as `same_text` does."""

    start: int
    end: int
    words: str


@dataclass(frozen=True, slots=True)
class Altered:
    """A query: the number of the item, a caption of it, and the same with one thing wrong."""

    item: int
    caption: str
    altered: str


@dataclass(frozen=True, slots=True)
class _Usage:
    """`places`: values by what they stand in. `written`: how a value is mostly spelt."""

    places: Mapping[str, set[str]]
    written: Mapping[str, str]


@dataclass(frozen=True)
class Captions:
    """The captions of one evaluation set, read with the values of some of its columns.

    `labels[column]` holds one value an item, None where it has none.
    """

    data: EvaluationSet
    labels: Mapping[str, Labels]
    _true: dict[str, set[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def swapped(self, column: str, *, most: int) -> list[Altered]:
        """A caption with another value of `column` for each of at most `most` items, in their
        order.

        Items are those of the lowest hashes among the ones that have such a caption, and where
        several captions of an item can be altered, one is taken by its hash.
        """
        return self._ask(f"swap {column}", most, partial(self._swap, column=column))

    def exchanged(self, *, most: int) -> list[Altered]:
        """A caption with two words in each other's places for each of at most `most` items, which
        are chosen as in `swapped`."""
        return self._ask("order", most, self._exchange)

    def _ask(
        self, purpose: str, most: int, alter: Callable[[str, int], str | None]
    ) -> list[Altered]:
        found: list[Altered] = []
        for item in hash_order([item.item_id for item in self.data.items], purpose).tolist():
            if len(found) == most:
                break
            captions = list(dict.fromkeys(self.data.items[item].captions))
            for place in hash_order(captions, purpose).tolist():
                altered = alter(captions[place], item)
                if altered is not None:
                    found.append(Altered(item, captions[place], altered))
                    break
        return sorted(found, key=lambda one: one.item)

    def find(self, caption: str, column: str) -> list[Found]:
        """The values of `column` that stand in `caption` as whole words, the longest first where
        they overlap."""
        return self._find(caption, _words(caption), column)

    def _find(self, caption: str, words: Sequence[Found], column: str) -> list[Found]:
        """See `find`; `words` are those of `caption`."""
        phrases, longest = self._phrases[column]
        found, place = [], 0
        while place < len(words):
            for size in range(min(longest, len(words) - place), 0, -1):
                value = phrases.get(tuple(word.words for word in words[place : place + size]))
                if value is None:
                    continue
                start, end = words[place].start, words[place + size - 1].end
                if same_text(caption[start:end]) == value:
                    found.append(Found(start, end, value))
                    place += size
                    break
            else:
                place += 1
        return found

    def _swap(self, caption: str, item: int, *, column: str) -> str | None:
        own = self._own[column][item]
        if own is None:
            return None
        places = [one for one in self.find(caption, column) if one.words == own]
        if not places or self._named_elsewhere(item, column, own):
            return None
        forbidden = self._true_of(caption)
        said = same_text(caption)
        for candidates in self._plausible(item, caption, column, places[0]):
            allowed = sorted(
                words
                for words in candidates
                if words not in said and words not in forbidden and own not in words
            )
            if not allowed:
                continue
            words = allowed[draw_below(f"{own} in {caption}", f"swap {column}", len(allowed))]
            altered = self._replace(caption, places, self._usage[column].written[words])
            if not self._is_true(caption, altered):
                return altered
        return None

    def _named_elsewhere(self, item: int, column: str, words: str) -> bool:
        """Whether another column of the item has the same value: an orange that is orange."""
        return any(values[item] == words for name, values in self._own.items() if name != column)

    def _true_of(self, caption: str) -> set[str]:
        """All values of the items that have this caption."""
        said = same_text(caption)
        if said not in self._true:
            self._true[said] = {
                same_text(str(value).replace("_", " "))
                for number in self._holders[said]
                for value in self.data.items[number].attributes.values()
            }
        return self._true[said]

    def _is_true(self, caption: str, altered: str) -> bool:
        """Whether an item that has the caption really has the altered one."""
        others = self._holders.get(same_text(altered), ())
        return not set(self._holders[same_text(caption)]).isdisjoint(others)

    def _plausible(self, item: int, caption: str, column: str, place: Found) -> Iterator[set[str]]:
        """Values to put in this place, the most natural ones first."""
        usage = self._usage[column]
        others = {name: values[item] for name, values in self._own.items() if name != column}
        beside = self._beside[column].get(tuple(others.values()), set())
        seen = [
            self._together[column].get((name, value), set())
            for name, value in others.items()
            if value is not None
        ]
        for place_key in _places(caption, place):
            natural = usage.places.get(place_key, set())
            yield natural & beside
            if seen:
                yield natural.intersection(*seen)
            yield natural

    def _replace(self, caption: str, places: Sequence[Found], spelling: str) -> str:
        """`caption` with `spelling` at all `places`, capitalised as what stood there, after the
        article that the set writes before it."""
        for start, end, _ in reversed(places):
            before, old, after = caption[:start], caption[start:end], caption[end:]
            new = spelling
            if old[:1].isupper():
                new = new[:1].upper() + new[1:]
            article = re.search(r"(?<![\w'’-])(an?)(\s+)$", before, re.IGNORECASE)
            first = _WORD.search(new)
            written = self._articles.get(same_text(first[0])) if first else None
            if article and written:
                capital = article[1][0].isupper()
                said = written.capitalize() if capital else written
                before = before[: article.start()] + said + article[2]
            caption = before + new + after
        return caption

    def _exchange(self, caption: str, _item: int) -> str | None:
        for pairs in (self._value_pairs(caption), _head_pairs(caption)):
            while pairs:
                one, other = pairs.pop(draw_below(caption, "order", len(pairs)))
                altered = (
                    caption[: one.start]
                    + caption[other.start : other.end]
                    + caption[one.end : other.start]
                    + caption[one.start : one.end]
                    + caption[other.end :]
                )
                if not self._is_true(caption, altered):
                    return altered
        return None

    def _value_pairs(self, caption: str) -> list[tuple[Found, Found]]:
        """Different values of one column that speak of different things."""
        pairs = []
        for column in self.labels:
            for one, other in combinations(self.find(caption, column), 2):
                between = _words(caption[one.end : other.start])
                linked = not _LINKS.isdisjoint(word.words for word in between)
                if linked and one.words != other.words:
                    pairs.append((one, other))
        return pairs

    @cached_property
    def _own(self) -> dict[str, list[str | None]]:
        """Each item's value by column, as words."""
        return {
            column: [None if value is None else _as_words(value) for value in values]
            for column, values in self.labels.items()
        }

    @cached_property
    def _phrases(self) -> dict[str, tuple[dict[tuple[str, ...], str], int]]:
        """The values of a column by their words one by one, and the most words of any."""
        phrases: dict[str, tuple[dict[tuple[str, ...], str], int]] = {}
        for column, own in self._own.items():
            known = sorted({words for words in own if words is not None})
            by_words = {tuple(_WORD.findall(words)): words for words in known}
            by_words.pop((), None)
            phrases[column] = by_words, max(map(len, by_words), default=0)
        return phrases

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        """The items that have a caption, by its words."""
        holders: dict[str, list[int]] = defaultdict(list)
        for number, item in enumerate(self.data.items):
            for text in {same_text(caption) for caption in item.captions}:
                holders[text].append(number)
        return dict(holders)

    @cached_property
    def _read(self) -> list[str]:
        """The captions that tell what reads well."""
        texts = self.data.texts
        return [texts[place] for place in select(texts, _MAX_READ, "read").tolist()]

    @cached_property
    def _usage(self) -> dict[str, _Usage]:
        """How the captions use the values of each column."""
        places: dict[str, dict[str, set[str]]]
        places = {column: defaultdict(set) for column in self.labels}
        spellings: dict[str, dict[str, Counter[str]]]
        spellings = {column: defaultdict(Counter) for column in self.labels}
        for caption in self._read:
            words = _words(caption)
            for column in self.labels:
                for found in self._find(caption, words, column):
                    spellings[column][found.words][caption[found.start : found.end]] += 1
                    for place in _places(caption, found):
                        places[column][place].add(found.words)
        return {
            column: _Usage(
                places[column],
                {words: _most_frequent(counts) for words, counts in spellings[column].items()},
            )
            for column in self.labels
        }

    @cached_property
    def _beside(self) -> dict[str, dict[tuple[str | None, ...], set[str]]]:
        """By column: the values that stand beside the same values of all other columns."""
        beside: dict[str, dict[tuple[str | None, ...], set[str]]] = {}
        for column, own in self._own.items():
            others = [values for name, values in self._own.items() if name != column]
            of_column: dict[tuple[str | None, ...], set[str]] = defaultdict(set)
            for number, value in enumerate(own):
                if value is not None:
                    of_column[tuple(values[number] for values in others)].add(value)
            beside[column] = of_column
        return beside

    @cached_property
    def _together(self) -> dict[str, dict[tuple[str, str], set[str]]]:
        """By column: its values that an item has beside a value of another column."""
        together: dict[str, dict[tuple[str, str], set[str]]] = {}
        for column, own in self._own.items():
            of_column: dict[tuple[str, str], set[str]] = defaultdict(set)
            for name, values in self._own.items():
                if name == column:
                    continue
                for value, other in zip(own, values, strict=True):
                    if value is not None and other is not None:
                        of_column[name, other].add(value)
            together[column] = of_column
        return together

    @cached_property
    def _articles(self) -> dict[str, str]:
        """a or an, by the word after it, as the captions write it more often. A language that has
        neither, or where they mean something else, is left as it is."""
        counts: dict[str, int] = defaultdict(int)
        for caption in self._read:
            for article, word in re.findall(
                r"(?<![\w'’-])(an?)\s+(\w+(?:[-'’]\w+)*)", caption, re.IGNORECASE
            ):
                counts[same_text(word)] += 1 if article.casefold() == "a" else -1
        return {word: "a" if count > 0 else "an" for word, count in counts.items() if count}


def auto_columns(data: EvaluationSet) -> tuple[str, ...]:
    """Columns of strings with 2 to 50 values, sorted by name."""
    return tuple(
        column
        for column in data.word_columns()
        # "true" and "false" say nothing without the column's name.
        if not any(isinstance(item.attributes.get(column), bool) for item in data.items)
    )


def _head_pairs(caption: str) -> list[tuple[Found, Found]]:
    """The last words of what a caption speaks of ("a red mug on a blue cloth": mug, cloth).

    "A man with a dog" is a dog with a man: two that have nothing said of them do not change places
    around a word that works both ways.
    """
    heads: list[Found] = []
    bare: list[bool] = []
    links: list[set[str]] = [set()]  # before each head
    for word in _words(caption):
        if word.words in _LINKS:
            links[-1].add(word.words)
        elif word.words in _FILLERS or word.words.isdigit():
            continue
        elif links[-1] or not heads:
            heads.append(word)
            bare.append(True)
            links.append(set())
        else:
            heads[-1], bare[-1] = word, False
    pairs = []
    for one, other in combinations(range(len(heads)), 2):
        between = set.union(*links[one + 1 : other + 1])
        if heads[one].words == heads[other].words:
            continue
        if bare[one] and bare[other] and between <= _BOTH_WAYS:
            continue
        pairs.append((heads[one], heads[other]))
    return pairs


def _places(caption: str, found: Found) -> Iterator[str]:
    """What a value stands in, from the whole caption to its neighbours: a value that is seen in
    the same place elsewhere reads well in this one. Either article before it counts as the same.
    """
    before = re.sub(r"(?<![\w'’-])an(\s+)$", r"a\1", caption[: found.start], flags=re.IGNORECASE)
    after = caption[found.end :]
    yield same_text(before + _GAP + after)
    words, following = _WORD.findall(before), _WORD.search(after)
    next_word = following[0] if following else ""
    yield same_text(f"{' '.join(words[-2:])} {_GAP} {next_word}")
    # After an article anything may stand: the word before it is what counts.
    if words and same_text(words[-1]) not in _FILLERS | _LINKS:
        yield same_text(f"{words[-1]} {_GAP} {next_word}")


def _words(text: str) -> list[Found]:
    return [Found(word.start(), word.end(), _fold(word[0])) for word in _WORD.finditer(text)]


@lru_cache(maxsize=100_000)
def _fold(word: str) -> str:
    return same_text(word)


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def _as_words(value: str) -> str:
    return same_text(value.replace("_", " "))

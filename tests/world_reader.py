"""Reads a generated sentence back: an independent account of what the texts say and what follows from them.

Works on the words of the lexicon's tables and on the sentence patterns as strings; uses none of the arrays, matrices
and functions that made the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from d2llm.data.world import lexicon as words
from d2llm.data.world import surface

NUMBERS = {"两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7}
MOST = 20  # quantities are thought of as whole numbers from 2 to MOST
WILDCARDS = {"agent": "谁", "object": "什么", "patient": "谁", "place": "在哪里", "time": "什么时候"}
TREES: dict[str, dict | list] = {
    "agent": {"有人": words.PEOPLE},
    "patient": {"别人": words.PEOPLE},
    "object": {"东西": words.OBJECTS},
    "place": words.PLACES,
    "time": words.TIMES,
    "verb": [*words.OBJECT_VERBS, *words.PERSON_VERBS],
    "attribute": words.ATTRIBUTES,
    "manner": words.MANNERS,
}


@dataclass(frozen=True)
class Reading:
    """One sentence: the canonical word of every slot it fills, its polarity, the slot it asks for."""

    slots: tuple[tuple[str, str], ...]
    negative: bool = False
    asked: str | None = None

    @property
    def words(self) -> dict[str, str]:
        return dict(self.slots)


# --------------------------------------------------------------------------------------------------------------- words
def entries(tree: dict | list, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """(forms, the canonical one first; more general words, nearest first) of every node."""
    for name in tree:
        spellings = name.split("/")
        yield spellings, above
        if isinstance(tree, dict):
            yield from entries(tree[name], (spellings[0], *above))


@cache
def taxonomy(slot: str) -> dict[str, tuple[str, ...]]:
    """Canonical word -> its more general words, nearest first."""
    return {spellings[0]: above for spellings, above in entries(TREES[slot])}


@cache
def forms(slot: str) -> dict[str, str]:
    """Surface form -> canonical word."""
    if slot == "quantity":
        names = [*(f"{word}个" for word in NUMBERS), *(f"至少{word}个" for word in list(NUMBERS)[:-1]), "几个"]
        return {name: name for name in names}
    return {form: spellings[0] for spellings, _ in entries(TREES[slot]) for form in spellings}


def numbers(quantity: str) -> frozenset[int]:
    """The counts a quantity allows."""
    if quantity == "几个":
        return frozenset(range(3, MOST + 1))
    if quantity.startswith("至少"):
        return frozenset(range(NUMBERS[quantity[2]], MOST + 1))
    return frozenset({NUMBERS[quantity[0]]})


def covers(slot: str, general: str, special: str) -> bool:
    """Whether whatever is `special` is also `general`."""
    if slot == "quantity":
        return numbers(special) <= numbers(general)
    return general == special or general in taxonomy(slot)[special]


def opposite(verb: str) -> str:
    """The verb's other half."""
    for group in (words.OBJECT_VERBS, words.PERSON_VERBS):
        names = [name.split("/")[0] for name in group]
        if verb in names:
            return names[names.index(verb) ^ 1]
    raise KeyError(verb)


# --------------------------------------------------------------------------------------------------------------- logic
def narrower(special: Reading, general: Reading) -> bool:
    """Every constraint of `general` is met by `special`, whatever the polarity."""
    return all(slot in special.words and covers(slot, word, special.words[slot]) for slot, word in general.slots)


def follows(premise: Reading, hypothesis: Reading) -> bool:
    """Whether one sentence entails another: more specific events imply more general ones, denials the other way."""
    if premise.negative != hypothesis.negative:
        return False
    return narrower(hypothesis, premise) if premise.negative else narrower(premise, hypothesis)


def text_follows(premise: list[Reading], hypothesis: list[Reading]) -> bool:
    """The same for texts of one event or of two in order."""
    if len(hypothesis) == 1:
        return any(follows(reading, hypothesis[0]) for reading in premise)
    return len(premise) == 2 and all(follows(a, b) for a, b in zip(premise, hypothesis, strict=True))


def answers(query: Reading, passage: list[Reading]) -> bool:
    """Some sentence entails the question's statement and says what is asked for."""
    stated = Reading(tuple((slot, word) for slot, word in query.slots if slot != query.asked), query.negative)
    return any(follows(one, stated) and (query.asked is None or query.asked in one.words) for one in passage)


def composition(reading: Reading) -> tuple | None:
    """What a split holds out: (agent, verb or its opposite, object) or (two people, verb or its opposite); None if some
    part is general or asked for."""
    parts = reading.words
    core = [("agent", parts.get("agent"))] + [(slot, parts[slot]) for slot in ("object", "patient") if slot in parts]
    if reading.asked in dict(core) or any(word is None or not is_leaf(slot, word) for slot, word in core):
        return None
    verb = min(parts["verb"], opposite(parts["verb"]))
    if "patient" in parts:
        return ("people", *sorted((parts["agent"], parts["patient"])), verb)
    return ("thing", parts["agent"], parts["object"], verb)


def is_leaf(slot: str, word: str) -> bool:
    """Whether nothing is more specific than a word."""
    return all(word not in above for above in taxonomy(slot).values())


# ------------------------------------------------------------------------------------------------------------- parsing
@cache
def _pattern(template: str, asked: str | None) -> re.Pattern[str]:
    def slot(name: str) -> str:
        options = list(forms(name)) if name != asked else [WILDCARDS[name]]
        return f"(?P<{name}>{'|'.join(sorted(map(re.escape, options), key=len, reverse=True))})"

    place = slot("place") if asked == "place" else f"在{slot('place')}"
    thing = f"(?:{slot('quantity')})?(?:{slot('attribute')}的)?{slot('object')}"
    parts = {
        "A": slot("agent"),
        "V": slot("verb"),
        "T": f"(?:{slot('time')})?",
        "P": f"(?:{place})?",
        "M": f"(?:{slot('manner')}地)?",
        "N": "(?P<no>没有)?",
        "L": "(?P<done>了)?",
        "O": f"(?:{slot('patient')}|{thing})",
    }
    pieces = filter(None, re.split(r"(\{\w\})", template))
    text = "".join(parts[piece[1]] if piece.startswith("{") else re.escape(piece) for piece in pieces)
    # A pattern that starts with the place or time and a comma loses both where neither is said.
    return re.compile(text.replace("，", "(?:，)?", 1) if template.startswith(("{P}，", "{T}，")) else text)


@cache
def sentence(text: str, question: bool = False) -> Reading:
    """What one sentence says. Raises ValueError unless exactly one reading fits."""
    readings = set()
    for template in surface.QUESTIONS if question else (*surface.COMMON, *surface.SHIFTED):
        for asked in WILDCARDS if question else [None]:
            match = _pattern(template, asked).fullmatch(text)
            if not match:
                continue
            groups = match.groupdict()
            negative, done = groups.pop("no") is not None, groups.pop("done", None) is not None
            if "{L}" in template and negative == done:
                continue  # an event carries the particle, a denial does not
            slots = {slot: word for slot, word in groups.items() if word}
            if asked and asked not in slots:
                continue
            canonical = {slot: word if slot == asked else forms(slot)[word] for slot, word in slots.items()}
            readings.add(Reading(tuple(sorted(canonical.items())), negative, asked))
    if len(readings) != 1:
        raise ValueError(f"{text!r}: {len(readings)} readings {readings}")
    return readings.pop()


def read(text: str) -> list[Reading]:
    """The sentences of a statement or passage, or the one question; brackets around a text mean nothing."""
    text = unwrapped(text)
    if text.endswith("？"):
        return [sentence(text, question=True)]
    return [sentence(part) for part in re.split("，(?:然后|接着|后来)|。", text) if part]


def unwrapped(text: str) -> str:
    """A text without the brackets around it, if there are any."""
    for left, right in surface.BRACKETS:
        if text.startswith(left) and text.endswith(right):
            return text.removeprefix(left).removesuffix(right)
    return text

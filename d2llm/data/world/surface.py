"""Events to Chinese sentences and questions, with a parallel string that says which slot each character came from.

Templates come in two families: `COMMON` (used everywhere) and `SHIFTED` (in unlabelled text, the
teacher's NLI examples and the shifted NLI set, but in no training pair).
"""

from __future__ import annotations

import re

import numpy as np

from d2llm.data.world.events import POLARITY
from d2llm.data.world.lexicon import (
    AGENT,
    ATTRIBUTE,
    LETTER_SLOTS,
    MANNER,
    OBJECT,
    PATIENT,
    PLACE,
    QUANTITY,
    SLOTS,
    TIME,
    VERB,
    lexicon,
)

# A agent, V verb, O object or patient phrase, P place phrase (with 在), T time, M manner (with 地), N negation, L aspect
# particle.
COMMON = (
    "{T}{A}{N}{P}{M}{V}{L}{O}",
    "{P}，{A}{T}{N}{M}把{O}{V}{L}",
    "{O}{T}{N}{P}被{A}{M}{V}{L}",
    "{T}，{A}{N}{P}{M}{V}{L}{O}",
    "据说{A}{T}{P}{N}把{O}{M}{V}{L}",
    "{T}{P}{N}{M}{V}{O}的是{A}",
    "听说{P}，{A}{T}{N}{M}把{O}{V}{L}",
    "{O}，{A}{T}{N}{P}{M}{V}{L}",
    "{T}{O}{N}{P}让{A}{M}{V}{L}",
)
SHIFTED = (
    "有报道称，{T}{O}{N}{P}遭{A}{M}{V}",
    "关于{O}，{A}{T}{N}{P}{M}{V}过",
    "{A}{P}{T}{N}{M}将{O}{V}{L}",
)
# Wildcards of a question: slot -> the word that asks for it.
ASK = {AGENT: "谁", OBJECT: "什么", PATIENT: "谁", PLACE: "在哪里", TIME: "什么时候"}
QUESTIONS = (
    "{T}{A}{N}{P}{M}{V}{L}{O}？",
    "{P}{T}{A}{N}{M}把{O}{V}{L}？",
    "请问{A}{T}{N}{P}{M}{V}{L}{O}？",
    "{O}{T}{N}{P}被{A}{M}{V}{L}？",
    "想知道{T}{P}{A}{N}{M}{V}{L}{O}？",
)
CONNECTIVES = ("，然后", "，接着", "，后来")
FUNCTION_WORDS = (
    "“",
    "”",
    "[",
    "]",
    "{",
    "}",
    "，",
    "。",
    "？",
    "：",
    " ",
    "在",
    "把",
    "被",
    "了",
    "的",
    "地",
    "没有",
    "据说",
    "听说",
    "让",
    "的是",
    "有报道称",
    "遭",
    "关于",
    "过",
    "将",
    "请问",
    "想知道",
    "然后",
    "接着",
    "后来",
    "谁",
    "什么",
    "在哪里",
    "什么时候",
)

_UNTAGGED = re.compile("[^a-z]")
BRACKETS = (("“", "”"), ("[", "]"), ("{", "}"))

LETTERS = "".join(LETTER_SLOTS)  # "n" marks negation, "." everything else


def realise(
    rng: np.random.Generator,
    events: np.ndarray,
    templates: tuple[str, ...] = COMMON,
    ask: np.ndarray | None = None,
    choice: np.ndarray | None = None,
) -> tuple[list[str], list[str]]:
    """One sentence an event.

    Args:
        events: (n, WIDTH).
        ask: (n,) slot that the question asks for, replaced by its wildcard; None for statements.
        choice: (n,) template indices; drawn when None.
    Returns:
        (texts, tags): `tags[i][c]` is the letter of the slot that wrote character c of `texts[i]`.
    """
    lex = lexicon()
    n = len(events)
    which = rng.integers(0, len(templates), n) if choice is None else choice
    form = rng.random((n, len(SLOTS)))
    texts, tags = [], []
    for row in range(n):
        words: list[str] = []
        for slot in range(len(SLOTS)):
            forms = lex.forms[events[row, slot]]
            words.append(forms[int(form[row, slot] ** 1.5 * len(forms))])
        asked = int(ask[row]) if ask is not None else -1
        if asked >= 0:
            words[asked] = ASK[asked]
        text, tag = _write_phrases(words, int(events[row, POLARITY]), asked)
        template = templates[which[row]]
        sentence, marks = template.format(**text), template.format(**tag)
        if sentence.startswith("，"):  # the phrase before the comma was not said
            sentence, marks = sentence[1:], marks[1:]
        texts.append(sentence)
        tags.append(_UNTAGGED.sub(".", marks))
    return texts, tags


def _write_phrases(words: list[str], negative: int, asked: int) -> tuple[dict[str, str], dict[str, str]]:
    """The phrases of one event by template letter, as text and as tags of the same length."""
    letter = [LETTERS[slot] * len(word) for slot, word in enumerate(words)]
    text = {
        "A": words[AGENT],
        "V": words[VERB],
        "T": words[TIME],
        "N": "没有" if negative else "",
        "L": "" if negative else "了",
    }
    tag = {
        "A": letter[AGENT],
        "V": letter[VERB],
        "T": letter[TIME],
        "N": "n" * len(text["N"]),
        "L": "." * len(text["L"]),
    }
    place = words[PLACE]
    bare = not place or asked == PLACE
    text["P"] = place if bare else f"在{place}"
    tag["P"] = letter[PLACE] if bare else "." + letter[PLACE]
    text["M"] = f"{words[MANNER]}地" if words[MANNER] else ""
    tag["M"] = letter[MANNER] + "." if words[MANNER] else ""
    if words[PATIENT]:
        text["O"], tag["O"] = words[PATIENT], letter[PATIENT]
    else:
        attribute, mark = (f"{words[ATTRIBUTE]}的", letter[ATTRIBUTE] + ".") if words[ATTRIBUTE] else ("", "")
        text["O"] = words[QUANTITY] + attribute + words[OBJECT]
        tag["O"] = letter[QUANTITY] + mark + letter[OBJECT]
    return text, tag


def keywords(rng: np.random.Generator, events: np.ndarray) -> list[str]:
    """The said words of each event in a random order, separated by spaces: how people type into a search box."""
    lex = lexicon()
    out = []
    for row in events:
        words = [lex.forms[node][0] for node in row[: len(SLOTS)] if node]
        out.append(" ".join(words[i] for i in rng.permutation(len(words))))
    return out

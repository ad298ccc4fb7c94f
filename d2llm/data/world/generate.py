"""The generated world's tasks: NLI, STS and retrieval examples, unlabelled text and graded pairs for the teacher.

Every label follows from the logic of `events.py`, never from how an example was made; an example whose label disagrees
with the phenomenon it was made for is dropped. Functions are pure given a Generator and return data frames; `build.py`
writes them.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd

from d2llm.data.world import events as ev
from d2llm.data.world import surface
from d2llm.data.world.lexicon import AGENT, LETTER_SLOTS, OBJECT, PATIENT, PLACE, SLOTS, TIME, VERB, lexicon

ENTAILED = (
    "paraphrase",
    "detail dropped",
    "hypernym",
    "dropped and hypernym",
    "denial specialised",
    "one event of two",
    "both events weakened",
)
NON_ENTAILED = (
    "detail added",
    "more specific",
    "substitution",
    "opposite",
    "role swap",
    "negation",
    "denial generalised",
    "events mixed",
    "order swapped",
)
# A pair that is not entailed is answered "yes" with at most this probability, in proportion to its similarity.
NON_ENTAILED_CEILING = 0.45
# Sentence patterns of unlabelled text, and what may stand between its two sentences.
FAMILIES = surface.COMMON + surface.SHIFTED
LINKS = (*surface.CONNECTIVES, "。")


class Sentences:
    """Texts of one or two events each: `events` (n, 2, WIDTH) with all-zero second events where there is only one."""

    def __init__(self, first: np.ndarray, second: np.ndarray | None = None) -> None:
        self.events = np.stack([first, np.zeros_like(first) if second is None else second], axis=1)

    @property
    def double(self) -> np.ndarray:
        return np.any(self.events[:, 1], axis=-1)

    def __len__(self) -> int:
        return len(self.events)

    def realise(
        self, rng: np.random.Generator, templates: tuple[str, ...], links: tuple[str, ...] = surface.CONNECTIVES
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Texts, and for each the tags of (first event with connective, second event)."""
        first, first_tags = surface.realise(rng, self.events[:, 0], templates)
        rows = np.flatnonzero(self.double)
        second = zip(rows.tolist(), *surface.realise(rng, self.events[rows, 1], templates), strict=True)
        texts, tags = list(first), [(tag, "") for tag in first_tags]
        for (row, text, tag), link in zip(second, rng.integers(0, len(links), len(rows)), strict=True):
            texts[row] += links[link] + text
            tags[row] = (first_tags[row] + "." * len(links[link]), tag)
        return texts, tags


def entails(a: Sentences, b: Sentences) -> np.ndarray:
    """(n,) bool: one event of `b` follows from either event of `a`; two events follow in the same order."""
    first, second = a.events[:, 0], a.events[:, 1]
    either = ev.entails(first, b.events[:, 0]) | (a.double & ev.entails(second, b.events[:, 0]))
    both = a.double & ev.entails(first, b.events[:, 0]) & ev.entails(second, b.events[:, 1])
    return np.where(b.double, both, either)


def similarity(a: Sentences, b: Sentences) -> np.ndarray:
    """(n,) in [0, 1]: mean over b's events of the similarity to the better aligned event of `a`."""
    cross = ev.similarity(a.events[:, :, None], b.events[:, None, :])  # (n, 2, 2)
    cross[~a.double, 1] = 0
    of_one_event = cross[:, :, 0].max(1)
    of_two_events = (cross[:, 0, 0] + cross[:, 1, 1]) / 2
    return np.where(b.double, np.where(a.double, of_two_events, cross[:, 0].mean(1)), of_one_event)


def chance(a: Sentences, b: Sentences) -> np.ndarray:
    """(n,) in [0, 1]: how likely b describes what a does (`events.chance`), compared as in `entails`."""
    first, second = a.events[:, 0], a.events[:, 1]
    either = np.maximum(ev.chance(first, b.events[:, 0]), a.double * ev.chance(second, b.events[:, 0]))
    both = a.double * ev.chance(first, b.events[:, 0]) * ev.chance(second, b.events[:, 1])
    return np.where(b.double, both, either)


def target(label: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """What the teacher should answer "yes" with: 1 when entailed, else in proportion to similarity, below one half."""
    return np.where(label, 1.0, NON_ENTAILED_CEILING * alike)


def relations(a: Sentences, b: Sentences, tags: list[tuple[str, str]]) -> list[str]:
    """For each character of b's text, a digit: how the word it belongs to stands to `a` (`events.relation`); "0"
    outside slots.

    Each event of b is compared with the better aligned event of a. Negation is "1" when the aligned event is negated
    too, else "5".
    """
    cross = ev.similarity(a.events[:, :, None], b.events[:, None, :])
    cross[~a.double, 1] = -1
    partner = cross.argmax(1)  # (n, 2): which event of a
    rows = np.arange(len(b))
    out = [""] * len(b)
    for index in range(2):
        chosen = a.events[rows, partner[:, index]]
        table = ev.relation(chosen, b.events[:, index])
        negated = np.where(chosen[:, ev.POLARITY] == b.events[:, index, ev.POLARITY], 1, 5)
        for row in rows:
            tag = tags[row][index]
            if tag:
                digits = {ord(letter): str(table[row, slot]) for letter, slot in LETTER_SLOTS.items()}
                digits |= {ord("n"): str(negated[row]), ord("."): "0"}
                out[row] += tag.translate(digits)
    return out


# NLI -----------------------------------------------------------------------------------------------------------------


def _weaken(rng: np.random.Generator, events: np.ndarray, chance: float) -> np.ndarray:
    """Randomly more general descriptions of the same events."""
    out = events.copy()
    for edit in (ev.drop, ev.generalise, ev.drop):
        hit = rng.random(len(out)) < chance
        out[hit] = edit(rng, out[hit])
    return out


def nli(
    rng: np.random.Generator, split: str, premises: int, hypotheses: int, templates: tuple[str, ...]
) -> pd.DataFrame:
    """Premise-hypothesis pairs; a premise has up to `hypotheses` of them.

    Columns: group, query, passage, label (bool), phenomenon, target, relations.
    """
    premise, full, denied = _make_premises(rng, split, premises)
    texts, _ = premise.realise(rng, templates)
    take = np.repeat(np.arange(premises), hypotheses)
    repeated = Sentences(premise.events[take, 0], premise.events[take, 1])
    kind = _choose_phenomenon(rng, repeated.double, denied[take], repeated.events[:, 0, PATIENT] > 0)
    hypothesis = _make_hypotheses(rng, split, kind, repeated, full[take])
    label = entails(repeated, hypothesis)
    keep = label == np.isin(kind, ENTAILED)
    changed = (repeated.events != hypothesis.events).any((1, 2)) | (kind == "paraphrase")
    keep &= changed
    b, tags = hypothesis.realise(rng, templates)
    frame = pd.DataFrame(
        {
            "group": take,
            "query": [texts[i] for i in take],
            "passage": b,
            "label": label,
            "phenomenon": kind,
            "target": target(label, similarity(repeated, hypothesis)),
            "chance": chance(repeated, hypothesis),
            "relations": relations(repeated, hypothesis, tags),
        }
    )
    frame = frame[keep & (frame["query"] != frame["passage"])]
    return frame.drop_duplicates(["query", "passage"]).reset_index(drop=True)


def _make_premises(rng: np.random.Generator, split: str, count: int) -> tuple[Sentences, np.ndarray, np.ndarray]:
    """(premises, the events their first sentences were weakened from, whether these are denials)."""
    full = ev.sample(rng, count, split)
    other = ev.sample(rng, count, split)
    double = rng.random(count) < 0.25
    denied = ~double & (rng.random(count) < 0.12)
    stated = _weaken(rng, full, 0.35)
    stated_other = _weaken(rng, other, 0.35)
    stated[denied] = ev.deny(stated[denied])
    full[denied] = ev.deny(full[denied])
    return Sentences(stated, np.where(double[:, None], stated_other, 0)), full, denied


def _make_hypotheses(
    rng: np.random.Generator, split: str, kind: np.ndarray, premise: Sentences, full: np.ndarray
) -> Sentences:
    """A hypothesis for each premise, of the phenomenon that `kind` names."""
    first, second = premise.events[:, 0], premise.events[:, 1]
    h1, h2 = np.zeros_like(first), np.zeros_like(first)
    for phenomenon in np.unique(kind):
        rows = np.flatnonzero(kind == phenomenon)
        h1[rows], h2[rows] = _edit_premise(rng, phenomenon, split, first[rows], second[rows], full[rows])
    return Sentences(h1, h2)


# How often each phenomenon is made: of premises with one event about a thing, one about two people, two events, and a
# denial. Half is entailed; the rest is half "neutral" (the hypothesis says more than the premise, as SNLI's third
# class) and half contradicted.
ABOUT_THINGS = {
    "paraphrase": 0.10,
    "detail dropped": 0.12,
    "hypernym": 0.14,
    "dropped and hypernym": 0.14,
    "detail added": 0.12,
    "more specific": 0.14,
    "substitution": 0.12,
    "opposite": 0.05,
    "role swap": 0.0,
    "negation": 0.07,
}
ABOUT_PEOPLE = ABOUT_THINGS | {"substitution": 0.07, "role swap": 0.08, "opposite": 0.04, "negation": 0.05}
OF_TWO_EVENTS = {
    "paraphrase": 0.06,
    "one event of two": 0.24,
    "both events weakened": 0.20,
    "detail added": 0.10,
    "substitution": 0.10,
    "events mixed": 0.18,
    "order swapped": 0.08,
    "opposite": 0.04,
}
OF_DENIALS = {
    "paraphrase": 0.1,
    "denial specialised": 0.4,
    "denial generalised": 0.28,
    "substitution": 0.12,
    "negation": 0.1,
}


def _choose_phenomenon(
    rng: np.random.Generator, double: np.ndarray, denied: np.ndarray, person: np.ndarray
) -> np.ndarray:
    """(n,) what is done to each premise to make its hypothesis."""
    out = np.empty(len(double), dtype=object)
    for mask, table in (
        (double, OF_TWO_EVENTS),
        (denied, OF_DENIALS),
        (~double & ~denied & person, ABOUT_PEOPLE),
        (~double & ~denied & ~person, ABOUT_THINGS),
    ):
        names, weights = list(table), np.array(list(table.values()))
        out[mask] = rng.choice(names, size=int(mask.sum()), p=weights / weights.sum())
    return out


def _edit_premise(
    rng: np.random.Generator, phenomenon: str, split: str, first: np.ndarray, second: np.ndarray, full: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The hypothesis' two events for premises (first, second); `full` is the event the premise was weakened from."""
    # Which of two events a one-event edit is made of.
    pick = second.any(-1) & (rng.random(len(first)) < 0.5)
    if phenomenon == "paraphrase":
        return first, second
    if phenomenon == "both events weakened":
        return _weaken(rng, first, 0.4), _weaken(rng, second, 0.4)
    if phenomenon == "events mixed":
        mixed, rest = _exchange_words(rng, first, second, split)
        loosened = _weaken(rng, mixed, 0.3)
        return loosened, np.where((rng.random(len(first)) < 0.5)[:, None], rest, 0)
    if phenomenon == "order swapped":
        return second, first
    base = np.where(pick[:, None], second, first)
    return _edit_event(rng, phenomenon, split, base, full), np.zeros_like(first)


def _edit_event(
    rng: np.random.Generator, phenomenon: str, split: str, base: np.ndarray, full: np.ndarray
) -> np.ndarray:
    """The hypothesis' only event, made of the event `base` of the premise."""
    if phenomenon == "detail dropped":
        once = ev.drop(rng, base)
        return np.where((rng.random(len(base)) < 0.5)[:, None], once, ev.drop(rng, once))
    if phenomenon == "hypernym":
        return ev.generalise(rng, base, 1)
    if phenomenon in ("dropped and hypernym", "denial generalised"):
        return ev.drop(rng, ev.generalise(rng, base, 1), 1)
    if phenomenon == "one event of two":
        return _weaken(rng, base, 0.4)
    if phenomenon == "denial specialised":
        detailed = np.where((rng.random(len(full)) < 0.5)[:, None], full, ev.add_detail(rng, base))
        return np.where((detailed == base).all(-1)[:, None], ev.add_detail(rng, base), detailed)
    if phenomenon == "detail added":
        return ev.add_detail(rng, _weaken(rng, base, 0.25))
    if phenomenon == "more specific":
        return _mix_nodes(rng, full, base)
    edited = {
        "substitution": lambda e: ev.substitute(rng, e, split),
        "opposite": ev.oppose,
        "role swap": ev.swap_roles,
        "negation": ev.deny,
    }[phenomenon](base)
    return _weaken(rng, edited, 0.25)


def _mix_nodes(rng: np.random.Generator, specific: np.ndarray, general: np.ndarray) -> np.ndarray:
    """Per slot, the specific or the general node: between the two descriptions, equal to `general` only where they
    agree.
    """
    take = rng.random(general.shape) < 0.6
    out = np.where(take, specific, general)
    same = (out == general).all(-1)
    return np.where(same[:, None], specific, out)


def _exchange_words(
    rng: np.random.Generator, first: np.ndarray, second: np.ndarray, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two events that exchanged their agents, or their times and places: the words of the premise, bound wrongly.

    Agents stay where the exchange would leave the split or make somebody act on themselves.
    """
    a, b = first.copy(), second.copy()
    a[:, AGENT], b[:, AGENT] = second[:, AGENT], first[:, AGENT]
    agents = rng.random(len(a)) < 0.6
    for event in (a, b):
        agents &= ev.in_split(event, split) & (event[:, PATIENT] != event[:, AGENT] + ev.patient_offset())
    a[~agents, AGENT], b[~agents, AGENT] = first[~agents, AGENT], second[~agents, AGENT]
    for slot in (PLACE, TIME):
        a[~agents, slot], b[~agents, slot] = second[~agents, slot], first[~agents, slot]
    return a, b


# STS -----------------------------------------------------------------------------------------------------------------


def _make_pairs(
    rng: np.random.Generator,
    left: Sentences,
    right: Sentences,
    phenomenon: np.ndarray,
    score: np.ndarray | None,
    match: np.ndarray | None = None,
    asked: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Frame of pairs: query, passage, score, label (paraphrase or entailed), phenomenon, target, relations."""
    alike = similarity(left, right)
    if asked is None:
        label = entails(left, right)
        a, _ = left.realise(rng, surface.COMMON)
        b, tags = right.realise(rng, surface.COMMON)
        marks, likely = relations(left, right, tags), chance(left, right)
    else:
        label = np.asarray(match, dtype=bool)
        a, _ = surface.realise(rng, left.events[:, 0], surface.QUESTIONS, asked[0])
        b, first = surface.realise(rng, right.events[:, 0], surface.QUESTIONS, asked[1])
        marks = relations(left, right, [(tag, "") for tag in first])
        alike = np.where(asked[0] == asked[1], alike, 0.6 * alike)
        # Two questions are one where each is the other.
        likely = chance(left, right) * chance(right, left) * (asked[0] == asked[1])
    frame = pd.DataFrame(
        {
            "query": a,
            "passage": b,
            "score": score if score is not None else alike,
            "label": label,
            "phenomenon": phenomenon,
            "target": target(label, alike),
            "chance": likely,
            "relations": marks,
        }
    )
    return frame[frame["query"] != frame["passage"]].drop_duplicates(["query", "passage"]).reset_index(drop=True)


def _repeat_events(rng: np.random.Generator, split: str, n: int, partners: int, kind: str = "any") -> np.ndarray:
    """(n, WIDTH) events, each `partners` times: every left sentence meets that many right ones, as in LCQMC or PAWS."""
    return np.repeat(ev.sample(rng, -(-n // partners), split, kind), partners, axis=0)[:n]


def _draw_matches(rng: np.random.Generator, n: int, partners: int) -> np.ndarray:
    """(n,) bool: a fair coin a pair, or, where a left sentence has several partners, every other one of them."""
    return rng.random(n) < 0.5 if partners == 1 else np.arange(n) % 2 == 0


def sts_graded(rng: np.random.Generator, split: str, n: int, partners: int = 1) -> pd.DataFrame:
    """Sentence pairs scored 0–5 by the similarity of their events; "n edits" is the phenomenon."""
    left = _repeat_events(rng, split, n, partners)
    right = left.copy()
    edits = rng.choice([0, 1, 2, 3, 4, 6], size=n, p=[0.12, 0.22, 0.22, 0.18, 0.14, 0.12])
    for step in range(6):
        op = rng.choice(4, size=n, p=[0.25, 0.2, 0.47, 0.08])
        for code, edit in enumerate(
            (ev.drop, ev.generalise, lambda g, e: ev.substitute(g, e, split), lambda g, e: ev.oppose(e))
        ):
            hit = np.flatnonzero((edits > step) & (op == code))
            right[hit] = edit(rng, right[hit])
    unrelated = rng.random(n) < 0.08
    right[unrelated] = ev.sample(rng, int(unrelated.sum()), split)
    flip = rng.random(n) < 0.5
    left, right = np.where(flip[:, None], right, left), np.where(flip[:, None], left, right)
    name = np.where(
        unrelated,
        "unrelated",
        np.where(edits == 0, "paraphrase", np.char.add(np.minimum(edits, 4).astype(str), " edits")),
    )
    name = np.char.replace(name.astype(str), "4 edits", "4+ edits")
    score = np.round(5 * ev.similarity(left, right), 2)
    return _make_pairs(rng, Sentences(left), Sentences(right), name, score)


def question_match(rng: np.random.Generator, split: str, n: int, partners: int = 1) -> pd.DataFrame:
    """Question pairs: 1 when they ask the same thing, else 0 (one word, the roles, the verb or what is asked for
    differs).
    """
    left = _repeat_events(rng, split, n, partners)
    ask = np.repeat(_draw_asked_slots(rng, left[::partners]), partners)[:n]
    match = _draw_matches(rng, n, partners)
    person = left[:, PATIENT] > 0
    kinds = np.where(
        match, "same question", rng.choice(["other word", "opposite", "other wildcard"], size=n, p=[0.6, 0.15, 0.25])
    )
    kinds = np.where(~match & person & (rng.random(n) < 0.3), "role swap", kinds)
    right, other = _edit_questions(rng, split, kinds, left, ask)
    rows = np.arange(n)
    plain_left, plain_right = left.copy(), right.copy()
    plain_left[rows, ask] = 0
    plain_right[rows, other] = 0
    truth = (plain_left == plain_right).all(-1) & (ask == other)
    keep = np.flatnonzero(truth == match)
    # The wildcard stands in for the asked word, so the hidden node still decides phrases such as 在哪里.
    return _make_pairs(
        rng,
        Sentences(left[keep]),
        Sentences(right[keep]),
        kinds.astype(object)[keep],
        truth[keep].astype(float),
        truth[keep],
        (ask[keep], other[keep]),
    )


def _edit_questions(
    rng: np.random.Generator, split: str, kinds: np.ndarray, events: np.ndarray, ask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(the events of questions that differ as `kinds` says, the slots they ask for)."""
    out, other = events.copy(), ask.copy()
    for kind in ("other word", "opposite", "other wildcard", "role swap"):
        rows = np.flatnonzero(kinds == kind)
        if kind == "other word":
            asked_nodes = out[rows, ask[rows]].copy()
            out[rows] = ev.substitute(rng, out[rows], split)
            out[rows, ask[rows]] = asked_nodes
        elif kind == "opposite":
            out[rows] = ev.oppose(out[rows])
        elif kind == "role swap":
            out[rows] = ev.swap_roles(out[rows])
        else:
            other[rows] = _draw_asked_slots(rng, out[rows])
    return out, other


def _draw_asked_slots(rng: np.random.Generator, events: np.ndarray) -> np.ndarray:
    """(n,) a said slot that a question can ask for."""
    slots = np.array(list(surface.ASK))
    return slots[(rng.random((len(events), len(slots))) * (events[:, slots] > 0)).argmax(1)]


def role_swap(rng: np.random.Generator, split: str, n: int, partners: int = 1) -> pd.DataFrame:
    """Pairs about two people: 1 for a paraphrase (active, passive, 把), 0 when the roles changed places; same words
    either way.
    """
    left = _repeat_events(rng, split, n, partners, "person")
    match = _draw_matches(rng, n, partners)
    right = np.where(match[:, None], left, ev.swap_roles(left))
    name = np.where(match, "paraphrase", "roles swapped")
    return _make_pairs(rng, Sentences(left), Sentences(right), name, match.astype(float))


# Retrieval -----------------------------------------------------------------------------------------------------------


class Retrieval(TypedDict):
    """A retrieval set: its frames, the events behind its texts, and what is relevant by their logic, (q, p) bool."""

    queries: pd.DataFrame
    corpus: pd.DataFrame
    qrels: pd.DataFrame
    query_events: np.ndarray
    ask: np.ndarray
    passage_events: np.ndarray
    tags: list[tuple[str, ...]]
    relevant: np.ndarray


class _Queries(NamedTuple):
    """Events behind queries.

    `gold` (q, sentences, WIDTH): the passage written for each query; `at` (q,): the sentence of it that the query is
    about; `core` (q, WIDTH): that sentence's event; `ask` (q,): the slot asked for, -1 where none is; `event`
    (q, WIDTH): what the query itself says.
    """

    gold: np.ndarray
    at: np.ndarray
    core: np.ndarray
    ask: np.ndarray
    event: np.ndarray

    @property
    def hidden(self) -> np.ndarray:
        """(q,) bool: whether the query asks for a slot."""
        return self.ask >= 0

    @property
    def asked(self) -> np.ndarray:
        """(q,) the slot asked for, 0 where none is."""
        return np.maximum(self.ask, 0)


def retrieval(rng: np.random.Generator, split: str, shape: str, queries: int) -> Retrieval:
    """Queries, passages among confusable ones, and complete relevance judgements.

    Args:
        shape: "question" (a question with a wildcard; passages of two sentences), "keyword" (search words; passages of
            one sentence, several of them relevant) or "claim" (a general statement; passages of two sentences).
    Returns:
        dict with `queries` (id, text, phenomenon), `corpus` (id, text), `qrels` (query_id, doc_id, relevance) and the
        event arrays `query_events` (q, WIDTH), `ask` (q,), `passage_events` (p, sentences, WIDTH) with the `tags` of
        their sentences for the teacher's examples.
    """
    query = _draw_queries(rng, split, shape, queries)
    stacked = _draw_passages(rng, split, shape, query)
    texts, tags = _write_passages(rng, stacked)
    _, unique = np.unique(np.array(texts), return_index=True)
    unique = np.sort(unique)
    stacked, texts, tags = stacked[unique], [texts[i] for i in unique], [tags[i] for i in unique]
    words = _write_queries(rng, shape, query)
    relevant = relevance(query.event, query.ask, stacked)
    judged = np.argwhere(relevant)
    name = f"ir-{shape}-{split}"
    return {
        "queries": pd.DataFrame(
            {"id": [f"{name}-q{i}" for i in range(queries)], "text": words, "phenomenon": _name_phenomena(query)}
        ),
        "corpus": pd.DataFrame({"id": [f"{name}-d{i}" for i in range(len(texts))], "text": texts}),
        "qrels": pd.DataFrame(
            {
                "query_id": [f"{name}-q{q}" for q, _ in judged],
                "doc_id": [f"{name}-d{d}" for _, d in judged],
                "relevance": 1,
            }
        ),
        "query_events": query.event,
        "ask": query.ask,
        "passage_events": stacked,
        "tags": tags,
        "relevant": relevant,
    }


def _draw_queries(rng: np.random.Generator, split: str, shape: str, count: int) -> _Queries:
    """Passages of random events, and a query about one sentence of each."""
    length = {"question": 2, "keyword": 1, "claim": 2}[shape]
    gold = np.stack([_deny_some(rng, ev.sample(rng, count, split)) for _ in range(length)], axis=1)
    at = rng.integers(0, length, count)
    rows = np.arange(count)
    core = gold[rows, at].copy()
    core[:, ev.POLARITY] = 0
    gold[rows, at] = core
    ask = _draw_asked_slots(rng, core) if shape == "question" else np.full(count, -1)
    event = _weaken(rng, core, {"question": 0.3, "keyword": 0.5, "claim": 0.5}[shape])
    query = _Queries(gold, at, core, ask, event)
    event[query.hidden, query.asked[query.hidden]] = 0
    return query


def _name_phenomena(query: _Queries) -> np.ndarray:
    """(q,) whether a query says its sentence's event as it is or in more general words."""
    is_asked = query.hidden[:, None] & (np.arange(ev.WIDTH) == query.asked[:, None])
    return np.where((query.event == np.where(is_asked, 0, query.core)).all(-1), "as stated", "generalised")


def _draw_passages(rng: np.random.Generator, split: str, shape: str, query: _Queries) -> np.ndarray:
    """(p, sentences, WIDTH) events of the passages in random order: those written for the queries, and confusable
    ones.
    """
    count, length = len(query.gold), query.gold.shape[1]
    rows = np.arange(count)
    passages = [query.gold]
    for edit in range({"question": 3, "keyword": 3, "claim": 2}[shape]):
        twin = query.gold.copy()
        twin[rows, query.at] = _confuse(rng, query, split, edit, shape != "keyword")
        if length > 1:
            filler = (query.at + 1) % length
            fresh = rng.random(count) < 0.5
            twin[rows[fresh], filler[fresh]] = ev.sample(rng, int(fresh.sum()), split)
        passages.append(twin)
    if shape == "keyword":  # a second relevant passage: the same event with another detail
        passages.append(np.stack([ev.add_detail(rng, query.core)], axis=1))
    stacked = np.concatenate(passages)
    return stacked[rng.permutation(len(stacked))]


def _write_queries(rng: np.random.Generator, shape: str, query: _Queries) -> list[str]:
    """The texts of the queries."""
    if shape == "keyword":
        return surface.keywords(rng, query.event)
    if shape == "question":
        # realise needs a node in the asked slot to know its phrase; the wildcard replaces its word
        shown = query.event.copy()
        hidden = query.hidden
        shown[hidden, query.asked[hidden]] = query.core[hidden, query.asked[hidden]]
        return surface.realise(rng, shown, surface.QUESTIONS, query.ask)[0]
    return surface.realise(rng, query.event, surface.COMMON)[0]


def _deny_some(rng: np.random.Generator, events: np.ndarray) -> np.ndarray:
    """A copy in which one event in twelve did not happen."""
    events = events.copy()
    hit = rng.random(len(events)) < 0.08
    events[hit] = ev.deny(events[hit])
    return events


def _confuse(rng: np.random.Generator, query: _Queries, split: str, edit: int, roles: bool) -> np.ndarray:
    """Events like `query.core` that do not answer the query: another word, other roles, the opposite, a denial, or no
    answer.

    `roles`: whether the exchange of roles may be among them; search words do not say who did what to whom.
    """
    core = query.core
    out = ev.substitute(rng, core, split, (AGENT, OBJECT, PATIENT, PLACE, TIME))
    turn = rng.random(len(core))
    person = core[:, PATIENT] > 0
    swap = person & (turn < 0.35) & roles
    out[swap] = ev.swap_roles(core[swap])
    other = ~swap & (turn < 0.5)
    out[other] = ev.oppose(core[other])
    no = ~swap & (turn >= 0.5) & (turn < 0.6)
    out[no] = ev.deny(core[no])
    missing = ~swap & (turn >= 0.6) & (turn < 0.75) & query.hidden & np.isin(query.asked, (PLACE, TIME))
    silent = core[missing].copy()
    silent[np.arange(len(silent)), query.asked[missing]] = 0
    out[missing] = silent
    # A second edit now and then, so that confusable passages differ in how near they come.
    if edit:
        more = rng.random(len(out)) < 0.3
        out[more] = ev.substitute(rng, out[more], split, (PLACE, TIME, AGENT))
    return out


def _write_passages(rng: np.random.Generator, events: np.ndarray) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts of (p, sentences, WIDTH) events, each sentence ending in 。, and the tags of every sentence without it."""
    parts = [surface.realise(rng, events[:, index], surface.COMMON) for index in range(events.shape[1])]
    texts = [
        "。".join(sentences) + "。"
        for sentences in zip(*(sentences_of_part for sentences_of_part, _ in parts), strict=True)
    ]
    return texts, list(zip(*(tags for _, tags in parts), strict=True))


def relevance(query: np.ndarray, ask: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """(q, p) bool: some sentence of the passage entails the query and says what it asks for."""
    out = np.zeros((len(query), len(passages)), dtype=bool)
    for index in range(passages.shape[1]):
        sentence = passages[:, index]
        # A verb only entails itself, so all but one pair in forty is settled by comparing verbs.
        q, p = np.nonzero(query[:, None, VERB] == sentence[None, :, VERB])
        entailed = ev.entails(sentence[p], query[q])
        asked = ask[q]
        answered = (asked < 0) | (sentence[p, np.maximum(asked, 0)] > 0)
        out[q, p] |= entailed & answered
    return out


def graded_relevance(query: np.ndarray, ask: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Row-wise similarity in [0, 1] of a query event (m, WIDTH) to the nearest sentence of its passage (m, sentences,
    WIDTH).
    """
    best = np.zeros(len(query))
    for index in range(passages.shape[1]):
        sentence = passages[:, index].copy()
        stated = query[:, : len(SLOTS)] > 0
        sentence[:, : len(SLOTS)] = np.where(stated, sentence[:, : len(SLOTS)], 0)
        best = np.maximum(best, ev.similarity(query, sentence))
    return best


def likely_relevance(query: np.ndarray, ask: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Row-wise in [0, 1]: how likely the sentence of the passage that fits the query best is of the event that the
    query is about (`events.chance`), of the sentences that say what it asks for. Shapes as `graded_relevance`.
    """
    best, rows = np.zeros(len(query)), np.arange(len(query))
    for index in range(passages.shape[1]):
        sentence = passages[:, index]
        answered = (ask < 0) | (sentence[rows, np.maximum(ask, 0)] > 0)
        best = np.maximum(best, answered * ev.chance(sentence, query))
    return best


# Unlabelled text and the teacher's examples --------------------------------------------------------------------------


def _continue_events(rng: np.random.Generator, events: np.ndarray) -> np.ndarray:
    """Another action of the same agent, at the same place and time, staying in the train split."""
    out = np.zeros_like(events)
    todo = np.arange(len(events))
    while len(todo):
        trial = ev.sample(rng, len(todo), "train")
        for slot in (AGENT, PLACE, TIME):
            trial[:, slot] = events[todo, slot]
        good = ev.in_split(trial, "train") & (trial[:, PATIENT] != trial[:, AGENT] + ev.patient_offset())
        out[todo[good]] = trial[good]
        todo = todo[~good]
    return out


def pretraining(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Unlabelled text with its meaning: what the base models are pre-trained on (train compositions only).

    Columns: text; paraphrase (same meaning, other words); distractor (nearly the same words, another meaning);
    next_text (the sentence that follows: same agent, place and time, another action); slots (2 x len(SLOTS) node ids,
    zeros for a missing second event) and ask (slot asked for, -1 for statements).
    """
    first, second = _draw_unlabelled_events(rng, n)
    double = rng.random(n) < 0.3
    question = ~double & (rng.random(n) < 0.25)
    words = ~double & ~question & (rng.random(n) < 0.1)
    second[~double] = 0
    sentences = Sentences(first, second)
    text, _ = sentences.realise(rng, FAMILIES, LINKS)
    again, _ = sentences.realise(rng, FAMILIES, LINKS)
    ask = np.where(question, _draw_asked_slots(rng, first), -1)
    for texts in (text, again):
        _put_questions(rng, texts, first, ask)
    moved = _rebind(rng, first, second, double, ask)
    distractor, _ = moved.realise(rng, FAMILIES, LINKS)
    _put_questions(rng, distractor, moved.events[:, 0], ask)
    typed = np.flatnonzero(words)
    for row, value in zip(typed, surface.keywords(rng, first[typed]), strict=True):
        again[row] = value
    _put_in_brackets(rng, (text, again, distractor))
    follow = _continue_events(rng, first)
    next_text, _ = surface.realise(rng, follow, FAMILIES)
    return pd.DataFrame(
        {
            "text": text,
            "paraphrase": again,
            "distractor": distractor,
            "next_text": next_text,
            "slots": list(_label_slots(first, second, ask).astype(np.int16)),
            "ask": ask.astype(np.int8),
            "negated": first[:, ev.POLARITY].astype(np.int8),
        }
    )


def _draw_unlabelled_events(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(first events, half of them about two people; second events) of the train split, in general words."""
    people, things = ev.sample(rng, n // 2, "train", "person"), ev.sample(rng, n - n // 2, "train", "object")
    first = np.concatenate([people, things])[rng.permutation(n)]
    second = ev.sample(rng, n, "train")
    first = _deny_some(rng, _weaken(rng, first, 0.3))
    return first, _weaken(rng, second, 0.3)


def _put_questions(rng: np.random.Generator, texts: list[str], events: np.ndarray, ask: np.ndarray) -> None:
    """Put a question in the place of every text that is to ask for a slot."""
    asked = np.flatnonzero(ask >= 0)
    shown, _ = surface.realise(rng, events[asked], surface.QUESTIONS, ask[asked])
    for row, value in zip(asked, shown, strict=True):
        texts[row] = value


def _rebind(
    rng: np.random.Generator, first: np.ndarray, second: np.ndarray, double: np.ndarray, ask: np.ndarray
) -> Sentences:
    """The same words bound otherwise: roles or events exchanged; elsewhere one word or the polarity changed."""
    moved_first, moved_second = ev.swap_roles(first), second.copy()
    crossed, rest = _exchange_words(rng, first, second, "train")
    moved_first[double], moved_second[double] = crossed[double], rest[double]
    alone = ~double & ((first[:, PATIENT] == 0) | (rng.random(len(first)) < 0.15))
    moved_first[alone] = ev.substitute(rng, first[alone], "train")
    turned = alone & (rng.random(len(first)) < 0.3)
    moved_first[turned] = ev.oppose(first[turned])
    # A question hides the word it asks for, and some edits are impossible: what is still the same gets the opposite
    # verb.
    hidden = np.flatnonzero(ask >= 0)
    moved_first[hidden, ask[hidden]] = first[hidden, ask[hidden]]
    same = (moved_first == first).all(-1) & (moved_second == second).all(-1)
    moved_first[same] = ev.oppose(moved_first[same])
    return Sentences(moved_first, moved_second)


def _put_in_brackets(rng: np.random.Generator, columns: tuple[list[str], ...]) -> None:
    """Put some texts in quotes or brackets, as anywhere: methods that put them around texts then know these marks."""
    count = len(columns[0])
    marks = np.flatnonzero(rng.random(count) < 0.12)
    for row, kind in zip(marks, rng.integers(0, len(surface.BRACKETS), len(marks)), strict=True):
        left, right = surface.BRACKETS[kind]
        for column in columns:
            column[row] = left + column[row] + right


def _label_slots(first: np.ndarray, second: np.ndarray, ask: np.ndarray) -> np.ndarray:
    """(n, 2·slots) nodes of both events; 0 in the slot that a question asks for."""
    slots = np.concatenate([first[:, : len(SLOTS)], second[:, : len(SLOTS)]], axis=1)
    hidden = np.flatnonzero(ask >= 0)
    slots[hidden, ask[hidden]] = 0
    return slots


def teacher_symmetric(rng: np.random.Generator, split: str, groups: int, size: int) -> pd.DataFrame:
    """Graded symmetric groups: mode, query; lists: passages, target, label, relations, phenomenon."""
    share = {"nli": 0.56, "sts": 0.16, "questions": 0.1, "roles": 0.18}
    # A teacher has read widely: its examples have every sentence pattern, the students' training pairs only the common
    # ones.
    pairs = nli(rng, split, int(groups * share["nli"]), size, FAMILIES)
    singles = pd.concat(
        [
            sts_graded(rng, split, int(groups * share["sts"] * size)),
            question_match(rng, split, int(groups * share["questions"] * size * 1.3)),
            role_swap(rng, split, int(groups * share["roles"] * size)),
        ],
        ignore_index=True,
    )
    singles["group"] = -1 - np.arange(len(singles))
    return _group_pairs(pd.concat([pairs, singles.drop(columns="score")], ignore_index=True), "symmetric")


def teacher_asymmetric(rng: np.random.Generator, split: str, groups: int, size: int) -> pd.DataFrame:
    """Graded retrieval groups: a query with relevant, confusable and random passages; same columns as
    `teacher_symmetric`.
    """
    parts = []
    chunk = 400  # queries that share a small corpus: the work is queries x passages
    for shape in ("question", "keyword", "claim"):
        for start in range(0, groups // 3, chunk):
            world = retrieval(rng, split, shape, min(chunk, groups // 3 - start))
            parts.append(_make_passage_pairs(rng, world, size, f"{shape}-{start}"))
    return _group_pairs(pd.concat(parts, ignore_index=True), "asymmetric")


def _make_passage_pairs(rng: np.random.Generator, world: Retrieval, size: int, shape: str) -> pd.DataFrame:
    """Up to `size` passages a query: one relevant, the nearest irrelevant ones, one at random."""
    query, ask, passages, relevant = world["query_events"], world["ask"], world["passage_events"], world["relevant"]
    texts, words = world["corpus"]["text"].tolist(), world["queries"]["text"].tolist()
    rows, docs = [], []
    for start in range(0, len(query), 128):
        block = np.arange(start, min(start + 128, len(query)))
        near = _sum_slot_similarities(query[block], passages)
        near += 0.3 * rng.random(near.shape, dtype=np.float32)
        good = relevant[block]
        wrong = np.argsort(-np.where(good, -1, near), axis=1)[:, : size - 2]
        for i, row in enumerate(block):
            options = np.flatnonzero(good[i])
            chosen = [int(rng.choice(options))] if len(options) else []
            chosen += [int(d) for d in wrong[i]] + [int(rng.integers(len(passages)))]
            chosen = list(dict.fromkeys(chosen))
            rows += [int(row)] * len(chosen)
            docs += chosen
    q, d = np.array(rows), np.array(docs)
    label = relevant[q, d]
    alike = graded_relevance(query[q], ask[q], passages[d])
    tags = world["tags"]
    return pd.DataFrame(
        {
            "group": [f"{shape}-{i}" for i in q],
            "query": [words[i] for i in q],
            "passage": [texts[i] for i in d],
            "label": label,
            "phenomenon": np.where(label, "relevant", "not relevant"),
            "target": target(label, alike),
            "chance": likely_relevance(query[q], ask[q], passages[d]),
            "relations": _passage_relations(query[q], passages[d], [tags[i] for i in d]),
        }
    )


def _sum_slot_similarities(query: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """(q, p) float32: how alike a query and the nearest sentence of a passage are, over the slots the query states."""
    lex = lexicon()
    near = np.zeros((len(query), len(passages)), dtype=np.float32)
    stated = query[:, : len(SLOTS)] > 0
    for index in range(passages.shape[1]):
        sentence = passages[:, index, : len(SLOTS)]
        hits = sum(
            stated[:, slot, None] * lex.similarity[query[:, slot]][:, sentence[:, slot]]
            for slot in (AGENT, VERB, OBJECT, PATIENT, PLACE, TIME)
        )
        near = np.maximum(near, np.asarray(hits, dtype=np.float32))
    return near


def _passage_relations(query: np.ndarray, passages: np.ndarray, tags: list[tuple[str, ...]]) -> list[str]:
    """As `relations`, for passages: the words of each sentence against the query, which is never a denial."""
    tables = [ev.relation(query, passages[:, index]) for index in range(passages.shape[1])]
    out = []
    for row, sentences in enumerate(tags):
        marks = ""
        for table, tag in zip(tables, sentences, strict=True):
            digits = {ord(letter): str(table[row, slot]) for letter, slot in LETTER_SLOTS.items()}
            marks += tag.translate(digits | {ord("n"): "5", ord("."): "0"}) + "0"
        out.append(marks)
    return out


def _group_pairs(pairs: pd.DataFrame, mode: str) -> pd.DataFrame:
    """One row a group, in order of first occurrence, with lists over its pairs (agg(list) of pandas takes seconds
    here).
    """
    code, _ = pd.factorize(pairs["group"])
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    out = {"mode": mode, "query": pairs["query"].to_numpy()[order][starts]}
    for column in ("passage", "target", "chance", "label", "relations", "phenomenon"):
        values = pairs[column].to_numpy()[order]
        out["passages" if column == "passage" else column] = [part.tolist() for part in np.split(values, starts[1:])]
    return pd.DataFrame(out)

"""Events of the generated world as arrays of node ids, and the logic over them: who entails whom, how alike two events
are.

An event is a row of `len(SLOTS)` node ids (0: not said) plus a polarity column (0 it happened, 1 it did not). All
functions are vectorised over rows and pure given a numpy Generator. Sentences are made in `surface.py`, tasks in
`generate.py`.
"""

from __future__ import annotations

import numpy as np

from d2llm.data.world.lexicon import (
    AGENT,
    ATTRIBUTE,
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

POLARITY = len(SLOTS)
WIDTH = len(SLOTS) + 1
OPTIONAL = (ATTRIBUTE, QUANTITY, PLACE, TIME, MANNER)
SPLITS = ("train", "dev", "test")
# Weight of a slot in graded similarity; the event's core counts double.
_WEIGHTS = np.array([2, 3, 2, 2, 1, 1, 1, 1, 0.5])
_BUCKETS, _TRAIN, _DEV = 20, 13, 15


def sample(rng: np.random.Generator, n: int, split: str, kind: str = "any") -> np.ndarray:
    """Draw `n` fully specified positive events of a split, (n, WIDTH).

    Args:
        kind: "any" (a third of them between two people), "object" or "person": what the verb acts on.
    """
    rows = np.zeros((0, WIDTH), dtype=np.int64)
    while len(rows) < n:
        draw = _sample(rng, 2 * n + 64, kind)
        rows = np.concatenate([rows, draw[split_of(draw) == split]])
    return rows[:n]


def _sample(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    lex = lexicon()
    events = np.zeros((n, WIDTH), dtype=np.int64)
    share = {"any": 1 / 3, "object": 0.0, "person": 1.0}[kind]
    person = rng.random(n) < share
    events[:, AGENT] = _draw_leaf(rng, AGENT, n)
    verbs = lex.leaves[VERB]
    person_verbs, object_verbs = verbs[lex.person_verb[verbs]], verbs[~lex.person_verb[verbs]]
    events[:, VERB] = np.where(person, _draw_by_rank(rng, person_verbs, n), _draw_by_rank(rng, object_verbs, n))
    patients = _draw_leaf(rng, PATIENT, n)
    offset = lex.leaves[PATIENT][0] - lex.leaves[AGENT][0]
    clash = patients - offset == events[:, AGENT]
    patients[clash] = np.where(
        patients[clash] == lex.leaves[PATIENT][0], lex.leaves[PATIENT][1], lex.leaves[PATIENT][0]
    )
    events[:, PATIENT] = np.where(person, patients, 0)
    events[:, OBJECT] = np.where(person, 0, _draw_leaf(rng, OBJECT, n))
    for slot, chance in ((ATTRIBUTE, 0.5), (QUANTITY, 0.4)):
        events[:, slot] = np.where(~person & (rng.random(n) < chance), _draw_leaf(rng, slot, n), 0)
    for slot, chance in ((PLACE, 0.75), (TIME, 0.75), (MANNER, 0.35)):
        events[:, slot] = np.where(rng.random(n) < chance, _draw_leaf(rng, slot, n), 0)
    return events


def _draw_by_rank(rng: np.random.Generator, ids: np.ndarray, n: int) -> np.ndarray:
    weight = 1.0 / (np.arange(len(ids)) + 8.0)
    return rng.choice(ids, size=n, p=weight / weight.sum())


def _draw_leaf(rng: np.random.Generator, slot: int, n: int) -> np.ndarray:
    return _draw_by_rank(rng, lexicon().leaves[slot], n)


def patient_offset() -> int:
    """Difference between a person's node as patient and as agent."""
    lex = lexicon()
    return int(lex.leaves[PATIENT][0] - lex.leaves[AGENT][0])


def split_of(events: np.ndarray) -> np.ndarray:
    """The split of each event's composition: a hash of (agent, verb, object), or of (unordered pair of people, verb).

    Opposite verbs share a bucket and roles are unordered, so that neither the swapped nor the opposite twin of a test
    event can be a training event.
    """
    lex = lexicon()
    offset = patient_offset()
    verb = np.where(lex.opposite[events[:, VERB]] > 0, np.minimum(events[:, VERB], lex.opposite[events[:, VERB]]), 0)
    patient = np.where(events[:, PATIENT] > 0, events[:, PATIENT] - offset, 0)
    person = events[:, PATIENT] > 0
    low = np.where(person, np.minimum(events[:, AGENT], patient), events[:, AGENT]).astype(np.uint64)
    high = np.where(person, np.maximum(events[:, AGENT], patient), events[:, OBJECT]).astype(np.uint64)
    key = (low * np.uint64(1_000_003) + high) * np.uint64(1_000_003) + verb.astype(np.uint64)
    key ^= key >> np.uint64(15)
    key *= np.uint64(0x2C1B3C6D)
    key ^= key >> np.uint64(12)
    bucket = (key % np.uint64(_BUCKETS)).astype(int)
    return np.where(bucket < _TRAIN, "train", np.where(bucket < _DEV, "dev", "test"))


# Logic ---------------------------------------------------------------------------------------------------------------


def entails(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise: whenever `a` holds, `b` holds. Broadcasts over leading axes of (…, WIDTH).

    An event description is a set of constraints. "It happened" is upward monotone (a more specific event entails a more
    general one), "it did not happen" downward (denying the general denies the specific); mixed polarity never entails.
    """
    is_a = lexicon().is_a
    slots = slice(0, len(SLOTS))
    up = is_a[a[..., slots], b[..., slots]].all(-1)
    down = is_a[b[..., slots], a[..., slots]].all(-1)
    same = a[..., POLARITY] == b[..., POLARITY]
    return same & np.where(a[..., POLARITY] == 0, up, down)


def chance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise, in [0, 1]: how likely `b` describes the event that `a` describes, where each word of `b` that `a`
    leaves open is as likely as its share of the leaves that `a` allows; 1 exactly where `a` entails `b`.

    Of two denials it is the share of what `b` denies that `a` denies; of an event and a denial it is 0.
    """
    table = lexicon().chance
    left, right = a[..., : len(SLOTS)], b[..., : len(SLOTS)]
    value = np.where(a[..., POLARITY, None] == 0, table[left, right], table[right, left]).prod(-1)
    return np.where(a[..., POLARITY] == b[..., POLARITY], value, 0.0)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Symmetric graded similarity in [0, 1]: weighted mean of node similarities over the slots either event fills.

    Opposite polarity costs 60%; opposite verbs count as unlike as unrelated ones.
    """
    table = lexicon().similarity
    slots = slice(0, len(SLOTS))
    left, right = a[..., slots], b[..., slots]
    weight = _WEIGHTS * ((left > 0) | (right > 0))
    value = (weight * table[left, right]).sum(-1) / np.maximum(weight.sum(-1), 1e-9)
    return np.where(a[..., POLARITY] == b[..., POLARITY], value, 0.4 * value)


def relation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Slot by slot, how `b` stands to `a`, (…, len(SLOTS)): 0 nothing said in b, 1 the same, 2 b more general, 3 b more
    specific, 4 not said in a, 5 different."""
    is_a = lexicon().is_a
    left, right = a[..., : len(SLOTS)], b[..., : len(SLOTS)]
    up, down = is_a[left, right], is_a[right, left]
    out = np.select([right == 0, left == 0, up & down, up, down], [0, 4, 1, 2, 3], 5)
    return out.astype(np.int8)


# Edits: each returns new events; rows where an edit is impossible come back unchanged --------------------------------


def drop(rng: np.random.Generator, events: np.ndarray, n: int = 1) -> np.ndarray:
    """Leave out `n` of the optional slots that are said."""
    out = events.copy()
    for _ in range(n):
        score = rng.random((len(out), len(OPTIONAL))) * (out[:, OPTIONAL] > 0)
        pick = np.array(OPTIONAL)[score.argmax(1)]
        out[np.arange(len(out)), pick] = 0
    return out


def generalise(rng: np.random.Generator, events: np.ndarray, n: int = 1) -> np.ndarray:
    """Replace `n` nouns, times or quantities by more general ones (one to three steps up)."""
    lex = lexicon()
    out = events.copy()
    rows = np.arange(len(out))
    candidates = np.array([AGENT, OBJECT, PATIENT, PLACE, TIME, QUANTITY])
    for _ in range(n):
        weights = (lex.parent[out[:, candidates]] > 0) * np.array([1.0, 1.2, 1.0, 1.0, 0.8, 0.6])
        pick = candidates[(rng.random(weights.shape) ** 0.5 * weights).argmax(1)]
        node = out[rows, pick]
        steps = rng.choice([1, 2, 3], size=len(out), p=[0.65, 0.25, 0.1])
        for step in range(3):
            parent = lex.parent[node]
            node = np.where((step < steps) & (parent > 0), parent, node)
        out[rows, pick] = node
    weaken = rng.random(len(out)) < 0.5
    return np.where(weaken[:, None], weaken_quantity(rng, out), out)


def weaken_quantity(rng: np.random.Generator, events: np.ndarray) -> np.ndarray:
    """Exactly m -> at least n (n <= m)."""
    lex = lexicon()
    out = events.copy()
    for m, node in lex.exact.items():
        hit = np.flatnonzero(out[:, QUANTITY] == node)
        n = rng.integers(2, min(m, 6) + 1, size=len(hit))
        out[hit, QUANTITY] = np.array([lex.at_least[k] for k in n], dtype=int) if len(hit) else []
    return out


def substitute(
    rng: np.random.Generator, events: np.ndarray, split: str, slots: tuple[int, ...] | None = None
) -> np.ndarray:
    """Replace one said leaf by another leaf of its slot (half of the time a sibling), staying in the split."""
    lex = lexicon()
    out = events.copy()
    rows = np.arange(len(out))
    allowed = np.array(
        slots if slots is not None else [AGENT, OBJECT, PATIENT, PLACE, TIME, ATTRIBUTE, QUANTITY, VERB, MANNER]
    )
    weight = np.array([{VERB: 0.5, MANNER: 0.4, QUANTITY: 0.7}.get(slot, 1.0) for slot in allowed])
    pick = allowed[(rng.random((len(out), len(allowed))) ** 0.5 * weight * (out[:, allowed] > 0)).argmax(1)]
    open_rows = out[rows, pick] > 0
    for _ in range(40):
        todo = np.flatnonzero(open_rows)
        if not len(todo):
            break
        trial = events[todo].copy()
        old = trial[np.arange(len(todo)), pick[todo]]
        new = np.zeros_like(old)
        for slot in np.unique(pick[todo]):
            hit = pick[todo] == slot
            pool = lex.leaves[slot]
            if slot == VERB:
                person = lex.person_verb[old[hit]]
                new[hit] = np.where(
                    person,
                    _draw_by_rank(rng, pool[lex.person_verb[pool]], hit.sum()),
                    _draw_by_rank(rng, pool[~lex.person_verb[pool]], hit.sum()),
                )
            else:
                new[hit] = rng.choice(pool, size=hit.sum())
        sibling = rng.random(len(todo)) < 0.5
        related = lex.parent[new] == lex.parent[old]
        trial[np.arange(len(todo)), pick[todo]] = new
        good = (~lex.is_a[old, new]) & (~lex.is_a[new, old]) & (related | ~sibling) & in_split(trial, split)
        good &= ~((trial[:, PATIENT] > 0) & (trial[:, PATIENT] - patient_offset() == trial[:, AGENT]))
        out[todo[good]] = trial[good]
        open_rows[todo[good]] = False
    return out


def in_split(events: np.ndarray, split: str) -> np.ndarray:
    """Events with a generalised core have no composition to be split by; the others must hash to `split`."""
    lex = lexicon()
    core = np.stack([events[:, AGENT], np.maximum(events[:, OBJECT], events[:, PATIENT])])
    return (lex.level[core] > 0).any(0) | (split_of(events) == split)


def oppose(events: np.ndarray) -> np.ndarray:
    """The opposite verb."""
    out = events.copy()
    out[:, VERB] = lexicon().opposite[out[:, VERB]]
    return out


def swap_roles(events: np.ndarray) -> np.ndarray:
    """Agent and patient change places (rows without a patient stay)."""
    out = events.copy()
    person = out[:, PATIENT] > 0
    out[person, AGENT] = events[person, PATIENT] - patient_offset()
    out[person, PATIENT] = events[person, AGENT] + patient_offset()
    return out


def deny(events: np.ndarray) -> np.ndarray:
    """The same description with the other polarity; quantities are left out of denials (their scope would be
    ambiguous).
    """
    out = events.copy()
    out[:, POLARITY] = 1 - out[:, POLARITY]
    out[:, QUANTITY] = 0
    return out


def add_detail(rng: np.random.Generator, events: np.ndarray) -> np.ndarray:
    """Say one optional slot that was not said (attributes and quantities only with objects)."""
    out = events.copy()
    free = out[:, OPTIONAL] == 0
    no_object = out[:, OBJECT] == 0
    free[no_object, 0] = free[no_object, 1] = False
    free[out[:, POLARITY] > 0, 1] = False  # a denied quantity would be ambiguous
    pick = (rng.random(free.shape) * free).argmax(1)
    for index, slot in enumerate(OPTIONAL):
        rows = np.flatnonzero((pick == index) & free[:, index])
        out[rows, slot] = _draw_leaf(rng, slot, len(rows))
    return out

"""What the generated world's words and events mean, against the reader's words, plain sets, enumerated worlds and
hand-worked cases."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from world_reader import Reading, composition, covers, follows, forms, numbers, opposite

from d2llm.data.world import events as ev
from d2llm.data.world import lexicon as words
from d2llm.data.world.lexicon import AGENT, ATTRIBUTE, MANNER, OBJECT, PATIENT, PLACE, QUANTITY, SLOTS, TIME, VERB

LEX = words.lexicon()
NODES = range(1, len(LEX))
SPLITS = ("train", "dev", "test")


def node(slot: int, form: str) -> int:
    """The node of a slot that a word names."""
    (number,) = [i for i in NODES if LEX.slot[i] == slot and form in LEX.forms[i]]
    return number


def event(negative: bool = False, **slots: str) -> np.ndarray:
    """One event of words by slot name."""
    row = np.zeros(ev.WIDTH, dtype=np.int64)
    for name, form in slots.items():
        row[SLOTS.index(name)] = node(SLOTS.index(name), form)
    row[ev.POLARITY] = negative
    return row


def reading_of(row: np.ndarray) -> Reading:
    """An event as the reader would read it."""
    words = ((SLOTS[slot], LEX.forms[row[slot]][0]) for slot in range(len(SLOTS)) if row[slot])
    return Reading(tuple(words), bool(row[ev.POLARITY]))


# -------------------------------------------------------------------------------------------------------------- lexicon
def test_is_a_and_similarity_are_those_of_the_words() -> None:
    ancestors = [set(np.flatnonzero(LEX.is_a[i])) - {0} for i in range(len(LEX))]
    for i, j in product(NODES, repeat=2):
        inside = LEX.slot[i] == LEX.slot[j]
        expected = inside and covers(SLOTS[LEX.slot[i]], LEX.forms[j][0], LEX.forms[i][0])
        assert LEX.is_a[i, j] == expected, (LEX.forms[i], LEX.forms[j])
        shared = len(ancestors[i] & ancestors[j]) / len(ancestors[i] | ancestors[j])
        assert LEX.similarity[i, j] == pytest.approx(shared), (LEX.forms[i], LEX.forms[j])
    assert LEX.is_a[:, 0].all()
    assert not LEX.is_a[0, 1:].any()  # what is not said is nothing in particular
    assert (LEX.similarity[0, 1:] == 0.5).all() and (LEX.similarity[1:, 0] == 0.5).all() and LEX.similarity[0, 0] == 1
    assert LEX.similarity[node(OBJECT, "苹果"), node(OBJECT, "香蕉")] == 3 / 5  # fruit, food, thing of five
    assert LEX.similarity[node(OBJECT, "苹果"), node(OBJECT, "铅笔")] == 1 / 7


def test_how_likely_an_event_is_that_of_another() -> None:
    """Shares of the leaves by hand; certain exactly where it follows."""
    stated = {"agent": "医务人员", "verb": "购买", "object": "苹果"}
    cases = [
        (stated, {"agent": "医生", "verb": "购买", "object": "水果"}, 1 / 4),  # one of four
        (stated, stated | {"place": "公园"}, 1 / 24),  # of all places
        (stated, stated | {"place": "户外", "time": "周六"}, 4 / 24 * 1 / 19),
        (stated, stated | {"object": "香蕉"}, 0),
        (stated | {"quantity": "至少三个"}, stated | {"quantity": "五个"}, 1 / 5),  # three to seven
    ]
    for one, two, share in cases:
        assert ev.chance(event(**one), event(**two)) == pytest.approx(share)
        assert ev.chance(event(True, **two), event(True, **one)) == pytest.approx(share)
        assert ev.chance(event(**one), event(True, **two)) == 0
    rows = ev.sample(np.random.default_rng(1), 400, "train")
    rng = np.random.default_rng(2)
    for other in (
        ev.generalise(rng, rows),
        ev.drop(rng, rows),
        ev.substitute(rng, rows, "train"),
        ev.add_detail(rng, rows),
    ):
        for one, two in ((rows, other), (other, rows), (ev.deny(rows), ev.deny(other))):
            assert ((ev.chance(one, two) == 1) == ev.entails(one, two)).all()


def test_words_name_one_node_of_a_slot() -> None:
    for slot, name in enumerate(SLOTS):
        named = [form for i in np.flatnonzero(LEX.slot == slot) for form in LEX.forms[i]]
        assert len(named) == len(set(named)) and set(named) == set(forms(name))
        assert (LEX.level[LEX.leaves[slot]] == 0).all()
        assert len(set(LEX.leaves[slot])) == len(LEX.leaves[slot])
    assert set(LEX.words()) == {form for forms in LEX.forms[1:] for form in forms}
    for i in np.flatnonzero(LEX.slot == AGENT):  # the same person, as agent and as patient, at every level
        assert LEX.forms[i][0] == "有人" or LEX.forms[i + ev.patient_offset()] == LEX.forms[i]


def test_opposites_are_pairs_of_one_kind() -> None:
    opposites = {i: int(LEX.opposite[i]) for i in np.flatnonzero(LEX.opposite)}
    assert set(opposites) == set(LEX.leaves[VERB]) | set(LEX.leaves[ATTRIBUTE])
    assert all(opposites[other] == one != other for one, other in opposites.items())
    for one in LEX.leaves[VERB]:
        assert LEX.forms[opposites[one]][0] == opposite(LEX.forms[one][0])
        assert LEX.person_verb[one] == LEX.person_verb[opposites[one]]
    assert opposites[node(ATTRIBUTE, "昂贵")] == node(ATTRIBUTE, "便宜")


# --------------------------------------------------------------------------------------------------------------- logic
def small_world() -> tuple[list[tuple], list[np.ndarray]]:
    """Everything that can happen in a small world, and every description of it (quantities in affirmed ones only)."""
    happenings = list(
        product(("医生", "护士", "歌手", "画家"), ("借走", "归还"), ("苹果", "香蕉", "萝卜", "铅笔"), range(1, 9))
    )
    described = [
        event(negative, agent=agent, verb="借走", object=thing, **({"quantity": quantity} if quantity else {}))
        for agent, thing, quantity in product(
            ("护士", "歌手", "医务人员", "文艺工作者", "有人"), ("苹果", "萝卜", "水果", "食物", "东西"),
            (None, "两个", "三个", "至少两个", "至少四个", "几个"))
        for negative in (False, True) if not (negative and quantity)
    ]  # fmt: skip
    return happenings, described


def holds(description: np.ndarray, happening: tuple) -> bool:
    """Whether a concrete happening is an instance of a description; group membership spelled out by hand."""
    groups = {
        "医务人员": {"医生", "护士"}, "文艺工作者": {"歌手", "画家"}, "有人": {"医生", "护士", "歌手", "画家"},
        "水果": {"苹果", "香蕉"}, "食物": {"苹果", "香蕉", "萝卜"}, "东西": {"苹果", "香蕉", "萝卜", "铅笔"},
    }  # fmt: skip
    agent, verb, thing, count = happening
    for slot, value in ((AGENT, agent), (VERB, verb), (OBJECT, thing)):
        word = LEX.forms[description[slot]][0]
        if word and value != word and value not in groups.get(word, ()):
            return False
    return not description[QUANTITY] or count in numbers(LEX.forms[description[QUANTITY]][0])


def test_entailment_is_truth_in_every_enumerated_world() -> None:
    happenings, described = small_world()
    instance = np.array([[holds(d, h) for h in happenings] for d in described])
    # A world is a set of happenings; to tell two descriptions apart none, one or two are enough.
    two = (instance[:, :, None] | instance[:, None, :]).reshape(len(described), -1)
    happened = np.concatenate([np.zeros((len(described), 1), dtype=bool), instance, two], axis=1)
    negative = np.array([d[ev.POLARITY] for d in described], dtype=bool)
    true = happened ^ negative[:, None]
    expected = ~((true.astype(np.float32) @ (~true).astype(np.float32).T) > 0)
    rows = np.stack(described)
    assert (ev.entails(rows[:, None], rows[None, :]) == expected).all()
    assert 0.02 < expected.mean() < 0.5  # not trivially true or false


def test_entailment_in_all_slots_is_that_of_the_words() -> None:
    rng = np.random.default_rng(0)
    rows = ev.sample(rng, 60, "train")
    wider = ev.generalise(rng, ev.drop(rng, rows, 1), 1)
    rows = np.concatenate([rows, wider, ev.substitute(rng, wider, "train"), ev.deny(rows), ev.deny(wider)])
    readings = [reading_of(row) for row in rows]
    expected = np.array([[follows(one, two) for two in readings] for one in readings])
    assert (ev.entails(rows[:, None], rows[None, :]) == expected).all()
    assert expected[:60, 60:120].diagonal().all() and expected[240:, 180:240].diagonal().all()


def test_similarity_of_events_by_loops() -> None:
    rng = np.random.default_rng(1)
    a = ev.sample(rng, 80, "train")
    b = np.concatenate([ev.substitute(rng, a[:40], "train"), ev.deny(a[40:60]), ev.sample(rng, 20, "train")])
    weight = dict(zip(SLOTS, (2, 3, 2, 2, 1, 1, 1, 1, 0.5), strict=True))
    for left, right, similarity in zip(a, b, ev.similarity(a, b), strict=True):
        total = value = 0.0
        for slot, name in enumerate(SLOTS):
            if left[slot] or right[slot]:
                total += weight[name]
                value += weight[name] * LEX.similarity[left[slot], right[slot]]
        expected = value / total * (1.0 if left[ev.POLARITY] == right[ev.POLARITY] else 0.4)
        assert similarity == pytest.approx(expected)
    assert (ev.similarity(a, b) == ev.similarity(b, a)).all()
    assert ev.similarity(a, a) == pytest.approx(1.0)


# -------------------------------------------------------------------------------------------------------------- splits
def test_a_split_is_a_function_of_the_composition_and_of_about_its_share() -> None:
    rows = ev._sample(np.random.default_rng(3), 12_000, "any")
    split = ev.split_of(rows)
    by_key: dict[tuple, set[str]] = {}
    for row, name in zip(rows, split, strict=True):
        by_key.setdefault(composition(reading_of(row)), set()).add(str(name))
    assert all(len(names) == 1 for names in by_key.values())
    assert len(by_key) > 5_000
    for name, share in (("train", 0.65), ("dev", 0.10), ("test", 0.25)):
        assert np.mean([names == {name} for names in by_key.values()]) == pytest.approx(share, abs=0.02)
    for twin in (ev.swap_roles(rows), ev.oppose(rows), ev.oppose(ev.swap_roles(rows)), ev.deny(rows)):
        assert (ev.split_of(twin) == split).all()


@pytest.mark.parametrize(("kind", "least", "most"), [("any", 0.25, 0.42), ("person", 1, 1), ("object", 0, 0)])
def test_samples_are_complete_and_of_their_kind(kind: str, least: float, most: float) -> None:
    rows = ev.sample(np.random.default_rng(4), 600, "train", kind)
    person = rows[:, PATIENT] > 0
    assert ((rows[:, OBJECT] > 0) == ~person).all()
    assert (LEX.person_verb[rows[:, VERB]] == person).all()
    assert (rows[:, AGENT] > 0).all()
    assert (rows[person, PATIENT] - ev.patient_offset() != rows[person, AGENT]).all()
    assert not rows[person][:, [ATTRIBUTE, QUANTITY]].any()
    assert not rows[:, ev.POLARITY].any()
    assert least <= person.mean() <= most
    for slot in range(len(SLOTS)):
        assert set(rows[:, slot]) <= {0, *LEX.leaves[slot]}


# --------------------------------------------------------------------------------------------------------------- edits
@pytest.mark.parametrize("split", SPLITS)
def test_edits_keep_the_split(split: str) -> None:
    rng = np.random.default_rng(5)
    rows = ev.sample(rng, 800, split)
    once = ev.substitute(rng, rows, split)
    twice = ev.substitute(rng, once, split, (AGENT, OBJECT, PATIENT))
    for edited in (rows, once, twice, ev.add_detail(rng, rows), ev.drop(rng, rows, 2)):
        assert (ev.split_of(edited) == split).all()
    # A general core has no composition of its own; substituting a leaf for it gives it one, which must be the split's.
    again = ev.substitute(rng, ev.generalise(rng, rows, 2), split)
    leaf = (LEX.level[again[:, AGENT]] == 0) & (LEX.level[np.maximum(again[:, OBJECT], again[:, PATIENT])] == 0)
    assert leaf.sum() > 50
    assert (ev.split_of(again[leaf]) == split).all()


def test_weaker_descriptions_follow_and_stronger_ones_do_not() -> None:
    rng = np.random.default_rng(6)
    rows = ev.sample(rng, 1000, "train")
    for n in (1, 2):
        dropped = ev.drop(rng, rows, n)
        assert ev.entails(rows, dropped).all()
        details = (rows[:, list(ev.OPTIONAL)] > 0).sum(1)
        assert ((dropped[:, list(ev.OPTIONAL)] > 0).sum(1) == np.maximum(details - n, 0)).all()
        wider = ev.generalise(rng, rows, n)
        assert ev.entails(rows, wider).all()
        assert not ev.entails(wider, rows).any()  # an agent can always be generalised
    detailed = ev.add_detail(rng, rows)
    more = (detailed != rows).any(1)
    assert more.mean() > 0.9
    assert ev.entails(detailed, rows).all()
    assert not ev.entails(rows, detailed)[more].any()
    assert ((detailed != rows).sum(1) <= 1).all()
    assert not detailed[rows[:, PATIENT] > 0][:, [ATTRIBUTE, QUANTITY]].any()
    assert not ev.add_detail(rng, ev.deny(rows))[:, QUANTITY].any()  # a denied quantity would be ambiguous


def test_a_weaker_quantity_is_at_least_so_many() -> None:
    rng = np.random.default_rng(7)
    rows = ev.sample(rng, 2000, "train", "object")
    weak = ev.weaken_quantity(rng, rows)
    assert (np.delete(weak, QUANTITY, axis=1) == np.delete(rows, QUANTITY, axis=1)).all()
    exact = {node: n for n, node in LEX.exact.items()} | {0: 0}
    least = {node: n for n, node in LEX.at_least.items()} | {0: 0}
    pairs = {(exact[one], least[two]) for one, two in zip(rows[:, QUANTITY], weak[:, QUANTITY], strict=True)}
    assert pairs == {(0, 0), *((m, n) for m in range(2, 8) for n in range(2, min(m, 6) + 1))}


def test_a_substitution_is_one_word_and_never_entailed() -> None:
    rng = np.random.default_rng(8)
    full = ev.sample(rng, 1500, "train")
    for rows in (full, ev.generalise(rng, ev.drop(rng, full, 1), 1)):
        new = ev.substitute(rng, rows, "train")
        changed = (new != rows).any(1)
        assert changed.mean() > 0.9
        assert ((new != rows).sum(1) <= 1).all()
        assert not ev.entails(rows, new)[changed].any()
        assert not ev.entails(new, rows)[changed].any()
        assert (((rows > 0) == (new > 0))[:, : len(SLOTS)]).all()
        assert (LEX.person_verb[new[:, VERB]] == LEX.person_verb[rows[:, VERB]]).all()
        people = new[:, PATIENT] > 0
        assert (new[people, PATIENT] - ev.patient_offset() != new[people, AGENT])[changed[people]].all()
    only = ev.substitute(rng, full, "train", (PLACE, TIME))
    assert set(np.nonzero(only != full)[1]) == {PLACE, TIME}


def test_swapping_opposing_and_denying_change_nothing_else() -> None:
    rows = ev.sample(np.random.default_rng(9), 500, "train")
    person = rows[:, PATIENT] > 0
    swapped = ev.swap_roles(rows)
    assert (swapped[~person] == rows[~person]).all()
    for before, after in zip(rows[person], swapped[person], strict=True):
        one, two = reading_of(before).words, reading_of(after).words
        assert one | {"agent": one["patient"], "patient": one["agent"]} == two
    opposed, denied = ev.oppose(rows), ev.deny(rows)
    assert (np.delete(opposed, VERB, axis=1) == np.delete(rows, VERB, axis=1)).all()
    assert not ev.entails(rows, opposed).any()
    assert denied[:, ev.POLARITY].all() and not denied[:, QUANTITY].any()
    assert (
        denied[:, [*range(QUANTITY), PLACE, TIME, MANNER]] == rows[:, [*range(QUANTITY), PLACE, TIME, MANNER]]
    ).all()
    assert not ev.deny(denied)[:, ev.POLARITY].any()

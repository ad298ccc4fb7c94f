"""What the generated world's words and events mean, against plain sets, enumerated worlds and hand-worked cases."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from world_reader import taxonomy

from d2llm.data.world import events as ev
from d2llm.data.world import lexicon as words
from d2llm.data.world.lexicon import AGENT, ATTRIBUTE, MANNER, OBJECT, PATIENT, PLACE, QUANTITY, SLOTS, TIME, VERB

LEX = words.lexicon()
COUNTS = range(2, 21)
SPLITS = ("train", "dev", "test")


def node(slot: int, form: str) -> int:
    """The node of a slot that a word names."""
    (number,) = [i for i in range(1, len(LEX)) if LEX.slot[i] == slot and form in LEX.forms[i]]
    return number


def event(negative: bool = False, **slots: str) -> np.ndarray:
    """One event of words by slot name."""
    row = np.zeros(ev.WIDTH, dtype=np.int64)
    for name, form in slots.items():
        row[SLOTS.index(name)] = node(SLOTS.index(name), form)
    row[ev.POLARITY] = negative
    return row


def counts(number: int) -> set[int]:
    """What a quantity node allows, by its definition."""
    exact = {node: {n} for n, node in LEX.exact.items()}
    least = {node: {count for count in COUNTS if count >= n} for n, node in LEX.at_least.items()}
    return (exact | least | {LEX.several: {count for count in COUNTS if count >= 3}})[number]


# -------------------------------------------------------------------------------------------------------------- lexicon
def test_is_a_is_a_partial_order_within_slots() -> None:
    is_a = LEX.is_a
    assert is_a.diagonal().all()
    assert not ((is_a.astype(int) @ is_a.astype(int) > 0) & ~is_a).any()  # transitive
    assert is_a[:, 0].all()
    assert not is_a[0, 1:].any()  # what is not said is nothing in particular
    inside = is_a[1:, 1:]
    assert (LEX.slot[1:][:, None] == LEX.slot[1:])[inside].all()
    both = inside & inside.T & ~np.eye(len(inside), dtype=bool)
    # "several" and "at least three" are two words for the same counts; everything else is antisymmetric.
    assert {tuple(sorted(pair + 1)) for pair in np.argwhere(both)} == {tuple(sorted((LEX.several, LEX.at_least[3])))}


@pytest.mark.parametrize("slot", [AGENT, PATIENT, OBJECT, PLACE, TIME])
def test_is_a_is_the_tree_as_written(slot: int) -> None:
    expected = {(word, other) for word, above in taxonomy(SLOTS[slot]).items() for other in (word, *above)}
    own = np.flatnonzero(LEX.slot == slot)
    assert {(LEX.forms[i][0], LEX.forms[j][0]) for i in own for j in own if LEX.is_a[i, j]} == expected


def test_quantities_by_counting() -> None:
    own = np.flatnonzero(LEX.slot == QUANTITY)
    assert len(own) == 6 + 5 + 1
    for i, j in product(own, own):
        assert LEX.is_a[i, j] == (counts(i) <= counts(j)), (LEX.forms[i], LEX.forms[j])


def test_opposites_are_pairs_of_one_kind() -> None:
    having = np.flatnonzero(LEX.opposite)
    assert set(having) == set(LEX.leaves[VERB]) | set(LEX.leaves[ATTRIBUTE])
    other = LEX.opposite[having]
    assert (LEX.opposite[other] == having).all()
    assert (other != having).all()
    assert (LEX.slot[other] == LEX.slot[having]).all()
    assert (LEX.person_verb[other] == LEX.person_verb[having]).all()
    for slot, one, two in ((VERB, "买下", "出售"), (VERB, "信任", "怀疑"), (ATTRIBUTE, "昂贵", "便宜")):
        assert LEX.opposite[node(slot, one)] == node(slot, two)


def test_similarity_is_the_share_of_common_ancestors() -> None:
    ancestors = [{j for j in range(1, len(LEX)) if LEX.is_a[i, j]} for i in range(len(LEX))]
    assert (LEX.similarity == LEX.similarity.T).all()
    assert LEX.similarity.min() >= 0 and LEX.similarity.max() == 1
    for i, j in product(range(1, len(LEX)), repeat=2):
        naive = len(ancestors[i] & ancestors[j]) / len(ancestors[i] | ancestors[j])
        assert LEX.similarity[i, j] == pytest.approx(naive)
        assert (LEX.similarity[i, j] == 1) == (ancestors[i] == ancestors[j])
    assert (LEX.similarity[0, 1:] == 0.5).all()
    assert LEX.similarity[node(OBJECT, "苹果"), node(OBJECT, "香蕉")] == 3 / 5  # fruit, food, thing of five
    assert LEX.similarity[node(OBJECT, "苹果"), node(OBJECT, "铅笔")] == 1 / 7


def test_words_name_one_node_of_a_slot() -> None:
    for slot in range(len(SLOTS)):
        named = [form for i in np.flatnonzero(LEX.slot == slot) for form in LEX.forms[i]]
        assert len(named) == len(set(named))
        assert (LEX.level[LEX.leaves[slot]] == 0).all()
        assert len(set(LEX.leaves[slot])) == len(LEX.leaves[slot])
    assert set(LEX.words()) == {form for forms in LEX.forms[1:] for form in forms}


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
    return not description[QUANTITY] or count in counts(description[QUANTITY])


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


def test_entailment_by_hand() -> None:
    a = event(agent="护士", verb="购买", object="苹果", quantity="五个", place="公园", time="周一")
    yes = [
        event(agent="护士", verb="购买", object="苹果"),
        event(agent="有人", verb="买下", object="食物", quantity="几个", time="工作日"),
        event(agent="医务人员", verb="购买", object="水果", quantity="至少四个", place="户外"),
    ]
    no = [
        event(agent="护士", verb="购买", object="苹果", manner="公开"),
        event(agent="医生", verb="购买", object="苹果"),
        event(agent="护士", verb="出售", object="苹果"),
        event(agent="护士", verb="购买", object="苹果", quantity="四个"),
        event(agent="护士", verb="购买", object="苹果", quantity="至少六个"),
        event(agent="护士", verb="购买", object="苹果", time="周末"),
        event(negative=True, agent="护士", verb="购买", object="苹果"),
    ]
    assert ev.entails(a, np.stack(yes)).all()
    assert not ev.entails(a, np.stack(no)).any()
    assert not ev.entails(np.stack(yes), a).any()
    never = event(True, agent="有人", verb="借走", object="东西")
    never_there = event(True, agent="校长", verb="借走", object="汽车", place="车站")
    assert ev.entails(never, never_there) and not ev.entails(never_there, never)


def test_denial_turns_entailment_round() -> None:
    rng = np.random.default_rng(0)
    a = ev.sample(rng, 300, "train")
    a[:, QUANTITY] = 0
    b = ev.generalise(rng, ev.drop(rng, a, 1), 1)
    mixed = np.concatenate([a, b, ev.substitute(rng, b, "train")])
    mixed[:, QUANTITY] = 0
    plain = ev.entails(mixed[:, None], mixed[None, :])
    denied = ev.deny(mixed)
    assert (ev.entails(denied[:, None], denied[None, :]) == plain.T).all()
    assert not ev.entails(mixed[:, None], denied[None, :]).any()
    assert not ev.entails(denied[:, None], mixed[None, :]).any()
    assert plain.diagonal().all()
    assert not (((plain.astype(np.float32) @ plain.astype(np.float32)) > 0) & ~plain).any()


def test_relation_by_hand() -> None:
    a = event(agent="护士", verb="购买", object="水果", quantity="三个", place="公园")
    b = event(agent="医务人员", verb="出售", object="苹果", quantity="三个", time="周一")
    expected = {AGENT: 2, VERB: 5, OBJECT: 3, QUANTITY: 1, PLACE: 0, TIME: 4, PATIENT: 0, ATTRIBUTE: 0, MANNER: 0}
    assert dict(enumerate(ev.relation(a, b)[: len(SLOTS)].tolist())) == expected


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
def composition(row: np.ndarray) -> tuple:
    """What a split holds out, as a plain key."""
    verb = min(row[VERB], LEX.opposite[row[VERB]])
    if row[PATIENT]:
        return ("people", frozenset((LEX.forms[row[AGENT]][0], LEX.forms[row[PATIENT]][0])), verb)
    return ("thing", row[AGENT], row[OBJECT], verb)


def test_samples_of_two_splits_share_no_composition() -> None:
    rng = np.random.default_rng(2)
    seen = {split: {composition(row) for row in ev.sample(rng, 4000, split)} for split in SPLITS}
    assert all(len(keys) > 1500 for keys in seen.values())
    assert not any(seen[one] & seen[two] for one, two in combinations(SPLITS, 2))


def test_a_split_is_a_function_of_the_composition_and_of_about_its_share() -> None:
    rng = np.random.default_rng(3)
    rows = ev._sample(rng, 30_000, "any")
    split = ev.split_of(rows)
    by_key: dict[tuple, set[str]] = {}
    for row, name in zip(rows, split, strict=True):
        by_key.setdefault(composition(row), set()).add(str(name))
    assert all(len(names) == 1 for names in by_key.values())
    assert sum(len(names) for names in by_key.values()) > 10_000
    for name, share in (("train", 0.65), ("dev", 0.10), ("test", 0.25)):
        assert np.mean([names == {name} for names in by_key.values()]) == pytest.approx(share, abs=0.02)
    for twin in (ev.swap_roles(rows), ev.oppose(rows), ev.oppose(ev.swap_roles(rows)), ev.deny(rows)):
        assert (ev.split_of(twin) == split).all()


def test_samples_are_complete_and_of_their_kind() -> None:
    rng = np.random.default_rng(4)
    for kind in ("any", "person", "object"):
        rows = ev.sample(rng, 600, "train", kind)
        person = rows[:, PATIENT] > 0
        assert ((rows[:, OBJECT] > 0) == ~person).all()
        assert (LEX.person_verb[rows[:, VERB]] == person).all()
        assert (rows[:, AGENT] > 0).all()
        assert (rows[person, PATIENT] - ev.patient_offset() != rows[person, AGENT]).all()
        assert not rows[person][:, [ATTRIBUTE, QUANTITY]].any()
        assert not rows[:, ev.POLARITY].any()
        least, most = {"any": (0.25, 0.42), "person": (1, 1), "object": (0, 0)}[kind]
        assert least <= person.mean() <= most
        for slot in range(len(SLOTS)):
            assert set(rows[:, slot]) <= {0, *LEX.leaves[slot]}


def test_nobody_is_another_person_by_name() -> None:
    """A person as agent and the same person as patient differ by one offset, at every level."""
    for i in np.flatnonzero(LEX.slot == AGENT):
        if LEX.forms[i][0] != "有人":
            assert LEX.forms[i + ev.patient_offset()] == LEX.forms[i]


# --------------------------------------------------------------------------------------------------------------- edits
@pytest.mark.parametrize("split", SPLITS)
def test_edits_keep_the_split(split: str) -> None:
    rng = np.random.default_rng(5)
    rows = ev.sample(rng, 800, split)
    for edited in (
        ev.substitute(rng, rows, split),
        ev.substitute(rng, ev.substitute(rng, rows, split), split, (AGENT, OBJECT, PATIENT)),
        ev.add_detail(rng, rows),
        ev.drop(rng, rows, 2),
        ev.oppose(rows),
        ev.swap_roles(rows),
    ):
        assert (ev.split_of(edited) == split).all()
    # A general core has no composition of its own; substituting a leaf for it gives it one, which must be the split's.
    general = ev.generalise(rng, rows, 2)
    again = ev.substitute(rng, general, split)
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
        assert (wider != rows).any(1).all()  # an agent can always be generalised
        assert not ev.entails(wider, rows).any()
    detailed = ev.add_detail(rng, rows)
    more = (detailed != rows).any(1)
    assert more.mean() > 0.9
    assert ev.entails(detailed, rows).all()
    assert not ev.entails(rows, detailed)[more].any()
    assert ((detailed != rows).sum(1) <= 1).all()
    people = rows[:, PATIENT] > 0
    assert not detailed[people][:, [ATTRIBUTE, QUANTITY]].any()
    assert not ev.add_detail(rng, ev.deny(rows))[:, QUANTITY].any()  # a denied quantity would be ambiguous


def test_a_weaker_quantity_is_at_least_so_many() -> None:
    rng = np.random.default_rng(7)
    rows = ev.sample(rng, 2000, "train", "object")
    weak = ev.weaken_quantity(rng, rows)
    assert (np.delete(weak, QUANTITY, axis=1) == np.delete(rows, QUANTITY, axis=1)).all()
    pairs = set()
    for exact, least in zip(rows[:, QUANTITY], weak[:, QUANTITY], strict=True):
        assert (exact == 0) == (least == 0)
        if exact:
            assert least in LEX.at_least.values()
            assert counts(exact) <= counts(least)
            pairs.add((min(counts(exact)), min(counts(least))))
    assert pairs == {(m, n) for m in range(2, 8) for n in range(2, min(m, 6) + 1)}


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


def test_swapping_and_opposing_twice_change_nothing() -> None:
    rows = ev.sample(np.random.default_rng(9), 500, "train")
    person = rows[:, PATIENT] > 0
    swapped = ev.swap_roles(rows)
    assert (ev.swap_roles(swapped) == rows).all()
    assert (swapped[~person] == rows[~person]).all()
    assert (swapped[person] != rows[person]).any(1).all()
    for before, after in zip(rows[person], swapped[person], strict=True):
        assert LEX.forms[before[AGENT]] == LEX.forms[after[PATIENT]]
        assert LEX.forms[before[PATIENT]] == LEX.forms[after[AGENT]]
    assert (ev.oppose(ev.oppose(rows)) == rows).all()
    assert not ev.entails(rows, ev.oppose(rows)).any()


def test_a_denial_leaves_the_quantity_out() -> None:
    rows = ev.sample(np.random.default_rng(10), 200, "train", "object")
    denied = ev.deny(rows)
    assert denied[:, ev.POLARITY].all()
    assert not denied[:, QUANTITY].any()
    rest = [slot for slot in range(len(SLOTS)) if slot != QUANTITY]
    assert (denied[:, rest] == rows[:, rest]).all()
    assert (ev.deny(denied)[:, rest] == rows[:, rest]).all()

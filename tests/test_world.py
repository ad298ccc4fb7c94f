"""The generated world's sentences and tasks. What a text says is read back from the text (`world_reader`), not taken
from its maker."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
from test_world_logic import event, node, reading_of
from world_reader import (
    WILDCARDS,
    Reading,
    answers,
    composition,
    covers,
    forms,
    is_leaf,
    narrower,
    numbers,
    opposite,
    read,
    taxonomy,
    text_follows,
    unwrapped,
)

from d2llm.data.world import events as ev
from d2llm.data.world import generate as world
from d2llm.data.world import surface
from d2llm.data.world.lexicon import LETTER_SLOTS, SLOTS, lexicon

LEX = lexicon()
FAMILIES = {"common": surface.COMMON, "shifted": surface.SHIFTED}
SHAPES = ("question", "keyword", "claim")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def row_of(reading: Reading) -> np.ndarray:
    """Back to node ids, for the split of a composition that was read; what is asked for is left out."""
    return event(reading.negative, **{slot: word for slot, word in reading.slots if slot != reading.asked})


def split_of(reading: Reading) -> str:
    return ev.split_of(row_of(reading)[None])[0]


# ----------------------------------------------------------------------------------------------------- reader by hand
def test_the_reader_itself_by_hand() -> None:
    (reading,) = read("大厨没有在商场借走新的苹果")
    words = {"agent": "厨师", "place": "商场", "verb": "借走", "attribute": "新", "object": "苹果"}
    assert (reading.words, reading.negative) == (words, True) and narrower(reading, reading)
    assert [one.words["agent"] for one in read("护士借走了苹果，然后教师归还了三个苹果")] == ["护士", "老师"]
    (question,) = read("什么时候护士在公园夸奖了画家？")
    assert (question.asked, question.words["patient"]) == ("time", "画家")
    with pytest.raises(ValueError, match="0 readings"):
        read("护士借走苹果")
    assert covers("object", "食物", "土豆")
    assert not covers("object", "土豆", "食物") and not covers("object", "水果", "土豆")
    assert numbers("至少六个") == {*range(6, 21)}
    assert (opposite("表扬"), opposite("拆开")) == ("批评", "组装")
    assert taxonomy("object")["铅笔"] == ("文具", "文化用品", "东西")
    assert forms("agent")["大夫"] == "医生"
    assert is_leaf("agent", "医生") and not is_leaf("agent", "学生")


# ------------------------------------------------------------------------------------------------------------- surface
FULL = dict(zip(
    ("agent", "verb", "object", "attribute", "quantity", "place", "time", "manner"),
    ["护士", "借走", "苹果", "红色", "三个", "公园", "周一", "从容"], strict=True,
))  # fmt: skip
WRITTEN = [
    "周一护士在公园从容地借走了三个红色的苹果",
    "在公园，护士周一从容地把三个红色的苹果借走了",
    "三个红色的苹果周一在公园被护士从容地借走了",
    "周一，护士在公园从容地借走了三个红色的苹果",
    "据说护士周一在公园把三个红色的苹果从容地借走了",
    "周一在公园从容地借走三个红色的苹果的是护士",
    "听说在公园，护士周一从容地把三个红色的苹果借走了",
    "三个红色的苹果，护士周一在公园从容地借走了",
    "周一三个红色的苹果在公园让护士从容地借走了",
    "有报道称，周一三个红色的苹果在公园遭护士从容地借走",
    "关于三个红色的苹果，护士周一在公园从容地借走过",
    "护士在公园周一从容地将三个红色的苹果借走了",
]
ASKED = {
    "agent": "周一谁在公园从容地借走了三个红色的苹果？",
    "object": "三个红色的什么周一在公园被护士从容地借走了？",
    "place": "在哪里周一护士从容地把三个红色的苹果借走了？",
    "time": "请问护士什么时候在公园从容地借走了三个红色的苹果？",
}


def test_sentences_and_questions_by_hand() -> None:
    templates = (*surface.COMMON, *surface.SHIFTED)
    rows = np.stack([event(**FULL)] * len(templates))
    assert surface.realise(rng(), rows, templates, choice=np.arange(len(templates)))[0] == WRITTEN
    ask = np.array([SLOTS.index(name) for name in ASKED])
    texts, tags = surface.realise(rng(), rows[:4], surface.QUESTIONS, ask, np.array([0, 3, 1, 2]))
    assert texts == list(ASKED.values())
    letters = [tag[text.index(WILDCARDS[name])] for text, tag, name in zip(texts, tags, ASKED, strict=True)]
    assert letters == list("aols")


@pytest.mark.parametrize("templates", ["COMMON", "SHIFTED", "QUESTIONS"])
def test_tags_point_at_the_words(templates: str) -> None:
    rows = ev.sample(rng(1), 400, "train")
    rows[::5] = ev.deny(rows[::5])
    rows[1::3] = ev.generalise(rng(2), rows[1::3], 2)
    ask = None
    if templates == "QUESTIONS":
        ask = np.array([rng(i).choice([s for s in surface.ASK if row[s]]) for i, row in enumerate(rows)])
    texts, tags = surface.realise(rng(3), rows, getattr(surface, templates), ask)
    used = Counter()
    for i, (text, tag) in enumerate(zip(texts, tags, strict=True)):
        assert len(text) == len(tag)
        pieces = [
            (letter, "".join(character for _, character in run))
            for letter, run in groupby(zip(tag, text, strict=True), key=lambda pair: pair[0])
            if letter != "."
        ]
        words = dict(pieces)
        assert len(words) == len(pieces), (text, tag)  # a word stands in one piece
        nodes = {letter: rows[i, slot] for letter, slot in LETTER_SLOTS.items() if rows[i, slot]}
        assert words.keys() == nodes.keys() | ({"n"} if rows[i, ev.POLARITY] else set())
        for letter, number in nodes.items():
            if ask is not None and LETTER_SLOTS[letter] == ask[i]:
                assert words[letter] == WILDCARDS[SLOTS[ask[i]]]
            else:
                assert words[letter] in LEX.forms[number]
                used[words[letter]] += 1
        assert words.get("n", "没有") == "没有"
        rest = "".join(c for c, mark in zip(text, tag, strict=True) if mark == ".")
        assert not any(form in rest for forms in LEX.forms[1:] for form in forms if len(form) > 1)
    assert {"医生", "大夫", "购买", "买下"} <= set(used)  # synonyms are used


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_says_its_events_in_order(family: str) -> None:
    first, second = ev.sample(rng(8), 200, "train"), ev.sample(rng(9), 200, "train")
    first[::4] = ev.deny(first[::4])
    second[::2] = 0
    texts, tags = world.Sentences(first, second).realise(rng(10), FAMILIES[family])
    for i, (text, (one, two)) in enumerate(zip(texts, tags, strict=True)):
        assert len(text) == len(one) + len(two)
        assert bool(two) == (i % 2 == 1)
        if two:  # joined by a connective, which has no tags
            assert text[len(one) - 3 : len(one)] in surface.CONNECTIVES
            assert one.endswith("...")
        events = [row.tolist() for row in (first[i], second[i]) if row.any()]
        assert [row_of(reading).tolist() for reading in read(text)] == events


# ----------------------------------------------------------------------------------------------------------------- NLI
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nli_labels_are_what_the_texts_entail(family: str, split: str) -> None:
    frame = world.nli(rng(11), split, 350, 4, FAMILIES[family])
    assert len(frame) > 800
    for a, b, label in zip(frame["query"], frame["passage"], frame["label"], strict=True):
        assert text_follows(read(a), read(b)) == label, (a, b)
    assert 0.35 < frame["label"].mean() < 0.65
    assert set(frame["phenomenon"]) == {*world.ENTAILED, *world.NON_ENTAILED}
    assert (frame["phenomenon"].isin(world.ENTAILED) == frame["label"]).all()
    assert (frame["query"] != frame["passage"]).all()
    assert not frame.duplicated(["query", "passage"]).any()
    assert frame.groupby("group")["query"].nunique().max() == 1
    assert frame.groupby("group").size().max() == 4
    assert (frame.loc[frame["label"], "target"] == 1).all()
    assert frame.loc[~frame["label"], "target"].between(0, world.NON_ENTAILED_CEILING).all()
    assert (frame["relations"].str.len() == frame["passage"].str.len()).all()
    assert frame["relations"].str.fullmatch("[0-5]*").all()
    for text in (*frame["query"], *frame["passage"]):
        for reading in read(text):
            words = reading.words
            # (General words can coincide: a member of staff may praise another.)
            assert "patient" not in words or words["agent"] != words["patient"] or not is_leaf("agent", words["agent"])
            assert composition(reading) is None or split_of(reading) == split, text


@pytest.mark.slow
def test_nli_is_not_answered_by_one_side_or_by_overlap() -> None:
    """An artefact check: what a model gains from the hypothesis alone, or from counting shared characters."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    train = world.nli(rng(12), "train", 1500, 4, surface.COMMON)
    test = world.nli(rng(13), "test", 700, 3, surface.COMMON)
    grams = CountVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2).fit(train["passage"])

    def features(frame: pd.DataFrame) -> object:
        return hstack(
            [grams.transform(frame["passage"]), csr_matrix(frame["passage"].str.len().to_numpy()[:, None] / 20)]
        ).tocsr()

    # A strong penalty serves this model best; weaker ones reach less (0.64, 0.63, 0.61 at 0.1, 0.3, 1).
    model = LogisticRegression(C=0.03, max_iter=300).fit(features(train), train["label"])
    assert average_precision_score(test["label"], model.decision_function(features(test))) < 0.80
    shared = [len(set(a) & set(b)) / len(set(b)) for a, b in zip(test["query"], test["passage"], strict=True)]
    assert average_precision_score(test["label"], shared) < 0.75


def test_relations_by_hand() -> None:
    a = np.stack([event(agent="护士", verb="购买", object="水果", quantity="三个", place="公园", time="周一")] * 2)
    first = event(agent="医务人员", verb="出售", object="苹果", place="公园", manner="从容")
    b = np.stack([first, event(True, agent="护士", verb="借走", object="水果")])
    # 医务人员在公园从容地卖掉了苹果; 护士没有借走水果
    tags = [("aaaa.llmm.vv.oo", ""), ("aannvvoo", "")]
    assert world.relations(world.Sentences(a), world.Sentences(b), tags) == ["222201144055033", "11555511"]
    # Of two events each is compared with the better aligned one.
    first, second = event(agent="护士", verb="购买", object="苹果"), event(agent="画家", verb="归还", object="钢琴")
    premise = world.Sentences(first[None], second[None])
    turned = world.Sentences(second[None], event(agent="护士", verb="购买", object="水果")[None])
    assert world.relations(premise, turned, [("aavvoo...", "aavvoo")]) == ["111111000111122"]


# ----------------------------------------------------------------------------------------------------------------- STS
def test_graded_pairs_are_scored_by_what_they_share() -> None:
    frame = world.sts_graded(rng(14), "dev", 400)
    assert set(frame["phenomenon"]) == {"unrelated", "paraphrase", "1 edits", "2 edits", "3 edits", "4+ edits"}
    assert frame["score"].between(0, 5).all()
    for a, b, score, name in zip(frame["query"], frame["passage"], frame["score"], frame["phenomenon"], strict=True):
        (left,), (right,) = read(a), read(b)
        assert score == pytest.approx(5 * ev.similarity(row_of(left), row_of(right)), abs=0.006), (a, b)
        assert name != "paraphrase" or score == 5
    mean = frame.groupby("phenomenon")["score"].mean()
    assert mean["1 edits"] > mean["2 edits"] > mean["4+ edits"] > mean["unrelated"]
    shares = np.histogram(frame["score"], [0, 1, 2, 3, 4, 5.01])[0] / len(frame)
    assert (shares[1:] > 0.05).all()


def test_questions_match_when_they_ask_the_same() -> None:
    frame = world.question_match(rng(15), "test", 400)
    for a, b, label in zip(frame["query"], frame["passage"], frame["label"], strict=True):
        assert (read(a) == read(b)) == label, (a, b)
    assert set(frame["phenomenon"]) == {"same question", "other word", "opposite", "other wildcard", "role swap"}
    assert ((frame["phenomenon"] == "same question") == frame["label"]).all()


def test_role_swaps_have_the_same_words() -> None:
    frame = world.role_swap(rng(16), "test", 300)
    for a, b, label, name in zip(frame["query"], frame["passage"], frame["label"], frame["phenomenon"], strict=True):
        (left,), (right,) = read(a), read(b)
        one, two = left.words, right.words
        assert one == (two if label else two | {"agent": two["patient"], "patient": two["agent"]})
        assert (name == "paraphrase") == label


@pytest.mark.parametrize("partners", [1, 2])
@pytest.mark.parametrize("make", [world.question_match, world.role_swap])
def test_half_of_the_pairs_match_and_training_sentences_meet_both_kinds(make, partners: int) -> None:
    frame = make(rng(24), "train", 300, partners)
    assert 0.35 < frame["label"].mean() < 0.65
    assert (frame["query"] != frame["passage"]).all() and (frame["score"] == frame["label"]).all()
    labels: dict[Reading, set[bool]] = {}
    for a, label in zip(frame["query"], frame["label"], strict=True):
        labels.setdefault(read(a)[0], set()).add(bool(label))
    assert partners == 1 or np.mean([len(kinds) == 2 for kinds in labels.values()]) > 0.5


# ----------------------------------------------------------------------------------------------------------- retrieval
@pytest.mark.parametrize("shape", SHAPES)
def test_relevance_is_what_the_passages_say(shape: str) -> None:
    frames = world.retrieval(rng(17), "test", shape, 60)
    queries, corpus, qrels = frames["queries"], frames["corpus"], frames["qrels"]
    assert queries["id"].is_unique and corpus["id"].is_unique and corpus["text"].is_unique
    assert (qrels["relevance"] == 1).all()
    passages = [read(text) for text in corpus["text"]]
    assert {len(passage) for passage in passages} == {1 if shape == "keyword" else 2}
    expected, first_is_first = set(), set()
    for number, (key, text) in enumerate(zip(queries["id"], queries["text"], strict=True)):
        if shape == "keyword":  # a person's name does not tell the role, so the event is taken from its maker
            query = reading_of(frames["query_events"][number])
            assert sorted(text.split(" ")) == sorted(query.words.values())
            first_is_first.add(text.startswith(query.words["agent"]))
        else:
            (query,) = read(text)
            assert (query.asked is not None) == (shape == "question")
        expected |= {(key, doc) for doc, passage in zip(corpus["id"], passages, strict=True) if answers(query, passage)}
    assert set(zip(qrels["query_id"], qrels["doc_id"], strict=True)) == expected and len(qrels) == len(expected)
    assert set(qrels["query_id"]) == set(queries["id"])  # every query has an answer
    assert first_is_first == ({True, False} if shape == "keyword" else set())  # search words come in any order
    assert set(queries["phenomenon"]) == {"as stated", "generalised"}
    assert {split_of(reading) for passage in passages for reading in passage} == {"test"}


def test_retrieval_sets_differ_in_shape() -> None:
    frames = {shape: world.retrieval(rng(18), "train", shape, 80) for shape in SHAPES}
    per_query = {shape: len(parts["corpus"]) / 80 for shape, parts in frames.items()}
    assert per_query == {"question": pytest.approx(4, abs=0.1), "keyword": pytest.approx(5, abs=0.3),
                         "claim": pytest.approx(3, abs=0.1)}  # fmt: skip
    assert len(frames["keyword"]["qrels"]) / 80 >= 1.9  # the event itself and once more with a detail
    # Passages that do not answer are confusable: most queries have one that shares the answer's verb and all but one or
    # two words.
    near = 0
    events, relevant = frames["question"]["passage_events"], frames["question"]["relevant"]
    for row, right in zip(frames["question"]["query_events"], relevant, strict=True):
        wrong = events[~right].reshape(-1, ev.WIDTH)
        slots = np.flatnonzero(row[: len(SLOTS)])
        near += bool((LEX.is_a[wrong[:, slots], row[slots]].sum(1) >= len(slots) - 1).any())
    assert near > 60


# --------------------------------------------------------------------------------------------- unlabelled text, teacher
def test_unlabelled_text_and_its_meaning() -> None:
    frame = world.pretraining(rng(19), 600)
    assert len(frame) == 600
    kinds = Counter()
    for row in frame.itertuples():
        whole = (row.text, row.paraphrase, row.distractor)
        text, paraphrase, distractor = bare = [unwrapped(text) for text in whole]
        (marks,) = {len(one) - len(two) for one, two in zip(whole, bare, strict=True)}
        kinds["brackets"] += marks != 0  # they tell nothing about the meaning: all three have them or none
        readings = read(text)
        if " " in paraphrase:
            kinds["words"] += 1
            assert sorted(paraphrase.split(" ")) == sorted(readings[0].words.values())
        else:
            assert read(paraphrase) == readings
        assert read(distractor) != readings, (text, distractor)
        (after,) = read(row.next_text)
        for slot in ("agent", "place", "time"):
            if not (len(readings) == 1 and readings[0].asked == slot):
                assert after.words.get(slot) == readings[0].words.get(slot)
        expected = np.zeros((2, len(SLOTS)), dtype=int)
        for index, one in enumerate(readings):
            for slot, word in one.slots:
                if slot != one.asked:
                    expected[index, SLOTS.index(slot)] = node(SLOTS.index(slot), word)
        assert np.array_equal(row.slots, expected.ravel()), row.text
        assert row.ask == (-1 if readings[0].asked is None else SLOTS.index(readings[0].asked))
        assert row.negated == readings[0].negative
        kinds[("question" if row.ask >= 0 else "statement", len(readings))] += 1
        for part in (text, distractor, row.next_text):
            assert all(composition(one) is None or split_of(one) == "train" for one in read(part)), part
    assert {("question", 1), ("statement", 1), ("statement", 2), "words", "brackets"} == set(kinds)


def test_the_teachers_groups() -> None:
    symmetric, asymmetric = (
        world.teacher_symmetric(rng(20), "train", 150, 4),
        world.teacher_asymmetric(rng(21), "train", 120, 4),
    )
    for group in symmetric.itertuples():
        for b, label in zip(group.passages, group.label, strict=True):
            left, right = read(group.query), read(b)
            assert (left == right if left[0].asked else text_follows(left, right)) == label
    names = {"same question", "role swap", "roles swapped", "events mixed", "1 edits"}
    assert names <= {name for row in symmetric["phenomenon"] for name in row}
    assert len(asymmetric) == 120
    for group in asymmetric.itertuples():
        assert any(group.label) and not all(group.label)
        if " " in group.query:
            continue
        (query,) = read(group.query)
        for b, label, marks in zip(group.passages, group.label, group.relations, strict=True):
            assert answers(query, read(b)) == label
            check_marks(query, b, marks)
    for mode, frame in (("symmetric", symmetric), ("asymmetric", asymmetric)):
        assert (frame["mode"] == mode).all()
        for group in frame.itertuples():
            assert len(group.passages) == len(set(group.passages)) <= 4
            for text, target, label, marks in zip(
                group.passages, group.target, group.label, group.relations, strict=True
            ):
                assert len(marks) == len(text) and set(marks) <= set("012345")
                assert target == 1 if label else 0 <= target <= world.NON_ENTAILED_CEILING


def check_marks(query: Reading, passage: str, marks: str) -> None:
    """Every marked word of a passage carries the digit of its own relation to the query, which is never a denial."""
    sentences = passage.removesuffix("。").split("。")
    for reading, text in zip(read(passage), sentences, strict=True):
        digits, marks = marks[: len(text)], marks[len(text) + 1 :]
        if reading.negative:
            start = text.index("没有")
            assert digits[start : start + 2] == "55"
        for slot, word in reading.slots:
            other = query.words.get(slot)
            if slot == query.asked:
                continue
            if other is None:
                digit = "4"
            else:  # `up`: the passage's word is the narrower one
                up, down = covers(slot, other, word), covers(slot, word, other)
                digit = "1" if up and down else "3" if up else "2" if down else "5"
            spellings = [form for form, name in forms(slot).items() if name == word]
            spans = [match.span() for form in spellings for match in re.finditer(re.escape(form), text)]
            assert any(digits[i:j] == digit * (j - i) for i, j in spans), (query, text, digits, slot)

"""The generated world's sentences and tasks. What a text says is read back from the text (`world_reader`), not taken from its maker."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from test_world_logic import event, node
from world_reader import (
    WILDCARDS,
    Said,
    answers,
    composition,
    covers,
    forms,
    is_leaf,
    narrower,
    numbers,
    opposite,
    read,
    runs,
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


def row_of(said: Said) -> np.ndarray:
    """Back to node ids, for the split of a composition that was read; what is asked for is left out."""
    return event(said.negative, **{slot: word for slot, word in said.slots if slot != said.asked})


# ----------------------------------------------------------------------------------------------------- reader by hand
def test_the_reader_itself_by_hand() -> None:
    said = read("大厨没有在商场借走新的苹果")[0]
    words = {"agent": "厨师", "place": "商场", "verb": "借走", "attribute": "新", "object": "苹果"}
    assert (said.words, said.negative) == (words, True)
    assert [one.words["agent"] for one in read("护士借走了苹果，然后教师归还了三个苹果")] == ["护士", "老师"]
    question = read("什么时候护士在公园夸奖了画家？")[0]
    assert (question.asked, question.words["patient"]) == ("time", "画家")
    with pytest.raises(ValueError, match="0 readings"):
        read("护士借走苹果")
    assert covers("object", "食物", "土豆")
    assert not covers("object", "土豆", "食物")
    assert not covers("object", "水果", "土豆")
    assert numbers("至少六个") == {*range(6, 21)}
    assert opposite("表扬") == "批评"
    assert opposite("拆开") == "组装"
    assert taxonomy("object")["铅笔"] == ("文具", "文化用品", "东西")
    assert forms("agent")["大夫"] == "医生"
    assert is_leaf("agent", "医生")
    assert not is_leaf("agent", "学生")


# ------------------------------------------------------------------------------------------------------------- surface
FULL = {"agent": "护士", "verb": "借走", "object": "苹果", "attribute": "红色", "quantity": "三个", "place": "公园", "time": "周一", "manner": "从容"}  # fmt: skip
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


def test_sentences_by_hand() -> None:
    templates = (*surface.COMMON, *surface.SHIFTED)
    rows = np.stack([event(**FULL)] * len(templates))
    assert surface.realise(rng(), rows, templates, choice=np.arange(len(templates)))[0] == WRITTEN
    bare = event(True, agent="护士", verb="冷落", patient="画家")
    texts, tags = surface.realise(rng(), np.stack([bare] * 9), surface.COMMON, choice=np.arange(9))
    assert texts == [
        "护士没有冷落画家",
        "护士没有把画家冷落",
        "画家没有被护士冷落",
        "护士没有冷落画家",
        "据说护士没有把画家冷落",
        "没有冷落画家的是护士",
        "听说，护士没有把画家冷落",
        "画家，护士没有冷落",
        "画家没有让护士冷落",
    ]
    assert tags == [
        "aannvvpp", "aann.ppvv", "ppnn.aavv", "aannvvpp", "..aann.ppvv", "nnvvpp..aa", "...aann.ppvv", "pp.aannvv", "ppnn.aavv",
    ]  # fmt: skip


def test_questions_by_hand() -> None:
    rows = np.stack([event(**FULL)] * 4)
    ask = np.array([SLOTS.index(name) for name in ("agent", "object", "place", "time")])
    texts, tags = surface.realise(rng(), rows, surface.QUESTIONS, ask, np.array([0, 3, 1, 2]))
    assert texts == [
        "周一谁在公园从容地借走了三个红色的苹果？",
        "三个红色的什么周一在公园被护士从容地借走了？",
        "在哪里周一护士从容地把三个红色的苹果借走了？",
        "请问护士什么时候在公园从容地借走了三个红色的苹果？",
    ]
    assert [
        tag[text.index(asked)]
        for text, tag, asked in zip(texts, tags, ("谁", "什么", "在哪里", "什么时候"), strict=True)
    ] == list("aols")


@pytest.mark.parametrize(
    "templates", [surface.COMMON, surface.SHIFTED, surface.QUESTIONS], ids=["common", "shifted", "questions"]
)
def test_tags_point_at_the_words(templates: tuple[str, ...]) -> None:
    rows = ev.sample(rng(1), 400, "train")
    rows[::5] = ev.deny(rows[::5])
    rows[1::3] = ev.generalise(rng(2), rows[1::3], 2)
    ask = None
    if templates is surface.QUESTIONS:
        ask = np.array([rng(i).choice([s for s in surface.ASK if row[s]]) for i, row in enumerate(rows)])
    texts, tags = surface.realise(rng(3), rows, templates, ask)
    used = Counter()
    for i, (text, tag) in enumerate(zip(texts, tags, strict=True)):
        assert len(text) == len(tag)
        words: dict[str, str] = {}
        for letter, start, end in runs(tag):
            if letter != ".":
                assert letter not in words, (text, tag)  # a word stands in one piece
                words[letter] = text[start:end]
        said = {letter: rows[i, slot] for letter, slot in LETTER_SLOTS.items() if rows[i, slot]}
        assert words.keys() == said.keys() | ({"n"} if rows[i, ev.POLARITY] else set())
        for letter, number in said.items():
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
def test_a_sentence_says_its_event(family: str) -> None:
    rows = ev.sample(rng(4), 300, "train")
    rows[::4] = ev.deny(rows[::4])
    for text, row in zip(surface.realise(rng(5), rows, FAMILIES[family])[0], rows, strict=True):
        (said,) = read(text)
        assert (row_of(said) == row).all(), text


def test_search_words_are_the_words_in_some_order() -> None:
    rows = ev.sample(rng(6), 200, "test")
    orders = set()
    for text, row in zip(surface.keywords(rng(7), rows), rows, strict=True):
        words = [LEX.forms[number][0] for number in row[: len(SLOTS)] if number]
        assert sorted(text.split(" ")) == sorted(words)
        orders.add(text.split(" ")[0] == words[0])
    assert orders == {True, False}


def test_two_events_are_joined_by_a_connective() -> None:
    first, second = ev.sample(rng(8), 60, "train"), ev.sample(rng(9), 60, "train")
    second[::2] = 0
    both = world.Sentences(first, second)
    texts, tags = both.realise(rng(10), surface.COMMON)
    assert both.double.tolist() == [False, True] * 30
    for i, (text, (one, two)) in enumerate(zip(texts, tags, strict=True)):
        assert len(text) == len(one) + len(two)
        assert bool(two) == (i % 2 == 1)
        if two:
            link = re.search("[.]*$", one).group()
            assert text[len(one) - 3 : len(one)] in surface.CONNECTIVES
            assert len(link) >= 3
        assert [row_of(said).tolist() for said in read(text)] == [
            row.tolist() for row in (first[i], second[i]) if row.any()
        ]


# ----------------------------------------------------------------------------------------------------------------- NLI
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nli_labels_are_what_the_texts_entail(family: str, split: str) -> None:
    frame = world.nli(rng(11), split, 350, 4, FAMILIES[family])
    assert len(frame) > 800
    for a, b, label in zip(frame["a"], frame["b"], frame["label"], strict=True):
        assert text_follows(read(a), read(b)) == label, (a, b)
    assert 0.35 < frame["label"].mean() < 0.65
    assert set(frame["phenomenon"]) == {*world.ENTAILED, *world.NON_ENTAILED}
    assert (frame["phenomenon"].isin(world.ENTAILED) == frame["label"]).all()
    assert (frame["a"] != frame["b"]).all()
    assert not frame.duplicated(["a", "b"]).any()
    assert frame.groupby("group")["a"].nunique().max() == 1
    assert frame.groupby("group").size().max() == 4
    assert (frame.loc[frame["label"], "target"] == 1).all()
    assert frame.loc[~frame["label"], "target"].between(0, world.NON_ENTAILED_CEILING).all()
    assert (frame["relations"].str.len() == frame["b"].str.len()).all()
    assert frame["relations"].str.fullmatch("[0-5]*").all()
    for text in (*frame["a"], *frame["b"]):
        for said in read(text):
            words = said.words
            # (General words can coincide: a member of staff may praise another.)
            assert "patient" not in words or words["agent"] != words["patient"] or not is_leaf("agent", words["agent"])
            assert composition(said) is None or ev.split_of(row_of(said)[None])[0] == split, text


def test_nli_is_not_answered_by_one_side_or_by_overlap() -> None:
    """An artefact check: what a model gains from the hypothesis alone, or from counting shared characters."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    train, test = (
        world.nli(rng(12), "train", 1500, 4, surface.COMMON),
        world.nli(rng(13), "test", 700, 3, surface.COMMON),
    )
    grams = CountVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2).fit(train["b"])

    def features(frame: pd.DataFrame) -> object:
        return hstack([grams.transform(frame["b"]), csr_matrix(frame["b"].str.len().to_numpy()[:, None] / 20)]).tocsr()

    # A strong penalty serves this model best; weaker ones reach less (0.64, 0.63, 0.61 at 0.1, 0.3, 1).
    model = LogisticRegression(C=0.03, max_iter=300).fit(features(train), train["label"])
    alone = average_precision_score(test["label"], model.decision_function(features(test)))
    shared = [len(set(a) & set(b)) / len(set(b)) for a, b in zip(test["a"], test["b"], strict=True)]
    overlap = average_precision_score(test["label"], shared)
    print(f"hypothesis only: AP {alone:.3f}, overlap: AP {overlap:.3f}, share entailed {test['label'].mean():.3f}")
    assert alone < 0.80
    assert overlap < 0.75


def test_relations_by_hand() -> None:
    a = np.stack([event(agent="护士", verb="购买", object="水果", quantity="三个", place="公园", time="周一")] * 2)
    b = np.stack(
        [
            event(agent="医务人员", verb="出售", object="苹果", place="公园", manner="从容"),
            event(True, agent="护士", verb="借走", object="水果"),
        ]
    )
    texts = ["医务人员在公园从容地卖掉了苹果", "护士没有借走水果"]
    tags = [("aaaa.llmm.vv.oo", ""), ("aannvvoo", "")]
    found = world.relations(world.Sentences(a), world.Sentences(b), tags)
    assert found == ["222201144055033", "11555511"]
    assert list(map(len, found)) == list(map(len, texts))
    # Of two events each is compared with the better aligned one.
    first, second = event(agent="护士", verb="购买", object="苹果"), event(agent="画家", verb="归还", object="钢琴")
    given = world.Sentences(first[None], second[None])
    turned = world.Sentences(second[None], event(agent="护士", verb="购买", object="水果")[None])
    assert world.relations(given, turned, [("aavvoo...", "aavvoo")]) == ["111111000111122"]


def test_relations_of_passages_by_hand() -> None:
    query = event(agent="学生", verb="借走", object="小说", attribute="小")[None]
    passage = np.stack(
        [event(agent="小学生", verb="借走", object="小说", attribute="小"), event(True, agent="大学生", verb="归还", object="苹果", attribute="大")]
    )  # fmt: skip
    # 小学生借走了小的小说。大学生没有归还大的苹果。
    tags = ("aaavv.x.oo", "aaannvvx.oo")
    marks = "333" + "11" + "0" + "1" + "0" + "11" + "0" + "333" + "55" + "55" + "5" + "0" + "55" + "0"
    assert world._passage_relations(query, passage[None], [tags]) == [marks]


# ----------------------------------------------------------------------------------------------------------------- STS
def test_graded_pairs_are_scored_by_what_they_share() -> None:
    frame = world.sts_graded(rng(14), "dev", 400)
    assert set(frame["phenomenon"]) == {"unrelated", "paraphrase", "1 edits", "2 edits", "3 edits", "4+ edits"}
    assert frame["score"].between(0, 5).all()
    weight = dict(zip(SLOTS, (2, 3, 2, 2, 1, 1, 1, 1, 0.5), strict=True))

    def alike(slot: str, one: str | None, two: str | None) -> float:
        if one is None or two is None:
            return 0.5
        if slot == "quantity":
            return LEX.similarity[node(SLOTS.index(slot), one), node(SLOTS.index(slot), two)]
        left, right = {one, *taxonomy(slot)[one]}, {two, *taxonomy(slot)[two]}
        return len(left & right) / len(left | right)

    for a, b, score, name in zip(frame["a"], frame["b"], frame["score"], frame["phenomenon"], strict=True):
        (left,), (right,) = read(a), read(b)
        slots = left.words.keys() | right.words.keys()
        value = sum(weight[s] * alike(s, left.words.get(s), right.words.get(s)) for s in slots)
        assert score == pytest.approx(5 * value / sum(weight[s] for s in slots), abs=0.006), (a, b)
        if name == "paraphrase":
            assert score == 5
    mean = frame.groupby("phenomenon")["score"].mean()
    assert mean["1 edits"] > mean["2 edits"] > mean["4+ edits"] > mean["unrelated"]
    shares = np.histogram(frame["score"], [0, 1, 2, 3, 4, 5.01])[0] / len(frame)
    assert (shares[1:] > 0.05).all()


def test_questions_match_when_they_ask_the_same() -> None:
    frame = world.question_match(rng(15), "test", 400)
    for a, b, label in zip(frame["a"], frame["b"], frame["label"], strict=True):
        assert (read(a) == read(b)) == label, (a, b)
    assert (frame["score"] == frame["label"]).all()
    assert 0.35 < frame["label"].mean() < 0.65
    assert set(frame["phenomenon"]) == {"same question", "other word", "opposite", "other wildcard", "role swap"}
    assert ((frame["phenomenon"] == "same question") == frame["label"]).all()
    assert (frame["a"] != frame["b"]).all()


def test_role_swaps_have_the_same_words() -> None:
    frame = world.role_swap(rng(16), "test", 300)
    assert 0.35 < frame["label"].mean() < 0.65
    assert (frame["a"] != frame["b"]).all()
    for a, b, label, name in zip(frame["a"], frame["b"], frame["label"], frame["phenomenon"], strict=True):
        (left,), (right,) = read(a), read(b)
        one, two = dict(left.words), dict(right.words)
        if not label:
            two["agent"], two["patient"] = two["patient"], two["agent"]
        assert one == two
        assert (name == "paraphrase") == label


def test_training_sentences_meet_a_match_and_a_near_miss() -> None:
    for make in (world.question_match, world.role_swap):
        frame = make(rng(24), "train", 300, 2)
        meanings = [read(a)[0] for a in frame["a"]]
        labels: dict[Said, set[bool]] = {}
        for said, label in zip(meanings, frame["label"], strict=True):
            labels.setdefault(said, set()).add(bool(label))
        assert np.mean([len(found) == 2 for found in labels.values()]) > 0.5
        assert 0.35 < frame["label"].mean() < 0.65


# ----------------------------------------------------------------------------------------------------------- retrieval
@pytest.mark.parametrize("shape", SHAPES)
def test_relevance_is_what_the_passages_say(shape: str) -> None:
    made = world.retrieval(rng(17), "test", shape, 60)
    queries, corpus, qrels = made["queries"], made["corpus"], made["qrels"]
    assert queries["id"].is_unique
    assert corpus["id"].is_unique
    assert corpus["text"].is_unique
    assert (qrels["relevance"] == 1).all()
    passages = [read(text) for text in corpus["text"]]
    assert {len(passage) for passage in passages} == {1 if shape == "keyword" else 2}
    expected = set()
    for number, (key, text) in enumerate(zip(queries["id"], queries["text"], strict=True)):
        if shape == "keyword":  # a person's name does not tell the role, so the event is taken from its maker
            row = made["query_events"][number]
            said = Said(
                tuple((SLOTS[s], LEX.forms[row[s]][0]) for s in range(len(SLOTS)) if row[s]), bool(row[ev.POLARITY])
            )
            assert sorted(text.split(" ")) == sorted(said.words.values())
        else:
            (said,) = read(text)
            assert (said.asked is not None) == (shape == "question")
        expected |= {(key, doc) for doc, passage in zip(corpus["id"], passages, strict=True) if answers(said, passage)}
    assert set(zip(qrels["query_id"], qrels["doc_id"], strict=True)) == expected
    assert len(qrels) == len(expected)
    assert set(qrels["query_id"]) == set(queries["id"])  # every query has an answer
    assert set(queries["phenomenon"]) == {"as stated", "generalised"}
    for passage in passages:
        for said in passage:
            assert ev.split_of(row_of(said)[None])[0] == "test"


def test_retrieval_sets_differ_in_shape() -> None:
    made = {shape: world.retrieval(rng(18), "train", shape, 80) for shape in SHAPES}
    per_query = {shape: len(m["corpus"]) / 80 for shape, m in made.items()}
    assert per_query["question"] == pytest.approx(4, abs=0.1)
    assert per_query["keyword"] == pytest.approx(5, abs=0.3)
    assert per_query["claim"] == pytest.approx(3, abs=0.1)
    relevant = {shape: len(m["qrels"]) / 80 for shape, m in made.items()}
    assert relevant["keyword"] >= 1.9  # the event itself and once more with a detail
    # Passages that do not answer are confusable: most queries have one that shares the answer's verb and all but one or two words.
    near = 0
    for number in range(80):
        events, row = made["question"]["passage_events"], made["question"]["query_events"][number]
        wrong = events[~made["question"]["relevant"][number]].reshape(-1, ev.WIDTH)
        said = np.flatnonzero(row[: len(SLOTS)])
        near += bool(((LEX.is_a[wrong[:, said], row[said]]).sum(1) >= len(said) - 1).any())
    assert near > 60


# --------------------------------------------------------------------------------------------- unlabelled text, teacher
def test_unlabelled_text_and_its_meaning() -> None:
    frame = world.pretraining(rng(19), 600)
    assert len(frame) == 600
    kinds = Counter()
    for made in frame.itertuples():
        text, paraphrase, distractor = texts = [
            unwrapped(text) for text in (made.text, made.paraphrase, made.distractor)
        ]
        marks = {
            len(whole) - len(bare)
            for whole, bare in zip((made.text, made.paraphrase, made.distractor), texts, strict=True)
        }
        assert len(marks) == 1  # brackets tell nothing about the meaning: all three have them or none
        kinds["brackets"] += marks != {0}
        said = read(text)
        if " " in paraphrase:
            kinds["words"] += 1
            assert sorted(paraphrase.split(" ")) == sorted(said[0].words.values())
        else:
            assert read(paraphrase) == said
        assert read(distractor) != said, (text, distractor)
        (after,) = read(made.next_text)
        for slot in ("agent", "place", "time"):
            if not (len(said) == 1 and said[0].asked == slot):
                assert after.words.get(slot) == said[0].words.get(slot)
        expected = np.zeros((2, len(SLOTS)), dtype=int)
        for index, one in enumerate(said):
            for slot, word in one.slots:
                if slot != one.asked:
                    expected[index, SLOTS.index(slot)] = node(SLOTS.index(slot), word)
        assert np.array_equal(made.slots, expected.ravel()), made.text
        assert made.ask == (-1 if said[0].asked is None else SLOTS.index(said[0].asked))
        assert made.negated == said[0].negative
        kinds[("question" if made.ask >= 0 else "statement", len(said))] += 1
        for sentence in (text, distractor, made.next_text):
            for one in read(sentence):
                if composition(one) is not None:
                    assert ev.split_of(row_of(one)[None])[0] == "train", sentence
    assert {("question", 1), ("statement", 1), ("statement", 2), "words", "brackets"} == set(kinds)


def test_the_teachers_symmetric_groups() -> None:
    frame = world.teacher_symmetric(rng(20), "train", 150, 4)
    check_groups(frame, "symmetric")
    for made in frame.itertuples():
        for b, label in zip(made.b, made.label, strict=True):
            left, right = read(made.a), read(b)
            assert (left == right if left[0].asked else text_follows(left, right)) == label
    assert {"same question", "role swap", "roles swapped", "events mixed", "1 edits"} <= {
        p for row in frame["phenomenon"] for p in row
    }


def test_the_teachers_asymmetric_groups() -> None:
    frame = world.teacher_asymmetric(rng(21), "train", 120, 4)
    check_groups(frame, "asymmetric")
    assert len(frame) == 120
    for made in frame.itertuples():
        assert any(made.label)  # a relevant passage
        assert not all(made.label)
        if " " in made.a:
            continue
        (query,) = read(made.a)
        for b, label, marks in zip(made.b, made.label, made.relations, strict=True):
            passage = read(b)
            assert answers(query, passage) == label
            check_marks(query, passage, b, marks)


def check_marks(query: Said, passage: list[Said], text: str, marks: str) -> None:
    """Every marked word of a passage carries the digit of its own relation to the query."""
    for said, part, digits in zip(passage, text.split("。"), marks_by_sentence(text, marks), strict=False):
        for slot, word in said.slots:
            if slot == query.asked:
                continue
            other = query.words.get(slot)
            if other is None:
                wanted = "4"
            else:
                up, down = covers(slot, other, word), covers(slot, word, other)
                wanted = "1" if up and down else "3" if up else "2" if down else "5"
                # `up`: the passage's word is the narrower one.
            found = [
                m.span()
                for form, name in forms(slot).items()
                if name == word
                for m in re.finditer(re.escape(form), part)
            ]
            assert any(digits[start:end] == wanted * (end - start) for start, end in found), (query, text, marks, slot)


def marks_by_sentence(text: str, marks: str) -> list[str]:
    """The digits of each sentence of a passage."""
    ends = [i for i, c in enumerate(text) if c == "。"]
    return [marks[start:end] for start, end in zip([0, *(e + 1 for e in ends)], ends, strict=False)]


def check_groups(frame: pd.DataFrame, mode: str) -> None:
    """The layout both kinds of groups share."""
    assert list(frame.columns) == ["mode", "a", "b", "target", "label", "relations", "phenomenon"]
    assert (frame["mode"] == mode).all()
    for made in frame.itertuples():
        assert len(made.b) == len(made.target) == len(made.label) == len(made.relations) == len(made.phenomenon) <= 4
        assert len(set(made.b)) == len(made.b)
        for text, target, label, marks in zip(made.b, made.target, made.label, made.relations, strict=True):
            assert len(marks) == len(text)
            assert set(marks) <= set("012345")
            assert target == 1 if label else 0 <= target <= world.NON_ENTAILED_CEILING


# ----------------------------------------------------------------------------------------------------- same every time
def test_the_same_seed_gives_the_same_frames() -> None:
    makers = {
        "nli": lambda g: world.nli(g, "train", 40, 4, surface.COMMON),
        "sts": lambda g: world.sts_graded(g, "train", 40),
        "questions": lambda g: world.question_match(g, "train", 40),
        "roles": lambda g: world.role_swap(g, "train", 40),
        "retrieval": lambda g: world.retrieval(g, "train", "question", 20)["corpus"],
        "pretraining": lambda g: world.pretraining(g, 40),
        "symmetric": lambda g: world.teacher_symmetric(g, "train", 40, 4),
        "asymmetric": lambda g: world.teacher_asymmetric(g, "train", 30, 4),
    }
    for name, make in makers.items():
        pd.testing.assert_frame_equal(make(rng(22)), make(rng(22)))
        assert not make(rng(22)).astype(str).equals(make(rng(23)).astype(str)), name


def test_narrower_is_reflexive() -> None:
    (said,) = read("护士借走了三个红色的苹果")
    assert narrower(said, said)

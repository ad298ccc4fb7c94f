"""One's own files: what is read, what is made of it, and what is said of a file that is wrong."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_run import tiny_settings

from d2llm.cli import doctor
from d2llm.config.data import Retrieval, TrainingSet
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.config.values import merged
from d2llm.data import build
from d2llm.data.files import examples
from d2llm.data.files import read as files
from d2llm.evaluation import tasks as evaluation_tasks
from d2llm.models.text import is_text
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ConfigError, DataError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# -------------------------------------------------------------------------------------------------------------- tables
ROWS = [{"a": "one", "b": "NA", "n": "1"}, {"a": "two, or more", "b": "null", "n": "2.5"}]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_texts_and_numbers(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{ending}"
    if ending == "jsonl":
        jsonl(path, ROWS)
    elif ending == "parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    frame = files.read_table(path)
    assert files.texts(path, frame, "b").tolist() == ["NA", "null"]  # words, not missing values
    assert files.texts(path, frame, "a").tolist() == ["one", "two, or more"]
    assert files.numbers(path, frame, "n", 0, 5).tolist() == [1.0, 2.5]
    assert frame.index.tolist() == ([2, 3] if ending in ("csv", "tsv") else [1, 2])


@pytest.mark.parametrize(
    ("values", "yes", "no", "expected"),
    [
        ([1, 0, 1], [1], None, [True, False, True]),
        (["1", "0"], [1], None, [True, False]),
        (["1.0", " 0 ", "1 "], [1], None, [True, False, True]),
        ([True, False], [1], None, [True, False]),
        (np.array([1.0, 0.0]), ["1"], None, [True, False]),
        (np.array([2, 1], dtype="int64"), [2], [1], [True, False]),
        (["entailment", "neutral"], ["entailment"], ["neutral"], [True, False]),
        (["A", "B", "C"], ["A", "C"], ["B"], [True, False, True]),
    ],
)
def test_labels_of_any_type(values: list, yes: list, no: list | None, expected: list[bool]) -> None:
    frame = pd.DataFrame({"label": pd.Series(values, dtype=object)})
    assert files.labels("f", frame, "label", yes, no).tolist() == expected


@pytest.mark.parametrize(
    "label", ["-", -1, "\u22121", 2, 0.5, "Entailment", "entailment.", "\uff11", " ", ["entailment"], {"a": 1}, "label"]
)
@pytest.mark.parametrize(("yes", "no"), [(["entailment", 1], None), (["entailment", 1], ["contradiction", 0])])
def test_a_label_that_nobody_named_is_refused_with_its_line(label: object, yes: list, no: list | None) -> None:
    frame = pd.DataFrame({"l": pd.Series(["entailment", 0, label, label], [2, 3, 4, 5], dtype=object)})
    with pytest.raises(
        DataError, match=r"f: line 4, column 'l': expected 1, entailment \(yes\) or .*0.* \(no\)"
    ) as caught:
        files.labels("f", frame, "l", yes, no)
    assert repr(label) in str(caught.value) and "(and 1 more rows); name the label in `yes` or `no`" in str(
        caught.value
    )


def test_what_shows_nothing_is_no_text() -> None:
    """By Unicode's own categories: control characters, separators and all but the visible of the format characters."""
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        letter, kind = chr(code), unicodedata.category(chr(code))
        if kind in ("Cc", "Zs", "Zl", "Zp") or letter in "\u200b\u200d\u2060\ufeff\u00ad\u3164\u2800\ufe0f\U000e0041":
            assert not is_text(letter) and not is_text(f" {letter}\n"), hex(code)
            assert is_text(f"{letter}甲")
        elif kind[0] in "LNPS" and letter not in "\u115f\u1160\u3164\uffa0\u2800":
            assert is_text(letter), hex(code)
    assert not is_text("") and not is_text(None) and not is_text(3) and not is_text("half \ud800")


WRONG = [
    ("t.xml", "<a/>", r"t\.xml: expected a file that ends in \.jsonl"),
    ("t.jsonl", "", "no rows"),
    ("t.jsonl", '{"a": "x"}\n\n{"a": \n', r"line 3: not JSON"),
    ("t.jsonl", '{"a": "x"}\n["y"]\n', r"line 2: expected an object"),
    ("t.jsonl", '{"b": "x"}\n', r"no column 'a'; found b"),
    ("t.jsonl", '{"a": "x"}\n{"a": "  "}\n{"a": 3}\n', r"line 2, column 'a': expected a text; found '  ' \(and 1 more"),
    ("t.csv", "a,b\nx,y\n,z\n", r"line 3, column 'a': expected a text; found ''"),
    ("t.jsonl", '{"a": "x", "b": 0, "b": 1}\n', r"line 1: not JSON \(the key 'b' stands in an object twice\)"),
    ("t.jsonl", '{"a": "\u200b"}\n', r"line 1, column 'a': expected a text; found '\\u200b'"),
    ("t.parquet", "no parquet", r"cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_a_wrong_file_is_named_with_its_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        path = tmp_path / name
        files.texts(path, files.read_table(path), "a")
    assert str(tmp_path / name) in str(caught.value)


def test_wrong_numbers_labels_and_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"n": ["1", "x", "9"], "l": ["a", None, "b"], "k": [["x"], "y", [1]]}, index=[1, 2, 3], dtype=object
    )
    with pytest.raises(
        DataError, match=r"line 2, column 'n': expected a number from 0 to 5; found 'x' \(and 1 more rows\)"
    ):
        files.numbers("f", frame, "n", 0, 5)
    with pytest.raises(DataError, match=r"line 2, column 'l': expected a label"):
        files.labels("f", frame, "l", ["a"])
    with pytest.raises(DataError, match=r"no row is one of 'c'; found 'a', 'b'"):
        files.labels("f", frame.drop(index=2), "l", ["c"], ["a", "b"])
    with pytest.raises(DataError, match=r"line 3, column 'k': expected a text or a list of texts"):
        files.lists("f", frame, "k")


# -------------------------------------------------------------------------------------------------------- judged pairs
def test_labelled_pairs(tmp_path: Path) -> None:
    rows = [{"query": "q", "passage": "p", "l": "yes"}, {"query": "q", "passage": "n", "l": "no"}]
    # A text is no passage for itself, and a pair counts once.
    rows += [{"query": "q", "passage": "q", "l": "yes"}, rows[0]]
    settings = TrainingSet(file=jsonl(tmp_path / "t.jsonl", rows), label="l", yes=["yes"], no=["no"])
    found, passages, _ = examples.judged("s", settings, rng())
    assert found[["a", "b", "label", "target"]].values.tolist() == [["q", "p", True, 1.0], ["q", "n", False, 0.0]]
    assert set(found["dataset"]) == {"s"} and set(found["mode"]) == {"symmetric"}
    assert passages.tolist() == ["p", "n", "q"]


def test_pairs_judged_both_ways_count_once_as_first_judged_and_are_told(tmp_path: Path) -> None:
    rows = [
        ("q", "p", "yes"), ("q", "p", "no"), ("q", "p", "yes"),  # contradicted, yes
        ("q", "n", "no"), ("q", "n", "yes"),  # contradicted, no
        ("r", "p", "yes"), ("r", "p", "yes"),  # twice the same
        ("p", "r", "no"),  # the other direction is another pair
        ("q", "q", "yes"), ("q", "q", "no"),  # no pair at all
    ]  # fmt: skip
    file = jsonl(tmp_path / "t.jsonl", [dict(zip(("query", "passage", "l"), row, strict=True)) for row in rows])
    found = examples.judged("s", TrainingSet(file=file, label="l", yes=["yes"], no=["no"]), rng()).pairs
    assert found[["a", "b", "label", "contradicted"]].values.tolist() == [
        ["q", "p", True, True], ["q", "n", False, True], ["r", "p", True, False], ["p", "r", False, False],
    ]  # fmt: skip
    graded = [{"query": "q", "passage": "p", "s": score} for score in (3.5, 4.0)]  # both below the bound
    graded += [{"query": "q", "passage": "n", "s": score} for score in (4.8, 2.0)]
    settings = TrainingSet(file=jsonl(tmp_path / "g.jsonl", graded), score="s", scores=(0.0, 5.0), yes_from=4.5)
    assert examples.judged("s", settings, rng())[0]["contradicted"].tolist() == [False, True]


def test_near_copies_are_one_pair_and_no_pair_with_themselves(tmp_path: Path) -> None:
    rows = [
        ("Is it old?", "Café, 1900.", "yes"), ("is it  old?", "cafe\u0301，\u20091900.", "no"),  # contradicted: full width, decomposed, case, blanks
        ("Is it old?", "Cafe, 1900.", "no"),  # another accent, another text
        ("IS IT OLD?", "No. ", "yes"), ("is it old?", "no.", "yes"),  # twice the same
        ("Is it old?", "is it old?\u200b", "yes"),  # a text and itself
    ]  # fmt: skip
    file = jsonl(tmp_path / "t.jsonl", [dict(zip(("query", "passage", "l"), row, strict=True)) for row in rows])
    settings = TrainingSet(file=file, label="l", yes=["yes"], no=["no"])
    found, passages, _ = examples.judged("s", settings, rng())
    assert found[["a", "b", "label", "contradicted"]].values.tolist() == [
        ["Is it old?", "Café, 1900.", True, True], ["Is it old?", "Cafe, 1900.", False, False], ["IS IT OLD?", "No. ", True, False],
    ]  # fmt: skip
    assert passages.tolist() == ["Café, 1900.", "Cafe, 1900.", "No. ", "is it old?\u200b"]
    train, _ = examples.training_pairs(found, {"s": passages})
    # Whatever the spelling of the query, all that is right for it is marked and all that is wrong is wrong.
    assert [(row.marked, row.wrong) for row in train.itertuples()] == [(["Café, 1900.", "No. "], ["Cafe, 1900."])] * 2
    assert len(examples.judged("s", settings.model_copy(update={"sample": 1}), rng())[0]) == 3  # all of one query
    pool = examples.judged("s", settings.model_copy(update={"pool": 1}), rng())[1]
    assert set(passages[:3]) < set(pool) and len(pool) == 4


def test_a_score_becomes_a_probability_that_is_above_one_half_where_it_means_yes() -> None:
    score = pd.Series([1.0, 2.5, 3.9, 4.0, 4.5, 5.0])
    found = examples.target(score, (1.0, 5.0), 4.0)
    # By hand: 1.5 of the 3 below the bound is a quarter; half of what lies above it is three quarters.
    np.testing.assert_allclose(found, [0.0, 0.25, 0.5 * 2.9 / 3, 0.5, 0.75, 1.0], atol=2e-6)
    assert ((found > 0.5) == (score >= 4.0)).all()
    assert examples.target(pd.Series([5.0]), (1.0, 5.0), 5.0).item() > 0.5


def test_triples_with_one_wrong_text_or_several(tmp_path: Path) -> None:
    rows = [{"query": "q", "passage": "p", "wrong": "n"}, {"query": "r", "passage": "p", "wrong": ["m", "n"]}]
    settings = TrainingSet(file=jsonl(tmp_path / "t.jsonl", rows), negatives="wrong", mode="asymmetric")
    found, passages, _ = examples.judged("s", settings, rng())
    pairs = {(a, b): label for a, b, label in zip(found["a"], found["b"], found["label"], strict=True)}
    assert pairs == {("q", "p"): True, ("r", "p"): True, ("q", "n"): False, ("r", "m"): False, ("r", "n"): False}
    assert set(passages) == {"p", "n", "m"}


def test_what_is_judged_wrong_for_a_query_goes_with_each_of_its_right_passages(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "passage": "p", "wrong": ["n", "m"]}, {"query": "q", "passage": "o", "wrong": "l"},
        {"query": "r", "passage": "p", "wrong": []}, {"query": "n", "passage": "q", "wrong": "p"},
    ]  # fmt: skip
    settings = TrainingSet(file=jsonl(tmp_path / "t.jsonl", rows), negatives="wrong")
    found, passages, _ = examples.judged("s", settings, rng())
    train, _ = examples.training_pairs(found, {"s": passages})
    made = {(row.query, row.positive): (row.marked, row.wrong) for row in train.itertuples()}
    assert made == {
        ("q", "p"): (["p", "o"], ["n", "m", "l"]), ("q", "o"): (["p", "o"], ["n", "m", "l"]),
        ("r", "p"): (["p"], []), ("n", "q"): (["q"], ["p"]),
    }  # fmt: skip


def retrieval(folder: Path, **changes: list[dict]) -> Retrieval:
    parts = {
        "queries": [{"id": 1, "text": "q1"}, {"id": 2, "text": "q2"}],
        "corpus": [{"id": "d1", "text": "p1"}, {"id": "d2", "text": "p2"}, {"id": "d3", "text": "p3"}],
        "qrels": [
            {"query_id": 1, "doc_id": "d1", "relevance": 1}, {"query_id": 1, "doc_id": "d3", "relevance": 0},
            {"query_id": 2, "doc_id": "d2", "relevance": 2.6}, {"query_id": 2, "doc_id": "d3", "relevance": 0.2},
        ],
    } | changes  # fmt: skip
    return Retrieval(**{name: jsonl(folder / f"{name}.jsonl", rows) for name, rows in parts.items()})


def test_a_retrieval_set(tmp_path: Path) -> None:
    (queries, corpus, qrels), dropped = examples.retrieval(retrieval(tmp_path))
    assert queries["id"].tolist() == ["1", "2"] and len(corpus) == 3 and not dropped
    assert qrels.values.tolist() == [["1", "d1", 1], ["1", "d3", 0], ["2", "d2", 2.6], ["2", "d3", 0.2]]
    found, passages, _ = examples.judged("s", TrainingSet(mode="asymmetric", retrieval=retrieval(tmp_path)), rng())
    assert found[["a", "b"]].values.tolist() == [["q1", "p1"], ["q2", "p2"], ["q2", "p3"]]
    assert passages.tolist() == ["p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corpus": [{"id": "d", "text": "a"}, {"id": "d", "text": "b"}]},
            r"corpus\.jsonl: line 2, column 'id': .*'d', as in line 1",
        ),
        (
            {"qrels": [{"query_id": 9, "doc_id": "d1", "relevance": 1}]},
            r"qrels\.jsonl: line 1: expected an id of .*queries.*'9'",
        ),
        (
            {"qrels": [{"query_id": 1, "doc_id": "dx", "relevance": 1}]},
            r"qrels\.jsonl: line 1: expected an id of .*corpus.*'dx'",
        ),
        ({"queries": [{"id": None, "text": "a"}]}, r"queries\.jsonl: line 1, column 'id': expected an id; found None"),
        ({"qrels": [{"query_id": 1, "doc": "d1"}]}, r"no column 'doc_id'; found query_id, doc"),
        ({"qrels": [{"query_id": 1, "doc_id": "d1", "relevance": "high"}]}, r"column 'relevance': expected a number"),
    ],
)
def test_a_wrong_retrieval_set(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        examples.retrieval(retrieval(tmp_path, **changes))


def test_parts_of_one_file_share_no_pair_in_any_order() -> None:
    pairs = pd.DataFrame({"a": [f"t{i}" for i in range(400)], "b": [f"t{399 - i}" for i in range(400)]})
    first, second = (examples.within(pairs, part, "a", "b") for part in ((0.0, 0.3), (0.3, 1.0)))
    assert len(first) + len(second) == 400 and 80 < len(first) < 160
    one, two = ({frozenset(row) for row in part.values.tolist()} for part in (first, second))
    assert not one & two  # (t1, t398) and (t398, t1) are in the table both
    spelled = pairs.assign(a=pairs["b"].str.upper(), b=pairs["a"] + " ")
    for part, rows in (((0.0, 0.3), first), ((0.3, 1.0), second)):
        found = examples.within(pd.concat([pairs, spelled], ignore_index=True), part, "a", "b")
        assert found.index.tolist() == [*rows.index, *(rows.index + 400)]  # a near copy goes with the pair
    assert examples.within(pairs, None, "a", "b") is pairs


# ------------------------------------------------------------------------------------------------------------- teacher
def pairs_of(rows: list[tuple[str, str, bool]], mode: str = "symmetric") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["a", "b", "label"]).assign(dataset="s", mode=mode)
    marked = [[text for asked, text, yes in rows if asked == a and yes] for a in frame["a"]]
    return frame.assign(target=frame["label"].astype(float), marked=marked)


def test_queries_without_wrong_candidates_get_some_from_the_pool() -> None:
    pairs = pairs_of([(f"q{i}", f"p{i}", True) for i in range(60)] + [("q0", "p1", True)])
    pool = pd.DataFrame({"dataset": "s", "text": [f"p{i}" for i in range(60)]})
    groups = examples.teacher_groups(pairs, pool, wrong=3, held=0.2, seed=1)
    assert len(groups["train"]) + len(groups["dev"]) == 60
    assert not set(groups["train"]["a"]) & set(groups["dev"]["a"])
    for frame in groups.values():
        for a, b, label, target in zip(frame["a"], frame["b"], frame["label"], frame["target"], strict=True):
            right = {"q0": {"p0", "p1"}}.get(a, {"p" + a[1:]})
            assert {text for text, yes in zip(b, label, strict=True) if yes} == right
            assert len(b) == len(set(b)) == len(right) + 3
            assert target == [float(yes) for yes in label]


def test_no_near_copy_of_a_right_passage_is_taught_as_wrong() -> None:
    pairs = pairs_of([(f"q{i}", f"p{i}", True) for i in range(60)] + [("Q0 ", "p0", True)])
    # One more is right for each, by a pair that an evaluation set holds.
    pairs["marked"] = [[*marked, f"p{59 - int(marked[0][1:])}"] for marked in pairs["marked"]]
    copies = [spelling for i in range(60) for spelling in (f"P{i}", f"p{i} ", f"ｐ{i}")]
    pool = pd.DataFrame({"dataset": "s", "text": [*copies, "x", "y", "z"]})
    groups = examples.teacher_groups(pairs, pool, 50, 0.2, 1)
    for frame in groups.values():
        for a, b, label in zip(frame["a"], frame["b"], frame["label"], strict=True):
            number = int(a.strip()[1:])
            right = {f"p{number}", f"p{59 - number}"}
            wrong = {examples.normal_form(text) for text, yes in zip(b, label, strict=True) if not yes}
            assert not wrong & right and len(wrong) == label.count(False)
    parts = [split for split, frame in groups.items() for a in set(frame["a"]) if a.strip().lower() == "q0"]
    assert len(parts) == 2 and len(set(parts)) == 1  # both spellings in one part


def test_what_another_part_of_the_file_marks_is_marked(tmp_path: Path) -> None:
    rows = [{"query": f"q{i % 10}", "passage": f"p{i}"} for i in range(60)]
    settings = TrainingSet(file=jsonl(tmp_path / "t.jsonl", rows), part=(0.0, 0.5))
    found, passages, _ = examples.judged("s", settings, rng())
    assert 15 < len(found) < 45 and set(passages) == set(found["b"])
    for a, marked in zip(found["a"], found["marked"], strict=True):
        assert marked == [row["passage"] for row in rows if row["query"] == a]


def test_long_groups_are_cut_without_losing_or_doubling_a_candidate() -> None:
    rows = [(f"q{i}", f"p{i}-{j}", j < 5) for i in range(30) for j in range(19)]
    groups = examples.teacher_groups(pairs_of(rows), pd.DataFrame({"dataset": ["s"], "text": ["x"]}), 2, 0.3, 1)
    whole = pd.concat(groups.values())
    assert (whole["b"].str.len() <= examples.GROUP).all()
    found = sorted(
        (a, b, yes)
        for a, bs, ys in zip(whole["a"], whole["b"], whole["label"], strict=True)
        for b, yes in zip(bs, ys, strict=True)
    )
    assert found == sorted(rows)
    # Five right and fourteen wrong ones over three pieces: each piece has both.
    assert all(len(set(label)) == 2 for label in whole["label"])


def test_a_teacher_cannot_be_judged_by_one_kind_of_pair() -> None:
    with pytest.raises(DataError, match="the symmetric training sets leave the teacher's dev part without"):
        examples.teacher_groups(
            pairs_of([("q", "p", True)]), pd.DataFrame({"dataset": ["s"], "text": ["x"]}), 2, 0.05, 1
        )


# --------------------------------------------------------------------------------------------------------------- leaks
@pytest.mark.parametrize(
    "spelled",
    [str, str.upper, " {} ".format, "\u200b{}".format, lambda text: "".join(chr(ord(x) + 0xFEE0) for x in text)],
)
def test_what_an_evaluation_set_holds_leaves_training(spelled: Callable[[str], str]) -> None:
    pairs = pd.concat(
        [pairs_of([("a", "b", True), ("c", "d", True), ("a", "d", True)]), pairs_of([("asked", "x", True), ("y", "x", True)], "asymmetric")]
    )  # fmt: skip
    tasks = {
        "test": {
            "t": {
                "pairs": pd.DataFrame(
                    {"sentence1": [spelled("b"), "d"], "sentence2": [spelled("a"), "e"], "phenomenon": ["", "own"]}
                )
            },
            "r": {"queries": pd.DataFrame({"text": [spelled("asked"), "new"], "phenomenon": ["", ""]})},
        }
    }
    kept = examples.without(pairs, tasks)
    assert kept[["a", "b"]].values.tolist() == [["c", "d"], ["a", "d"], ["y", "x"]]  # (a, b) is there as (b, a)
    marked = examples.with_familiarity(tasks, examples.seen(kept, {"s": pd.Series(["b"])}))["test"]
    assert marked["t"]["pairs"]["phenomenon"].tolist() == [examples.BOTH, "own"]
    assert marked["r"]["queries"]["phenomenon"].tolist() == [examples.NEW, examples.NEW]


# ------------------------------------------------------------------------------------------------------------ the stage
def own(folder: Path, **changes: object) -> dict:
    """Settings over files made here: pairs with labels, graded pairs, a retrieval set."""
    made = np.random.default_rng(3)
    nouns = [
        f"{place} {thing}"
        for place in ("red", "old", "new", "big")
        for thing in ("house", "street", "garden", "bridge")
    ]
    for name, count in (("train", 90), ("dev", 30), ("test", 30)):
        rows = []
        for i in range(count):
            a, b = made.choice(nouns, 2)
            rows.append(
                {
                    "s1": f"{a} near {b} {name} {i}",
                    "s2": f"{a} {name} {i}" if i % 3 else f"{b} {name}",
                    "l": int(i % 3 > 0),
                    "score": float(i % 5),
                }
            )
        jsonl(folder / f"{name}.jsonl", rows)
        (folder / name).mkdir()
        retrieval(
            folder / name,
            queries=[{"id": i, "text": f"where is {nouns[i]} {name}?"} for i in range(16)],
            corpus=[{"id": f"d{i}", "text": f"{nouns[i % 16]} lies here {i}"} for i in range(30)],
            qrels=[{"query_id": i, "doc_id": f"d{i}", "relevance": 1} for i in range(16)],
        )

    def three(name: str) -> dict:
        return {part: str(folder / name / f"{part}.jsonl") for part in ("queries", "corpus", "qrels")}

    columns = {"sentence1": "s1", "sentence2": "s2"}
    train = {"file": str(folder / "train.jsonl"), "query": "s1", "passage": "s2"}
    splits = {split: str(folder / f"{split}.jsonl") for split in ("dev", "test")}
    data = {
        "source": "files",
        "files": {
            "train": {
                "nli": train | {"label": "l", "yes": [1]},
                "graded": train | {"score": "score", "scores": [0.0, 4.0], "yes_from": 3.0},
                "find": {"mode": "asymmetric", "retrieval": three("train")},
            },
            "tasks": {
                "entail": {"type": "pair_classification", "group": "nli", "label": "l", **columns, **splits},
                "related": {"type": "sts", "group": "sts", "scores": [0.0, 4.0], "sample": 20, **columns, **splits},
                "lookup": {"type": "retrieval", "group": "ir", "title": "Look-up", "dev": three("dev"), "test": three("test")},
            },
            "teacher_dev": 0.2,
        },
    }  # fmt: skip
    # Models that are elsewhere: none can be made of files.
    models = {name: {"source": f"org/{name}"} for name in ("teacher", "decoder", "encoder")}
    settings = tiny_settings(folder / "results", **({"data": data} | changes))
    return settings | {"models": models | changes.get("models", {})}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load([], own(tmp_path))


def test_the_data_stage_over_files(config: Config) -> None:
    build.run_texts(config)
    build.run(config)
    paths = Paths.of(config)
    train = pd.read_parquet(paths.train_pairs)
    # By hand: two of three rows say yes; two of five scores are 3 or 4; a passage for each of 16 queries.
    assert train.groupby("dataset").size().to_dict() == {"nli": 60, "graded": 36, "find": 16}
    assert dict(zip(train["dataset"], train["mode"], strict=True)) == {
        "nli": "symmetric",
        "graded": "symmetric",
        "find": "asymmetric",
    }
    pool = pd.read_parquet(paths.pool)
    assert (pool["dataset"] == "find").sum() == 30
    texts = pd.read_parquet(paths.pretraining)["text"]
    assert texts.is_unique and set(train["query"]) | set(pool["text"]) <= set(texts)
    found = {name: evaluation_tasks.read(paths.task(name), "test") for name in evaluation_tasks.names(paths.tasks)}
    assert {name: task.title for name, task in found.items()} == {
        "entail": "entail", "related": "related (sample of 20)", "lookup": "Look-up",
    }  # fmt: skip
    assert len(found["related"].pairs) == 20 and found["related"].max_score == 4.0
    assert found["entail"].pairs["label"].sum() == 20
    assert set(found["lookup"].queries["phenomenon"]) == {examples.NEW}
    assert read_json(paths.leaks)["removed_from"] == "training"
    again = pd.read_parquet(paths.task("related") / "test.parquet")
    build.run(config)
    pd.testing.assert_frame_equal(pd.read_parquet(paths.task("related") / "test.parquet"), again)


def test_what_evaluation_sets_take_is_counted_and_stays_marked(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A right passage that an evaluation set has for a query of training is removed from training, and no negative of that query."""
    row = {"s1": "red house near old street train 0", "l": 1, "score": 4.0}
    added = {
        "train": [row | {"s2": f"it is {word}"} for word in ("red", "old", "big")],
        "test": [row | {"s2": "IT IS RED "}],
    }
    for name, rows in added.items():
        with (tmp_path / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    caplog.set_level("WARNING")
    build.run(config)
    paths = Paths.of(config)
    train = pd.read_parquet(paths.train_pairs)
    (marked,) = train.loc[(train["dataset"] == "nli") & (train["positive"] == "it is old"), "marked"]
    assert set(marked) == {"it is red", "it is old", "it is big"}
    assert "it is red" not in set(train["positive"]) and "it is red" in set(pd.read_parquet(paths.pool)["text"])
    removed = {row["dataset"]: row["removed"] for row in read_json(paths.card_json)["training"]}
    assert removed == {"nli": 1, "graded": 1, "find": 0}
    assert "removed from training: 1 of nli, 1 of graded." in paths.card_md.read_text(encoding="utf-8")
    assert "nli: 1 pairs are removed, as evaluation sets hold them" in caplog.text


def asked_in(folder: Path, count: int) -> dict:
    """Changes by which the test split of `lookup` asks the first queries of the training set `find`."""
    parts = {part: str(folder / "train" / f"{part}.jsonl") for part in ("queries", "corpus", "qrels")}
    for part in ("queries", "qrels"):
        lines = Path(parts[part]).read_text(encoding="utf-8").splitlines(keepends=True)
        parts[part] = str(folder / f"some_{part}.jsonl")
        Path(parts[part]).write_text("".join(lines[:count]), encoding="utf-8")
    return {"data": {"files": {"tasks": {"lookup": {"test": parts}}}}}


NOT_ENOUGH = [
    (lambda folder: asked_in(folder, 16), r"train\.find: evaluation sets hold all 16 of its right pairs, so that none is left to train on; give"),
    (lambda folder: asked_in(folder, 14), r"train\.find: 2 right pairs \(evaluation sets hold 14 more\) do not fill a pack; expected at least training\.pack \(4\)"),
    (lambda folder: {"training": {"pack": 20, "batch_size": 20}}, r"train\.find: 16 right pairs do not fill a pack; expected at least training\.pack \(20\)"),
    (lambda folder: {"negatives": {"per_query": 30}}, r"'find': 30 texts are too few for 30 negatives of 'where is red house train\?'; .*negatives\.per_query"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), NOT_ENOUGH)
def test_a_set_that_cannot_be_trained_on_is_refused_at_once(
    changes: Callable[[Path], dict], message: str, tmp_path: Path
) -> None:
    settings = own(tmp_path)
    config = load([], merged(settings, changes(tmp_path)))
    for stage in (build.run, *(() if "negatives" in message else (build.run_texts,))):  # unlabelled text needs no pool
        with pytest.raises(DataError, match=message):
            stage(config)
    [error] = [one.found for one in doctor.of_config(config) if one.level == "error" and one.subject != "hub"]
    assert re.search(message, error)


def test_contradictions_are_in_the_card_and_the_log(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    build.run(config)
    assert [row["contradictions"] for row in read_json(Paths.of(config).card_json)["training"]] == [0, 0, 0]
    assert "right and wrong" not in Paths.of(config).card_md.read_text(encoding="utf-8") + caplog.text
    file = Path(config.data.files.train["nli"].file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with file.open("a", encoding="utf-8") as stream:  # the same pairs, judged the other way
        stream.writelines(json.dumps(row | {"l": 1 - row["l"]}) + "\n" for row in rows[:5])
    caplog.set_level("WARNING")
    build.run(config)
    card = read_json(Paths.of(config).card_json)
    assert {row["dataset"]: row["contradictions"] for row in card["training"]} == {"nli": 5, "graded": 0, "find": 0}
    said = "Pairs that a set judges right and wrong, of which the first row counts: 5 of nli."
    assert said in Paths.of(config).card_md.read_text(encoding="utf-8")
    assert "nli: 5 pairs are judged right and wrong by its rows; the first row counts" in caplog.text


def test_what_is_left_out_is_in_the_card_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = own(tmp_path)
    files_settings = settings["data"]["files"]
    files_settings["train"]["nli"]["incomplete"] = "drop"
    for task in files_settings["tasks"].values():
        task["incomplete"] = "drop"
    for name, row in (
        ("train", {"s1": "a", "s2": "b", "l": "-", "score": 1}),
        ("test", {"s1": "a", "s2": "", "l": 1, "score": 1}),
    ):
        with (tmp_path / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
    with (tmp_path / "test" / "queries.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"id": "more", "text": " "}\n')
    config = load([], settings)
    caplog.set_level("WARNING")
    build.run(config)
    card = read_json(Paths.of(config).card_json)
    assert {row["dataset"]: row.get("dropped") for row in card["training"]} == {"nli": {"rows labelled '-'": 1}, "graded": None, "find": None}  # fmt: skip
    assert {(row["task"], row["split"]): row["dropped"] for row in card["evaluation"] if "dropped" in row} == {
        ("entail", "test"): {"rows without a text, label or score": 1},
        ("related", "test"): {"rows without a text, label or score": 1},
        ("lookup", "test"): {"queries without an id or a text": 1},
    }
    page = Paths.of(config).card_md.read_text(encoding="utf-8")
    assert "Left out of nli: 1 rows labelled '-'." in page and "Left out: 1 queries without an id or a text." in page
    assert "lookup/test: left out: 1 queries without an id or a text" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"nli": {"label": None}}},
            r"data\.files\.train\.nli: expected label \(a column\) together with yes",
        ),
        (
            {"train": {"nli": {"retrieval": {"queries": "a", "corpus": "b", "qrels": "c"}}}},
            "either file .* or retrieval",
        ),
        ({"train": {"graded": {"yes_from": None}}}, "score .* together with scores"),
        ({"train": {"nli": {"part": [0.5, 0.2]}}}, r"data\.files\.train\.nli\.part: expected \[from, to\]"),
        ({"train": {"nli": {"lable": "l"}}}, r"data\.files\.train\.nli\.lable: unknown key"),
        (
            {"tasks": {"entail": {"test": None}}},
            r"data\.files\.tasks\.entail: no test split, which evaluation\.split asks for",
        ),
        (
            {"tasks": {name: {"dev": None} for name in ("entail", "related", "lookup")}},
            r"data\.files\.tasks: no set has a dev split, which training\.dev_every asks for",
        ),
        ({"train": {"find": {"part": [0.0, 0.5]}}}, "label, score, negatives and part with a file of pairs only"),
        ({"tasks": {"lookup": {"test_part": [0.0, 0.5]}}}, "dev_part and test_part with files of pairs only"),
        ({"tasks": {"lookup": {"test": "t.jsonl"}}}, "for retrieval a section of queries, corpus and qrels"),
    ],
)
def test_a_wrong_section_is_refused_before_anything_runs(changes: dict, message: str, tmp_path: Path) -> None:
    from d2llm.config.values import merged

    settings = own(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load([], merged(settings, {"data": {"files": changes}}))


def test_files_without_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data: expected files\.train and files\.tasks"):
        load([], {"data": {"source": "files"}, "methods": {"d2llm": {}}})


# ---------------------------------------------------------------------------------------------------- large public sets
def test_rows_without_a_text_or_a_known_label_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [
        {"a": "one", "b": "two", "l": "yes"},
        {"a": "", "b": "two", "l": "yes"},
        {"a": "three", "b": None, "l": "no"},
        {"a": "four", "b": "five", "l": "-"},
        {"a": "six", "b": "seven", "l": "no"},
    ]
    jsonl(tmp_path / "t.jsonl", rows)
    shared = {
        "file": str(tmp_path / "t.jsonl"),
        "query": "a",
        "passage": "b",
        "label": "l",
        "yes": ["yes"],
        "no": ["no"],
    }
    found, _, dropped = examples.judged("t", TrainingSet(**shared, incomplete="drop"), rng())
    assert list(zip(found["a"], found["b"], found["label"], strict=True)) == [
        ("one", "two", True),
        ("six", "seven", False),
    ]
    assert dropped == {"rows without a text, label or score": 2, "rows labelled '-'": 1}
    with pytest.raises(DataError, match="line 2, column 'a': expected a text"):
        examples.judged("t", TrainingSet(**shared), rng())
    jsonl(tmp_path / "t.jsonl", [rows[0], rows[3]])
    with pytest.raises(DataError, match=r"line 2, column 'l': expected yes \(yes\) or no \(no\); found '-'"):
        examples.judged("t", TrainingSet(**shared), rng())


def test_passages_as_lists_of_objects(tmp_path: Path) -> None:
    rows = [
        {"q": "who", "p": [{"docid": "1", "text": "he"}, {"docid": "2", "text": "she"}, {"docid": "3", "text": " "}]},
        {"q": "what", "p": []},
    ]
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    settings = TrainingSet(
        mode="asymmetric", file=str(tmp_path / "t.jsonl.gz"), query="q", passage="p", incomplete="drop"
    )
    found, passages, _ = examples.judged("t", settings, rng())
    assert list(zip(found["a"], found["b"], strict=True)) == [("who", "he"), ("who", "she")] and found["label"].all()
    assert passages.tolist() == ["he", "she"]


def test_a_tsv_file_without_header_and_with_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('1\the said "no\n2\t"yes" and left\n')
    frame = files.read_table(tmp_path / "t.tsv", ["id", "text"], quotes="text")
    assert frame["text"].tolist() == ['he said "no', '"yes" and left'] and frame.index.tolist() == [1, 2]
    (tmp_path / "t.txt").write_text("id\ttext\n1\ta\n")
    assert files.read_table(tmp_path / "t.txt", kind="tsv", keep=["text"]).to_dict("list") == {"text": ["a"]}


def test_a_pool_holds_the_right_passages_and_some_others(tmp_path: Path) -> None:
    retrieval(
        tmp_path,
        queries=[{"qid": i, "text": f"q{i}"} for i in range(4)],
        corpus=[{"pid": i, "text": f"p{i}"} for i in range(40)],
        qrels=[{"query_id": i, "doc_id": 10 + i, "relevance": 1} for i in range(4)],
    )
    three = {part: str(tmp_path / f"{part}.jsonl") for part in ("queries", "corpus", "qrels")}
    settings = TrainingSet(mode="asymmetric", retrieval=three | {"id": "qid", "corpus_id": "pid"}, sample=2, pool=5)
    found, passages, _ = examples.judged("t", settings, rng())
    assert len(found) == 2 and len(passages) == 7 and set(found["b"]) <= set(passages)


def test_paths_are_seen_from_the_folder(tmp_path: Path) -> None:
    settings = load([], own(tmp_path)).data.files.model_copy(update={"folder": "../x"})
    assert settings.located("a/b.csv") == "../x/a/b.csv" and settings.located("/a.csv") == "/a.csv"


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_tier_of_the_repository_is_valid(name: str) -> None:
    file = ROOT / "config" / name
    config = load([file] if "\ntier:" in file.read_text(encoding="utf-8") else [ROOT / "config/mini.yaml", file])
    assert config.runs() and len({len(config.grid(method)) for method in config.tuning.grids} | {0}) <= 2

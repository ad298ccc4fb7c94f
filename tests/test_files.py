"""One's own files: what is read, what is made of it, and what is said of a file that is wrong."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_files import jsonl, rows, search_files
from spoiled_configs import BELOW
from tiny_run import tiny_settings

from d2llm.cli import doctor
from d2llm.config.data import FilesSettings, Retrieval, TrainingSet
from d2llm.config.load import load
from d2llm.config.values import merged
from d2llm.data import build
from d2llm.data.files import examples
from d2llm.data.files import read as files
from d2llm.data.leaks import Held
from d2llm.evaluation import tasks as evaluation_tasks
from d2llm.models.text import is_text
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ConfigError, DataError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
LABELLED = {"label": "l", "yes": ["yes"], "no": ["no"]}


def judged(file: str | None, **settings: object) -> examples.Judged:
    return examples.judged("s", TrainingSet(file=file, **settings), np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------------------- tables
def test_a_file_without_header_of_another_ending_and_of_some_columns(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("1\tone\n2\ttwo\n")
    frame = files.read_table(tmp_path / "t.txt", ["id", "text"], kind="tsv", keep=["text"])
    assert frame.to_dict("list") == {"text": ["one", "two"]} and frame.index.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("values", "yes", "no", "expected"),
    [
        (["1.0", " 0 ", True, np.float64(1), np.int64(0)], [1], None, [True, False, True, True, False]),
        (["A", "B", 2], ["A", "2"], ["B"], [True, False, True]),
    ],
)
def test_labels_of_any_type(values: list, yes: list, no: list | None, expected: list[bool]) -> None:
    frame = pd.DataFrame({"label": pd.Series(values, dtype=object)})
    assert files.labels("f", frame, "label", yes, no).tolist() == expected


@pytest.mark.parametrize("no", [None, ["contradiction", 0]])
def test_a_label_that_nobody_named_is_refused_with_its_line(no: list | None) -> None:
    for label in ("-", -1, "\u22121", 2, 0.5, "Entailment", "\uff11", " ", ["entailment"], {"a": 1}):
        frame = pd.DataFrame({"l": pd.Series(["entailment", 0, label, label], [2, 3, 4, 5], dtype=object)})
        expected = r"f: line 4, column 'l': expected 1, entailment \(yes\) or .*0.* \(no\); found "
        fix = r" \(and 1 more rows\); name the label in `yes` or `no`"
        with pytest.raises(DataError, match=expected + re.escape(repr(label)) + fix):
            files.labels("f", frame, "l", ["entailment", 1], no)


def test_what_shows_nothing_is_no_text() -> None:
    """By Unicode's own categories: control characters, separators, all but the visible of the format characters."""
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        letter, kind = chr(code), unicodedata.category(chr(code))
        if kind in ("Cc", "Zs", "Zl", "Zp") or letter in "\u200b\u200d\u2060\ufeff\u00ad\u3164\u2800\ufe0f\U000e0041":
            assert not is_text(letter) and not is_text(f" {letter}\n"), hex(code)
            assert is_text(f"{letter}甲")
        elif kind[0] in "LNPS" and letter not in "\u115f\u1160\u3164\uffa0\u2800":
            assert is_text(letter), hex(code)
    assert not any(map(is_text, ("", None, 3, "half \ud800")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xml", "<a/>", r"expected a file that ends in \.jsonl"),
        ("t.jsonl", "", "no rows"),
        ("t.jsonl", '{"a": "x"}\n\n{"a": \n', "line 3: not JSON"),
        ("t.jsonl", '{"a": "x"}\n["y"]\n', "line 2: expected an object"),
        ("t.jsonl", '{"b\\nc": 1}\n', r"no column 'a'; found 'b\\nc'"),
        ("t.jsonl", '{"a": "x"}\n{"a": "  "}\n{"a": 3}\n', r"line 2, column 'a': .* a text; found '  ' \(and 1 more"),
        ("t.jsonl", '{"a": "x", "b": 0, "b": 1}\n', r"line 1: not JSON \(the key 'b' stands in an object twice\)"),
        ("t.jsonl", '{"a": "\u200b"}\n', r"line 1, column 'a': expected a text; found '\\u200b'"),
        ("t.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {message}") as caught:
        files.texts(path, files.read_table(path), "a")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        (lambda f: files.numbers("f", f, "x", 0, 5), ["1", "x", "9"],
         r"line 2, .* expected a number from 0 to 5; found 'x' \(and 1 more rows\)"),
        (lambda f: files.numbers("f", f, "x", 0, 5), [1, True, 2], "line 2, .* found True"),
        (lambda f: files.labels("f", f, "x", ["c"], ["a", "b"]), ["a", "b", "a"], "no row is one of 'c'; found 'a', "),
        (lambda f: files.labels("f", f, "x", ["1"], ["1.0"]), ["1"], "labels that mean yes or no, not both"),
        (lambda f: files.lists("f", f, "x"), [["x"], "y", [1]], "line 3, .* expected a text or a list of texts"),
        (lambda f: files.texts("f", f, "x"), ["whole", "half \ud800"], r"line 2, column 'x': expected a text; .*ud800"),
        (lambda f: files.ids("f", f, "x"), ["whole", "half \ud800"], r"line 2, column 'x': expected an id; .*ud800"),
        (lambda f: files.lists("f", f, "x"), [["b"], ["\udc00"]], r"line 2, column 'x': expected .*udc00"),
    ],
)  # fmt: skip
def test_wrong_numbers_labels_and_lists(read: Callable, values: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(pd.DataFrame({"x": pd.Series(values, range(1, len(values) + 1), dtype=object)}))


# -------------------------------------------------------------------------------------------------------- judged pairs
def test_pairs_judged_both_ways_count_once_as_first_judged_and_are_told(tmp_path: Path) -> None:
    values = [
        ("q", "p", "yes"), ("q", "p", "no"), ("q", "p", "yes"),  # contradicted, yes
        ("q", "n", "no"), ("q", "n", "yes"),  # contradicted, no
        ("r", "p", "yes"), ("r", "p", "yes"),  # twice the same
        ("p", "r", "no"),  # the other direction is another pair
        ("q", "q", "yes"), ("q", "q", "no"),  # no pair at all
    ]  # fmt: skip
    pairs, passages, _ = judged(jsonl(tmp_path / "t.jsonl", rows("query passage l", *values)), **LABELLED)
    assert passages.tolist() == ["p", "n", "r", "q"]
    assert pairs[["dataset", "mode"]].drop_duplicates().values.tolist() == [["s", "symmetric"]]
    assert pairs[["query", "passage", "label", "contradicted"]].values.tolist() == [
        ["q", "p", True, True], ["q", "n", False, True], ["r", "p", True, False], ["p", "r", False, False],
    ]  # fmt: skip
    # The first two lie both below the bound.
    graded = rows("query passage s", ("q", "p", 3.5), ("q", "p", 4.0), ("q", "n", 4.8), ("q", "n", 2.0))
    pairs = judged(jsonl(tmp_path / "g.jsonl", graded), score="s", scores=(0.0, 5.0), yes_from=4.5).pairs
    assert pairs["contradicted"].tolist() == [False, True]


def test_near_copies_are_one_pair_and_no_pair_with_themselves(tmp_path: Path) -> None:
    values = [
        ("Is it old?", "Café, 1900.", "yes"),
        ("is it  old?", "cafe\u0301，\u20091900.", "no"),  # contradicted: full width, decomposed, case, blanks
        ("Is it old?", "Cafe, 1900.", "no"),  # another accent, another text
        ("IS IT OLD?", "No. ", "yes"), ("is it old?", "no.", "yes"),  # twice the same
        ("Is it old?", "is it old?\u200b", "yes"),  # a text and itself
    ]  # fmt: skip
    file = jsonl(tmp_path / "t.jsonl", rows("query passage l", *values))
    pairs, passages, _ = judged(file, **LABELLED)
    assert list(zip(pairs["passage"], pairs["contradicted"], strict=True)) == [
        ("Café, 1900.", True), ("Cafe, 1900.", False), ("No. ", False),
    ]  # fmt: skip
    assert passages.tolist() == ["Café, 1900.", "Cafe, 1900.", "No. ", "is it old?\u200b"]
    train, _ = examples.training_pairs(pairs, {"s": passages})
    # Whatever the spelling of the query, all that is right for it is marked and all that is wrong is wrong.
    assert train[["marked", "wrong"]].values.tolist() == [[["Café, 1900.", "No. "], ["Cafe, 1900."]]] * 2
    assert len(judged(file, **LABELLED, sample=1).pairs) == 3  # all of one query
    assert set(passages[:3]) < set(judged(file, **LABELLED, pool=1).passages)


def test_a_score_becomes_a_probability_that_is_above_one_half_where_it_means_yes() -> None:
    score = pd.Series([1.0, 2.5, 3.9, 4.0, 4.5, 5.0])
    target = examples.target(score, (1.0, 5.0), 4.0)
    # By hand: 1.5 of the 3 below the bound is a quarter; half of what lies above it is three quarters.
    np.testing.assert_allclose(target, [0.0, 0.25, 0.5 * 2.9 / 3, 0.5, 0.75, 1.0], atol=2e-6)
    assert ((target > 0.5) == (score >= 4.0)).all()
    assert examples.target(pd.Series([5.0]), (1.0, 5.0), 5.0).item() > 0.5


def test_what_is_judged_wrong_for_a_query_goes_with_each_of_its_right_passages(tmp_path: Path) -> None:
    """Of triples with one wrong text, several or none."""
    values = [("q", "p", ["n", "m"]), ("q", "o", "l"), ("r", "p", []), ("n", "q", "p")]
    pairs, passages, _ = judged(
        jsonl(tmp_path / "t.jsonl", rows("query passage wrong", *values)), negatives="wrong", mode="asymmetric"
    )
    right = {("q", "p"), ("q", "o"), ("r", "p"), ("n", "q")}
    wrong = {("q", "n"), ("q", "m"), ("q", "l"), ("n", "p")}
    labels = dict(zip(zip(pairs["query"], pairs["passage"], strict=True), pairs["label"], strict=True))
    assert labels == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)
    assert set(passages) == {"p", "o", "q", "n", "m", "l"}
    train, _ = examples.training_pairs(pairs, {"s": passages})
    assert {(row.query, row.positive): (row.marked, row.wrong) for row in train.itertuples()} == {
        ("q", "p"): (["p", "o"], ["n", "m", "l"]), ("q", "o"): (["p", "o"], ["n", "m", "l"]),
        ("r", "p"): (["p"], []), ("n", "q"): (["q"], ["p"]),
    }  # fmt: skip


@pytest.fixture
def three(tmp_path: Path) -> Retrieval:
    qrels = [(1, "d1", 1), (1, "d3", 0), (2, "d2", 2.6), (2, "d3", 0.2)]
    texts = {"d1": "p1", "d2": "p2", "d3": "p3"}
    return Retrieval(**search_files(tmp_path, {1: "q1", 2: "q2"}, texts, qrels))


def test_a_retrieval_set(three: Retrieval) -> None:
    (queries, corpus, qrels), dropped = examples.retrieval(three)
    assert queries["id"].tolist() == ["1", "2"] and len(corpus) == 3 and not dropped
    assert qrels.values.tolist() == [["1", "d1", 1], ["1", "d3", 0], ["2", "d2", 2.6], ["2", "d3", 0.2]]
    pairs, passages, _ = judged(None, mode="asymmetric", retrieval=three)
    assert pairs[["query", "passage"]].values.tolist() == [["q1", "p1"], ["q2", "p2"], ["q2", "p3"]]
    assert passages.tolist() == ["p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("corpus", rows("id text", ("d", "a"), ("d", "b")), "line 2, column 'id': .*'d', as in line 1"),
        ("qrels", rows("query_id doc_id relevance", (9, "d1", 1)), "line 1: expected an id of .*queries.*'9'"),
        ("qrels", rows("query_id doc_id relevance", (1, "dx", 1)), "line 1: expected an id of .*corpus.*'dx'"),
        ("queries", rows("id text", (None, "a")), "line 1, column 'id': expected an id; found None"),
        ("qrels", rows("query_id doc", (1, "d1")), "no column 'doc_id'; found query_id, doc"),
        ("qrels", rows("query_id doc_id relevance", (1, "d1", "x")), "line 1, column 'relevance': expected a number"),
    ],
)
def test_a_wrong_retrieval_set(part: str, values: list[dict], message: str, three: Retrieval, tmp_path: Path) -> None:
    jsonl(tmp_path / f"{part}.jsonl", values)
    with pytest.raises(DataError, match=rf"{part}\.jsonl: {message}"):
        examples.retrieval(three)


def test_parts_of_one_file_share_no_pair_in_any_order() -> None:
    pairs = pd.DataFrame({"query": [f"t{i}" for i in range(400)], "passage": [f"t{399 - i}" for i in range(400)]})
    spelled = pairs.assign(query=pairs["passage"].str.upper(), passage=pairs["query"] + " ")
    parts = []
    for part in ((0.0, 0.3), (0.3, 1.0)):
        own = examples.within(pairs, part, "query", "passage")
        parts.append({frozenset(row) for row in own.values.tolist()})
        # A near copy goes with the pair.
        both = examples.within(pd.concat([pairs, spelled], ignore_index=True), part, "query", "passage")
        assert both.index.tolist() == [*own.index, *(own.index + 400)]
    assert not parts[0] & parts[1]  # (t1, t398) and (t398, t1) are in the table both
    assert len(parts[0]) + len(parts[1]) == 200 and 40 < len(parts[0]) < 80
    assert examples.within(pairs, None, "query", "passage") is pairs


def test_what_another_part_of_the_file_marks_is_marked(tmp_path: Path) -> None:
    values = [(f"q{i % 10}", f"p{i}") for i in range(60)]
    pairs = judged(jsonl(tmp_path / "t.jsonl", rows("query passage", *values)), part=(0.0, 0.5)).pairs
    assert 15 < len(pairs) < 45
    for a, marked in zip(pairs["query"], pairs["marked"], strict=True):
        assert marked == [passage for query, passage in values if query == a]


def test_rows_without_a_text_or_a_known_label_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    values = [("one", "two", "yes"), ("", "two", "yes"), ("three", None, "no"), ("four", "five", "-"), ("6", "7", "no")]
    file = jsonl(tmp_path / "t.jsonl", rows("query passage l", *values))
    pairs, _, dropped = judged(file, **LABELLED, incomplete="drop")
    assert pairs[["query", "passage", "label"]].values.tolist() == [["one", "two", True], ["6", "7", False]]
    assert dropped == {"rows without a text, label or score": 2, "rows labelled '-'": 1}


def test_passages_as_lists_of_objects_in_a_packed_file(tmp_path: Path) -> None:
    passages = [{"docid": "1", "text": "he"}, {"docid": "2", "text": "she"}, {"docid": "3", "text": " "}]
    plain = Path(jsonl(tmp_path / "t.jsonl", rows("query passage", ("who", passages), ("what", []))))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pairs, passages, _ = judged(f"{plain}.gz", mode="asymmetric", incomplete="drop")
    assert pairs[["query", "passage", "label"]].values.tolist() == [["who", "he", True], ["who", "she", True]]
    assert passages.tolist() == ["he", "she"]


def test_a_pool_holds_the_right_passages_and_some_others(tmp_path: Path) -> None:
    texts = {i: f"text {i}" for i in range(40)}
    paths = search_files(tmp_path, dict(list(texts.items())[:4]), {}, [(i, 10 + i, 1) for i in range(4)])
    jsonl(tmp_path / "corpus.jsonl", rows("pid text", *texts.items()))
    pairs, passages, _ = judged(None, mode="asymmetric", retrieval=paths | {"corpus_id": "pid"}, sample=2, pool=5)
    assert len(pairs) == 2 and len(passages) == 7 and set(pairs["passage"]) <= set(passages)


# ------------------------------------------------------------------------------------------------------------- teacher
def pairs_of(values: list[tuple[str, str, bool]], mode: str = "symmetric") -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=["query", "passage", "label"]).assign(dataset="s", mode=mode)
    marked = [[text for asked, text, yes in values if asked == a and yes] for a in frame["query"]]
    return frame.assign(target=frame["label"].astype(float), marked=marked)


def pool_of(texts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"dataset": "s", "text": texts})


def test_queries_without_wrong_candidates_get_some_from_the_pool_but_no_near_copy_of_a_right_one() -> None:
    pairs = pairs_of([(f"q{i}", f"p{i}", True) for i in range(60)] + [("q0", "p1", True), ("Q0 ", "p0", True)])
    # One more is right for each, by a pair that an evaluation set holds.
    pairs["marked"] = [[*marked, f"p{59 - int(marked[0][1:])}"] for marked in pairs["marked"]]
    copies = [spelling for i in range(60) for spelling in (f"P{i}", f"p{i} ", f"ｐ{i}")]
    groups = examples.teacher_groups(pairs, pool_of([*copies, "x", "y", "z"]), wrong=50, held=0.2, seed=1)
    rows = pd.concat(groups.values())
    assert set(rows["query"]) == set(pairs["query"])
    for query, group in rows.groupby("query"):
        b, label, target = (group[name].explode().tolist() for name in ("passages", "label", "target"))
        number = int(query.strip()[1:])
        wrong = {examples.normal_form(text) for text, yes in zip(b, label, strict=True) if not yes}
        assert {text for text, yes in zip(b, label, strict=True) if yes} == set(
            pairs["passage"][pairs["query"] == query]
        )
        assert not wrong & {f"p{number}", f"p{59 - number}"} and len(wrong) == label.count(False) == 50
        assert target == [float(yes) for yes in label]
    forms = [set(map(examples.normal_form, frame["query"])) for frame in groups.values()]
    assert not forms[0] & forms[1]  # both spellings of q0 are in one part


def test_long_groups_are_cut_without_losing_or_doubling_a_candidate() -> None:
    values = [(f"q{i}", f"p{i}-{j}", j < 5) for i, j in product(range(30), range(19))]
    whole = pd.concat(examples.teacher_groups(pairs_of(values), pool_of(["x"]), 2, 0.3, 1).values())
    assert (whole["passages"].str.len() <= examples.GROUP).all()
    candidates = [
        (row.query, text, yes) for row in whole.itertuples() for text, yes in zip(row.passages, row.label, strict=True)
    ]
    assert sorted(candidates) == sorted(values)
    # Five right and fourteen wrong ones over three pieces: each piece has both.
    assert all(len(set(label)) == 2 for label in whole["label"])


def test_a_teacher_cannot_be_judged_by_one_kind_of_pair() -> None:
    with pytest.raises(DataError, match="the symmetric training sets leave the teacher's dev part without"):
        examples.teacher_groups(pairs_of([("q", "p", True)]), pool_of(["x"]), 2, 0.05, 1)


# --------------------------------------------------------------------------------------------------------------- leaks
def test_what_an_evaluation_set_holds_in_any_spelling_leaves_training() -> None:
    symmetric = pairs_of([("a", "b", True), ("c", "d", True), ("a", "d", True)])
    pairs = pd.concat([symmetric, pairs_of([("asked", "x", True), ("y", "x", True)], "asymmetric")])
    both = rows("query passage phenomenon", ("B ", "\uff21", ""), ("d", "e", "own"))
    queries = rows("text phenomenon", ("Asked\u200b?", ""), ("new", ""))
    tasks = {"test": {"t": {"pairs": pd.DataFrame(both)}, "r": {"queries": pd.DataFrame(queries)}}}
    held = [Held.of(frames) for frames in tasks["test"].values()]
    left = examples.without(pairs, held[0] | held[1])
    assert left[["query", "passage"]].values.tolist() == [
        ["c", "d"],
        ["a", "d"],
        ["y", "x"],
    ]  # (a, b) is there as (b, a)
    # Up to the order of words and punctuation too; a text of punctuation alone is itself.
    close = pairs_of([("!", "b a", True), ("?", "a b", True), ("!", "b c", True)])
    tested = pd.DataFrame(rows("query passage", ("a, b!", "!")))
    assert examples.without(close, Held.of({"pairs": tested}))["query"].tolist() == ["?", "!"]
    marked = examples.with_familiarity(tasks, examples.seen(left, {"s": pd.Series(["b"])}))["test"]
    assert marked["t"]["pairs"]["phenomenon"].tolist() == [examples.BOTH, "own"]
    assert marked["r"]["queries"]["phenomenon"].tolist() == [examples.NEW, examples.NEW]


def test_a_dev_set_is_without_what_any_test_set_holds_and_samples_hold_what_their_file_does(tmp_path: Path) -> None:
    def file(name: str, *texts: str) -> str:
        lines = [{"sentence1": a, "sentence2": b, "score": i / 9} for i, (a, b) in enumerate(map(tuple, texts))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / f"{name}.jsonl")

    shared = {"type": "sts", "group": "sts", "sample": 2}
    test, dev = file("test", "ab", "cd", "ef", "gh"), file("dev", "ij", "BA", "kl", "xh")
    sets = {"one": shared | {"dev": dev}, "two": shared | {"test": test}}
    tasks, dropped, held = build.files_tasks(FilesSettings(tasks=sets))
    pairs = tasks["dev"]["one"]["pairs"]
    assert set(pairs["query"]) < {"i", "k", "x"} and len(pairs) == 2 == len(tasks["test"]["two"]["pairs"])
    assert dropped == {"one/dev": {examples.IN_TEST: 1}, "two/test": {}}
    whole = {"ab", "cd", "ef", "gh", "ij", "kl", "xh"}
    assert {"".join(sorted(pair)) for pair in held.pairs} == {"".join(sorted(pair)) for pair in whole}
    with pytest.raises(DataError, match="all 4 pairs of this dev set are in a test set; give it other rows"):
        build.files_tasks(FilesSettings(tasks={"one": shared | {"dev": test, "test": test}}))


# ------------------------------------------------------------------------------------------------------------ the stage
def own(folder: Path, **changes: object) -> dict:
    """Settings over files made here: pairs with labels, graded pairs, a retrieval set."""
    rng = np.random.default_rng(3)
    nouns = [f"{look} {thing}" for look in ("red", "old", "new", "big") for thing in ("house", "street", "yard", "bay")]
    searches = {}
    for name, count in (("train", 90), ("dev", 30), ("test", 30)):
        values = []
        for i in range(count):
            a, b = rng.choice(nouns, 2)
            second = f"{a} {name} {i}" if i % 3 else f"{b} {name}"
            values.append((f"{a} near {b} {name} {i}", second, int(i % 3 > 0), float(i % 5)))
        jsonl(folder / f"{name}.jsonl", rows("s1 s2 l score", *values))
        (folder / name).mkdir()
        queries = {i: f"where is {nouns[i]} {name}?" for i in range(16)}
        corpus = {f"d{i}": f"{nouns[i % 16]} lies here {i}" for i in range(30)}
        searches[name] = search_files(folder / name, queries, corpus, [(i, f"d{i}", 1) for i in range(16)])
    train = {"file": str(folder / "train.jsonl"), "query": "s1", "passage": "s2"}
    pairs = {"query": "s1", "passage": "s2"} | {split: str(folder / f"{split}.jsonl") for split in ("dev", "test")}
    files_settings = {
        "train": {
            "nli": train | {"label": "l", "yes": [1]},
            "graded": train | {"score": "score", "scores": [0.0, 4.0], "yes_from": 3.0},
            "find": {"mode": "asymmetric", "retrieval": searches.pop("train")},
        },
        "tasks": {
            "entail": {"type": "pair_classification", "group": "nli", "label": "l", **pairs},
            "related": {"type": "sts", "group": "sts", "scores": [0.0, 4.0], "sample": 20, **pairs},
            "lookup": {"type": "retrieval", "group": "ir", "title": "Look-up", **searches},
        },
        "teacher_dev": 0.2,
    }
    # Models that are elsewhere: none can be made of files.
    models = {name: {"source": f"org/{name}"} for name in ("teacher", "decoder", "encoder")}
    settings = tiny_settings(folder / "results", data={"source": "files", "files": files_settings})
    return merged(settings | {"models": models}, changes)


def test_the_data_stage_over_files(tmp_path: Path) -> None:
    config = load([], own(tmp_path))
    build.run_texts(config)
    build.run(config)
    paths = Paths.of(config)
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    # By hand: two of three rows say yes; two of five scores are 3 or 4; a passage for each of 16 queries.
    assert train.groupby("dataset").size().to_dict() == {"nli": 60, "graded": 36, "find": 16}
    assert (pool["dataset"] == "find").sum() == 30
    texts = pd.read_parquet(paths.pretraining)["text"]
    assert texts.is_unique and set(train["query"]) | set(pool["text"]) <= set(texts)
    tasks = {name: evaluation_tasks.read(paths.task(name), "test") for name in evaluation_tasks.names(paths.tasks)}
    titles = {"entail": "entail", "related": "related (sample of 20)", "lookup": "Look-up"}
    assert {name: task.title for name, task in tasks.items()} == titles
    assert len(tasks["related"].pairs) == 20 and tasks["related"].max_score == 4.0
    assert tasks["entail"].pairs["label"].sum() == 20
    assert set(tasks["lookup"].queries["phenomenon"]) == {examples.NEW}
    assert read_json(paths.leaks)["removed_from"] == "training"
    first = (paths.task("related") / "test.parquet").read_bytes()
    build.run(config)
    assert (paths.task("related") / "test.parquet").read_bytes() == first


def asked_in(folder: Path, count: int) -> dict:
    """Changes by which the test split of `lookup` asks the first queries of the training set `find`."""
    parts = {part: str(folder / "train" / f"{part}.jsonl") for part in ("queries", "corpus", "qrels")}
    for part in ("queries", "qrels"):
        lines = Path(parts[part]).read_text(encoding="utf-8").splitlines()[:count]
        parts[part] = jsonl(folder / f"some_{part}.jsonl", map(json.loads, lines))
    return {"data": {"files": {"tasks": {"lookup": {"test": parts}}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda folder: asked_in(folder, 16),
         r"train\.find: evaluation sets hold all 16 of its right pairs, so that none is left to train on; give"),
        (lambda folder: asked_in(folder, 14),
         r"train\.find: 2 right pairs \(evaluation sets hold 14 more\) do not fill a pack; .* training\.pack \(4\)"),
        (lambda folder: {"training": {"pack": 20, "batch_size": 20}},
         r"train\.find: 16 right pairs do not fill a pack; expected at least training\.pack \(20\)"),
        (lambda folder: {"negatives": {"per_query": 30}},
         r"'find': 30 texts are too few for 30 negatives of 'where is red house train\?'; .*negatives\.per_query"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_trained_on_is_refused_at_once(
    changes: Callable[[Path], dict], message: str, tmp_path: Path
) -> None:
    config = load([], merged(own(tmp_path), changes(tmp_path)))
    for stage in (build.run, *(() if "negatives" in message else (build.run_texts,))):  # unlabelled text needs no pool
        with pytest.raises(DataError, match=message):
            stage(config)
    [error] = [one.state for one in doctor.of_config(config) if one.level == "error" and one.subject != "hub"]
    assert re.search(message, error)


def test_what_is_contradicted_left_out_or_taken_by_evaluation_sets_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A right passage that an evaluation set has for a query of training is removed from training, and no negative of
    that query."""
    settings = own(tmp_path)
    sets = settings["data"]["files"]
    for one in (sets["train"]["nli"], *sets["tasks"].values()):
        one["incomplete"] = "drop"
    first = json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()[1])
    near = {"s1": "red house near old street train 0", "l": 1, "score": 4.0}
    more = [near | {"s2": f"it is {word}"} for word in ("red", "old", "big")]
    more += [first | {"l": 1 - first["l"]}, *rows("s1 s2 l score", ("a", "b", "-", 1))]
    jsonl(tmp_path / "train.jsonl", more, "a")
    wrong = rows("s1 s2 l score", ("a", "", 1, 1), ("c", "d", "-", 1))
    jsonl(tmp_path / "test.jsonl", [near | {"s2": "IT IS RED "}, *wrong], "a")
    jsonl(tmp_path / "test" / "queries.jsonl", rows("id text", ("more", " ")), "a")
    config = load([], settings)
    caplog.set_level("WARNING")
    build.run(config)
    paths = Paths.of(config)
    train = pd.read_parquet(paths.train_pairs)
    (marked,) = train.loc[(train["dataset"] == "nli") & (train["positive"] == "it is old"), "marked"]
    assert set(marked) == {"it is red", "it is old", "it is big"}
    assert "it is red" not in set(train["positive"]) and "it is red" in set(pd.read_parquet(paths.pool)["text"])
    card, page = read_json(paths.card_json), paths.card_md.read_text(encoding="utf-8")
    told = ("contradictions", "removed", "dropped")
    assert {row["dataset"]: tuple(row.get(name) for name in told) for row in card["training"]} == {
        "nli": (1, 1, {"rows labelled '-'": 1}), "graded": (0, 1, None), "find": (0, 0, None),
    }  # fmt: skip
    assert {(row["task"], row["split"]): row["dropped"] for row in card["evaluation"] if "dropped" in row} == {
        ("entail", "test"): {"rows without a text, label or score": 1, "rows labelled '-'": 1},
        ("related", "test"): {"rows without a text, label or score": 1},
        ("lookup", "test"): {"queries without an id or a text": 1},
    }
    assert "Pairs that a set judges right and wrong, of which the first row counts: 1 of nli." in page
    assert "removed from training: 1 of nli, 1 of graded." in page
    assert "Left out of nli: 1 rows labelled '-'." in page and "Left out: 1 queries without an id or a text." in page
    assert "nli: 1 pairs are judged right and wrong by its rows; the first row counts" in caplog.text
    assert "nli: 1 pairs are removed, as evaluation sets hold them" in caplog.text
    assert "lookup/test: left out: 1 queries without an id or a text" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"nli": {"label": None}}}, r"train\.nli: expected label \(a column\) together with yes"),
        ({"train": {"nli": {"retrieval": {"queries": "a", "corpus": "b", "qrels": "c"}}}}, "file .* or retrieval"),
        ({"train": {"graded": {"yes_from": None}}}, "score .* together with scores"),
        ({"train": {"nli": {"part": [0.5, 0.2]}}}, r"train\.nli\.part: expected \[from, to\]"),
        ({"train": {"nli": {"lable": "l"}}}, r"train\.nli\.lable: unknown key"),
        ({"train": {"nli": {"yes": [0]}}}, "labels that mean yes or no, not both"),
        ({"tasks": {"entail": {"yes": [0]}}}, "labels that mean yes or no, not both"),
        ({"tasks": {"entail": {"test": None}}}, r"tasks\.entail: no test split, which evaluation\.split asks for"),
        ({"tasks": {name: {"dev": None} for name in ("entail", "related", "lookup")}},
         r"tasks: no set has a dev split, which training\.dev_every asks for"),
        ({"train": {"find": {"part": [0.0, 0.5]}}}, "label, score, negatives and part with a file of pairs only"),
        ({"tasks": {"lookup": {"test_part": [0.0, 0.5]}}}, "dev_part and test_part with files of pairs only"),
        ({"tasks": {"lookup": {"test": "t.jsonl"}}}, "for retrieval a section of queries, corpus and qrels"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused_before_anything_runs(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data\.files\..*{message}"):
        load([], own(tmp_path, data={"files": changes}))
    with pytest.raises(ConfigError, match=r"data: expected files\.train and files\.tasks"):
        load([], {"data": {"source": "files"}, "methods": {"d2llm": {}}})


def test_paths_are_seen_from_the_folder(tmp_path: Path) -> None:
    settings = load([], own(tmp_path)).data.files.model_copy(update={"folder": "../x"})
    assert settings.located("a/b.csv") == "../x/a/b.csv" and settings.located("/a.csv") == "/a.csv"


def test_a_set_of_another_kind_takes_the_place_of_one_below_and_null_leaves_it_out() -> None:
    import mteb

    config = load([ROOT / "config/zh.yaml", ROOT / "config/zh_hub.yaml"])
    files, below = config.data.files, load([ROOT / "config/zh.yaml"]).data.files
    assert not files.paths() and set(below.train) - set(files.train) == {"snli_zh_test", "squad_zh"}
    assert {
        name: mteb.get_task(task.mteb).metadata.type for name, task in files.tasks.items()
    }.keys() == below.tasks.keys()
    pinned = {mteb.get_task(task.mteb).metadata.dataset["revision"] for task in files.tasks.values()}
    of_cmteb = {
        table.revision for table in files.downloads().values() if getattr(table, "repo", "").startswith("C-MTEB")
    }
    assert len(of_cmteb & pinned) == 3  # of the sets that mteb takes from there, the training splits at its commits
    laid = merged({"a": {"file": {"path": "x.csv", "quotes": "text"}}}, {"a": {"file": {"repo": "o/n"}}})
    assert laid == {"a": {"file": {"repo": "o/n"}}}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_tier_of_the_repository_is_valid(name: str) -> None:
    file = ROOT / "config" / name
    config = load([BELOW[file.stem], file] if file.stem in BELOW else [file])
    assert config.runs() and len({len(config.grid(method)) for method in config.tuning.grids} | {0}) <= 2

"""The data stage: every file of the contract, the leak check, splits apart from each other, the same bytes twice."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_world import split_of
from world_reader import answers, composition, read, text_follows

from d2llm.config.data import DataSettings, WorldSettings
from d2llm.config.schema import Config
from d2llm.data import build, leaks
from d2llm.data.world import generate as world
from d2llm.evaluation import tasks
from d2llm.run.artifacts import read_json
from d2llm.run.paths import Paths

SIZES = {
    "pretraining_texts": 120, "teacher_symmetric": 40, "teacher_asymmetric": 30, "nli_premises": 40, "sts_pairs": 60,
    "queries": 24, "dev_pairs": 30, "dev_queries": 12, "test_pairs": 50, "test_queries": 20,
}  # fmt: skip
KINDS = {name: kind for name, (_, kind, _, _) in build.TASKS.items()}
PAIR_TASKS = tuple(name for name, kind in KINDS.items() if kind != "retrieval")
SEARCH_TASKS = tuple(name for name, kind in KINDS.items() if kind == "retrieval")
TRAINED_SEARCHES = ("ir_question", "ir_keyword", "ir_claim")
SEARCH_PARTS = ("corpus", "queries", "qrels")
ABOUT = {"leaks.json", "card.json", "card.md"}


def build_all(folder: Path, **changes: int) -> Paths:
    data = DataSettings(world=WorldSettings(**(SIZES | changes)))
    config = Config(results=str(folder), methods={"bge": {}}, data=data)
    build.run_texts(config)
    build.run(config)
    return Paths.of(config)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A tiny build. Not to be changed."""
    return build_all(tmp_path_factory.mktemp("build"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ------------------------------------------------------------------------------------------------------------ contract
def test_every_file_and_nothing_else(paths: Paths) -> None:
    tables = ("train", "pool", "pretraining", "teacher_train", "teacher_dev")
    names = [*(f"{name}.parquet" for name in tables), *ABOUT]
    names += [f"tasks/{name}/{part}" for name in PAIR_TASKS for part in ("task.json", "dev.parquet", "test.parquet")]
    names += [f"tasks/{name}/task.json" for name in SEARCH_TASKS]
    parts = [f"{split}/{part}" for split in ("dev", "test") for part in SEARCH_PARTS]
    names += [f"tasks/{name}/{part}.parquet" for name in SEARCH_TASKS for part in parts]
    assert sorted(digests(paths.data)) == sorted(names)


def test_training_pairs_and_their_pool(paths: Paths) -> None:
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    assert list(train.columns) == ["qid", "query", "positive", "dataset", "mode", "marked"]
    assert list(pool.columns) == ["dataset", "text"]
    assert train["qid"].is_unique
    modes = dict.fromkeys(("nli", "sts_graded", "question_match", "role_swap"), "symmetric")
    modes |= dict.fromkeys(TRAINED_SEARCHES, "asymmetric")
    assert set(zip(train["dataset"], train["mode"], strict=True)) == set(modes.items())
    assert not train.duplicated(["dataset", "query", "positive"]).any()
    assert not pool.duplicated().any()
    assert (train.loc[train["mode"] == "asymmetric", "dataset"].value_counts() == SIZES["queries"]).all()
    for query, positive, name in zip(train["query"], train["positive"], train["dataset"], strict=True):
        if name == "nli":
            assert text_follows(read(query), read(positive))
        elif name == "question_match":
            assert read(query) == read(positive)


def test_marked_are_all_right_texts_of_a_query(paths: Paths) -> None:
    """Not only the positive of the row: a marked text must never become a negative of the query."""
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    several = 0
    for name, part in train.groupby("dataset"):
        texts = pool.loc[pool["dataset"] == name, "text"]
        for row in part.itertuples():
            assert row.positive in set(row.marked) <= set(texts)
            several += len(row.marked) > 1
            if name in ("ir_question", "ir_claim"):  # the judgements of a search are complete
                (query,) = read(row.query)
                assert set(row.marked) == {text for text in texts if answers(query, read(text))}
            else:
                assert set(part.loc[part["query"] == row.query, "positive"]) <= set(row.marked)
    assert several > 20


def test_evaluation_sets_and_other_files_are_of_the_asked_sizes(paths: Paths) -> None:
    """What a set must hold is checked where it is read."""
    for name, split in product(KINDS, ("dev", "test")):
        task = tasks.read(paths.task(name), split)
        title, kind, group, _ = build.TASKS[name]
        assert (task.title, task.type, task.group) == (title, kind, group)
        if kind == "retrieval":
            assert len(task.queries) == SIZES[f"{split}_queries"] and task.queries["phenomenon"].all()
            assert set(task.qrels["query_id"]) == set(task.queries["id"]) and (task.qrels["relevance"] >= 1).all()
        else:
            assert len(task.pairs) == SIZES[f"{split}_pairs"]
            assert (task.pairs["query"] != task.pairs["passage"]).all()
            assert task.max_score == (5 if name == "sts_graded" else 1)
            assert name == "sts_graded" or set(task.pairs[task.target]) == {0, 1}
    text = pd.read_parquet(paths.pretraining)
    assert list(text.columns) == ["text", "paraphrase", "distractor", "next_text", "slots", "ask", "negated"]
    assert len(text) == SIZES["pretraining_texts"]
    for path, searches in ((paths.teacher_train, 30), (paths.teacher_dev, 12)):
        modes = pd.read_parquet(path)["mode"].value_counts()
        assert set(modes.index) == {"symmetric", "asymmetric"} and modes["asymmetric"] == searches


def test_the_card_tells_what_is_there(paths: Paths) -> None:
    card = read_json(paths.card_json)
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    evaluation = {(row["task"], row["split"]): row for row in card["evaluation"]}
    assert {row["dataset"]: (row["pairs"], row["queries"], row["pool"]) for row in card["training"]} == {
        name: (len(part), part["query"].nunique(), int((pool["dataset"] == name).sum()))
        for name, part in train.groupby("dataset")
    }
    frame, row = pd.read_parquet(paths.task("nli_shifted") / "test.parquet"), evaluation["nli_shifted", "test"]
    assert row["n"] == 50 and row["mean_label"] == pytest.approx(frame["label"].mean(), abs=1e-3)
    counts = {name: phenomenon["n"] for name, phenomenon in row["phenomena"].items()}
    assert counts == frame["phenomenon"].value_counts().to_dict()
    rows = frame[["query", "passage", "label", "phenomenon"]].values.tolist()
    assert all([*phenomenon["example"], name] in rows for name, phenomenon in row["phenomena"].items())
    qrels = pd.read_parquet(paths.task("ir_keyword") / "dev" / "qrels.parquet")
    assert evaluation["ir_keyword", "dev"]["relevant_per_query"] == pytest.approx(len(qrels) / 12, abs=0.01)
    teacher = pd.read_parquet(paths.teacher_train)
    labels = np.concatenate(teacher.loc[teacher["mode"] == "symmetric", "label"].to_list())
    (row,) = [row for row in card["teacher"] if (row["split"], row["mode"]) == ("train", "symmetric")]
    assert (row["pairs"], row["share_yes"]) == (len(labels), pytest.approx(labels.mean()))
    assert card["leaks"] == read_json(paths.leaks)
    assert f"{frame['query'].iloc[0]} / {frame['passage'].iloc[0]}" in paths.card_md.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- splits
def columns_of(path: Path, *names: str) -> list[str]:
    return pd.read_parquet(path)[list(names)].to_numpy().ravel().tolist()


def test_every_composition_is_one_of_its_split(paths: Paths) -> None:
    texts = {"train": columns_of(paths.train_pairs, "query", "positive") + columns_of(paths.pool, "text")}
    texts["train"] += columns_of(paths.pretraining, "text", "paraphrase", "distractor", "next_text")
    for split in ("dev", "test"):
        files = [paths.task(name) / f"{split}.parquet" for name in PAIR_TASKS]
        texts[split] = [text for file in files for text in columns_of(file, "query", "passage")]
        parts = [
            paths.task(name) / split / f"{part}.parquet" for name in SEARCH_TASKS for part in ("corpus", "queries")
        ]
        texts[split] += [text for part in parts for text in columns_of(part, "text")]
    for split, path in (("train", paths.teacher_train), ("dev", paths.teacher_dev)):
        texts[split] += columns_of(path, "query") + [text for group in columns_of(path, "passages") for text in group]
    for split, part in texts.items():
        # Search words say no roles; what is general or asked for has no composition.
        readings = {one for text in set(part) if " " not in text for one in read(text)}
        composed = [one for one in readings if composition(one) is not None]
        assert len(composed) > 100 and set(map(split_of, composed)) == {split}


# --------------------------------------------------------------------------------------------------------------- leaks
def test_a_planted_pair_is_removed_and_a_near_duplicate_counted() -> None:
    train = pd.DataFrame({"query": ["甲乙", "丙丁"], "positive": ["乙甲乙", "丁丙丁"]})
    pool = pd.DataFrame({"text": ["戊己"]})
    teacher = pd.DataFrame({"query": ["问"], "passages": [["答", "另答"]]})
    unlabelled = pd.DataFrame({"text": ["庚辛"], "paraphrase": ["释"], "distractor": ["扰"], "next_text": ["续"]})
    seen = leaks.seen_texts(train, pool, teacher, unlabelled)
    assert seen.texts == {"甲乙", "丙丁", "乙甲乙", "丁丙丁", "戊己", "问", "答", "另答", "庚辛", "释", "扰", "续"}
    pairs = pd.DataFrame(
        [("a", "乙甲\u200b乙 ", "甲乙"),  # a near copy of the training pair, turned round
         ("b", "甲乙", "戊己"),  # both texts seen, never together
         ("c", "甲乙", "新的"),  # one text seen
         ("d", "乙，甲", "己戊"),  # both the same characters in another order
         ("e", "别的", "另外"),
         ("f", "问", "另答")], columns=["id", "query", "passage"],
    )  # fmt: skip
    search = {
        "queries": pd.DataFrame({"id": ["q1", "q2", "q3"], "text": ["丙丁", " 丙丁", "问题"]}),
        "corpus": pd.DataFrame({"id": ["d1", "d2", "d3"], "text": ["丁丙\u200b丁", "新文", "辛庚"]}),
        "qrels": pd.DataFrame(  # what q2 has of training is judged wrong for it
            [("q1", "d1", 1), ("q1", "d2", 1), ("q2", "d2", 1), ("q2", "d1", 0), ("q3", "d1", 1)],
            columns=["query_id", "doc_id", "relevance"],
        ),
    }
    report, kept = leaks.remove({"test": {"pairs": {"pairs": pairs}, "search": search}}, seen)
    assert kept["test"]["pairs"]["pairs"]["id"].tolist() == ["c", "d", "e"]
    assert report["tasks"]["pairs/test"] == {
        "examples": 6, "same_pair": 2, "both_texts_seen": 3, "one_text_seen": 1, "near_duplicates": 4, "removed": 3,
    }  # fmt: skip
    assert kept["test"]["search"]["queries"]["id"].tolist() == ["q2", "q3"]
    assert kept["test"]["search"]["qrels"]["query_id"].tolist() == ["q2", "q2", "q3"]
    assert len(kept["test"]["search"]["corpus"]) == 3
    assert report["tasks"]["search/test"] == {
        "examples": 3, "same_pair": 1, "query_seen": 2, "passages_seen": 1, "near_duplicates": 2, "removed": 1,
    }  # fmt: skip
    assert report["removed"] == 4


def test_the_stage_removes_what_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of the training set, turned round in the test set, is all that it loses."""
    honest = world.role_swap

    def leaking(rng: np.random.Generator, split: str, n: int, *partners: int) -> pd.DataFrame:
        frame = honest(rng, split, n, *partners)
        if split == "test":  # the first pair of the training set, as the stage draws it
            settings = WorldSettings(**SIZES)
            known = honest(build._rng(settings, "train role_swap"), "train", settings.sts_pairs, build.PARTNERS)
            frame.loc[3, ["query", "passage"]] = (
                known.loc[known["label"], ["query", "passage"]].iloc[0].to_numpy()[::-1]
            )
        return frame

    monkeypatch.setattr(world, "role_swap", leaking)
    paths = build_all(tmp_path)
    frame, report = pd.read_parquet(paths.task("role_swap") / "test.parquet"), read_json(paths.leaks)
    row = report["tasks"]["role_swap/test"]
    assert (row["examples"], row["same_pair"], row["removed"], report["removed"]) == (50, 1, 1, 1)
    assert "role_swap-test-3" not in set(frame["id"]) and len(frame) == 49


# ----------------------------------------------------------------------------------------------------- same every time
def changed(paths: Paths, other: Path, **changes: int) -> set[str]:
    """The files that are other ones after changes."""
    before, after = digests(paths.data), digests(build_all(other, **changes).data)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_twice_the_same_bytes_and_of_other_seeds_others(paths: Paths, tmp_path: Path) -> None:
    assert changed(paths, tmp_path) == set()
    same = digests(paths.data).keys() - changed(paths, tmp_path / "other", seed=2, test_seed=2)
    assert {Path(name).name for name in same} <= {"task.json", "leaks.json"}


def test_new_or_larger_test_sets_leave_everything_else_alone(paths: Paths, tmp_path: Path) -> None:
    others = changed(paths, tmp_path / "new", test_seed=7)
    assert {"test.parquet", "queries.parquet", "corpus.parquet"} <= {Path(name).name for name in others}
    assert all("test" in name or name in ABOUT for name in others)
    others = changed(paths, tmp_path / "larger", test_queries=21) - ABOUT
    parts = {f"tasks/{name}/test/{part}.parquet" for name in SEARCH_TASKS for part in SEARCH_PARTS}
    assert {f"tasks/{name}/test/corpus.parquet" for name in SEARCH_TASKS} <= others <= parts


def test_every_purpose_draws_numbers_of_its_own() -> None:
    names = ["train nli", "dev nli_indomain", "test nli_indomain", "test nli_shifted", "pretraining", "train question"]
    assert len({build._rng(WorldSettings(), name).integers(0, 2**62) for name in names}) == len(names)

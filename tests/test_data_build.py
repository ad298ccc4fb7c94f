"""The data stage: every file of the contract, the leak check, splits apart from each other, the same bytes twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import world_reader
from test_world import row_of

from d2llm.config.data import DataSettings, WorldSettings
from d2llm.config.schema import Config
from d2llm.data import build, leaks
from d2llm.data.world import events as ev
from d2llm.data.world import generate as world
from d2llm.run.paths import Paths

SIZES = {
    "pretraining_texts": 120, "teacher_symmetric": 40, "teacher_asymmetric": 30, "nli_premises": 40, "sts_pairs": 60, "queries": 24,
    "dev_pairs": 30, "dev_queries": 12, "test_pairs": 50, "test_queries": 20,
}  # fmt: skip
# Pairs' tasks with the column of what is to be told, and retrieval tasks: whatever the world has.
PAIR_TASKS = {name: "score" if kind == "sts" else "label" for name, (_, kind, _, _) in build.TASKS.items() if kind != "retrieval"}  # fmt: skip
SEARCH_TASKS = tuple(name for name in build.TASKS if name not in PAIR_TASKS)
TRAINED_SEARCHES = ("ir_question", "ir_keyword", "ir_claim")


def configured(folder: Path, **changes: int) -> Config:
    return Config(results=str(folder), methods={"bge": {}}, data=DataSettings(world=WorldSettings(**(SIZES | changes))))


def made(folder: Path, **changes: int) -> Paths:
    config = configured(folder, **changes)
    build.run_texts(config)
    build.run(config)
    return Paths.of(config)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A tiny build. Not to be changed."""
    return made(tmp_path_factory.mktemp("build"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ------------------------------------------------------------------------------------------------------------ contract
def test_every_file_and_nothing_else(paths: Paths) -> None:
    names = [
        "train.parquet",
        "pool.parquet",
        "pretraining.parquet",
        "teacher_train.parquet",
        "teacher_dev.parquet",
        "leaks.json",
        "card.json",
        "card.md",
    ]
    names += [f"tasks/{name}/{part}" for name in PAIR_TASKS for part in ("task.json", "dev.parquet", "test.parquet")]
    names += [f"tasks/{name}/task.json" for name in SEARCH_TASKS]
    names += [
        f"tasks/{name}/{split}/{part}.parquet"
        for name in SEARCH_TASKS
        for split in ("dev", "test")
        for part in ("corpus", "queries", "qrels")
    ]
    assert sorted(digests(paths.data)) == sorted(names)


def test_the_world_has_the_reference_runs_tasks() -> None:
    pairs = {"nli_indomain": "label", "nli_shifted": "label", "sts_graded": "score", "question_match": "score", "role_swap": "score"}  # fmt: skip
    assert pairs.items() <= PAIR_TASKS.items()
    assert set(TRAINED_SEARCHES) <= set(SEARCH_TASKS)


def test_training_pairs_and_their_pool(paths: Paths) -> None:
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    assert list(train.columns) == ["qid", "query", "positive", "dataset", "mode", "marked"]
    assert list(pool.columns) == ["dataset", "text"]
    assert train["qid"].is_unique
    modes = train.groupby("dataset")["mode"].unique().map(list).to_dict()
    symmetric = {name: ["symmetric"] for name in ("nli", "sts_graded", "question_match", "role_swap")}
    assert modes == symmetric | {name: ["asymmetric"] for name in TRAINED_SEARCHES}
    assert not train.duplicated(["dataset", "query", "positive"]).any()
    assert not pool.duplicated().any()
    for name, part in train.groupby("dataset"):
        assert set(part["positive"]) <= set(pool.loc[pool["dataset"] == name, "text"])
    assert (train.loc[train["mode"] == "asymmetric", "dataset"].value_counts() == SIZES["queries"]).all()
    for query, positive, name in zip(train["query"], train["positive"], train["dataset"], strict=True):
        if name == "nli":
            assert world_reader.text_follows(world_reader.read(query), world_reader.read(positive))
        elif name == "question_match":
            assert world_reader.read(query) == world_reader.read(positive)
        elif name in ("ir_question", "ir_claim"):
            assert world_reader.answers(world_reader.read(query)[0], world_reader.read(positive))


def test_marked_are_all_right_texts_of_a_query(paths: Paths) -> None:
    """Not only the positive of the row: a marked text must never become a negative of the query."""
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    several = 0
    for name, part in train.groupby("dataset"):
        texts = pool.loc[pool["dataset"] == name, "text"]
        for made in part.itertuples():
            assert made.positive in set(made.marked) <= set(texts)
            several += len(made.marked) > 1
            if name in ("ir_question", "ir_claim"):  # the judgements of a search are complete
                (query,) = world_reader.read(made.query)
                assert set(made.marked) == {
                    text for text in texts if world_reader.answers(query, world_reader.read(text))
                }
            else:
                assert set(part.loc[part["query"] == made.query, "positive"]) <= set(made.marked)
    assert several > 20


def test_tasks_in_the_layout_of_the_contract(paths: Paths) -> None:
    ids: list[str] = []
    for name in (*PAIR_TASKS, *SEARCH_TASKS):
        about = json.loads((paths.task(name) / "task.json").read_text(encoding="utf-8"))
        _, kind, group, _ = build.TASKS[name]
        assert (about["name"], about["type"], about["group"]) == (name, kind, group)
        assert kind == {"nli": "pair_classification", "sts": "sts", "ir": "retrieval"}[group]
        assert about["title"]
        assert about["description"]
        if group == "sts":
            assert (about["min_score"], about["max_score"]) == (0, 5 if name == "sts_graded" else 1)
        for split in ("dev", "test"):
            if name in SEARCH_TASKS:
                folder = paths.task(name) / split
                corpus, queries, qrels = (
                    pd.read_parquet(folder / f"{key}.parquet") for key in ("corpus", "queries", "qrels")
                )
                assert list(corpus.columns) == ["id", "text"]
                assert list(queries.columns) == ["id", "text", "phenomenon"]
                assert list(qrels.columns) == ["query_id", "doc_id", "relevance"]
                assert len(queries) == SIZES[f"{split}_queries"]
                assert set(qrels["query_id"]) == set(queries["id"])
                assert set(qrels["doc_id"]) <= set(corpus["id"])
                assert not qrels.duplicated(["query_id", "doc_id"]).any()
                assert (qrels["relevance"] >= 1).all()
                ids += [*corpus["id"], *queries["id"]]
            else:
                frame = pd.read_parquet(paths.task(name) / f"{split}.parquet")
                value = PAIR_TASKS[name]
                assert sorted(frame.columns) == sorted(["id", "sentence1", "sentence2", value, "phenomenon"])
                assert len(frame) == SIZES[f"{split}_pairs"]
                assert frame[value].dtype == ("int64" if value == "label" else "float64")
                assert set(frame[value]) <= {0, 1} or name == "sts_graded"
                assert frame[value].nunique() > 1
                assert (frame["sentence1"] != frame["sentence2"]).all()
                ids += [*frame["id"]]
    assert len(ids) == len(set(ids))


def test_unlabelled_text_and_the_teachers_groups(paths: Paths) -> None:
    text = pd.read_parquet(paths.pretraining)
    assert list(text.columns) == ["text", "paraphrase", "distractor", "next_text", "slots", "ask", "negated"]
    assert len(text) == SIZES["pretraining_texts"]
    for split, path in (("train", paths.teacher_train), ("dev", paths.teacher_dev)):
        frame = pd.read_parquet(path)
        assert list(frame.columns) == ["mode", "a", "b", "target", "label", "relations", "phenomenon"]
        assert set(frame["mode"]) == {"symmetric", "asymmetric"}
        assert len(frame[frame["mode"] == "asymmetric"]) == {"train": 30, "dev": 12}[split]


def test_the_card_tells_what_is_there(paths: Paths) -> None:
    card = json.loads(paths.card_json.read_text(encoding="utf-8"))
    train, pool = pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool)
    assert {row["dataset"]: (row["pairs"], row["queries"], row["pool"]) for row in card["training"]} == {
        name: (len(part), part["query"].nunique(), int((pool["dataset"] == name).sum()))
        for name, part in train.groupby("dataset")
    }
    longest = max(map(len, train.loc[train["dataset"] == "nli", "query"]))
    assert card["training"][0]["query_characters"]["longest"] == longest
    frame = pd.read_parquet(paths.task("nli_shifted") / "test.parquet")
    (row,) = [row for row in card["evaluation"] if (row["task"], row["split"]) == ("nli_shifted", "test")]
    assert row["n"] == 50
    assert row["mean_label"] == pytest.approx(frame["label"].mean(), abs=1e-3)
    assert {name: found["n"] for name, found in row["phenomena"].items()} == frame[
        "phenomenon"
    ].value_counts().to_dict()
    for name, found in row["phenomena"].items():
        one, two, label = found["example"]
        assert (
            (frame["sentence1"] == one)
            & (frame["sentence2"] == two)
            & (frame["label"] == label)
            & (frame["phenomenon"] == name)
        ).any()
    (row,) = [row for row in card["evaluation"] if (row["task"], row["split"]) == ("ir_keyword", "dev")]
    qrels = pd.read_parquet(paths.task("ir_keyword") / "dev" / "qrels.parquet")
    assert row["relevant_per_query"] == pytest.approx(len(qrels) / 12, abs=0.01)
    teacher = pd.read_parquet(paths.teacher_train)
    labels = np.concatenate(teacher.loc[teacher["mode"] == "symmetric", "label"].to_list())
    (row,) = [row for row in card["teacher"] if (row["split"], row["mode"]) == ("train", "symmetric")]
    assert (row["pairs"], row["share_yes"]) == (len(labels), pytest.approx(labels.mean()))
    assert card["leaks"] == json.loads(paths.leaks.read_text(encoding="utf-8"))
    text = paths.card_md.read_text(encoding="utf-8")
    for name in (*PAIR_TASKS, *SEARCH_TASKS):
        assert f"### {name}, test:" in text
    assert f"{frame['sentence1'].iloc[0]} / {frame['sentence2'].iloc[0]}" in text


# -------------------------------------------------------------------------------------------------------------- splits
def events_of(texts: list[str]) -> list[world_reader.Said]:
    """The events with a composition of their own; search words say no roles and are left out."""
    said = [one for text in set(texts) if " " not in text for one in world_reader.read(text)]
    return [one for one in said if world_reader.composition(one) is not None]


def test_no_composition_is_in_two_splits(paths: Paths) -> None:
    train = [
        *pd.read_parquet(paths.train_pairs)[["query", "positive"]].to_numpy().ravel(),
        *pd.read_parquet(paths.pool)["text"],
    ]
    train += [*pd.read_parquet(paths.pretraining)[["text", "paraphrase", "distractor", "next_text"]].to_numpy().ravel()]
    found = {"train": train, "dev": [], "test": []}
    for split, path in (("train", paths.teacher_train), ("dev", paths.teacher_dev)):
        frame = pd.read_parquet(path)
        found[split] += [*frame["a"], *(text for texts in frame["b"] for text in texts)]
    for split in ("dev", "test"):
        for name in PAIR_TASKS:
            found[split] += [
                *pd.read_parquet(paths.task(name) / f"{split}.parquet")[["sentence1", "sentence2"]].to_numpy().ravel()
            ]
        for name in SEARCH_TASKS:
            for part in ("corpus", "queries"):
                found[split] += [*pd.read_parquet(paths.task(name) / split / f"{part}.parquet")["text"]]
    said = {split: events_of(texts) for split, texts in found.items()}
    keys = {split: {world_reader.composition(one) for one in events} for split, events in said.items()}
    assert all(len(known) > 100 for known in keys.values())
    assert not keys["train"] & keys["dev"]
    assert not keys["train"] & keys["test"]
    assert not keys["dev"] & keys["test"]
    # In so small a build chance would hide a rare fault: every composition must also be one that its split may draw.
    for split, events in said.items():
        assert set(ev.split_of(np.stack([row_of(one) for one in events]))) == {split}


# --------------------------------------------------------------------------------------------------------------- leaks
def test_a_planted_pair_is_removed_and_a_near_duplicate_counted() -> None:
    train = pd.DataFrame({"query": ["甲乙", "丙丁"], "positive": ["乙甲乙", "丁丙丁"]})
    pool = pd.DataFrame({"text": ["戊己"]})
    teacher = pd.DataFrame({"a": ["问"], "b": [["答", "另答"]]})
    unlabelled = pd.DataFrame({"text": ["庚辛"], "paraphrase": ["释"], "distractor": ["扰"], "next_text": ["续"]})
    seen = leaks.seen_texts(train, pool, teacher, unlabelled)
    assert seen.texts == {"甲乙", "丙丁", "乙甲乙", "丁丙丁", "戊己", "问", "答", "另答", "庚辛", "释", "扰", "续"}
    pairs = pd.DataFrame(
        [("a", "乙甲乙", "甲乙"),  # the training pair, turned round
         ("b", "甲乙", "戊己"),  # both texts seen, never together
         ("c", "甲乙", "新的"),  # one text seen
         ("d", "乙，甲", "己戊"),  # both the same characters in another order
         ("e", "别的", "另外"),
         ("f", "问", "另答")], columns=["id", "sentence1", "sentence2"],
    )  # fmt: skip
    search = {
        "queries": pd.DataFrame({"id": ["q1", "q2", "q3"], "text": ["丙丁", "丙丁", "问题"]}),
        "corpus": pd.DataFrame({"id": ["d1", "d2", "d3"], "text": ["丁丙丁", "新文", "辛庚"]}),
        "qrels": pd.DataFrame(
            {"query_id": ["q1", "q1", "q2", "q3"], "doc_id": ["d1", "d2", "d2", "d1"], "relevance": 1}
        ),
    }
    report, kept = leaks.remove({"test": {"pairs": {"pairs": pairs}, "search": search}}, seen)
    assert kept["test"]["pairs"]["pairs"]["id"].tolist() == ["c", "d", "e"]
    assert report["tasks"]["pairs/test"] == {
        "examples": 6, "same_pair": 2, "both_texts_seen": 3, "one_text_seen": 1, "near_duplicates": 4, "removed": 3,
    }  # fmt: skip
    assert kept["test"]["search"]["queries"]["id"].tolist() == ["q2", "q3"]
    assert kept["test"]["search"]["qrels"]["query_id"].tolist() == ["q2", "q3"]
    assert len(kept["test"]["search"]["corpus"]) == 3
    assert report["tasks"]["search/test"] == {
        "examples": 3, "same_pair": 1, "query_seen": 2, "passages_seen": 1, "near_duplicates": 2, "removed": 1,
    }  # fmt: skip
    assert report["removed"] == 4


@pytest.mark.parametrize("copy", ["Ｏｌｄ　Ｔｏｗｎ", "OLD  TOWN ", "old\u200b town"])
def test_near_copies_leak_as_the_texts_do(copy: str) -> None:
    plain = pd.DataFrame(
        {"query": ["old town"], "positive": ["café"], "text": ["old town"], "a": ["old town"], "b": [["café"]]}
    )
    accent = "CAFE\u0301 "
    search = {
        "queries": pd.DataFrame({"id": ["q"], "text": [copy]}),
        "corpus": pd.DataFrame({"id": ["d"], "text": [accent]}),
        "qrels": pd.DataFrame({"query_id": ["q"], "doc_id": ["d"], "relevance": [1]}),
    }
    pairs = {"pairs": pd.DataFrame({"id": ["x", "y"], "sentence1": [accent, "Town, old"], "sentence2": [copy, "cafe"]})}
    report, kept = leaks.remove({"test": {"p": pairs, "r": search}}, leaks.seen_texts(plain, plain, plain, plain))
    assert kept["test"]["p"]["pairs"]["id"].tolist() == ["y"] and kept["test"]["r"]["queries"].empty
    assert (report["tasks"]["p/test"]["same_pair"], report["tasks"]["r/test"]["same_pair"]) == (1, 1)
    assert (report["tasks"]["p/test"]["near_duplicates"], report["tasks"]["r/test"]["near_duplicates"]) == (1, 1)


def test_the_stage_removes_what_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set that is the training set loses exactly what training shows."""
    honest = world.role_swap

    def leaking(rng: np.random.Generator, split: str, n: int, *partners: int) -> pd.DataFrame:
        frame = honest(rng, split, n, *partners)
        if split == "test":  # the first pair of the training set, as the stage draws it
            settings = WorldSettings(**SIZES)
            known = honest(build._rng(settings, "train role_swap"), "train", settings.sts_pairs, build.PARTNERS)
            frame.loc[3, ["a", "b"]] = known.loc[known["label"], ["a", "b"]].iloc[0].to_numpy()[::-1]
        return frame

    monkeypatch.setattr(world, "role_swap", leaking)
    paths = made(tmp_path)
    frame = pd.read_parquet(paths.task("role_swap") / "test.parquet")
    report = json.loads(paths.leaks.read_text(encoding="utf-8"))
    row = report["tasks"]["role_swap/test"]
    assert (row["examples"], row["same_pair"], row["removed"]) == (50, 1, 1)
    assert "role_swap-test-3" not in set(frame["id"])
    assert len(frame) == 49
    assert report["removed"] == sum(row["removed"] for row in report["tasks"].values()) == 1


# ----------------------------------------------------------------------------------------------------- same every time
def test_twice_the_same_bytes(paths: Paths, tmp_path: Path) -> None:
    again = made(tmp_path)
    assert digests(again.data) == digests(paths.data)
    other = digests(made(tmp_path / "other", seed=2, test_seed=2).data)
    same = {name for name, digest in other.items() if digests(paths.data)[name] == digest}
    assert {Path(name).name for name in same} <= {"task.json", "leaks.json"}


def test_new_test_sets_leave_everything_else_alone(paths: Paths, tmp_path: Path) -> None:
    before, after = digests(paths.data), digests(made(tmp_path, test_seed=7).data)
    changed = {name for name in before if before[name] != after[name]}
    assert {"test.parquet", "queries.parquet", "corpus.parquet"} <= {Path(name).name for name in changed}
    assert all(
        "test" in Path(name).as_posix() or Path(name).name in ("leaks.json", "card.json", "card.md") for name in changed
    )


def test_a_changed_size_leaves_the_other_texts_alone(paths: Paths, tmp_path: Path) -> None:
    before, after = digests(paths.data), digests(made(tmp_path, test_queries=21).data)
    changed = {name for name, digest in after.items() if before[name] != digest}
    parts = {f"tasks/{name}/test/{part}.parquet" for name in SEARCH_TASKS for part in ("corpus", "queries", "qrels")}
    assert changed <= parts | {"card.json", "card.md", "leaks.json"}
    assert {f"tasks/{name}/test/corpus.parquet" for name in SEARCH_TASKS} <= changed


def test_every_purpose_draws_numbers_of_its_own() -> None:
    settings = WorldSettings()
    names = [
        "train nli",
        "dev nli_indomain",
        "test nli_indomain",
        "test nli_shifted",
        "pretraining",
        "train question",
        "train keyword",
    ]
    draws = {name: build._rng(settings, name).integers(0, 2**62) for name in names}
    assert len(set(draws.values())) == len(names)
    assert build._rng(settings, "train nli").integers(0, 2**62) == draws["train nli"]
    assert build._rng(WorldSettings(seed=2), "train nli").integers(0, 2**62) != draws["train nli"]

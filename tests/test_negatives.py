"""Hard negatives: who is drawn, from where, and never a marked positive; the packs queries travel in."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import backbone, framed_by
from tiny_run import changed

from d2llm.config.schema import Config
from d2llm.config.sections import NegativeSettings
from d2llm.data.negatives import mine as negatives
from d2llm.data.negatives.bm25 import tokens
from d2llm.models.normal_form import normal_form
from d2llm.run.errors import ArtifactError, DataError
from d2llm.run.paths import Paths

TEXTS = [
    "护士在公园借走了苹果",
    "护士归还了苹果",
    "医生在公园借走了香蕉",
    "苹果被护士借走了",
    "周一歌手表扬了画家",
    "画家在超市打开了冰箱",
    "公园",
    "歌手借走了三个苹果",
]


# ---------------------------------------------------------------------------------------------------------------- BM25
def naive_bm25(query: str, texts: list[str], kind: str) -> list[float]:
    """Lucene's formula word by word."""
    documents = [tokens(text, kind) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in tokens(query, kind):
            having = sum(word in other for other in documents)
            if having:
                weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                count = document.count(word)
                score += weight * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("kind", ["words", "characters"])
@pytest.mark.parametrize("ranks", [(1, 8), (2, 4), (3, 50)])
def test_bm25_ranks_are_those_of_the_formula(kind: str, ranks: tuple[int, int]) -> None:
    queries = ["护士借走了苹果", "公园 公园 香蕉", "谁打开了冰箱？", "没见过的"]
    low, high = ranks
    for query, found in zip(queries, negatives.bm25_ranks(queries, TEXTS, ranks, kind), strict=True):
        naive = naive_bm25(query, TEXTS, kind)
        order = sorted(range(len(TEXTS)), key=lambda i: (-round(naive[i], 5), i))
        assert found.tolist() == order[low - 1 : high]


# --------------------------------------------------------------------------------------------------------------- dense
@pytest.mark.parametrize("framed", [False, True])
def test_dense_ranks_by_brute_force(framed: bool, tmp_path: Path) -> None:
    config = Config(results=str(tmp_path), methods={"bge": {}})
    encoder = backbone("encoder", Paths.of(config).base("encoder"))
    around = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    if framed:  # a checkpoint's own way of framing texts
        around = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
        framed_by(encoder.tokenizer, "<bos>", "<eos>").save_pretrained(Paths.of(config).base("encoder"))
    queries, passages = ["甲乙", "山水火木", "日"], ["甲", "乙甲", "火木", "月星云", "山水火", "日月", "甲乙丙"]

    def vector(text: str) -> np.ndarray:
        ids = [around[0], *encoder.tokenize([text])[0], around[1]]
        with torch.no_grad():
            states = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean = states.mean(0).double().numpy()
        return mean / np.linalg.norm(mean)

    cosine = np.stack([vector(text) for text in queries]) @ np.stack([vector(text) for text in passages]).T
    assert np.diff(np.sort(cosine, axis=1), axis=1).min() > 1e-5  # no ties to hide behind
    for depth in (3, 7, 20):
        found = encoder.dense_ranks(config, queries, passages, depth)
        assert [row.tolist() for row in found] == np.argsort(-cosine, axis=1)[:, :depth].tolist()


# ---------------------------------------------------------------------------------------------------------------- draw
def rows(*pairs: tuple[str, ...]) -> pd.DataFrame:
    """(query, positive, more texts marked as right…) each."""
    return pd.DataFrame(
        [{"query": query, "positive": right[0], "dataset": "set", "marked": list(right)} for query, *right in pairs]
    )


def drawn(
    frame: pd.DataFrame,
    texts: list[str],
    bm25: dict[str, list[int]],
    dense: dict[str, list[int]],
    count: int,
    seed: int = 0,
) -> pd.DataFrame:
    queries = list(dict.fromkeys(frame["query"]))
    ranks = {
        name: [np.array(table.get(query, []), dtype=int) for query in queries]
        for name, table in (("bm25", bm25), ("dense", dense))
    }
    settings = NegativeSettings(per_query=count)
    return negatives.draw(frame, queries, texts, ranks, settings, np.random.default_rng(seed))


def test_half_from_each_source_where_both_have_enough() -> None:
    texts = [f"文{i}" for i in range(30)]
    frame = rows(("甲", "文0"), ("甲", "文5"), ("乙", "文1"))
    bm25, dense = {"甲": list(range(10)), "乙": list(range(10))}, {"甲": list(range(8, 20)), "乙": list(range(8, 20))}
    found = drawn(frame, texts, bm25, dense, 6)
    assert list(found.columns) == ["query", "positive", "dataset", "marked", "negatives", "sources"]
    assert len(found) == 3
    for made in found.itertuples():
        assert Counter(made.sources) == {"bm25": 3, "dense": 3}
        assert len(set(made.negatives)) == 6
        for text, source in zip(made.negatives, made.sources, strict=True):
            assert int(text[1:]) in {"bm25": bm25, "dense": dense}[source][made.query]
        if made.query == "甲":  # both positives of the same query text are kept out of both rows
            assert not {"文0", "文5"} & set(made.negatives)
        assert made.positive not in made.negatives


def test_neither_the_query_nor_its_positives_even_where_they_rank_first() -> None:
    texts = ["甲", "对", "也对", "错一", "错二", "错三", "错四"]
    frame = rows(("甲", "对"), ("甲", "也对"))
    everything = {"甲": list(range(7))}
    for seed in range(20):
        found = drawn(frame, texts, everything, everything, 4, seed)
        for made in found.itertuples():
            assert sorted(made.negatives) == ["错一", "错三", "错二", "错四"]
        found = drawn(
            rows(("甲", "对", "也对")), texts, everything, everything, 4, seed
        )  # marked, though no row's positive
        assert sorted(found["negatives"][0]) == ["错一", "错三", "错二", "错四"]


def test_quotas_where_a_source_runs_dry() -> None:
    texts = [f"文{i}" for i in range(40)]
    frame = rows(("甲", "文0"))
    few_bm25 = drawn(frame, texts, {"甲": [1]}, {"甲": list(range(2, 20))}, 6)
    assert Counter(few_bm25["sources"][0]) == {"bm25": 1, "dense": 5}
    few_dense = drawn(frame, texts, {"甲": list(range(1, 20))}, {"甲": [20]}, 6)
    assert Counter(few_dense["sources"][0]) == {"bm25": 3, "dense": 1, "random": 2}
    both = drawn(frame, texts, {"甲": [1, 2]}, {"甲": [2, 1]}, 6)
    assert Counter(both["sources"][0]) == {"bm25": 2, "random": 4}
    none = drawn(frame, texts, {}, {}, 6)
    assert Counter(none["sources"][0]) == {"random": 6}
    for found in (few_bm25, few_dense, both, none):
        assert "文0" not in found["negatives"][0]
        assert len(set(found["negatives"][0])) == 6
    odd = drawn(frame, texts, {"甲": list(range(1, 9))}, {"甲": list(range(9, 19))}, 5)
    assert Counter(odd["sources"][0]) == {"bm25": 2, "dense": 3}


def test_what_is_judged_wrong_comes_before_what_is_mined() -> None:
    texts = [f"文{i}" for i in range(30)]
    frame = rows(("甲", "文0", "文9"), ("乙", "文1")).assign(
        wrong=[["文20", "文9", "文3"], [f"文{i}" for i in range(2, 9)]]
    )
    ranks = {"甲": list(range(20)), "乙": list(range(20))}
    few, many = drawn(frame, texts, ranks, ranks, 6).itertuples()
    # Judged both right and wrong: right, so no negative. Of the other four, half are BM25's.
    assert Counter(few.sources) == {"judged": 2, "bm25": 2, "dense": 2}
    assert {text for text, source in zip(few.negatives, few.sources, strict=True) if source == "judged"} == {
        "文20",
        "文3",
    }
    assert "文9" not in few.negatives and len(set(few.negatives)) == 6
    assert Counter(many.sources) == {"judged": 6}
    left = {
        (set(frame["wrong"][1]) - set(drawn(frame, texts, ranks, ranks, 6, seed)["negatives"][1])).pop()
        for seed in range(40)
    }
    assert left == set(frame["wrong"][1])  # any of the seven may be the one left out
    # Nothing judged: what is drawn does not depend on whether anybody could have judged.
    none = drawn(frame.assign(wrong=[[], []]), texts, ranks, ranks, 6)
    pd.testing.assert_frame_equal(
        none.drop(columns="wrong"), drawn(frame.drop(columns="wrong"), texts, ranks, ranks, 6)
    )


COPIES = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text), "full width": lambda text: text.translate({i: i + 0xFEE0 for i in range(33, 127)}),
    "blank at the end": lambda text: f"{text} ", "doubled blank": lambda text: text.replace(" ", "  "), "case": str.upper, "invisible": "\u200b{}".format,
}  # fmt: skip


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_near_copies_of_the_query_and_of_what_is_right_for_it_are_not_drawn(copy: Callable[[str], str]) -> None:
    right = [
        "né en mai",
        "né en juin",
        "né en août",
    ]  # the row's positive, a marked one, and that of another spelling of the query
    query = "né quand ?"
    copies = [copy(text) for text in (*right, query)]
    assert not set(copies) & {*right, query}
    texts = [*right, *copies, "mort en mai", copy("mort en mai"), "né", "en mai", "en juin"]
    wrong = [[copies[0], "jugé", copy("jugé"), "né en mai"], []]
    frame = rows((query, right[0], right[1]), (copy(query), right[2])).assign(wrong=wrong)
    everything = dict.fromkeys((query, copy(query)), list(range(len(texts))))
    for ranks in (everything, {}):  # mined, and at random
        first, second = drawn(frame, texts, ranks, ranks, 4, seed=3).itertuples()
        assert Counter(first.sources)["judged"] == 1
        for made in (first, second):
            plain = {normal_form(text) for text in made.negatives}
            assert len(plain) == 4 and plain <= {"jugé", "mort en mai", "né", "en mai", "en juin"}


def test_the_last_texts_that_are_left_are_found() -> None:
    texts = [f"文{i}" for i in range(3000)]
    frame = rows(("甲", *texts[:2997]))
    assert sorted(drawn(frame, texts, {}, {}, 3)["negatives"][0]) == texts[2997:]


def test_every_candidate_of_a_source_has_its_chance() -> None:
    texts = [f"文{i}" for i in range(12)]
    seen: Counter[str] = Counter()
    for seed in range(300):
        seen.update(
            drawn(rows(("甲", "文0")), texts, {"甲": list(range(1, 6))}, {"甲": list(range(6, 11))}, 2, seed)[
                "negatives"
            ][0]
        )
    assert set(seen) == {f"文{i}" for i in range(1, 11)}
    assert max(seen.values()) < 3 * min(seen.values())


def test_a_pool_too_small_is_said_clearly() -> None:
    with pytest.raises(
        DataError, match=r"pool of 'set': 4 texts are too few for 4 negatives of '甲'.*negatives.per_query"
    ):
        drawn(rows(("甲", "文0")), ["文0", "文1", "文2", "文3"], {"甲": [0, 1]}, {"甲": [2, 3]}, 4)


def test_the_same_numbers_draw_the_same() -> None:
    texts = [f"文{i}" for i in range(30)]
    frame = rows(*((f"问{i}", f"文{i}") for i in range(10)))
    ranks = {f"问{i}": list(range(20)) for i in range(10)}
    first, again, other = (drawn(frame, texts, ranks, ranks, 6, seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first["negatives"].equals(other["negatives"])


# --------------------------------------------------------------------------------------------------------------- packs
@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (15, 4), (3, 4), (0, 4), (7, 2)])
def test_packs_are_whole_and_the_rest_is_left_out(n: int, size: int) -> None:
    found = negatives.pack(n, size, np.random.default_rng(0))
    assert len(found) == n
    counts = Counter(found.tolist())
    assert counts.pop(-1, 0) == n % size
    assert counts == dict.fromkeys(range(n // size), size)
    again = negatives.pack(n, size, np.random.default_rng(0))
    assert (found == again).all()
    if n == 12:
        assert found.tolist() != sorted(found.tolist())  # shuffled


# --------------------------------------------------------------------------------------------------------------- stage
def test_the_stage(tiny_pairs: Config) -> None:
    paths = Paths.of(tiny_pairs)
    train, pool, pairs = (pd.read_parquet(path) for path in (paths.train_pairs, paths.pool, paths.pairs))
    assert list(pairs.columns) == [
        "qid",
        "query",
        "positive",
        "dataset",
        "mode",
        "marked",
        "negatives",
        "sources",
        "pack",
    ]
    assert pairs["qid"].is_unique
    # Rows are the training pairs', each data set short of what did not fill a pack.
    key = ["qid", "query", "positive", "dataset", "mode"]
    assert len(pairs.merge(train, on=key)) == len(pairs)
    for name, part in train.groupby("dataset"):
        assert (pairs["dataset"] == name).sum() == len(part) // 4 * 4
    assert pairs["pack"].tolist() == [
        i // 4 for i in range(len(pairs))
    ]  # packs stand together, numbered over all data sets
    assert (pairs.groupby("pack")[["dataset", "mode"]].nunique() == 1).all().all()
    known: dict[tuple[str, str], set[str]] = {}
    for made in train.itertuples():
        known.setdefault((made.dataset, made.query), {made.query}).update([made.positive, *made.marked])
    texts = {name: set(part["text"]) for name, part in pool.groupby("dataset")}
    for made in pairs.itertuples():
        assert len(made.negatives) == len(made.sources) == 4
        assert len(set(made.negatives)) == 4
        assert not set(made.negatives) & known[made.dataset, made.query]
        assert set(made.negatives) <= texts[made.dataset]
        assert set(made.sources) <= {"bm25", "dense", "random"}
    report = json.loads(paths.negatives_report.read_text(encoding="utf-8"))
    for name, part in pairs.groupby("dataset"):
        assert report[name]["queries"] == len(part)
        assert report[name]["left_out"] == (train["dataset"] == name).sum() % 4
        assert report[name]["sources"] == dict(Counter(source for found in part["sources"] for source in found))
        assert report[name]["distinct_negatives"] == len({text for found in part["negatives"] for text in found})
    share = Counter(source for found in pairs["sources"] for source in found)
    assert share["bm25"] > 0.3 * share.total()
    assert share["dense"] > 0.3 * share.total()


def test_the_stage_draws_from_the_asked_ranks(tiny_pairs: Config) -> None:
    """Every BM25 negative is of ranks 1–8 and every dense one of ranks 2–9 within its data set."""
    paths = Paths.of(tiny_pairs)
    pool, pairs = pd.read_parquet(paths.pool), pd.read_parquet(paths.pairs)
    texts = pool.loc[pool["dataset"] == "ir_claim", "text"].drop_duplicates().tolist()
    part = pairs[pairs["dataset"] == "ir_claim"]
    dense = encoder.dense_ranks(tiny_pairs, part["query"].tolist(), texts, 9)
    for made, near in zip(part.itertuples(), dense, strict=True):
        naive = naive_bm25(made.query, texts, "words")
        edge = sorted(naive, reverse=True)[7]
        for text, source in zip(made.negatives, made.sources, strict=True):
            if source == "bm25":
                assert naive[texts.index(text)] >= edge - 1e-5
            elif source == "dense":
                assert texts.index(text) in near[1:9]


def test_the_stage_twice_and_with_another_seed(tiny_pairs: Config, tmp_path: Path) -> None:
    paths = Paths.of(tiny_pairs)
    copy = changed_results(tiny_pairs, tmp_path)
    negatives.run(copy)
    assert Paths.of(copy).pairs.read_bytes() == paths.pairs.read_bytes()
    assert Paths.of(copy).negatives_report.read_bytes() == paths.negatives_report.read_bytes()
    other = changed(copy, negatives={"seed": 2})
    negatives.run(other)
    assert Paths.of(other).pairs.read_bytes() != paths.pairs.read_bytes()


def changed_results(config: Config, folder: Path) -> Config:
    """The same run in another results folder, which sees data and models of the first."""
    from tiny_run import tiny_config

    copy = tiny_config(folder)
    Paths.of(copy).root.mkdir(parents=True)
    (Paths.of(copy).root / "data").symlink_to(Paths.of(config).root / "data")
    # One by one: what a run makes of them goes beside them.
    for model in (Paths.of(config).root / "models").iterdir():
        link = Paths.of(copy).root / "models" / model.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(model)
    return copy


def test_a_set_that_fills_no_pack_is_refused_by_this_stage_as_well(tiny_pairs: Config, tmp_path: Path) -> None:
    """The data stage has run with other settings."""
    copy = changed_results(tiny_pairs, tmp_path)
    for changes, message in (
        ({"training": {"pack": 500, "batch_size": 500}}, r"^training set 'nli': \d+ right pairs do not fill a pack; .*training\.pack \(500\)"),
        ({"negatives": {"per_query": 5000}}, r"^pool of 'nli': \d+ texts are too few for 5000 negatives"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            negatives.run(changed(copy, **changes))


def test_a_pool_without_texts_is_an_artifact_error(tmp_path: Path) -> None:
    config = Config(results=str(tmp_path), methods={"bge": {}})
    with pytest.raises(ArtifactError, match=r"train.parquet: missing"):
        negatives.run(config)


def test_texts_embedded_by_several_jobs_give_the_same_negatives(tiny_pairs: Config, tmp_path: Path) -> None:
    from d2llm.data.negatives import dense as vectors

    copy = changed_results(tiny_pairs, tmp_path)
    sharded = changed(copy, negatives={"shards": 3})
    for shard in range(3):
        vectors.run(sharded, shard, 3)
    negatives.run(sharded)
    expected, found = (pd.read_parquet(Paths.of(config).pairs) for config in (tiny_pairs, sharded))
    pd.testing.assert_frame_equal(found, expected)
    # A shard that is of other texts is refused.
    from safetensors.numpy import load_file, save_file

    place = Paths.of(sharded).vectors(1, 3)
    save_file({"vectors": load_file(place)["vectors"][:-1]}, place)
    with pytest.raises(ArtifactError, match=r"vectors of \d+ texts"):
        negatives.run(sharded)

"""Hard negatives: who is drawn, from where, and never a marked positive; the packs queries travel in."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny import backbone, framed_by
from tiny_run import changed, tiny_config

from d2llm.config.schema import Config
from d2llm.config.sections import NegativeSettings
from d2llm.data.negatives import dense as vectors
from d2llm.data.negatives import mine as negatives
from d2llm.data.negatives.bm25 import Bm25, tokens
from d2llm.data.negatives.encoder import dense_ranks
from d2llm.models.normal_form import normal_form
from d2llm.run.errors import ArtifactError, DataError
from d2llm.run.paths import Paths

TEXTS = [
    "护士在公园借走了苹果", "护士归还了苹果", "医生在公园借走了香蕉", "苹果被护士借走了",
    "周一歌手表扬了画家", "画家在超市打开了冰箱", "公园", "歌手借走了三个苹果",
]  # fmt: skip


def changed_results(config: Config, folder: Path) -> Config:
    """The same run in another results folder, which sees data and models of the first."""
    copy = tiny_config(folder)
    Paths.of(copy).root.mkdir(parents=True)
    (Paths.of(copy).root / "data").symlink_to(Paths.of(config).root / "data")
    # One by one: what a run makes of them goes beside them.
    for model in (Paths.of(config).root / "models").iterdir():
        link = Paths.of(copy).root / "models" / model.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(model)
    return copy


# --------------------------------------------------------------------------------------------------------------- ranks
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
@pytest.mark.parametrize("ranks", [(2, 4), (3, 50)])
def test_bm25_ranks_are_those_of_the_formula(kind: str, ranks: tuple[int, int]) -> None:
    queries = ["护士借走了苹果", "公园 公园 香蕉", "谁打开了冰箱？", "没见过的"]
    (low, high), index = ranks, Bm25(TEXTS, kind)
    for query, places in zip(queries, negatives.bm25_ranks(queries, TEXTS, ranks, kind), strict=True):
        naive = naive_bm25(query, TEXTS, kind)
        np.testing.assert_allclose(index.scores(query), naive, rtol=1e-5)
        order = sorted(range(len(TEXTS)), key=lambda i: (-round(naive[i], 5), i))
        assert places.tolist() == order[low - 1 : high]


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
        ranks = dense_ranks(config, queries, passages, depth)
        assert [row.tolist() for row in ranks] == np.argsort(-cosine, axis=1)[:, :depth].tolist()


# ---------------------------------------------------------------------------------------------------------------- draw
NUMBERED = [f"文{i}" for i in range(40)]


def rows(*pairs: tuple[str, ...]) -> pd.DataFrame:
    """(query, positive, more texts marked as right…) each."""
    columns = ["query", "positive", "dataset", "marked"]
    return pd.DataFrame([(query, right[0], "set", list(right)) for query, *right in pairs], columns=columns)


def drawn(
    frame: pd.DataFrame,
    texts: list[str],
    bm25: dict[str, list[int]],
    dense: dict[str, list[int]],
    count: int,
    seed: int = 0,
) -> pd.DataFrame:
    queries = list(dict.fromkeys(frame["query"]))
    tables = {"bm25": bm25, "dense": dense}
    ranks = {name: [np.array(table.get(query, []), dtype=int) for query in queries] for name, table in tables.items()}
    settings = NegativeSettings(per_query=count)
    return negatives.draw(frame, queries, texts, ranks, settings, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("bm25", "dense", "count", "sources"),
    [
        (range(1, 10), range(8, 20), 6, {"bm25": 3, "dense": 3}),
        ([1], range(2, 20), 6, {"bm25": 1, "dense": 5}),
        (range(1, 20), [20], 6, {"bm25": 3, "dense": 1, "random": 2}),
        ([1, 2], [2, 1], 6, {"bm25": 2, "random": 4}),
        (range(1, 9), range(9, 19), 5, {"bm25": 2, "dense": 3}),
    ],
)
def test_half_from_each_source_where_it_has_enough(
    bm25: list, dense: list, count: int, sources: dict[str, int]
) -> None:
    given = rows(("甲", "文0")), NUMBERED, {"甲": list(bm25)}, {"甲": list(dense)}, count
    table = drawn(*given)
    (row,) = table.itertuples()
    assert Counter(row.sources) == sources
    assert len(set(row.negatives) - {"文0"}) == count
    candidates = {"bm25": bm25, "dense": dense, "random": range(len(NUMBERED))}
    assert all(int(text[1:]) in candidates[name] for text, name in zip(row.negatives, row.sources, strict=True))
    pd.testing.assert_frame_equal(table, drawn(*given))
    assert not table["negatives"].equals(drawn(*given, seed=4)["negatives"])


def test_what_is_judged_wrong_comes_before_what_is_mined() -> None:
    wrong = [["文20", "文9", "文3"], [f"文{i}" for i in range(2, 9)]]
    frame = rows(("甲", "文0", "文9"), ("乙", "文1")).assign(wrong=wrong)
    ranks = dict.fromkeys("甲乙", list(range(20)))
    few, many = drawn(frame, NUMBERED[:30], ranks, ranks, 6).itertuples()
    # Judged both right and wrong: right, so no negative. Of the other four, half are BM25's.
    assert Counter(few.sources) == {"judged": 2, "bm25": 2, "dense": 2}
    judged = {text for text, source in zip(few.negatives, few.sources, strict=True) if source == "judged"}
    assert judged == {"文20", "文3"} and "文9" not in few.negatives and len(set(few.negatives)) == 6
    assert Counter(many.sources) == {"judged": 6}
    tables = [drawn(frame, NUMBERED[:30], ranks, ranks, 6, seed) for seed in range(40)]
    left = set().union(*(set(wrong[1]) - set(table["negatives"][1]) for table in tables))
    assert left == set(wrong[1])  # any of the seven may be the one left out


def test_near_copies_of_the_query_and_of_what_is_right_for_it_are_not_drawn() -> None:
    def copy(text: str) -> str:
        return unicodedata.normalize("NFD", text).upper().replace(" ", "  ")

    # The row's positive, a marked one, and that of another spelling of the query.
    query, right = "né quand ?", ["né en mai", "né en juin", "né en août"]
    copies = [copy(text) for text in (*right, query)]
    texts = [*right, *copies, "mort en mai", copy("mort en mai"), "né", "en mai", "en juin"]
    wrong = [[copies[0], "jugé", copy("jugé"), "né en mai"], []]
    frame = rows((query, right[0], right[1]), (copy(query), right[2])).assign(wrong=wrong)
    everything = dict.fromkeys((query, copy(query)), list(range(len(texts))))
    for ranks in (everything, {}):  # mined, and at random
        table = drawn(frame, texts, ranks, ranks, 4, seed=3)
        assert Counter(table["sources"][0])["judged"] == 1
        for drawn_texts in table["negatives"]:
            plain = {normal_form(text) for text in drawn_texts}
            assert len(plain) == 4 and plain <= {"jugé", "mort en mai", "né", "en mai", "en juin"}


def test_the_last_texts_that_are_left_are_found() -> None:
    texts = [f"文{i}" for i in range(3000)]
    assert sorted(drawn(rows(("甲", *texts[:2997])), texts, {}, {}, 3)["negatives"][0]) == texts[2997:]


def test_every_candidate_of_a_source_has_its_chance() -> None:
    bm25, dense = {"甲": list(range(1, 6))}, {"甲": list(range(6, 11))}
    tables = [drawn(rows(("甲", "文0")), NUMBERED[:12], bm25, dense, 2, seed) for seed in range(300)]
    counts = Counter(text for table in tables for text in table["negatives"][0])
    assert set(counts) == set(NUMBERED[1:11])
    assert max(counts.values()) < 3 * min(counts.values())


def test_a_pool_too_small_is_said_clearly() -> None:
    with pytest.raises(DataError, match=r"pool of 'set': 4 texts are too few for 4 negatives of '甲'"):
        drawn(rows(("甲", "文0")), NUMBERED[:4], {"甲": [0, 1]}, {"甲": [2, 3]}, 4)


@pytest.mark.parametrize(("n", "size"), [(12, 4), (15, 4), (3, 4), (0, 4)])
def test_packs_are_whole_and_the_rest_is_left_out(n: int, size: int) -> None:
    packs, again = (negatives.pack(n, size, np.random.default_rng(0)).tolist() for _ in range(2))
    assert len(packs) == n and packs == again
    counts = Counter(packs)
    assert counts.pop(-1, 0) == n % size
    assert counts == dict.fromkeys(range(n // size), size)
    if n == 12:
        assert packs != sorted(packs)  # shuffled


# --------------------------------------------------------------------------------------------------------------- stage
def test_the_stage(tiny_pairs: Config) -> None:
    paths = Paths.of(tiny_pairs)
    train, pool, pairs = (pd.read_parquet(path) for path in (paths.train_pairs, paths.pool, paths.pairs))
    key = ["qid", "query", "positive", "dataset", "mode"]
    assert list(pairs.columns) == [*key, "marked", "negatives", "sources", "pack"]
    # Rows are the training pairs', each data set short of what did not fill a pack; packs stand together, numbered over
    # all data sets.
    assert pairs["qid"].is_unique and len(pairs.merge(train, on=key)) == len(pairs)
    assert pairs["pack"].tolist() == [i // 4 for i in range(len(pairs))]
    assert (pairs.groupby("pack")[["dataset", "mode"]].nunique() == 1).all().all()
    texts = {name: set(part["text"]) for name, part in pool.groupby("dataset")}
    for row in pairs.itertuples():
        same = train[(train["dataset"] == row.dataset) & (train["query"] == row.query)]
        assert len(row.negatives) == len(set(row.negatives)) == 4
        assert set(row.negatives) <= texts[row.dataset] - {row.query, *same["positive"], *same["marked"].explode()}
    report = json.loads(paths.negatives_report.read_text(encoding="utf-8"))
    for name, part in pairs.groupby("dataset"):
        count = int((train["dataset"] == name).sum())
        assert (
            (report[name]["queries"], report[name]["left_out"]) == (len(part), count % 4) == (count // 4 * 4, count % 4)
        )
        assert report[name]["sources"] == dict(Counter(part["sources"].explode()))
        assert report[name]["distinct_negatives"] == part["negatives"].explode().nunique()
    share = Counter(pairs["sources"].explode())
    assert min(share["bm25"], share["dense"]) > 0.3 * share.total() and set(share) <= {"bm25", "dense", "random"}


def test_the_stage_draws_from_the_asked_ranks(tiny_pairs: Config) -> None:
    """Every BM25 negative is of ranks 1–8 and every dense one of ranks 2–9 within its data set."""
    paths = Paths.of(tiny_pairs)
    pool, pairs = pd.read_parquet(paths.pool), pd.read_parquet(paths.pairs)
    texts = pool.loc[pool["dataset"] == "ir_claim", "text"].drop_duplicates().tolist()
    part, seen = pairs[pairs["dataset"] == "ir_claim"], set[int]()
    for row, near in zip(part.itertuples(), dense_ranks(tiny_pairs, part["query"].tolist(), texts, 9), strict=True):
        naive = naive_bm25(row.query, texts, "words")
        edge = sorted(naive, reverse=True)[7]
        for text, source in zip(row.negatives, row.sources, strict=True):
            assert source != "bm25" or naive[texts.index(text)] >= edge - 1e-5
            if source == "dense":
                seen.add(near.tolist().index(texts.index(text)) + 1)
    assert seen == set(range(2, 10))  # all of them are drawn, and no other


def test_data_made_for_other_settings_are_refused_by_this_stage_as_well(tiny_pairs: Config, tmp_path: Path) -> None:
    config = changed(changed_results(tiny_pairs, tmp_path), negatives={"per_query": 5000})
    with pytest.raises(DataError, match=r"pool of 'nli': \d+ texts are too few for 5000 negatives"):
        negatives.run(config)


def test_texts_embedded_by_several_jobs_give_the_same_negatives(tiny_pairs: Config, tmp_path: Path) -> None:
    sharded = changed(changed_results(tiny_pairs, tmp_path), negatives={"shards": 3})
    for shard in range(3):
        vectors.run(sharded, shard, 3)
    negatives.run(sharded)
    expected = Paths.of(tiny_pairs).pairs.read_bytes()
    assert Paths.of(sharded).pairs.read_bytes() == expected
    negatives.run(changed(sharded, negatives={"seed": 2, "shards": 3}))
    assert Paths.of(sharded).pairs.read_bytes() != expected
    # A shard that is of other texts is refused.
    place = Paths.of(sharded).vectors(1, 3)
    save_file({"vectors": load_file(place)["vectors"][:-1]}, place)
    with pytest.raises(ArtifactError, match=r"vectors of \d+ texts"):
        negatives.run(sharded)

"""Evaluation: task folders checked, mteb's numbers against independent ones, heads and orders, collecting."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from task_folders import FakeStudent, pair_task, retrieval_task, sts_task, write_task
from training_records import write_runs

from d2llm.config.evaluation import EvaluationSettings
from d2llm.config.schema import Config
from d2llm.config.sections import ModelsSettings, PretrainedSettings
from d2llm.evaluation import about, collect, tasks
from d2llm.evaluation import evaluate as stage
from d2llm.evaluation.adapter import SearchModel
from d2llm.evaluation.rows.student import StudentScorer
from d2llm.run.artifacts import read_json, write_json
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES


@pytest.fixture(autouse=True, scope="module")
def mteb_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        yield


def evaluate(student, *folders: Path, settings: EvaluationSettings | None = None, results: Path | None = None):
    """Scores {(task, phenomenon, metric): value} and predictions of a student on task folders."""
    read = [tasks.read(folder, "test") for folder in folders]
    settings = settings or EvaluationSettings()
    scores, predictions = stage.evaluate(StudentScorer(student), read, "toy/base/seed1", settings, results)
    return scores, scores.set_index(["task", "phenomenon", "metric"])["value"].to_dict(), predictions


# ------------------------------------------------------------------------------------------------------------- metrics
def test_pair_classification_is_what_scikit_learn_says(tmp_path):
    folder, student = pair_task(tmp_path), FakeStudent()
    scores, values, predictions = evaluate(student, folder)
    frame = pd.read_parquet(folder / "test.parquet")
    pairs = zip(frame["query"], frame["passage"], strict=True)
    expected, label = np.array([student.score(a, b, "symmetric") for a, b in pairs]), frame.label.to_numpy()

    assert predictions.query_id.tolist() == frame.id.tolist()  # row order, nothing lost
    np.testing.assert_allclose(predictions.score, expected, rtol=1e-5)
    assert predictions.label.tolist() == label.tolist()
    assert values["nli_x", "all", "ap"] == pytest.approx(average_precision_score(label, expected))
    cuts = np.sort(expected)[:-1] + np.diff(np.sort(expected)) / 2
    accuracy = max(((expected > cut) == label).mean() for cut in cuts)
    assert values["nli_x", "all", "accuracy"] == pytest.approx(accuracy)
    # The curve's first point is "all pairs", a threshold below every score, which mteb does not try.
    precision, recall, _ = precision_recall_curve(label, expected)
    f1 = 2 * precision[1:-1] * recall[1:-1] / (precision[1:-1] + recall[1:-1] + 1e-30)
    best = 1 + int(f1.argmax())
    for name, value in (("f1", f1.max()), ("precision", precision[best]), ("recall", recall[best])):
        assert values["nli_x", "all", name] == pytest.approx(value)
    for kind in ("reversed", "antonym"):
        chosen = (label == 1) | (frame.phenomenon == kind)
        assert values["nli_x", kind, "ap"] == pytest.approx(average_precision_score(label[chosen], expected[chosen]))
        assert values["nli_x", kind, "auc"] == pytest.approx(roc_auc_score(label[chosen], expected[chosen]))
    assert values["nli_x", "entailed", "auc"] == pytest.approx(roc_auc_score(label, expected))
    assert set(scores.scorer) == {"iem"} and set(scores.group) == {"nli"}
    assert set(scores.n[scores.phenomenon == "all"]) == {40}


@pytest.mark.parametrize("order", ["average", "as_given"])
@pytest.mark.parametrize("binary", [False, True])
def test_sts_is_what_scipy_says_in_one_order_and_in_both(tmp_path, order, binary):
    folder, student = sts_task(tmp_path, binary=binary), FakeStudent()
    settings = EvaluationSettings.model_validate({"symmetric_order": {"sts": order}})
    _, values, predictions = evaluate(student, folder, settings=settings)
    frame = pd.read_parquet(folder / "test.parquet")
    pairs = list(zip(frame["query"], frame["passage"], strict=True))
    expected = np.array([student.score(a, b, "symmetric") for a, b in pairs])
    if order == "average":
        expected = (expected + np.array([student.score(b, a, "symmetric") for a, b in pairs])) / 2
    np.testing.assert_allclose(predictions.score, expected, rtol=1e-4)
    assert values["sts_x", "all", "pearson"] == pytest.approx(pearsonr(frame.score, expected)[0], abs=1e-6)
    assert values["sts_x", "all", "spearman"] == pytest.approx(spearmanr(frame.score, expected)[0])
    own = (frame.phenomenon == "swap").to_numpy()
    if binary:  # a phenomenon may have one target, so it is broken down as a classification
        own = own | (frame.score == 1).to_numpy()
        assert values["sts_x", "swap", "auc"] == pytest.approx(roc_auc_score(frame.score[own], expected[own]))
    else:
        assert values["sts_x", "swap", "spearman"] == pytest.approx(spearmanr(frame.score[own], expected[own])[0])


def test_retrieval_is_what_plain_loops_say(tmp_path):
    folder, student = retrieval_task(tmp_path), FakeStudent()
    scores, values, predictions = evaluate(student, folder)
    corpus, queries, qrels = (pd.read_parquet(folder / "test" / f"{n}.parquet") for n in ("corpus", "queries", "qrels"))
    expected = {"mrr_at_10": {}, "recall_at_10": {}, "ndcg_at_10": {}}
    for query in queries.itertuples():
        every = {doc.id: student.score(query.text, doc.text, "asymmetric") for doc in corpus.itertuples()}
        ranked = sorted(every, key=every.get, reverse=True)
        relevance = qrels[qrels.query_id == query.id].set_index("doc_id").relevance.to_dict()
        hits = [relevance.get(doc, 0) for doc in ranked[:10]]
        ideal = sorted(relevance.values(), reverse=True)[:10]
        expected["mrr_at_10"][query.id] = next((1 / r for r, hit in enumerate(hits, 1) if hit), 0.0)
        expected["recall_at_10"][query.id] = sum(hit > 0 for hit in hits) / len(relevance)
        gain = [sum(g / log2(r + 1) for r, g in enumerate(row, 1)) for row in (hits, ideal)]
        expected["ndcg_at_10"][query.id] = gain[0] / gain[1]
        kept = predictions[predictions.query_id == query.id]
        assert kept.doc_id.tolist() == ranked[:100]  # the best hundred, best first
        np.testing.assert_allclose(kept.score, [every[doc] for doc in ranked[:100]], rtol=1e-4, atol=1e-5)
        assert kept.label.tolist() == [relevance.get(doc, 0) for doc in ranked[:100]]
        assert set(kept.relevant) == {len(relevance)}
    kinds = queries.set_index("id").phenomenon
    for metric, of_query in expected.items():
        column = pd.Series(of_query)
        assert column.max() > 0
        assert values["ir_x", "all", metric] == pytest.approx(column.mean(), abs=1e-5)  # mteb rounds to 5 digits
        for kind in ("who", "when"):
            assert values["ir_x", kind, metric] == pytest.approx(column[kinds == kind].mean())
    assert set(scores.candidates) == {"all"}


# --------------------------------------------------------------------------------------------------- heads, texts, NaN
def test_head_follows_the_kind_of_task_and_texts_are_encoded_once(tmp_path):
    student = FakeStudent()
    evaluate(student, pair_task(tmp_path))
    assert student.scorer.modes == {"symmetric"}
    assert len(student.encoded) == len(set(student.encoded))  # 20 premises stand in 40 pairs
    assert {(text[:2], role) for text, role, _ in student.encoded} == {("前提", "query"), ("假设", "passage")}
    student = FakeStudent()
    evaluate(student, retrieval_task(tmp_path))
    assert student.scorer.modes == {mode for _, _, mode in student.encoded} == {"asymmetric"}


def test_roles_with_equal_formats_share_their_vectors():
    student = FakeStudent()
    student.formats = {("query", "symmetric"): "plain", ("passage", "symmetric"): "plain"}
    StudentScorer(student).score_pairs([("一", "二"), ("二", "三"), ("三", "一")], "symmetric")
    assert sorted(text for text, _, _ in student.encoded) == sorted("一二三")


@pytest.mark.parametrize("make", [pair_task, sts_task, retrieval_task])
def test_scores_that_are_not_finite_or_all_equal_are_refused_by_name(tmp_path, make):
    folder, student = make(tmp_path), FakeStudent()
    for weights in student.scorer.weights.values():
        weights[0] = torch.nan
    with pytest.raises(ArtifactError, match=rf"toy/base/seed1 on task {folder.name}: .* not finite"):
        evaluate(student, folder)
    if make is sts_task:
        student.scorer.weights["symmetric"].zero_()
        with pytest.raises(ArtifactError, match="toy/base/seed1 on task sts_x: pearson is not defined"):
            evaluate(student, folder)


def test_what_was_not_encoded_or_indexed_last_is_not_scored():
    model = SearchModel("toy", StudentScorer(FakeStudent()))
    with pytest.raises(RuntimeError, match="encoded last"):
        model.similarity_pairwise(np.ones((2, 6)), np.ones((2, 6)))
    with pytest.raises(RuntimeError, match="corpus indexed last"):
        model.search({"id": ["q"], "text": ["问"]}, task_metadata=None, top_k=1)


def test_mteb_result_is_kept_and_equal_runs_leave_equal_files(tmp_path, monkeypatch):
    folders = [pair_task(tmp_path / "tasks"), retrieval_task(tmp_path / "tasks")]
    contents = []
    for name in ("first", "second"):
        _, values, _ = evaluate(FakeStudent(), *folders, results=tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.json"))})
    assert contents[0] == contents[1] and list(contents[0]) == ["ir_x.json", "model_meta.json", "nli_x.json"]
    result = json.loads(contents[0]["nli_x.json"])
    assert result["task_name"] == "nli_x" and len(result["dataset_revision"]) == 40
    assert result["scores"]["test"][0]["similarity_ap"] == values["nli_x", "all", "ap"]
    # mteb finds and reads them.
    import mteb

    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "first"))
    [model] = mteb.load_results(download_latest=False, validate_and_filter=False).model_results
    assert {read.task_name: read.scores for read in model.task_results}["nli_x"] == result["scores"]


def test_a_sample_of_a_set_of_mtebs_has_its_rules_and_another_name(tmp_path):
    from d2llm.evaluation.mteb import mteb_task

    folder, measured = retrieval_task(tmp_path), []
    for whole in ([], ["test"]):
        known = {"name": "T2Retrieval", "subset": None, "split": {"dev": None, "test": "dev"}, "whole": whole}
        write_task(folder, "retrieval", "ir", mteb=known)
        measured.append(mteb_task(tasks.read(folder, "test")))
    assert [of.task.metadata.name for of in measured] == ["ir_x", "T2Retrieval"]
    for of in measured:
        assert of.split == "dev" and of.task.ignore_identical_ids and max(of.task.k_values) == 1000


# --------------------------------------------------------------------------------------------------------- task folders
# Of a set made by: file, column, what becomes of it, what the message names.
SPOILED = [
    (pair_task, "test", "label", (3, 2), r"test.parquet: column 'label', row 3: expected 0 or 1, found 2"),
    (pair_task, "test", "label", None, r"column 'label' not found"),
    (pair_task, "test", "passage", (5, " "), r"column 'passage', row 5: expected non-empty text, found ' '"),
    (pair_task, "test", "id", (4, "p1"), r"column 'id', row 4: expected each id once, found 'p1'"),
    (sts_task, "test", "score", (2, 5.5), r"'score', row 2: expected a number from 0 to 5, found 5.5"),
    (sts_task, "test", "score", (2, float("nan")), r"'score', row 2: expected a finite number"),
    (retrieval_task, "test/qrels", "relevance", (0, 1 / 3), r"'relevance': line 0: relevance 0.3+ is too fine"),
    (retrieval_task, "test/qrels", "relevance", (0, -1), r"'relevance', row 0: expected 0 or more, found -1"),
    (retrieval_task, "test/qrels", "doc_id", (1, "d999"), r"row 1: expected an id of corpus.parquet, found 'd999'"),
    (retrieval_task, "test/qrels", "query_id", (0, "q77"), r"'query_id', row 0: expected an id of queries.parquet"),
    (retrieval_task, "test/corpus", "text", (7, ""), r"corpus.parquet: column 'text', row 7"),
]


@pytest.mark.parametrize(("make", "file", "column", "change", "message"), SPOILED)
def test_what_is_wrong_in_a_set_is_named(tmp_path, make, file, column, change, message):
    folder = make(tmp_path)
    frame = pd.read_parquet(folder / f"{file}.parquet")
    if change is None:
        frame = frame.drop(columns=column)
    else:
        values = frame[column].tolist()
        values[change[0]] = change[1]
        frame[column] = values
    frame.to_parquet(folder / f"{file}.parquet")
    with pytest.raises(DataError, match=message):
        tasks.read(folder, "test")


def test_missing_tasks_and_splits_and_wrong_descriptions_are_refused(tmp_path):
    pair_task(tmp_path, "b")
    folder = pair_task(tmp_path, "a")
    assert (tasks.names(tmp_path), tasks.names(tmp_path, ["b", "a"])) == (["a", "b"], ["b", "a"])
    with pytest.raises(ConfigError, match="no task named 'c' .* holds a, b"):
        tasks.names(tmp_path, ["c"])
    with pytest.raises(DataError, match="no evaluation task found"):
        tasks.names(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="dev.parquet: missing"):
        tasks.read(folder, "dev")
    write_task(folder, "pairs", "nli")
    with pytest.raises(DataError, match="'type' must be one of pair_classification, retrieval, sts, found 'pairs'"):
        tasks.read(folder, "test")
    with pytest.raises(DataError, match="expected numbers min_score < max_score"):
        tasks.read(write_task(folder, "sts", "sts", min_score=5, max_score=0), "test")


# ------------------------------------------------------------------------------------------ a whole run, and collecting
@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A results folder with three tasks and two evaluated methods whose students are fake. Left as it is found."""
    folder = str(tmp_path_factory.mktemp("suite"))
    config = Config(results=folder, methods={"d2llm": {}, "bge": {}}, references=["bm25"], seeds=[1, 2])
    paths, load = Paths.of(config), stage.load
    for make in (pair_task, sts_task, retrieval_task):
        make(paths.tasks)
    sizes = {("d2llm", 1): 6, ("d2llm", 2): 7, ("bge", 1): 8, ("bge", 2): 9}

    def fake(config, method, variant, seed):
        bm25 = method == "bm25"
        return load(config, method, variant, seed) if bm25 else StudentScorer(FakeStudent(sizes[method, seed]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "load", fake)
        for job in config.evaluations():
            stage.run(config, *job)
    write_runs(config)
    return config


def test_collected_scores_are_tidy_sorted_and_byte_identical(suite):
    paths = Paths.of(suite)
    collect.run(suite)
    files = [paths.scores_csv, paths.scores, paths.predictions, paths.trainings, paths.curves, paths.about]
    first = [file.read_bytes() for file in files]
    collect.run(suite)
    assert first == [file.read_bytes() for file in files]
    for kept in (pd.read_csv(paths.trainings), pd.read_parquet(paths.curves)):
        assert set(zip(kept.method, kept.variant, kept.seed, strict=True)) == set(suite.runs())
    scores = pd.read_parquet(paths.scores)
    assert list(scores.columns) == list(collect.SCORES)
    assert not scores.duplicated(collect.SCORE_KEY).any()
    pd.testing.assert_frame_equal(scores, scores.sort_values(collect.SCORE_KEY, kind="stable"))
    whole = scores[scores.phenomenon == "all"]
    assert len(whole) == (4 + 1) * (5 + 2 + 3)  # four runs and BM25; metrics of the three tasks
    lexical = whole[(whole.method == "bm25") & (whole.task == "sts_x")]
    assert lexical.value.tolist() == [0, 0]  # no word in common anywhere: no correlation, and no failure
    assert pd.read_csv(paths.scores_csv)["value"].tolist() == scores["value"].tolist()  # the text holds every bit
    predictions = pd.read_parquet(paths.predictions)
    of_one = predictions[(predictions.method == "bge") & (predictions.seed == 2)]
    assert of_one.groupby("task").size().to_dict() == {"nli_x": 40, "sts_x": 30, "ir_x": 12 * 100}

    # The damage of each, and what the message must name.
    file = paths.evaluation("bge", "base", 2) / "scores.parquet"
    good = pd.read_parquet(file)
    for bad, message in [
        (pd.concat([good, good[:1]]), "same row twice.*mrr_at_10"),
        (good.assign(seed=3), "column 'seed': expected 2, found 3"),
        (good.assign(value=np.inf), "'value' holds a value that is not finite"),
        (good.assign(more=1), "unexpected column 'more'"),
        (good[good.task != "ir_x"], "no mrr_at_10 of task ir_x, which .*d2llm"),
        (good.assign(n=good.n + 1), r"of task \w+ is over \d+ examples, expected \d+"),
    ]:
        bad.to_parquet(file)
        with pytest.raises(ArtifactError, match=rf"bge/base/seed2/scores.parquet: .*{message}"):
            collect.run(suite)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"bge/base/seed2/scores\.parquet: missing"):
        collect.run(suite)
    good.to_parquet(file)


def test_what_is_behind_the_scores_is_collected_with_them(suite):
    """Reports, and the records of this config's jobs up to the evaluations; digests of what they wrote are left out."""
    paths = Paths.of(suite)
    run, train = "runs/bge/base/seed2/provenance.json", {"stage": "train", "method": "bge", "variant": "base"}
    for name, content in {
        paths.card_json: {"training": [1]},
        paths.teacher_report: {"symmetric": {"ap": 0.9}},
        paths.base("teacher") / "config.json": {"hidden_size": 64},  # made by the pipeline: its settings say it
        paths.base("decoder") / "config.json": {"hidden_size": 576},
        paths.root / "data/provenance.json": {"stage": "data", "seconds": 1.5, "outputs": {"card.json": "abc"}},
        paths.root / run: read_json(paths.root / run) | train | {"seed": 2},
        # Of a seed the config no longer has; and what is made of the scores.
        paths.root / "runs/bge/base/seed9/provenance.json": train | {"seed": 9},
        paths.root / "tables/nli.csv.provenance.json": {"stage": "table"},
    }.items():
        write_json(name, content)
    models = ModelsSettings(decoder=PretrainedSettings(source="a/b"), encoder=PretrainedSettings(source="a/c"))
    collect.run(suite.model_copy(update={"models": models}))
    written = read_json(paths.about)
    assert (written["card"], written["leaks"], written["widths"]) == ({"training": [1]}, None, {"decoder": 576})
    assert written["teacher"] == {"symmetric": {"ap": 0.9}}
    assert set(written["records"]) == {"data/provenance.json", run}
    assert written["records"]["data/provenance.json"] == {"stage": "data", "seconds": 1.5}
    assert set(STAGES) > about.BEHIND  # a record tells its stage by these names


def test_a_saved_student_is_loaded_and_scored_by_its_own_scorer(tmp_path):
    import tiny

    from d2llm.models.student import Student, TextFormat

    config = Config(results=str(tmp_path), methods={"d2llm": {}})
    paths, rng = Paths.of(config), np.random.default_rng(0)
    folder = pair_task(paths.tasks)
    with pytest.raises(ArtifactError, match="d2llm/base/seed1/model: missing"):
        stage.run(config, "d2llm", "base", 1)
    frame = pd.read_parquet(folder / "test.parquet")
    for column in ("query", "passage"):
        frame[column] = [" ".join(rng.choice(tiny.WORDS[:20], rng.integers(2, 9))) for _ in range(len(frame))]
    frame.to_parquet(folder / "test.parquet")
    # Roles are told apart by a prefix, as some baselines do.
    formats = {(role, "symmetric"): TextFormat((number,)) for role, number in (("query", 5), ("passage", 6))}
    student = Student(tiny.backbone("decoder"), ("mean", {}), ("iem", {"hidden": 16}), formats).eval()
    student.save(paths.run("d2llm", "base", 1) / "model")
    expected = student.score(frame["query"].tolist(), frame["passage"].tolist(), "symmetric")
    done = paths.evaluation("d2llm", "base", 1)
    stage.run(config, "d2llm", "base", 1)
    np.testing.assert_allclose(pd.read_parquet(done / "predictions.parquet").score, expected, rtol=1e-4, atol=1e-6)
    assert expected.std() > 1e-3 and set(pd.read_parquet(done / "scores.parquet").scorer) == {"iem"}

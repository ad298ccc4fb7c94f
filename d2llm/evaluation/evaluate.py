"""Evaluates one run, or a reference row, on every configured task and writes scores, predictions and mteb's results.

What a row is and how it scores is left to `rows/`, reading tasks to `tasks`, computing metrics to mteb and `metrics`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning

from d2llm.config.catalogue import row_names
from d2llm.config.schema import Run
from d2llm.config.task_types import TASK_TYPES
from d2llm.evaluation import metrics, tasks
from d2llm.evaluation.tasks import Task
from d2llm.run.artifacts import read_frame, write_frame, write_json
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import get_logger, progress
from d2llm.run.paths import Paths
from d2llm.run.schemas import DIRECTION, FORWARD, GROUPED_BY

if TYPE_CHECKING:
    from mteb.types import EncodeKwargs

    from d2llm.config.schema import Config
    from d2llm.evaluation.adapter import PairScorer, SearchModel
    from d2llm.run.checkpoint import Resume

logger = get_logger("evaluation")


def run(config: Config, method: str, variant: str, seed: int, resume: Resume | None = None) -> None:
    """Evaluates (method, variant, seed) and writes `mteb/`, `predictions.parquet` and `scores.parquet`, in this order;
    where shards have been evaluated (`evaluation.shards`), from theirs.

    Raises:
        DataError: a task's files do not hold what they must.
        ArtifactError: the model's folder is missing, or it gives NaN or constant scores.
    """
    folder = Paths.of(config).evaluation(method, variant, seed)
    if config.evaluation.shards > 1:
        scores, predictions = merged(config, Run(method, variant, seed), folder / "mteb")
    else:
        split = config.evaluation.split
        scores, predictions = measure(config, method, variant, seed, split, folder / "mteb", resume)
    write_frame(folder / "predictions.parquet", predictions)
    write_frame(folder / "scores.parquet", scores)


def run_shard(
    config: Config, method: str, variant: str, seed: int, shard: int, shards: int, resume: Resume | None = None
) -> None:
    """The same of every `shards`-th task, from number `shard` on, in a folder of its own."""
    folder, share = Paths.of(config).evaluation_shard(method, variant, seed, shard, shards), slice(shard, None, shards)
    split = config.evaluation.split
    scores, predictions = measure(config, method, variant, seed, split, folder / "mteb", resume, share)
    write_frame(folder / "predictions.parquet", predictions)
    write_frame(folder / "scores.parquet", scores)


def merged(config: Config, run: Run, results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of all shards, tasks in the order of an evaluation in one piece; mteb's results are
    brought together in `results`.
    """
    shards, names = config.evaluation.shards, task_names(config, config.evaluation.split)
    folders = [Paths.of(config).evaluation_shard(*run, shard, shards) for shard in range(shards)]
    for folder in folders:
        if (folder / "mteb").exists():  # one without a task has none
            copytree(folder / "mteb", results, dirs_exist_ok=True)
    tables = []
    for file in ("scores.parquet", "predictions.parquet"):
        parts = [read_frame(folder / file) for folder in folders]
        own = [parts[number % shards] for number in range(len(names))]
        rows = [part[part["task"] == name] for name, part in zip(names, own, strict=True)]
        tables.append(pd.concat(rows, ignore_index=True))
    return tables[0], tables[1]


def task_names(config: Config, split: str) -> list[str]:
    """The configured tasks that have this split, in order."""
    paths = Paths.of(config)
    names = tasks.names(paths.tasks, config.evaluation.tasks)
    # Some sets have no dev split.
    return [name for name in names if tasks.has(paths.task(name), split)] if split == "dev" else names


def measure(
    config: Config,
    method: str,
    variant: str,
    seed: int,
    split: str,
    results: Path | None = None,
    resume: Resume | None = None,
    share: slice = slice(None),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of a run on all configured tasks, or a share of them, each row with what it is of; frames
    without columns for no task at all.
    """
    paths, settings = Paths.of(config), config.evaluation
    # All tasks are read before any model: a damaged one is told in a second.
    read = [tasks.read(paths.task(name), split) for name in task_names(config, split)[share]]
    if not read:
        return pd.DataFrame(), pd.DataFrame()
    scorer = load(config, method, variant, seed)
    if hasattr(scorer, "resume"):
        scorer.resume = resume
    identity = {"tier": config.tier, "method": method, "variant": variant, "seed": seed}
    tables = evaluate(scorer, read, f"{method}/{variant}/seed{seed}", settings, results)
    return tuple(frame.assign(**identity)[[*identity, *frame.columns]] for frame in tables)


def load(config: Config, method: str, variant: str, seed: int) -> PairScorer:
    """The trained student of a run, or the reference row of that name."""
    row = config.row_file(method) if method in [*row_names(), *config.published()] else "student"
    return import_module(f"d2llm.evaluation.rows.{row}").load(config, Run(method, variant, seed))


def evaluate(
    scorer: PairScorer, read: Iterable[Task], label: str, settings: Any, results: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores (one row a metric) and predictions (one row a pair, or a query's kept document) of a scorer on tasks.

    `settings` is an EvaluationSettings; `results`, where given, receives mteb's own result of each task as JSON.
    """
    from d2llm.evaluation.adapter import SearchModel

    model = SearchModel(label, scorer, settings.symmetric_order)
    scores, predictions = [], []
    for task in progress(list(read), f"evaluate {label}"):
        measured, rules = _measure_by_mteb(model, task, settings.batch_size, results)
        rows, predicted = _break_down(model, task, measured, rules, settings.keep)
        rows += _test_direction(model, task, settings.direction if task.split == settings.split else 0)
        columns = {"split": task.split, "task": task.name, "task_title": task.title, "task_type": task.type}
        columns |= {"group": task.group, "scorer": scorer.kind}
        columns |= {"candidates": scorer.candidates if task.type == "retrieval" else ""}
        scores += [{**columns, "phenomenon": p, "metric": m, "value": value, "n": n} for p, m, value, n in rows]
        predictions.append(predicted.assign(task=task.name)[["task", *predicted.columns]])
        main = "  ".join(f"{metric} {value:.4f}" for phenomenon, metric, value, _ in rows if phenomenon == "all")
        logger.info("%s on %s: %s", label, task.name, main)
        scorer.forget()
    return pd.DataFrame(scores), pd.concat(predictions, ignore_index=True)


def _measure_by_mteb(
    model: SearchModel, task: Task, batch_size: int, results: Path | None
) -> tuple[dict[str, float], Any]:
    """mteb's scores of one task, all keys, and the task of mteb's that measured it."""
    from mteb.results import TaskResult

    from d2llm.evaluation.adapter import REVISION
    from d2llm.evaluation.mteb import mteb_task

    logging.getLogger("mteb").setLevel(logging.WARNING)
    evaluated, split, subset = mteb_task(task)
    options: EncodeKwargs = {"batch_size": batch_size, "show_progress_bar": False}
    with warnings.catch_warnings():
        # `_check_defined` tells it in our own words.
        warnings.simplefilter("ignore", ConstantInputWarning)
        # Not mteb.evaluate: its cache may answer for a model that was trained again, and it imports twice as much.
        scores = evaluated.evaluate(model, split=split, encode_kwargs=options)
    if results is not None:
        # No times in it: they are the provenance's, and two equal runs shall leave equal files.
        result = TaskResult.from_task_results(
            evaluated,
            {split: scores},
            evaluation_time=None,  # type: ignore[arg-type]  # None is allowed, the hint forgets it
        )
        content = result.model_dump(mode="json", exclude={"date", "evaluation_phases"})
        model_meta = model.mteb_model_meta
        # As mteb's own cache lays them out: with MTEB_CACHE set to `results`, mteb.load_results reads them.
        place = results / "results" / model_meta.model_name_as_path() / REVISION
        write_json(place / f"{evaluated.metadata.name}.json", _replace_undefined(content))
        write_json(place / "model_meta.json", {"name": model_meta.name, "revision": REVISION})
    return dict(scores[subset]), evaluated


def _ranked(results: dict[str, dict[str, float]], rules: Any) -> dict[str, dict[str, float]]:
    """The rankings that a retrieval class of mteb measures, by its rules, from those it was given, best first."""
    if rules.ignore_identical_ids:
        results = {query: {doc: s for doc, s in docs.items() if doc != query} for query, docs in results.items()}
    if rules.skip_first_result:
        results = {query: dict(list(docs.items())[1:]) for query, docs in results.items()}
    return results


def _break_down(
    model: SearchModel, task: Task, measured: dict[str, float], rules: Any, keep: int
) -> tuple[list[metrics.Row], pd.DataFrame]:
    """Score rows of a task (its metrics, then its breakdown) and its predictions, of a query the `keep` best
    documents.
    """
    if task.type == "retrieval":
        count = len(task.searched().queries)
        breakdown, predictions = _break_down_queries(model, task, rules, keep)
    else:
        count = len(task.paired())
        breakdown, predictions = _break_down_pairs(model, task)
    rows = [
        ("all", name, _check_defined(model, task, name, measured[key]), count)
        for name, key in TASK_TYPES[task.type].metrics.items()
    ]
    return [*rows, *breakdown, *_break_down_groups(model, task, rules, keep)], predictions


def _break_down_groups(model: SearchModel, task: Task, rules: Any, keep: int) -> Iterator[metrics.Row]:
    """Score rows of the groups that a set's columns name, as "<column>: <value>"."""
    frame = task.searched().queries if task.type == "retrieval" else task.paired()
    columns = [column for column in frame.columns if column.startswith(GROUPED_BY)]
    ranks = metrics.per_query(*_best(model, task, rules, keep)) if columns and task.type == "retrieval" else None
    for column in columns:
        groups = frame[column].tolist()
        if ranks is None:
            rows = metrics.grouped_breakdown(model.predictions, frame[task.target].to_numpy(), groups)
        else:
            names = {query: group for query, group in zip(frame["id"], groups, strict=True) if group}
            rows = metrics.retrieval_breakdown(ranks[ranks.index.isin(list(names))], names)
        for name, metric, value, n in rows:
            yield f"{column.removeprefix(GROUPED_BY)}: {name}", metric, value, n


def _test_direction(model: SearchModel, task: Task, count: int) -> list[metrics.Row]:
    """How often a pair that is right outscores its own reverse, on at most `count` of them, drawn by the set's name."""
    if task.type != "pair_classification" or not count:
        return []
    pairs = task.paired()
    rows = np.flatnonzero(pairs["label"].to_numpy() == 1)
    if count < len(rows):
        rows = np.sort(np.random.default_rng([*task.name.encode()]).permutation(rows)[:count])
    turned = list(zip(pairs["passage"].iloc[rows], pairs["query"].iloc[rows], strict=True))
    return [(DIRECTION, FORWARD, metrics.forward(model.predictions[rows], model.score(turned)), len(rows))]


def _best(
    model: SearchModel, task: Task, rules: Any, keep: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """(the best documents of every query with their scores, the judgements)."""
    qrels: dict[str, dict[str, float]] = {}
    for row in task.searched().qrels.itertuples():
        qrels.setdefault(row.query_id, {})[row.doc_id] = row.relevance
    # Best first, and metrics look at 10: the rest of a thousand is not touched again.
    return {query: dict(islice(docs.items(), keep)) for query, docs in _ranked(model.predictions, rules).items()}, qrels


def _break_down_queries(
    model: SearchModel, task: Task, rules: Any, keep: int
) -> tuple[Iterator[metrics.Row], pd.DataFrame]:
    """(breakdown, predictions) of a retrieval task."""
    queries = task.searched().queries
    best, qrels = _best(model, task, rules, keep)
    # Relevant documents, retrieved or not: what recall and nDCG from the predictions alone need.
    relevant = {query: sum(relevance > 0 for relevance in docs.values()) for query, docs in qrels.items()}
    phenomena = dict(zip(queries["id"], queries["phenomenon"], strict=True))
    breakdown = metrics.retrieval_breakdown(metrics.per_query(best, qrels), phenomena)
    counts = [len(docs) for docs in best.values()]
    names = np.array(list(best), dtype=object)

    def of_query(values: Iterable[Any]) -> np.ndarray:
        return np.array(list(values)).repeat(counts)

    predictions = pd.DataFrame(
        {
            "query_id": names.repeat(counts),
            "doc_id": list(chain.from_iterable(best.values())),
            "cluster": names.repeat(counts),
            "score": list(chain.from_iterable(docs.values() for docs in best.values())),
            "label": [float(qrels[query].get(doc, 0)) for query, docs in best.items() for doc in docs],
            "relevant": of_query(relevant[query] for query in best),
            "phenomenon": np.array([phenomena[query] for query in best], dtype=object).repeat(counts),
        }
    )
    return breakdown, predictions


def _break_down_pairs(model: SearchModel, task: Task) -> tuple[Iterator[metrics.Row], pd.DataFrame]:
    """(breakdown, predictions) of a task of pairs."""
    pairs = task.paired()
    target = pairs[task.target].to_numpy()
    split = metrics.pair_breakdown if task.type == "pair_classification" else metrics.sts_breakdown
    breakdown = split(model.predictions, target, pairs["phenomenon"].tolist())
    predictions = pd.DataFrame(
        {
            "query_id": pairs["id"],
            "doc_id": "",
            # Pairs with one first text, such as a premise's hypotheses, are not independent: named by the first of
            # them.
            "cluster": pairs.groupby("query")["id"].transform("first"),
            "score": model.predictions,
            "label": target.astype(float),
            "relevant": 0,
            "phenomenon": pairs["phenomenon"],
        }
    )
    return breakdown, predictions


def _check_defined(model: SearchModel, task: Task, metric: str, value: float) -> float:
    """A metric as mteb gives it. A correlation with equal scores does not exist: it is 0 for a row without training.

    Raises ArtifactError for a trained model.
    """
    if np.isfinite(value):
        return float(value)
    if model.scorer.trained:
        raise ArtifactError(
            f"{model.name} on task {task.name}: {metric} is not defined ({value}): all its scores are equal; the model "
            "has collapsed, train it again with other settings"
        )
    logger.warning("%s on %s: all scores are equal; %s is set to 0", model.name, task.name, metric)
    return 0.0


def _replace_undefined(value: Any) -> Any:
    """Put None for NaN, for which JSON has no word; mteb gives it for a metric it cannot compute."""
    if isinstance(value, dict):
        return {key: _replace_undefined(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_undefined(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value

"""Stage `comparison`: the subject (`statistics.subject`, D2LLM as a rule) against every other method on every task,
from the collected predictions.

Paired bootstrap: all methods are scored on the same resampled examples, and the metric is computed anew on each
resample; where there are several seeds, what their spread leaves open is added. What is tested, and corrected for, is
what is asked: the strongest baseline on each kind of task. How it is computed is in `statistics` and `inference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from d2llm.analysis import contrasts, inference, standings, statistics
from d2llm.analysis.variants import judged_columns, varied
from d2llm.config.task_types import HEADLINE, TASK_TYPES
from d2llm.evaluation.predictions import read_predictions
from d2llm.run.artifacts import MEND, atomic, read_frame
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import AVERAGE, COMPARISONS, PREDICTIONS, SCORES, SIZES, STANDINGS, SUBJECT, VERDICTS

if TYPE_CHECKING:
    from pathlib import Path

    from d2llm.config.schema import Config

_SCORES = {
    name: SCORES[name]
    for name in ("method", "variant", "seed", "task", "task_type", "group", "phenomenon", "metric", "value")
}
_PREDICTIONS = {name: kind for name, kind in PREDICTIONS.items() if name not in ("tier", "phenomenon")}


def run(config: Config) -> None:
    """Write `comparisons.csv`, `verdicts.csv` and `standings.csv`; without the subject or a baseline among the methods
    the first has no row.

    Raises ArtifactError when the predictions do not fit each other or the scores.
    """
    paths, settings = Paths.of(config), config.statistics
    scores = read_frame(paths.scores, _SCORES)
    where = {"variant": "base", "method": list(config.methods)}
    seeds = scores.loc[(scores["variant"] == "base") & scores["method"].isin(config.methods), "seed"]
    tasks = scores.drop_duplicates("task").set_index("task")[["task_type", "group"]]
    count = max(settings.resamples, least(tasks["group"].nunique(), settings.level))
    methods, seeds = list(config.methods), sorted(seeds.unique().tolist())
    read = partial(_read, paths.predictions, where)
    columns = list(measured_columns(read, tasks, methods, seeds, count, settings.seed)) if methods else []
    comparisons = compared(
        columns,
        methods,
        settings.level,
        settings.seed,
        settings.subject,
        asked=lambda rows: rows["strongest"] & whole_kind(rows),
    )
    check(comparisons, scores)
    _write(paths.comparisons, comparisons)
    for path, table in zip((paths.verdicts, paths.standings), judge_all(config, columns), strict=True):
        _write(path, table)
    tested = comparisons["p_holm"].dropna()
    get_logger(__name__).info(
        "%d comparisons, %d tested, %d significant",
        len(comparisons),
        len(tested),
        (tested < 1 - settings.level).sum(),
    )


def run_ablations(config: Config) -> None:
    """Write `ablations.csv`: every method as configured against each of its variants, on the columns of the ablation
    table.

    `method` is `base` for D2LLM, another method's name for its variants; `baseline` names the variant's training
    (`Config.points`). The seeds are the variants', which the method itself has had as well; without variants there is
    no row. Raises ArtifactError when the predictions do not fit each other or the scores.
    """
    paths, settings = Paths.of(config), config.statistics
    trainings = {method: dict.fromkeys(owners.values()) for method, owners in varied(config).items()}
    variants = {method: [name for name in names if name != "base"] for method, names in trainings.items()}
    variants = {method: names for method, names in variants.items() if names}
    scores = read_frame(paths.scores, _SCORES)
    tasks = scores.drop_duplicates("task").set_index("task")[["task_type", "group"]]
    seeds = sorted(config.seeds_of_variants())
    judged = judged_columns(tasks)
    differences = sum(map(len, variants.values())) * len(judged)
    count = max(settings.resamples, least(differences, settings.level))
    parts = [no_rows()]
    for method, names in variants.items():
        where = {"method": method, "seed": seeds, "variant": [*names, "base"]}
        read = partial(_read, paths.predictions, where, named_by="variant")
        part = compare(read, tasks, [*names, "base"], seeds, count, settings.level, settings.seed, "base", judged)
        of_method = scores[(scores["method"] == method) & scores["seed"].isin(seeds)]
        check(part, of_method.assign(method=of_method["variant"], variant="base"))
        parts.append(part if method == SUBJECT else part.assign(method=method))
    ablations = pd.concat(parts[1:] or parts, ignore_index=True)
    if len(parts) > 2:
        ablations = correct(ablations, level=settings.level)
    _write(paths.ablations, ablations)
    _write(paths.contrasts, run_contrasts(config, tasks, judged, scores))
    get_logger(__name__).info("%d ablations on %d columns", differences // len(judged), len(judged))


def run_contrasts(
    config: Config, tasks: pd.DataFrame, judged: list[tuple[str, str]], scores: pd.DataFrame
) -> pd.DataFrame:
    """The rows of `contrasts.csv`. Raises ArtifactError when predictions do not fit each other or the scores."""
    paths, settings = Paths.of(config), config.statistics
    count = max(settings.resamples, least(len(contrasts.wanted(config)) * len(judged), settings.level))

    def read(task: str, method: str, variant: str, seeds: list[int] | None) -> pd.DataFrame:
        where = {"method": method, "variant": variant} | ({} if seeds is None else {"seed": seeds})
        return _read(paths.predictions, where, task)

    own = partial(compare, count=count, level=settings.level, seed=settings.seed)
    table = correct(contrasts.contrasts(config, tasks, judged, read, own), level=settings.level)
    for (one, two), part in table.groupby(["method", "baseline"]):
        check(part, contrasts.scores_of(config, scores, (str(one), str(two))))
    return table


def _write(path: Path, table: pd.DataFrame) -> None:
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def _read(file: Path, where: Mapping[str, Any], task: str, named_by: str = "method") -> pd.DataFrame:
    """The predictions of one task, each under what it is compared by."""
    predictions = read_predictions(file, _PREDICTIONS, {**where, "task": task})
    return predictions.assign(method=predictions[named_by])


def least(differences: int, level: float) -> int:
    """Resamples below which not even the clearest of so many corrected differences could be significant; a tenth to
    spare.
    """
    return math.ceil(1.1 * 2 * differences / (1 - level))


def no_rows() -> pd.DataFrame:
    """A table of comparisons without any."""
    return pd.DataFrame(columns=[*COMPARISONS, *SIZES])


def whole_kind(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of a whole kind of task: the average of its tasks, or its only one."""
    averaged = set(rows.loc[rows["task"] == AVERAGE, "group"])
    return (rows["task"] == AVERAGE) | ~rows["group"].isin(averaged)


def correct(rows: pd.DataFrame, asked: pd.Series | None = None, level: float = 0.95) -> pd.DataFrame:
    """The rows with `p_holm`, corrected over those that are tested: those `asked`, of more than one training. Without
    it a row is not tested: a single training is an anecdote, and the parts of an average are not asked beside it.

    And with `detectable`, the difference each would have found at this correction.
    """
    tested = (rows["seeds"] > 1) & (True if asked is None else asked)
    alpha = (1 - level) / max(1, int(tested.sum()))
    sizes = [
        inference.detectable(row.se_examples, row.sd_seeds, row.seeds, alpha)
        for row in rows[["se_examples", "sd_seeds", "seeds"]].itertuples()
    ]
    return rows.assign(p_holm=inference.holm(rows["p"].where(tested)), detectable=np.array(sizes, dtype=float))


def compare(
    read: Callable[[str], pd.DataFrame],
    tasks: pd.DataFrame,
    methods: list[str],
    seeds: list[int],
    count: int,
    level: float,
    seed: int,
    subject: str = SUBJECT,
    judged: list[tuple[str, str]] | None = None,
    asked: Callable[[pd.DataFrame], pd.Series] | None = None,
) -> pd.DataFrame:
    """One row a baseline and task (or average of a group of tasks): columns `COMPARISONS` and `SIZES`.

    `read` gives the predictions of a task, which are let go before the next one's; `tasks` is indexed by task with
    columns task_type and group; `methods` holds the subject and the baselines. With `judged`, (group, task) pairs, only
    those rows are kept. `asked` says which of the rows are tested; without it all are.
    """
    if subject not in methods or len(methods) < 2:
        return no_rows()
    columns = measured_columns(read, tasks, methods, seeds, count, seed)
    wanted = (column for column in columns if judged is None or column[:2] in judged)
    return compared(wanted, methods, level, seed, subject, asked)


def compared(
    columns: Iterable[tuple[str, str, str, _Measured]],
    methods: list[str],
    level: float,
    seed: int,
    subject: str,
    asked: Callable[[pd.DataFrame], pd.Series] | None = None,
) -> pd.DataFrame:
    """`compare`, of what is measured already."""
    baselines = [name for name in methods if name != subject]
    if subject not in methods or not baselines:
        return no_rows()
    rows = []
    for group, task, metric, measured in columns:
        rows += _rows(task, group, metric, measured, subject, baselines, level, seed)
    table = pd.DataFrame(rows)
    return correct(table, asked(table) if asked else None, level)[[*COMPARISONS, *SIZES]]


def judge_all(config: Config, columns: list[tuple[str, str, str, _Measured]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `verdicts.csv` and of `standings.csv`, kind of task by kind; none of fewer than two methods."""
    settings, methods = config.statistics, list(config.methods)
    tables = [(pd.DataFrame(columns=list(VERDICTS)), pd.DataFrame(columns=list(STANDINGS)))]
    for group in dict.fromkeys(column[0] for column in columns if len(methods) > 1):
        own = [column for column in columns if column[0] == group]
        parts = [column[3] for column in own if column[1] != AVERAGE]
        runs = np.stack([[part.observed[name] for part in parts] for name in methods])
        drawn = np.stack([own[-1][3].drawn[name] for name in methods])  # of the average, or the only task
        kind = standings.Scores(group, own[-1][2], methods, runs, drawn)
        tables.append(standings.judge(kind, settings.level, settings.equivalent, settings.seed))
    verdicts, table = (pd.concat(parts[1:] or parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return verdicts, table


def measured_columns(
    read: Callable[[str], pd.DataFrame],
    tasks: pd.DataFrame,
    methods: list[str],
    seeds: list[int],
    count: int,
    seed: int,
) -> Iterator[tuple[str, str, str, _Measured]]:
    """(group, task, metric, what was measured) of every task, and of the average of a group that has several."""
    for group, members in tasks.groupby("group", sort=False):
        parts = []
        for task, kind in members["task_type"].items():
            sides = _collect_sides(read(task), task, kind, methods, seeds)
            parts.append(_measure(sides, kind, methods, seeds, count, np.random.default_rng([seed, *task.encode()])))
            yield str(group), str(task), HEADLINE[kind], parts[-1]
        if len(parts) > 1:
            average = _Measured(
                {n: np.mean([part.observed[n] for part in parts], axis=0) for n in methods},
                {n: np.mean([part.drawn[n] for part in parts], axis=0) for n in methods},
                sum(part.n for part in parts),
            )
            yield str(group), AVERAGE, HEADLINE[members["task_type"].iloc[0]], average


class _Measured(NamedTuple):
    """By method: the metric of each seed (S,), and its mean over seeds on every resample (count,); the number of
    examples.
    """

    observed: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    n: int


def _collect_sides(
    predictions: pd.DataFrame, task: str, kind: str, methods: list[str], seeds: list[int]
) -> dict[tuple[str, int], pd.DataFrame]:
    """The examples of every method and seed, checked to be the same ones with the same right answers."""
    sides: dict[tuple[str, int], pd.DataFrame] = {}
    for name in methods:
        for seed in seeds:
            part = predictions[(predictions["method"] == name) & (predictions["seed"] == seed)]
            if part.empty:
                raise ArtifactError(f"no predictions of {name}, seed {seed}, on {task}; {MEND}")
            sides[name, seed] = examples(part, kind)
    shared = [column for column in ("cluster", "target", "relevant") if column in next(iter(sides.values()))]
    first = next(iter(sides.values()))[shared]
    for (name, seed), side in sides.items():
        if not side[shared].equals(first):
            raise ArtifactError(
                f"predictions of {name}, seed {seed}, on {task} are of other examples than the others'; {MEND}"
            )
    return sides


def examples(predictions: pd.DataFrame, kind: str) -> pd.DataFrame:
    """One row an example in the order of its id: `value`, `cluster`, and `target` (pairs) or `relevant` (queries)."""
    if kind != "retrieval":
        frame = predictions.rename(columns={"score": "value", "label": "target"}).set_index("query_id")
        return frame[["value", "target", "cluster"]].sort_index()
    from d2llm.evaluation.metrics import per_query  # loads scipy and scikit-learn, which those who render do without

    results: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, float]] = {}
    columns = (predictions[name] for name in ("query_id", "doc_id", "score", "label", "relevant"))
    for query, doc, score, label, relevant in zip(*columns, strict=True):
        results.setdefault(query, {})[doc] = score
        # "" stands for relevant documents that were not kept: they bear on recall, which is not used here.
        judged = qrels.setdefault(query, {"": float(relevant > 0)})
        judged[doc] = label
    ranks = per_query(results, qrels)[[HEADLINE[kind]]].set_axis(["value"], axis=1)
    return ranks.join(
        predictions.drop_duplicates("query_id").set_index("query_id")[["cluster", "relevant"]]
    ).sort_index()


def _measure(
    sides: Mapping[tuple[str, int], pd.DataFrame],
    kind: str,
    methods: list[str],
    seeds: list[int],
    count: int,
    rng: np.random.Generator,
) -> _Measured:
    first = next(iter(sides.values()))
    clusters = pd.factorize(first["cluster"])[0]
    target = first["target"].to_numpy() if "target" in first else None
    metric = getattr(statistics, TASK_TYPES[kind].resampled)
    values = {name: np.stack([sides[name, one]["value"].to_numpy() for one in seeds]) for name in methods}
    whole = np.ones((len(first), 1), dtype=np.int32)
    observed = {name: metric(values[name], target, whole)[:, 0] for name in methods}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    together = np.concatenate(list(values.values()))
    for start in range(0, count, step := statistics.block(len(first))):
        counts = statistics.resamples(rng, clusters, min(step, count - start))  # the same for all methods: paired
        for name, part in zip(methods, np.split(metric(together, target, counts), len(methods)), strict=True):
            drawn[name].append(part.mean(0))
    return _Measured(observed, {name: np.concatenate(parts) for name, parts in drawn.items()}, len(first))


def _rows(
    task: str, group: str, metric: str, measured: _Measured, subject: str, baselines: list[str], level: float, seed: int
) -> list[dict[str, object]]:
    strongest = max(baselines, key=lambda name: measured.observed[name].mean())
    rows = []
    for name in baselines:
        per_seed = measured.observed[subject] - measured.observed[name]
        examples = measured.drawn[subject] - measured.drawn[name]
        drawn = examples + inference.seed_luck(
            np.random.default_rng([seed, 1, *f"{task} {name}".encode()]), per_seed, len(examples)
        )
        # Of the baseline's error, the share that is gone.
        error, errors = 1 - float(measured.observed[name].mean()), 1 - measured.drawn[name]
        effect = inference.interval(float(per_seed.mean()) / error, drawn / errors, level) if error > 0 else None
        rows.append(
            {
                "group": group,
                "task": task,
                "metric": metric,
                "method": subject,
                "baseline": name,
                "strongest": name == strongest,
                "value": float(measured.observed[subject].mean()),
                **inference.interval(float(per_seed.mean()), drawn, level)._asdict(),
                "seeds": len(per_seed),
                "n": measured.n,
                "effect": effect.difference if effect else np.nan,
                "effect_low": effect.low if effect else np.nan,
                "effect_high": effect.high if effect else np.nan,
                "se_examples": float(np.nanstd(examples)),
                "sd_seeds": float(per_seed.std(ddof=1)) if len(per_seed) > 1 else np.nan,
            }
        )
    return rows


def check(comparisons: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Refuse predictions from which the collected scores do not follow: one of the two must be wrong.

    mteb rounds retrieval metrics to five digits, so that is how close they have to be.
    """
    base = scores[(scores["variant"] == "base") & (scores["phenomenon"] == "all")]
    values = base.groupby(["method", "task", "metric"])["value"].mean().to_dict()
    for row in comparisons[comparisons["task"] != AVERAGE].itertuples():
        for method, value in ((row.method, row.value), (row.baseline, row.value - row.difference)):
            collected = values.get((method, row.task, row.metric), float("nan"))
            if not abs(collected - value) <= 1e-5:
                raise ArtifactError(
                    f"{row.metric} of {method} on {row.task} is {collected:.6f} in the scores and {value:.6f} by its "
                    f"predictions; {MEND}"
                )

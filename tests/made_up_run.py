"""A finished run's folder with made-up numbers, as far as report, notebook and verification read it; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from d2llm.config.catalogue import entries
from d2llm.config.load import dump, load
from d2llm.config.schema import Config
from d2llm.evaluation.about import behind
from d2llm.reporting.layout import tables
from d2llm.run.artifacts import write_frame, write_json, write_text
from d2llm.run.paths import Paths
from d2llm.run.schemas import COMPARISONS, RUNS, STANDINGS

PAIRS, SIMILARITY = ("accuracy", "ap", "precision", "recall"), ("pearson", "spearman")
RANKS = ("mrr_at_10", "recall_at_10", "ndcg_at_10")
# Name, title, type, group, metrics.
TASKS = [
    ("nli_a", "NLI <A>", "pair_classification", "nli", PAIRS),
    ("nli_b", "NLI-B", "pair_classification", "nli", PAIRS),
    ("sts_a", "STS-A", "sts", "sts", SIMILARITY),
    ("ir_a", "IR-A", "retrieval", "ir", RANKS),
]
HEADLINE = {"nli": "ap", "sts": "spearman", "ir": "mrr_at_10"}
SKILL = {"teacher": 0.9, "bm25": 0.3, "bge": 0.61, "sgpt": 0.52, "d2llm": 0.7}


def value(method: str, seed: int, task: int, metric: int) -> float:
    """A score: no two are alike."""
    return SKILL[method] + 0.01 * task + 0.001 * metric + 0.0001 * seed


def make(
    folder: Path,
    *,
    methods: tuple[str, ...] = ("bge", "sgpt", "d2llm"),
    seeds: tuple[int, ...] = (1,),
    variants: dict[str, dict] | None = None,
    tasks: list[tuple] = TASKS,
    **settings: Any,
) -> Config:
    """Write scores, comparisons and tables of a run; returns its config. The scores of the n-th variant are n hundredths
    above its method's.
    """
    settings |= {"results": str(folder), "methods": {name: {} for name in methods}, "seeds": list(seeds)}
    config = load([], settings | ({"variants": variants} if variants else {}))
    paths = Paths.of(config)
    write_text(paths.config, dump(config))
    frame = scores(methods, seeds, tasks).assign(tier=config.tier)
    for place, (name, about) in enumerate((variants or {}).items(), 1):
        own = frame[(frame["method"] == about["method"]) & (frame["variant"] == "base") & frame["seed"].isin(seeds[:1])]
        frame = pd.concat([frame, own.assign(variant=name, value=own["value"] + 0.01 * place)], ignore_index=True)
    write_frame(paths.scores, frame)
    frame.to_csv(paths.scores_csv, index=False)
    comparisons(methods, seeds, tasks).to_csv(paths.comparisons, index=False)
    pd.DataFrame(columns=list(STANDINGS)).to_csv(paths.standings, index=False)
    for name, entry in entries("table").items():
        if set(entry.reads) <= {"scores", "comparisons", "standings"}:
            tables.run(config, name)
    return config


def scores(methods: tuple[str, ...], seeds: tuple[int, ...], tasks: list[tuple] = TASKS) -> pd.DataFrame:
    """Every method's, with one phenomenon of NLI."""
    rows = []
    for method in ("teacher", "bm25", *methods):
        for seed in seeds if method in methods else seeds[:1]:
            about = {"tier": "mini", "method": method, "variant": "base", "seed": seed, "split": "test"}
            for place, (task, title, kind, group, metrics) in enumerate(tasks):
                about |= {"task": task, "task_title": title, "task_type": kind, "group": group, "scorer": "cosine"}
                shown = [("all", metric, step, 1200) for step, metric in enumerate(metrics)]
                shown += [("role swap", "auc", 8, 25)] if group == "nli" else []
                for phenomenon, metric, step, n in shown:
                    score = {"metric": metric, "value": value(method, seed, place, step), "n": n}
                    rows.append(about | {"candidates": "", "phenomenon": phenomenon} | score)
    return pd.DataFrame(rows)


def comparisons(methods: tuple[str, ...], seeds: tuple[int, ...], tasks: list[tuple] = TASKS) -> pd.DataFrame:
    """D2LLM significantly ahead on NLI, ahead without significance on STS, significantly behind on IR."""
    if "d2llm" not in methods or len(methods) < 2:
        return pd.DataFrame(columns=list(COMPARISONS))
    names = [task[0] for task in tasks]
    rows = [
        {"group": group, "task": task, "metric": HEADLINE[group], "method": "d2llm", "baseline": baseline,
         "strongest": baseline == "bge", "value": 0.7011, "difference": difference, "low": difference - 0.02,
         "high": difference + 0.02, "p": p / 2, "p_holm": p, "seeds": len(seeds), "n": 1200}
        for group, task, difference, p in (
            ("nli", names[0], 0.0912, 0.001), ("nli", names[1], 0.0913, 0.002), ("nli", "average", 0.0915, 0.0001),
            ("sts", names[2], 0.0234, 0.2), ("ir", names[3], -0.0345, 0.01),
        )
        for baseline in sorted(set(methods) - {"d2llm"})
    ]  # fmt: skip
    return pd.DataFrame(rows)


def extras(config: Config, tasks: list[tuple] = TASKS) -> None:
    """What a run may have besides: card, leaks, reports, summaries, a record, a tuning record, examples."""
    paths = Paths.of(config)
    made_up_examples(config, tasks)
    shown = [{"query": "甲 <b>", "positive": "乙"}]
    train = {"dataset": "nli", "mode": "symmetric", "pairs": 7466, "queries": 3656, "pool": 14676, "examples": shown}
    teacher = [{"split": split, "mode": "symmetric", "groups": 40, "pairs": 48111} for split in ("train", "dev")]
    write_json(paths.card_json, {"training": [train], "evaluation": [], "teacher": teacher})
    seen = {"examples": 1200, "same_pair": 0, "near_duplicates": 4}
    write_json(paths.leaks, {"removed": 3, "tasks": {f"{tasks[0][0]}/test": seen}})
    mined = {"queries": 7464, "left_out": 2, "sources": {"bm25": 14928, "dense": 14927}, "distinct_negatives": 11658}
    write_json(paths.negatives_report, {"nli": mined})
    quality = {"n": 2283, "ap": 0.9921, "accuracy": 0.9636, "expected_calibration_error": 0.1707}
    write_json(paths.teacher_report, {"symmetric": quality | {"spearman_with_targets": 0.9}})
    job = {"stage": "train", "settings": {}, "code": "c0de", "version": "0.1.0", "threads": 1, "seconds": 12.3,
           "started": "2026-01-01T00:00:00+00:00", "peak_memory_mb": 512.0, "packages": {"torch": "2.13.0"}}  # fmt: skip
    for run in config.runs():
        write_json(paths.run(*run) / "provenance.json", job | run._asdict())
    budget = dict.fromkeys(RUNS, 0) | {
        "kind": "encoder", "pooling": "cls", "scorer": "cosine", "updates": 1600, "queries": 25600,
        "negatives_per_query": 4, "backbone_trained": 69632, "head_trained": 5, "parameters": 958337,
    }  # fmt: skip
    pd.DataFrame([budget | run._asdict() for run in config.runs()]).to_csv(paths.trainings, index=False)
    write_json(paths.about, behind(config))
    trials = [("bge", "learning_rate 0.1", 0.5, True), ("bge", "learning_rate 0.2", 0.4, False)]
    frame = pd.DataFrame(trials, columns=["method", "setting", "pair_classification", "chosen"])
    paths.trials.parent.mkdir(parents=True, exist_ok=True)
    frame.assign(mean=frame["pair_classification"]).to_csv(paths.trials, index=False)


def made_up_examples(config: Config, tasks: list[tuple]) -> None:
    """`examples.json` of one set of pairs and one of queries; text that a page has to escape."""
    names = ["teacher", "bm25", *config.methods]
    pair = {"id": "p1", "phenomenon": "role swap", "spread": 0.75, "label": 1, "passage": "乙 & 丙",
            "query": "甲 <script>alert(1)</script>"}  # fmt: skip
    other = pair | {"id": "p2", "phenomenon": "negation", "spread": 0.5, "query": "丁", "label": 0}
    query = {"id": "q1", "phenomenon": "all", "spread": 1.0, "query": "谁？", "passage": "是他。", "right": 2,
             "instead": [{"methods": ["bge"], "text": "是她。"}]}  # fmt: skip
    pairs = {name: {"standing": 0.01 * place + 0.5, "score": -0.25 - place} for place, name in enumerate(names)}
    ranks = {name: {"standing": 0.5, "ranks": [1, None, 37]} for name in names}
    shown = {-1: (500, [query | {"methods": ranks}]), 0: (1200, [one | {"methods": pairs} for one in (pair, other)])}
    sets = [
        {"task": tasks[n][0], "title": tasks[n][1], "type": tasks[n][2], "of": count, "examples": examples}
        for n, (count, examples) in shown.items()
    ]
    write_json(Paths.of(config).examples, {"kept": 40, "characters": 300, "tasks": sets})

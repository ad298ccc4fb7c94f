"""What a training leaves besides its model, made up: summaries, provenance and logs, whose numbers tell whose they are;
a data card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2llm.config.schema import Config, Run
from d2llm.evaluation.curves import curves, trainings
from d2llm.run.artifacts import append_jsonl, write_frame, write_json
from d2llm.run.paths import Paths

UPDATES = 40
TASKS = {"nli_x": 0.5, "sts_x": 0.6, "ir_x": 0.7}
# Pooling and scorer as a student names them.
PARTS = {"d2llm": (["pma", {"heads": 4}], ["iem", {"hidden": 16, "scale": 10.0}])}
OTHER = (["cls", {}], ["cosine", {}])
CARD: dict[str, Any] = {
    "training": [{"dataset": "nli", "mode": "symmetric", "queries": 3656, "pairs": 7466, "pool": 14676}],
    "evaluation": [
        {"task": "nli_x", "split": "dev", "n": 600, "mean_label": 0.5},
        {"task": "ir_x", "split": "test", "n": 500, "passages": 2000, "relevant_per_query": 1.93},
    ],
    "teacher": [{"split": "train", "mode": "asymmetric", "groups": 12000, "pairs": 47975, "share_yes": 0.25}],
}


def ci(seed: int, step: int) -> float:
    """A D2LLM run's term at a step."""
    return round(1.0 / step + 0.01 * seed, 6)


def records(run: Run) -> list[dict[str, Any]]:
    """A log: D2LLM has two terms, every other method one and a stage of its own before."""
    log: list[dict[str, Any]] = []
    more = {"gradient_norm": 9.0, "learning_rate": 8.0}
    if run.method != "d2llm":
        log.append({"stage": f"{run.method}, own", "step": 50, "lm": 3.0, "mlm": 4.0, "loss": 7.0, **more})
    for step in range(2, UPDATES + 1, 2):
        value = ci(run.seed, step)
        terms = {"ci": value, "fi": 0.001} if run.method == "d2llm" else {"info_nce": 2 * value}
        record = {"stage": "fine-tuning", "step": step, "dataset": "nli", **terms, "loss": sum(terms.values())}
        log.append(record | more)
        if step % 20 == 0:
            dev = {task: value + step / 1000 + run.seed / 100 for task, value in TASKS.items()}
            log.append({"stage": "dev", "step": step, **dev})
    return log


def write_run(folder: Path, run: Run) -> None:
    """The files of one run."""
    pooling, scorer = PARTS.get(run.method, OTHER)
    subject = run.method == "d2llm"
    counts = {"backbone_trained": 69632, "head_trained": 461441 if subject else 0, "total": 958337}
    write_json(
        folder / "summary.json",
        {**run._asdict(), "kind": "decoder" if subject else "encoder", "pooling": pooling, "scorer": scorer,
         "parameters": counts, "updates": UPDATES, "queries": UPDATES * 16, "negatives_per_query": 4,
         "pretext_seconds": 1.5, "seconds": 100.0 + run.seed, "last_losses": {"loss": 0.25, "gradient_norm": 1.0}},
    )  # fmt: skip
    write_json(folder / "provenance.json", {"peak_memory_mb": 800.0 + run.seed, "seconds": 1.0})
    (folder / "log.jsonl").unlink(missing_ok=True)
    for record in records(run):
        append_jsonl(folder / "log.jsonl", record)


def write_runs(config: Config) -> None:
    """The files of every run of a config."""
    for run in config.runs():
        write_run(Paths.of(config).run(*run), run)


def write_collected(config: Config) -> None:
    """`runs.csv`, `curves.parquet` and the data card, for what is rendered from them."""
    paths = Paths.of(config)
    write_runs(config)
    runs = {run: paths.run(*run) for run in config.runs()}
    trained = trainings(runs)
    paths.trainings.parent.mkdir(parents=True, exist_ok=True)
    trained.to_csv(paths.trainings, index=False)
    updates = dict(zip(runs, trained["updates"], strict=True))
    write_frame(paths.curves, curves({run: [folder / "log.jsonl"] for run, folder in runs.items()}, updates))
    write_json(paths.card_json, CARD)

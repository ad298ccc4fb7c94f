"""Stage `tune`: which of a method's trials is best on the development splits, and the record of all of them.

Trains and evaluates nothing: trials are runs like any other, evaluated on development data. Every method has as many
(`d2llm.config.checks.check_grids`), so that a lead is not one of tuning. `adopt` writes what was chosen into a tier's
file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from d2llm.config.load import read
from d2llm.config.task_types import HEADLINE, TASK_TYPES
from d2llm.config.values import nested, plain
from d2llm.run.artifacts import atomic, read_csv, read_frame, read_json, require, write_text
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths, provenance_of
from d2llm.run.provenance import file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from d2llm.config.schema import Config

# Begins the line of a tier's file that tells where its tuned values come from.
TUNED = "  # Tuned:"
# The three kinds of task weigh alike, and so do the tasks of a kind.
_COLUMNS = {"split": "str", "task": "str", "task_type": "str", "phenomenon": "str", "metric": "str", "value": "float"}


def run(config: Config) -> None:
    """Write `tuning/trials.csv`, `trials.md` and `chosen.yaml`."""
    paths, rows = Paths.of(config), []
    tried = config.tuning_trials()
    for trial in tried:
        scores = read_frame(paths.development(*trial.run) / "scores.parquet", _COLUMNS)
        summary = read_json(paths.run(*trial.run) / "summary.json")
        columns = {"method": trial.run.method, "seed": trial.run.seed}
        setting = ", ".join(f"{key} {plain(value)}" for key, value in trial.settings.items())
        edge = at_edge(config.tuning.grids[trial.run.method], trial.settings)
        rows.append(columns | {"setting": setting, "edge": edge} | judged(scores) | {"seconds": summary["seconds"]})
    trials = choose(pd.DataFrame(rows))
    best = {
        trial.run.method: nested(trial.settings)
        for trial, chosen in zip(tried, trials["chosen"], strict=True)
        if chosen
    }
    with atomic(paths.trials) as temporary:
        trials.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
    write_text(paths.trials_md, markdown(trials))
    write_text(paths.chosen, yaml.safe_dump({"methods": best}, sort_keys=False, allow_unicode=True))


def judged(scores: pd.DataFrame) -> dict[str, float]:
    """The mean of each kind of task and the mean over kinds of one run's development scores."""
    if set(scores["split"]) != {"dev"}:
        raise ValueError(f"trials are judged on the split dev, found {', '.join(sorted(set(scores['split'])))}")
    used = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
    kinds = used.groupby("task_type")["value"].mean()
    return {name: float(kinds[name]) for name in HEADLINE if name in kinds} | {"mean": float(kinds.mean())}


def at_edge(axes: Mapping[str, list[Any]], point: Mapping[str, Any]) -> str:
    """The settings, of three values and more, of which a point has the first or last: a better one may lie beyond."""
    return ", ".join(key for key, values in axes.items() if len(values) > 2 and point[key] in (values[0], values[-1]))


def choose(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a column `chosen`: True at the best mean of each method, the first of equal ones."""
    best = trials.groupby("method", sort=False)["mean"].idxmax()
    return trials.assign(chosen=trials.index.isin(best))


def markdown(trials: pd.DataFrame) -> str:
    """The record for a reader; what was chosen in bold."""
    kinds = [name for name in HEADLINE if name in trials]
    head = ["method", "setting", *(TASK_TYPES[name].headline_title for name in kinds), "mean", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(kinds) + 2)]
    for row in trials.to_dict("records"):
        setting = row["setting"]
        if row["chosen"]:
            setting = f"**{setting}**" + (f" (edge of {row['edge']})" if row["edge"] else "")
        numbers = [f"{row[name]:.3f}" for name in (*kinds, "mean")]
        lines.append("| " + " | ".join([row["method"], setting, *numbers, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def adopt_file(config: Config, file: Path) -> str:
    """Write the choice of a finished `tune` into a tier's file; returns what was written, in a line."""
    paths = Paths.of(config)
    path = paths.chosen
    chosen = read(require(path, "snakemake tune --cores all")).get("methods")
    if not isinstance(chosen, dict) or not all(isinstance(settings, dict) for settings in chosen.values()):
        raise ConfigError(f"{path}: not what `snakemake tune` writes; remove it and run that again")
    note = origin(paths.trials)
    write_text(file, adopt(require(file).read_text(encoding="utf-8"), chosen, note))
    return ", ".join(
        f"{method} {key} {value}" for method, settings in chosen.items() for key, value in settings.items()
    )


def origin(trials: Path) -> str:
    """Where a choice comes from, for the file that takes it over: how many trials, the digest of their table, when and
    by which code.
    """
    record = read_json(provenance_of(trials)) if provenance_of(trials).exists() else {}
    count = len(read_csv(trials, {"method": "str"}))
    facts = [f"{count} trials on dev", f"trials.csv SHA-256 {file_digest(trials)[:16]}"]
    facts += [str(record["started"])[:10]] if record.get("started") else []
    facts += [f"commit {record['commit'][:10]}"] if record.get("commit") else []
    return ", ".join(facts)


def adopt(text: str, chosen: Mapping[str, Mapping[str, Any]], note: str = "") -> str:
    """A tier's YAML with the chosen values in its section `methods`, everything else as it was, comments included; a
    comment there tells the `note`.

    Raises ConfigError where a method or a key has no line of its own to change.
    """
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if re.match(r"methods:\s*(#.*)?$", line)), len(lines))
    last = next((i for i in range(first + 1, len(lines)) if re.match(r"[^\s#]", lines[i])), len(lines))
    for method, settings in chosen.items():
        start = next((i for i in range(first, last) if re.match(rf"  {method}:\s*(#.*)?$", lines[i])), None)
        if start is None:
            raise ConfigError(f"methods.{method}: no line of its own; write it as a section and adopt again")
        end = next((i for i in range(start + 1, last) if re.match(r" {0,2}\S", lines[i])), last)
        for key, value in settings.items():
            where = [i for i in range(start + 1, end) if re.match(rf"    {key}:", lines[i])]
            if not where or isinstance(value, Mapping):
                raise ConfigError(f"methods.{method}.{key}: no line of its own; set it to {value!r} by hand")
            old = re.match(r"(    \w+: *)([^#\s\"'{\[]+)(\s*(#.*)?)$", lines[where[0]])
            if old is None:
                raise ConfigError(f"methods.{method}.{key}: not a plain value; set it to {value!r} by hand")
            shown = yaml.safe_dump(value).splitlines()[0]
            lines[where[0]] = f"{old[1]}{shown}{old[3]}"
    if note:
        others = [line for line in lines[first + 1 : last] if not line.startswith(TUNED)]
        lines[first + 1 : last] = [f"{TUNED} {note}", *others]
    return "\n".join(lines) + "\n"

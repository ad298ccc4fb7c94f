"""Stage `report`: the whole run on one HTML page that needs no other file and no network.

Shows what has been collected and rendered, and computes nothing anew but the means of the overview. What is not there
(tuning, a teacher's report, D2LLM itself) is left out or said to be missing; only scores and comparisons have to be
there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.catalogue import Kind, entries
from d2llm.config.load import dump
from d2llm.config.task_types import HEADLINE, METRIC_TITLES, TASK_TYPES
from d2llm.evaluation.about import optional
from d2llm.reporting import captions
from d2llm.reporting.context import context
from d2llm.reporting.page import browse
from d2llm.reporting.page.claims import claims, sentence
from d2llm.reporting.page.history import Job, by_stage, history, machine
from d2llm.reporting.style import CONTROLLED_TEXT, GROUP_TITLES, number, signed
from d2llm.run import jobs
from d2llm.run.artifacts import read_csv, read_json, write_text
from d2llm.run.logs import get_logger
from d2llm.run.paths import PROVENANCE, Paths, provenance_of
from d2llm.run.schemas import COMPARISONS, RUNS, SCORES, SUBJECT

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

    from d2llm.config.schema import Config
    from d2llm.reporting.context import Context

logger = get_logger("report")
TEMPLATES = Path(__file__).with_name("templates")
# A page that is made of itself would never be the same twice.
OWN = ("report", "notebook", "search_notebook")


def run(config: Config) -> None:
    """Write `report.html`. Raises ArtifactError when scores or comparisons are missing or damaged."""
    write_text(Paths.of(config).report, html(config))


def html(config: Config) -> str:
    """The page."""
    return environment().get_template("report.html").render(facts(config))


def environment() -> jinja2.Environment:
    """Templates that escape what they are given and fail on a name nobody gave them."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["signed"] = signed
    templates.filters["score"] = number
    templates.filters["p"] = lambda value: "–" if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"
    templates.filters["count"] = lambda value: f"{value:,}"
    return templates


def facts(config: Config) -> dict[str, Any]:
    """Everything the template shows."""
    paths, about = Paths.of(config), context(config)
    scores = read_csv(paths.scores_csv, SCORES)
    compared = read_csv(paths.comparisons, COMPARISONS)
    tasks = scores.drop_duplicates("task").set_index("task")["task_title"].to_dict()
    leads = claims(compared, tasks, about)
    behind = optional(paths.about) or {}
    jobs_done = behind.get("records", {}) | rendered(paths) | tried(config, paths)
    trained = scores[scores["method"].isin(about.methods) & (scores["variant"] == "base")]
    return {
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "tier": config.tier,
        "generated": about.generated,
        "controlled": CONTROLLED_TEXT,
        "split": "/".join(sorted(set(scores["split"]))),
        "seeds": sorted(set(trained["seed"].tolist())),
        **judging(compared, about),
        "claims": leads,
        "verdicts": {title: sentence(title, rows, about) for title, rows in leads.items()},
        "overview": overview(scores, about),
        **headed(sections(config, paths, about)),
        "browse": browsed(scores, optional(paths.examples), about) | {"rival": rival(compared, about)},
        "methods": [described(config, name, about) for name in about.methods],
        "references": [about.titles.get(name, name) for name in about.references],
        "groups": sorted(set(scores["group"])),
        "labels": labels(behind.get("card")),
        "lead": about.subject,
        "subject": about.titles.get(SUBJECT) if SUBJECT in about.methods else None,
        "budgets": budgets(paths, about),
        "training": config.training.model_dump(),
        "updates": {about.titles.get(name, name): steps for name, steps in config.training.steps_of.items()},
        "settings": settings_text(config),
        **{name: behind.get(name) for name in ("card", "leaks", "negatives", "teacher")},
        "min_ap": config.teacher.min_ap,
        "tuning": tuning(config, paths, jobs_done, about),
        **origin(history(jobs_done, config, without=OWN)),
    }


def judging(compared: pd.DataFrame, about: Context) -> dict[str, Any]:
    """By what differences are judged, and how many of them are tested."""
    tested = int(compared["p_holm"].notna().sum())
    return {"level": about.level, "equivalent": about.equivalent, "compared": tested}


def origin(jobs: list[Job]) -> dict[str, Any]:
    """The jobs, what they come to, and where they ran."""
    return {
        "jobs": jobs,
        "stages": by_stage(jobs),
        "machine": machine(jobs),
        "suite": sorted({job.version for job in jobs}),
        "total_seconds": sum(job.seconds for job in jobs),
    }


def labels(card: dict[str, Any] | None) -> dict[str, int] | None:
    """Pairs that the teacher was tuned on, and those that all methods see; None where the card does not tell both."""
    if card is None or not card.get("teacher"):
        return None
    tuned = sum(row["pairs"] for row in card["teacher"] if row["split"] == "train")
    return {"teacher": tuned, "training": sum(row["pairs"] for row in card["training"])}


def rendered(paths: Paths) -> dict[str, dict[str, Any]]:
    """The records of what is made of the collected files, and of these, as far as they are there."""
    files = [paths.scores, paths.comparisons, paths.ablations, paths.runtime, paths.examples]
    files += [paths.table(name, "csv") for name in entries("table")]
    files += [paths.figure(name, "svg") for name in entries("figure")]
    return told(paths, map(provenance_of, files))


def tried(config: Config, paths: Paths) -> dict[str, dict[str, Any]]:
    """The records of tuning, where there is a record of trials."""
    if not paths.trials.exists():
        return {}
    folders = [place(*trial.run) for trial in config.trials() for place in (paths.run, paths.development)]
    folders += [paths.pretext(*stage) for stage in config.pretexts()]
    return told(paths, [provenance_of(paths.trials), *(folder / PROVENANCE for folder in folders)])


def told(paths: Paths, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Records by their path below the run's folder; files that are not there are left out."""
    return {file.relative_to(paths.root).as_posix(): read_json(file) for file in files if file.exists()}


def settings_text(config: Config) -> str:
    """The settings as YAML, without where the results lie, which decides nothing."""
    return "\n".join(line for line in dump(config).splitlines() if not line.startswith("results:")) + "\n"


# ---------------------------------------------------------------------------------------------------------- results
def overview(scores: pd.DataFrame, about: Context) -> dict[str, Any]:
    """Means over seeds of each task's headline metric: `columns` of (task, metric), `rows` of (title, kind, values)."""
    used = scores[(scores["variant"] == "base") & (scores["phenomenon"] == "all")]
    used = used[used["metric"] == used["task_type"].map(HEADLINE)]
    order = {group: place for place, group in enumerate(GROUP_TITLES)}
    heads = used.drop_duplicates("task")
    heads = heads.assign(place=heads["group"].map(order).fillna(len(order))).sort_values(["place", "task"])
    means = used.groupby(["method", "task"])["value"].mean().to_dict()
    best = {task: max(means[name, task] for name in about.methods) for task in heads["task"]}
    rows = []
    for name in (*about.references, *about.methods):
        cells = [
            (means[name, task], name in about.methods and number(means[name, task]) == number(best[task]))
            for task in heads["task"]
        ]
        rows.append((about.label(name), "reference" if name in about.references else "method", cells))
    return {
        "columns": [(row.task_title, METRIC_TITLES.get(row.metric, row.metric), row.n) for row in heads.itertuples()],
        "rows": rows,
        "note": about.note,
    }


def browsed(scores: pd.DataFrame, collected: dict[str, Any] | None, about: Context) -> dict[str, Any]:
    """What the part to browse shows, and what its filters offer."""
    rows = browse.score_rows(scores, about)
    columns, variants = browse.variant_rows(scores, about)
    choices = {key: list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("task", "metric", "seed")}
    examples = browse.example_tables(collected, choices["task"], about) if collected else []
    hard = sorted({row["phenomenon"] for task in examples for row in task["examples"]})
    return {
        "titles": [(name, about.label(name)) for name in (*about.references, *about.methods)],
        "scores": rows,
        "choices": choices | {"phenomenon": sorted({row.phenomenon for row in rows} - {"all"}), "hard": hard},
        "variant_columns": columns,
        "variants": variants,
        "examples": examples,
        "language": "zh" if about.generated else "",
        **({key: collected[key] for key in ("kept", "characters")} if collected else {}),
    }


def sections(config: Config, paths: Paths, about: Context) -> list[dict[str, Any]]:
    """The rendered tables and figures by section, in their order; sections that have none are left out."""
    members: dict[str, list[dict[str, Any]]] = {name: [] for name in captions.SECTIONS}
    for name in entries("table"):
        path = paths.table(name, "html")
        if current(config, "table", name, path, paths):
            add(members, "table", name, about, path.read_text(encoding="utf-8"))
    for name in entries("figure"):
        path = paths.figure(name, "svg")
        if current(config, "figure", name, path, paths):
            add(
                members,
                "figure",
                name,
                about,
                "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode(),
            )
    return [
        {"key": key, "title": captions.SECTIONS[key][0], "intro": captions.SECTIONS[key][1], "members": shown}
        for key, shown in members.items()
        if shown
    ]


def headed(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sections, and apart from them what stands beside the claims."""
    return {
        "sections": [part for part in parts if part["key"] != "claims"],
        "claimed": [member for part in parts if part["key"] == "claims" for member in part["members"]],
    }


def rival(compared: pd.DataFrame, about: Context) -> str:
    """The baseline that is most often the strongest, else the first method: whom the subject is compared with first."""
    strongest = compared.loc[compared["strongest"], "baseline"].mode()
    return strongest.iloc[0] if len(strongest) else next(iter(about.methods), "")


def add(members: dict[str, list[dict[str, Any]]], kind: Kind, name: str, about: Context, content: str) -> None:
    """Put one table or figure with its texts into its section."""
    caption = captions.caption(kind, name, about)
    members[caption.section].append({"kind": kind, "name": name, "caption": caption, "content": content})


def current(config: Config, stage: str, name: str, path: Path, paths: Paths) -> bool:
    """Whether a rendered file is there and of this config: one that other settings left behind is not shown."""
    if not path.exists():
        return False
    record = provenance_of(paths.table(name, "csv") if stage == "table" else paths.figure(name, "svg"))
    if record.exists() and read_json(record)["settings"] != jobs.settings(config, stage, name=name):
        logger.warning("%s: of other settings than this config's; left out", path)
        return False
    return True


# ------------------------------------------------------------------------------------------------------ how it was run
def described(config: Config, name: str, about: Context) -> dict[str, Any]:
    """A method with its source and the settings that are not its published ones."""
    from d2llm.config.registry import declared

    method = declared(name)
    changed = flat(config.overrides(name, "base"))
    return {
        "title": about.titles.get(name, name),
        "citation": method.citation,
        "kind": method.kind,
        "teacher": method.reads_scores(config.recipe(name)),
        "changed": [(key, plain(value)) for key, value in changed.items()],
    }


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key.

    >>> flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return values


def plain(value: Any) -> str:
    """A setting as it is read in a config file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def budgets(paths: Paths, about: Context) -> list[dict[str, Any]]:
    """What each training had: parameters and updates."""
    if not paths.trainings.exists():
        return []
    rows = []
    for run in read_csv(paths.trainings, RUNS).to_dict("records"):
        title = about.titles.get(run["method"], run["method"])
        rows.append(run | {"title": title if run["variant"] == "base" else f"{title}, {run['variant']}"})
    return rows


def tuning(config: Config, paths: Paths, jobs_done: dict[str, dict[str, Any]], about: Context) -> dict[str, Any] | None:
    """The record of `tune`, None without one: `trials`, and whether they are `current`, of the config's grids."""
    if not paths.trials.exists():
        return None
    import pandas as pd

    record = jobs_done.get(provenance_of(paths.trials).relative_to(paths.root).as_posix())
    trials = pd.read_csv(paths.trials, keep_default_na=False)
    kinds = [name for name in HEADLINE if name in trials]
    return {
        "current": record is None or record["settings"]["tuning"] == config.tuning.model_dump(mode="json"),
        "kinds": [TASK_TYPES[name].headline_title for name in kinds],
        "rows": [
            (
                about.titles.get(row["method"], row["method"]),
                row["setting"],
                [row[name] for name in kinds],
                row["mean"],
                row["chosen"],
            )
            for row in trials.to_dict("records")
        ],
        "each": int(trials.groupby("method").size().max()),
    }

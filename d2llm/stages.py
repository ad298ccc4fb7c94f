"""What a stage is: the function that does it, the code and settings its result depends on, where its provenance goes.

The command line runs stages by this table, and the workflow decides by it what is out of date. Torch-free.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from d2llm.artifacts import read_json
from d2llm.config import Config, Run, StatisticsSettings, canonical
from d2llm.errors import ArtifactError, ConfigError
from d2llm.methods import method as find_method
from d2llm.paths import PROVENANCE, Paths, beside
from d2llm.provenance import code_digest, packages, versions
from d2llm.reporting.catalogue import FIGURE_SETTINGS, FIGURES, TABLE_SETTINGS, TABLES, figure_module
from d2llm.section import Section

RUN = ("method", "variant", "seed")
# Of the settings of a teacher: how it is asked. The others, but for `shards`, are how it is tuned.
ASKING = ("symmetric", "asymmetric", "max_length", "pack_size", "batch_tokens", "quantization")
ASKED = tuple(f"teacher.{key}" for key in ASKING)
# What decides results: all but where they lie and how many threads make them.
WHOLE = tuple(name for name in Config.model_fields if name not in ("results", "threads"))


@dataclass(frozen=True)
class Stage:
    """One kind of job. Its arguments name the job among its kind, e.g. `--method bge --variant base --seed 1`."""

    function: str  # "module:name", called with the config and the arguments
    provenance: Callable[..., Path]  # of paths and arguments
    settings: tuple[str, ...] = ()  # the parts of the config it reads; `{argument}` is filled in
    arguments: tuple[str, ...] = ()
    torch: bool = False  # whether it computes with torch, which is then seeded before it starts
    resumes: bool = False  # whether its function takes `resume` and goes on from a checkpoint
    # Where its provenance lies beside one of several files: all of them.
    files: Callable[..., list[Path]] | None = None


STAGES: dict[str, Stage] = {
    "download": Stage(
        "d2llm.data.download:run",
        lambda paths, download: paths.download(download) / PROVENANCE,
        arguments=("download",),
    ),
    "texts": Stage(
        "d2llm.data.build:run_texts",
        lambda paths: beside(paths.pretraining),
        settings=("data.source", "data.world.seed", "data.world.pretraining_texts", "data.files"),
    ),
    "data": Stage(
        "d2llm.data.build:run",
        lambda paths: paths.data / PROVENANCE,
        settings=("data",),
    ),
    "base": Stage(
        "d2llm.pretraining:run",
        lambda paths, model: paths.base(model) / PROVENANCE,
        settings=("teacher.symmetric", "teacher.asymmetric"),  # the vocabulary holds the prompts
        arguments=("model",),
        torch=True,
        resumes=True,
    ),
    "vectors": Stage(
        "d2llm.data.vectors:run",
        lambda paths, shard, shards: beside(paths.vectors(shard, shards)),
        settings=("negatives.shards", "training.max_length"),
        arguments=("shard", "shards"),
        torch=True,
    ),
    "negatives": Stage(
        "d2llm.data.negatives:run",
        lambda paths: paths.pairs.with_name(PROVENANCE),
        settings=("negatives", "training.pack", "training.max_length"),
        torch=True,
    ),
    "teacher": Stage(
        "d2llm.teacher_tuning:run",
        lambda paths, teacher: paths.teacher(teacher) / PROVENANCE,
        arguments=("teacher",),
        torch=True,
        resumes=True,
    ),
    "teacher-scores": Stage(
        "d2llm.teacher_scores:run",
        lambda paths, teacher, shard, shards: beside(paths.teacher_scores(shard, shards, teacher)),
        settings=("teacher.shards",),
        arguments=("teacher", "shard", "shards"),
        torch=True,
    ),
    "pretext": Stage(
        "d2llm.pretext:run",
        lambda paths, method, variant: paths.pretext(method, variant) / PROVENANCE,
        settings=("training.max_length",),
        arguments=("method", "variant"),
        torch=True,
        resumes=True,
    ),
    "train": Stage(
        "d2llm.training:run",
        lambda paths, method, variant, seed: paths.run(method, variant, seed) / PROVENANCE,
        settings=("training",),
        arguments=RUN,
        torch=True,
        resumes=True,
    ),
    "evaluate": Stage(
        "d2llm.evaluation.run:run",
        lambda paths, method, variant, seed: paths.evaluation(method, variant, seed) / PROVENANCE,
        settings=("evaluation",),
        arguments=RUN,
        torch=True,
    ),
    "evaluate-dev": Stage(
        "d2llm.evaluation.development:run",
        lambda paths, method, variant, seed: paths.development(method, variant, seed) / PROVENANCE,
        settings=("evaluation.tasks", "evaluation.batch_size", "evaluation.symmetric_order"),
        arguments=RUN,
        torch=True,
    ),
    "tune": Stage(
        "d2llm.tuning:run",
        lambda paths: beside(paths.trials),
        settings=("methods", "tuning"),
        files=lambda paths: [paths.trials, paths.trials_md, paths.chosen],
    ),
    "collect": Stage(
        "d2llm.evaluation.collect:run",
        lambda paths: beside(paths.scores),
        files=lambda paths: [
            paths.scores,
            paths.scores_csv,
            paths.predictions,
            paths.trainings,
            paths.curves,
            paths.about,
        ],
    ),
    "comparison": Stage(
        "d2llm.comparison:run",
        lambda paths: beside(paths.comparisons),
        settings=("statistics",),
    ),
    "ablations": Stage(
        "d2llm.comparison:run_ablations",
        lambda paths: beside(paths.ablations),
        settings=("statistics", "seeds", "variant_seeds", "include", "variants", "sweeps"),
    ),
    "runtime": Stage(
        "d2llm.evaluation.runtime:run",
        lambda paths: beside(paths.runtime),
        settings=(
            "runtime",
            "threads",
            "references",
            *(f"evaluation.{key}" for key in ("split", "batch_size", "teacher_candidates", "bm25")),
            *ASKED,
            "training.max_length",
        ),
        torch=True,
    ),
    "figure": Stage(
        "d2llm.reporting.figures:run",
        lambda paths, name: beside(paths.figure(name, "svg")),
        settings=("references", "data.source", "statistics.level"),
        arguments=("name",),
        files=lambda paths, name: [paths.figure(name, ext) for ext in ("pdf", "svg", "png")],
    ),
    "table": Stage(
        "d2llm.reporting.tables:run",
        lambda paths, name: beside(paths.table(name, "csv")),
        settings=("references", "data.source", "evaluation.symmetric_order", "statistics"),
        arguments=("name",),
        files=lambda paths, name: [paths.table(name, ext) for ext in ("csv", "md", "tex", "html")],
    ),
    "examples": Stage(
        "d2llm.reporting.disagreement:run",
        lambda paths: beside(paths.examples),
        settings=("references", "evaluation.split", "evaluation.tasks"),
    ),
    "report": Stage(
        "d2llm.reporting.report:run",
        lambda paths: beside(paths.report),
        settings=WHOLE,
    ),
    "notebook": Stage(
        "d2llm.reporting.notebook:run",
        lambda paths: beside(paths.notebook),
    ),
    "search-notebook": Stage(
        "d2llm.reporting.notebook:run_search",
        lambda paths: beside(paths.search_notebook),
    ),
}


def settings(config: Config, stage: str, **arguments: Any) -> dict[str, Any]:
    """The settings a job's result depends on, by their keys; a change of any other makes nothing of it stale."""
    values = config.model_dump(mode="json")
    del values["training"]["checkpoint_minutes"]  # decides how much is lost by a kill, and no result
    subject = values["statistics"].pop("subject")
    wanted = [key.format(**arguments) for key in STAGES[stage].settings]
    if stage == "evaluate" and arguments["method"] == "teacher":
        wanted += [*ASKED, "training.max_length"]
    if stage == "figure":
        wanted += FIGURE_SETTINGS.get(arguments["name"], ())
    if stage == "table":
        wanted += TABLE_SETTINGS.get(arguments["name"], ())
    found: dict[str, Any] = {key: reduce(getitem, key.split("."), values) for key in wanted}
    if stage == "base":
        found[f"models.{arguments['model']}"] = values_of(config.models.of(arguments["model"]))
        if "source" not in found[f"models.{arguments['model']}"]:
            found["phrases"] = config.phrases()
    read = {"table": TABLES, "figure": FIGURES}.get(stage, {}).get(arguments.get("name", ""), ())
    if (stage in ("comparison", "report") or "comparisons" in read) and subject != StatisticsSettings().subject:
        found["statistics.subject"] = subject  # the usual one goes unsaid
    if stage == "download":
        found["download"] = values_of(config.data.files.downloads()[arguments["download"]])
    if stage in ("teacher", "teacher-scores"):
        asked = values_of(config.teacher_of(arguments["teacher"]))
        found |= {
            f"teacher.{key}": value
            for key, value in asked.items()
            if key in ASKING or (stage == "teacher" and key != "shards")
        }
    if stage in ("pretext", "teacher") and config.training.precision != "float32":  # the usual precision goes unsaid
        found["training.precision"] = config.training.precision
    if stage == "pretext":
        chosen = find_method(arguments["method"])
        found["recipe"] = chosen.pretext_recipe(config.recipe(arguments["method"], arguments["variant"]))
        if config.seeds[0] != 1:  # the usual seed goes unsaid
            found["seed"] = config.seeds[0]
    if stage == "train":
        others = found["training"].pop("steps_of")
        found["training"]["steps"] = others.get(arguments["method"], found["training"]["steps"])
        found["recipe"] = config.recipe(arguments["method"], arguments["variant"]).model_dump(mode="json")
    if stage in ("table", "figure", "comparison", "ablations", "runtime", "examples"):
        found.setdefault("methods", list(config.methods))
    if stage == "ablations" or arguments.get("name") in ("ablation", "sweep_nli", "sweep_ir"):
        # Which training stands for which variant.
        found["points"] = {"/".join(point): "/".join(owner) for point, owner in config.points().items()}
    if stage == "table" and arguments["name"] == "settings":  # shows them
        found |= {key: values[key] for key in ("models", "training", "negatives")}
        found["recipes"] = {name: config.recipe(name).model_dump(mode="json") for name in config.methods}
    return found


def current(config: Config, stage: str, **arguments: Any) -> bool:
    """Whether what a job has made here is of these settings, and of inputs that are as they were. Of a run by another config, or half a job, it is not."""
    record = STAGES[stage].provenance(Paths.of(config), **arguments)
    try:
        said, made = read_json(record), record.stat().st_mtime
        whole = said["settings"] == settings(config, stage, **arguments)
        return whole and all(Path(name).stat().st_mtime <= made for name in said["inputs"])
    except (ArtifactError, OSError, TypeError, KeyError):  # not there, damaged, or of an input that has gone
        return False


def outputs(stage: str, paths: Paths, **arguments: Any) -> list[Path]:
    """The files and folders that a job writes."""
    entry = STAGES[stage]
    if entry.files is not None:
        return entry.files(paths, **arguments)
    record = entry.provenance(paths, **arguments)
    return [
        record.parent if record.name == PROVENANCE else record.with_name(record.name.removesuffix(f".{PROVENANCE}"))
    ]


def values_of(section: Section) -> dict[str, Any]:
    """A section as plain values."""
    return section.model_dump(mode="json")


def settings_line(config: Config, stage: str, **arguments: Any) -> str:
    """`settings` as one line, for Snakemake to compare with the last run's."""
    return canonical(settings(config, stage, **arguments))


def code(stage: str, **arguments: Any) -> str:
    """Digest of the code a job's result depends on."""
    return code_digest(modules(stage, **arguments))


def versions_line(stage: str, **arguments: Any) -> str:
    """Versions of the packages a job's result depends on, without their builds: "numpy 2.4.6, torch 2.13.0"."""
    found = versions(packages(modules(stage, **arguments)))
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in found.items())


def modules(stage: str, **arguments: Any) -> list[str]:
    """The modules a job starts from; what they import counts as well."""
    roots = [STAGES[stage].function.partition(":")[0]]
    if stage in ("train", "pretext"):
        roots.append(method_module(arguments["method"]))
    if stage == "figure" and arguments["name"] in FIGURES:
        roots.append(figure_module(arguments["name"]))  # loaded by name, so no import statement tells of it
    return roots


def method_module(method: str) -> str:
    """The file that is a method."""
    return "d2llm.d2llm_method" if method == "d2llm" else f"baselines.{method}"


def check_arguments(config: Config, stage: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a job this config does not have, before anything heavy is imported."""
    if stage == "base" and arguments["model"] not in config.models.names():
        known = ", ".join(config.models.names())
        raise ConfigError(f"--model: expected one of {known}; found {arguments['model']!r}")
    if stage == "download" and arguments["download"] not in config.data.files.downloads():
        known = ", ".join(config.data.files.downloads()) or "none"
        raise ConfigError(f"--download: expected one of {known}; found {arguments['download']!r}")
    if "teacher" in STAGES[stage].arguments:
        config.teacher_of(arguments["teacher"])
    if stage == "pretext" and (arguments["method"], arguments["variant"]) not in config.pretexts():
        wanted = f"--method {arguments['method']} --variant {arguments['variant']}"
        raise ConfigError(f"{wanted}: no run of this config has a pre-training stage of its own by that name")
    if STAGES[stage].arguments == RUN:
        runs = config.evaluations() if stage == "evaluate" else config.runs()
        if stage != "evaluate":
            runs = runs + [trial.run for trial in config.trials()]
        asked = Run(*(arguments[name] for name in RUN))
        if asked not in runs:
            raise ConfigError(
                f"{words(asked)}: not a run of this config; add it to methods, variants, sweeps, seeds or tuning.grids, "
                f"or take the nearest: {words(nearest_run(asked, runs))}"
            )


def words(run: Run) -> str:
    """A run as the command line names it."""
    return " ".join(f"--{name} {value}" for name, value in zip(RUN, run, strict=True))


def nearest_run(asked: Run, runs: list[Run]) -> Run:
    """Of some runs the one most like another, by method first, then variant, then seed."""

    def likeness(run: Run) -> tuple[float, float, int]:
        method = SequenceMatcher(None, asked.method, run.method).ratio()
        return method, SequenceMatcher(None, asked.variant, run.variant).ratio(), -abs(asked.seed - run.seed)

    return max(runs, key=likeness)

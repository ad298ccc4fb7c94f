"""The stages, each declared once: what does it, what it reads and writes, the settings and code its result depends on,
what a job of it needs.

The command line and the workflow know stages by this table; what follows from it for one job is in `jobs`. Torch-free.
A stage is a rule of its name; `{argument}` in a key of the config is filled in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from d2llm.config.catalogue import entries, row_head
from d2llm.config.registry import declared, modules
from d2llm.config.schema import Config
from d2llm.config.section import Section
from d2llm.config.sections import StatisticsSettings
from d2llm.config.task_types import TASK_TYPES
from d2llm.run.code import ROOT
from d2llm.run.errors import ConfigError
from d2llm.run.paths import PROVENANCE, Paths, provenance_of

RUN = ("method", "variant", "seed")
# What an evaluation leaves.
SCORED = ("scores.parquet", "predictions.parquet")
# Of the settings of a teacher: how it is asked. The others, but for `shards`, are how it is tuned.
ASKING = ("symmetric", "asymmetric", "both_directions", "max_length", "pack_size", "batch_tokens", "quantization")
# Of a teacher that is a file of scores.
FILED = ("scores", "scale", "features")
ASKED = tuple(f"teacher.{key}" for key in ASKING)
# Of a published model: which files it is, and what it is called.
FILES = {"model", "revision", "weights", "trust_remote_code"}
NAMED = {"name", "title"}
# What decides results: all but where they lie, how many threads make them, what a cluster is asked for, and what is
# searched by them.
WHOLE = tuple(name for name in Config.model_fields if name not in ("results", "threads", "corpus", "device"))
# Of section `training`: how much is lost by a kill, and where a training is watched; no result.
WATCHING = ("checkpoint_minutes", "trackers")
# The pipeline's encoder as a dense retriever (`data.negatives.encoder`): its parts are found by name.
RETRIEVER = ("d2llm.models.poolings.mean", "d2llm.models.scorers.cosine")


@dataclass(frozen=True)
class Stage:
    """One kind of job. Its arguments name the job among its kind, e.g. `--method bge --variant base --seed 1`."""

    function: str  # "module:name", called with the config and the arguments
    help: str
    record: Callable[..., Path]  # its provenance, of paths and arguments
    writes: Callable[..., list[Path]]
    reads: Callable[..., list[Path]] = lambda config, paths, **arguments: []
    settings: tuple[str, ...] = ()  # the parts of the config it reads
    more: Callable[..., dict[str, Any]] = (
        lambda config, **arguments: {}
    )  # settings that no key alone names, of config and arguments
    code: Callable[..., Sequence[str]] = lambda config, **arguments: ()  # modules found by name, beside the function's
    arguments: tuple[str, ...] = ()
    example: dict[str, str] = field(default_factory=dict)  # of its arguments without a default
    torch: bool = False  # whether it computes with torch, which is then seeded before it starts
    resumes: bool = False  # whether its function takes `resume` and goes on from a checkpoint
    accept: str | None = (
        None  # "module:name", called like the function when that is done; refuses what later stages would
    )
    memory_mb: int = 4000  # what a cluster is asked for at least
    fetches: bool = False  # whether it uses the network


# ----------------------------------------------------------------------------------------------------- what a job reads
def source(*parts: str) -> Path:
    """A file of this repository, as seen from where the workflow runs."""
    return Path(os.path.relpath(ROOT.joinpath(*parts)))


def files(config: Config, paths: Paths, **arguments: Any) -> list[Path]:
    """What a source of files reads: one's own files, and what is fetched. Raises ConfigError for a file that is not
    there, by its key.
    """
    if config.data.source != "files":
        return []
    own = config.data.files.paths()
    for key, path in own.items():
        if not Path(path).is_file():
            raise ConfigError(f"data.files.{'.'.join(key)}: no such file: {path} (seen from {Path.cwd()})")
    return [*map(Path, sorted(set(own.values()))), *(paths.download(name) for name in config.data.files.downloads())]


def base_inputs(config: Config, paths: Paths, model: str) -> list[Path]:
    """Unlabelled text, and the model that this one grows from; nothing for a checkpoint that exists."""
    settings = config.models.of(model)
    if hasattr(settings, "source"):
        return []
    return [paths.pretraining, *([paths.base(settings.grown_from)] if settings.grown_from else [])]


def vector_shards(config: Config, paths: Paths) -> list[Path]:
    """Vectors of the texts, where jobs of their own make them."""
    shards = config.negatives.shards
    return [paths.vectors(shard, shards) for shard in range(shards)] if shards > 1 else []


def training_inputs(config: Config, paths: Paths, method: str, variant: str, seed: Any) -> list[Path]:
    """Training pairs, a base model, and dev sets to watch it by; the teacher's scores only for a run that reads
    them.
    """
    chosen, recipe, owner = declared(method), config.recipe(method, variant), config.pretext_of(method, variant)
    inputs = [paths.pairs, paths.pretext(method, owner) if owner else paths.base(chosen.base(recipe))]
    inputs += [paths.tasks] if config.training.dev_every else []
    shards = config.teacher.shards
    scores = [paths.teacher_scores(shard, shards, getattr(recipe, "teacher", "teacher")) for shard in range(shards)]
    return inputs + (scores if chosen.reads_scores(recipe) else [])


def started_from(config: Config, paths: Paths, method: str, variant: str) -> list[Path]:
    """What a run's model folder leaves to others, as it holds what training changed: the base model, and what a
    pre-training made of it.
    """
    owner = config.pretext_of(method, variant)
    pretext = [paths.pretext(method, owner)] if owner else []
    return [*pretext, paths.base(declared(method).base(config.recipe(method, variant)))]


def trained(config: Config, paths: Paths, method: str, variant: str, seed: Any) -> list[Path]:
    """All that a run's student is read from."""
    return [paths.run(method, variant, seed) / "model", *started_from(config, paths, method, variant)]


def judging(paths: Paths, name: str = "teacher") -> list[Path]:
    """All that a teacher is read from: likewise."""
    return [paths.teacher(name) / "model", paths.base("teacher")]


def scoring_inputs(config: Config, paths: Paths, teacher: str, **shard: Any) -> list[Path]:
    """The training pairs, and the teacher: a model, or a file of scores. Raises ConfigError for one that is not there."""
    file = config.teacher_of(teacher).scores
    if file is not None and not Path(file).is_file():
        key = "teacher" if teacher == "teacher" else f"teachers.{teacher}"
        raise ConfigError(f"{key}.scores: no such file: {file} (seen from {Path.cwd()})")
    return [paths.pairs, *(judging(paths, teacher) if file is None else [Path(file)])]


def evaluation_inputs(config: Config, paths: Paths, method: str, variant: str, seed: Any) -> list[Path]:
    """The evaluation sets, and what is evaluated."""
    if method in modules():
        return [paths.tasks, *trained(config, paths, method, variant, seed)]
    if method in config.published():
        return [paths.tasks, paths.published(method)]
    needed = {"teacher": judging(paths)} | {name: [paths.base(name)] for name in ("decoder", "encoder")}
    return [paths.tasks, *(place for name in row_head(method).get("NEEDS", ()) for place in needed[name])]


def scored_inputs(config: Config, paths: Paths, method: str, variant: str, seed: Any) -> list[Path]:
    """What is evaluated, or the shards that have been."""
    shards = config.evaluation.shards
    if shards == 1:
        return evaluation_inputs(config, paths, method, variant, seed)
    folders = [paths.evaluation_shard(method, variant, seed, shard, shards) for shard in range(shards)]
    return [paths.tasks, *(folder / name for folder in folders for name in SCORED)]


def collected_inputs(config: Config, paths: Paths) -> list[Path]:
    """Every evaluation and training, and the reports on what they were made from, as far as a job names it.

    Beside each summary lies the log, and beside a teacher's record its report: nobody's outputs (train.smk,
    teacher.smk).
    """
    evaluations, runs = [paths.evaluation(*run) for run in config.evaluations()], config.runs()
    teachers = [*config.asked(), *(["teacher"] if "teacher" in config.references else [])]
    return [
        *(place / "scores.parquet" for place in evaluations),
        *(place / "predictions.parquet" for place in evaluations),
        *(paths.run(*run) / "summary.json" for run in runs),
        *(paths.run(*run) / PROVENANCE for run in runs),
        paths.card_json,
        paths.leaks,
        *([paths.negatives_report] if runs else []),
        *(paths.teacher(teacher) / PROVENANCE for teacher in dict.fromkeys(teachers)),
    ]


def tuning_inputs(config: Config, paths: Paths) -> list[Path]:
    """Every trial. Raises ConfigError for a method without a grid, before hours of trials of the others."""
    runs = [trial.run for trial in config.tuning_trials()]
    return [paths.development(*run) / "scores.parquet" for run in runs] + [
        paths.run(*run) / "summary.json" for run in runs
    ]


def corpus_inputs(config: Config, paths: Paths) -> list[Path]:
    """The texts, and the student they are indexed by. Raises ConfigError without texts, or for a run there is not."""
    corpus = config.corpus
    if corpus.texts is None or not Path(corpus.texts).is_file():
        raise ConfigError(f"corpus.texts: expected a file of texts (seen from {Path.cwd()}); found {corpus.texts!r}")
    if corpus.run not in config.runs():
        raise ConfigError(f"corpus: {'/'.join(map(str, corpus.run))} is no run of this config; name one of its own")
    return [Path(corpus.texts), *trained(config, paths, *corpus.run)]


def judging_queries(config: Config) -> list[Path]:
    """The queries by which a corpus's candidates are judged. Raises ConfigError for a file that is not there."""
    queries = config.corpus.queries
    if queries is not None and not Path(queries).is_file():
        raise ConfigError(f"corpus.queries: expected a file of texts (seen from {Path.cwd()}); found {queries!r}")
    return [] if queries is None else [Path(queries)]


def runtime_inputs(config: Config, paths: Paths) -> list[Path]:
    """The texts, and everything that is timed."""
    models = [place for method in config.methods for place in trained(config, paths, method, "base", config.seeds[0])]
    models += [*judging(paths), paths.base("encoder")] if "teacher" in config.references else []
    return [
        paths.tasks,
        *dict.fromkeys(models),
        *map(paths.published, config.published()),
    ]


def rendered_inputs(kind: Any) -> Callable[..., list[Path]]:
    """The collected files that a table or figure is made of."""

    def reads(config: Config, paths: Paths, name: str) -> list[Path]:
        entry = entries(kind)[name]
        checkpoints = any(hasattr(config.models.of(model), "source") for model in config.models.names())
        files = (*entry.reads, *(entry.also if checkpoints else ()))
        if unknown := [file for file in files if not hasattr(paths, file)]:
            raise ConfigError(f"{kind} {name}: reads {unknown[0]!r}, which is no file of d2llm/run/paths.py")
        inputs = [getattr(paths, file) for file in files]
        return inputs + ([source("d2llm", "reporting", "drawing", "suite.mplstyle")] if kind == "figure" else [])

    return reads


def report_inputs(config: Config, paths: Paths) -> list[Path]:
    """Templates, collected files, tables and figures with their records."""
    rendered = tables(paths) + figures(config, paths)
    records = [paths.scores, paths.comparisons, paths.ablations, paths.runtime, paths.examples]
    records += [path for path in rendered if path.suffix in (".csv", ".svg")]
    templates = sorted((ROOT / "d2llm" / "reporting" / "page" / "templates").iterdir())
    return [
        *(source(*path.relative_to(ROOT).parts) for path in templates),
        *(paths.scores_csv, paths.trainings, paths.about, paths.comparisons, paths.examples),
        *rendered,
        *map(provenance_of, records),
    ]


def tables(paths: Paths) -> list[Path]:
    """All tables, in all formats."""
    return [path for name in entries("table") for path in table_files(paths, name)]


def figures(config: Config, paths: Paths) -> list[Path]:
    """All figures, in all formats; those of comparisons only where the subject is compared with something."""
    compared = {config.statistics.subject} < set(config.methods)
    shown = [name for name, entry in entries("figure").items() if compared or "comparisons" not in entry.reads]
    return [path for name in shown for path in figure_files(paths, name)]


def table_files(paths: Paths, name: str) -> list[Path]:
    return [paths.table(name, ext) for ext in ("csv", "md", "tex", "html")]


def figure_files(paths: Paths, name: str) -> list[Path]:
    return [paths.figure(name, ext) for ext in ("pdf", "svg", "png")]


# ------------------------------------------------------------------------------------------------- what it depends on
def plain(section: Section) -> dict[str, Any]:
    """A section as plain values."""
    return section.model_dump(mode="json")


def base_settings(config: Config, model: str) -> dict[str, Any]:
    """Those of the model; one made in the pipeline has a vocabulary, which holds the prompts and the methods'
    phrases.
    """
    settings = plain(config.models.of(model))
    if "source" in settings:
        return {f"models.{model}": settings}
    prompts = {f"teacher.{mode}": plain(getattr(config.teacher, mode)) for mode in ("symmetric", "asymmetric")}
    return {f"models.{model}": settings, "phrases": config.phrases(), **prompts}


def base_code(config: Config, model: str) -> Sequence[str]:
    """What makes the model, or what brings it."""
    here = not hasattr(config.models.of(model), "source")
    return ["d2llm.training.pretraining" if here else "d2llm.models.base.pretrained"]


def teacher_settings(config: Config, teacher: str, **arguments: Any) -> dict[str, Any]:
    """How a teacher is asked; of one that is a file, which, and what its scores mean."""
    asked = plain(config.teacher_of(teacher))
    if asked["scores"] is not None:
        return {f"teacher.{key}": asked[key] for key in FILED}
    return {f"teacher.{key}": asked[key] for key in ASKING}


def tuned_teacher_settings(config: Config, teacher: str) -> dict[str, Any]:
    """How a teacher is asked and tuned."""
    tuned = plain(config.teacher_of(teacher))
    return {f"teacher.{key}": value for key, value in tuned.items() if key not in ("shards", *FILED)} | precision(
        config
    )


def teacher_code(config: Config, **arguments: Any) -> Sequence[str]:
    """What a teacher may be that is no decoder: a file, or a checkpoint's own classifier."""
    name = arguments.get("teacher")
    if name is not None and config.teacher_of(name).scores is not None:
        return ["d2llm.teacher.from_file"]
    return ["d2llm.teacher.classifier"] if hasattr(config.models.teacher, "source") else []


def precision(config: Config) -> dict[str, Any]:
    """That of trainings which it does not name otherwise; the usual one goes unsaid."""
    return {} if config.training.precision == "float32" else {"training.precision": config.training.precision}


def pretext_settings(config: Config, method: str, variant: str) -> dict[str, Any]:
    """The keys of a recipe that decide its pre-training; the usual seed goes unsaid."""
    recipe = declared(method).pretext_recipe(config.recipe(method, variant))
    return precision(config) | {"recipe": recipe} | ({} if config.seeds[0] == 1 else {"seed": config.seeds[0]})


def train_settings(config: Config, method: str, variant: str, **arguments: Any) -> dict[str, Any]:
    """The shared budget, and the recipe."""
    training = plain(config.training)
    others = training.pop("steps_of")
    del training["labels"]  # the recipe has them
    for key in WATCHING:
        del training[key]
    training["steps"] = others.get(method, training["steps"])
    recipe = config.recipe(method, variant)
    unsaid = () if recipe.negatives.reads else ("negatives",)  # the usual choice goes unsaid
    return {"training": training, "recipe": {key: value for key, value in plain(recipe).items() if key not in unsaid}}


def evaluate_settings(config: Config, method: str, **arguments: Any) -> dict[str, Any]:
    """Which metrics there are; of the teacher how it is asked, of a published model how it is fed."""
    asked = teacher_settings(config, "teacher") | {"training.max_length": config.training.max_length}
    metrics = {name: dict(kind.metrics) for name, kind in TASK_TYPES.items()}
    if method in config.published():
        return {"metrics": metrics, "published": config.published()[method].model_dump(mode="json", exclude=NAMED)}
    return {"metrics": metrics} | (asked if "teacher" in row_head(method).get("NEEDS", ()) else {})


def evaluate_code(config: Config, method: str, variant: str, **arguments: Any) -> Sequence[str]:
    """What a student is made of, or the reference row."""
    if method in modules():
        parts = declared(method).parts(config.recipe(method, variant))
        return ["d2llm.evaluation.rows.student", *part_modules(*parts)]
    row = config.row_file(method)
    needs = row_head(row).get("NEEDS", ())
    judge = teacher_code(config) if "teacher" in needs else ()
    return [f"d2llm.evaluation.rows.{row}", *(RETRIEVER if {"decoder", "encoder"} & {*needs} else ()), *judge]


def train_code(config: Config, method: str, variant: str, **arguments: Any) -> Sequence[str]:
    """A method's file, and what its students and its loss are made of."""
    chosen, recipe = declared(method), config.recipe(method, variant)
    return [modules()[method], *part_modules(*chosen.parts(recipe)), *chosen.modules(recipe)]


def part_modules(pooling: tuple[str, Any], scorer: tuple[str, Any]) -> list[str]:
    """The files of a pooling and a scorer."""
    return [f"d2llm.models.poolings.{pooling[0]}", f"d2llm.models.scorers.{scorer[0]}"]


def students_code(config: Config) -> Sequence[str]:
    """What the students of all methods as configured are made of."""
    parts = [part_modules(*declared(method).parts(config.recipe(method))) for method in config.methods]
    return [module for pair in parts for module in pair]


def methods_settings(config: Config, **arguments: Any) -> dict[str, Any]:
    """Which methods there are."""
    return {"methods": list(config.methods)}


def subject(config: Config) -> dict[str, Any]:
    """Whose leads are judged; the usual one goes unsaid."""
    usual = config.statistics.subject == StatisticsSettings().subject
    return {} if usual else {"statistics.subject": config.statistics.subject}


def headline() -> dict[str, list[str]]:
    """What types of sets are compared by."""
    return {name: [kind.headline, kind.resampled] for name, kind in TASK_TYPES.items()}


def corpus_settings(config: Config, **shard: Any) -> dict[str, Any]:
    """Which texts, by which student; of the whole, how candidates are found and judged."""
    settings = plain(config.corpus)
    return {
        "corpus": {key: value for key, value in settings.items() if key not in ("candidates", "queries") or not shard}
    }


def corpus_code(config: Config, **shard: Any) -> Sequence[str]:
    """What the student is made of."""
    return part_modules(*declared(config.corpus.method).parts(config.recipe(*config.corpus.run[:2])))


def comparison_settings(config: Config) -> dict[str, Any]:
    """Who is compared, by what."""
    return methods_settings(config) | subject(config) | {"headline": headline()}


def ablation_settings(config: Config) -> dict[str, Any]:
    """Which training stands for which variant."""
    points = {"/".join(point): "/".join(owner) for point, owner in config.points().items()}
    rows = {"rows": list(config.rows())} if config.statistics.contrasts else {}
    return methods_settings(config) | {"points": points, "headline": headline()} | rows


def rendered_settings(kind: Any) -> Callable[..., dict[str, Any]]:
    """Of a table or figure, what it says it shows."""

    def more(config: Config, name: str) -> dict[str, Any]:
        values, entry = config.model_dump(mode="json"), entries(kind)[name]
        for key in WATCHING:
            del values["training"][key]
        # Two that are no keys of the config, but follow from several.
        values["points"] = {"/".join(point): "/".join(owner) for point, owner in config.points().items()}
        values["recipes"] = {method: plain(config.recipe(method)) for method in config.methods}
        shown = {key: reduce(getitem, key.split("."), values) for key in entry.settings}
        return methods_settings(config) | shown | (subject(config) if "comparisons" in entry.reads else {})

    return more


# --------------------------------------------------------------------------------------------------------- the stages
STAGES: dict[str, Stage] = {
    "download": Stage(
        "d2llm.data.hub.download:run",
        "fetch one data set of the hub",
        record=lambda paths, download: paths.download(download) / PROVENANCE,
        writes=lambda paths, download: [paths.download(download)],
        more=lambda config, download: {"download": plain(config.data.files.downloads()[download])},
        arguments=("download",),
        example={"download": "NAME"},
        fetches=True,
    ),
    "texts": Stage(
        "d2llm.data.build:run_texts",
        "make the unlabelled text for the base models",
        record=lambda paths: provenance_of(paths.pretraining),
        writes=lambda paths: [paths.pretraining, provenance_of(paths.pretraining)],
        reads=files,
        settings=("data.source", "data.world.seed", "data.world.pretraining_texts", "data.files"),
        memory_mb=2000,
    ),
    "data": Stage(
        "d2llm.data.build:run",
        "make the training pairs, the evaluation sets and the data card",
        record=lambda paths: paths.data / PROVENANCE,
        writes=lambda paths: [
            paths.train_pairs,
            paths.pool,
            paths.teacher_train,
            paths.teacher_dev,
            paths.card_json,
            paths.card_md,
            paths.leaks,
            paths.tasks,
            paths.data / PROVENANCE,
        ],
        reads=lambda config, paths: [paths.pretraining, *files(config, paths)],
        settings=("data",),
        accept="d2llm.cli.preflight:accept_data",
    ),
    "base": Stage(
        "d2llm.training.base:run",
        "make or fetch a base model",
        record=lambda paths, model: paths.base(model) / PROVENANCE,
        writes=lambda paths, model: [paths.base(model)],
        reads=base_inputs,
        more=base_settings,
        code=base_code,
        arguments=("model",),
        example={"model": "decoder"},
        torch=True,
        resumes=True,
        accept="d2llm.cli.preflight:accept_base",
        fetches=True,
    ),
    "published": Stage(
        "d2llm.evaluation.published:run",
        "fetch a published model that is a reference row",
        record=lambda paths, row: paths.published(row) / PROVENANCE,
        writes=lambda paths, row: [paths.published(row)],
        more=lambda config, row: {"published": config.published()[row].model_dump(mode="json", include=FILES)},
        arguments=("row",),
        example={"row": "bge_m3"},
        torch=True,
        fetches=True,
    ),
    "vectors": Stage(
        "d2llm.data.negatives.dense:run",
        "embed a share of the texts that dense negatives are found among",
        record=lambda paths, shard, shards: provenance_of(paths.vectors(shard, shards)),
        writes=lambda paths, shard, shards: [paths.vectors(shard, shards), provenance_of(paths.vectors(shard, shards))],
        reads=lambda config, paths, **shard: [paths.train_pairs, paths.pool, paths.base("encoder")],
        settings=("negatives.shards", "training.max_length"),
        code=lambda config, **shard: RETRIEVER,
        arguments=("shard", "shards"),
        example={"shard": "0", "shards": "1"},
        torch=True,
    ),
    "negatives": Stage(
        "d2llm.data.negatives.mine:run",
        "mine hard negatives",
        record=lambda paths: paths.pairs.with_name(PROVENANCE),
        writes=lambda paths: [paths.pairs, paths.negatives_report, paths.pairs.with_name(PROVENANCE)],
        reads=lambda config, paths: [
            paths.train_pairs,
            paths.pool,
            paths.base("encoder"),
            *vector_shards(config, paths),
        ],
        settings=("negatives", "training.pack", "training.max_length"),
        code=lambda config: RETRIEVER,
        torch=True,
    ),
    "teacher": Stage(
        "d2llm.teacher.tune:run",
        "tune the teacher as a prompted yes/no cross-encoder",
        record=lambda paths, teacher: paths.teacher(teacher) / PROVENANCE,
        writes=lambda paths, teacher: [paths.teacher(teacher) / "model", paths.teacher(teacher) / PROVENANCE],
        reads=lambda config, paths, teacher: [paths.teacher_train, paths.teacher_dev, paths.base("teacher")],
        more=tuned_teacher_settings,
        code=teacher_code,
        arguments=("teacher",),
        torch=True,
        resumes=True,
    ),
    "teacher_scores": Stage(
        "d2llm.teacher.score:run",
        "store the teacher's judgement of the training pairs",
        record=lambda paths, teacher, shard, shards: provenance_of(paths.teacher_scores(shard, shards, teacher)),
        writes=lambda paths, teacher, shard, shards: [
            paths.teacher_scores(shard, shards, teacher),
            provenance_of(paths.teacher_scores(shard, shards, teacher)),
        ],
        reads=scoring_inputs,
        settings=("teacher.shards",),
        more=teacher_settings,
        code=teacher_code,
        arguments=("teacher", "shard", "shards"),
        example={"shard": "0", "shards": "1"},
        torch=True,
        resumes=True,
    ),
    "pretext": Stage(
        "d2llm.training.pretext:run",
        "pre-train a method's base model as its recipe says",
        record=lambda paths, method, variant: paths.pretext(method, variant) / PROVENANCE,
        writes=lambda paths, method, variant: [paths.pretext(method, variant)],
        reads=lambda config, paths, method, variant: [
            paths.pretraining,
            paths.base(declared(method).base(config.recipe(method, variant))),
        ],
        settings=("training.max_length",),
        more=pretext_settings,
        code=train_code,
        arguments=("method", "variant"),
        example={"method": "bge"},
        torch=True,
        resumes=True,
    ),
    "train": Stage(
        "d2llm.training.train:run",
        "train a method",
        record=lambda paths, method, variant, seed: paths.run(method, variant, seed) / PROVENANCE,
        writes=lambda paths, method, variant, seed: [
            paths.run(method, variant, seed) / name for name in ("model", "summary.json", PROVENANCE)
        ],
        reads=training_inputs,
        more=train_settings,
        code=train_code,
        arguments=RUN,
        example={"method": "bge", "seed": "1"},
        torch=True,
        resumes=True,
    ),
    "evaluate_shard": Stage(
        "d2llm.evaluation.evaluate:run_shard",
        "score a run, or a reference row, on a share of the tasks",
        record=lambda paths, **job: paths.evaluation_shard(**job) / PROVENANCE,
        writes=lambda paths, **job: [paths.evaluation_shard(**job) / name for name in (*SCORED, PROVENANCE)],
        reads=lambda config, paths, shard, shards, **run: evaluation_inputs(config, paths, **run),
        settings=("evaluation",),
        more=evaluate_settings,
        code=evaluate_code,
        arguments=(*RUN, "shard", "shards"),
        example={"method": "bge", "seed": "1", "shard": "0", "shards": "2"},
        torch=True,
        resumes=True,
    ),
    "evaluate": Stage(
        "d2llm.evaluation.evaluate:run",
        "score a run, or a reference row, on every task",
        record=lambda paths, method, variant, seed: paths.evaluation(method, variant, seed) / PROVENANCE,
        writes=lambda paths, method, variant, seed: [
            paths.evaluation(method, variant, seed) / name for name in (*SCORED, PROVENANCE)
        ],
        reads=scored_inputs,
        settings=("evaluation",),
        more=evaluate_settings,
        code=evaluate_code,
        arguments=RUN,
        example={"method": "bge", "seed": "1"},
        torch=True,
        resumes=True,
    ),
    "evaluate_dev": Stage(
        "d2llm.evaluation.development:run",
        "score a run on the development splits",
        record=lambda paths, method, variant, seed: paths.development(method, variant, seed) / PROVENANCE,
        writes=lambda paths, method, variant, seed: [
            paths.development(method, variant, seed) / name for name in ("scores.parquet", PROVENANCE)
        ],
        reads=evaluation_inputs,
        settings=("evaluation.tasks", "evaluation.batch_size", "evaluation.symmetric_order"),
        more=evaluate_settings,
        code=evaluate_code,
        arguments=RUN,
        example={"method": "bge", "seed": "1"},
        torch=True,
    ),
    "tune": Stage(
        "d2llm.analysis.hyperparameters:run",
        "compare all trials of all methods on the development splits",
        record=lambda paths: provenance_of(paths.trials),
        writes=lambda paths: [paths.trials, paths.trials_md, paths.chosen, provenance_of(paths.trials)],
        reads=tuning_inputs,
        settings=("methods", "tuning"),
        memory_mb=1000,
    ),
    "collect": Stage(
        "d2llm.evaluation.collect:run",
        "bring all scores into one table",
        record=lambda paths: provenance_of(paths.scores),
        writes=lambda paths: [
            paths.scores,
            paths.scores_csv,
            paths.predictions,
            paths.trainings,
            paths.curves,
            paths.about,
            provenance_of(paths.scores),
        ],
        reads=collected_inputs,
    ),
    "comparison": Stage(
        "d2llm.analysis.comparison:run",
        "compare the subject, D2LLM as a rule, with every baseline, and every pair of methods, by paired bootstrap",
        record=lambda paths: provenance_of(paths.comparisons),
        writes=lambda paths: [
            *(paths.comparisons, paths.verdicts, paths.standings),
            provenance_of(paths.comparisons),
        ],
        reads=lambda config, paths: [paths.scores, paths.predictions],
        settings=tuple(f"statistics.{key}" for key in ("resamples", "level", "seed", "equivalent")),
        more=comparison_settings,
        memory_mb=2000,
    ),
    "ablations": Stage(
        "d2llm.analysis.comparison:run_ablations",
        "compare methods with each of their variants, and what `statistics.contrasts` names, by paired bootstrap",
        record=lambda paths: provenance_of(paths.ablations),
        writes=lambda paths: [paths.ablations, paths.contrasts, provenance_of(paths.ablations)],
        reads=lambda config, paths: [paths.scores, paths.predictions],
        settings=(
            *("statistics.resamples", "statistics.level", "statistics.seed", "statistics.contrasts"),
            *("seeds", "variant_seeds", "include", "variants", "sweeps"),
        ),
        more=ablation_settings,
        memory_mb=3000,
    ),
    "runtime": Stage(
        "d2llm.evaluation.runtime:run",
        "time embedding, scoring and searching of every method",
        record=lambda paths: provenance_of(paths.runtime),
        writes=lambda paths: [paths.runtime, provenance_of(paths.runtime)],
        reads=runtime_inputs,
        settings=(
            *("runtime", "threads", "references"),
            *(f"evaluation.{key}" for key in ("split", "batch_size", "teacher_candidates", "bm25")),
            *ASKED,
            "training.max_length",
        ),
        more=methods_settings,
        code=lambda config: [
            *RETRIEVER,
            *students_code(config),
            *teacher_code(config),
            *(["d2llm.evaluation.rows.published"] if config.published() else []),
        ],
        torch=True,
    ),
    "corpus_shard": Stage(
        "d2llm.search.corpus:run_shard",
        "index a part of the corpus of section `corpus` by a trained student",
        record=lambda paths, shard, shards: paths.corpus_shard(shard, shards) / PROVENANCE,
        writes=lambda paths, shard, shards: [paths.corpus_shard(shard, shards)],
        reads=lambda config, paths, **shard: corpus_inputs(config, paths),
        more=corpus_settings,
        code=corpus_code,
        arguments=("shard", "shards"),
        example={"shard": "0", "shards": "1"},
        torch=True,
    ),
    "corpus": Stage(
        "d2llm.search.corpus:run",
        "bring the parts of the corpus's index together",
        record=lambda paths: paths.corpus / PROVENANCE,
        writes=lambda paths: [paths.corpus],
        reads=lambda config, paths: [
            *corpus_inputs(config, paths)[1:],
            *(paths.corpus_shard(shard, config.corpus.shards) for shard in range(config.corpus.shards)),
            *judging_queries(config),
        ],
        more=corpus_settings,
        code=corpus_code,
        torch=True,
    ),
    "table": Stage(
        "d2llm.reporting.layout.tables:run",
        "render a table",
        record=lambda paths, name: provenance_of(paths.table(name, "csv")),
        writes=lambda paths, name: [*table_files(paths, name), provenance_of(paths.table(name, "csv"))],
        reads=rendered_inputs("table"),
        settings=(
            *("references", "data.source", "evaluation.symmetric_order"),
            *("statistics.resamples", "statistics.level", "statistics.seed"),
        ),
        more=rendered_settings("table"),
        code=lambda config, name: [entries("table")[name].module],
        arguments=("name",),
        example={"name": "nli"},
        memory_mb=1000,
    ),
    "figure": Stage(
        "d2llm.reporting.drawing.figures:run",
        "render a figure",
        record=lambda paths, name: provenance_of(paths.figure(name, "svg")),
        writes=lambda paths, name: [*figure_files(paths, name), provenance_of(paths.figure(name, "svg"))],
        reads=rendered_inputs("figure"),
        settings=("references", "data.source", "statistics.level"),
        more=rendered_settings("figure"),
        code=lambda config, name: [entries("figure")[name].module],
        arguments=("name",),
        example={"name": "main"},
        memory_mb=2000,
    ),
    "examples": Stage(
        "d2llm.reporting.page.disagreement:run",
        "pick the examples on which methods disagree most",
        record=lambda paths: provenance_of(paths.examples),
        writes=lambda paths: [paths.examples, provenance_of(paths.examples)],
        reads=lambda config, paths: [paths.predictions, paths.tasks],
        settings=("references", "evaluation.split", "evaluation.tasks"),
        more=methods_settings,
        memory_mb=3000,
    ),
    "report": Stage(
        "d2llm.reporting.page.report:run",
        "make the page that shows the whole run",
        record=lambda paths: provenance_of(paths.report),
        writes=lambda paths: [paths.report, provenance_of(paths.report)],
        reads=report_inputs,
        settings=WHOLE,
        memory_mb=1000,
    ),
    "notebook": Stage(
        "d2llm.reporting.notebook:run",
        "execute notebooks/results.ipynb on a run's scores",
        record=lambda paths: provenance_of(paths.notebook),
        writes=lambda paths: [paths.notebook, provenance_of(paths.notebook)],
        reads=lambda config, paths: [
            source("notebooks", "results.ipynb"),
            *(paths.scores_csv, paths.comparisons, paths.ablations, paths.curves),
        ],
        memory_mb=1000,
    ),
    "search_notebook": Stage(
        "d2llm.reporting.notebook:run_search",
        "execute notebooks/search.ipynb on a run's trained students",
        record=lambda paths: provenance_of(paths.search_notebook),
        writes=lambda paths: [paths.search_notebook, provenance_of(paths.search_notebook)],
        reads=lambda config, paths: [
            source("notebooks", "search.ipynb"),
            paths.tasks,
            # Trained students at work: D2LLM's of the first seed, and a baseline's to compare with.
            *(paths.run(method, "base", config.seeds[0]) / "summary.json" for method in config.methods),
            *dict.fromkeys(p for method in config.methods for p in started_from(config, paths, method, "base")),
        ],
        code=lambda config: ["d2llm.search.index", *students_code(config)],
    ),
}

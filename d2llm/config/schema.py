"""The one schema of a config file, and how files and command-line values become one validated `Config`.

Knows what keys there are, their types and defaults; what a key means is told beside it in config/mini.yaml. Importable
without torch.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag

from d2llm.config.catalogue import row_head, row_names
from d2llm.config.data import DataSettings
from d2llm.config.evaluation import CorpusSettings, EvaluationSettings, PublishedModel, RuntimeSettings
from d2llm.config.registry import declared
from d2llm.config.section import Section
from d2llm.config.sections import (
    Count,
    CpuSettings,
    Folder,
    GpuSettings,
    ModelsSettings,
    Name,
    NegativeSettings,
    PositiveInt,
    PretrainedSettings,
    StatisticsSettings,
    TeacherSettings,
    TrainingSettings,
    TuningSettings,
    VariantSettings,
)
from d2llm.config.validation import Key, validate
from d2llm.config.values import canonical, merged, nested, plain
from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from d2llm.config.recipes import Recipe


# What computes; `cpu` asks for no GPU.
DeviceName = Literal["cpu", "h100", "a100", "l40s", "rtx4090"]


class Run(NamedTuple):
    """What is trained and evaluated once."""

    method: str
    variant: str
    seed: int


class Trial(NamedTuple):
    """One point of a method's grid. Where it changes nothing, its run is the method's own (`base`)."""

    run: Run
    settings: dict[str, Any]


def _known_row(name: str) -> str:
    """The name of a reference row, found as a file; pydantic makes a line of the ValueError for another."""
    if name not in row_names():
        raise ValueError(f"one of {', '.join(row_names())}")
    return name


@lru_cache(maxsize=4096)
def _recipe(schema: type["Recipe"], overrides: str, prefix: Key) -> "Recipe":
    """A recipe of these overrides, as JSON. Planning asks for each hundreds of times; it is frozen."""
    return validate(schema, json.loads(overrides), lambda key: "config", prefix)


# A reference row: a file's name, or what a published model is.
Reference = Annotated[
    Annotated[str, AfterValidator(_known_row), Tag("row")] | Annotated[PublishedModel, Tag("published")],
    Discriminator(lambda value: "published" if isinstance(value, dict | PublishedModel) else "row"),
]


class Config(Section):
    """Everything that decides a result. `root` of its files: `results`/`tier`."""

    # Names the folder below results that a run writes to.
    tier: Name = "mini"
    # Folder of all results.
    results: Folder = "results"
    # One training of every method a seed.
    seeds: Annotated[list[Count], Field(min_length=1)] = [1]
    # Threads of a job.
    threads: PositiveInt = 1
    # What it is meant for: `d2llm plan` reckons with it, and a cluster is asked for GPUs unless it is cpu. A job
    # computes on the GPU it finds, whatever it says.
    device: DeviceName = "cpu"
    # What is trained: method: {keys that change its published recipe} (below).
    methods: dict[Name, dict[str, Any]] = {}
    # Rows that frame the methods, files of d2llm/evaluation/rows: the teacher (upper) and BM25 (lower); and models as
    # published, each a section.
    references: list[Reference] = ["teacher", "bm25"]
    # Methods with some settings changed, by name.
    variants: dict[Name, VariantSettings] = {}
    # Method: {key of its recipe, dotted within sections: values}. One key at a time is changed.
    sweeps: dict[Name, dict[str, Annotated[list[Any], Field(min_length=2)]]] = {}
    # Which of variants and sweeps are trained: all variants, those of a group by its name, the sweeps.
    include: list[str] = ["variants", "sweeps"]
    # Seeds of variants and sweeps, among seeds; null: the first.
    variant_seeds: Annotated[list[Count], Field(min_length=1)] | None = None
    data: DataSettings = DataSettings()
    models: ModelsSettings = ModelsSettings()
    negatives: NegativeSettings = NegativeSettings()
    teacher: TeacherSettings = TeacherSettings()
    # More teachers, each as `teacher` with some settings changed, for variants that learn from another.
    teachers: dict[Annotated[str, Field(pattern="^teacher-[a-z0-9_]{1,100}$")], dict[str, Any]] = {}
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    statistics: StatisticsSettings = StatisticsSettings()
    tuning: TuningSettings = TuningSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    cpu: CpuSettings = CpuSettings()
    gpu: GpuSettings = GpuSettings()
    corpus: CorpusSettings = CorpusSettings()

    def runs(self) -> list[Run]:
        """Every training, in the order tables show them: the methods, then sweeps and variants that are none
        of them.
        """
        every_run = [Run(method, "base", seed) for method in self.methods for seed in self.seeds]
        every_run += [
            Run(*point, seed) for point in dict.fromkeys(self.points().values()) for seed in self.seeds_of_variants()
        ]
        return list(dict.fromkeys(every_run))

    def rows(self) -> dict[str, str]:
        """The reference rows by name, in their order, with their titles."""
        published = self.published()
        own = {row: str(row_head(row)["TITLE"]) for row in self.references if isinstance(row, str)}
        titles = own | {name: model.title or model.short for name, model in published.items()}
        return {name: titles[name] for name in (row if isinstance(row, str) else row.key for row in self.references)}

    def published(self) -> dict[str, PublishedModel]:
        """Models as published among the reference rows, by name."""
        return {row.key: row for row in self.references if isinstance(row, PublishedModel)}

    def row_file(self, name: str) -> str:
        """The file of d2llm/evaluation/rows that scores a reference row."""
        return "published" if name in self.published() else name

    def untrained(self) -> list[str]:
        """The reference rows that nothing here was trained for: all but a teacher that is tuned."""
        return [name for name in self.rows() if name != "teacher" or not self.teacher.steps]

    def seeds_of_variants(self) -> list[int]:
        """Seeds of sweeps and variants."""
        return self.variant_seeds or self.seeds[:1]

    def points(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Every point of the sweeps and every variant, as (method, name), with the one that is trained for it.

        Points of one recipe share a training; what is the method as configured is `base`.
        """
        names: list[tuple[str, str]] = []
        if "sweeps" in self.include:
            names += [(method, name) for method in self.sweeps for name in self.sweep(method)]
        names += [
            (variant.method, name)
            for name, variant in self.variants.items()
            if {"variants", variant.group} & set(self.include)
        ]
        known = {(method, canonical(self.recipe(method))): "base" for method, _ in names}
        owners = {}
        for method, name in names:
            owners[method, name] = (method, known.setdefault((method, canonical(self.recipe(method, name))), name))
        return owners

    def sweep(self, method: str) -> dict[str, tuple[str, Any]]:
        """The points of a method's sweeps by name, e.g. `alpha=0.3`: (dotted key, value)."""
        axes = self.sweeps.get(method, {})
        return {f"{key}={plain(value)}": (key, value) for key, values in axes.items() for value in values}

    def pretexts(self) -> list[tuple[str, str]]:
        """Every pre-training stage of a method's own, as (method, variant)."""
        runs = self.runs() + [trial.run for trial in self.trials()]
        owners = ((run.method, self.pretext_of(run.method, run.variant)) for run in runs)
        return list(dict.fromkeys((method, owner) for method, owner in owners if owner is not None))

    def pretext_of(self, method: str, variant: str) -> str | None:
        """Whose pre-training stage a run starts from: the method's own where it is the same; None where there
        is none.
        """

        own = declared(method).pretext_recipe(self.recipe(method, variant))
        if own is None:
            return None
        return "base" if own == declared(method).pretext_recipe(self.recipe(method)) else variant

    def teacher_of(self, name: str, origin: Callable[[Key], str] = lambda key: "config") -> TeacherSettings:
        """The settings of a teacher by name. Raises ConfigError."""
        if name == "teacher":
            return self.teacher
        if name not in self.teachers:
            known = ", ".join(["teacher", *self.teachers])
            raise ConfigError(f"teachers: no teacher named {name!r}; known: {known}")
        if "shards" in self.teachers[name]:
            raise ConfigError(
                f"{origin(('teachers', name, 'shards'))}: teachers.{name}.shards: the same for all teachers; change teacher.shards"
            )
        changed = merged(self.teacher.model_dump(mode="json"), self.teachers[name])
        return validate(TeacherSettings, changed, origin, ("teachers", name))

    def evaluations(self) -> list[Run]:
        """Every evaluation: the runs, and the reference rows once."""
        return self.runs() + [Run(name, "base", self.seeds[0]) for name in self.rows()]

    def trials(self) -> list[Trial]:
        """Every trial of `tune`, method by method; a point that is the method as configured shares its run."""
        every_trial = []
        for method in self.tuning.grids:
            base = self.recipe(method) if self.tuning.seed in self.seeds else None
            for name, settings in self.grid(method).items():
                variant = "base" if base is not None and self.recipe(method, name) == base else name
                every_trial.append(Trial(Run(method, variant, self.tuning.seed), settings))
        return every_trial

    def tuning_trials(self) -> list[Trial]:
        """The trials of a tuning. Raises ConfigError where a method has no grid: choosing for some of them only would
        favour these.
        """
        without = [method for method in self.methods if method not in self.tuning.grids]
        if without:
            raise ConfigError(f"tuning.grids: no grid for {', '.join(without)}; every method needs one, of equal size")
        return self.trials()

    def grid(self, method: str) -> dict[str, dict[str, Any]]:
        """The points of a method's grid by name, e.g. `learning_rate=0.001+temperature=0.05`: {dotted key: value}."""
        axes = self.tuning.grids.get(method, {})
        points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
        return {"+".join(f"{key}={plain(value)}" for key, value in point.items()): point for point in points}

    def overrides(self, method: str, variant: str) -> dict[str, Any]:
        """What this config changes in a method's published recipe."""
        settings = self.methods.get(method, {})
        if variant == "base":
            return settings
        if variant in self.variants and self.variants[variant].method == method:
            return merged(settings, self.variants[variant].settings)
        swept = self.sweep(method)
        if variant in swept:
            return merged(settings, nested(dict([swept[variant]])))
        points = self.grid(method)
        if variant in points:
            return merged(settings, nested(points[variant]))
        raise ConfigError(f"no variant {variant!r} of method {method!r} in this config")

    def recipe(self, method: str, variant: str = "base") -> "Recipe":
        """The resolved recipe of a method: as published, with this config's overrides."""

        prefix, changes = self.place(method, variant), self.overrides(method, variant)
        if changes.get("labels") is None:
            changes = changes | {"labels": self.training.labels.model_dump(mode="json")}
        overrides = json.dumps(changes, default=str)
        return _recipe(declared(method).Recipe, overrides, prefix)  # type: ignore[arg-type]

    def place(self, method: str, variant: str) -> Key:
        """The key of the settings that make a recipe what it is."""
        if variant == "base":
            return ("methods", method)
        if variant in self.variants:
            return ("variants", variant, "settings")
        return ("sweeps", method) if variant in self.sweep(method) else ("tuning", "grids", method)

    def bases(self) -> list[str]:
        """The base models that some job reads: those students start from, the encoder of the dense candidates, the
        teacher's where one is asked.
        """

        runs = {(run.method, run.variant) for run in [*self.runs(), *(trial.run for trial in self.trials())]}
        used = {declared(name).base(self.recipe(name, variant)) for name, variant in runs} | (
            {"encoder"} if runs else set()
        )
        used |= {"teacher", "encoder"} if self.asked(runs) else set()
        used |= {name for row in self.references if isinstance(row, str) for name in row_head(row).get("NEEDS", ())}
        used |= {source for name in used if (source := self.models.of(name).grown_from)}
        return [name for name in self.models.names() if name in used]

    def asked(self, runs: Iterable[tuple[str, str]] | None = None) -> list[str]:
        """Of the teachers that runs, as (method, variant), read the scores of, those that are models."""
        return [name for name in self.imitated(runs) if self.teacher_of(name).scores is None]

    def imitated(self, runs: Iterable[tuple[str, str]] | None = None) -> list[str]:
        """The teachers that runs, as (method, variant), read the scores of, by name; None: of this config."""
        named = [(run.method, run.variant) for run in self.runs()] if runs is None else runs
        recipes = [(declared(method), self.recipe(method, variant)) for method, variant in named]
        names = (getattr(recipe, "teacher", "teacher") for chosen, recipe in recipes if chosen.reads_scores(recipe))
        return list(dict.fromkeys(names))

    def phrases(self) -> list[str]:
        """What methods feed besides the texts (instructions, brackets); a vocabulary made in the pipeline holds it."""

        runs = {(run.method, run.variant) for run in self.runs()}
        return sorted(
            {phrase for name, variant in runs for phrase in declared(name).phrases(self.recipe(name, variant))}
        )

    @property
    def remote_code(self) -> bool:
        """Whether Python code that comes with one of the base models may run."""
        return any(getattr(self.models.of(name), "trust_remote_code", False) for name in self.models.names())

    @property
    def offline(self) -> bool:
        """Whether nothing this config needs comes from a hub."""
        bases = [self.models.of(name) for name in self.models.names()]
        bases += [model.checkpoint() for model in self.published().values()]
        fetched = self.data.source == "files" and self.data.files.downloads()
        return not fetched and not any(isinstance(base, PretrainedSettings) and base.origin == "hub" for base in bases)

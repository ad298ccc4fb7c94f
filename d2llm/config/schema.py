"""The one schema of a config file, and how files and command-line values become one validated `Config`.

Knows what keys there are, their types and defaults; what a key means is told beside it in config/mini.yaml. Importable
without torch.
"""

import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, model_validator

from d2llm.config.data import DataSettings
from d2llm.config.evaluation import EvaluationSettings, RuntimeSettings
from d2llm.config.prompts import ASYMMETRIC_ZH, SYMMETRIC_ZH, check_template
from d2llm.config.recipes import TunedWeights
from d2llm.config.registry import declared
from d2llm.config.section import Section, has
from d2llm.config.validation import Key, validate
from d2llm.config.values import canonical, merged, nested, plain
from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from d2llm.config.recipes import Recipe


Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Ranks = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
# Names become folders, and words of shell commands; a folder's name has 255 bytes at most, some of which others need.
NAME = r"[a-z0-9][a-z0-9_.=+-]{0,149}"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Folder = Annotated[str, Field(pattern=r"^[\w./=+,@][\w./=+,@-]*$", max_length=500)]


class BaseSettings(Section):
    """A base checkpoint made in the pipeline: its size and its pre-training."""

    # Width of its states.
    hidden_size: PositiveInt = 128
    # Transformer layers.
    layers: PositiveInt = 2
    # Attention heads; they divide the width.
    heads: PositiveInt = 4
    # Width of the feed-forward layers.
    intermediate_size: PositiveInt = 256
    # Another base checkpoint whose layers it starts with; null: random weights.
    grown_from: Literal["decoder"] | None = None
    # Updates; zero for a grown model that is tuned right away.
    steps: Count = 900
    # Texts an update.
    batch_size: PositiveInt = 64
    # Of its pre-training.
    learning_rate: PositiveFloat = 3e-3
    # Weight of reading who did what to whom, where and when off the pooled states.
    slot_weight: Weight = 1.0
    # Telling a text's paraphrase from other texts.
    paraphrase_weight: Weight = 0.3
    # Next-token loss of a decoder, masked-token loss of an encoder.
    language_weight: Weight = 0.2
    # Of its weights and of the order of texts.
    seed: Count = 1

    @model_validator(mode="after")
    def _heads_fit(self) -> "BaseSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"heads that divide hidden_size ({self.hidden_size})")
        return self


class CheckpointSettings(Section):
    """A base checkpoint that exists already: on a hub, in a folder, in a GGUF file, or in an installed Python package."""

    # "org/name" on the hub; "./folder", "../folder" or "/folder"; a file that ends in .gguf; "package:module/path inside it".
    source: Annotated[str, Field(min_length=1)]
    # Of the hub: a branch, a tag or, best, a commit.
    revision: str | None = None
    # How many of its lowest layers are kept; null: all.
    layers: PositiveInt | None = None
    # Of the weights as they are kept. The teacher computes in it; students are held in float32 whatever it is.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Whether Python code that comes with the checkpoint may run.
    trust_remote_code: bool = False

    @property
    def grown_from(self) -> None:
        """Nothing: it was trained elsewhere."""
        return None

    @property
    def origin(self) -> Literal["hub", "package", "local"]:
        """Where it lies."""
        if self.source.startswith("package:"):
            return "package"
        return "local" if self.source.startswith((".", "/", "~")) or self.source.endswith(".gguf") else "hub"

    @model_validator(mode="after")
    def _fits(self) -> "CheckpointSettings":
        if self.origin == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.source):
            raise ValueError(
                f"source as org/name on the hub, or ./folder, or package:module/path, found {self.source!r}"
            )
        if self.revision is not None and self.origin != "hub":
            raise ValueError("revision for a source on the hub only")
        return self


# A base model: what a checkpoint lacks in `source`, it is made with.
Base = Annotated[
    Annotated[BaseSettings, Tag("made")] | Annotated[CheckpointSettings, Tag("checkpoint")],
    Discriminator(lambda value: "checkpoint" if has(value, "source") else "made"),
]


class ModelsSettings(Section):
    """The three base checkpoints, each made in the pipeline or taken from elsewhere."""

    teacher: Base = BaseSettings(layers=4, grown_from="decoder", steps=0)
    decoder: Base = BaseSettings()
    encoder: Base = BaseSettings()
    # More decoders, for variants that start from another (`settings: {base: NAME}`).
    others: dict[Name, Base] = {}

    def of(self, name: str) -> BaseSettings | CheckpointSettings:
        """The settings of a base model by name. Raises ConfigError."""
        if name not in self.names():
            raise ConfigError(f"models: no base model named {name!r}; known: {', '.join(self.names())}")
        return self.others[name] if name in self.others else getattr(self, name)

    def names(self) -> list[str]:
        """All base models: the three, then others."""
        return [*(name for name in type(self).model_fields if name != "others"), *self.others]


class NegativeSettings(Section):
    """Where hard negatives come from; ranks count from 1, both ends included."""

    # Hard negatives kept of a training query.
    per_query: PositiveInt = 8
    # First and last rank of BM25's candidates, which give half of the negatives.
    bm25_ranks: Ranks = [1, 10]
    # First and last rank of the encoder's candidates.
    dense_ranks: Ranks = [2, 101]
    # What BM25 counts: words by jieba, or characters.
    bm25_tokens: Literal["words", "characters"] = "words"
    # Jobs that share the embedding of queries and passages; one: no job of its own.
    shards: PositiveInt = 1
    # Of the draw among candidates.
    seed: Count = 1

    @model_validator(mode="after")
    def _ascending(self) -> "NegativeSettings":
        if any(first > last for first, last in (self.bm25_ranks, self.dense_ranks)):
            raise ValueError("bm25_ranks and dense_ranks whose first rank is not above the last")
        return self


class PromptSettings(Section):
    """How the teacher is asked: a template with {a}, then {b}, then the answer cue; and the two answers."""

    # The prompt; {a} and {b} are replaced by the two texts, once each.
    template: str
    # The answer that means yes.
    yes: str
    # The answer that means no; it starts with another token.
    no: str

    @model_validator(mode="after")
    def _whole(self) -> "PromptSettings":
        try:
            check_template(self.template, self.yes, self.no)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class TeacherSettings(Section):
    """The prompted cross-encoder: how it is asked, tuned and run."""

    # How it is asked of two texts of one kind.
    symmetric: PromptSettings = PromptSettings(template=SYMMETRIC_ZH, yes="是", no="不是")
    # How it is asked of a query and a passage.
    asymmetric: PromptSettings = PromptSettings(template=ASYMMETRIC_ZH, yes="能", no="不能")
    # Tokens of a prompt; texts are cut, never the answer cue.
    max_length: PositiveInt = 500
    # Its weights while it answers, by bitsandbytes; only for one that is not tuned.
    quantization: Literal["none", "8bit", "4bit"] = "none"
    # What of it trains: all of it, or LoRA adapters; steps 0: nothing, it answers as it is.
    tuning: TunedWeights = TunedWeights()
    steps: Count = 3000
    # Pairs an update, about.
    batch_pairs: PositiveInt = 48
    # Of the tuning.
    learning_rate: PositiveFloat = 1.5e-3
    # Share of the updates.
    warmup: Share = 0.05
    # Share of the updates on pairs of query and passage.
    asymmetric_share: Share = 0.4
    # Weight of the loss on how words relate, which only generated text knows.
    relation_weight: Weight = 1.0
    # Average precision on dev below which the run stops.
    min_ap: Share = 0.9
    # Candidates of a query that share one row of a forward pass.
    pack_size: PositiveInt = 8
    # Padded tokens of a scoring batch.
    batch_tokens: PositiveInt = 8192
    # Jobs that share the scoring.
    shards: PositiveInt = 1
    # Of the order of pairs.
    seed: Count = 1

    @model_validator(mode="after")
    def _tunable(self) -> "TeacherSettings":
        if self.tuning.kind == "bitfit":
            raise ValueError("tuning.kind full or lora: a teacher's biases alone are not tuned")
        if self.quantization != "none" and self.steps:
            raise ValueError("steps 0 where quantization is set: a quantised teacher answers as it is")
        return self


class TrainingSettings(Section):
    """Shared by all methods: a fair comparison has one budget, one batch, one sampler."""

    # Updates.
    steps: PositiveInt = 1000
    # Updates of single methods, by name, where minutes are to be equal: an update of a small encoder takes less time, of longer texts more.
    steps_of: dict[Name, PositiveInt] = {}
    # Queries an update; a multiple of pack.
    batch_size: PositiveInt = 32
    # Queries that always travel together: their positives are each other's easy negatives.
    pack: Annotated[int, Field(ge=2)] = 4
    # Tokens of a text; caps every limit of a recipe.
    max_length: PositiveInt = 250
    # Of forward and backward passes; weights and optimiser stay in float32. float16 needs a GPU.
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    # That share a training, each with a GPU of its own where there are some; batch and loss stay those of one.
    processes: PositiveInt = 1
    # Texts embedded at a time where a batch does not fit into memory; null: all, or as many as fit once memory has run out.
    texts_at_once: PositiveInt | None = None
    # Minutes between checkpoints of any training of the run (its base models' and teacher's too); 0 or null: none.
    checkpoint_minutes: Weight | None = 10
    # Updates between lines of log.jsonl.
    log_every: PositiveInt = 20
    # Updates between measurements on a sample of the dev sets, which change no weight; 0: none.
    dev_every: Count = 200
    # Pairs of that sample in each set; of retrieval a quarter as many queries.
    dev_sample: PositiveInt = 200

    def updates(self, method: str) -> int:
        """Updates of a method, and of its variants."""
        return self.steps_of.get(method, self.steps)

    @model_validator(mode="after")
    def _whole_packs(self) -> "TrainingSettings":
        if self.batch_size % self.pack:
            raise ValueError(f"a batch_size that is a multiple of pack ({self.pack}), as packs travel whole")
        return self


class VariantSettings(Section):
    """A method with some settings of its recipe changed."""

    # The method that is varied.
    method: Name
    # Keys of its recipe, laid over those below methods.
    settings: dict[str, Any] = {}
    # Its line in the ablation table, and what it stands under there; without a title: its name.
    title: str = ""
    # What it stands under in the ablation table.
    group: str = ""


class TuningSettings(Section):
    """`snakemake tune`: as many trials for every method, over a grid of its own, judged on the development splits."""

    # Of all trials.
    seed: Count = 1
    # Method: {key of its recipe, dotted within sections: values}. Every combination is a trial.
    grids: dict[Name, dict[str, Annotated[list[Any], Field(min_length=1)]]] = {}


class StatisticsSettings(Section):
    """The paired bootstrap behind intervals and marks of significance."""

    # The method whose leads over all others are judged, in `comparisons.csv`, arrows, the figure of leads and the report.
    subject: Name = "d2llm"
    # At least; as many more as the number of comparisons needs.
    resamples: Annotated[int, Field(ge=100)] = 2500
    # Of intervals; what is significant is judged at 1 minus it.
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    # Of the resamples.
    seed: Count = 1


class Run(NamedTuple):
    """What is trained and evaluated once."""

    method: str
    variant: str
    seed: int


class Trial(NamedTuple):
    """One point of a method's grid. Where it changes nothing, its run is the method's own (`base`)."""

    run: Run
    settings: dict[str, Any]


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
    # What is trained: method: {keys that change its published recipe} (below).
    methods: dict[Name, dict[str, Any]] = {}
    # Rows that frame the methods: the teacher (upper) and BM25 (lower).
    references: list[Literal["teacher", "bm25"]] = ["teacher", "bm25"]
    # Methods with some settings changed, by name.
    variants: dict[Name, VariantSettings] = {}
    # Method: {key of its recipe, dotted within sections: values}. One key at a time is changed.
    sweeps: dict[Name, dict[str, Annotated[list[Any], Field(min_length=2)]]] = {}
    # Which of variants and sweeps are trained.
    include: list[Literal["variants", "sweeps"]] = ["variants", "sweeps"]
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

    def runs(self) -> list[Run]:
        """Every training, in the order tables show them: the methods, then sweeps and variants that are none of them."""
        found = [Run(method, "base", seed) for method in self.methods for seed in self.seeds]
        found += [
            Run(*point, seed) for point in dict.fromkeys(self.points().values()) for seed in self.seeds_of_variants()
        ]
        return list(dict.fromkeys(found))

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
        if "variants" in self.include:
            names += [(variant.method, name) for name, variant in self.variants.items()]
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
        found = ((run.method, self.pretext_of(run.method, run.variant)) for run in runs)
        return list(dict.fromkeys((method, owner) for method, owner in found if owner is not None))

    def pretext_of(self, method: str, variant: str) -> str | None:
        """Whose pre-training stage a run starts from: the method's own where it is the same; None where there is none."""

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
        # All teachers are asked alike, by as many jobs: scores of different ones differ by what they learnt.
        fixed = sorted({"symmetric", "asymmetric", "shards"} & set(self.teachers[name]))
        if fixed:
            where = origin(("teachers", name, fixed[0]))
            raise ConfigError(
                f"{where}: teachers.{name}.{fixed[0]}: the same for all teachers; change teacher.{fixed[0]}"
            )
        changed = merged(self.teacher.model_dump(mode="json"), self.teachers[name])
        return validate(TeacherSettings, changed, origin, ("teachers", name))

    def evaluations(self) -> list[Run]:
        """Every evaluation: the runs, and the reference rows once."""
        return self.runs() + [Run(name, "base", self.seeds[0]) for name in self.references]

    def trials(self) -> list[Trial]:
        """Every trial of `tune`, method by method; a point that is the method as configured shares its run."""
        found = []
        for method in self.tuning.grids:
            base = self.recipe(method) if self.tuning.seed in self.seeds else None
            for name, settings in self.grid(method).items():
                variant = "base" if base is not None and self.recipe(method, name) == base else name
                found.append(Trial(Run(method, variant, self.tuning.seed), settings))
        return found

    def tuning_trials(self) -> list[Trial]:
        """The trials of a tuning. Raises ConfigError where a method has no grid: choosing for some of them only would favour these."""
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

        prefix = self.place(method, variant)
        return validate(declared(method).Recipe, self.overrides(method, variant), lambda key: "config", prefix)

    def place(self, method: str, variant: str) -> Key:
        """The key of the settings that make a recipe what it is."""
        if variant == "base":
            return ("methods", method)
        if variant in self.variants:
            return ("variants", variant, "settings")
        return ("sweeps", method) if variant in self.sweep(method) else ("tuning", "grids", method)

    def bases(self) -> list[str]:
        """The base models that some job reads: those students start from, the encoder of the dense candidates, the teacher's where one is asked."""

        runs = {(run.method, run.variant) for run in [*self.runs(), *(trial.run for trial in self.trials())]}
        used = {declared(name).base(self.recipe(name, variant)) for name, variant in runs} | (
            {"encoder"} if runs else set()
        )
        if "teacher" in self.references or any(declared(name).uses_teacher for name, _ in runs):
            used |= {"teacher", "encoder"}
        used |= {source for name in used if (source := self.models.of(name).grown_from)}
        return [name for name in self.models.names() if name in used]

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
        fetched = self.data.source == "files" and self.data.files.downloads()
        return not fetched and not any(isinstance(base, CheckpointSettings) and base.origin == "hub" for base in bases)

"""The sections of a config: keys, types, defaults, and what each may not say by itself. Importable without torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from d2llm.config.recipes import LabelSettings, TunedWeights
from d2llm.config.section import Names, Section, has
from d2llm.run.errors import ConfigError

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


class CpuSettings(Section):
    """What a CPU computes in; training has a key of its own, `training.precision`."""

    # Whether texts are embedded, and pairs read by a teacher, in bfloat16 and their scores formed in float32, as on a
    # GPU. Meant for a processor with instructions for bfloat16 (AMX).
    half: bool = False


class GpuSettings(Section):
    """What a GPU computes in."""

    # Texts are embedded, and pairs read by a teacher, in bfloat16, or float16 where the GPU lacks it; their scores are
    # formed in float32. Not while models train: that is training.precision.
    half: bool = True
    # Products of float32 by TF32, which has 10 bits of a fraction's 23; not those of scores.
    tf32: bool = True


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


class PretrainedSettings(Section):
    """A base checkpoint that exists already: on a hub, in a folder, in a GGUF file, or in an installed Python
    package.
    """

    # "org/name" on the hub; "./folder", "../folder" or "/folder"; a file that ends in .gguf; "package:module/path
    # inside it".
    source: Annotated[str, Field(min_length=1)]
    # Of the hub: a branch, a tag or, best, a commit.
    revision: str | None = None
    # The files its weights are read from: model.safetensors, or pytorch_model.bin for a checkpoint that has no other
    # (a pickle, read by torch.load with weights_only=True). Whole or in parts.
    weights: Literal["safetensors", "pytorch"] = "safetensors"
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
    def _fits(self) -> "PretrainedSettings":
        if self.origin == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.source):
            raise ValueError(
                f"source as org/name on the hub, or ./folder, or package:module/path, found {self.source!r}"
            )
        if self.revision is not None and self.origin != "hub":
            raise ValueError("revision for a source on the hub only")
        if self.weights == "pytorch" and self.source.endswith(".gguf"):
            raise ValueError("weights: pytorch for a checkpoint that is no GGUF file")
        return self


# A base model: what a checkpoint lacks in `source`, it is made with.
Base = Annotated[
    Annotated[BaseSettings, Tag("made")] | Annotated[PretrainedSettings, Tag("checkpoint")],
    Discriminator(lambda value: "checkpoint" if has(value, "source") else "made"),
]


class ModelsSettings(Section):
    """The three base checkpoints, each made in the pipeline or taken from elsewhere."""

    teacher: Base = BaseSettings(layers=4, grown_from="decoder", steps=0)
    decoder: Base = BaseSettings()
    encoder: Base = BaseSettings()
    # More decoders, for variants that start from another (`settings: {base: NAME}`).
    others: dict[Name, Base] = {}

    def of(self, name: str) -> BaseSettings | PretrainedSettings:
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


SYMMETRIC_ZH = (
    "#P和#H将分别描述一种事件或问题，它们可能并无关系。仅使用此描述和您对世界的了解，判断#H是不是一个关于#P中的事件绝对正确的句子，"
    "或者#H是不是绝对正确地描述了#P的事件或问题，请回答是或不是，若您不确定，请回答不是。\n#P：{a}\n#H：{b}\n回答："
)
ASYMMETRIC_ZH = (
    "#Q将描述一个问题，#A将描述一个网络段落，它们可能并没有关系。仅依据这些描述和您对世界的了解，判断#A能不能正确地回答#Q中提出的问题，"
    "请回答能或不能。\n#Q：{a}\n#A：{b}\n回答："
)


def check_template(template: str, yes: str, no: str) -> None:
    """Refuse, by ConfigError, a template without `{a}` once, then `{b}` once, and text after it (the answer cue), and
    answers that are blank or the same.
    """
    if template.count("{a}") != 1 or template.count("{b}") != 1 or template.index("{a}") > template.index("{b}"):
        raise ConfigError(f"prompt {template[:40]!r}…: needs {{a}} once and after it {{b}} once")
    if not template.partition("{b}")[2].strip():
        raise ConfigError(f"prompt {template[:40]!r}…: needs an answer cue after {{b}}, such as '\\n回答：'")
    if not yes.strip() or not no.strip() or yes == no:
        raise ConfigError(f"prompt {template[:40]!r}…: needs two different answers; found {yes!r} and {no!r}")


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
    """The prompted cross-encoder: how it is asked, tuned and run; or a file of scores, in place of any model."""

    # A file with columns query, passage and score of every training pair (CSV, TSV, JSONL or Parquet, packed or not);
    # null: a model is tuned and asked. No other key but scale and features counts then.
    scores: Annotated[str, Field(pattern=r"^[^{}\x00-\x1f-][^{}\x00-\x1f]*$")] | None = None
    # What these scores are: logits, or probabilities of yes. Only with scores, and then needed.
    scale: Literal["logit", "probability"] | None = None
    # Its column of pair features, lists of numbers, which FI imitates; null: it has none.
    features: str | None = None
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
    # What it is taught to answer "yes" with: graded, as the source grades its pairs (of generated text .45 times their
    # similarity where the answer is no); label, 1 or 0; probability, how likely the second text describes what the
    # first does, which generated text alone knows.
    targets: Literal["graded", "label", "probability"] = "graded"
    # Share of the queries it is tuned on, of each mode, drawn by its seed.
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # Whether two texts of one kind are asked about in both directions, and the mean of both logits counts.
    both_directions: bool = False
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
        if self.scores is not None and self.scale is None:
            raise ValueError("scale with scores: logit, or probability of yes")
        if self.scores is None and (self.scale or self.features):
            raise ValueError("scores, a file, where scale or features is set")
        return self


class TrainingSettings(Section):
    """Shared by all methods: a fair comparison has one budget, one batch, one sampler."""

    # Updates.
    steps: PositiveInt = 1000
    # Updates of single methods, by name, where minutes are to be equal: an update of a small encoder takes less time,
    # of longer texts more.
    steps_of: dict[Name, PositiveInt] = {}
    # Queries an update; a multiple of pack.
    batch_size: PositiveInt = 32
    # Queries that always travel together: their positives are each other's easy negatives.
    pack: Annotated[int, Field(ge=2)] = 4
    # How much, and how rightly, all methods are told of the pairs; a variant may be told otherwise (`labels` of its
    # settings).
    labels: LabelSettings = LabelSettings()
    # Tokens of a text; caps every limit of a recipe.
    max_length: PositiveInt = 250
    # Of forward and backward passes; weights and optimiser stay in float32. float16 needs a GPU.
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    # That share a training, each with a GPU of its own where there are some; batch and loss stay those of one.
    processes: PositiveInt = 1
    # Texts embedded at a time where a batch does not fit into memory; null: all, or as many as fit once memory has run
    # out.
    texts_at_once: PositiveInt | None = None
    # Minutes between checkpoints of any training of the run (its base models' and teacher's too); 0 or null: none.
    checkpoint_minutes: Weight | None = 10
    # Where every training's log.jsonl is told as well, while it runs; the packages are to be installed.
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
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

    # The method whose leads over all others are judged, in `comparisons.csv`, arrows, the figure of leads and the
    # report.
    subject: Name = "d2llm"
    # At least; as many more as the number of comparisons needs.
    resamples: Annotated[int, Field(ge=100)] = 20000
    # Of intervals; what is significant is judged at 1 minus it.
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    # A difference of a headline metric that is smaller does not matter: two methods are equivalent where the whole
    # interval lies within it, and a claimed lead is refuted where it is below it.
    equivalent: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    # Of the resamples.
    seed: Count = 1
    # Pairs of rows that are compared with each other, beside D2LLM with every baseline and with its variants: a method,
    # "method/variant" or a reference row each, in `contrasts.csv` and its table.
    contrasts: list[Annotated[Names, Field(min_length=2, max_length=2)]] = []

"""`d2llm plan`: what a configuration will cost, before anything runs: tokens, FLOPs, hours, memory and disk of every
stage.

Sizes of base models are read from their configurations (of the hub: that one small file); numbers of examples from the
data stage or one's own files, else from `sample`, else assumed. The arithmetic is the usual one (Kaplan et al. 2020,
section 2.1; Korthikanti et al. 2022, section 4.1 for activations): 2 FLOPs a weight and token forward, plus attention;
a backward pass twice a forward, once where the weights stay.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from d2llm.config.data import HubTable, MtebSet, WorldSettings
from d2llm.config.recipes import PretextStage, TunedWeights, tokens_of
from d2llm.config.registry import declared
from d2llm.config.sections import BaseSettings
from d2llm.models.base.pretrained import check_layers, located
from d2llm.run.errors import ConfigError, D2LLMError
from d2llm.run.hub import patiently
from d2llm.run.jobs import current
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from d2llm.config.recipes import Recipe
    from d2llm.config.schema import Config
    from d2llm.config.sections import PretrainedSettings
    from d2llm.data.build import Made

GIGA = 1e9


@dataclass(frozen=True)
class Device:
    """What computes: dense matrix products a second by precision, and its memory in bytes."""

    title: str
    half: float
    single: float
    memory: float


# Of the makers' data sheets, without sparsity; the CPU's as measured on the machine of docs/performance.md.
DEVICES = {
    "h100": Device("NVIDIA H100 SXM", 989e12, 495e12, 80e9),
    "a100": Device("NVIDIA A100 SXM", 312e12, 156e12, 80e9),
    "l40s": Device("NVIDIA L40S", 362e12, 183e12, 48e9),
    "rtx4090": Device("NVIDIA RTX 4090", 165e12, 83e12, 24e9),
    "cpu": Device("one core of a server's CPU", 1.2e11, 1.2e11, 4e9),
}
# Share of that rate a training or an encoding reaches; of a CPU most, as its rate is a measured one.
UTILISATION = {"cpu": 0.6}
USUAL_UTILISATION = 0.35


@dataclass(frozen=True)
class Sizes:
    """A transformer's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_width: int
    intermediate: int
    vocabulary: int
    gated: bool
    tied: bool

    @property
    def layer(self) -> int:
        """Weights of the matrices of one layer."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def body(self) -> int:
        """Weights of all layers."""
        return self.layers * self.layer

    @property
    def embeddings(self) -> int:
        """Weights of input embeddings, and of the head where it has its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.body + self.embeddings

    def forward(self, tokens: float, length: float) -> float:
        """FLOPs of a forward pass over texts of about `length` tokens, without a head."""
        return tokens * (2 * self.body + 4 * self.layers * self.hidden * length)

    def lora(self, rank: int, first: int = 0) -> int:
        """Weights of adapters on every matrix from a layer on."""
        ends = 2 * (2 * self.hidden) + 2 * (self.hidden + self.kv_width)
        ends += (3 if self.gated else 2) * (self.hidden + self.intermediate)
        return rank * ends * max(0, self.layers - first)

    def activations(self, tokens: float, length: float, size: int) -> float:
        """Bytes kept of a forward pass for the backward one, attention by blocks (nothing kept of its matrix)."""
        return tokens * self.layers * (12 * self.hidden + 4 * self.intermediate) * size


# What families call the width of their feed-forward layers; others leave it out, as it is four times the model's.
FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")


def sizes(settings: BaseSettings | PretrainedSettings, where: str) -> Sizes:
    """The sizes of a base model. Raises ConfigError or ArtifactError where its configuration cannot be had."""
    if isinstance(settings, BaseSettings):
        width, inner = settings.hidden_size, settings.intermediate_size
        return Sizes(width, settings.layers, settings.heads, width, inner, vocabulary=2000, gated=True, tied=True)
    config = described(settings, where)
    layers = settings.layers or config.num_hidden_layers
    check_layers(layers, config.num_hidden_layers, f"{where.removesuffix('.source')}.layers")
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    decoder = config.model_type not in ("bert", "roberta", "xlm-roberta", "electra")
    inner = next((size for key in FEED_FORWARD if (size := getattr(config, key, None))), 4 * config.hidden_size)
    return Sizes(
        hidden=config.hidden_size,
        layers=layers,
        heads=heads,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * width,
        intermediate=inner,
        vocabulary=config.vocab_size,
        gated=decoder and config.model_type not in ("gpt2", "bloom", "opt"),
        tied=bool(config.tie_word_embeddings),
    )


def described(settings: PretrainedSettings, where: str) -> Any:
    """The configuration of a checkpoint, of the hub its small file alone."""
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.origin != "hub":
        folder, file = located(settings, where, weights=False)
        return AutoConfig.from_pretrained(folder, **options, **({"gguf_file": file} if file else {}))
    what = f"{settings.source} at {settings.revision or 'its newest revision'}"
    options["revision"] = settings.revision
    return patiently(lambda: AutoConfig.from_pretrained(settings.source, **options), what, where, waits=())


# ------------------------------------------------------------------------------------------------------------- examples
@dataclass(frozen=True)
class Amounts:
    """How much text there is: training queries, texts of the pools, unlabelled texts, pairs and corpora of the
    evaluation sets; tokens a text.

    `plain`: shares of the unlabelled texts by their tokens; `longest`: tokens of the longest, infinite where not known.
    """

    queries: int
    pool: int
    unlabelled: int
    pairs: int
    corpus: int
    asked: int
    scored: float
    symmetric: float
    asymmetric: float
    plain: dict[float, float]
    longest: float
    assumed: tuple[str, ...]

    @property
    def length(self) -> float:
        """Tokens of a training text, by the mean of the two modes."""
        lengths = [value for value in (self.symmetric, self.asymmetric) if value]
        return max(1.0, sum(lengths) / max(1, len(lengths)))


# Tokens taken for a text of a symmetric set, a question and a passage, as long as none can be counted.
SENTENCE, QUESTION, PASSAGE = 20, 15, 120


def amounts(config: Config, usual: int, made: Made | None = None) -> Amounts:
    """From what the data stage makes where that is given; from its files where it has run by these settings, or from
    one's own where they are there; else from samples; else `usual` queries a training set is assumed, and said. Raises
    DataError for a file that is wrong.
    """
    if made is not None:
        return counted(made.train, made.pool, made.tasks["test"].values())
    if current(config, "data"):
        return measured(Paths.of(config))
    own = config.data.files
    if config.data.source == "files" and not own.downloads() and all(map(os.path.isfile, own.paths().values())):
        from d2llm.data import build

        made = build.from_files(config)
        return counted(made.train, made.pool, made.tasks["test"].values())
    return generated(config.data.world) if config.data.source == "world" else assumed(config, usual)


def generated(settings: WorldSettings) -> Amounts:
    """What the generated world makes, about."""
    queries = int(1.5 * settings.nli_premises + 1.5 * settings.sts_pairs + 3 * settings.queries)
    return Amounts(
        queries,
        3 * queries,
        settings.pretraining_texts,
        5 * settings.test_pairs,
        6 * settings.test_queries,
        3 * settings.test_queries,
        6.0 * settings.test_queries**2,
        12,
        20,
        {16.0: 1.0},
        math.inf,
        ("all numbers of texts",),
    )


def assumed(config: Config, usual: int) -> Amounts:
    """From samples and sizes that are known; else `usual` queries a training set and usual sizes of evaluation sets."""
    guesses, queries, pool = [], 0, 0
    plain: Counter[float] = Counter()
    for name, files in config.data.files.train.items():
        if files.sample is None:
            guesses.append(f"{usual} queries of {name}")
        asks, reads = files.sample or usual, (files.pool or 0) + 2 * (files.sample or usual)
        queries, pool = queries + asks, pool + reads
        plain[SENTENCE if files.mode == "symmetric" else QUESTION] += asks
        plain[SENTENCE if files.mode == "symmetric" else PASSAGE] += reads
    pairs = corpus = asked = 0
    scored = 0.0
    for task in config.data.files.tasks.values():
        known = MTEB.get(task.mteb) if isinstance(task, MtebSet) else None
        first, second = known or ((1000, 100_000) if task.type == "retrieval" else (5000, 0))
        if known is None:
            guesses.append(f"the size of {task.title or task.type}")
        first = min(first, task.sample or first)
        if task.type == "retrieval":
            asked, corpus, scored = asked + first, corpus + second, scored + float(first) * second
        else:
            pairs += first
    guesses.append(f"{SENTENCE} tokens a text of symmetric sets, {QUESTION} a question, {PASSAGE} a passage")
    unlabelled = queries + pool  # stages without labels read every text of training
    shares = {float(tokens): count / unlabelled for tokens, count in plain.items()}
    return Amounts(
        queries, pool, unlabelled, pairs, corpus, asked, scored, SENTENCE, PASSAGE, shares, math.inf, tuple(guesses)
    )


# Pairs, or queries and passages, of the test splits of C-MTEB (mteb's own statistics).
MTEB = {
    "Ocnli": (1847, 0),
    "Cmnli": (8315, 0),
    "ATEC": (20000, 0),
    "BQ": (10000, 0),
    "LCQMC": (12500, 0),
    "PAWSX": (2000, 0),
    "STSB": (1361, 0),
    "AFQMC": (4316, 0),
    "QBQTC": (5000, 0),
    "T2Retrieval": (22812, 118605),
    "MMarcoRetrieval": (6980, 106813),
    "DuRetrieval": (2000, 100001),
    "CovidRetrieval": (949, 100001),
    "CmedqaRetrieval": (3999, 100001),
    "EcomRetrieval": (1000, 100902),
    "MedicalRetrieval": (1000, 100999),
    "VideoRetrieval": (1000, 100930),
}


def measured(paths: Paths) -> Amounts:
    """From what the data stage wrote, and the stage `texts` where it has run as well."""
    import pandas as pd

    sets = []
    for folder in sorted(path.parent for path in paths.tasks.glob("*/task.json")):
        if (folder / "test.parquet").exists():
            sets.append({"pairs": pd.read_parquet(folder / "test.parquet")})
        elif (folder / "test").is_dir():
            sets.append({name: pd.read_parquet(folder / f"test/{name}.parquet") for name in ("queries", "corpus")})
    plain = pd.read_parquet(paths.pretraining)["text"] if paths.pretraining.exists() else None
    return counted(pd.read_parquet(paths.train_pairs), pd.read_parquet(paths.pool), sets, plain)


def counted(
    train: pd.DataFrame, pool: pd.DataFrame, sets: Iterable[dict[str, pd.DataFrame]], plain: pd.Series | None = None
) -> Amounts:
    """Of training pairs, pool, test sets ("pairs", or "queries" and "corpus") and unlabelled texts; without these, what
    training shows.
    """
    import pandas as pd

    def sample(column: pd.Series) -> pd.Series:
        return column.sample(min(len(column), 500), random_state=0).map(tokens_of)

    modes = {mode: float(sample(part["positive"]).mean()) for mode, part in train.groupby("mode")}
    pairs = corpus = asked = 0
    scored = 0.0
    for frames in sets:
        if "pairs" in frames:
            pairs += len(frames["pairs"])
        else:
            first, second = len(frames["queries"]), len(frames["corpus"])
            asked, corpus, scored = asked + first, corpus + second, scored + float(first) * second
    plain = pd.concat([train["query"], pool["text"]]).drop_duplicates() if plain is None else plain
    shares = sample(plain).value_counts(normalize=True).to_dict()
    longest = tokens_of(max(plain, key=len))
    return Amounts(
        len(train),
        len(pool),
        len(plain),
        pairs,
        corpus,
        asked,
        scored,
        modes.get("symmetric", 0.0),
        modes.get("asymmetric", 0.0),
        shares,
        longest,
        (),
    )


# ---------------------------------------------------------------------------------------------------------------- costs
@dataclass(frozen=True)
class Cost:
    """One line of the plan: a kind of job, how many there are, and what one of them takes."""

    stage: str
    jobs: int
    tokens: float
    flops: float
    memory: float
    hours: float


def plan(config: Config, device: str = "h100", usual: int = 50_000, made: Made | None = None) -> dict[str, Any]:
    """{"device", "models", "costs", "disk", "assumed"} of a configuration on a device. Raises ConfigError for an
    unknown one.
    """
    if device not in DEVICES:
        raise ConfigError(f"--device: expected one of {', '.join(DEVICES)}; found {device!r}")
    models = {name: sizes(config.models.of(name), f"models.{name}.source") for name in config.models.names()}
    amount = amounts(config, usual, made)
    costs = [
        *teacher_costs(config, models["teacher"], amount, device),
        *pretext_costs(config, models, amount, device),
        *run_costs(config, models, amount, device),
        *published_costs(config, amount, device),
    ]
    return {
        "device": DEVICES[device],
        "models": models,
        "amounts": amount,
        "costs": costs,
        "disk": disk(config, models, amount),
        "assumed": amount.assumed,
    }


def hours(flops: float, device: str, half: bool) -> float:
    """Hours of so many FLOPs on a device."""
    known = DEVICES[device]
    return flops / ((known.half if half else known.single) * UTILISATION.get(device, USUAL_UTILISATION)) / 3600


def teacher_costs(config: Config, teacher: Sizes, amount: Amounts, device: str) -> list[Cost]:
    """Tuning the teacher, and its judgement of every training pair, shard by shard."""
    settings, k = config.teacher, config.negatives.per_query
    dtype = getattr(config.models.teacher, "dtype", "float32")
    half = dtype != "float32"
    prompt = 60
    text = (amount.symmetric + amount.asymmetric) / 2
    weights = teacher.parameters * {"8bit": 1, "4bit": 0.5}.get(settings.quantization, 2 if half else 4)
    costs = []
    if settings.steps:
        tokens = settings.steps * settings.batch_pairs * (prompt + 2 * text)
        flops = passes(settings.tuning) * teacher.forward(tokens, prompt + 2 * text)
        trained = trainable(teacher, settings.tuning)
        batch = settings.batch_pairs * (prompt + 2 * text)
        mixed = config.training.precision != "float32"
        memory = teacher.parameters * 4 + trained * 12 + teacher.activations(batch, 0, 2 if mixed else 4)
        costs.append(
            Cost("teacher, tuning", 1 + len(config.teachers), tokens, flops, memory, hours(flops, device, mixed))
        )
    # Candidates of a query share its prompt: the query once, then each candidate with its cue.
    candidates = 1 + k + config.training.pack - 1
    tokens = amount.queries * (prompt + text + candidates * (text + 8))
    flops = teacher.forward(tokens, prompt + 2 * text)
    memory = weights + settings.batch_tokens * (teacher.hidden * 8 + teacher.intermediate * 2) * (2 if half else 4)
    shards = settings.shards
    costs.append(
        Cost(
            "teacher scores, a shard",
            shards * (1 + len(config.teachers)),
            tokens / shards,
            flops / shards,
            memory,
            hours(flops, device, half) / shards,
        )  # fmt: skip
    )
    return costs


def passes(tuning: TunedWeights) -> float:
    """Forward passes a training step is worth: one forward, one backward to the activations, one to the weights that
    train.
    """
    return 3.0 if tuning.kind == "full" else 2.1


def trainable(model: Sizes, tuning: TunedWeights) -> int:
    """Weights that train."""
    if tuning.kind == "full":
        return model.parameters
    if tuning.kind == "bitfit":
        return 10 * model.hidden * model.layers
    return model.lora(tuning.r, tuning.first_layer)


def longest_of(shares: dict[float, float], count: int) -> float:
    """The mean length of the longest of `count` texts drawn from {length: share}."""
    mean, below = 0.0, 0.0
    for length, share in sorted(shares.items()):
        mean += length * ((below + share) ** count - below**count)
        below += share
    return mean


def pretext_costs(config: Config, models: dict[str, Sizes], amount: Amounts, device: str) -> list[Cost]:
    """The methods' own pre-training, of all weights; one job for all seeds and for all variants that leave it alone."""
    jobs: Counter[Cost] = Counter()
    runs = ((run.method, config.pretext_of(run.method, run.variant)) for run in config.runs())
    for name, variant in dict.fromkeys(runs):
        if variant is None:
            continue
        recipe = config.recipe(name, variant)
        model = models[declared(name).base(recipe)]
        stages = (getattr(recipe, key) for key in declared(name).pretext_keys)
        costs = [
            pretext_cost(f"pretext {name}", model, recipe, stage, amount, config, device)
            for stage in stages
            if isinstance(stage, PretextStage) and stage.updates(amount.unlabelled)
        ]
        if costs:
            whole = {key: sum(getattr(cost, key) for cost in costs) for key in ("tokens", "flops", "hours")}
            jobs[replace(costs[0], memory=max(cost.memory for cost in costs), **whole)] += 1
    return [replace(cost, jobs=count) for cost, count in jobs.items()]


def pretext_cost(
    title: str, model: Sizes, recipe: Recipe, stage: PretextStage, amount: Amounts, config: Config, device: str
) -> Cost:
    """One stage of one job. A batch is padded to its longest text; memory is what it takes in one part, which training
    makes more where that does not fit.
    """
    read = stage.reading(recipe, config.data.source == "world")
    size, steps, half = stage.batch_size, stage.updates(amount.unlabelled), config.training.precision != "float32"
    checkpointing = recipe.gradient_checkpointing
    room = stage.max_length - read.around
    own: dict[float, float] = defaultdict(float)
    for length, share in amount.plain.items():
        own[min(read.share * length, room)] += share
    padded = read.around + longest_of(own, size * read.sequences)
    tokens = size * read.sequences * padded
    predicted = size * (read.predicted * sum(length * share for length, share in own.items()) + read.besides)
    deeper = replace(model, layers=model.layers + read.layers)
    head = 2 * model.vocabulary * model.hidden
    flops = steps * ((3 + checkpointing) * deeper.forward(tokens, padded) + 3 * head * predicted)
    # The widest batch: of texts as long as they may be, with the head's logits and their gradient beside each other.
    widest = min(amount.longest, room)
    stored = deeper.activations(size * read.sequences * (read.around + widest), 0, 2 if half else 4)
    logits = 2 * 4 * model.vocabulary * size * (read.predicted * widest + read.besides)
    memory = 16 * model.parameters + stored / (model.layers if checkpointing else 1) + logits
    return Cost(title, 1, steps * tokens, flops, memory, hours(flops, device, half))


def run_costs(config: Config, models: dict[str, Sizes], amount: Amounts, device: str) -> list[Cost]:
    """Training and evaluation of every method, with its variants and seeds."""
    settings, k, length = config.training, config.negatives.per_query, amount.length
    half = settings.precision != "float32"
    costs = []
    for name in config.methods:
        chosen = declared(name)
        recipe: Recipe = config.recipe(name)
        model = models[chosen.base(recipe)]
        jobs = sum(run.method == name for run in config.runs())
        negatives = k if recipe.hard_negatives is None else min(k, recipe.hard_negatives)
        texts = settings.batch_size * (2 + negatives)
        tokens = settings.updates(name) * texts * length
        again = bool(settings.texts_at_once) + recipe.gradient_checkpointing
        flops = (passes(recipe.tuning) + again) * model.forward(tokens, length)
        at_once = min(texts, settings.texts_at_once or texts)
        stored = model.activations(at_once * length, length, 2 if half else 4)
        memory = (
            4 * model.parameters
            + 12 * trainable(model, recipe.tuning)
            + stored / (model.layers if recipe.gradient_checkpointing else 1)
        )
        costs.append(Cost(f"train {name}", jobs, tokens, flops, memory, hours(flops, device, half)))
        read = 2 * amount.pairs * amount.symmetric + amount.corpus * amount.asymmetric + amount.asked * QUESTION
        longest = min(settings.max_length, max(recipe.max_lengths.model_dump().values()))
        flops = model.forward(read, length) + amount.scored * chosen.pair_flops(recipe, model.hidden, length)
        # Vectors of the largest corpus, in float32.
        memory = 4 * model.parameters + amount.corpus / 8 * 4 * chosen.indexed_width(recipe, model.hidden, longest)
        costs.append(Cost(f"evaluate {name}", jobs, read, flops, memory, hours(flops, device, False)))
    return costs


# Tokens of a text of a published model that is not told to read less, where memory is reckoned.
LONGEST = 512


def published_costs(config: Config, amount: Amounts, device: str) -> list[Cost]:
    """Evaluation of the published models among the reference rows, in float32."""
    if not config.published():
        return []  # spares others the import of mteb
    from d2llm.evaluation import published

    read = 2 * amount.pairs * amount.symmetric + amount.corpus * amount.asymmetric + amount.asked * QUESTION
    costs = []
    for name, row in config.published().items():
        where, known = published.check(row)
        model = sizes(row.checkpoint(known.revision if known else None), where)
        flops = model.forward(read, amount.length) + amount.scored * 2 * model.hidden
        batch = (row.batch_size or config.evaluation.batch_size) * (row.max_length or LONGEST)
        stored = batch * (model.hidden * 8 + model.intermediate * 2) + amount.corpus * model.hidden
        memory = 4 * (model.parameters + stored)
        costs.append(Cost(f"evaluate {name}", 1, read, flops, memory, hours(flops, device, False)))
    return costs


def disk(config: Config, models: dict[str, Sizes], amount: Amounts) -> dict[str, float]:
    """Bytes by what they hold."""
    sizes_of = {name: 2 if getattr(config.models.of(name), "dtype", "float32") != "float32" else 4 for name in models}
    runs = config.runs()
    bases = sum(models[name].parameters * sizes_of[name] for name in models)
    students: float = sum(
        4 * models[declared(run.method).base(config.recipe(run.method, run.variant))].body for run in runs
    )
    students += sum(
        4 * models[declared(run.method).base(config.recipe(run.method, run.variant))].embeddings / 2 for run in runs
    )
    scores = (
        amount.queries
        * 4
        * (2 * (config.negatives.per_query + config.training.pack) + (config.negatives.per_query + 1) ** 2)
    )
    predictions = len(config.evaluations()) * (amount.pairs * 40 + amount.asked * config.evaluation.keep * 30)
    fetched = sum(1 for table in config.data.files.downloads().values() if isinstance(table, HubTable))
    return {
        "base models": bases + models["teacher"].parameters * sizes_of["teacher"],
        "trained students": students,
        "teacher scores": scores,
        "predictions": predictions,
    } | ({"downloads of the hub, not known before they are there": 0.0} if fetched else {})


# ---------------------------------------------------------------------------------------------------------------- words
def smaller(stage: str) -> str:
    """The keys that make a job smaller."""
    if stage.startswith("pretext"):
        return "its stage's batch_size and max_length, gradient_checkpointing"
    if stage == "teacher, tuning":
        return "teacher.batch_pairs, teacher.tuning.first_layer"
    if stage.startswith("teacher"):
        return "teacher.batch_tokens, dtype, quantization"
    if stage.startswith("evaluate"):
        return "evaluation.batch_size, or batch_size and max_length of a published row"
    return "texts_at_once, gradient_checkpointing"


def duration(hours: float) -> str:
    """Hours, or what is less than a tenth of one in minutes or seconds, so that small jobs do not read as nothing.

    >>> [duration(hours) for hours in (217.04, 1.5, 0.1, 0.05, 0.01, 1e-4)]
    ['217.0 h', '1.50 h', '0.10 h', '3.0 min', '36 s', 'under 1 s']
    """
    if hours >= 0.1:
        return f"{hours:.{2 if hours < 10 else 1}f} h"
    if hours * 60 >= 1:
        return f"{hours * 60:.1f} min"
    return f"{hours * 3600:.0f} s" if hours * 3600 >= 1 else "under 1 s"


def text(estimate: dict[str, Any]) -> str:
    """The plan as a table for a terminal."""
    device: Device = estimate["device"]
    lines = [f"On {device.title} ({device.memory / GIGA:.0f} GB):", ""]
    for name, size in estimate["models"].items():
        lines.append(
            f"  {name:9} {size.parameters / 1e6:9.1f} M parameters, {size.layers} layers of width {size.hidden}"
        )
    lines += ["", f"  {'stage':24} {'jobs':>5} {'M tokens':>10} {'TFLOP':>12} {'GB':>7} {'time':>9} {'all':>9}"]
    for cost in estimate["costs"]:
        over = f"  more than it has: see {smaller(cost.stage)}" if cost.memory > device.memory else ""
        lines.append(
            f"  {cost.stage:24} {cost.jobs:5} {cost.tokens / 1e6:10.1f} {cost.flops / 1e12:12.1f} "
            f"{cost.memory / GIGA:7.1f} {duration(cost.hours):>9} {duration(cost.jobs * cost.hours):>9}{over}"
        )
    total = sum(cost.jobs * cost.hours for cost in estimate["costs"])
    lines += [
        "",
        f"  together {duration(total)} of one device (tokens, FLOPs, GB and time: of one job)",
        "",
        "  disk, GB:",
    ]
    lines += [f"    {value / GIGA:9.2f}  {name}" for name, value in estimate["disk"].items()]
    if estimate["assumed"]:
        lines += ["", "  assumed: " + "; ".join(estimate["assumed"])]
    lines += [
        "  Estimates: real runs differ by a factor of two and more, mostly by what share of the device's rate is "
        "reached."
    ]
    return "\n".join(lines)


def run(config: Config, device: str, queries: int) -> str:
    """The plan in words."""
    try:
        return text(plan(config, device, queries))
    except D2LLMError:
        raise
    except OSError as error:
        raise ConfigError(f"models: a model's configuration cannot be read ({error})") from error

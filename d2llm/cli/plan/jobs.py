"""What one job takes: tokens, FLOPs, hours, memory of the device and of the host. A function a stage, by its name.

Stages that load no model are not here, but for what they hold of tables (`requests`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from d2llm.cli.plan.amounts import Amounts, Evaluated, Texts, Training, longest_of
from d2llm.cli.plan.devices import Device
from d2llm.cli.plan.sizes import Sizes
from d2llm.config.catalogue import row_head
from d2llm.config.recipes import MaxLengths, PretextStage, Recipe, tokens_of
from d2llm.config.registry import Declaration, declared, modules
from d2llm.config.sections import BaseSettings

if TYPE_CHECKING:
    from d2llm.config.recipes import Mode
    from d2llm.config.schema import Config

# Tokens between a passage and the next one of a packed prompt: what stands between the texts, and the cue.
BETWEEN = 8.0
# Logits of a pre-training that are there at once, by a few losses (`models.fast.token_loss` parts each).
AT_ONCE = 1 << 27
# Bytes of Python with the libraries: on a CPU a job holds them in the memory that it computes in.
LIBRARIES = 0.5e9
# Queries by which an index's lists are judged (`search.index`).
JUDGES = 32
# Bytes of a pair with its score, in memory.
PAIR = 500
# Share of the teacher's candidates that only one of its two retrievers finds.
APART = 0.85


@dataclass(frozen=True)
class Cost:
    """One line of the plan: a kind of job, how many there are, and what one of them takes. `memory` is the device's,
    `host` what lies beside it in the machine's; bytes.
    """

    stage: str
    jobs: int
    tokens: float
    flops: float
    memory: float
    hours: float
    host: float = 0.0


@dataclass(frozen=True)
class Given:
    """A config with what is known of it."""

    config: Config
    models: dict[str, Sizes]
    rows: dict[str, Sizes]  # of published models
    amount: Amounts
    device: Device

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.gpu

    @property
    def half(self) -> bool:
        """Whether texts are encoded in half precision."""
        return self.gpu and self.config.gpu.half

    @property
    def mixed(self) -> bool:
        """Whether trainings compute in half precision."""
        return self.config.training.precision != "float32"

    def kept(self, name: str) -> int:
        """Bytes of a weight of a base model as it is kept."""
        return 2 if getattr(self.config.models.of(name), "dtype", "float32") != "float32" else 4

    def limit(self, *limits: int) -> int:
        """Tokens of a text under `training.max_length` and others."""
        return min(self.config.training.max_length, *limits)


# ----------------------------------------------------------------------------------------------- base models, negatives
def base(given: Given, model: str) -> Cost:
    """Bringing a checkpoint, or making one."""
    size, settings = given.models[model], given.config.models.of(model)
    title = f"base {model}"
    if not isinstance(settings, BaseSettings):
        return Cost(title, 1, 0, 0, 0, 0, host=2 * size.parameters * given.kept(model))
    tokens = settings.steps * settings.batch_size * 3 * given.amount.unlabelled.mean(size.ratio)
    flops = 3 * size.forward(tokens, given.amount.unlabelled.mean(size.ratio))
    memory = 16 * size.parameters + size.activations(3 * settings.batch_size * 32, 4)
    return Cost(title, 1, tokens, flops, memory, given.device.hours(flops, False))


def vectors(given: Given, shard: str, shards: str) -> Cost:
    """A share of the texts that dense negatives are found among."""
    whole = _embedded(given)
    share = 1 / int(shards)
    part = {key: share * getattr(whole, key) for key in ("tokens", "flops", "hours", "host")}
    return replace(whole, stage="vectors, a shard", **part)


def _embedded(given: Given) -> Cost:
    """The texts of training through the pipeline's encoder."""
    size, piles = (
        given.models["encoder"],
        [pile for part in given.amount.train for pile in (part.queries, part.passages)],
    )
    tokens, flops = _read(size, piles, given.limit(512))
    count = sum(pile.count for pile in piles)
    memory = (2 if given.half else 4) * size.parameters + size.activations(256 * given.limit(512), 2) / size.layers
    return Cost(
        "vectors", 1, tokens, flops, memory, given.device.hours(flops, given.half), host=4.0 * count * size.hidden
    )


def _read(size: Sizes, piles: list[Texts], limit: int) -> tuple[float, float]:
    """(tokens, FLOPs) of piles of texts read once."""
    lengths = [(pile.tokens(size.ratio, limit), pile.mean(size.ratio, limit)) for pile in piles]
    return sum(tokens for tokens, _ in lengths), sum(size.forward(*each) for each in lengths)


def negatives(given: Given) -> Cost:
    """Dense mining: every query of a set against all its passages; their embedding too where no other job does it."""
    size, sets = given.models["encoder"], given.amount.train
    flops = sum(2.0 * part.queries.count * part.passages.count * size.hidden for part in sets)
    whole = _embedded(given)
    # Vectors of all texts, and the texts themselves with what BM25 holds of them.
    host = whole.host + sum(12 * 40 * (part.queries.count + part.passages.count) for part in sets)
    mined = Cost("negatives", 1, 0, flops, whole.memory, given.device.hours(flops, False), host)
    if given.config.negatives.shards > 1:
        return mined
    added = {key: getattr(mined, key) + getattr(whole, key) for key in ("tokens", "flops", "hours")}
    return replace(mined, **added)


# ------------------------------------------------------------------------------------------------------------- teacher
def _prompt(given: Given, mode: Mode) -> float:
    """Tokens of what stands before the texts of a prompt; a classifier has none."""
    if given.models["teacher"].pairwise:
        return 0.0
    template = getattr(given.config.teacher, mode).template
    return given.models["teacher"].ratio * tokens_of(template.partition("{a}")[0])


def teacher(given: Given, teacher: str) -> Cost:
    """Tuning; without steps it is asked on dev alone, and put where teachers lie."""
    settings, size, sets = given.config.teacher_of(teacher), given.models["teacher"], given.amount.train
    if not settings.steps:
        return _as_it_is(given)
    rows = [_tuning_row(given, part) for part in sets]
    length = sum(rows) / max(1, len(rows))
    batch = settings.batch_pairs / (1 + given.config.data.files.teacher_negatives) * length
    flops = settings.steps * size.update(settings.tuning, batch, length)
    memory = (
        4 * size.parameters + 12 * size.trainable(settings.tuning) + size.activations(batch, 2 if given.mixed else 4)
    )
    hours = given.device.hours(flops, given.mixed)
    return Cost("teacher, tuning", 1, settings.steps * batch, flops, memory, hours, host=4 * size.parameters)


def _tuning_row(given: Given, part: Training) -> float:
    """Tokens of a query and the passages that share a row with it; a classifier's, of as many pairs."""
    together, size = 1 + given.config.data.files.teacher_negatives, given.models["teacher"]
    before, pair = _prompt(given, part.mode), _mean_pair(given, part.queries, part.passages)
    if size.pairwise:
        return together * min(given.config.teacher.max_length, pair)
    query = part.queries.mean(size.ratio, given.config.teacher.max_length)
    return before + query + together * min(given.config.teacher.max_length - before - query, pair - query)


def _as_it_is(given: Given) -> Cost:
    """A teacher that is not tuned, asked on dev."""
    files, parts = given.config.data.files, []
    for part in given.amount.train:
        held = Texts(round(files.teacher_dev * part.queries.count), part.queries.shares)
        parts.append(_asked(given, part.mode, held, part.passages, 1 + files.teacher_negatives))
    tokens, flops = map(sum, zip(*parts, strict=True)) if parts else (0.0, 0.0)
    half = given.kept("teacher") == 2
    host = 2 * given.models["teacher"].parameters * given.kept("teacher")
    return Cost("teacher, as it is", 1, tokens, flops, _answering(given), given.device.hours(flops, half), host)


def _mean_pair(given: Given, first: Texts, second: Texts) -> float:
    """Tokens of a query and a passage in a prompt."""
    ratio, limit = given.models["teacher"].ratio, given.config.teacher.max_length
    return first.mean(ratio, limit) + second.mean(ratio, limit) + BETWEEN


def _answering(given: Given) -> float:
    """Bytes of a teacher that answers: its weights, and a batch of prompts."""
    settings, size = given.config.teacher, given.models["teacher"]
    kept = given.kept("teacher")
    weights = size.parameters * {"8bit": 1, "4bit": 0.5}.get(settings.quantization, kept)
    return weights + settings.batch_tokens * (size.hidden * 8 + size.intermediate * 2) * kept


def _asked(given: Given, mode: Mode, queries: Texts, passages: Texts, candidates: float) -> tuple[float, float]:
    """(tokens, FLOPs) of asking of every query's candidates, so many of which share the query in a row."""
    settings, size = given.config.teacher, given.models["teacher"]
    query = queries.mean(size.ratio, settings.max_length)
    passage = passages.mean(size.ratio, max(1.0, settings.max_length - _prompt(given, mode) - query)) + BETWEEN
    together = 1 if size.pairwise else settings.pack_size
    rows = queries.count * -(-candidates // together)
    tokens = rows * query + queries.count * candidates * passage
    return tokens, size.forward(tokens, _prompt(given, mode) + query + min(together, candidates) * passage)


def teacher_scores(given: Given, teacher: str, shard: str, shards: str) -> Cost:
    """Its judgement of a share of the training pairs: each query's positive, hard and easy negatives."""
    candidates = given.config.negatives.per_query + given.config.training.pack
    if given.config.teacher_of(teacher).scores is not None:  # each shard reads all of the file
        held = PAIR * candidates * sum(part.queries.count for part in given.amount.train) / int(shards)
        return Cost("teacher scores, of a file", 1, 0.0, 0.0, 0.0, 0.0, held)
    parts = [_asked(given, part.mode, part.queries, part.passages, candidates) for part in given.amount.train]
    tokens, flops = (sum(column) / int(shards) for column in zip(*parts, strict=True)) if parts else (0.0, 0.0)
    hours = given.device.hours(flops, given.kept("teacher") == 2)
    host = given.models["teacher"].parameters * given.kept("teacher") + 8.0 * tokens
    return Cost("teacher scores, a shard", 1, tokens, flops, _answering(given), hours, host)


# ------------------------------------------------------------------------------------------------------------ trainings
def pretext(given: Given, method: str, variant: str) -> Cost:
    """A method's own pre-training, of all weights."""
    recipe = given.config.recipe(method, variant)
    model = declared(method).base(recipe)
    stages = (getattr(recipe, key) for key in declared(method).pretext_keys)
    costs = [
        pretext_stage(given, f"pretext {method}", given.models[model], recipe, stage, declared(method).new_tokens)
        for stage in stages
        if isinstance(stage, PretextStage) and stage.updates(given.amount.unlabelled.count)
    ]
    if not costs:  # the model is only handed on
        return Cost(f"pretext {method}", 1, 0, 0, 4 * given.models[model].parameters, 0, _host(given, model))
    whole = {key: sum(getattr(cost, key) for cost in costs) for key in ("tokens", "flops", "hours")}
    return replace(costs[0], memory=max(cost.memory for cost in costs), host=_host(given, model), **whole)


def _host(given: Given, model: str) -> float:
    """Bytes of the host while a student is made for a GPU: its weights, and those of a checkpoint. A CPU computes with
    the file's own pages.
    """
    return 8.0 * given.models[model].parameters if given.gpu else 0.0


def _resized(given: Given, size: Sizes, tokens: int) -> float:
    """Bytes of the host beside a model's weights where a method adds tokens to it: its matrix is made anew."""
    return 4.0 * size.vocabulary * size.hidden if tokens and not given.gpu else 0.0


def pretext_stage(
    given: Given, title: str, size: Sizes, recipe: Recipe, stage: PretextStage, new_tokens: int = 0
) -> Cost:
    """One stage of one job. A batch is padded to its longest text; memory is what it takes in one part, which training
    makes more where that does not fit.
    """
    config, amount = given.config, given.amount
    read = stage.reading(recipe, config.data.source == "world")
    count, steps = stage.batch_size, stage.updates(amount.unlabelled.count)
    room = stage.max_length - read.around
    own: dict[float, float] = defaultdict(float)
    for length, share in amount.unlabelled.shares.items():
        own[min(read.share * length * size.ratio, room)] += share
    padded = read.around + longest_of(own, count * read.sequences)
    tokens = count * read.sequences * padded
    predicted = count * (read.predicted * sum(length * share for length, share in own.items()) + read.besides)
    deeper = replace(size, layers=size.layers + read.layers)
    head = 2 * size.vocabulary * size.hidden
    again = recipe.gradient_checkpointing
    flops = steps * ((3 + again) * deeper.forward(tokens, padded) + 3 * head * predicted)
    # The widest batch: of texts as long as they may be, with the head's logits and their gradient beside each other.
    widest = min(amount.longest * size.ratio, room)
    stored = deeper.activations(count * read.sequences * (read.around + widest), 2 if given.mixed else 4)
    predictions = count * (read.predicted * widest + read.besides)
    # Of a large vocabulary a part of the tokens at a time.
    logits = 2 * 4 * (min(size.vocabulary * predictions, AT_ONCE) if predictions else 0)
    memory = 16 * size.parameters + stored / (size.layers if again else 1) + logits
    memory -= 0 if stage.embeddings else 12 * size.embeddings
    # Beside it a CPU has the checkpoint's own matrix, read for the head, and one made anew for new tokens.
    memory += _resized(given, size, new_tokens) + (0 if given.gpu else 4 * size.embeddings)
    return Cost(title, 1, steps * tokens, flops, memory, given.device.hours(flops, given.mixed))


def train(given: Given, method: str, variant: str, seed: str) -> Cost:
    """Updates of a student, with the scores of its batch; a share of them for each of several processes."""
    config, chosen, recipe = given.config, declared(method), given.config.recipe(method, variant)
    settings, k = config.training, config.negatives.per_query
    size = given.models[chosen.base(recipe)]
    count = k if recipe.hard_negatives is None else min(k, recipe.hard_negatives)
    texts, length = settings.batch_size * (2 + count), _of_training(given, size, recipe, 1 + count)
    tokens = texts * length
    again = bool(settings.texts_at_once) + recipe.gradient_checkpointing
    heads = texts * chosen.text_flops(recipe, size.hidden, length)
    heads += settings.batch_size * texts * chosen.pair_flops(recipe, size.hidden, length)
    update = size.update(recipe.tuning, tokens, length) + again * size.forward(tokens, length) + 3 * heads
    flops = settings.updates(method) * update / settings.processes
    stored = size.activations(min(texts, settings.texts_at_once or texts) * length, 2 if given.mixed else 4)
    memory = 4.0 * size.parameters + 12 * size.trainable(recipe.tuning) + _resized(given, size, chosen.new_tokens)
    memory += stored / (size.layers if recipe.gradient_checkpointing else 1)
    read = config.training.updates(method) * tokens / settings.processes
    hours = given.device.hours(flops, given.mixed)
    # The host has the weights twice in each process, and the packs with what the teacher says of them.
    host = settings.processes * _host(given, chosen.base(recipe)) + given.amount.queries * 100 * (k + settings.pack)
    return Cost(f"train {method}", 1, read, flops, memory, hours, host)


def _of_training(given: Given, size: Sizes, recipe: Recipe, passages: int) -> float:
    """Mean tokens of a text of a batch: a query, and so many passages of its set."""
    total = 0.0
    for part in given.amount.train:
        limits = [given.limit(recipe.max_lengths.of(role, part.mode)) for role in ("query", "passage")]
        query, passage = part.queries.mean(size.ratio, limits[0]), part.passages.mean(size.ratio, limits[1])
        total += part.queries.count * (query + passages * passage) / (1 + passages)
    return max(1.0, total / max(1, given.amount.queries))


# ----------------------------------------------------------------------------------------------------------- evaluation
def evaluate(given: Given, method: str, variant: str, seed: str) -> Cost:
    """A run or a reference row on every evaluation set, or the joining of shards where other jobs evaluate."""
    cost = _evaluate(given, method, variant, given.config.evaluation.split)
    if given.config.evaluation.shards == 1:
        return cost
    return Cost(f"{cost.stage}, shards together", 1, 0, 0, 0, 0, cost.host)


def evaluate_shard(given: Given, method: str, variant: str, seed: str, shard: str, shards: str) -> Cost:
    """A share of the sets; memory is reckoned for the largest of all."""
    cost = _evaluate(given, method, variant, given.config.evaluation.split)
    part = {key: getattr(cost, key) / int(shards) for key in ("tokens", "flops", "hours")}
    return replace(cost, stage=f"{cost.stage}, a shard", **part)


def _evaluate(given: Given, method: str, variant: str, split: str) -> Cost:
    """On every set of a split."""
    sets = given.amount.split(split)
    rows = sum(part.queries.count * (given.config.evaluation.keep if part.type == "retrieval" else 1) for part in sets)
    texts = sum(part.queries.count + part.passages.count for part in sets)
    title, tables = f"evaluate {method}", 1000.0 * (rows + texts)
    if method in given.rows:
        cost = _published(given, method, sets)
    elif method in modules():
        cost = _student(given, declared(method), given.config.recipe(method, variant), sets)
    elif "teacher" in (needs := row_head(method).get("NEEDS", ())):
        cost = _reference(given, sets)
    elif needs:  # a base model as it is: mean of its states, cosine
        recipe = Recipe(base=needs[0], max_lengths=MaxLengths(query=10_000, passage=10_000, symmetric=10_000))
        cost = _student(given, Declaration(), recipe, sets)
    else:
        return Cost(title, 1, 0, 0, 0, 0, host=tables)
    return replace(cost, stage=title, host=cost.host + tables)


def evaluate_dev(given: Given, method: str, variant: str, seed: str) -> Cost:
    """The same on development splits."""
    cost = _evaluate(given, method, variant, "dev")
    return replace(cost, stage=f"{cost.stage} on dev")


def _student(given: Given, chosen: Declaration, recipe: Recipe, sets: tuple[Evaluated, ...]) -> Cost:
    size = given.models[chosen.base(recipe)]
    tokens, flops = 0.0, 0.0
    for part in sets:
        limit = given.limit(recipe.max_lengths.of("passage", part.mode))
        read, passed = _read(size, [part.queries, part.passages], limit)
        length = part.passages.mean(size.ratio, limit)
        texts = part.queries.count + part.passages.count
        pairs = part.queries.count * (part.passages.count if part.type == "retrieval" else 2)
        heads = texts * chosen.text_flops(recipe, size.hidden, length)
        heads += pairs * chosen.pair_flops(recipe, size.hidden, length)
        tokens, flops = tokens + read, flops + passed + heads
    longest = given.limit(max(recipe.max_lengths.model_dump().values()))
    most = max((part.passages.count for part in sets if part.type == "retrieval"), default=0)
    # The index of the largest corpus lies beside the weights; its vectors also in the host's memory.
    index = 4.0 * most * chosen.indexed_width(recipe, size.hidden, longest)
    batch = size.activations(given.config.evaluation.batch_size * longest, 2 if given.half else 4) / size.layers
    host = _host(given, chosen.base(recipe)) + 4.0 * most * size.hidden
    memory = 4 * size.parameters + index + batch
    return Cost("", 1, tokens, flops, memory, given.device.hours(flops, given.half), host)


def published(given: Given, row: str) -> Cost:
    """Bringing a published model, and trying it on a text."""
    return Cost(f"published {row}", 1, 0, 0, 0, 0, host=8.0 * given.rows[row].parameters)


def _published(given: Given, row: str, sets: tuple[Evaluated, ...]) -> Cost:
    """A published model, in float32, its vectors compared by products."""
    size, settings = given.rows[row], given.config.published()[row]
    limit = settings.max_length or 512
    tokens, flops = _read(size, [pile for part in sets for pile in (part.queries, part.passages)], limit)
    most = 0
    for part in sets:
        if part.type == "retrieval":
            flops += 2.0 * part.queries.count * part.passages.count * size.hidden
            most = max(most, part.passages.count)
    batch = size.activations((settings.batch_size or given.config.evaluation.batch_size) * limit, 4) / size.layers
    index = 4.0 * most * size.hidden
    memory, host = 4 * size.parameters + index + batch, 8.0 * size.parameters + index
    return Cost("", 1, tokens, flops, memory, given.device.hours(flops, False), host)


def _reference(given: Given, sets: tuple[Evaluated, ...]) -> Cost:
    """The teacher's row: it reads every pair, and of retrieval what BM25 and the encoder find."""
    config, encoder = given.config, given.models["encoder"]
    depths, orders = config.evaluation.teacher_candidates, config.evaluation.symmetric_order
    most_read = (APART if depths.bm25 and depths.dense else 1.0) * (depths.bm25 + depths.dense)
    tokens, flops, dense = 0.0, 0.0, 0.0
    for part in sets:
        candidates = min(most_read, part.passages.count) if part.type == "retrieval" else 1.0
        read, passed = _asked(given, part.mode, part.queries, part.passages, candidates)
        times = 2.0 if part.type != "retrieval" and orders.of(part.type) == "average" else 1.0
        if part.type == "pair_classification":  # right pairs, at most all of them, that are read in reverse too
            times *= 1 + min(config.evaluation.direction, part.queries.count) / part.queries.count
        tokens, flops = tokens + times * read, flops + times * passed
        if part.type == "retrieval" and depths.dense:
            dense += _read(encoder, [part.queries, part.passages], given.limit(512))[1]
    hours = given.device.hours(flops, given.kept("teacher") == 2) + given.device.hours(dense, given.half)
    most = max((part.passages.count for part in sets if part.type == "retrieval"), default=0)
    host = given.models["teacher"].parameters * given.kept("teacher") + 4.0 * most * encoder.hidden
    memory = _answering(given) + 4 * encoder.parameters
    return Cost("", 1, tokens, flops + dense, memory, hours, host)


def corpus_shard(given: Given, shard: str, shards: str) -> Cost:
    """A share of a collection of one's own; a token is taken for four bytes of its file."""
    corpus = given.config.corpus
    chosen, recipe = declared(corpus.method), given.config.recipe(corpus.method, corpus.variant)
    size, length = given.models[chosen.base(recipe)], given.limit(512)
    held = os.path.getsize(corpus.texts) if corpus.texts and os.path.isfile(corpus.texts) else 0
    tokens = held / 4 / int(shards)
    flops = size.forward(tokens, length)
    memory = 4 * size.parameters + size.activations(given.config.evaluation.batch_size * length, 4) / size.layers
    # Its passages of a hundred tokens, with what the index keeps of each.
    host = _host(given, chosen.base(recipe)) + tokens / 100 * 4 * chosen.indexed_width(recipe, size.hidden, length)
    return Cost("corpus, a shard", 1, tokens, flops, memory, given.device.hours(flops, given.half), host)


def corpus(given: Given) -> Cost:
    """The shards brought together. What the lists find is judged by the scores of some queries with every passage."""
    settings = given.config.corpus
    chosen, recipe = declared(settings.method), given.config.recipe(settings.method, settings.variant)
    whole, size = corpus_shard(given, "0", "1"), given.models[chosen.base(recipe)]
    length = given.limit(512)
    flops = JUDGES * whole.tokens / 100 * chosen.pair_flops(recipe, size.hidden, length) if settings.candidates else 0.0
    hours = given.device.hours(flops, False)
    return replace(whole, stage="corpus, shards together", tokens=0.0, flops=flops, hours=hours)


def runtime(given: Given) -> Cost:
    """Every method of the first seed and the teacher, one after another: the largest corpus embedded and searched."""
    config, sets = given.config, given.amount.split(given.config.evaluation.split)
    corpus = max(config.runtime.corpus_sizes)
    piles = [part for part in sets if part.type == "retrieval"][:1]
    like = piles[0].passages.shares if piles else {20.0: 1.0}
    part = Evaluated("retrieval", Texts(config.runtime.repeats, like), Texts(corpus, like))
    costs = [_student(given, declared(name), config.recipe(name), (part,)) for name in config.methods]
    if "teacher" in config.references:
        asked = Texts(config.runtime.repeats, like)
        tokens, flops = _asked(given, "asymmetric", asked, asked, config.runtime.teacher_pairs)
        hours = given.device.hours(flops, given.kept("teacher") == 2)
        costs.append(Cost("", 1, tokens, flops, _answering(given), hours, host=_answering(given)))
    # Five kinds of calls a method, each of so many seconds at most, but never fewer than three calls.
    clock = len(costs) * 5 * (1 + len(config.runtime.corpus_sizes)) * config.runtime.seconds / 3600
    return _after_another("runtime", costs, clock)


def search_notebook(given: Given) -> Cost:
    """Students of the first seed over the smallest retrieval corpus."""
    sets = sorted(
        (part for part in given.amount.test if part.type == "retrieval"), key=lambda part: part.passages.count
    )
    methods = given.config.methods
    costs = [_student(given, declared(name), given.config.recipe(name), tuple(sets[:1])) for name in methods]
    return _after_another("search notebook", costs, 0.05)


def _after_another(title: str, costs: list[Cost], more: float) -> Cost:
    """Parts of one job that follow each other, and hours beside them."""
    if not costs:
        return Cost(title, 1, 0, 0, 0, more)
    sums = {key: sum(getattr(cost, key) for cost in costs) for key in ("tokens", "flops", "hours")}
    widest = {key: max(getattr(cost, key) for cost in costs) for key in ("memory", "host")}
    return Cost(title, 1, **(sums | widest | {"hours": sums["hours"] + more}))


# By the names of the stages, which are those of the rules.
JOBS: dict[str, Callable[..., Cost]] = {
    job.__name__: job
    for job in (
        *(base, published, vectors, negatives, teacher, teacher_scores, pretext, train),
        *(evaluate_shard, evaluate, evaluate_dev, runtime, search_notebook, corpus_shard, corpus),
    )
}


def cost(given: Given, stage: str, **arguments: Any) -> Cost:
    """What a job of a stage takes."""
    job = JOBS[stage](given, **arguments)
    return replace(job, memory=job.memory + LIBRARIES) if job.memory and not given.gpu else job


def computes(given: Given, stage: str, **arguments: Any) -> bool:
    """Whether a job has something for a GPU: a checkpoint that is only brought has not, nor BM25."""
    if stage == "base":
        return isinstance(given.config.models.of(arguments["model"]), BaseSettings)
    row = arguments.get("method") if stage.startswith("evaluate") else None
    joins = stage == "evaluate" and given.config.evaluation.shards > 1
    if stage == "published" or stage not in JOBS or joins:
        return False
    return row is None or row in modules() or row in given.rows or bool(row_head(row).get("NEEDS"))

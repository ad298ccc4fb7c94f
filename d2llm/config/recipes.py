"""Settings every method has: its recipe, what of the backbone trains, lengths, pretext stages. Says nothing of what a
method does (`d2llm.methods`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from d2llm.config.section import Names, Pair, Section

Mode = Literal["symmetric", "asymmetric"]

Role = Literal["query", "passage"]

Schedule = Literal["constant", "linear", "cosine"]


def _warmup(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0.0 <= value < 1.0):
        raise ValueError("a whole number of steps, or a fraction of all steps below 1")
    return value


# An integer counts steps, a fraction below one is a share of all steps. One validator, for one readable error.
Warmup = Annotated[int | float, PlainValidator(_warmup)]

PositiveFloat = Annotated[float, Field(gt=0.0)]

Weight = Annotated[float, Field(ge=0.0)]

Count = Annotated[int, Field(ge=0)]


class TunedWeights(Section):
    """Which of the backbone's parameters train. Pooling and scorer always train in full."""

    # All weights, adapters of low rank, or biases alone.
    kind: Literal["full", "lora", "bitfit"] = "full"
    # LoRA only:
    r: Annotated[int, Field(ge=1)] = 8
    # Its scale: alpha divided by r.
    alpha: PositiveFloat = 8.0
    # On what goes into the adapters.
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # "auto": every linear projection of attention and feed-forward; otherwise the last parts of module names.
    targets: Literal["auto"] | Names = "auto"
    # Layers below it, counted from 0, stay as they are.
    first_layer: Annotated[int, Field(ge=0)] = 0
    # Where all weights train: whether the embedding matrix does. Of large vocabularies it is most of the memory; rows
    # of a method's own tokens always train.
    embeddings: bool = True


class LabelSettings(Section):
    """How much, and how rightly, trainings are told of their pairs. Which pairs that concerns follows from a run's
    seed, alike for all methods; what is concerned at a smaller share is so at a larger one.
    """

    # Share of the queries whose labels are used, in whole packs.
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # What becomes of the other queries: none, they are left out; teacher: half of every batch, or their share of it
    # where that is less, is of them, and only losses that imitate the teacher use them.
    rest: Literal["none", "teacher"] = "none"
    # Share of the labelled queries whose positive has changed places with one of their hard negatives.
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # Share of the other labelled queries, of those with a second training pair, whose right passage there stands among
    # their hard negatives here.
    false_negatives: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def labelled(self, packs: int) -> int:
        """How many packs of a data set have labels."""
        return math.ceil(packs * self.share - 1e-9)


class MaxLengths(Section):
    """Longest inputs in tokens, prefix and suffix included. The text is cut, never the prefix or suffix."""

    # Of a query of retrieval.
    query: Annotated[int, Field(ge=1)] = 512
    # Of a passage.
    passage: Annotated[int, Field(ge=1)] = 512
    # Of either text of a symmetric pair.
    symmetric: Annotated[int, Field(ge=1)] = 512

    def of(self, role: Role, mode: Mode) -> int:
        """The limit of a text by its role and mode."""
        return self.symmetric if mode == "symmetric" else getattr(self, role)


@dataclass(frozen=True)
class Reading:
    """What a pretext stage makes of a text, for estimates of its cost: so many sequences of that share of it and the
    tokens around, by so many more layers than the model's; it predicts `predicted` times the text's tokens and some
    besides."""

    sequences: int = 1
    share: float = 1.0
    around: float = 0.0
    layers: int = 0
    predicted: float = 0.0
    besides: int = 0


def tokens_of(text: str) -> float:
    """A token is taken for 1.5 characters of Chinese or 4 of others."""
    return sum(1 / 1.5 if ord(character) > 0x2E80 else 0.25 for character in text)


class PretextStage(Section):
    """A pretext stage: its own optimiser run before fine-tuning. Zero steps skip it."""

    # Updates; null: from `epochs`.
    steps: Count | None = None
    # Passes over the unlabelled text, where steps is null.
    epochs: Weight = 1.0
    # Texts an update.
    batch_size: Annotated[int, Field(ge=1)] = 32
    # Its highest rate.
    learning_rate: PositiveFloat = 1e-4
    # Of matrices, not of biases and norms.
    weight_decay: Weight = 0.01
    # Whole steps, or a fraction of all steps.
    warmup: Warmup = 0.1
    # Of the rate after warm-up.
    schedule: Schedule = "linear"
    # Tokens of a text.
    max_length: Annotated[int, Field(ge=4)] = 512
    # Whether the embedding matrix trains. Of large vocabularies it is most of the memory; rows of a method's own tokens
    # always train.
    embeddings: bool = True

    @property
    def trains(self) -> bool:
        """Whether there is any update, however many texts there are."""
        return bool(self.epochs if self.steps is None else self.steps)

    def reading(self, recipe: Any, ordered: bool) -> Reading:
        """What it makes of a text; each is read once, and nothing predicted, unless a stage says otherwise. `ordered`:
        whether the source knows what follows a text."""
        return Reading()

    def updates(self, texts: int) -> int:
        """Number of updates over this many texts."""
        if self.steps is not None:
            return self.steps
        return -(-round(self.epochs * texts) // self.batch_size)


class NegativeChoice(Section):
    """Which of its mined negatives a query is trained with, by the teacher's scores of them; all keys off: none are
    read.
    """

    # Negatives whose probability of yes is above this share of the positive's are left out (NV-Retriever: 0.95); null:
    # none are.
    below: Annotated[float, Field(gt=0.0)] | None = None
    # Whether the hard_negatives that are used lie evenly between the lowest and the highest score (TAS-B); false: the
    # first are used, which the mining draws at random.
    stratified: bool = False

    @property
    def reads(self) -> bool:
        """Whether it reads the teacher's scores."""
        return self != NegativeChoice()


class Recipe(Section):
    """Settings every method has. Subclasses set the published values as defaults and add their own keys.

    The number of updates, the batch and the sampler are not here: they are shared by all methods (section `training`).
    """

    # The highest rate of what trains in the base model.
    learning_rate: PositiveFloat = 1e-4
    # Pooling and scorer; null: the same rate.
    head_learning_rate: PositiveFloat | None = None
    # Of matrices, not of biases and norms.
    weight_decay: Weight = 0.01
    # Adam's.
    betas: Pair = (0.9, 0.999)
    # Adam's.
    epsilon: PositiveFloat = 1e-8
    # Largest norm of the gradient; null: not clipped.
    clip: PositiveFloat | None = 1.0
    # Whole steps, or a fraction of all steps.
    warmup: Warmup = 0.1
    # Of the rate after warm-up.
    schedule: Schedule = "linear"
    # Scores are divided by it in the contrastive loss.
    temperature: PositiveFloat = 0.05
    # Which of the base model's weights train.
    tuning: TunedWeights = TunedWeights()
    # Longest inputs.
    max_lengths: MaxLengths = MaxLengths()
    # The base model it starts from, by its name in section `models`; null: the one of the method's kind.
    base: str | None = None
    # Hard negatives used per query; null: all that the batch holds.
    hard_negatives: Count | None = None
    # Which of them, by the teacher's scores.
    negatives: NegativeChoice = NegativeChoice()
    # Which passages of other queries a query meets in a batch: their positives and hard negatives, or their positives.
    in_batch_passages: Literal["positives", "all"] = "all"
    # How much a variant is told of its pairs, in place of `training.labels`; null: as that says.
    labels: LabelSettings | None = None
    # Forget activations and compute them again: less memory, more time.
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _keep_published(cls, values: Any) -> Any:
        """Lay a sub-section over the published one: `tuning: {r: 16}` changes the rank, not the kind."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        for name, value in values.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, Section) and isinstance(value, Mapping):
                values[name] = default.model_dump(mode="json") | dict(value)
        return values

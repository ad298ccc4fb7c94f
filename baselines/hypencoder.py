"""Hypencoder: the query becomes a small network over single passage vectors; the direct rival of D2LLM's interaction
module.

Source: Killingback et al. 2025 (arXiv 2502.05364) and its code. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from baselines.kd import Distilled, DistilledRecipe
from d2llm.config.recipes import Count, MaxLengths, Mode, PositiveFloat, Role, Schedule, Warmup, Weight
from d2llm.config.registry import Spec

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student


class HypencoderRecipe(DistilledRecipe):
    """The released settings: MarginMSE and contrast of equal weight, seven negatives, rate 2e-5, constant after 6,000
    updates, six hidden layers.
    """

    learning_rate: PositiveFloat = 2e-5
    weight_decay: Weight = 0.0
    warmup: Warmup = 6000
    schedule: Schedule = "constant"
    # The network's output is a logit.
    temperature: PositiveFloat = 1.0
    hard_negatives: Count | None = 7
    contrast: Weight = 1.0
    in_batch_passages: Literal["positives", "all"] = "positives"
    # Not published: queries as BGE's. A first sentence has the query's limit, as its states are kept apart.
    max_lengths: MaxLengths = MaxLengths(query=64, passage=256, symmetric=256)
    # Hidden layers of the network that a query becomes (published: 2, 4, 6 and 8).
    layers: Annotated[int, Field(ge=1)] = 6


class Hypencoder(Distilled[HypencoderRecipe]):
    """The states of a query make a network, the [CLS] state of a passage goes into it."""

    name = "hypencoder"
    title = "Hypencoder"
    citation = "Killingback et al. 2025, Hypencoder: Hypernetworks for Information Retrieval"
    kind = "encoder"
    Recipe = HypencoderRecipe

    def parts(self, recipe: HypencoderRecipe) -> tuple[Spec, Spec]:
        """As many states as a query has, at most."""
        return ("states", {"count": recipe.max_lengths.query}), ("hypernetwork", {"layers": recipe.layers})

    def pair_flops(self, recipe: HypencoderRecipe, width: int, length: float) -> float:
        """A product of the width squared a hidden layer."""
        return 2.0 * (recipe.layers * width**2 + width)

    def text_flops(self, recipe: HypencoderRecipe, width: int, length: float) -> float:
        """What makes a network of a query; a passage costs nothing, which is not told apart here."""
        states, rows = min(length, recipe.max_lengths.query), recipe.layers * (width + 1) + 1
        heads = 2 * recipe.layers + 1
        return 4.0 * heads * states * width**2 + rows * (4.0 * states * width + 2.0 * width**2)

    def indexed_width(self, recipe: HypencoderRecipe, width: int, longest: int) -> int:
        """A vector a passage, beside the states of those that are being embedded."""
        return width * (1 + min(longest, recipe.max_lengths.query))

    def make_student(self, backbone: Backbone, recipe: HypencoderRecipe) -> Student:
        """[CLS] text [SEP]; the first of two sentences is a query, the second a passage."""
        from d2llm.models.student import Student, TextFormat

        backbone.tune(recipe.tuning)
        cls, sep = backbone.framing()
        lengths = recipe.max_lengths
        formats: dict[tuple[Role, Mode], TextFormat] = {}
        for mode in get_args(Mode):
            formats["query", mode] = TextFormat(tuple(cls), tuple(sep), min(lengths.query, lengths.of("query", mode)))
            formats["passage", mode] = TextFormat(tuple(cls), tuple(sep), lengths.of("passage", mode))
        return Student(backbone, *self.parts(recipe), formats, method=self.name)


METHOD = Hypencoder()

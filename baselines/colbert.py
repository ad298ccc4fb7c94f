"""ColBERT: an encoder's tokens kept apart, each query token matched with the passage token that fits it best. An
example of a further baseline.

Source: Khattab and Zaharia 2020, ColBERT (arXiv 2004.12832) and its code. docs/baselines.md lists every deviation;
docs/extending.md tells what the library had to learn for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

from pydantic import Field

from d2llm.config.recipes import Count, MaxLengths, Mode, PositiveFloat, Recipe, Role, Schedule, Warmup, Weight
from d2llm.config.registry import Spec
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

QUERY, DOCUMENT = "[Q]", "[D]"


class ColBERTRecipe(Recipe):
    """The code's settings: rate 3e-6, constant, one negative, vectors of 128 numbers, queries of 32 tokens, documents
    of 220.
    """

    learning_rate: PositiveFloat = 3e-6
    # transformers' AdamW of that time, which the code leaves as it is.
    weight_decay: Weight = 0.0
    warmup: Warmup = 0
    schedule: Schedule = "constant"
    temperature: PositiveFloat = 1.0
    hard_negatives: Count | None = 1
    # Published for search alone: two sentences of a kind have the documents' limit.
    max_lengths: MaxLengths = MaxLengths(query=32, passage=220, symmetric=220)
    # Numbers of a token's vector.
    token_size: Annotated[int, Field(ge=1)] = 128
    # Shorter queries are filled up to so many tokens with [MASK].
    query_tokens: Count = 32


class ColBERT(ContrastiveMethod[ColBERTRecipe]):
    """A unit vector a token, MaxSim."""

    name = "colbert"
    title = "ColBERT"
    citation = (
        "Khattab and Zaharia 2020, ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction "
        "over BERT"
    )
    kind = "encoder"
    new_tokens = 2
    Recipe = ColBERTRecipe

    def parts(self, recipe: ColBERTRecipe) -> tuple[Spec, Spec]:
        """Both by the numbers of a token's vector."""
        return ("tokens", {"size": recipe.token_size}), ("maxsim", {"size": recipe.token_size})

    def pair_flops(self, recipe: ColBERTRecipe, width: int, length: float) -> float:
        """Every token with every token."""
        return 2.0 * recipe.token_size * length**2

    def indexed_width(self, recipe: ColBERTRecipe, width: int, longest: int) -> int:
        """A vector a token, twice: an index is put together from its parts."""
        return 2 * recipe.token_size * longest

    def make_student(self, backbone: Backbone, recipe: ColBERTRecipe) -> Student:
        """[CLS] [Q] query [SEP] [MASK] …, [CLS] [D] document [SEP]; the first of two sentences is a query, the second a
        document.
        """
        from d2llm.models.student import Student, TextFormat
        from d2llm.run.errors import ConfigError

        (cls, sep), mask = backbone.framing(), backbone.token("mask")
        if not mask:
            raise ConfigError(
                "methods.colbert: this encoder's tokenizer has no [MASK], with which queries are filled up"
            )
        query, document = backbone.add_tokens([QUERY, DOCUMENT])
        backbone.tune(recipe.tuning, new_tokens=[query, document])
        lengths = recipe.max_lengths
        formats: dict[tuple[Role, Mode], TextFormat] = {}
        for mode in get_args(Mode):
            longest = lengths.of("query", mode), lengths.of("passage", mode)
            formats["query", mode] = TextFormat((*cls, query), tuple(sep), longest[0], mask[0], recipe.query_tokens)
            formats["passage", mode] = TextFormat((*cls, document), tuple(sep), longest[1])
        return Student(backbone, *self.parts(recipe), formats, method=self.name)


METHOD = ColBERT()

"""SGPT: a decoder with position-weighted mean pooling, of which only the biases train.

Source: Muennighoff 2022 (arXiv 2202.08904) and its code. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.recipes import Count, MaxLengths, PositiveFloat, Recipe, Role, Schedule, TunedWeights, Warmup, Weight
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

# Around queries and documents of asymmetric search, as tokens of their own; symmetric texts stand bare.
QUERY_BRACKETS, DOCUMENT_BRACKETS = ("[", "]"), ("{", "}")


class SGPTRecipe(Recipe):
    """Rate of the asymmetric runs (symmetric: 3.2e-4), cosine × 20, one hard negative, lengths 75 and 300."""

    learning_rate: PositiveFloat = 4e-4
    # sentence-transformers' defaults, on which the code stands.
    weight_decay: Weight = 0.01
    warmup: Warmup = 0.1
    schedule: Schedule = "linear"
    temperature: PositiveFloat = 0.05
    hard_negatives: Count | None = 1
    tuning: TunedWeights = TunedWeights(kind="bitfit")
    max_lengths: MaxLengths = MaxLengths(query=300, passage=300, symmetric=75)


class SGPT(ContrastiveMethod[SGPTRecipe]):
    """Weight i for token i, cosine."""

    name = "sgpt"
    title = "SGPT"
    citation = "Muennighoff 2022, SGPT: GPT Sentence Embeddings for Semantic Search"
    kind = "decoder"
    pooling = ("weighted_mean", {})
    scorer = ("cosine", {})
    Recipe = SGPTRecipe

    def phrases(self, recipe: SGPTRecipe) -> tuple[str, ...]:
        """The brackets."""
        return (*QUERY_BRACKETS, *DOCUMENT_BRACKETS)

    def make_student(self, backbone: Backbone, recipe: SGPTRecipe) -> Student:
        """[query] and {document} in asymmetric search, bare texts otherwise; padded on the right.

        Before either stands what the checkpoint begins texts with: nothing on the models it was published on.
        """
        from d2llm.models.student import Student, TextFormat, same_formats

        lengths = recipe.max_lengths
        first, _ = backbone.framing()
        formats = same_formats(lengths, first)
        brackets: dict[Role, tuple[str, str]] = {"query": QUERY_BRACKETS, "passage": DOCUMENT_BRACKETS}
        for role, (left, right) in brackets.items():
            formats[role, "asymmetric"] = TextFormat(
                (*first, *backbone.phrase(left)), tuple(backbone.phrase(right)), lengths.of(role, "asymmetric")
            )
        backbone.tune(recipe.tuning)
        return Student(backbone, *self.parts(recipe), formats, method=self.name)


METHOD = SGPT()

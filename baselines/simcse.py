"""Supervised SimCSE: an encoder's [CLS] through one tanh layer, cosine, contrast with one hard negative. An example of
a further baseline.

Source: Gao et al. 2021, SimCSE (arXiv 2104.08821) and its code. docs/baselines.md lists every deviation;
docs/extending.md follows its making.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.recipes import Count, MaxLengths, PositiveFloat, Recipe, Schedule, Warmup, Weight
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student


class SimCSERecipe(Recipe):
    """The supervised BERT base model: temperature 0.05, rate 5e-5, one contradiction as hard negative, length 32."""

    learning_rate: PositiveFloat = 5e-5
    # Hugging Face's trainer's defaults, on which the code stands.
    weight_decay: Weight = 0.0
    warmup: Warmup = 0
    schedule: Schedule = "linear"
    temperature: PositiveFloat = 0.05
    hard_negatives: Count | None = 1
    # Of sentences; passages are longer than any text it was published on, so retrieval has the length of the other
    # encoders.
    max_lengths: MaxLengths = MaxLengths(query=64, passage=256, symmetric=32)


class SimCSE(ContrastiveMethod[SimCSERecipe]):
    """[CLS] through a tanh layer that stays at evaluation, cosine."""

    name = "simcse"
    title = "SimCSE"
    citation = "Gao et al. 2021, SimCSE: Simple Contrastive Learning of Sentence Embeddings"
    kind = "encoder"
    pooling = ("cls_mlp", {})
    scorer = ("cosine", {})
    Recipe = SimCSERecipe

    def make_student(self, backbone: Backbone, recipe: SimCSERecipe) -> Student:
        """[CLS] text [SEP] in every role; all of the encoder trains."""
        from d2llm.models.student import Student, same_formats

        backbone.tune(recipe.tuning)
        formats = same_formats(recipe.max_lengths, *backbone.framing())
        return Student(backbone, *self.parts(recipe), formats, method=self.name)


METHOD = SimCSE()

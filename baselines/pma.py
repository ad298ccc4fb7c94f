"""PMA with a cosine: D2LLM's student without its teacher and its interaction module, trained by contrast alone. The
rival that says what these two add.

Source: the pooling of Lee et al. 2019, Set Transformer (arXiv 1810.00825), as D2LLM has it (Liao et al. 2024); no paper
publishes the whole. docs/baselines.md lists every assumption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.recipes import MaxLengths, PositiveFloat, Recipe, Schedule, TunedWeights, Warmup, Weight
from d2llm.config.registry import Spec
from d2llm.config.section import Pair
from d2llm.methods.contrastive import ContrastiveMethod
from d2llm.methods.d2llm.recipe import PoolingSettings

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student


class DecoderRecipe(Recipe):
    """D2LLM's released optimiser, adapters and lengths, so that nothing but what a rival changes differs."""

    learning_rate: PositiveFloat = 1e-4
    betas: Pair = (0.8, 0.999)
    epsilon: PositiveFloat = 1e-6
    weight_decay: Weight = 0.01
    warmup: Warmup = 1000
    schedule: Schedule = "constant"
    # SGPT's; of a cosine, for which D2LLM has none.
    temperature: PositiveFloat = 0.05
    tuning: TunedWeights = TunedWeights(kind="lora", r=8, alpha=8.0, dropout=0.05)
    max_lengths: MaxLengths = MaxLengths(query=250, passage=250, symmetric=250)


class PMARecipe(DecoderRecipe):
    """D2LLM's settings with SGPT's temperature."""

    # How states become one vector.
    pooling: PoolingSettings = PoolingSettings()


class PMA(ContrastiveMethod[PMARecipe]):
    """PMA, cosine, in-batch contrast."""

    name = "pma"
    title = "PMA, cosine"
    citation = "Lee et al. 2019, Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks"
    kind = "decoder"
    Recipe = PMARecipe

    def parts(self, recipe: PMARecipe) -> tuple[Spec, Spec]:
        """The pooling that the recipe names."""
        return recipe.pooling.spec(), ("cosine", {})

    def text_flops(self, recipe: PMARecipe, width: int, length: float) -> float:
        """The pooling's attention, and its two products of a vector."""
        return 4.0 * length * width * recipe.pooling.heads + 4.0 * width**2

    def make_student(self, backbone: Backbone, recipe: PMARecipe) -> Student:
        """Raw text begun as the checkpoint begins it, as D2LLM's."""
        return raw_text(self, backbone, recipe)


def raw_text(method: ContrastiveMethod, backbone: Backbone, recipe: DecoderRecipe) -> Student:
    """A decoder's student that is fed as D2LLM's is: texts as they are, nothing behind them."""
    from d2llm.models.student import Student, same_formats

    first, _ = backbone.framing()
    backbone.tune(recipe.tuning)
    return Student(backbone, *method.parts(recipe), same_formats(recipe.max_lengths, first), method=method.name)


METHOD = PMA()

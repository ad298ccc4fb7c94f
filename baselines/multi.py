"""Several vectors a text: PMA with k learned queries, scored by MaxSim. Between one vector (`pma`) and a vector a token
(`colbert`).

Sources: the idea of Humeau et al. 2020, Poly-encoders (arXiv 1905.01969), and Luan et al. 2021, ME-BERT (arXiv
2005.00181); the pooling PMA_k of Lee et al. 2019 (arXiv 1810.00825), the score of Khattab and Zaharia 2020 (arXiv
2004.12832). No paper publishes the whole: docs/baselines.md lists every assumption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from baselines.pma import DecoderRecipe, raw_text
from d2llm.config.recipes import PositiveFloat
from d2llm.config.registry import Spec
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student


class MultiRecipe(DecoderRecipe):
    """D2LLM's optimiser, adapters and lengths; eight vectors of ColBERT's 128 numbers."""

    # SGPT's of each vector: the score is a sum of eight cosines.
    temperature: PositiveFloat = 0.4
    # Vectors of a text.
    vectors: Annotated[int, Field(ge=1)] = 8
    # Numbers of each.
    vector_size: Annotated[int, Field(ge=1)] = 128
    # Attention heads of the pooling.
    heads: Annotated[int, Field(ge=1)] = 32


class Multi(ContrastiveMethod[MultiRecipe]):
    """k unit vectors by PMA, MaxSim, in-batch contrast."""

    name = "multi"
    title = "Several vectors"
    citation = (
        "Luan et al. 2021, Sparse, Dense, and Attentional Representations for Text Retrieval (ME-BERT); Humeau et al. "
        "2020, Poly-encoders"
    )
    kind = "decoder"
    Recipe = MultiRecipe

    def parts(self, recipe: MultiRecipe) -> tuple[Spec, Spec]:
        """Both by the numbers of a vector."""
        pooling = {"vectors": recipe.vectors, "size": recipe.vector_size, "heads": recipe.heads}
        return ("multi_pma", pooling), ("maxsim", {"size": recipe.vector_size})

    def pair_flops(self, recipe: MultiRecipe, width: int, length: float) -> float:
        """Every vector with every vector."""
        return 2.0 * recipe.vector_size * recipe.vectors**2

    def text_flops(self, recipe: MultiRecipe, width: int, length: float) -> float:
        """Keys and values of every token, the attention of every seed, and the products behind it."""
        attention = 4.0 * length * width**2 + 4.0 * length * width * recipe.vectors
        return attention + recipe.vectors * (2.0 * width**2 + 2.0 * width * recipe.vector_size)

    def indexed_width(self, recipe: MultiRecipe, width: int, longest: int) -> int:
        """All vectors, twice: an index is put together from its parts."""
        return 2 * recipe.vectors * recipe.vector_size

    def make_student(self, backbone: Backbone, recipe: MultiRecipe) -> Student:
        """Raw text, as `pma`'s."""
        return raw_text(self, backbone, recipe)


METHOD = Multi()

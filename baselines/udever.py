"""Udever: SGPT's recipe with texts between tokens of their own, the last of which is the vector.

Source: Zhang et al. 2023, Language Models are Universal Embedders (arXiv 2310.08232). docs/baselines.md lists every
deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.recipes import (
    Count,
    MaxLengths,
    Mode,
    PositiveFloat,
    Recipe,
    Role,
    Schedule,
    TunedWeights,
    Warmup,
    Weight,
)
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

QUERY_TOKENS, DOCUMENT_TOKENS = ("[BOQ]", "[EOQ]"), ("[BOD]", "[EOD]")


class UdeverRecipe(Recipe):
    """Rate of the model card (the author's log: 4e-4), warm-up a quarter of one of 3 epochs, then constant,
    length 300.
    """

    learning_rate: PositiveFloat = 1e-4
    # Not published: no decay assumed, as next to nothing but biases trains.
    weight_decay: Weight = 0.0
    warmup: Warmup = 0.25 / 3
    schedule: Schedule = "constant"
    # Not published: SGPT's assumed.
    temperature: PositiveFloat = 0.05
    hard_negatives: Count | None = 8
    tuning: TunedWeights = TunedWeights(kind="bitfit")
    max_lengths: MaxLengths = MaxLengths(query=300, passage=300, symmetric=300)


class Udever(ContrastiveMethod[UdeverRecipe]):
    """State of the last token, cosine."""

    name = "udever"
    title = "Udever"
    citation = "Zhang et al. 2023, Language Models are Universal Embedders"
    kind = "decoder"
    pooling = ("last_token", {"k": 1})
    scorer = ("cosine", {})
    new_tokens = len(QUERY_TOKENS + DOCUMENT_TOKENS)
    Recipe = UdeverRecipe

    def make_student(self, backbone: Backbone, recipe: UdeverRecipe) -> Student:
        """[BOQ] query [EOQ], [BOD] document [EOD], and the model card's default, documents, for symmetric texts.

        Padded on the left, as there. The new tokens' embeddings train with the biases. Before them stands what the
        checkpoint begins texts with: nothing on BLOOM, on which it was published.
        """
        from d2llm.models.student import Student, TextFormat

        lengths = recipe.max_lengths
        new = backbone.add_tokens([*QUERY_TOKENS, *DOCUMENT_TOKENS])
        begin, _ = backbone.framing()
        query, document = new[:2], new[2:]
        around: dict[tuple[Role, Mode], list[int]] = {
            ("query", "asymmetric"): query,
            ("passage", "asymmetric"): document,
            ("query", "symmetric"): document,
            ("passage", "symmetric"): document,
        }
        formats = {
            (role, mode): TextFormat((*begin, first), (last,), lengths.of(role, mode))
            for (role, mode), (first, last) in around.items()
        }
        backbone.tune(recipe.tuning, new_tokens=new)
        return Student(backbone, *self.parts(recipe), formats, padding="left", method=self.name)


METHOD = Udever()

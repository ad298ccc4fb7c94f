"""D2LLM itself: a decoder with PMA pooling and the interaction emulation module, trained to imitate the teacher.

Facts and symbols: docs/method.md. Its settings are in `recipe`, its loss in `objective`. Importable without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.registry import Spec
from d2llm.methods.base import Method
from d2llm.methods.d2llm.recipe import D2LLMRecipe
from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.batch import Batch, Embedded
    from d2llm.models.student import Student


class D2LLM(Method[D2LLMRecipe]):
    """Decomposed and distilled LLM."""

    name = "d2llm"
    title = "D2LLM"
    citation = "Liao et al. 2024, D2LLM: Decomposed and Distilled Large Language Models for Semantic Search"
    kind = "decoder"
    uses_teacher = True
    Recipe = D2LLMRecipe

    def parts(self, recipe: D2LLMRecipe) -> tuple[Spec, Spec]:
        """Those the recipe names."""
        return recipe.pooling.spec(), recipe.interaction.spec()

    def imitates(self, recipe: D2LLMRecipe) -> bool:
        """Not where only plain contrast is left."""
        return bool(recipe.imitating())

    def imitates_features(self, recipe: D2LLMRecipe) -> str | None:
        """FI does."""
        return "gamma" if recipe.gamma > 0 else None

    def modules(self, recipe: D2LLMRecipe) -> tuple[str, ...]:
        """The losses whose weight is not 0."""
        return tuple(f"d2llm.methods.d2llm.losses.{name}" for name, weight in recipe.weights().items() if weight)

    def pair_flops(self, recipe: D2LLMRecipe, width: int, length: float) -> float:
        """Two products of the IEM's width are left where the passage's side is stored."""
        hidden = recipe.interaction.hidden
        return 2.0 * (hidden**2 + 2 * hidden)

    def text_flops(self, recipe: D2LLMRecipe, width: int, length: float) -> float:
        """The pooling's attention, its two products of a vector, and the IEM's side of a pair."""
        pooling = 4.0 * length * width * recipe.pooling.heads + 4.0 * width**2
        return pooling + 2.0 * width * recipe.interaction.hidden

    def make_student(self, backbone: Backbone, recipe: D2LLMRecipe) -> Student:
        """Raw text begun as the checkpoint begins it, no prompt. The pooling reads all that is fed, but for a sink."""
        from d2llm.models.student import Student, same_formats

        first, _ = backbone.framing()
        if recipe.sink == "bos" and not first:
            first = backbone.token("bos") or backbone.token("eos")
            if not first:
                raise ConfigError(
                    "methods.d2llm.sink: bos, but the tokenizer has neither a first nor a last token; set it to none"
                )

        backbone.tune(recipe.tuning)
        return Student(
            backbone,
            *self.parts(recipe),
            same_formats(recipe.max_lengths, first),
            method=self.name,
            unpooled=len(first) if recipe.sink == "bos" else 0,
        )

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: D2LLMRecipe) -> dict[str, Tensor]:
        """The weighted terms ci, cl, ri_phn, ri_ehn, fi, p2q (`objective.objective`)."""
        from d2llm.methods.d2llm.objective import objective

        return objective(student.scorer, embedded, batch, recipe)


METHOD = D2LLM()

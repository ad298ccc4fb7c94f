"""Plain distillation: a cosine that is trained on the teacher's scores by MarginMSE or by KL divergence, the usual
alternative to D2LLM's three losses. Its student is that of `pma`.

Sources: Hofstätter et al. 2020, MarginMSE (arXiv 2010.02666); Lin et al. 2020, TCT-ColBERT (arXiv 2010.11386) for the
KL divergence beside contrast. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from baselines.pma import DecoderRecipe, raw_text
from d2llm.config.recipes import Count, PositiveFloat, Recipe, Weight
from d2llm.config.registry import R, Spec
from d2llm.methods.contrastive import ContrastiveMethod, all_logits, allowed_positives, contrast, negative_mask
from d2llm.methods.d2llm.recipe import PoolingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.batch import Batch, Embedded
    from d2llm.models.student import Student


class DistilledRecipe(Recipe):
    """What it takes to learn from scores; the loss and its one negative are MarginMSE's as published."""

    hard_negatives: Count | None = 1
    # Margins to the negatives in mean square, or the KL divergence of the softmax over positive and negatives.
    loss: Literal["margin_mse", "kl"] = "margin_mse"
    # Weight of the in-batch contrast beside it; 0 removes it.
    contrast: Weight = 0.0
    # Whether the positives of a query's pack, which the teacher has scored as well, are negatives of the loss.
    easy_negatives: bool = False
    # The teacher's logits, yes minus no, are divided by it; the student's scores by temperature.
    teacher_temperature: PositiveFloat = 1.0
    # Whose scores it imitates, by its name in section `teachers`.
    teacher: str = "teacher"


class Distilled(ContrastiveMethod[R]):
    """A method whose recipe is a `DistilledRecipe`."""

    uses_teacher = True

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: R) -> dict[str, Tensor]:
        """The distillation term by its name and, where it has a weight, `info_nce`."""
        import torch

        assert isinstance(recipe, DistilledRecipe) and batch.teacher is not None
        positives, hard = all_logits(student, embedded, batch)
        own, mask = torch.arange(len(positives), device=positives.device), negative_mask(batch, positives.device)
        teacher, candidates = batch.teacher.to(positives.device), [positives.diagonal()[:, None], hard[own, own]]
        wanted = [margin(teacher.positive_logits)[:, None], margin(teacher.negative_logits)]
        if recipe.easy_negatives:
            candidates.append(positives.gather(1, teacher.easy_index))
            wanted.append(margin(teacher.easy_logits))
            allowed = allowed_positives(batch, mask.device).gather(1, teacher.easy_index)
            mask = torch.cat([mask, allowed & wanted[-1].isfinite()], dim=1)  # of wrong labels some were not asked
        loss = {"margin_mse": margin_mse, "kl": kl_divergence}[recipe.loss]
        student_logits = torch.cat(candidates, dim=1) / recipe.temperature
        teacher_logits = torch.cat(wanted, dim=1) / recipe.teacher_temperature
        terms: dict[str, Tensor] = {recipe.loss: loss(student_logits, teacher_logits, mask)}
        if recipe.contrast:
            terms["info_nce"] = recipe.contrast * contrast(positives, hard, batch, recipe)
        return terms


def margin(logits: Tensor) -> Tensor:
    """(…, 2) of yes and no → (…): the teacher's one logit."""
    return logits[..., 0] - logits[..., 1]


def margin_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over negatives of ((s₊ − s₋) − (t₊ − t₋))² (Hofstätter et al. 2020, eq. 5).

    student, teacher (B, 1 + K): logits, the positive first; mask (B, K): which negatives there are.
    """
    from d2llm.methods.losses import mean_over

    gaps = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return mean_over(gaps.square().flatten(), mask.flatten())


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over queries with a negative of Σ t·(log t − log s), s and t softmaxes over positive and negatives
    (Lin et al. 2020, section 3.2). Shapes as `margin_mse`.
    """
    import torch

    from d2llm.methods.losses import mean_over

    there = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
    least = torch.finfo(student.dtype).min
    log_s, log_t = (logits.masked_fill(~there, least).log_softmax(1) for logits in (student, teacher))
    return mean_over((log_t.exp() * (log_t - log_s)).masked_fill(~there, 0.0).sum(1), mask.any(1))


class KDRecipe(DecoderRecipe, DistilledRecipe):
    """MarginMSE with one negative as published; D2LLM's optimiser, adapters and lengths, SGPT's temperature."""

    hard_negatives: Count | None = 1
    # How states become one vector.
    pooling: PoolingSettings = PoolingSettings()


class KD(Distilled[KDRecipe]):
    """PMA, cosine, MarginMSE or KL divergence."""

    name = "kd"
    title = "Plain distillation"
    citation = (
        "Hofstätter et al. 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge "
        "Distillation"
    )
    kind = "decoder"
    Recipe = KDRecipe

    def parts(self, recipe: KDRecipe) -> tuple[Spec, Spec]:
        """The pooling that the recipe names."""
        return recipe.pooling.spec(), ("cosine", {})

    def text_flops(self, recipe: KDRecipe, width: int, length: float) -> float:
        """The pooling's attention, and its two products of a vector."""
        return 4.0 * length * width * recipe.pooling.heads + 4.0 * width**2

    def make_student(self, backbone: Backbone, recipe: KDRecipe) -> Student:
        """As `pma`'s."""
        return raw_text(self, backbone, recipe)


METHOD = KD()

"""The contrastive objective the baselines share, and the passages a query meets in a batch. Importable without torch.

What counts as a negative is decided here once, for every method alike: a passage of the batch is hidden from a query
when the training set marks it as right for the query's text, or it is that text itself (`normal_form`); published code
leaves it in by mistake or by rarity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d2llm.config.registry import R
from d2llm.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.config.recipes import Recipe
    from d2llm.models.batch import Batch, Embedded, TextIds
    from d2llm.models.student import Student


class ContrastiveMethod(Method[R]):
    """A method trained by InfoNCE: every query against all positives and, as a rule, all hard negatives of the batch."""

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: R) -> dict[str, Tensor]:
        """−log softmax over [own positive, other passages of the batch] / τ at the positive, mean over queries."""
        return {"info_nce": contrast(*all_logits(student, embedded, batch), batch, recipe)}


def all_logits(student: Student, embedded: Embedded, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of query i with the positive of query j (B, B), and with each hard negative of query j (B, B, K)."""
    import torch

    q, p, n = embedded.q, embedded.p, embedded.n
    size, count = n.shape[:2]
    matrix = student.scorer.matrix(q, torch.cat([p, n.flatten(0, 1)]), batch.mode)
    positives, hard = matrix.split([size, size * count], dim=1)
    return positives, hard.view(size, size, count)


def contrast(positives: Tensor, hard: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """InfoNCE of each query over the passages of the batch that a recipe names, of the logits of `all_logits`."""
    import torch

    from d2llm.methods.losses import info_nce, off_diagonal

    own, mask = torch.arange(len(positives), device=positives.device), negative_mask(batch, positives.device)
    others, allowed = off_diagonal(positives), off_diagonal(allowed_positives(batch, positives.device))
    if recipe.in_batch_passages == "all":
        far, far_mask = of_others(hard, mask, batch)
        others, allowed = torch.cat([others, far], dim=1), torch.cat([allowed, far_mask], dim=1)
    mask, allowed = contrasted(mask, batch), contrasted(allowed, batch)
    return info_nce(positives.diagonal(), hard[own, own], others, recipe.temperature, mask, allowed)


def contrasted(mask: Tensor, batch: Batch) -> Tensor:
    """(B, M): a mask of competitors without the queries that have no label, as nothing is known to come before these."""
    return mask if batch.labelled is None else mask & batch.labelled.to(mask.device)[:, None]


def negative_mask(batch: Batch, device: Any = None) -> Tensor:
    """(B, K): whether a place among a query's hard negatives holds one; all do where the batch says nothing."""
    import torch

    if batch.negative_mask is None:
        return torch.ones(len(batch), batch.negative_count, dtype=torch.bool, device=device)
    return batch.negative_mask.to(device)


def text_ids(batch: Batch) -> TextIds:
    """The batch's, or, of one made by hand, those its texts give: right for a query are the positives of its text."""
    from d2llm.methods.text_ids import PairTextIds

    if batch.text_ids is not None:
        return batch.text_ids
    size = len(batch)
    pairs = PairTextIds([batch.dataset] * size, batch.queries, batch.positives, batch.negatives, [()] * size)
    return pairs.of(range(size))


def allowed_positives(batch: Batch, device: Any = None) -> Tensor:
    """(B, B): whether the positive of query j may be a negative of query i; False on the diagonal."""
    import torch

    ids = text_ids(batch)
    return torch.from_numpy(~ids.are_right(ids.positives)).to(device)


def of_others(logits: Tensor, mask: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of logits (B, B, K), query by owner by negative, what belongs to other owners, as (B, (B−1)·K), with its mask."""
    import torch

    size, count = logits.shape[1:]
    ids = text_ids(batch)
    allowed = torch.from_numpy(~ids.are_right(ids.negatives)).to(logits.device)
    away = ~torch.eye(size, dtype=torch.bool, device=logits.device)
    width = (size - 1) * count
    return logits[away].view(size, width), (allowed & mask[None])[away].view(size, width)

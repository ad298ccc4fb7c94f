"""D2LLM's objective: L = ci·CI + CL + α·RI-PHN + β·RI-EHN + γ·FI (+ variants), over one object of the batch's scores.

Each term is a file of `losses/`, its weight a key of the recipe. What terms share is computed here, once, when the
first of them asks for it.
"""

from __future__ import annotations

from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2llm.methods.contrastive import allowed_positives, negative_mask, of_others
from d2llm.methods.losses import off_diagonal, weighted_total
from d2llm.run.errors import TrainingError

if TYPE_CHECKING:
    from d2llm.methods.d2llm.recipe import D2LLMRecipe
    from d2llm.models.batch import Batch, Embedded, TeacherTargets
    from d2llm.models.scorers.base import Scorer

LOSSES = "d2llm.methods.d2llm.losses"


def objective(scorer: Scorer, embedded: Embedded, batch: Batch, recipe: D2LLMRecipe) -> dict[str, Tensor]:
    """The weighted terms of the loss by name; one of weight zero is neither computed nor present.

    Raises TrainingError for a batch without teacher scores where a term imitates the teacher.
    """
    imitating = [key for key in recipe.imitating() if not key.startswith("losses.")]
    if batch.teacher is None and imitating:
        raise TrainingError(
            f"d2llm: {', '.join(imitating)} need teacher scores and this batch ({batch.dataset}) has none"
        )
    scores, weights = Scores(scorer, embedded, batch, recipe), recipe.weights()
    terms = {
        name: partial(import_module(f"{LOSSES}.{name}").term, scores) for name, weight in weights.items() if weight
    }
    return weighted_total(terms, weights)


class Scores:
    """The student's logits z of a batch and the teacher's probabilities p̂ of yes.

    B queries, K hard negatives and E easy negatives each; candidates are the positive, first, then the K. Masks are
    True where an entry counts.
    """

    def __init__(self, scorer: Scorer, embedded: Embedded, batch: Batch, recipe: D2LLMRecipe) -> None:
        self.scorer, self.embedded, self.batch, self.recipe, self.mode = scorer, embedded, batch, recipe, batch.mode
        self.size, self.count = embedded.n.shape[:2]
        self.device = embedded.q.device

    # -------------------------------------------------------------------------------------------------------- teacher
    @cached_property
    def teacher(self) -> TeacherTargets:
        """The teacher's logits and features, on this device."""
        if self.batch.teacher is None:
            raise TrainingError(f"d2llm: a loss needs teacher scores and this batch ({self.batch.dataset}) has none")
        return self.batch.teacher.to(self.device)

    @cached_property
    def hard_probability(self) -> Tensor:
        """(B, 1 + K): p̂ of each query's candidates."""
        positive, negative = probability(self.teacher.positive_logits), probability(self.teacher.negative_logits)
        return torch.cat([positive[:, None], negative], dim=1)

    @cached_property
    def easy_probability(self) -> Tensor:
        """(B, E): p̂ of each query's easy negatives."""
        return probability(self.teacher.easy_logits)

    # ---------------------------------------------------------------------------------------------------------- masks
    @cached_property
    def negative_mask(self) -> Tensor:
        """(B, K): which hard negatives there are."""
        return negative_mask(self.batch, self.device)

    @cached_property
    def candidate_mask(self) -> Tensor:
        """(B, 1 + K): which candidates there are; the positive always is."""
        return torch.cat([self.negative_mask.new_ones(self.size, 1), self.negative_mask], dim=1)

    @cached_property
    def allowed(self) -> Tensor:
        """(B, B): whether the positive of query j may be a negative of query i."""
        return allowed_positives(self.batch, self.device)

    @cached_property
    def easy_mask(self) -> Tensor:
        """(B, E): which easy negatives may be negatives of their query, and are scored."""
        return self.allowed.gather(1, self.teacher.easy_index) & self.easy_probability.isfinite()

    @cached_property
    def feature_mask(self) -> Tensor:
        """(B, 1 + K): which candidates there are and have a feature of the teacher's."""
        return self.candidate_mask & self.teacher.features.diagonal(dim1=1, dim2=2).isfinite()

    # -------------------------------------------------------------------------------------------------------- student
    @cached_property
    def query_part(self) -> Tensor:
        """What the scorer makes of each query alone, for all pairs."""
        return self.scorer.query_cache(self.embedded.q)

    @cached_property
    def candidate_part(self) -> Tensor:
        """Likewise of each candidate, (B·(1 + K), …)."""
        candidates = torch.cat([self.embedded.p[:, None], self.embedded.n], dim=1)
        return self.scorer.passage_cache(candidates.flatten(0, 1))

    @cached_property
    def own_queries(self) -> Tensor:
        """The query of each candidate."""
        return self.query_part.repeat_interleave(1 + self.count, dim=0)

    @cached_property
    def pair_features(self) -> Tensor:
        """(B·(1 + K), h): the IEM's features of each query with its candidates."""
        return self.scorer.features_cached(self.own_queries, self.candidate_part, self.mode)

    @property
    def features(self) -> Tensor:
        """(B, 1 + K, h): the same by query."""
        return self.pair_features.view(self.size, 1 + self.count, -1)

    @cached_property
    def all_pairs(self) -> Tensor:
        """(B, B, 1 + K): z of query i with each candidate of query j."""
        pairs = self.scorer.matrix_cached(self.query_part, self.candidate_part, self.mode)
        return pairs.view(self.size, self.size, 1 + self.count)

    @cached_property
    def hard(self) -> Tensor:
        """(B, 1 + K): z of each query with its candidates."""
        if self._meets_all:  # own pairs are among all pairs: each is scored once
            own = torch.arange(self.size, device=self.device)
            return self.all_pairs[own, own]
        features = self.pair_features if self.recipe.gamma > 0 else None
        logits = self.scorer.pairs_cached(self.own_queries, self.candidate_part, self.mode, features)
        return logits.view(self.size, 1 + self.count)

    @cached_property
    def positives(self) -> Tensor:
        """(B, B): z of query i with the positive of query j."""
        if self._meets_all:
            return self.all_pairs[:, :, 0]
        return self.scorer.matrix_cached(self.query_part, self.candidate_part[:: 1 + self.count], self.mode)

    @cached_property
    def in_batch(self) -> tuple[Tensor, Tensor]:
        """(B, M) z of each query with the batch's other passages, and which of them may be its negatives."""
        logits, mask = off_diagonal(self.positives), off_diagonal(self.allowed)
        if not self._meets_all:
            return logits, mask
        far, far_mask = of_others(self.all_pairs[:, :, 1:], self.negative_mask, self.batch)
        return torch.cat([logits, far], dim=1), torch.cat([mask, far_mask], dim=1)

    @cached_property
    def easy(self) -> Tensor:
        """(B, E): z of each query with its easy negatives, which are other queries' positives."""
        index = self.teacher.easy_index
        if self._in_batch or self.recipe.passage_to_query > 0:  # another term has need of all of them
            return self.positives.gather(1, index)
        queries = self.query_part.repeat_interleave(index.shape[1], dim=0)
        passages = self.candidate_part[:: 1 + self.count][index.flatten()]
        return self.scorer.pairs_cached(queries, passages, self.mode).view(index.shape)

    @property
    def _in_batch(self) -> bool:
        """Whether some term contrasts with the batch's passages."""
        return self.recipe.in_batch == "joint" or self.recipe.weights()["cl"] > 0

    @property
    def _meets_all(self) -> bool:
        """Whether hard negatives of other queries are among these passages."""
        return self._in_batch and self.recipe.in_batch_passages == "all"


def probability(logits: Tensor) -> Tensor:
    """p̂ = softmax over (yes, no) at yes: (…, 2) -> (…)."""
    return logits.float().softmax(-1)[..., 0]

"""D2LLM itself: a decoder with PMA pooling and the interaction emulation module, trained to imitate the teacher.

Facts and symbols: docs/method.md. Total loss: L = CI (+ CL) + α·RI-PHN + β·RI-EHN + γ·FI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from d2llm.errors import ConfigError, TrainingError
from d2llm.methods import Batch, Embedded, MaxLengths, Method, Positive, Recipe, Schedule, Tuning, Warmup, Weight
from d2llm.section import Pair, Section

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student


class Pooling(Section):
    """PMA, or one of the plain poolings for an ablation."""

    # How states become one vector.
    name: Literal["pma", "mean", "weighted_mean", "last_token"] = "pma"
    # PMA only: attention heads (release), divisor of the scores (release: root of the full width), initial weights.
    heads: Annotated[int, Field(ge=1)] = 32
    # What PMA's attention scores are divided by: the root of the whole width (release) or of a head's.
    scale: Literal["model", "head"] = "model"
    # PMA's first weights: as released, or starting as a mean.
    init: Literal["random", "mean"] = "random"

    def spec(self) -> tuple[str, dict[str, Any]]:
        """Name and options, as the builder takes them."""
        return self.name, {"heads": self.heads, "scale": self.scale, "init": self.init} if self.name == "pma" else {}


class Interaction(Section):
    """IEM, or one of the plain scorers for an ablation."""

    # How a pair is scored.
    name: Literal["iem", "cosine", "dot", "bilinear"] = "iem"
    # IEM only: width, first activation, initial weights, branches per mode, a cosine added to the logit (variant).
    hidden: Annotated[int, Field(ge=1)] = 512
    # Of the IEM's first layer.
    activation: Literal["relu", "squared_relu"] = "relu"
    # The IEM's first weights: random, or starting as a matcher of embeddings.
    init: Literal["random", "matcher"] = "random"
    # One branch a mode (paper), or one for both.
    branches: Literal["both", "shared"] = "both"
    # A cosine added to the logit (variant).
    skip: Literal["none", "cosine"] = "none"
    # Size of the first logits with init "matcher", and of the cosine with skip "cosine".
    scale: Positive = 10.0
    # Size of that cosine.
    skip_scale: Positive = 10.0

    @model_validator(mode="after")
    def _pairs(self) -> Interaction:
        if self.name == "iem" and self.init == "matcher" and self.hidden < 2:
            raise ValueError("hidden of at least 2 with init matcher, whose units come in pairs")
        return self

    def spec(self) -> tuple[str, dict[str, Any]]:
        """Name and options, as the builder takes them."""
        return self.name, self.model_dump(exclude={"name"}) if self.name == "iem" else {}


class D2LLMRecipe(Recipe):
    """As released (facts: settings); what neither paper nor release settles is marked (A), our assumption."""

    learning_rate: Positive = 1e-4
    betas: Pair = (0.8, 0.999)
    epsilon: Positive = 1e-6
    weight_decay: Weight = 0.01
    warmup: Warmup = 1000
    schedule: Schedule = "constant"
    # (A) The IEM's logits are unbounded, so none is needed.
    temperature: Positive = 1.0
    tuning: Tuning = Tuning(kind="lora", r=8, alpha=8.0, dropout=0.05)
    max_lengths: MaxLengths = MaxLengths(query=250, passage=250, symmetric=250)
    # Whose scores it imitates, by its name in section `teachers`.
    teacher: str = "teacher"
    # Weights: CI (release: alpha), α (beta), β (gamma), γ (eta). Zero removes the term.
    ci: Weight = 1.0
    # Weight of RI-PHN; zero removes the term.
    alpha: Weight = 1.0
    # Weight of RI-EHN; zero removes the term.
    beta: Weight = 0.01
    # Weight of FI; zero removes the term.
    gamma: Weight = 0.001
    # What CI weighs logits with: the teacher's probabilities (paper), or 1, which leaves plain contrast (ablation).
    ci_weighting: Literal["teacher", "none"] = "teacher"
    # In-batch contrast: a term of its own (release), inside CI's softmax with weight 1 a passage, or none.
    in_batch: Literal["separate", "joint", "none"] = "separate"
    # Of the term of its own.
    in_batch_weight: Weight = 1.0
    # Which passages of other queries it meets: their positives (release), or their hard negatives as well.
    in_batch_passages: Literal["positives", "all"] = "positives"
    # RI-PHN correlates within each query (release), or over all pairs of the batch (variant).
    rank_over: Literal["query", "batch"] = "query"
    # Weight of an in-batch contrast of each passage over the queries (variant; not in the paper).
    passage_to_query: Weight = 0.0
    # A token before every text that the pooling leaves out: what the checkpoint begins texts with or, without such, the tokenizer's first or last (variant).
    sink: Literal["none", "bos"] = "none"
    # How states become one vector.
    pooling: Pooling = Pooling()
    # How a pair is scored.
    interaction: Interaction = Interaction()

    @model_validator(mode="after")
    def _nothing_lost(self) -> D2LLMRecipe:
        """A term must not vanish because the one it lives in has weight zero."""
        if self.in_batch == "joint" and self.ci == 0:
            raise ValueError("in_batch separate or none where ci is 0, as joint lives inside that term")
        if self.gamma > 0 and self.interaction.name != "iem":
            raise ValueError(
                f"gamma 0 with interaction {self.interaction.name}, as only the iem has pair features to imitate"
            )
        contrast = self.in_batch_weight if self.in_batch == "separate" else 0.0
        if not any((self.ci, self.alpha, self.beta, self.gamma, contrast, self.passage_to_query)):
            raise ValueError("a term of the loss with a weight above 0")
        return self


class D2LLM(Method[D2LLMRecipe]):
    """Decomposed and distilled LLM."""

    name = "d2llm"
    title = "D2LLM"
    citation = "Liao et al. 2024, D2LLM: Decomposed and Distilled Large Language Models for Semantic Search"
    kind = "decoder"
    uses_teacher = True
    Recipe = D2LLMRecipe

    def build(self, backbone: Backbone, recipe: D2LLMRecipe) -> Student:
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
        if recipe.gradient_checkpointing:
            backbone.checkpoint_gradients()
        return Student(
            backbone,
            recipe.pooling.spec(),
            recipe.interaction.spec(),
            same_formats(recipe.max_lengths, first),
            method=self.name,
            unpooled=len(first) if recipe.sink == "bos" else 0,
        )

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: D2LLMRecipe) -> dict[str, Tensor]:
        """The weighted terms ci, cl, ri_phn, ri_ehn, fi, p2q; a term of weight zero is neither computed nor present."""
        import torch

        from d2llm import losses
        from d2llm.contrast import allowed_positives, negative_mask, of_others

        q, p, n = embedded.q, embedded.p, embedded.n
        mask = negative_mask(batch, q.device)
        scorer, mode, (size, count) = student.scorer, batch.mode, n.shape[:2]
        full = torch.cat([torch.ones(size, 1, dtype=torch.bool, device=mask.device), mask], dim=1)

        teacher = None if batch.teacher is None else batch.teacher.to(q.device)
        needed = [name for name in ("ci", "alpha", "beta", "gamma") if getattr(recipe, name) > 0]
        if teacher is None and needed:
            raise TrainingError(
                f"d2llm: {', '.join(needed)} need teacher scores and this batch ({batch.dataset}) has none"
            )
        if teacher is not None:
            positive_prob = probability(teacher.positive_logits)
            negative_prob = probability(teacher.negative_logits)

        imitated, joint = recipe.ci_weighting == "teacher", recipe.in_batch == "joint"
        separate = recipe.in_batch == "separate" and recipe.in_batch_weight > 0
        in_batch = joint or separate
        own = torch.arange(size, device=q.device)
        # Each query's positive and hard negatives, one after another: what either side needs once is made once.
        query = scorer.query_cache(q)
        candidates = scorer.passage_cache(torch.cat([p[:, None], n], dim=1).flatten(0, 1))
        queries = query.repeat_interleave(1 + count, dim=0)
        pair_features = scorer.features_cached(queries, candidates, mode) if recipe.gamma > 0 else None
        matrix = allowed = others = others_mask = None
        if in_batch or recipe.passage_to_query > 0:
            allowed = allowed_positives(batch, q.device)
        if in_batch and allowed is not None and recipe.in_batch_passages == "all":
            # Own pairs are among all pairs: each is scored once.
            every = scorer.matrix_cached(query, candidates, mode).view(size, size, 1 + count)
            matrix, logits = every[:, :, 0], every[own, own]
            far, far_mask = of_others(every[:, :, 1:], mask, batch)
            others = torch.cat([losses.off_diagonal(matrix), far], dim=1)
            others_mask = torch.cat([losses.off_diagonal(allowed), far_mask], dim=1)
        else:
            logits = scorer.pairs_cached(queries, candidates, mode, pair_features).view(size, 1 + count)
            if allowed is not None:
                matrix = scorer.matrix_cached(query, candidates[:: 1 + count], mode)
                if in_batch:
                    others, others_mask = losses.off_diagonal(matrix), losses.off_diagonal(allowed)

        def easy() -> Tensor:
            assert teacher is not None  # or `needed` had told
            index = teacher.easy_index
            if matrix is not None:
                z = matrix.gather(1, index)
            else:
                asked, found = query.repeat_interleave(index.shape[1], dim=0), candidates[:: 1 + count][index.flatten()]
                z = scorer.pairs_cached(asked, found, mode).view(index.shape)
            easy_mask = allowed_positives(batch, q.device).gather(1, index)
            return losses.rank_imitation_easy(
                logits[:, 1:], z, negative_prob, probability(teacher.easy_logits), mask, easy_mask
            )

        def features() -> Tensor:
            assert teacher is not None and pair_features is not None
            cosines = losses.cosine_matrix(pair_features.view(size, 1 + count, -1))
            return losses.feature_imitation(teacher.features, cosines, full)

        def passage_to_query() -> Tensor:
            assert matrix is not None and allowed is not None  # made where this term has a weight
            return losses.in_batch_contrast(matrix.T, recipe.temperature, allowed.T)

        terms = {
            "ci": lambda: losses.contrastive_imitation(
                logits[:, 0],
                logits[:, 1:],
                positive_prob if imitated else torch.ones_like(positive_prob),
                negative_prob if imitated else torch.zeros_like(negative_prob),
                recipe.temperature,
                mask,
                others if joint else None,
                others_mask if joint else None,
            ),
            "cl": lambda: losses.info_nce(logits[:, 0], None, others, recipe.temperature, in_batch_mask=others_mask),
            "ri_phn": lambda: losses.rank_imitation_hard(
                logits, torch.cat([positive_prob[:, None], negative_prob], dim=1), full, recipe.rank_over
            ),
            "ri_ehn": easy,
            "fi": features,
            "p2q": passage_to_query,
        }
        weights = {
            "ci": recipe.ci,
            "cl": recipe.in_batch_weight if separate else 0.0,
            "ri_phn": recipe.alpha,
            "ri_ehn": recipe.beta,
            "fi": recipe.gamma,
            "p2q": recipe.passage_to_query,
        }
        return losses.weighted_total(terms, weights)


def probability(logits: Tensor) -> Tensor:
    """p̂ = softmax over (yes, no) at yes: (…, 2) -> (…)."""
    return logits.float().softmax(-1)[..., 0]


METHOD = D2LLM()

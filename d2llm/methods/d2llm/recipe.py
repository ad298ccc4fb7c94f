"""D2LLM's settings: the release's as defaults, and which departures from it are known. What they do is in `objective`
and `losses/`.
"""

from __future__ import annotations

import pkgutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from d2llm.config.recipes import MaxLengths, PositiveFloat, Recipe, Schedule, TunedWeights, Warmup, Weight
from d2llm.config.section import Pair, Section
from d2llm.models import parts


def known_part(kind: parts.Kind, name: str) -> str:
    """The name of a part, found as a file; pydantic makes a line of the ValueError for another."""
    if name not in parts.names(kind):
        raise ValueError(f"one of {', '.join(parts.names(kind))}")
    return name


class PoolingSettings(Section):
    """PMA, or one of the plain poolings for an ablation."""

    # How states become one vector: a file of d2llm/models/poolings.
    name: Annotated[str, AfterValidator(partial(known_part, "pooling"))] = "pma"
    # PMA only: attention heads (release), divisor of the scores (release: root of the full width), initial weights.
    heads: Annotated[int, Field(ge=1)] = 32
    # What PMA's attention scores are divided by: the root of the whole width (release) or of a head's.
    scale: Literal["model", "head"] = "model"
    # PMA's first weights: as released, or starting as a mean.
    init: Literal["random", "mean"] = "random"

    def spec(self) -> tuple[str, dict[str, Any]]:
        """Name and options, as the builder takes them."""
        return self.name, {"heads": self.heads, "scale": self.scale, "init": self.init} if self.name == "pma" else {}


class InteractionSettings(Section):
    """IEM, or one of the plain scorers for an ablation."""

    # How a pair is scored: a file of d2llm/models/scorers.
    name: Annotated[str, AfterValidator(partial(known_part, "scorer"))] = "iem"
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
    # What the IEM's first layer sees of a pair: its vectors (paper), or |q − p| and q∘p as well (variant).
    inputs: Literal["vectors", "compared"] = "vectors"
    # Whether two texts of one kind are scored in the order given (paper), or as the mean of both orders (variant).
    order: Literal["given", "average"] = "given"
    # Size of the first logits with init "matcher", and of the cosine with skip "cosine".
    scale: PositiveFloat = 10.0
    # Size of that cosine.
    skip_scale: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _pairs(self) -> InteractionSettings:
        if self.name == "iem" and self.init == "matcher" and self.hidden < 2:
            raise ValueError("hidden of at least 2 with init matcher, whose units come in pairs")
        return self

    def spec(self) -> tuple[str, dict[str, Any]]:
        """Name and options, as the builder takes them."""
        return self.name, self.model_dump(exclude={"name"}) if self.name == "iem" else {}


# The terms whose weights are keys of the recipe, and the variants of them.
PAPER = ("ci", "cl", "ri_phn", "ri_ehn", "fi", "p2q")


def further_losses() -> list[str]:
    """The losses that are not the paper's, each a file of `losses/`."""
    files = {file.name for file in pkgutil.iter_modules([str(Path(__file__).with_name("losses"))])}
    return sorted(files - set(PAPER))


class D2LLMRecipe(Recipe):
    """As released (facts: settings); what neither paper nor release settles is marked (A), our assumption."""

    learning_rate: PositiveFloat = 1e-4
    betas: Pair = (0.8, 0.999)
    epsilon: PositiveFloat = 1e-6
    weight_decay: Weight = 0.01
    warmup: Warmup = 1000
    schedule: Schedule = "constant"
    # (A) The IEM's logits are unbounded, so none is needed.
    temperature: PositiveFloat = 1.0
    tuning: TunedWeights = TunedWeights(kind="lora", r=8, alpha=8.0, dropout=0.05)
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
    # Weight of the separate in-batch contrastive term (0 disables it).
    in_batch_weight: Weight = 1.0
    # Which passages of other queries it meets: their positives (release), or their hard negatives as well.
    in_batch_passages: Literal["positives", "all"] = "positives"
    # RI-PHN correlates within each query (release), or over all pairs of the batch (variant).
    rank_over: Literal["query", "batch"] = "query"
    # Weight of an in-batch contrast of each passage over the queries (variant; not in the paper).
    passage_to_query: Weight = 0.0
    # Weights of further losses, by the names of their files in d2llm/methods/d2llm/losses.
    losses: dict[str, Weight] = {}
    # A token before every text that the pooling leaves out: what the checkpoint begins texts with or, without such, the
    # tokenizer's first or last (variant).
    sink: Literal["none", "bos"] = "none"
    # How states become one vector.
    pooling: PoolingSettings = PoolingSettings()
    # How a pair is scored.
    interaction: InteractionSettings = InteractionSettings()

    @model_validator(mode="after")
    def _nothing_lost(self) -> D2LLMRecipe:
        """A term must not vanish because the one it lives in has weight zero."""
        if self.in_batch == "joint" and self.ci == 0:
            raise ValueError("in_batch separate or none where ci is 0, as joint lives inside that term")
        if self.gamma > 0 and self.interaction.name != "iem":
            raise ValueError(
                f"gamma 0 with interaction {self.interaction.name}, as only the iem has pair features to imitate"
            )
        if not any(self.weights().values()):
            raise ValueError("a term of the loss with a weight above 0")
        further = further_losses()
        if unknown := sorted(set(self.losses) - set(further)):
            why = ", which has a weight of its own" if unknown[0] in PAPER else ""
            raise ValueError(f"losses among the further files ({', '.join(further) or 'none'}), not {unknown[0]}{why}")
        return self

    def imitating(self) -> list[str]:
        """The keys of the terms that read the teacher's scores; of further losses nothing is known, so they may."""
        read = {"ci": self.ci_weighting == "teacher", "alpha": True, "beta": True, "gamma": True}
        own = [key for key, reads in read.items() if reads and getattr(self, key) > 0]
        return own + [f"losses.{name}" for name, weight in self.losses.items() if weight > 0]

    def weights(self) -> dict[str, float]:
        """The weight of every term of the loss, by its file in `losses/`, in the order of the paper."""
        return {
            "ci": self.ci,
            "cl": self.in_batch_weight if self.in_batch == "separate" else 0.0,
            "ri_phn": self.alpha,
            "ri_ehn": self.beta,
            "fi": self.gamma,
            "p2q": self.passage_to_query,
            **self.losses,
        }

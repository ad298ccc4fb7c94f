"""The decoder that students start from, untuned, as a reference row: did training help at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from d2llm.evaluation.rows.student import StudentScorer
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run

TITLE = "Untuned decoder"
# Colour, mark in plots by row, mark in the plane.
LOOK = ("#999999", "1", "d")
NEEDS = ("decoder",)


def load(config: Config, run: Run) -> StudentScorer:
    """The base decoder."""
    return untuned(config, "decoder")


def untuned(config: Config, model: Literal["decoder", "encoder"]) -> StudentScorer:
    """A base model, made here or brought: mean of its states, cosine, texts framed as its tokenizer frames them and no
    longer than students' may be.
    """
    from d2llm.config.recipes import MaxLengths
    from d2llm.models.backbone import Backbone
    from d2llm.models.device import default_device
    from d2llm.models.student import Student, same_formats

    backbone, length = Backbone.load(Paths.of(config).base(model), model), config.training.max_length
    formats = same_formats(MaxLengths(query=length, passage=length, symmetric=length), *backbone.framing())
    student = Student(backbone, ("mean", {}), ("cosine", {}), formats).eval().to(default_device())
    scorer = StudentScorer(student, config.evaluation.batch_size)
    scorer.trained = False
    return scorer

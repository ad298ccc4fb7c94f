"""Stage `base`: a base model made here (`pretraining`), or brought from where it is (`models.base.pretrained`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from d2llm.config.sections import PretrainedSettings

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.run.checkpoint import Resume

# By name, so that an edit of one makes no model of the other kind stale (`run.stages`).
MADE, BROUGHT = "d2llm.training.pretraining", "d2llm.models.base.pretrained"


def run(config: Config, model: str, resume: Resume | None = None) -> None:
    """Write base model `model` below `models/`."""
    if isinstance(config.models.of(model), PretrainedSettings):
        import_module(BROUGHT).run(config, model)
    else:
        import_module(MADE).run(config, model, resume)

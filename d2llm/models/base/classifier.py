"""Whether a checkpoint judges pairs by a classifier of its own, as re-rankers do, told by its architecture. Such a one
can be a teacher (`d2llm.teacher.classifier`), and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SUFFIX = "ForSequenceClassification"


def classifies(architectures: Sequence[str] | None) -> bool:
    """Whether `architectures` of a configuration name a classifier of texts."""
    return any(name.endswith(SUFFIX) for name in architectures or ())


def check_labels(config: PretrainedConfig, where: str) -> None:
    """Raise ConfigError for a classifier that has more answers than yes and no."""
    labels = dict(config.id2label or {})
    if len(labels) > 2:
        raise ConfigError(
            f"{where}: expected a classifier of one label (a re-ranker's score) or two (no, yes); found "
            f"{len(labels)}: {', '.join(map(str, labels.values()))[:80]}"
        )

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
# What checkpoints call the two answers, in small letters.
NO = {"0", "no", "false", "negative", "irrelevant", "different", "unrelated", "neutral", "contradiction"}
YES = {"1", "yes", "true", "positive", "relevant", "equivalent", "same", "similar", "related", "entailment"}
YES |= {"duplicate", "paraphrase"}
# Before the name of a yes: its no.
NEGATIONS = ("not_", "not ", "non_", "non-", "no_", "in", "un", "dis")


def classifies(architectures: Sequence[str] | None) -> bool:
    """Whether `architectures` of a configuration name a classifier of texts."""
    return any(name.endswith(SUFFIX) for name in architectures or ())


def check_labels(config: PretrainedConfig, where: str) -> None:
    """Raise ConfigError for a classifier that has more answers than yes and no, or two that are not named as no and
    yes, in this order.
    """
    labels = [str(name) for _, name in sorted(dict(config.id2label or {}).items())]
    if len(labels) > 2:
        raise ConfigError(
            f"{where}: expected a classifier of one label (a re-ranker's score) or two (no, yes); found "
            f"{len(labels)}: {', '.join(labels)[:80]}"
        )
    if len(labels) == 2 and [answer(name) for name in labels] != [False, True]:
        swapped = [answer(name) for name in labels] == [True, False]
        fix = (
            "take a checkpoint with no before yes"
            if swapped
            else 'say which is which: "id2label": {"0": "no", "1": "yes"}'
        )
        raise ConfigError(
            f"{where}: expected two labels named as no and yes, in this order; its config.json has "
            f"{', '.join(labels)[:80]}; {fix}"
        )


def answer(label: str) -> bool | None:
    """Whether a label's name says yes; None where it tells neither.

    >>> [answer(name) for name in ("Yes", "not_entailment", "irrelevant", "LABEL_1")]
    [True, False, False, None]
    """
    name = label.strip().lower()
    rest = next((name.removeprefix(one) for one in NEGATIONS if name.removeprefix(one) in YES), None)
    if name in NO or (rest is not None and rest != name):
        return False
    return True if name in YES else None

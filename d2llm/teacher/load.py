"""Loads a teacher as what its checkpoint is: a decoder that is asked (`cross_encoder`), or a classifier of pairs
(`classifier`), found by its architecture.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from d2llm.models.base.classifier import classifies
from d2llm.run.artifacts import read_json
from d2llm.teacher.cross_encoder import Teacher

if TYPE_CHECKING:
    import torch

    from d2llm.config.sections import TeacherSettings

# By name, so that an edit of it makes no teacher of another kind stale (`run.stages`).
CLASSIFIER = "d2llm.teacher.classifier"


def load(folder: str | Path, settings: TeacherSettings, dtype: str | torch.dtype = "auto") -> Teacher:
    """A saved teacher. Raises as `Teacher.load`."""
    about = Path(folder) / "config.json"
    if about.is_file() and classifies(read_json(about).get("architectures")):
        return import_module(CLASSIFIER).Classifier.load(folder, settings, dtype)
    return Teacher.load(folder, settings, dtype)

"""Scores many groups part by part, each kept when it is done, so that a killed job goes on where it was.

A part is some minutes of work: a small run has one alone. One of another device is scored again, as devices round in
their own ways. How a part is scored is the teacher's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2llm.run.provenance import processor

if TYPE_CHECKING:
    from d2llm.run.checkpoint import Resume
    from d2llm.teacher.cross_encoder import Group, Teacher

# Operations of a part: about ten minutes of a CPU's core, a minute or two of a GPU.
WORK = {"cpu": 4e13, "cuda": 3e16}
Arrays = dict[str, np.ndarray]


def in_parts(
    teacher: Teacher, groups: Sequence[Group], mode: str, resume: Resume, judge: Callable[[Sequence[Group]], Arrays]
) -> Iterator[tuple[Sequence[Group], Arrays]]:
    """Consecutive parts of the groups, each with what `judge` says of it, or has said before this job was killed."""
    for part in parts(teacher, groups, mode):
        key = digest(part, mode, name_of(teacher.model.device))
        yield part, resume.kept(key, lambda part=part: judge(part))  # type: ignore[misc]


def parts(teacher: Teacher, groups: Sequence[Group], mode: str) -> Iterator[Sequence[Group]]:
    """The groups in order, cut where a part's work is reached."""
    limit = WORK.get(teacher.model.device.type, WORK["cuda"]) / (2 * teacher.model.num_parameters())
    start, tokens = 0, 0
    for row in teacher.plan(groups, mode, teacher.settings.pack_size):
        if tokens >= limit and row.group > start:
            yield groups[start : row.group]
            start, tokens = row.group, 0
        tokens += row.length
    if start < len(groups):
        yield groups[start:]


def name_of(device: torch.device) -> str:
    """A device as the records name it: the processor, or the GPU's model."""
    return processor() if device.type == "cpu" else torch.cuda.get_device_name(device)


def digest(groups: Sequence[Group], mode: str, device: str) -> str:
    """What tells a part by its content and by the device it is scored on."""
    content = hashlib.sha256(f"{mode} {device} ".encode())
    for query, candidates in groups:
        for text in (query, *candidates):
            content.update(f"{len(text)} {text}".encode())
        content.update(b"|")
    return content.hexdigest()[:40]


def logits_of(teacher: Teacher, groups: Sequence[Group], mode: str, resume: Resume) -> list[np.ndarray]:
    """What `teacher.score` gives: yes/no logits, a float32 (n, 2) array a group."""

    def judge(part: Sequence[Group]) -> Arrays:
        return {"logits": np.concatenate(teacher.score(part, mode))}

    out: list[np.ndarray] = []
    for part, arrays in in_parts(teacher, groups, mode, resume, judge):
        out += split(arrays["logits"], [len(candidates) for _, candidates in part])
    return out


def split(array: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Consecutive pieces of so many rows."""
    return np.split(array, np.cumsum(sizes)[:-1])

"""Which variants a run has, and by which columns of the scores they are judged; what is computed of them is in
`comparison`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.run.schemas import AVERAGE, SUBJECT

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config.schema import Config


def varied(config: Config) -> dict[str, dict[str, str]]:
    """{method: {variant: the training that stands for it}}: D2LLM's variants first, then the others' in the order of
    the methods.
    """
    points = config.points()
    variants = {}
    for method in sorted(config.methods, key=lambda name: name != SUBJECT):
        trainings = {name: points[method, name][1] for name in config.variants if (method, name) in points}
        if trainings:
            variants[method] = trainings
    return variants


def judged_columns(tasks: pd.DataFrame) -> list[tuple[str, str]]:
    """(group, task) of the columns by which ablations are judged: every pair classification task, and the averages of
    the other kinds.
    """
    columns = []
    for group, members in tasks.groupby("group", sort=False):
        alone = len(members) == 1 or set(members["task_type"]) == {"pair_classification"}
        columns += [(str(group), str(task)) for task in (sorted(members.index) if alone else [AVERAGE])]
    return columns

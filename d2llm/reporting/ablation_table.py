"""Table 4 of the paper: D2LLM with one of its parts changed or left out, on each NLI set and on average over STS and retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from d2llm.comparison import AVERAGE, SUBJECT, judged_columns
from d2llm.config import plain
from d2llm.errors import ArtifactError
from d2llm.evaluation.headline import HEADLINE
from d2llm.reporting.collected import Collected, given
from d2llm.reporting.context import Context
from d2llm.reporting.layout import Cell, Column, Lead, Row, Table
from d2llm.reporting.style import CONTROLLED_TEXT, GROUP_TITLES, METRIC_TITLES

GROUPS = list(GROUP_TITLES)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d2llm.config import Config


class AblationTable:
    """D2LLM as configured, then a row a variant of the config, in its order, under the variant's group."""

    name = "ablation"
    heading = "Table 4. Ablations."

    def build(self, collected: Collected, context: Context, config: Config) -> Table:
        """The table from collected scores, with the significant differences of `ablations.csv`.

        Raises:
            ArtifactError: a variant of the config has no score for a column.
        """
        points = config.points()
        variants = {name: points[SUBJECT, name][1] for name in config.variants if (SUBJECT, name) in points}
        if not variants or SUBJECT not in config.methods:
            return Table(self.name, self.heading, "This run has no variant of D2LLM (section `variants`).", (), ())
        scores, ablations = given(collected.scores, "scores"), given(collected.ablations, "ablations")
        own = scores[(scores["method"] == SUBJECT) & (scores["phenomenon"] == "all")]
        own = own[own["metric"] == own["task_type"].map(HEADLINE)]
        tasks = own.drop_duplicates("task").set_index("task")
        judged = sorted(judged_columns(tasks[["task_type", "group"]]), key=lambda pair: GROUPS.index(pair[0]))
        columns = [_column(group, task, tasks) for group, task in judged]
        paired = config.seeds_of_variants()
        base, leads = own[own["variant"] == "base"], _leads(ablations, context.level)
        rows = []
        if paired != config.seeds:
            title = f"D2LLM, {len(config.seeds)} seeds"
            rows.append(Row("base_all", title, "reference", _cells(base, columns, tasks, config.seeds, "base")))
        cells = _cells(base, columns, tasks, paired, "base")
        rows.append(Row("base", f"D2LLM{_seeds(paired)}", "reference", cells))
        # Together what is of one group, groups in the order of their first variant.
        groups = list(dict.fromkeys(config.variants[name].group for name in variants))
        for name, owner in sorted(variants.items(), key=lambda item: groups.index(config.variants[item[0]].group)):
            about = config.variants[name]
            title = f"{about.title or name} ({changes(about.settings)})"
            found = own[own["variant"] == owner]
            cells = _cells(found, columns, tasks, paired, owner)
            marked = tuple(
                Cell(cell.mean, cell.sd, cell.seeds, "", leads.get((owner, column.task, column.metric), ""))
                for column, cell in zip(columns, cells, strict=True)
            )
            rows.append(Row(name, f"{about.group}: {title}" if about.group else title, about.group, marked))
        return Table(
            self.name,
            self.heading,
            self._caption(scores, len(ablations), context, config, paired),
            tuple(columns),
            tuple(rows),
        )

    def _caption(self, scores: pd.DataFrame, compared: int, context: Context, config: Config, paired: list[int]) -> str:
        said = [
            f"Tier {context.tier}, {'/'.join(sorted(set(scores['split'])))} split. D2LLM as configured (set apart), then with the settings "
            f"in brackets changed and all else as before, nothing tuned anew{_seeds(paired)}. Average: over the tasks of a kind."
        ]
        if compared:
            said.append(
                f"↑ ↓: significantly above or below D2LLM{_seeds(paired)} (paired bootstrap over examples"
                f"{', spread of seeds' if len(paired) > 1 else ''}, {context.level:.0%}, Holm's correction over {compared} comparisons)."
            )
        if len(paired) < 2:
            said.append(
                "One training a variant: what another seed would change is in no arrow"
                + ("; the first row shows how much that is for D2LLM itself." if len(config.seeds) > 1 else ".")
            )
        if context.generated:
            said.append(CONTROLLED_TEXT)
        return " ".join(said)


def changes(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Settings in a line, so that no row's title can keep quiet about what it changes.

    >>> changes({"interaction": {"name": "cosine"}, "gamma": 0.0})
    'interaction.name cosine, gamma 0'
    """
    said = [
        changes(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"{prefix}{key} {plain(value)}"
        for key, value in settings.items()
    ]
    return ", ".join(said)


def _seeds(seeds: Sequence[int]) -> str:
    return f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {', '.join(map(str, seeds))}"


def _column(group: str, task: str, tasks: pd.DataFrame) -> Column:
    kind = tasks.loc[tasks["group"] == group, "task_type"].iloc[0]
    metric = HEADLINE[kind]
    title = f"{GROUP_TITLES.get(group, group)} average" if task == AVERAGE else tasks.loc[task, "task_title"]
    # Averages of several groups are told apart by their metric.
    return Column(task, title, metric, METRIC_TITLES.get(metric, metric))


def _cells(
    found: pd.DataFrame, columns: Sequence[Column], tasks: pd.DataFrame, seeds: Sequence[int], variant: str
) -> tuple[Cell, ...]:
    """Mean and sample standard deviation over these seeds; an average is taken over tasks within a seed."""
    wide = found[found["seed"].isin(seeds)].pivot(index="seed", columns=["metric", "task"], values="value")
    cells = []
    for column in columns:
        members = tasks.index[tasks["task_type"].map(HEADLINE) == column.metric]
        keys = [(column.metric, task) for task in (members if column.task == AVERAGE else [column.task])]
        if len(wide) != len(set(seeds)) or any(key not in wide or wide[key].isna().any() for key in keys):
            raise ArtifactError(
                f"the collected scores hold no {column.metric} of {SUBJECT}, variant {variant}, for every seed and task; "
                "run `snakemake --cores all` again"
            )
        values = wide[keys].mean(axis=1)
        cells.append(Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values)))
    return tuple(cells)


def _leads(ablations: pd.DataFrame, level: float) -> dict[tuple[str, str, str], Lead]:
    """(variant, task, metric) of what differs significantly. The table's difference is variant minus D2LLM."""
    found = ablations[ablations["p_holm"] < 1 - level]
    return {(row.baseline, row.task, row.metric): "down" if row.difference > 0 else "up" for row in found.itertuples()}


ABLATION = AblationTable()

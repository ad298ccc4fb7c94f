"""Tables 1 to 3 of the paper: every method on every task of one kind, beside the reference rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.captions import listed
from d2llm.reporting.collected import Collected, given
from d2llm.reporting.context import Context
from d2llm.reporting.layout.formats import Cell, Column, Lead, Row, Table
from d2llm.reporting.layout.marks import marks
from d2llm.reporting.style import AVERAGE_TITLE, CONTROLLED_TEXT
from d2llm.run.errors import ArtifactError
from d2llm.run.schemas import AVERAGE

if TYPE_CHECKING:
    from d2llm.config.schema import Config


@dataclass(frozen=True)
class MainTable:
    """A table over the tasks of `group` (column `group` of the scores) and `metrics`, the paper's, in its order."""

    name: str
    heading: str
    group: str
    metrics: tuple[str, ...]
    remark: str = ""

    def build(self, collected: Collected, context: Context, config: Config | None = None) -> Table:
        """The table from collected scores, with the significant leads that `comparisons` (d2llm.analysis.comparison)
        holds.

        Raises:
            ArtifactError: a configured method has no score for a task and metric that others have.
        """
        scores, comparisons = given(collected.scores, "scores"), collected.comparisons
        used = scores[
            (scores["group"] == self.group)
            & (scores["variant"] == "base")
            & (scores["phenomenon"] == "all")
            & scores["metric"].isin(self.metrics)
            & scores["method"].isin([*context.methods, *context.references])
        ]
        if used.empty:
            return Table(self.name, self.heading, "No task of this kind was evaluated.", (), ())
        columns = self._make_columns(used)
        names = [*context.references, *context.methods]
        cells = {name: _reduce_seeds(name, used[used["method"] == name], columns) for name in names}
        ranked = [marks({name: cells[name][place].mean for name in context.methods}) for place in range(len(columns))]
        rows = [Row(name, context.label(name), "reference", tuple(cells[name])) for name in context.references]
        leads = self._find_leads(comparisons, context)
        for name in context.methods:
            marked = (
                replace(cell, mark=ranks[name], lead=leads.get((name, column.task, column.metric), ""))
                for cell, ranks, column in zip(cells[name], ranked, columns, strict=True)
            )
            rows.append(Row(name, context.titles.get(name, name), "method", tuple(marked)))
        tested = None if comparisons is None else int(comparisons["p_holm"].notna().sum())
        caption = self._write_caption(used, context, tested) + self._write_standings(collected.standings, context)
        return Table(self.name, self.heading, caption, columns, tuple(rows))

    def _write_standings(self, standings: pd.DataFrame | None, context: Context) -> str:
        """Who is tied for first, and every method's ranks, where several trainings tell."""
        if standings is None:
            return ""
        own = standings[(standings["group"] == self.group) & (standings["seeds"] > 1)]
        if own.empty:
            return ""
        titles = [context.titles.get(name, name) for name in own["method"]]
        first = [title for title, tied in zip(titles, own["first"], strict=True) if tied]
        edges = zip(titles, own["rank_low"], own["rank_high"], strict=True)
        ranks = [f"{title} {low}" + (f" to {high}" if high > low else "") for title, low, high in edges]
        return (
            f" No method is shown to be better than {listed(first)}. Ranks that are not ruled out: {', '.join(ranks)} "
            "(intervals of all pairs, which hold together)."
        )

    def _find_leads(self, comparisons: pd.DataFrame | None, context: Context) -> dict[tuple[str, str, str], Lead]:
        """(method, task, metric) of the cells that differ significantly from the strongest baseline."""
        if comparisons is None:
            return {}
        significant = comparisons[comparisons["strongest"] & (comparisons["group"] == self.group)]
        significant = significant[significant["p_holm"] < 1 - context.level]
        return {
            (row.method, row.task, row.metric): "up" if row.difference > 0 else "down"
            for row in significant.itertuples()
        }

    def _make_columns(self, used: pd.DataFrame) -> tuple[Column, ...]:
        titles = used.drop_duplicates("task").set_index("task")["task_title"].sort_index().to_dict()
        if len(titles) > 1:
            titles[AVERAGE] = AVERAGE_TITLE
        return tuple(
            Column(task, title, metric, METRIC_TITLES.get(metric, metric))
            for task, title in titles.items()
            for metric in self.metrics
        )

    def _write_caption(self, used: pd.DataFrame, context: Context, compared: int | None) -> str:
        of_methods = used[used["method"].isin(context.methods)]
        seeds = sorted(of_methods["seed"].unique().tolist())
        many = len(seeds) > 1
        sentences = [
            f"Tier {context.tier}, {'/'.join(sorted(used['split'].unique()))} split, "
            + (f"mean ± standard deviation over {len(seeds)} seeds." if many else "one seed.")
        ]
        if many and used["task"].nunique() > 1:
            sentences.append("Average: the tasks are averaged within a seed.")
        sentences.append(
            f"Best in bold, runner-up underlined among the {len(context.methods)} trained methods; "
            "these marks are ranks, not claims of significance."
        )
        if compared:
            sentences.append(
                f"↑ ↓: {context.subject} is significantly above or below the strongest baseline of the column (paired "
                f"bootstrap over examples{', spread of seeds' if many else ''}, {context.level:.0%}, Holm's "
                f"correction over {compared} comparisons; judged in the column of the headline metric)."
            )
        if context.references:
            sentences.append("Reference rows (one evaluation each) are set apart and not ranked.")
        if context.note:
            sentences.append(context.note)
        if set(used["task_type"]) & context.averaged:
            sentences.append("A pair's score is the mean of its two orders, for every row alike.")
        # Only rows that look at candidates, not at the whole corpus, say which.
        partial = used[~used["candidates"].isin(["", "all"])]
        for method, depth in partial[["method", "candidates"]].drop_duplicates().itertuples(index=False):
            sentences.append(
                f"{context.titles.get(method, method)}: re-ranks the union of candidates {depth} per query."
            )
        if self.remark:
            sentences.append(self.remark)
        if context.generated:
            sentences.append(CONTROLLED_TEXT)
        return " ".join(sentences)


def _reduce_seeds(name: str, scores: pd.DataFrame, columns: Sequence[Column]) -> list[Cell]:
    """One method's cells: (seed × column) values, reduced over seeds."""
    wide = scores.pivot(index="seed", columns=["task", "metric"], values="value")
    for column in columns:
        key = (column.task, column.metric)
        if column.task != AVERAGE and (key not in wide.columns or wide[key].isna().any()):
            raise ArtifactError(
                f"the collected scores hold no {column.metric} of method {name} on task {column.task} for every seed; "
                "run `snakemake --cores all` again"
            )
    cells = []
    for column in columns:
        if column.task == AVERAGE:
            values = wide.xs(column.metric, axis=1, level="metric").mean(axis=1)
        else:
            values = wide[column.task, column.metric]
        cells.append(Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values)))
    return cells

"""Table 4 of the paper: D2LLM with one of its parts changed or left out, on each NLI set and on average over STS and
retrieval.

Variants of other methods that the config names stand below, each under its method as configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from d2llm.analysis.variants import judged_columns, varied
from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.config.values import plain
from d2llm.reporting.collected import Collected, given
from d2llm.reporting.context import Context
from d2llm.reporting.layout.formats import Cell, Column, Lead, Row, Table
from d2llm.reporting.style import CONTROLLED_TEXT, GROUP_TITLES
from d2llm.run.errors import ArtifactError
from d2llm.run.schemas import AVERAGE, SUBJECT

GROUPS = list(GROUP_TITLES)

if TYPE_CHECKING:
    from d2llm.config.schema import Config

PLACE = 4
READS = ("scores", "ablations")
SETTINGS = ("variants", "sweeps", "include", "seeds", "variant_seeds", "methods", "points")
CAPTION = {
    "section": "ablation",
    "title": "D2LLM with one part changed",
    "text": (
        "Each row changes the settings in its brackets (a loss left out, another pooling, another way to score a "
        "pair, another teacher or student) and leaves the rest as it is; nothing is tuned anew. Arrows mark what "
        "is significantly above or below D2LLM as configured. Variants of other methods, where a run has any, "
        "stand below, each under its own method."
    ),
}


class AblationTable:
    """A method as configured, then a row a variant of it, in the config's order, under the variant's group; D2LLM
    first.
    """

    name = "ablation"
    heading = "Table 4. Ablations."

    def build(self, collected: Collected, context: Context, config: Config) -> Table:
        """The table from collected scores, with the significant differences of `ablations.csv`.

        Raises:
            ArtifactError: a variant of the config has no score for a column.
        """
        methods = varied(config)
        if not methods:
            return Table(
                self.name,
                self.heading,
                "This run has no variant of a method (section `variants`, and `variants` in the key `include`).",
                (),
                (),
            )
        scores, ablations = given(collected.scores, "scores"), given(collected.ablations, "ablations")
        whole = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
        tasks = whole[whole["method"].isin(methods)].drop_duplicates("task").set_index("task")
        judged = sorted(judged_columns(tasks[["task_type", "group"]]), key=lambda pair: GROUPS.index(pair[0]))
        columns = [_make_column(group, task, tasks) for group, task in judged]
        leads = _find_leads(ablations, context.level)
        rows = []
        for method, variants in methods.items():
            shown = Shown(method, whole[whole["method"] == method], columns, tasks)
            rows += _make_rows(shown, variants, leads, context, config)
        caption = self._write_caption(scores, int(ablations["p_holm"].notna().sum()), context, config, list(methods))
        return Table(self.name, self.heading, caption, tuple(columns), tuple(rows))

    def _write_caption(
        self, scores: pd.DataFrame, compared: int, context: Context, config: Config, methods: list[str]
    ) -> str:
        paired = config.seeds_of_variants()
        name = context.titles.get(methods[0], methods[0])
        whose, than, itself = (
            (name, name, f"{name} itself")
            if len(methods) == 1
            else ("Each method", "its method as configured", "the method itself")
        )
        sentences = [
            f"Tier {context.tier}, {'/'.join(sorted(set(scores['split'])))} split. {whose} as configured (set apart), "
            "then with the settings in brackets changed and all else as before, nothing tuned "
            f"anew{_write_seeds(paired)}. Average: over the tasks of a kind."
        ]
        if compared:
            sentences.append(
                f"↑ ↓: significantly above or below {than}{_write_seeds(paired)} (paired bootstrap over "
                f"examples{', spread of seeds' if len(paired) > 1 else ''}, {context.level:.0%}, Holm's correction "
                f"over {compared} comparisons)."
            )
        if len(paired) < 2:
            sentences.append(
                f"One training a variant: {'what another seed would change is in no arrow' if compared else 'nothing is marked'}"
                + (f"; the first row shows how much that is for {itself}." if len(config.seeds) > 1 else ".")
            )
        if context.generated:
            sentences.append(CONTROLLED_TEXT)
        return " ".join(sentences)


@dataclass(frozen=True)
class Shown:
    """Scores of one method by its headline metrics, the columns to show, and all tasks."""

    method: str
    scores: pd.DataFrame
    columns: Sequence[Column]
    tasks: pd.DataFrame

    def cells(self, seeds: Sequence[int], variant: str) -> tuple[Cell, ...]:
        """Mean and sample standard deviation over these seeds; an average is taken over tasks within a seed."""
        chosen = self.scores[(self.scores["variant"] == variant) & self.scores["seed"].isin(seeds)]
        wide = chosen.pivot(index="seed", columns=["metric", "task"], values="value")
        cells = []
        for column in self.columns:
            members = self.tasks.index[self.tasks["task_type"].map(HEADLINE) == column.metric]
            keys = [(column.metric, task) for task in (members if column.task == AVERAGE else [column.task])]
            if len(wide) != len(set(seeds)) or any(key not in wide or wide[key].isna().any() for key in keys):
                raise ArtifactError(
                    f"the collected scores hold no {column.metric} of {self.method}, variant {variant}, for every "
                    "seed and task; run `snakemake --cores all` again"
                )
            values = wide[keys].mean(axis=1)
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            cells.append(Cell(float(values.mean()), spread, len(values)))
        return tuple(cells)


def _make_rows(
    shown: Shown,
    variants: Mapping[str, str],
    leads: Mapping[tuple[str, str, str, str], Lead],
    context: Context,
    config: Config,
) -> list[Row]:
    """A method as configured, and its variants: together what is of one group, groups in the order of their first
    variant.
    """
    method, paired = shown.method, config.seeds_of_variants()
    name, key = context.titles.get(method, method), "base" if method == SUBJECT else f"{method}_base"
    rows = []
    if paired != config.seeds:
        title = f"{name}, {len(config.seeds)} seeds"
        rows.append(Row(f"{key}_all", title, "reference", shown.cells(config.seeds, "base")))
    rows.append(Row(key, f"{name}{_write_seeds(paired)}", "reference", shown.cells(paired, "base")))
    groups = list(dict.fromkeys(config.variants[variant].group for variant in variants))
    for variant, owner in sorted(variants.items(), key=lambda item: groups.index(config.variants[item[0]].group)):
        settings = config.variants[variant]
        title = f"{settings.title or variant} ({changes(settings.settings)})"
        marked = tuple(
            replace(cell, lead=leads.get((method, owner, column.task, column.metric), ""))
            for column, cell in zip(shown.columns, shown.cells(paired, owner), strict=True)
        )
        rows.append(Row(variant, f"{settings.group}: {title}" if settings.group else title, settings.group, marked))
    return rows


def changes(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Settings in a line, so that no row's title can keep quiet about what it changes.

    >>> changes({"interaction": {"name": "cosine"}, "gamma": 0.0})
    'interaction.name cosine, gamma 0'
    """
    texts = [
        changes(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"{prefix}{key} {plain(value)}"
        for key, value in settings.items()
    ]
    return ", ".join(texts)


def _write_seeds(seeds: Sequence[int]) -> str:
    return f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {', '.join(map(str, seeds))}"


def _make_column(group: str, task: str, tasks: pd.DataFrame) -> Column:
    kind = tasks.loc[tasks["group"] == group, "task_type"].iloc[0]
    metric = HEADLINE[kind]
    title = f"{GROUP_TITLES.get(group, group)} average" if task == AVERAGE else tasks.loc[task, "task_title"]
    # Averages of several groups are told apart by their metric.
    return Column(task, title, metric, METRIC_TITLES.get(metric, metric))


def _find_leads(ablations: pd.DataFrame, level: float) -> dict[tuple[str, str, str, str], Lead]:
    """(method, variant, task, metric) of what differs significantly. The file's difference is the method's lead over
    its variant.
    """
    significant = ablations[ablations["p_holm"] < 1 - level]
    return {
        (SUBJECT if row.method == "base" else row.method, row.baseline, row.task, row.metric): "down"
        if row.difference > 0
        else "up"
        for row in significant.itertuples()
    }


TABLE = AblationTable()

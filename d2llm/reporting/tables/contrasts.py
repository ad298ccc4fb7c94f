"""Table 6: rows of a run against each other, as `statistics.contrasts` names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.analysis.verdicts import verdict
from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.collected import Collected, given
from d2llm.reporting.layout.formats import Block, PlainTable
from d2llm.reporting.style import AVERAGE_TITLE, GROUP_TITLES, signed
from d2llm.run.schemas import AVERAGE

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config.schema import Config
    from d2llm.reporting.context import Context

PLACE = 6
READS = ("scores", "contrasts")
SETTINGS = ("variants", "statistics.contrasts", "statistics.level")
CAPTION = {
    "section": "ablation",
    "title": "Rows against each other",
    "text": (
        "The first row's score minus the second's, with its confidence interval, so that what two variants differ in "
        "is measured by itself."
    ),
}


class ContrastsTable:
    """A row a contrast, a column a task or kind of task; a cell is a difference with its interval."""

    name = "contrasts"
    heading = "Table 6. Rows against each other."

    def build(self, collected: Collected, context: Context, config: Config) -> PlainTable:
        """The table from `contrasts.csv`."""
        contrasts = given(collected.contrasts, "contrasts")
        if contrasts.empty:
            text = "This run compares no further rows (`statistics.contrasts`)."
            return PlainTable(self.name, self.heading, text, ())
        titles = given(collected.scores, "scores").drop_duplicates("task").set_index("task")["task_title"].to_dict()
        groups = [group for group in GROUP_TITLES if group in set(contrasts["group"])]
        keys = [
            (group, task)
            for group in groups
            for task in contrasts.loc[contrasts["group"] == group, "task"].drop_duplicates().sort_values()
        ]
        rows = []
        for (one, two), part in contrasts.groupby(["method", "baseline"], sort=False):
            cells = part.set_index(["group", "task"])
            shown = [difference(cells.loc[key], context.level) for key in keys]
            rows.append((f"{title(one, context, config)} − {second(one, two, context, config)}", *shown))
        metrics = contrasts.drop_duplicates(["group", "task"]).set_index(["group", "task"])["metric"]
        header = ("Contrast", *(column(*key, metrics[key], titles) for key in keys))
        seeds = sorted(contrasts["seeds"].unique().tolist())
        spread = ", spread of seeds" if max(seeds) > 1 else "; one training a side, whose luck is in no interval"
        caption = (
            f"Tier {context.tier}. First row minus second, with its {context.level:.0%} interval (paired bootstrap over "
            f"examples{spread}), {' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'}. "
            f"↑ ↓: significant after Holm's correction over {contrasts['p_holm'].notna().sum()} contrasts. {context.note}"
        )
        return PlainTable(
            self.name, self.heading, caption.strip(), (Block("contrasts", "Differences", header, tuple(rows)),)
        )


def column(group: str, task: str, metric: str, titles: dict[str, str]) -> str:
    """A column's title: "OCNLI AP", "STS average Spearman"."""
    where = f"{GROUP_TITLES.get(group, group)} {AVERAGE_TITLE.lower()}" if task == AVERAGE else titles[task]
    return f"{where} {METRIC_TITLES.get(metric, metric)}"


def title(name: str, context: Context, config: Config) -> str:
    """A row's name for a reader: its method's, and its variant's."""
    method, _, variant = str(name).partition("/")
    own = context.label(method)
    if not variant:
        return own
    return f"{own}, {(config.variants[variant].title or variant) if variant in config.variants else variant}"


def second(one: str, two: str, context: Context, config: Config) -> str:
    """The second row's name, without its method where that is the first's."""
    own = title(two, context, config)
    same = "/" in str(two) and str(one).partition("/")[0] == str(two).partition("/")[0]
    return own.partition(", ")[2] if same else own


def difference(row: pd.Series, level: float) -> str:
    """A difference, its interval, and an arrow where it is significant."""
    arrow = {"holds": "↑", "refuted": "↓"}.get(
        verdict(row["difference"], row["low"], row["high"], row["p_holm"], level, seeds=row["seeds"]), ""
    )
    return f"{signed(row['difference'])}{arrow} [{signed(row['low'])}, {signed(row['high'])}]"


TABLE = ContrastsTable()

"""Which of the subject's leads (D2LLM's as a rule) hold: each comparison with the strongest baseline, judged and put
into words. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2llm.analysis.inference import POWER
from d2llm.analysis.verdicts import Verdict, verdict
from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.style import AVERAGE_TITLE, DECIMALS, GROUP_TITLES, number, signed
from d2llm.run.schemas import AVERAGE

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.reporting.context import Context

VERDICTS = {
    (1, True): "ahead",
    (-1, True): "behind",
    (1, False): "ahead, not significantly",
    (-1, False): "behind, not significantly",
    (0, False): "level",
}
# Of what is not tested: a task beside the average of its kind. By its interval.
UNTESTED = {1: "ahead by its interval", -1: "behind by its interval", 0: "undecided"}
ANECDOTE = "one training, not judged"


@dataclass(frozen=True)
class Claim:
    """The subject against the strongest baseline on one task, or on the average of a group of tasks."""

    group: str
    task: str
    metric: str
    baseline: str
    value: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    average: bool
    seeds: int
    detectable: float

    @property
    def baseline_value(self) -> float:
        return self.value - self.difference

    @property
    def significant(self) -> bool:
        return self.verdict in ("ahead", "behind")

    @property
    def side(self) -> int:
        """1 where the subject is shown to be ahead, -1 behind, 0 neither: by the test, or the interval of what has
        none.
        """
        return next(
            (sign for word, sign in (("ahead", 1), ("behind", -1)) if self.verdict in (word, UNTESTED[sign])), 0
        )

    def holds(self, level: float, threshold: float = 0.0, margin: float = 0.0) -> Verdict:
        """Whether the subject is ahead by more than `threshold`; of one training nothing is shown."""
        return verdict(self.difference, self.low, self.high, self.p, level, threshold, margin, self.seeds)

    def power(self) -> str:
        """What a lead that is not shown would have had to be, to be found; empty where the run does not tell."""
        if self.seeds < 2 and math.isnan(self.p):
            return "one training of each, which shows nothing"
        known = math.isfinite(self.detectable)
        return (
            f"a difference of {number(self.detectable)} would have been found with {POWER:.0%} power" if known else ""
        )


def claims(comparisons: pd.DataFrame, task_titles: dict[str, str], context: Context) -> dict[str, list[Claim]]:
    """The claims of each group by its title, tasks in order and their average last."""
    claims_of: dict[str, list[Claim]] = {}
    strongest = comparisons[comparisons["strongest"]]
    strongest = strongest.assign(last=strongest["task"] == AVERAGE).sort_values(["last", "task"], kind="stable")
    for group in [
        *(g for g in GROUP_TITLES if g in set(strongest["group"])),
        *sorted(set(strongest["group"]) - set(GROUP_TITLES)),
    ]:
        title = GROUP_TITLES.get(group, group)
        claims_of[title] = [
            _judge(row, title, task_titles, context) for row in strongest[strongest["group"] == group].itertuples()
        ]
    return claims_of


def _judge(row, group: str, task_titles: dict[str, str], context: Context) -> Claim:
    # What prints as no difference is none, unless it is a significant one.
    significant = row.difference != 0 and row.p_holm < 1 - context.level
    shown = row.difference if significant else round(row.difference, DECIMALS)
    word = VERDICTS[(shown > 0) - (shown < 0), significant]
    if math.isnan(row.p_holm):
        word = UNTESTED[(row.low > 0) - (row.high < 0)] if row.seeds > 1 else ANECDOTE
    return Claim(
        group=group,
        task=AVERAGE_TITLE if row.task == AVERAGE else task_titles.get(row.task, row.task),
        metric=METRIC_TITLES.get(row.metric, row.metric),
        baseline=context.titles.get(row.baseline, row.baseline),
        value=row.value,
        difference=row.difference,
        low=row.low,
        high=row.high,
        p=row.p_holm,
        verdict=word,
        average=row.task == AVERAGE,
        seeds=row.seeds,
        detectable=getattr(row, "detectable", float("nan")),
    )


def by_kind(comparisons: pd.DataFrame, group: str, task_titles: dict[str, str], context: Context) -> dict[str, Claim]:
    """The subject against the strongest baseline of each kind (decoder, encoder), on a group's average or only task."""
    own = comparisons[comparisons["group"] == group]
    whole = own[own["task"] == AVERAGE] if AVERAGE in set(own["task"]) else own
    out = {}
    for kind in sorted(set(context.kinds.values())):
        members = whole[whole["baseline"].map(context.kinds) == kind]
        if len(members) and whole["task"].nunique() == 1:
            row = next(members.loc[[members["difference"].idxmin()]].itertuples())
            out[kind] = _judge(row, GROUP_TITLES.get(group, group), task_titles, context)
    return out


def sentence(group: str, group_claims: list[Claim], context: Context) -> tuple[str, str]:
    """What a group's claims come to: a verdict in a word or two, and a sentence with the numbers.

    Judged on the average of the group's tasks, or on its only one.
    """
    whole = next((claim for claim in group_claims if claim.average), group_claims[-1])
    tasks = [claim for claim in group_claims if not claim.average]
    where = "on average over the tasks" if whole.average else f"on {whole.task}"
    if whole.verdict == "level":
        word, text = "Level", f"{context.subject} is level with the strongest baseline, {whole.baseline}, {where}"
    else:
        side = "ahead of" if whole.difference > 0 else "behind"
        word = whole.holds(context.level, margin=context.equivalent).capitalize()
        text = (
            f"{context.subject} is {side} the strongest baseline, {whole.baseline}, by "
            f"{number(abs(whole.difference))} {where}"
        )
    text += (
        f" ({whole.metric} {number(whole.value)} against {number(whole.baseline_value)}; {context.level:.0%} interval "
        "of the difference "
    )
    power = "" if whole.significant else whole.power()
    if whole.holds(context.level, margin=context.equivalent) == "refuted" and not whole.significant:
        power = f"a lead of {context.equivalent:g} is ruled out"
    text += (
        f"{signed(whole.low)} to {signed(whole.high)}; {'significant' if whole.significant else 'not significant'}"
        f"{'; ' * bool(power)}{power})."
    )
    if whole.average:
        ahead, behind = (sum(claim.side == side for claim in tasks) for side in (1, -1))
        how = "significantly " if not any(math.isnan(claim.p) for claim in tasks) else "by their intervals "
        text += (
            f" Task by task: {how}ahead on {ahead} of {len(tasks)}, {how}behind on {behind}, "
            f"undecided on {len(tasks) - ahead - behind}."
        )
    return word, text

"""Writes what README.md and docs/tuning.md show of the reference run, from results/reference/mini: the table of results and the table of trials.

    python tools/readme_results.py          (part of `make reference`)

What they say in words about these numbers is written by hand, and has to be read again.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from d2llm.config.load import load
from d2llm.config.task_types import HEADLINE
from d2llm.reporting.context import context
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / "mini"
# Columns, narrower than the tasks' titles.
TASKS = {
    "nli_indomain": "NLI-A", "nli_shifted": "NLI-B", "question_match": "QMatch", "role_swap": "Swap", "sts_graded": "STS-G",
    "ir_claim": "IR-C", "ir_keyword": "IR-K", "ir_question": "IR-Q",
}  # fmt: skip
SEEDS = {1: "one seed", 2: "two seeds", 3: "three seeds", 4: "four seeds", 5: "five seeds"}


def results(scores: pd.DataFrame, titles: dict[str, str], references: list[str], methods: list[str]) -> str:
    """The table: a row a method, the headline metric of every task, the highest of the methods in bold."""
    own = scores[(scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    own = own[own["metric"] == own["task_type"].map(HEADLINE)]
    values = own.groupby(["method", "task"])["value"].mean().unstack().round(3)
    best = values.loc[methods].max()
    seeds = SEEDS[own[own["method"].isin(methods)]["seed"].nunique()]
    lines = [
        f"Average precision on NLI, Spearman on STS, MRR@10 on retrieval; test sets, mean over {seeds} (spread: Tables 1–3); bold is the highest of "
        "the six methods, at three digits and so sometimes of several, not a claim of significance (that is in the figure, and in the tables).",
        "",
        f"| | {' | '.join(TASKS.values())} |",
        f"| --- |{' ---: |' * len(TASKS)}",
    ]
    for name in [*references, *methods]:
        title = f"*{titles[name]}*" if name in references else titles[name]
        cells = [
            f"**{value:.3f}**" if name in methods and value == best[task] else f"{value:.3f}"
            for task, value in values.loc[name, list(TASKS)].items()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def put(file: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->`."""
    before, rest = file.read_text(encoding="utf-8").split(f"<!-- {mark} -->")
    after = rest.split(f"<!-- /{mark} -->")[1]
    file.write_text(f"{before}<!-- {mark} -->\n{text.strip()}\n<!-- /{mark} -->{after}", encoding="utf-8")


def main() -> None:
    about = context(load([REFERENCE / "config.yaml"]))
    scores = pd.read_csv(REFERENCE / "scores.csv", keep_default_na=False)
    table = results(scores, dict(about.titles), list(about.references), list(about.methods))
    put(ROOT / "README.md", "results", table)
    put(ROOT / "docs" / "tuning.md", "trials", Paths(REFERENCE).trials_md.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Writes what README.md, docs/results.md and docs/tuning.md say of the reference runs, from results/reference/<tier>: the
headlines, the paper's claims, tables of results, the sentences on what they show, the table of trials.

Real text (zh) stands first and generated text (mini) second; a tier whose run is not kept is left out.

    python tools/readme_results.py          (part of `make reference`)

A test holds the pages to it. No sentence knows who wins: each follows from the numbers, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from d2llm.analysis.verdicts import verdict
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.config.values import plain
from d2llm.reporting.captions import listed
from d2llm.reporting.collected import Collected
from d2llm.reporting.context import Context, context
from d2llm.reporting.layout.formats import Column, Row, Table
from d2llm.reporting.page.claims import Claim, by_kind, claims, sentence
from d2llm.reporting.style import GROUP_TITLES, duration
from d2llm.reporting.tables.ablation import TABLE
from d2llm.reporting.tables.contrasts import title as row_title
from d2llm.run.paths import Paths
from d2llm.run.provenance import records
from d2llm.run.schemas import AVERAGE, FORWARD, SUBJECT

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = ROOT / "results" / "reference"
REFERENCE = REFERENCES / "mini"
# What is known of the paper's results.
PAPER = ROOT / "docs" / "paper.yaml"
# Tiers with a reference run, in the order of the pages, and what each is.
TIERS = {"zh": "Real Chinese text and pretrained weights", "mini": "Generated text, models made in the pipeline"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Phenomena named at either end.
NAMED = 3


@dataclass(frozen=True)
class Reference:
    """A kept run, as far as sentences need it."""

    config: Config
    about: Context
    scores: pd.DataFrame
    comparisons: pd.DataFrame
    ablations: pd.DataFrame
    runtime: pd.DataFrame
    contrasts: pd.DataFrame
    commit: str = ""

    @classmethod
    def read(cls, folder: Path) -> Reference:
        config = load([folder / "config.yaml"])
        names = ("scores", "comparisons", "ablations", "runtime", "contrasts")
        tables = (pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in names)
        commits = [str(record.get("commit", "")) for record in records(folder).values() if record["stage"] == "train"]
        return cls(config, context(config), *tables, commit=max(commits, key=commits.count, default="")[:7])

    @property
    def columns(self) -> dict[str, str]:
        """Titles of tasks by name, by kind of task as in the tables, then by name."""
        tasks = self.scores.drop_duplicates("task").set_index("task")
        place = {group: number for number, group in enumerate(GROUP_TITLES)}
        return {
            name: tasks.loc[name, "task_title"]
            for name in sorted(tasks.index, key=lambda n: (place[tasks.loc[n, "group"]], n))
        }

    @property
    def seeds(self) -> str:
        """How many seeds, in words."""
        count = self.scores.loc[self.scores["method"].isin(self.about.methods), "seed"].nunique()
        return f"{NUMBERS[count]} seed{'' if count == 1 else 's'}"

    def title(self, method: str) -> str:
        return self.about.titles.get(method, method).split(" (")[0]


def short(value: float) -> str:
    """A score at the three digits of the README."""
    return f"{value:.3f}".replace("-", "−")


# ------------------------------------------------------------------------------------------------------------ the table
def results(run: Reference) -> str:
    """A row a method, the headline metric of every task, the highest of the methods in bold."""
    references, methods = list(run.about.references), list(run.about.methods)
    scores = run.scores
    own = scores[(scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    own = own[own["metric"] == own["task_type"].map(HEADLINE)]
    values = own.groupby(["method", "task"])["value"].mean().unstack().round(3)
    best = values.loc[methods].max()
    columns = run.columns
    lines = [
        f"Average precision on NLI, Spearman on STS, MRR@10 on retrieval; test sets, mean over {run.seeds} "
        f"(spread: Tables 1–3); bold is the highest of the {NUMBERS[len(methods)]} "
        "methods, at three digits and so sometimes of several, not a claim of significance (that is in the figure, "
        f"and in the tables). {run.about.note}".rstrip(),
        "",
        f"| | {' | '.join(columns.values())} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name in [*references, *methods]:
        title = f"*{run.about.label(name)}*" if name in references else run.about.label(name)
        cells = [
            f"**{value:.3f}**" if name in methods and value == best[task] else f"{value:.3f}"
            for task, value in values.loc[name, list(columns)].items()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- the sentences
def headlines(run: Reference) -> str:
    """Four sentences for a reader of one minute: each kind of task, and the parts that matter most."""
    titles = run.scores.drop_duplicates("task").set_index("task")["task_title"].to_dict()
    lines = []
    for kind, group in claims(run.comparisons, titles, run.about).items():
        whole = next((claim for claim in group if claim.average), group[-1])
        side = "leads" if whole.difference > 0 else "trails"
        relation = side if whole.significant else "does not differ significantly from"
        lines.append(
            f"**{kind}**: {run.title(SUBJECT)} {relation} the strongest baseline, {whole.baseline} "
            f"({short(whole.value)} against {short(whole.baseline_value)}; {run.about.level:.0%} interval of the "
            f"difference {short(whole.low)} to {short(whole.high)})."
        )
    return "\n".join(f"- {line}" for line in [*lines, *parts(run)])


def parts(run: Reference) -> Iterator[str]:
    """The change of the subject that costs most, and the one that gains most, on the first column of Table 4."""
    table, rows = ablated(run)
    if not rows:
        return
    base = next(row for row in table.rows if row.key == "base").cells[0].mean
    moved = sorted((row for row in rows if row.cells[0].lead), key=lambda row: row.cells[0].mean)
    lost = [row for row in moved[:1] if row.cells[0].mean < base]
    gained = [row for row in moved[-1:] if row.cells[0].mean > base]
    named = [
        f"most is {verb} by *{title(run, row)}* ({short(row.cells[0].mean)})"
        for verb, chosen in (("lost", lost), ("gained", gained))
        for row in chosen
    ]
    if named:
        yield f"**Parts**, on {column(table.columns[0])} ({short(base)} as configured): {'; '.join(named)}."


def findings(run: Reference) -> str:
    """What the run shows, a point a question."""
    points = [*leads(run), *kinds(run), *ablations(run), *contrasts(run), *sweeps(run), *phenomena(run)]
    points += [*direction(run), *runtimes(run)]
    return "\n".join(f"- {point}" for point in points)


def leads(run: Reference) -> Iterator[str]:
    """The subject against the strongest baseline, by kind of task."""
    titles = run.scores.drop_duplicates("task").set_index("task")["task_title"].to_dict()
    for kind, group in claims(run.comparisons, titles, run.about).items():
        verdict, text = sentence(kind, group, run.about)
        tasks = [
            f"{claim.task} {claim.difference:+.3f} ({claim.baseline}; {claim.verdict})".replace("-0.", "−0.")
            for claim in group
            if not claim.average
        ]
        yield f"**{kind}: {verdict.lower()}.** {text} Against the strongest baseline of each: {listed(tasks)}."


def kinds(run: Reference) -> Iterator[str]:
    """The subject against the strongest baseline on a decoder, and on an encoder, by kind of task."""
    texts = []
    for group, title in GROUP_TITLES.items():
        against = by_kind(run.comparisons, group, {}, run.about)
        parts = [
            f"{kind} ({claim.baseline}) {interval(claim)}: {claim.holds(run.about.level, margin=run.about.equivalent)}"
            for kind, claim in against.items()
        ]
        texts += [f"{title}: {'; '.join(parts)}"] if parts else []
    if texts:
        yield f"**Against the strongest baseline on a decoder and on an encoder**, on average: {'. '.join(texts)}."


def interval(claim: Claim) -> str:
    """A difference with its interval."""
    return f"{claim.difference:+.3f} [{claim.low:+.3f}, {claim.high:+.3f}]".replace("-", "−")


def contrasts(run: Reference) -> Iterator[str]:
    """What `statistics.contrasts` asked."""
    table = run.contrasts
    titles = run.columns | {AVERAGE: "average"}
    for (one, two), part in table.groupby(["method", "baseline"], sort=False):
        cells = [
            f"{GROUP_TITLES[row.group] + ' ' if row.task == AVERAGE else ''}{titles[row.task]} "
            + f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]".replace("-", "−")
            + f" ({verdict(row.difference, row.low, row.high, row.p_holm, run.about.level, seeds=row.seeds)})"
            for row in part.itertuples()
        ]
        names = [row_title(str(name), run.about, run.config) for name in (one, two)]
        yield f"**{names[0]} above {names[1]}?** {', '.join(cells)}."


def direction(run: Reference) -> Iterator[str]:
    """How often a right pair outscores its own reverse, by NLI set."""
    own = run.scores[(run.scores["metric"] == FORWARD) & (run.scores["variant"] == "base")]
    for name, part in own.groupby("task_title"):
        share = part.groupby("method")["value"].mean().sort_values(ascending=False, kind="stable")
        listed_rows = listed([f"{run.title(method)} {value:.2f}" for method, value in share.items()])
        yield f"**{name}, direction** (right pairs that score higher than their own reverse; 0.5 without direction): {listed_rows}."


def ablated(run: Reference) -> tuple[Table, list[Row]]:
    """Table 4, and those of its rows that are variants of the subject."""
    table = TABLE.build(Collected(scores=run.scores, ablations=run.ablations), run.about, run.config)
    variants = run.config.variants
    return table, [row for row in table.rows if row.key in variants and variants[row.key].method == SUBJECT]


def ablations(run: Reference) -> Iterator[str]:
    """What changing a part of D2LLM did: significant differences, and what lies beyond the spread of its own seeds."""
    table, rows = ablated(run)
    if not rows:
        return
    base = next(row for row in table.rows if row.key == "base")
    values = listed([f"{column(one)} {short(cell.mean)}" for one, cell in zip(table.columns, base.cells, strict=True)])
    text = f"**Parts changed or left out** (Table 4), against D2LLM of the same seeds ({values}). "
    for lead, word in (("up", "higher"), ("down", "lower")):
        named = [where(run, row, table.columns, [cell.lead == lead for cell in row.cells]) for row in rows]
        text += f"Significantly {word}: {'; '.join(filter(None, named)) or 'none'}. "
    level = [title(run, row) for row in rows if not any(cell.lead for cell in row.cells)]
    text += f"No significant difference: {'; '.join(level) or 'none'}."
    yield text
    yield from beyond(run, rows, table.columns)


def beyond(run: Reference, rows: list[Row], columns: tuple[Column, ...]) -> Iterator[str]:
    """Which variants score higher than each of D2LLM's own trainings."""
    seeds = run.config.seeds
    if len(seeds) < 2:
        return
    whole = run.scores[(run.scores["phenomenon"] == "all") & (run.scores["method"] == SUBJECT)]
    base = whole[whole["variant"] == "base"]
    most = []
    for one in columns:
        kind = base[base["metric"] == one.metric]
        kind = kind[kind["task_type"].map(HEADLINE) == one.metric]
        kind = kind if one.task == AVERAGE else kind[kind["task"] == one.task]
        most.append(kind.groupby("seed")["value"].mean().max())
    named = [
        where(run, row, columns, [cell.mean > high for cell, high in zip(row.cells, most, strict=True)]) for row in rows
    ]
    text = "; ".join(filter(None, named)) or "none"
    yield (
        f"**Above all {len(seeds)} of D2LLM's own trainings** as configured: {text}. "
        "These are numbers of the test sets, and nothing was set by them."
    )


def title(run: Reference, row: Row) -> str:
    return run.config.variants[row.key].title or row.key


def column(one: Column) -> str:
    return one.task_title.removesuffix(" average")


def where(run: Reference, row: Row, columns: tuple[Column, ...], chosen: list[bool]) -> str:
    """A variant with its scores in these columns; nothing where there are none."""
    cells = zip(columns, row.cells, chosen, strict=True)
    scores = [f"{column(one)} {short(cell.mean)}" for one, cell, named in cells if named]
    return f"{title(run, row)} ({', '.join(scores)})" if scores else ""


def sweeps(run: Reference) -> Iterator[str]:
    """Where each setting that was swept scores highest on every NLI set, and on average over the other kinds."""
    points, recipe = run.config.points(), run.config.recipe(SUBJECT)
    whole = run.scores[(run.scores["phenomenon"] == "all") & (run.scores["method"] == SUBJECT)]
    whole = whole[(whole["metric"] == whole["task_type"].map(HEADLINE))]
    whole = whole[whole["seed"].isin(run.config.seeds_of_variants())]
    kinds = whole["task_title"].where(whole["group"] == "nli", whole["group"].map(GROUP_TITLES))
    means = whole.groupby([whole["variant"], kinds])["value"].mean().unstack()
    grid = run.config.tuning.grids.get(SUBJECT, {})
    texts = []
    for key, values in run.config.sweeps.get(SUBJECT, {}).items():
        rows = {plain(value): points[SUBJECT, f"{key}={plain(value)}"][1] for value in values}
        own = means.loc[list(rows.values())].set_axis(list(rows))
        parts = [f"{kind} at {own[kind].idxmax()} ({short(own[kind].max())})" for kind in means.columns]
        tuned = f"tuned among {len(grid[key])}" if key in grid else "not tuned"
        texts.append(f"`{key}` (configured: {plain(getattr(recipe, key))}, {tuned}) {', '.join(parts)}")
    if texts:
        yield f"**Sweeps**, where each is highest: {'; '.join(texts)}."


def phenomena(run: Reference) -> Iterator[str]:
    """On each NLI set, where the subject is furthest behind the best baseline, and furthest ahead."""
    own = run.scores[(run.scores["metric"] == "auc") & (run.scores["variant"] == "base")]
    own = own[(own["group"] == "nli") & own["method"].isin(run.about.methods)]
    for name, part in own.groupby("task_title"):
        auc = part.groupby(["phenomenon", "method"])["value"].mean().unstack()
        others = auc.drop(columns=SUBJECT)
        lead = (auc[SUBJECT] - others.max(axis=1)).sort_values(kind="stable")

        def told(kind: str, auc: pd.DataFrame = auc, others: pd.DataFrame = others) -> str:
            best = others.loc[kind].idxmax()
            return f"{kind} ({auc.loc[kind, SUBJECT]:.2f}; {run.title(best)} {others.loc[kind, best]:.2f})"

        def most(kinds: pd.Index, told: Callable[[str], str] = told) -> str:
            return listed([told(kind) for kind in kinds[:NAMED]]) or "none"

        ahead, behind = lead[lead > 0].index[::-1], lead[lead < 0].index
        yield (
            f"**{name} by {'what makes a pair hard' if run.about.generated else 'group'}** (AUC; the best baseline's "
            "beside it): D2LLM is ahead of every "
            f"baseline on {len(ahead)} of {len(lead)} {'phenomena' if run.about.generated else 'groups'}, most on {most(ahead)}; behind the best on {len(behind)}, "
            f"most on {most(behind)}."
        )


def runtimes(run: Reference) -> Iterator[str]:
    """What scoring and searching take: the subject, the teacher, and the fastest baseline."""
    times = run.runtime
    shown = [name for name in (SUBJECT, "teacher") if name in set(times["method"])]
    baselines = times[times["method"].isin(run.about.methods) & (times["method"] != SUBJECT)]

    def line(phase: str) -> str:
        rows = times[times["phase"] == phase]
        rows = rows[rows["corpus"] == rows["corpus"].max()].set_index("method")
        quick = rows.loc[rows.index.isin(baselines["method"]), "median"]
        names = [*shown, *([quick.idxmin()] if len(quick) else [])]
        return listed(
            [
                f"{run.title(name)} {duration(rows.loc[name, 'median'])}"
                + (" (extrapolated)" if str(rows.loc[name, "extrapolated"]) == "True" else "")
                for name in names
                if name in rows.index
            ]
        )

    corpus = times.loc[times["phase"] == "search", "corpus"].max()
    text = f"**Runtime**, beside the fastest baseline: scoring a pair takes {line('score')}; "
    text += f"searching {corpus:,} passages {line('search')}"
    again = times[times["phase"] == "rerank"]
    if len(again):
        last = again.loc[again["corpus"].idxmax()]
        text += f"; the teacher re-ranks {last['batch']} candidates in {duration(last['median'])}"
    sizes = times[(times["method"] == SUBJECT) & (times["phase"] == "search")].iloc[0]
    ratio = float(sizes["bytes_per_passage"]) / float(sizes["embedding_bytes"])
    yield f"{text}. D2LLM's index takes {ratio:.1f} times the bytes of the embeddings."


# ---------------------------------------------------------------------------------------------------------- the pages
def kept(folder: Path = REFERENCES) -> dict[str, Reference]:
    """The reference runs that are kept, by tier, in the order of the pages."""
    return {tier: Reference.read(folder / tier) for tier in TIERS if (folder / tier / "scores.csv").is_file()}


def first_page(runs: dict[str, Reference]) -> str:
    """README's results: of every tier its figure and its headlines."""
    parts = []
    for tier, run in runs.items():
        metrics = "average precision on NLI, Spearman on STS, MRR@10 on retrieval"
        opening = f"{TIERS[tier]} ([`{tier}` tier](docs/tiers.md)), {run.seeds}, test sets"
        parts.append(f"![Every method on every task of the {tier} tier](results/reference/{tier}/figures/main.svg)")
        parts.append(f"**{opening}**, commit `{run.commit}`; {metrics}:")
        parts.append(headlines(run))
    return "\n\n".join(parts)


def claimed(runs: dict[str, Reference]) -> str:
    """The paper's claims beside what every tier finds."""
    lines = [f"| the paper | {' | '.join(f'{tier} tier' for tier in runs)} |", f"| --- |{' --- |' * len(runs)}"]
    for claim in load_paper()["claims"]:
        answers = [answer(claim, run) for run in runs.values()]
        lines.append(f"| {claim['text']} ({claim['source']}) | {' | '.join(answers)} |")
    return "\n".join(lines)


def answer(claim: dict[str, Any], run: Reference) -> str:
    """What a run says of a claim: by kind of task, or against one baseline, with a margin where one is claimed."""
    titles = run.columns
    if "group" not in claim:
        verdicts = [
            f"{kind} {sentence(kind, own, run.about)[0].lower()}"
            for kind, own in claims(run.comparisons, titles, run.about).items()
        ]
        return ", ".join(verdicts)
    rows = run.comparisons[run.comparisons["group"] == claim["group"]]
    rows = rows[rows["baseline"] == claim["baseline"]] if "baseline" in claim else rows
    against = by_kind(rows, claim["group"], titles, run.about)
    parts = []
    for one in against.values():
        text = f"over {one.baseline} {one.metric} {interval(one)}: {one.holds(run.about.level, margin=run.about.equivalent)}"
        if margin := claim.get("threshold"):
            text += f", by more than {margin:g} {one.holds(run.about.level, margin)}"
        parts.append(text)
    return "; ".join(parts) or "not compared"


def load_paper() -> dict[str, Any]:
    """What is known of the paper's results."""
    return yaml.safe_load(PAPER.read_text(encoding="utf-8"))


def beside_paper(run: Reference) -> str:
    """The paper's scores of D2LLM beside ours, on the sets that both have; nothing where there are none."""
    known = load_paper()["cells"]
    own = run.scores[(run.scores["method"] == SUBJECT) & (run.scores["variant"] == "base")]
    own = own[own["phenomenon"] == "all"].assign(set=own["task_title"].str.split(" (", regex=False).str[0])
    means = own.groupby(["set", "metric"])["value"].mean()
    rows = [
        f"| {cell['set']} | {METRIC_TITLES[cell['metric']]} | {cell['value']:.3f} | {short(means[cell['set'], cell['metric']])} |"
        for cell in known["values"]
        if (cell["set"], cell["metric"]) in means
    ]
    if not rows:
        return ""
    head = (
        f"D2LLM's scores in the paper, as [a third party]({known['source']}) transcribed them and unchecked, beside "
        "ours. Models, training data and their sizes differ: no number here is a repetition of the one beside it."
    )
    return "\n".join([head, "", "| set | metric | paper | here |", "| --- | --- | ---: | ---: |", *rows])


def real_text(run: Reference | None) -> str:
    """Results on real text, or that none are kept."""
    if run is None:
        return "No run on real text is kept yet ([tiers.md](tiers.md))."
    folder = f"../results/reference/{run.config.tier}"
    links = f"[Scores]({folder}/scores.csv), [figures]({folder}/figures), [tables]({folder}/tables), [data card]({folder}/data/card.md)."
    return "\n\n".join(filter(None, [results(run), beside_paper(run), findings(run), links]))


def blocks(folder: Path = REFERENCES) -> dict[tuple[Path, str], str]:
    """What stands between `<!-- mark -->` and `<!-- /mark -->` of a page, by page and mark."""
    runs = kept(folder)
    results_page = ROOT / "docs" / "results.md"
    pages = {
        (ROOT / "README.md", "headlines"): first_page(runs),
        (results_page, "claims"): claimed(runs),
        (results_page, "real"): real_text(runs.get("zh")),
    }
    if "mini" in runs:
        trials = Paths(folder / "mini").trials_md.read_text(encoding="utf-8").strip()
        pages |= {
            (results_page, "results"): results(runs["mini"]),
            (results_page, "findings"): findings(runs["mini"]),
            (ROOT / "docs" / "tuning.md", "trials"): trials,
        }
    return pages


def block(page: Path, mark: str) -> tuple[str, str, str]:
    """A page's text before a mark's block, in it, and after it."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {mark} -->\n")
    inside, after = rest.split(f"\n<!-- /{mark} -->")
    return before, inside, after


def outdated() -> list[str]:
    """The blocks that say something else than the reference run."""
    return [f"{page.name}: {mark}" for (page, mark), text in blocks().items() if block(page, mark)[1] != text]


def main() -> None:
    for (page, mark), text in blocks().items():
        before, _, after = block(page, mark)
        page.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

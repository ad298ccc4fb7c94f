"""What every table and figure is called and says, for a reader who knows nothing else of this project.

The one home of these texts: the HTML report and Snakemake's report both show them. Knows no file and no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["table", "figure"]

# Sections of the report in their order, with a line of introduction.
SECTIONS: dict[str, tuple[str, str]] = {
    "main": (
        "Main results",
        "Every method on every task: natural language inference (NLI), semantic textual similarity (STS) and information "
        "retrieval (IR). All methods were trained on the same pairs, in the same order and with the same number of updates.",
    ),
    "breakdown": (
        "Breakdowns",
        "The same scores by what makes an example hard. Groups are small: read differences between neighbours with care.",
    ),
    "ablation": ("Ablations", "D2LLM with one of its parts changed or left out, everything else as before."),
    "sweep": ("Sweeps", "How scores move with one setting, all others as before."),
    "runtime": ("Runtime", "What training and search cost on the machine of this run. Times differ between machines."),
    "more": ("More tables and figures", "Further material of this run."),
}


@dataclass(frozen=True)
class Caption:
    """`title` names it, `text` says what is shown and how to read it, `alt` what a figure looks like to one who cannot see it."""

    section: str
    title: str
    text: str = ""
    alt: str = ""


TABLES: dict[str, Caption] = {
    "nli": Caption(
        "main",
        "Natural language inference",
        "Does the first sentence entail the second? Accuracy, average precision (AP), precision and recall of each method "
        "on two test sets: one of the patterns that training has shown (NLI-A), one of other patterns (NLI-B). AP is the "
        "number to compare by, as it needs no threshold.",
    ),
    "sts": Caption(
        "main",
        "Semantic textual similarity",
        "Do two sentences mean the same? Correlation of each method's score with the true similarity: graded similarity "
        "(STS-G), questions that ask the same (QMatch), sentences whose roles are exchanged (Swap). Spearman's rank "
        "correlation is the number to compare by.",
    ),
    "ir": Caption(
        "main",
        "Information retrieval",
        "Is the right passage found first? Mean reciprocal rank, recall and nDCG within the first ten passages, for "
        "questions (IR-Q), search words (IR-K) and claims (IR-C). MRR@10 is the number to compare by.",
    ),
}

FIGURES: dict[str, Caption] = {
    "main": Caption(
        "main",
        "Every method on every task",
        "One mark a method on each task's headline metric, the mean over seeds; further right is better. The cross-encoder "
        "teacher and BM25 frame the methods and are not ranked with them. Scales differ between panels.",
        "Dot plot, a panel each for NLI, STS and retrieval and a line a task, with one mark for every method; "
        "the tables of this section hold the same numbers.",
    ),
    "leads": Caption(
        "main",
        "D2LLM's lead over each baseline",
        "D2LLM's score minus each baseline's, with its confidence interval. Right of zero D2LLM is ahead. Filled marks "
        "are significant after correction over all comparisons, open ones are not.",
        "Interval plot of D2LLM minus each baseline on every task and on the average of each kind of task; the strongest "
        "baseline's row is in the table at the top of the report.",
    ),
    "phenomena": Caption(
        "breakdown",
        "NLI by phenomenon",
        "How well each method tells the pairs of one phenomenon (a word replaced by a more general one, roles exchanged, "
        "a denial, …) from the pairs of the other label: area under the ROC curve, where 1 is perfect and 0.5 is chance.",
        "Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number.",
    ),
}

REPORT = Caption(
    "main",
    "The whole run on one page",
    "All results of this run with how it was made: settings, data, methods, tuning, provenance, and what it cannot say. "
    "One file that needs no other and no network.",
)


def caption(kind: Kind, name: str) -> Caption:
    """The texts of a table or figure; for one that has none, its name as a title.

    >>> caption("figure", "some_thing")
    Caption(section='more', title='Some thing', text='', alt='')
    """
    known = TABLES if kind == "table" else FIGURES
    return known.get(name) or Caption("more", name.replace("_", " ").capitalize())


def rst(text: str) -> str:
    r"""Plain text with reStructuredText's special characters escaped; it takes `MRR@10` for an address otherwise.

    >>> print(rst("MRR@10 of a_b"))
    MRR\@10 of a\_b
    """
    return "".join(f"\\{character}" if character in "\\*`_|@" else character for character in text)

"""What every table and figure is called and says, for a reader who knows nothing else of this project.

The one home of these texts: the HTML report and Snakemake's report both show them. `{subject}` stands for the method whose leads are judged. Knows no file and no number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["table", "figure"]

# Sections of the report in their order, with a line of introduction.
SECTIONS: dict[str, tuple[str, str]] = {
    "main": (
        "Main results",
        "Every method on every task: natural language inference (NLI), semantic textual similarity (STS) and information "
        "retrieval (IR). All methods were trained on the same pairs in the same order; Table 5 has their updates.",
    ),
    "breakdown": (
        "Breakdowns",
        "The same scores by what makes an example hard. Groups are small: read differences between neighbours with care.",
    ),
    "ablation": ("Ablations", "D2LLM with one of its parts changed or left out, everything else as before."),
    "sweep": ("Sweeps", "How scores move with one setting, all others as before."),
    "training": ("Training", "How losses fell and development scores rose, and what was trained with which settings."),
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
    "ablation": Caption(
        "ablation",
        "D2LLM with one part changed",
        "Each row changes the settings in its brackets (a loss left out, another pooling, another way to score a pair, another teacher "
        "or student) and leaves the rest as it is; nothing is tuned anew. Arrows mark what is significantly above or below D2LLM "
        "as configured. Variants of other methods, where a run has any, stand below, each under its own method.",
    ),
    "settings": Caption(
        "training",
        "Data and settings",
        "What each method is trained with (model, trained parameters, pooling, scorer, loss, rates) and on, and how large every "
        "set of examples is.",
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
        "{subject}'s lead over each baseline",
        "{subject}'s score minus each baseline's, with its confidence interval. Right of zero {subject} is ahead. Filled marks "
        "are significant after correction over all comparisons, open ones are not.",
        "Interval plot of {subject} minus each baseline on every task and on the average of each kind of task; the strongest "
        "baseline's row is in the table at the top of the report.",
    ),
    "phenomena": Caption(
        "breakdown",
        "NLI by phenomenon",
        "How well each method tells the pairs of one phenomenon (a word replaced by a more general one, roles exchanged, "
        "a denial, …) from the pairs of the other label: area under the ROC curve, where 1 is perfect and 0.5 is chance.",
        "Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number.",
    ),
    "phenomena_sts": Caption(
        "breakdown",
        "Similarity by phenomenon",
        "How well each method orders the pairs of one phenomenon: area under the ROC curve where the truth is same or different, "
        "Spearman's rank correlation within the phenomenon where it is graded.",
        "Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number.",
    ),
    "phenomena_ir": Caption(
        "breakdown",
        "Retrieval by phenomenon",
        "Mean reciprocal rank of the right passage over the queries of one phenomenon.",
        "Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number.",
    ),
    "agreement": Caption(
        "breakdown",
        "Agreement with the teacher",
        "Above: D2LLM's score against the teacher's on the same examples. Below: the rank correlation of every method's scores with "
        "the teacher's. Only D2LLM has seen the teacher's scores of training pairs.",
        "Three density plots, rising from lower left to upper right where the two agree, and a dot plot of correlations.",
    ),
    "sweep_nli": Caption(
        "sweep",
        "Weights of the losses, NLI",
        "Average precision of D2LLM on both NLI sets when one weight is changed: α of the rank imitation over hard negatives, β of that "
        "against easy negatives, γ of the feature imitation; 0 leaves the loss out. The paper's Figure 3.",
        "Panels of lines, one a setting, with a mark at every value and a filled one at the configured value.",
    ),
    "sweep_ir": Caption(
        "sweep",
        "Weights of the losses, retrieval",
        "Mean reciprocal rank of D2LLM on the retrieval sets when one weight is changed, as in the figure for NLI. The paper's Figure 4.",
        "Panels of lines, one a setting, with a mark at every value and a filled one at the configured value.",
    ),
    "losses": Caption(
        "training",
        "Training curves",
        "Every term of each method's loss over its updates, its own pre-training stages included.",
        "Small multiples of falling lines, a panel a method and stage.",
    ),
    "dev": Caption(
        "training",
        "Development curves",
        "How good each method is while it trains, on a small fixed sample of development data.",
        "Three panels of rising lines, a panel a kind of task and a line a method.",
    ),
    "runtime": Caption(
        "runtime",
        "How long it takes",
        "Seconds to embed a text, to score a pair and to search a corpus of growing size, for a bi-encoder with cosine, D2LLM and the "
        "teacher that reads both texts. The paper's Figure 2.",
        "Bars or points of times and lines of search time over corpus size, on logarithmic axes.",
    ),
    "latency": Caption(
        "runtime",
        "Quality against latency",
        "Mean reciprocal rank on retrieval against the time of a whole search; upper left is better.",
        "Scatter plot, a point a method.",
    ),
    "architecture": Caption(
        "training",
        "Architecture",
        "Teacher and student as configured in this run, and which loss ties which of their parts. The paper's Figure 1.",
        "Diagram: on the left the teacher reads both texts at once; on the right the student embeds them apart and a small network "
        "scores the two vectors; dashed arrows between them are the imitation losses.",
    ),
}

REPORT = Caption(
    "main",
    "The whole run on one page",
    "All results of this run with how it was made: settings, data, methods, tuning, provenance, and what it cannot say. "
    "One file that needs no other and no network.",
)


def caption(kind: Kind, name: str, subject: str) -> Caption:
    """The texts of a table or figure, with the title of the method whose leads are judged; for one that has none, its name as a title.

    >>> caption("figure", "some_thing", "D2LLM")
    Caption(section='more', title='Some thing', text='', alt='')
    """
    known = TABLES if kind == "table" else FIGURES
    said = known.get(name) or Caption("more", name.replace("_", " ").capitalize())
    texts = {key: getattr(said, key).replace("{subject}", subject) for key in ("title", "text", "alt")}
    return replace(said, **texts)


def rst(text: str) -> str:
    r"""Plain text with reStructuredText's special characters escaped; it takes `MRR@10` for an address otherwise.

    >>> print(rst("MRR@10 of a_b"))
    MRR\@10 of a\_b
    """
    return "".join(f"\\{character}" if character in "\\*`_|@" else character for character in text)

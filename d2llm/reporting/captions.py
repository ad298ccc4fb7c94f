"""What every table and figure is called and says, for a reader who knows nothing else of this project; the HTML page
and Snakemake's report show it.

The texts stand in the heads of the tables' and figures' own modules (`config.catalogue`), and name what a run is about
by placeholders: `{subject}` for the method whose leads are judged, `{nli}` for the titles of the run's NLI sets,
`{nli_sets}` for these with their descriptions (`sts`, `ir` likewise). Knows no file and no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2llm.config.catalogue import Kind, entries
from d2llm.config.task_types import TASK_TYPES

if TYPE_CHECKING:
    from d2llm.reporting.context import Context

# Sections of the report in their order, with a line of introduction.
SECTIONS: dict[str, tuple[str, str]] = {
    # On the page beside the sentences that judge the claims.
    "claims": ("What holds", "The claim in question, judged kind of task by kind of task."),
    "main": (
        "Main results",
        "Every method on every task: natural language inference (NLI), semantic textual similarity (STS) and "
        "information retrieval (IR). All methods were trained on the same pairs in the same order; Table 5 has their "
        "updates.",
    ),
    "breakdown": (
        "Breakdowns",
        "The same scores by what makes an example hard. Where a group is small, read differences between neighbours "
        "with care.",
    ),
    "ablation": ("Ablations", "D2LLM with one of its parts changed or left out, everything else as before."),
    "sweep": ("Sweeps", "How scores move with one setting, all others as before."),
    "training": (
        "Training",
        "Losses and development scores over the updates, and what was trained with which settings.",
    ),
    "runtime": ("Runtime", "What training and search cost on the machine of this run. Times differ between machines."),
    "more": ("More tables and figures", "Further material of this run."),
}


@dataclass(frozen=True)
class Caption:
    """`title` names it, `text` says what is shown and how to read it, `alt` what a figure looks like to one who cannot
    see it.
    """

    section: str
    title: str
    text: str = ""
    alt: str = ""


REPORT = Caption(
    "main",
    "The whole run on one page",
    "All results of this run with how it was made: settings, data, methods, tuning, provenance, and what it cannot "
    "say. One file that needs no other and no network.",
)


def caption(kind: Kind, name: str, context: Context) -> Caption:
    """The texts of a table or figure, filled in for a run; for one that has none, its name as a title."""
    entry = entries(kind).get(name)
    head = dict(entry.caption) if entry else {"section": "more", "title": name.replace("_", " ").capitalize()}
    added = {True: head.pop("generated", ""), False: head.pop("files", "")}[context.generated]
    if added:
        head["text"] += f" {added}"
    words = {"subject": context.subject} | sets(context)
    return Caption(**{key: text.format_map(words) if key != "section" else text for key, text in head.items()})


def sets(context: Context) -> dict[str, str]:
    """The evaluation sets of each kind, by placeholder."""
    words: dict[str, str] = {}
    for kind in TASK_TYPES.values():
        own = context.sets.get(kind.group, ())
        words[kind.group] = listed([title for title, _ in own]) or "no set"
        words[f"{kind.group}_sets"] = (
            listed([f"{title} ({about})" if about else title for title, about in own]) or "no set"
        )
    return words


def listed(items: Sequence[str]) -> str:
    """Several things in a sentence.

    >>> listed(["A", "B", "C"])
    'A, B and C'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def rst(text: str) -> str:
    r"""Plain text with reStructuredText's special characters escaped; it takes `MRR@10` for an address otherwise.

    >>> print(rst("MRR@10 of a_b"))
    MRR\@10 of a\_b
    """
    return "".join(f"\\{character}" if character in "\\*`_|@" else character for character in text)

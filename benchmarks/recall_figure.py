"""The figure of recall against work: `python benchmarks/recall_figure.py TITLE=FILE … --to FOLDER`, from what
`search.py --json` wrote.

Left, recall@10 against the part of the passages that the module scores; right, against how many times faster than
scoring all of them a query is. Written as recall.svg, .pdf and .png.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.reporting.drawing.figures import FORMATS, render
from d2llm.reporting.style import LOOKS, SUBJECT_LOOK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

MODULE_LOOKS = [SUBJECT_LOOK, *LOOKS[:2]]
# What is asked of a search: this recall, with so much of the corpus scored.
RECALL, PART = 0.99, 0.02


def draw(_: Data | None, measured: dict[str, dict[str, Any]]) -> Figure:
    """A line a module in both panels."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.9), sharey=True)
    for (color, marker), (title, found) in zip(cycle(MODULE_LOOKS), measured.items(), strict=False):
        rows = [row for row in found["rows"] if row["part scored exactly"] < 1]
        recalls = [row["recall@10"] for row in rows]
        for axis, key in ((left, "part scored exactly"), (right, "times faster")):
            axis.plot([row[key] for row in rows], recalls, color=color, marker=marker, markersize=4, label=title)
    left.set_xscale("log")
    left.set_xticks([row["part scored exactly"] for row in rows])
    left.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    left.xaxis.set_minor_formatter("")
    left.axhline(RECALL, color="#7F7F7F", linewidth=0.8, linestyle=":")
    left.axvline(PART, color="#7F7F7F", linewidth=0.8, linestyle=":")
    right.axhline(RECALL, color="#7F7F7F", linewidth=0.8, linestyle=":")
    left.set_xlabel("part of the passages scored by the module")
    left.set_ylabel("recall@10 of the exhaustive search")
    right.set_xlabel("times faster than the exhaustive search")
    right.set_xlim(left=0)
    left.legend(loc="lower right", fontsize=7.5)
    sizes = sorted({f"{found['settings']['passages']:,}" for found in measured.values()}, key=len)
    figure.supxlabel(
        f"{' and '.join(sizes)} passages, one thread. Dotted: .99 at 2%, what is asked of the search. docs/performance.md says what was measured.",
        fontsize=7, color="#444444", x=0.01, ha="left",
    )  # fmt: skip
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("measured", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    pairs = (text.rpartition("=") for text in options.measured)
    measured = {title: json.loads(Path(file).read_text(encoding="utf-8")) for title, _, file in pairs}
    render(partial(draw, measured=measured), None, {ext: options.to / f"recall.{ext}" for ext in FORMATS})


if __name__ == "__main__":
    main()

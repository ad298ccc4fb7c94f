"""The figure of recall against work: from what `benchmarks/search.py --json FILE` kept, one line a file.

    python benchmarks/search.py --json matcher.json; python benchmarks/search.py --iem random --json random.json
    python benchmarks/recall_figure.py matcher.json random.json --to recall.svg

Measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from d2llm.reporting.figures import STYLE

MARKERS = "osD^v"
# From the style sheet of all figures' palette: told apart by those who see fewer colours, too.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")


def title(settings: dict[str, Any]) -> str:
    """What a line is of."""
    if "student" in settings:
        return f"trained student, {settings['passages']:,} passages"
    kind = {"matcher": "module as D2LLM's starts here", "random": "random module"}[settings["iem"]]
    return f"{kind}, {settings['passages']:,} passages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="its ending is the format: svg, pdf, png")
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
    with pyplot.style.context(STYLE):
        figure, axis = pyplot.subplots(figsize=(3.3, 2.7))
        for run, marker, color in zip(runs, MARKERS, COLORS, strict=False):
            rows = [row for row in run["rows"] if row["part scored exactly"] < 1]
            work = [100 * row["part scored exactly"] for row in rows]
            axis.plot(
                work, [row["recall@10"] for row in rows], marker=marker, color=color, label=title(run["settings"])
            )
            axis.plot(work, [row["least"] for row in rows], color=color, linewidth=0.6, linestyle=":")
        axis.axhline(0.99, color="#888888", linewidth=0.8, linestyle="--", zorder=1)
        axis.annotate("0.99", (1, 0.99), xycoords=("axes fraction", "data"), xytext=(-2, -8), textcoords="offset points", ha="right", color="#666666", fontsize=7)  # fmt: skip
        axis.set(xscale="log", xlabel="passages scored exactly, % of the corpus", ylabel="recall@10", ylim=(0, 1.03))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xticks([0.1, 0.25, 0.5, 1, 2], minor=False)
        axis.minorticks_off()
        axis.legend(loc="lower right")
        figure.supxlabel(
            "Mean over queries; dotted: the worst of them.", fontsize=7, color="#444444", x=0.01, ha="left"
        )
        options.to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.to, metadata={"Date": None} if options.to.suffix == ".svg" else None)


if __name__ == "__main__":
    main()

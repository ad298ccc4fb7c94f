"""How results are named and written, in one place for every table and figure."""

from __future__ import annotations

# Digits after the point of a score.
DECIMALS = 4

METRIC_TITLES: dict[str, str] = {
    "accuracy": "ACC",
    "ap": "AP",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auc": "AUC",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mrr_at_10": "MRR@10",
    "recall_at_10": "Recall@10",
    "ndcg_at_10": "nDCG@10",
}

REFERENCE_TITLES: dict[str, str] = {"teacher": "Teacher (cross-encoder)", "bm25": "BM25"}

CONTROLLED_TEXT = (
    "The texts are generated: this says something about mechanisms on controlled text only and is no evidence "
    "about the paper's numbers."
)


def number(value: float) -> str:
    """A score as it is printed."""
    return f"{value:.{DECIMALS}f}"


def signed(value: float) -> str:
    """A difference as it is printed, with a sign that is as wide as a digit."""
    return f"{value:+.{DECIMALS}f}".replace("-", "−")


# Okabe and Ito's palette, told apart by colour-blind readers; the shape says the same once more.
COLORS: dict[str, str] = {
    "d2llm": "#D55E00",
    "bge": "#0072B2",
    "retromae": "#56B4E9",
    "llara": "#009E73",
    "sgpt": "#E69F00",
    "udever": "#CC79A7",
    "teacher": "#000000",
    "bm25": "#7F7F7F",
}
MARKERS: dict[str, str] = {
    "d2llm": "D", "bge": "o", "retromae": "s", "llara": "^", "sgpt": "v", "udever": "P", "teacher": "|", "bm25": "|",
}  # fmt: skip
OTHER_COLORS = ("#332288", "#AA4499", "#44AA99", "#882255")
OTHER_MARKERS = ("X", "*", "h", "<")

# Behind the line of a task, and of their average.
BAND, BAND_AVERAGE = "#f6f6f6", "#ececec"
AVERAGE_TITLE = "Average"
GROUP_TITLES: dict[str, str] = {"nli": "NLI", "sts": "STS", "ir": "Retrieval"}


def look(name: str, methods: list[str]) -> tuple[str, str]:
    """Colour and marker of a method or reference row; methods without a fixed look take the spare ones in their order."""
    if name in COLORS:
        return COLORS[name], MARKERS[name]
    place = [other for other in methods if other not in COLORS].index(name)
    return OTHER_COLORS[place % len(OTHER_COLORS)], OTHER_MARKERS[place % len(OTHER_MARKERS)]

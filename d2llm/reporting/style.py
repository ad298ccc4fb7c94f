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
    "The texts are generated: the table says something about mechanisms on controlled text only and is no evidence "
    "about the paper's numbers."
)


def number(value: float) -> str:
    """A score as it is printed."""
    return f"{value:.{DECIMALS}f}"

"""Table 2 of the paper: semantic textual similarity."""

from __future__ import annotations

from d2llm.reporting.layout.main_table import MainTable

PLACE = 2
READS = ("scores", "comparisons", "standings")
CAPTION = {
    "section": "main",
    "title": "Semantic textual similarity",
    "text": (
        "Do two sentences mean the same? Correlation of each method's score with the true similarity on "
        "{sts_sets}. Spearman's rank correlation is the number to compare by."
    ),
}

TABLE = MainTable(
    "sts",
    "Table 2. Semantic textual similarity.",
    "sts",
    ("pearson", "spearman"),
    "Where the scores to predict are 0 or 1 and balanced, a perfect ranking has Spearman 0.866, not 1.",
)

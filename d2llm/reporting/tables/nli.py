"""Table 1 of the paper: natural language inference."""

from __future__ import annotations

from d2llm.reporting.layout.main_table import MainTable

PLACE = 1
READS = ("scores", "comparisons", "standings")
CAPTION = {
    "section": "main",
    "title": "Natural language inference",
    "text": (
        "Does the first sentence entail the second? Accuracy, average precision (AP), precision and recall of each"
        " method on {nli_sets}. AP is the number to compare by, as it needs no threshold."
    ),
}

TABLE = MainTable(
    "nli",
    "Table 1. Natural language inference.",
    "nli",
    ("accuracy", "ap", "precision", "recall"),
    "Accuracy is taken at the threshold that is best on the evaluated labels, precision and recall at that of the best "
    "F1, as mteb does, for every row alike.",
)

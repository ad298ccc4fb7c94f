"""Table 3 of the paper: information retrieval."""

from __future__ import annotations

from d2llm.reporting.layout.main_table import MainTable

PLACE = 3
READS = ("scores", "comparisons", "standings")
CAPTION = {
    "section": "main",
    "title": "Information retrieval",
    "text": (
        "Is the right passage found first? Mean reciprocal rank, recall and nDCG within the first ten passages on "
        "{ir_sets}. MRR@10 is the number to compare by."
    ),
}

TABLE = MainTable("ir", "Table 3. Information retrieval.", "ir", ("mrr_at_10", "recall_at_10", "ndcg_at_10"))

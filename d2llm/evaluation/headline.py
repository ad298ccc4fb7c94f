"""The one number that speaks for a task, by its type: what trials are judged by, methods compared by and figures show."""

HEADLINE = {"pair_classification": "ap", "sts": "spearman", "retrieval": "mrr_at_10"}

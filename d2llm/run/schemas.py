"""The columns of every table in a results folder, by file, with the kind of each (`artifacts.read_frame`): the one home
of their names.

And the words that stand in these columns. Reading and writing is elsewhere.
"""

PRETRAINING = {
    "text": "str",
    "paraphrase": "str",
    "distractor": "str",
    "next_text": "str",
    "slots": "list",
    "ask": "int",
    "negated": "int",
}
TRAIN_PAIRS = {"qid": "str", "query": "str", "positive": "str", "dataset": "str", "mode": "str", "marked": "list"}
POOL = {"dataset": "str", "text": "str"}
PAIRS = {
    "qid": "str",
    "query": "str",
    "positive": "str",
    "dataset": "str",
    "mode": "str",
    "pack": "int",
    "marked": "list",
    "negatives": "list",
}
TEACHER_PAIRS = {
    "mode": "str",
    "query": "str",
    "passages": "list",
    "target": "list",
    "label": "list",
    "relations": "list",
    "phenomenon": "list",
}
# Of an evaluation set: pairs (beside them their target, label or score), corpus and queries, and what is relevant.
TASK_PAIRS = {"id": "str", "query": "str", "passage": "str"}
TASK_TEXTS = {"id": "str", "text": "str"}
# Further columns of pairs and queries, each a way of grouping them: `by_genre`.
GROUPED_BY = "by_"
# The phenomenon, and the metric, of pairs set against their own reverse.
DIRECTION, FORWARD = "direction", "forward"
TASK_QRELS = {"query_id": "str", "doc_id": "str"}
TEACHER_SCORES = {"qid": "str", "yes": "list", "no": "list", "easy_yes": "list", "easy_no": "list", "features": "list"}
# Columns of the collected tables, in order, with their kinds; others are refused, so that none is lost silently.
SCORES: dict[str, str] = {
    "tier": "str",
    "method": "str",
    "variant": "str",
    "seed": "int",
    "split": "str",
    "task": "str",
    "task_title": "str",
    "task_type": "str",
    "group": "str",
    "scorer": "str",
    "candidates": "str",
    "phenomenon": "str",
    "metric": "str",
    "value": "float",
    "n": "int",
}
PREDICTIONS: dict[str, str] = {
    "tier": "str",
    "method": "str",
    "variant": "str",
    "seed": "int",
    "task": "str",
    "query_id": "str",
    "doc_id": "str",
    "cluster": "str",
    "score": "float",
    "label": "float",
    "relevant": "int",
    "phenomenon": "str",
}
SCORE_KEY = ["method", "variant", "seed", "task", "phenomenon", "metric"]
PREDICTION_KEY = ["method", "variant", "seed", "task", "query_id", "doc_id"]
# Columns of `runs.csv`, a training a row: parameters count scalars, times are seconds, memory is of the whole process.
RUNS: dict[str, str] = {
    "method": "str",
    "variant": "str",
    "seed": "int",
    "kind": "str",
    "pooling": "str",
    "scorer": "str",
    "updates": "int",
    "queries": "int",
    "negatives_per_query": "int",
    "backbone_trained": "int",
    "head_trained": "int",
    "parameters": "int",
    "seconds": "float",
    "pretext_seconds": "float",
    "peak_memory_mb": "float",
    "last_loss": "float",
}
# Columns of `curves.parquet`, a number a row, in the order of the logs.
CURVES: dict[str, str] = {
    "method": "str",
    "variant": "str",
    "seed": "int",
    "stage": "str",
    "step": "int",
    "name": "str",
    "value": "float",
}
FINE_TUNING = "fine-tuning"
DEV = "dev"
COMPARISONS = {
    "group": "str",
    "task": "str",
    "metric": "str",
    "method": "str",
    "baseline": "str",
    "strongest": "bool",
    "value": "float",
    "difference": "float",
    "low": "float",
    "high": "float",
    "p": "float",
    "p_holm": "float",
    "seeds": "int",
    "n": "int",
}
# Columns beside these that runs of before they were there do not have: the share of the baseline's error that is gone,
# with its interval; standard error over examples, standard deviation over seeds; the difference that would be found.
SIZES = {
    "effect": "float",
    "effect_low": "float",
    "effect_high": "float",
    "se_examples": "float",
    "sd_seeds": "float",
    "detectable": "float",
}
# Every pair of methods on a kind of task, and every method there: what `analysis.standings` makes of them.
VERDICTS = {
    "group": "str",
    "metric": "str",
    "method": "str",
    "baseline": "str",
    "difference": "float",
    "low": "float",
    "high": "float",
    "p": "float",
    "verdict": "str",
    "improvement": "float",
    "improvement_low": "float",
    "improvement_high": "float",
    "seeds": "int",
}
STANDINGS = {
    "group": "str",
    "metric": "str",
    "method": "str",
    "value": "float",
    "rank_low": "int",
    "rank_high": "int",
    "first": "bool",
    "iqm": "float",
    "iqm_low": "float",
    "iqm_high": "float",
    "seeds": "int",
}
AVERAGE = "average"
# Whose variants are the ablations; with whom methods are compared where nobody else is named.
SUBJECT = "d2llm"
# What is timed, with what its seconds are for.
PHASES: dict[str, str] = {
    "encode_query": "text",
    "encode_passage": "text",
    "score": "pair",
    "search": "query",
    "rerank": "query",
}
# `batch`: texts, or pairs of one query, computed at once. `corpus`: passages searched, 0 where none are. Times in
# seconds. Bytes are of a passage in the index and of its plain embedding; there are none where no vectors are stored.
RUNTIME: dict[str, str] = {
    "method": "str",
    "phase": "str",
    "per": "str",
    "batch": "int",
    "corpus": "int",
    "threads": "int",
    "device": "str",
    "median": "float",
    "q1": "float",
    "q3": "float",
    "repeats": "int",
    "extrapolated": "bool",
    "bytes_per_passage": "float",
    "embedding_bytes": "float",
}

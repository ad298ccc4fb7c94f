"""The types of evaluation sets: all that is known of one, in one place. Plain values; what computes with them names
none.

To measure one more of mteb's metrics: a line in `metrics` of its type, and a title in `METRIC_TITLES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from d2llm.config.recipes import Mode

TypeName = Literal["pair_classification", "sts", "retrieval"]
Group = Literal["nli", "sts", "ir"]

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
    "forward": "Forward share",
}


@dataclass(frozen=True)
class TaskType:
    """One type of evaluation set."""

    name: TypeName
    # The table its sets stand in: each has the metrics of one type. And what that is called.
    group: Group
    title: str
    # Symmetric: two texts of one kind; asymmetric: a query and a passage. The teacher's prompt, and a scorer's branch,
    # are the mode's.
    mode: Mode
    # What is predicted: a column of the pairs, or of the judgements.
    target: Literal["label", "score", "relevance"]
    # The metric to compare by.
    headline: str
    # Metric: mteb's key of it. `similarity_*`, `pearson` and `spearman` are of the model's own similarity; mteb's
    # main_score, max_* and cosine_* may be of the cosine of embeddings, which a method with its own scorer does not
    # use.
    metrics: Mapping[str, str]
    # The headline metric of a resample: a function of `analysis.statistics`.
    resampled: str
    # mteb's word for the type, the class that measures it, and the metric mteb itself compares by.
    mteb_type: str
    mteb_class: str
    mteb_main: str

    @property
    def headline_title(self) -> str:
        """What a column of it is called, e.g. "NLI AP"."""
        return f"{self.title} {METRIC_TITLES[self.headline]}"


TASK_TYPES: dict[str, TaskType] = {
    kind.name: kind
    for kind in (
        TaskType(
            name="pair_classification",
            group="nli",
            title="NLI",
            mode="symmetric",
            target="label",
            headline="ap",
            metrics={name: f"similarity_{name}" for name in ("accuracy", "ap", "precision", "recall", "f1")},
            resampled="average_precision",
            mteb_type="PairClassification",
            mteb_class="AbsTaskPairClassification",
            mteb_main="similarity_ap",
        ),
        TaskType(
            name="sts",
            group="sts",
            title="STS",
            mode="symmetric",
            target="score",
            headline="spearman",
            metrics={"pearson": "pearson", "spearman": "spearman"},
            resampled="spearman",
            mteb_type="STS",
            mteb_class="AbsTaskSTS",
            mteb_main="spearman",
        ),
        TaskType(
            name="retrieval",
            group="ir",
            title="IR",
            mode="asymmetric",
            target="relevance",
            headline="mrr_at_10",
            metrics={name: name for name in ("mrr_at_10", "recall_at_10", "ndcg_at_10")},
            resampled="mean",
            mteb_type="Retrieval",
            mteb_class="AbsTaskRetrieval",
            mteb_main="ndcg_at_10",
        ),
    )
}
# By mteb's word.
BY_MTEB_TYPE: dict[str, TaskType] = {kind.mteb_type: kind for kind in TASK_TYPES.values()}
# The metric to compare by, by type.
HEADLINE: dict[str, str] = {name: kind.headline for name, kind in TASK_TYPES.items()}

"""What mteb does not report: metrics per query and per phenomenon, from the very scores mteb was given.

Pure functions over arrays. Each breakdown yields rows (phenomenon, metric, value, n); a phenomenon on which a metric is
undefined yields no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log2

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

Row = tuple[str, str, float, int]
RETRIEVAL_METRICS = ("mrr_at_10", "recall_at_10", "ndcg_at_10")


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Document ids from best to worst; equal scores by id, descending, which is the rule of mteb and trec_eval."""
    return [doc for doc, _ in sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)]


def per_query(
    results: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]], k: int = 10
) -> pd.DataFrame:
    """MRR, recall and nDCG at `k` of every query, indexed by query id; 0 for a query without a relevant document.

    nDCG's gain is the relevance itself and its discount log2(rank + 1), as in trec_eval; recall counts relevance > 0.
    """
    rows = {}
    for query, scores in results.items():
        gains = [qrels[query].get(doc, 0) for doc in ranking(scores)[:k]]
        ideal = sorted((g for g in qrels[query].values() if g > 0), reverse=True)
        first = next((rank for rank, gain in enumerate(gains, 1) if gain > 0), None)
        rows[query] = {
            f"mrr_at_{k}": 0.0 if first is None else 1.0 / first,
            f"recall_at_{k}": sum(gain > 0 for gain in gains) / len(ideal) if ideal else 0.0,
            f"ndcg_at_{k}": _sum_discounted(gains) / _sum_discounted(ideal[:k]) if ideal else 0.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _sum_discounted(gains: Sequence[float]) -> float:
    return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, 1))


def pair_breakdown(scores: np.ndarray, labels: np.ndarray, phenomena: Sequence[str]) -> Iterator[Row]:
    """Average precision and area under the ROC curve per phenomenon, for labels 0 and 1, each of shape (n,).

    A phenomenon is what makes a pair hard: its negatives are set against all positives, and a phenomenon that only
    positives have is set against all negatives. AP depends on the share of positives, so it compares methods within a
    phenomenon; AUC may also be compared between phenomena.
    """
    phenomenon_of = np.asarray(phenomena)
    for name in sorted(set(phenomenon_of.tolist())):
        members = phenomenon_of == name
        label = 0 if (labels[members] == 0).any() else 1
        chosen = (members & (labels == label)) | (labels != label)
        yield name, "ap", float(average_precision_score(labels[chosen], scores[chosen])), int(chosen.sum())
        yield name, "auc", float(roc_auc_score(labels[chosen], scores[chosen])), int(chosen.sum())


def sts_breakdown(scores: np.ndarray, targets: np.ndarray, phenomena: Sequence[str]) -> Iterator[Row]:
    """Pearson and Spearman correlation within each phenomenon; AP and AUC where the targets have two values only.

    Binary similarity (question matching, role swaps) gives a phenomenon a single target, which correlates with nothing.
    """
    values = np.unique(targets)
    if len(values) == 2:
        yield from pair_breakdown(scores, (targets == values[1]).astype(int), phenomena)
        return
    phenomenon_of = np.asarray(phenomena)
    for name in sorted(set(phenomenon_of.tolist())):
        members = phenomenon_of == name
        if members.sum() < 3 or len(np.unique(targets[members])) < 2 or len(np.unique(scores[members])) < 2:
            continue
        yield name, "pearson", float(pearsonr(targets[members], scores[members])[0]), int(members.sum())
        yield name, "spearman", float(spearmanr(targets[members], scores[members])[0]), int(members.sum())


def grouped_breakdown(scores: np.ndarray, targets: np.ndarray, groups: Sequence[str]) -> Iterator[Row]:
    """Each group of pairs by itself: AP and AUC of its own positives against its own negatives where targets have two
    values, else Pearson and Spearman correlation. "" is no group.
    """
    group_of, values = np.asarray(groups), np.unique(targets)
    for name in sorted(set(group_of.tolist()) - {""}):
        members = group_of == name
        target, score, count = targets[members], scores[members], int(members.sum())
        if len(np.unique(target)) < 2:
            continue
        if len(values) == 2:
            label = (target == values[1]).astype(int)
            yield name, "ap", float(average_precision_score(label, score)), count
            yield name, "auc", float(roc_auc_score(label, score)), count
        elif count >= 3 and len(np.unique(score)) > 1:
            yield name, "pearson", float(pearsonr(target, score)[0]), count
            yield name, "spearman", float(spearmanr(target, score)[0]), count


def forward(scores: np.ndarray, reversed_scores: np.ndarray) -> float:
    """The share of pairs whose score is above that of the same pair read the other way; what rounding may part is a
    tie, and counts half.
    """
    tied = np.isclose(scores, reversed_scores, rtol=1e-5, atol=1e-6)
    return float(np.where(tied, 0.5, scores > reversed_scores).mean())


def retrieval_breakdown(queries: pd.DataFrame, phenomena: Mapping[str, str]) -> Iterator[Row]:
    """Means of the per-query metrics (`per_query`'s frame) over the queries of each phenomenon."""
    grouped = queries.groupby(queries.index.map(phenomena), sort=True)
    for name, frame in grouped:
        for metric in frame.columns:
            yield str(name), str(metric), float(frame[metric].mean()), len(frame)

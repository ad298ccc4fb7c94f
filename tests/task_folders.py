"""Tiny evaluation sets in the suite's own format, and a student without a language model."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from d2llm.models.scorers.base import Scorer


def write_task(folder: Path, task_type: str, group: str, **more) -> Path:
    about = {"name": folder.name, "title": f"Set {folder.name}", "type": task_type, "group": group}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | {"description": "made for a test"} | more)
    (folder / "task.json").write_text(text, encoding="utf-8")
    return folder


def pair_task(root: Path, name: str = "nli_x", n: int = 40, split: str = "test") -> Path:
    rng = np.random.default_rng(0)
    folder = write_task(root / name, "pair_classification", "nli")
    label = np.arange(n) % 2
    columns = {
        "id": [f"p{i}" for i in range(n)],
        # Every premise has two hypotheses, so that texts repeat.
        "query": [f"前提{i // 2}" for i in range(n)],
        "passage": [f"假设{i}" for i in range(n)],
        "label": label,
        "phenomenon": np.where(label == 1, "entailed", rng.choice(["reversed", "antonym"], n)),
    }
    pd.DataFrame(columns).to_parquet(folder / f"{split}.parquet")
    return folder


def sts_task(root: Path, name: str = "sts_x", n: int = 30, binary: bool = False) -> Path:
    rng = np.random.default_rng(1)
    folder = write_task(root / name, "sts", "sts", min_score=0, max_score=1 if binary else 5)
    columns = {
        "id": [f"s{i}" for i in range(n)],
        "query": [f"甲{i}" for i in range(n)],
        "passage": [f"乙{i}" for i in range(n)],
        "score": rng.integers(0, 2, n).astype(float) if binary else rng.uniform(0, 5, n).round(2),
        "phenomenon": ["swap" if i % 3 else "synonym" for i in range(n)],
    }
    pd.DataFrame(columns).to_parquet(folder / "test.parquet")
    return folder


def retrieval_task(root: Path, name: str = "ir_x", queries: int = 12, passages: int = 150) -> Path:
    rng = np.random.default_rng(2)
    folder = write_task(root / name, "retrieval", "ir")
    inside = folder / "test"
    inside.mkdir(exist_ok=True)
    corpus = [(f"d{i}", f"段落{i}号") for i in range(passages)]
    asked = [(f"q{i}", f"问题{i}", "when" if i % 2 else "who") for i in range(queries)]
    qrels = [
        (f"q{i}", f"d{doc}", int(rng.integers(1, 4)))
        for i in range(queries)
        for doc in rng.choice(passages, 1 + i % 3 * 6, replace=False)
    ]
    pd.DataFrame(corpus, columns=["id", "text"]).to_parquet(inside / "corpus.parquet")
    pd.DataFrame(asked, columns=["id", "text", "phenomenon"]).to_parquet(inside / "queries.parquet")
    pd.DataFrame(qrels, columns=["query_id", "doc_id", "relevance"]).to_parquet(inside / "qrels.parquet")
    return folder


class DirectedScorer(Scorer):
    """pairs(q, p) = q·W_mode·p, W of each mode not symmetric: head and order show in the score."""

    name = "iem"

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weights = {mode: torch.randn(size, size, generator=generator) for mode in ("symmetric", "asymmetric")}
        self.modes: set[str] = set()

    def pairs_cached(self, q: torch.Tensor, p: torch.Tensor, mode: str) -> torch.Tensor:
        return self.matrix_cached(q, p, mode).diagonal()

    def matrix_cached(self, q: torch.Tensor, p: torch.Tensor, mode: str) -> torch.Tensor:
        self.modes.add(mode)
        return q @ self.weights[mode] @ p.T


class FakeStudent:
    """Encodes a text as random numbers seeded by text, role and mode; records what it was asked to encode."""

    def __init__(self, size: int = 6) -> None:
        self.size = self.width = size
        self.scorer = DirectedScorer(size)
        self.encoded: list[tuple[str, str, str]] = []

    def vector(self, text: str, role: str, mode: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(f"{role}|{mode}|{text}".encode()))
        return rng.normal(size=self.size).astype(np.float32)

    def encode(self, texts: list[str], role: str, mode: str, batch_size: int = 256) -> np.ndarray:
        self.encoded += [(text, role, mode) for text in texts]
        return np.stack([self.vector(text, role, mode) for text in texts])

    def score(self, query: str, passage: str, mode: str) -> float:
        """One pair, by hand."""
        q, p = self.vector(query, "query", mode), self.vector(passage, "passage", mode)
        return float(q @ self.scorer.weights[mode].numpy() @ p)

"""Searching many passages with the IEM: recall of the ten best against the part of the passages that is scored exactly.

The reference is the exhaustive search, which scores every pair. Passages are synthetic vectors in heaps, or, with
`--student`, texts of the generated world embedded by a trained student (results/mini/runs/d2llm/base/seed1/model).
Times are of one query, all queries of a call together.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, publish

from d2llm.models.scorers.iem import IEM
from d2llm.search.index import PASSAGE_BLOCK, Index

SHARES = (0.001, 0.0025, 0.005, 0.01, 0.02)


class Vectors:
    """Stands for a student whose embeddings are there already."""

    def __init__(self, scorer: IEM) -> None:
        self.scorer = scorer.eval()


def heaps(count: int, width: int, centres: int, seed: int) -> np.ndarray:
    """(count, width) vectors of unit variance around random centres: 64% of it between heaps."""
    rng = np.random.default_rng(seed)
    middle = np.random.default_rng(0).normal(size=(centres, width)).astype(np.float32)
    return 0.8 * middle[rng.integers(centres, size=count)] + 0.6 * rng.standard_normal((count, width), dtype=np.float32)


def synthetic(options: Any) -> tuple[Index, np.ndarray]:
    torch.manual_seed(0)
    kind = {"init": "matcher", "activation": "squared_relu"} if options.iem == "matcher" else {}
    scorer = IEM(options.width, options.hidden, **kind)
    with torch.no_grad():  # far from what it starts as
        for weight in scorer.parameters():
            weight.add_(options.noise * weight.std(correction=0) * torch.randn_like(weight))
    student, parts = Vectors(scorer), []
    for number, start in enumerate(range(0, options.passages, 1 << 16)):
        vectors = heaps(min(1 << 16, options.passages - start), options.width, options.heaps, number + 1)
        parts.append(Index.of_vectors(student, vectors, range(len(vectors)), precision=options.precision))
    cache = torch.cat([part.cache for part in parts])
    scale = None if parts[0].scale is None else torch.cat([part.scale for part in parts])
    index = Index(student, cache, parts[0].vector_bytes, scale=scale)
    return index, heaps(options.queries, options.width, options.heaps, 10**6)


def trained(options: Any) -> tuple[Index, np.ndarray]:
    from d2llm.data.world import generate as world
    from d2llm.models.student import Student

    student = Student.load(options.student)
    texts: dict[str, None] = {}
    seed = 0
    while len(texts) < options.passages:
        seed += 1
        texts.update(dict.fromkeys(world.pretraining(np.random.default_rng([7, seed]), 50_000)["text"]))
    index = Index.build(student, list(texts)[: options.passages], precision=options.precision)
    made = world.retrieval(np.random.default_rng(3), "test", "keyword", options.queries)
    return index, student.encode(made["queries"]["text"].tolist()[: options.queries], "query", "asymmetric")


def main() -> None:
    options = arguments(
        __doc__ or "",
        passages={"type": int, "default": 1_000_000},
        queries={"type": int, "default": 20},
        width={"type": int, "default": 512, "help": "d"},
        hidden={"type": int, "default": 512, "help": "h"},
        heaps={"type": int, "default": 1000},
        noise={"type": float, "default": 0.1, "help": "how far every weight is moved, in spreads of its layer"},
        iem={"choices": ("matcher", "random"), "default": "matcher", "help": "what the module starts as"},
        precision={"choices": ("full", "float16", "int8"), "default": "float16"},
        student={"type": Path, "help": "a trained student's folder"},
    )
    started = time.perf_counter()
    index, queries = trained(options) if options.student else synthetic(options)
    built = time.perf_counter() - started
    print(
        f"{len(index)} passages indexed in {built:.0f} s, {index.bytes_per_passage} bytes each, {PASSAGE_BLOCK} a block"
    )
    started = time.perf_counter()
    exact = index.search_vectors(queries, 10)
    whole = (time.perf_counter() - started) / len(queries)
    rows = [
        {
            "part scored exactly": 1.0,
            "recall@10": 1.0,
            "least": 1.0,
            "ms a query": 1000 * whole,
            "times faster": 1.0,
            "first, ms": None,
        }
    ]
    # Of few passages more than the share is scored: several shares may be one search.
    for share in sorted({index.budget(share, 10): share for share in SHARES}.values()):
        started = time.perf_counter()
        index.search_vectors(queries[:1], 10, share)  # fits what all queries share
        fitted = time.perf_counter() - started
        started = time.perf_counter()
        found = index.search_vectors(queries, 10, share)
        seconds = (time.perf_counter() - started) / len(queries)
        hit = [len(set(a.tolist()) & set(b.tolist())) / 10 for (a, _), (b, _) in zip(exact, found, strict=True)]
        scored = (index.budget(share, 10) or len(index)) / len(index)
        rows.append(
            {"part scored exactly": scored, "recall@10": float(np.mean(hit)), "least": min(hit), "ms a query": 1000 * seconds,
             "times faster": whole / seconds, "first, ms": 1000 * fitted}
        )  # fmt: skip
    settings = {"passages": len(index), "queries": len(queries), "precision": options.precision}
    settings |= (
        {"student": "trained"}
        if options.student
        else {
            "d": options.width,
            "h": options.hidden,
            "heaps": options.heaps,
            "iem": options.iem,
            "noise": options.noise,
        }
    )
    publish("search", rows, settings, options.json)


if __name__ == "__main__":
    main()

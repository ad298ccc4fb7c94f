"""How cost grows: with pairs, corpus size, d, h, hard negatives and batch, each over at least four sizes.

A power law is fitted to them. The others stay at a default while one grows. An exponent of 1 is proportional, of 0 no
growth; what is fixed in a call (a first product, a start) pulls it down. Teacher and students are those of a finished
run (`make`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, publish

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.methods.registry import method
from d2llm.models.backbone import Backbone
from d2llm.models.scorers.iem import IEM
from d2llm.run.paths import Paths
from d2llm.search.index import Index
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training.optimization import optimizer, schedule, step
from d2llm.training.pairs import PairData


def seconds(call: Callable[[], Any], least: float, repeats: int = 5) -> float:
    """Median seconds of a call after one that is not counted; a call shorter than `least` is repeated within a measurement."""
    started = time.perf_counter()
    call()
    count = max(1, int(least / max(1e-9, time.perf_counter() - started)))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - started) / count)
    return float(np.median(times))


class Vectors:
    """Stands for a student whose embeddings are there already."""

    def __init__(self, scorer: IEM) -> None:
        self.scorer = scorer.eval()


def searching(passages: int, width: int, hidden: int) -> Callable[[], Any]:
    """One query against an index."""
    torch.manual_seed(0)
    index = Index.of_vectors(
        Vectors(IEM(width, hidden)), np.random.default_rng(0).normal(size=(1, width)).astype(np.float32), [0]
    )
    index.cache = torch.randn(passages, hidden)
    query = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    return lambda: index.search_vectors(query, 10)


def indexing(passages: int, width: int, hidden: int) -> Callable[[], Any]:
    """Passage caches of embedded passages."""
    torch.manual_seed(0)
    student = Vectors(IEM(width, hidden))
    vectors = np.random.default_rng(0).normal(size=(passages, width)).astype(np.float32)
    return lambda: Index.of_vectors(student, vectors, np.arange(passages))


def teaching(config: Config, results: Paths, pairs: int) -> Callable[[], Any]:
    """The teacher on the first positives and negatives of the training pairs."""
    import pandas as pd

    teacher = Teacher.load(results.teacher("teacher") / "model", config.teacher)
    rows = pd.read_parquet(results.pairs)
    rows = rows[rows["mode"] == "symmetric"]
    groups = [(query, list(wrong)) for query, wrong in zip(rows["query"], rows["negatives"], strict=True)]
    width = len(groups[0][1])
    return lambda: teacher.score(groups[: pairs // width], "symmetric")


def training(path: str, results: Paths, name: str, batch_size: int, negatives: int) -> Callable[[], Any]:
    """One update."""
    chosen = method(name)
    changes = {"include": [], "results": str(results.root.parent), "methods": {name: {"hard_negatives": negatives}}}
    config = load([path], changes)
    recipe = config.recipe(name)
    student = chosen.build(Backbone.load(results.base(chosen.base(recipe)), chosen.kind), recipe)
    student.limit_length(config.training.max_length)
    student.train()
    adam = optimizer(chosen.parameter_groups(student, recipe), recipe.betas, recipe.epsilon)
    plan = schedule(adam, "constant", 0, 1000)
    batch = next(iter(PairData.load(config, chosen).batches(batch_size, 1, 1))).narrowed(negatives)
    return lambda: step(
        None, [chosen.objective(student, student(batch), batch, recipe)], adam, plan, recipe.clip, "benchmark"
    )


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of log seconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    options = arguments(
        __doc__ or "",
        config={"default": "config/mini.yaml", "help": "a tier"},
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run of it"},
        only={"default": "", "help": "the cases whose name holds this"},
        least={"type": float, "default": 0.3, "help": "seconds of a measurement, at least"},
    )
    config, results = load([options.config], {"include": []}), Paths(options.results)
    cases: list[tuple[str, str, list[int], Callable[[int], Callable[[], Any]]]] = [
        ("teacher scoring", "pairs", [64, 128, 256, 512, 1024], lambda n: teaching(config, results, n)),
        ("search, one query", "passages", [4096, 16384, 65536, 262144], lambda n: searching(n, 256, 256)),
        ("search, one query", "d", [128, 256, 512, 1024, 2048], lambda n: searching(16384, n, 256)),
        ("search, one query", "h", [64, 128, 256, 512, 1024], lambda n: searching(16384, 256, n)),
        ("indexing", "passages", [1024, 4096, 16384, 65536], lambda n: indexing(n, 256, 256)),
        ("indexing", "d", [128, 256, 512, 1024, 2048], lambda n: indexing(4096, n, 256)),
        ("indexing", "h", [64, 128, 256, 512, 1024], lambda n: indexing(4096, 512, n)),
        (
            "update of D2LLM",
            "hard negatives",
            [1, 2, 3, 4],
            lambda n: training(options.config, results, "d2llm", 16, n),
        ),
        ("update of D2LLM", "batch", [8, 16, 32, 64], lambda n: training(options.config, results, "d2llm", n, 4)),
        (
            "update of Udever",
            "hard negatives",
            [1, 2, 3, 4],
            lambda n: training(options.config, results, "udever", 16, n),
        ),
        ("update of Udever", "batch", [8, 16, 32, 64], lambda n: training(options.config, results, "udever", n, 4)),
    ]
    rows = []
    cases = [case for case in cases if options.only in f"{case[0]} {case[1]}"]
    for what, variable, sizes, make in cases:
        values = [seconds(make(size), options.least) for size in sizes]
        rows.append(
            {"what": what, "grows with": variable, "sizes": " ".join(map(str, sizes)),
             "ms": " ".join(f"{1000 * value:.3g}" for value in values), "exponent": exponent(sizes, values)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    publish("growth", rows, {"tier": config.tier}, options.json)


if __name__ == "__main__":
    main()

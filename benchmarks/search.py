"""Searching many passages: recall of the ten best and time of a query by lists looked into, for a student's scorer and for
a cosine over the very same vectors, in lists of the same kind; memory and seconds of building both.

The reference of either is its exhaustive search. Passages are synthetic vectors in heaps, or, with `--student`, texts of
the generated world embedded by a trained student (results/mini/runs/d2llm/base/seed1/model). Times in the first table are
of queries one by one. The second table compares both where each first finds 99%, in turns: one by one and all at once, and
faiss alone with the cosine's lists, without exact scores of what it finds.
"""

from __future__ import annotations

import itertools
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Timed, arguments, publish, rounds, table
from torch import nn

from d2llm.models.scorers.cosine import Cosine
from d2llm.models.scorers.iem import IEM
from d2llm.search.index import Hits, Index, found_of

ENOUGH = 0.99
BLOCK = 8192


class Known(nn.Module):
    """Stands for a student whose embeddings are there already: a text is the number of a vector."""

    def __init__(self, scorer: nn.Module, vectors: Any, queries: np.ndarray) -> None:
        super().__init__()
        self.scorer, self.vectors, self.asked = scorer.eval(), vectors, queries

    def encode(self, texts: list[str], role: str, mode: str = "asymmetric", batch_size: int = 256) -> np.ndarray:
        numbers = np.array(texts, dtype=int)
        return np.asarray(self.asked if role == "query" else self.vectors)[numbers]

    def description(self) -> dict[str, Any]:
        return {"scorer": type(self.scorer).__name__}


class Heaps:
    """(count, width) vectors of unit variance around random centres, 64% of it between heaps, made as they are asked
    for in blocks.
    """

    def __init__(self, width: int, centres: int) -> None:
        self.width, self.middle = width, np.random.default_rng(0).normal(size=(centres, width)).astype(np.float32)

    def made(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        heap = self.middle[rng.integers(len(self.middle), size=count)]
        return 0.8 * heap + 0.6 * rng.standard_normal((count, self.width), dtype=np.float32)


class Kept:
    """A student whose embeddings of passages are written down as they are made, for another scorer to have the same."""

    def __init__(self, student: Any, file: Path) -> None:
        self.student, self.file, self.seconds = student, file, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.student, name)

    def encode(self, texts: list[str], role: str, *options: Any) -> np.ndarray:
        started = time.perf_counter()
        vectors = self.student.encode(texts, role, *options)
        self.seconds += time.perf_counter() - started
        if role == "passage":
            with self.file.open("ab") as stream:
                stream.write(vectors.astype(np.float32).tobytes())
        return vectors


def synthetic(options: Any, file: Path) -> tuple[Any, Iterator[str], list[str]]:
    """A stand-in, its passages, and its queries; the vectors lie in a file."""
    torch.manual_seed(0)
    kind = {"init": "matcher", "activation": "squared_relu"} if options.iem == "matcher" else {}
    scorer = IEM(options.width, options.hidden, **kind)
    with torch.no_grad():  # far from what it starts as
        for weight in scorer.parameters():
            weight.add_(options.noise * weight.std(correction=0) * torch.randn_like(weight))
    heaps = Heaps(options.width, options.heaps)
    with file.open("wb") as stream:
        for start in range(0, options.passages, BLOCK):
            stream.write(heaps.made(min(BLOCK, options.passages - start), start + 1).tobytes())
    vectors = np.memmap(file, dtype=np.float32, mode="r").reshape(-1, options.width)
    count = options.queries + options.judged
    return (
        Known(scorer, vectors, heaps.made(count, 10**9)),
        map(str, range(options.passages)),
        list(map(str, range(count))),
    )


def embedded(options: Any, file: Path) -> tuple[Any, Iterator[str], list[str]]:
    """A student's scorer with vectors that an earlier run of `trained` kept (`--vectors`)."""
    student, _, asked = trained(options, file)
    file.symlink_to(options.vectors.resolve())
    queries = student.encode(asked, "query")
    vectors = np.memmap(file, dtype=np.float32, mode="r").reshape(-1, queries.shape[1])
    count = min(options.passages, len(vectors))
    return Known(student.scorer, vectors, queries), map(str, range(count)), list(map(str, range(len(asked))))


def trained(options: Any, file: Path) -> tuple[Any, Iterator[str], list[str]]:
    """A student with texts of its world, which are made as they are embedded."""
    from d2llm.data.world import generate as world
    from d2llm.models.student import Student

    def texts() -> Iterator[str]:
        for seed in itertools.count(1):
            yield from world.pretraining(np.random.default_rng([7, seed]), 20_000)["text"]

    retrieval = world.retrieval(np.random.default_rng(3), "test", "keyword", options.queries + options.judged)
    asked = retrieval["queries"]["text"].tolist()[: options.queries + options.judged]
    return Kept(Student.load(options.student), file), itertools.islice(texts(), options.passages), asked


def measured(what: str, index: Index, queries: np.ndarray) -> list[dict[str, Any]]:
    """A row of the exhaustive search and one for every number of lists, until all is found."""

    def timed(**options: Any) -> tuple[Hits, float]:
        if not options.get("exact"):
            index.search_vectors(queries, 10, **options)  # pages in, makes room
        started = time.perf_counter()
        hits = [index.search_vectors(queries[i : i + 1], 10, **options)[0] for i in range(len(queries))]
        return hits, 1000 * (time.perf_counter() - started) / len(queries)

    exact, whole = timed(exact=True)
    rows = [{"scores": what, "lists": "all scored", "recall@10": 1.0, "ms a query": whole, "times faster": 1.0}]
    nprobe, most = 1, 0 if index.lists is None else len(index.lists.sizes)
    while nprobe <= most:
        hits, spent = timed(nprobe=nprobe)
        recall = found_of(exact, hits)
        rows.append(
            {"scores": what, "lists": f"{nprobe} of {most}", "recall@10": recall, "ms a query": spent, "times faster": whole / spent}
        )  # fmt: skip
        nprobe *= 2
        if recall >= 0.999:
            break
    return rows


def faiss_alone(index: Index, nprobe: int) -> tuple[Any, Any]:
    """A plain IVF index of faiss over the same lists, which routes by itself."""
    import faiss

    lists, centroids = index.lists, index.lists.centroids.cpu().numpy()
    coarse = faiss.IndexFlatIP(centroids.shape[1])
    coarse.add(centroids)
    kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    plain = faiss.IndexIVFScalarQuantizer(coarse, centroids.shape[1], len(centroids), kind, metric, False)
    plain.is_trained, plain.nprobe, plain.ntotal = True, nprobe, len(index.cache)
    faiss.downcast_InvertedLists(lists.faiss_index.invlists).prefetch_nthread = 0  # else 32 threads a search
    plain.replace_invlists(lists.faiss_index.invlists, False)
    return plain, coarse  # which it does not keep alive


def compared(own: tuple[Index, int], other: tuple[Index, int], queries: np.ndarray) -> list[dict[str, Any]]:
    """Milliseconds a query of both with their numbers of lists, medians of rounds, and how many cosines' one takes."""
    singles = [queries[i : i + 1] for i in range(len(queries))]
    (plain, _coarse), units = (
        faiss_alone(*other),
        other[0].student.scorer.query_cache(torch.from_numpy(queries)).numpy(),
    )

    def search(index: Index, nprobe: int, parts: list[np.ndarray]) -> None:
        for part in parts:
            index.search_vectors(part, 10, nprobe=nprobe)

    timed: Timed = rounds(
        {
            "own, one by one": lambda: search(*own, singles),
            "cosine, one by one": lambda: search(*other, singles),
            "faiss alone, one by one": lambda: [plain.search(units[i : i + 1], 10) for i in range(len(units))],
            "own, all at once": lambda: search(*own, [queries]),
            "cosine, all at once": lambda: search(*other, [queries]),
            "faiss alone, all at once": lambda: plain.search(units, 10),
        },
        15,
    )
    rows = []
    for name in timed.seconds:
        least, median, most = timed.ratio(f"own, {name.partition(', ')[2]}", name)
        row = {"search": name, "ms a query": 1000 * timed.median(name) / len(queries), "own takes times": median}
        rows.append(row | {"least": least, "most": most})
    return rows


def built(student: Any, texts: Any, judged: list[str], options: Any, folder: Path) -> tuple[Index, dict[str, Any]]:
    """An index with lists, and what it took: seconds, the most memory so far (MB), bytes on the disk."""
    started = time.perf_counter()
    index = Index.build(student, texts, 256, "asymmetric", options.precision, "faiss", judged, folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cost = {"seconds": time.perf_counter() - started, "peak MB": peak, "MB on disk": size / 2**20}
    if index.lists is not None:
        lists = index.lists
        cost |= {"lists chosen": lists.nprobe, "scored": lists.budget, "numbers a passage": lists.faiss_index.d}
        cost |= {"recall when built": lists.recall}
    return index, cost


def main() -> None:
    options = arguments(
        __doc__ or "",
        passages={"type": int, "default": 1_000_000},
        queries={"type": int, "default": 20},
        width={"type": int, "default": 512, "help": "d"},
        hidden={"type": int, "default": 512, "help": "h"},
        heaps={"type": int, "default": 1000},
        judged={"type": int, "default": 64, "help": "queries that lists are chosen and judged by when they are made"},
        noise={"type": float, "default": 0.1, "help": "how far every weight is moved, in spreads of its layer"},
        iem={"choices": ("matcher", "random"), "default": "matcher", "help": "what the module starts as"},
        precision={"choices": ("full", "float16", "int8"), "default": "float16"},
        student={"type": Path, "help": "a trained student's folder"},
        vectors={"type": Path, "help": "the student's embeddings of the passages, in place of embedding them"},
        folder={"type": Path, "help": "where the indexes are built and removed: 6 kB a passage at d = h = 512"},
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place, source = Path(name), synthetic
        if options.student:
            source = embedded if options.vectors else trained
        student, texts, asked = source(options, place / "vectors")
        judged, asked = asked[: options.judged], asked[options.judged :]
        index, cost = built(student, texts, judged, options, place / "own")
        vectors = np.memmap(place / "vectors", dtype=np.float32, mode="r").reshape(-1, index.vector_bytes // 4)
        encoded, every = student.encode(asked, "query"), student.encode([*judged, *asked], "query")
        known = Known(Cosine(), vectors, every)
        numbers = list(map(str, range(len(every))))
        other, others = built(
            known, map(str, range(len(index.cache))), numbers[: options.judged], options, place / "cosine"
        )
        rows = measured("own", index, encoded) + measured("cosine", other, encoded)
        print(table(rows), flush=True)
        enough = [first(rows, name) for name in ("own", "cosine")]
        ratios = compared((index, enough[0]), (other, enough[1]), encoded)
    settings = {
        "scorer": "a trained student's module" if options.student else f"module, init {options.iem}",
        "passages": len(index),
        "distinct": len(index.cache),
        "queries": len(asked),
        "precision": options.precision,
        "d": index.vector_bytes // 4,
        "h": index.cache.shape[1],
        "heaps": None if options.student else options.heaps,
    }
    for what, spent in (("own", cost), ("cosine", others)):
        settings |= {f"{what} {name}": round(value, 3) for name, value in spent.items()}
    if isinstance(student, Kept):
        settings["seconds of encoding"] = round(student.seconds, 1)
    publish("search", rows, settings, options.json)
    print(table(ratios))
    if options.json:
        report = json.loads(options.json.read_text())
        options.json.write_text(json.dumps(report | {"at recall": ENOUGH, "ratios": ratios}, indent=1) + "\n")


def first(rows: list[dict[str, Any]], scores: str) -> int:
    """The least number of lists that finds enough; all, where none does."""
    lists = [row for row in rows if row["scores"] == scores and row["lists"] != "all scored"]
    return int(next((row for row in lists if row["recall@10"] >= ENOUGH), lists[-1])["lists"].split()[0])


if __name__ == "__main__":
    main()

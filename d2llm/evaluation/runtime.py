"""Stage `runtime`: how long each method takes to embed, to score and to search, beside the teacher and BM25.

Wall time on the GPU where there is one, else on the CPU with `config.threads` threads, the job alone on the machine
(workflow/rules/runtime.smk). Texts are those of the retrieval tasks, or of the pairs where there is none. A corpus
larger than theirs repeats their vectors: what scoring a vector costs does not depend on its content. What is timed, and
how it is to be read, is in docs/evaluation.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from d2llm.config.schema import Run
from d2llm.data.negatives.bm25 import Bm25, tokens
from d2llm.evaluation import tasks
from d2llm.run.artifacts import atomic, require
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PHASES, RUNTIME

if TYPE_CHECKING:
    from d2llm.config.evaluation import RuntimeSettings
    from d2llm.config.schema import Config
    from d2llm.teacher.cross_encoder import Teacher

# By name, so that an edit of it makes no measurement stale of those without such rows (`run.stages`).
PUBLISHED = "d2llm.evaluation.rows.published"
# Passages a search returns: what the headline metric of retrieval looks at.
DEPTH = 10
# A median and quartiles of fewer would say nothing.
LEAST = 3

logger = get_logger("runtime")


class Texts(NamedTuple):
    """What is timed on: queries and passages of all retrieval tasks (of pairs, first and second texts), each mixed."""

    queries: list[str]
    passages: list[str]

    def cycled(self, count: int) -> list[str]:
        """`count` passages; where there are not as many they come again."""
        return list(islice(cycle(self.passages), count))


class Timing(NamedTuple):
    """One measurement: seconds (repeats,) for each `PHASES[phase]`."""

    phase: str
    batch: int
    corpus: int
    seconds: np.ndarray
    extrapolated: bool = False
    bytes_per_passage: float = float("nan")
    embedding_bytes: float = float("nan")


def run(config: Config) -> None:
    """Write `runtime.csv`: every method (as configured, first seed) and reference row; columns in `runtime_table`.

    Raises:
        DataError: a task is damaged. ArtifactError: a model is missing or damaged.
    """
    import torch

    paths = Paths.of(config)
    texts = read_texts(config)
    for method in config.methods:  # a missing one is named before minutes of measuring
        require(paths.run(method, "base", config.seeds[0]) / "model")
    torch.set_num_threads(config.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows: list[dict[str, Any]] = []
    for name, measure in systems(config, texts):
        started = time.perf_counter()
        for timing in measure():
            rows.append(row(name, config.threads, device, timing))
        logger.info("%s measured in %.1f s", name, time.perf_counter() - started)
    with atomic(paths.runtime) as temporary:
        pd.DataFrame(rows, columns=list(RUNTIME)).to_csv(
            temporary, index=False, encoding="utf-8", lineterminator="\n", float_format="%.6g"
        )


def systems(config: Config, texts: Texts) -> Iterator[tuple[str, Callable[[], Iterator[Timing]]]]:
    """What is measured, by name: methods, then reference rows."""
    from d2llm.models.device import default_device
    from d2llm.models.student import Student
    from d2llm.teacher.load import load as load_teacher

    paths, settings, evaluation = Paths.of(config), config.runtime, config.evaluation
    for method in config.methods:
        student = Student.load(paths.run(method, "base", config.seeds[0]) / "model").to(default_device())
        yield method, partial(student_timings, student, texts, settings, evaluation.batch_size)
    for name in config.published():
        published = import_module(PUBLISHED).load(config, Run(name, "base", config.seeds[0]))
        yield name, partial(published_timings, published, texts, settings)
    # Both other reference rows look words up in the same indexes.
    bm25 = partial(Bm25, kind=evaluation.bm25.tokens, k1=evaluation.bm25.k1, b=evaluation.bm25.b)
    asked = {"teacher", "bm25"} & set(config.rows())
    lexical = {size: bm25(texts.cycled(size)) for size in settings.corpus_sizes} if asked else {}
    if "teacher" in config.references:
        teacher = load_teacher(require(paths.teacher_model), config.teacher)
        yield "teacher", partial(teacher_timings, config, teacher, texts, lexical)
    if "bm25" in config.references:
        yield "bm25", partial(bm25_timings, bm25, lexical, texts, settings, evaluation.batch_size)


def read_texts(config: Config) -> Texts:
    """Queries and passages of every retrieval task there is, evaluated or not, in one mixed order, so that a batch
    holds texts of all.

    Where no task is of retrieval, the first texts of all pairs are the queries and the second ones the passages.
    """
    paths = Paths.of(config)
    read = [tasks.read(paths.task(name), config.evaluation.split) for name in tasks.names(paths.tasks)]
    retrieval = [task for task in read if task.type == "retrieval"]
    rng = np.random.default_rng(0)
    if retrieval:
        sides = [pd.concat([getattr(task, side)["text"] for task in retrieval]) for side in ("queries", "corpus")]
    else:
        sides = [
            pd.concat([task.pairs[side] for task in read if task.pairs is not None]) for side in ("query", "passage")
        ]
    return Texts(*(rng.permutation(np.array(side.unique(), dtype=object)).tolist() for side in sides))


def row(name: str, threads: int, device: str, timing: Timing) -> dict[str, Any]:
    """A line of the table."""
    q1, median, q3 = np.quantile(timing.seconds, [0.25, 0.5, 0.75])
    values = timing._asdict() | {"method": name, "per": PHASES[timing.phase], "threads": threads, "device": device}
    return values | {"median": median, "q1": q1, "q3": q3, "repeats": len(timing.seconds)}


def clock(call: Callable[[Any], Any], arguments: Sequence[Any], settings: RuntimeSettings) -> np.ndarray:
    """Seconds (repeats,) of calls, each with the next argument, the first of which is a warm-up and does not count.

    At most `settings.repeats`, and no more once they took `settings.seconds` together, but never fewer than three.
    """
    call(arguments[0])
    seconds: list[float] = []
    for number in range(1, settings.repeats + 1):
        argument = arguments[number % len(arguments)]
        started = time.perf_counter()
        call(argument)
        seconds.append(time.perf_counter() - started)
        if len(seconds) >= LEAST and sum(seconds) >= settings.seconds:
            break
    return np.array(seconds)


# ------------------------------------------------------------------------------------------------------------- systems
def student_timings(student: Any, texts: Texts, settings: RuntimeSettings, batch: int) -> Iterator[Timing]:
    """A bi-encoder: queries one at a time, passages in batches, one query with a batch of passages, whole searches."""
    from d2llm.models.precision import scoring
    from d2llm.search.index import Index, on_device

    timed_queries = texts.queries[: settings.repeats + 1]
    seconds = clock(lambda query: student.encode([query], "query", "asymmetric", 1), timed_queries, settings)
    yield Timing("encode_query", 1, 0, seconds)
    encoded: list[np.ndarray] = []
    # More batches than are timed come again.
    batches = [texts.cycled((number + 1) * batch)[-batch:] for number in range(settings.repeats + 1)]
    seconds = clock(
        lambda part: encoded.append(student.encode(part, "passage", "asymmetric", batch)), batches, settings
    )
    yield Timing("encode_passage", batch, 0, seconds / batch)

    vectors, scorer = np.concatenate(encoded), student.scorer
    queries = on_device(student, student.encode(timed_queries, "query", "asymmetric", batch))
    with scoring():
        left = scorer.query_cache(queries)
        right = Index.of_vectors(student, vectors, np.arange(batch) % len(vectors)).cache
        lines = [left[number : number + 1] for number in range(len(left))]
        # Brought back, which on a GPU is when they are there.
        seconds = clock(lambda query: scorer.matrix_cached(query, right, "asymmetric").cpu(), lines, settings)
    yield Timing("score", batch, 0, seconds / batch)
    for size in settings.corpus_sizes:
        index = Index.of_vectors(student, vectors, np.arange(size) % len(vectors))

        def find(query: str, index: Index = index) -> Any:
            return index.search([query], DEPTH)

        yield Timing(
            "search",
            1,
            size,
            clock(find, timed_queries, settings),
            bytes_per_passage=index.bytes_per_passage,
            embedding_bytes=index.vector_bytes,
        )


def published_timings(row: Any, texts: Texts, settings: RuntimeSettings) -> Iterator[Timing]:
    """A published model (`rows.published`): as a bi-encoder, compared as mteb does it, without an index."""
    import torch

    batch, timed_queries = row.batch_size, texts.queries[: settings.repeats + 1]
    row.begin(SimpleNamespace(name="runtime", type="Retrieval", prompt=None))
    query, passage = (partial(row.encode, side=row.side(role)) for role in ("query", "passage"))
    yield Timing("encode_query", 1, 0, clock(lambda text: query([text]), timed_queries, settings))
    encoded: list[np.ndarray] = []
    batches = [texts.cycled((number + 1) * batch)[-batch:] for number in range(settings.repeats + 1)]
    seconds = clock(lambda part: encoded.append(passage(part)), batches, settings)
    yield Timing("encode_passage", batch, 0, seconds / batch)
    vectors = torch.from_numpy(np.concatenate(encoded)).to(row.device)

    def nearest(asked: np.ndarray, corpus: torch.Tensor) -> Any:
        scores = torch.as_tensor(row.model.similarity(torch.from_numpy(asked).to(row.device), corpus))
        return scores.topk(min(DEPTH, len(corpus))).indices.cpu()

    lines, some = np.split(query(timed_queries), len(timed_queries)), vectors[torch.arange(batch) % len(vectors)]
    yield Timing("score", batch, 0, clock(lambda line: nearest(line, some), lines, settings) / batch)
    size_of = float(vectors.shape[1] * vectors.element_size())
    for size in settings.corpus_sizes:
        corpus = vectors[torch.arange(size) % len(vectors)]

        def find(text: str, corpus: torch.Tensor = corpus) -> Any:
            return nearest(query([text]), corpus)

        seconds = clock(find, timed_queries, settings)
        yield Timing("search", 1, size, seconds, bytes_per_passage=size_of, embedding_bytes=size_of)


def teacher_timings(config: Config, teacher: Teacher, texts: Texts, lexical: dict[int, Bm25]) -> Iterator[Timing]:
    """The cross-encoder reads every pair: a batch of pairs, whole corpora, and the re-ranking this suite uses it for.

    Corpora beyond `runtime.teacher_pairs` are extrapolated: that many pairs are read, and their time grows with the
    corpus.
    """
    from d2llm.data.negatives.encoder import base_encoder
    from d2llm.search.index import Index

    settings, evaluation = config.runtime, config.evaluation
    timed_queries = texts.queries[: settings.repeats + 1]

    def reads(passages: list[str]) -> np.ndarray:
        """Seconds of reading all passages with one query."""
        return clock(lambda query: best(teacher, query, passages, DEPTH), timed_queries, settings)

    batch = evaluation.batch_size
    yield Timing("score", batch, 0, reads(texts.cycled(batch)) / batch)
    for size, seconds, extrapolated in grown(
        lambda count: reads(texts.cycled(count)), settings.corpus_sizes, settings.teacher_pairs
    ):
        yield Timing("search", 1, size, seconds, extrapolated)

    # The candidates of a query: first of BM25, first of the pipeline's encoder (rows/teacher.py), here from ready
    # indexes.
    depths, encoder = evaluation.teacher_candidates, base_encoder(config)
    vectors = encoder.encode(texts.passages[: batch * 4], "passage", "symmetric", batch)
    for size in settings.corpus_sizes:
        passages = texts.cycled(size)
        dense = Index.of_vectors(encoder, vectors, np.arange(size) % len(vectors), "symmetric")

        def rerank(query: str, size: int = size, dense: Index = dense, passages: list[str] = passages) -> None:
            rows = [lexical[size].top(query, depths.bm25)[0]]
            if depths.dense:
                rows.append(dense.search([query], depths.dense)[0][0])
            best(teacher, query, [passages[place] for place in np.unique(np.concatenate(rows))], DEPTH)

        yield Timing("rerank", depths.bm25 + depths.dense, size, clock(rerank, timed_queries, settings))


def best(teacher: Teacher, query: str, passages: list[str], depth: int) -> np.ndarray:
    """Rows of the `depth` passages the teacher likes best."""
    logits = teacher.score([(query, passages)], "asymmetric")[0]
    return np.argsort(logits[:, 1] - logits[:, 0], kind="stable")[:depth]


def grown(
    measure: Callable[[int], np.ndarray], sizes: Sequence[int], most: int
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """(size, seconds, whether extrapolated): measured up to `most`, beyond it the seconds of `most` grown in
    proportion.
    """
    measured: dict[int, np.ndarray] = {}
    for size in sizes:
        count = min(size, most)
        if count not in measured:
            measured[count] = measure(count)
        yield size, measured[count] * (size / count), size > count


def bm25_timings(
    build: Callable[[list[str]], Bm25], lexical: dict[int, Bm25], texts: Texts, settings: RuntimeSettings, batch: int
) -> Iterator[Timing]:
    """BM25: cutting a query into words, indexing a batch of passages, scoring them all (query cut anew), whole
    searches.
    """
    timed_queries, part = texts.queries[: settings.repeats + 1], texts.cycled(batch)
    index = build(part)
    yield Timing("encode_query", 1, 0, clock(lambda query: tokens(query, index.kind), timed_queries, settings))
    yield Timing("encode_passage", batch, 0, clock(build, [part], settings) / batch)
    yield Timing("score", batch, 0, clock(index.scores, timed_queries, settings) / batch)
    for size, corpus_index in lexical.items():
        yield Timing("search", 1, size, clock(partial(corpus_index.top, depth=DEPTH), timed_queries, settings))

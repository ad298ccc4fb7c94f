"""A searchable index of passages for a trained student: what its scorer needs of every passage, computed once.

For D2LLM that is Wp·p + b1 of every passage (`passage_cache`), from which its scores follow exactly; for a cosine the
unit vector. It may be kept in half or eight-bit precision. A search scores every passage, in blocks of both sides that
bound the memory, or, in an index with `candidates`, those that inner products say are worth it. A saved index is
mapped, not read, and written a block at a time (`store`): it may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from d2llm.models.device import block_bytes
from d2llm.models.precision import scoring
from d2llm.models.student import check_several
from d2llm.run.artifacts import read_json, write_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.logs import get_logger, progress
from d2llm.search.candidates import BUDGETS, Lists
from d2llm.search.ranking import AsGiven, best, kept, ranked
from d2llm.search.store import Distinct, Store, blocks, digests_of

if TYPE_CHECKING:
    from d2llm.config.recipes import Mode

# On a CPU. A block of 256 queries × 4096 passages is 4 MB of float32 scores.
QUERY_BLOCK = 256
PASSAGE_BLOCK = 4096
# So few passages are searched whole, whatever `candidates` says: lists would save little, and cost the fit.
FEW = 5000
# By what lists are chosen and judged when they are made: part of the ten best passages of so many queries.
RECALL, RECALL_DEPTH, RECALL_QUERIES = 0.99, 10, 64
# Texts embedded at a time while an index is built.
BUILD_BLOCK = 8192
# Bump when the layout of a saved index changes; layout 2, which is still read, has a row for every passage.
LAYOUT = 3
# What mends a saved index: no rule of the workflow makes one.
AGAIN = "build it again (`d2llm index`, or Index.build and save)"
# Of inverted lists: what is small, and what faiss maps.
LISTS, DATA = "lists.safetensors", "lists.data"
# Which texts there were, while an index is built.
SEEN = "seen.sqlite"

Hits = list[tuple[np.ndarray, np.ndarray]]
Ties = Tensor | AsGiven
# "full": the type the scorer computes in.
Precision = Literal["full", "float16", "int8"]


class Index:
    """Passages ready to be searched by one student.

    `cache` (r, c) is the scorer's passage cache, in `precision`; `scale` (r, parts) what each part of a row of int8 is
    multiplied by. `places` (m,) is the row of the cache of each passage, in the order given: equal texts share one, so
    that their scores are equal too; None: passage i has row i. `vector_bytes` is what one plain embedding takes.
    Passages are told by their number in the order given: texts are the caller's.

    >>> import d2llm
    >>> student = d2llm.load("model")
    >>> index = d2llm.Index.build(student, ["人在看书。", "猫不吃花。", "狗在地。"], precision="float16")
    >>> ((rows, scores),) = index.search(["人在看书。"], depth=2)
    >>> len(index), rows.shape, bool(scores[0] >= scores[1])
    (3, (2,), True)
    >>> index.save("index")
    >>> len(d2llm.Index.load("index", student))
    3
    """

    def __init__(
        self,
        student: Any,
        cache: Tensor,
        vector_bytes: int = 0,
        mode: Mode = "asymmetric",
        scale: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.student, self.cache, self.vector_bytes, self.mode, self.scale = student, cache, vector_bytes, mode, scale
        self.places = places
        self.digests: Tensor | None = None
        self.lists: Lists | None = None
        self._members: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def build(
        cls,
        student: Any,
        passages: Iterable[str],
        batch_size: int = 256,
        mode: Mode = "asymmetric",
        precision: Precision = "full",
        candidates: Literal["faiss"] | None = None,
        queries: Sequence[str] | None = None,
        to: str | Path | None = None,
    ) -> Index:
        """Encode passages, each distinct text once, and keep what the student's scorer needs of them.

        `to`: a folder; the index is written there as passages come, of which neither all texts nor all rows need fit
        into the memory, and is mapped. candidates: "faiss" makes inverted lists besides (`add_lists`).
        Raises ConfigError for a precision there is not, TypeError for one text in place of several.
        """
        check_several("passages", passages)
        if candidates is not None:
            check_candidates(student.scorer, candidates, passages, queries)
        place = None if to is None else emptied(Path(to))
        seen = Distinct(None if place is None else place / SEEN)
        try:
            parts = encoded(student, passages, seen, batch_size, mode, precision)
            index = gathered(parts) if place is None else written(parts, place)
        finally:
            seen.close()
        if candidates is not None:
            index.add_lists(queries if queries is not None else spread(passages), place)
        return index

    @classmethod
    def of_vectors(
        cls,
        student: Any,
        vectors: np.ndarray,
        rows: Sequence[int] | np.ndarray,
        mode: Mode = "asymmetric",
        precision: Precision = "full",
    ) -> Index:
        """An index whose passage i has the embedding `vectors[rows[i]]`; vectors (n, d) as the student encodes them."""
        table = on_device(student, vectors)
        chosen = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=table.device)
        with scoring():
            parts = [
                stored(student.scorer, table[chosen[start : start + PASSAGE_BLOCK]], precision)
                for start in range(0, max(1, len(chosen)), PASSAGE_BLOCK)
            ]
        cache = torch.cat([part for part, _ in parts])
        scale = joined([part for _, part in parts])
        return cls(student, cache, table.shape[1] * table.element_size(), mode, scale)

    def __len__(self) -> int:
        return len(self.cache if self.places is None else self.places)

    @property
    def bytes_per_passage(self) -> int:
        """What the index holds of one distinct passage."""
        row = self.cache.shape[1] * self.cache.element_size()
        return row + (0 if self.scale is None else self.scale.shape[1] * self.scale.element_size())

    # --------------------------------------------------------------------------------------------------------- search
    def search(
        self,
        queries: Sequence[str],
        depth: int,
        ties: np.ndarray | None = None,
        nprobe: int | None = None,
        exact: bool = False,
    ) -> Hits:
        """For every query the numbers of the `depth` best passages and their scores, best first.

        `ties` (m,): of passages with equal scores the one with the smaller tie number is first (`ranking.by_id` gives
        the evaluation's rule); None: the first in the order given. An index with candidates looks into its `nprobe`
        best lists (None: as many as found nearly all when they were made), unless all scores are asked for (`exact`).
        Scores are exact either way; `recall` measures what is found. Raises ConfigError for a depth or a number of
        lists there cannot be, TypeError for one text in place of several.
        """
        check_several("queries", queries)
        vectors = self.student.encode(list(queries), "query", self.mode)
        return self.search_vectors(vectors, depth, ties, nprobe, exact)

    def search_vectors(
        self,
        queries: np.ndarray,
        depth: int,
        ties: np.ndarray | None = None,
        nprobe: int | None = None,
        exact: bool = False,
    ) -> Hits:
        """The same for embedded queries (n, d). Scores that are not finite come as +inf, first, for the caller to
        refuse.
        """
        for name, value in (("depth", depth), ("nprobe", 1 if nprobe is None else nprobe)):
            if value < 1:
                raise ConfigError(f"{name}: expected a number of at least 1; found {value!r}")
        q = on_device(self.student, queries)
        if ties is not None and len(ties) != len(self):
            raise ValueError(f"ties: expected a number for each of the {len(self)} passages; found {len(ties)}")
        # Rows stand in the order in which their first passages came.
        of_rows = AsGiven() if ties is None else on_device(self.student, self._ties_of_rows(np.asarray(ties)))
        hits: Hits = []
        with scoring():
            size, _ = score_block(q.device)
            for first in range(0, len(q), size):
                block = self.student.scorer.query_cache(q[first : first + size])
                best_rows: Iterable[tuple[Tensor, Tensor]]
                if self.lists is None or exact:
                    # Brought together: a query at a time would wait for the GPU as often as there are queries.
                    best_rows = zip(*(side.cpu() for side in self._all(block, depth, of_rows)), strict=True)
                else:
                    best_rows = self._some(block, depth, nprobe, of_rows)
                hits.extend((rows.cpu().numpy(), scores.cpu().numpy()) for scores, rows in best_rows)
        return hits if self.places is None else shared(hits, depth, *self.members, ties)

    def _ties_of_rows(self, ties: np.ndarray) -> np.ndarray:
        """(m,) tie numbers of passages → (r,) of the cache's rows, the smallest of each."""
        if self.places is None:
            return ties
        smallest = np.full(len(self.cache), np.iinfo(np.int64).max)
        np.minimum.at(smallest, self.places.numpy(), ties)
        return smallest

    @property
    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """The passages (m,) row by row, and where each row's begin (r + 1,)."""
        if self._members is None:
            assert self.places is not None
            places = self.places.numpy()
            counts = np.bincount(places, minlength=len(self.cache))
            self._members = np.argsort(places, kind="stable"), np.append(0, np.cumsum(counts))
        return self._members

    def recall(self, queries: Sequence[str], depth: int = 10, nprobe: int | None = None) -> float:
        """Part of the `depth` best passages that a search finds, in the mean of some queries."""
        check_several("queries", queries)
        vectors = self.student.encode(list(queries), "query", self.mode)
        return found_of(
            self.search_vectors(vectors, depth, exact=True), self.search_vectors(vectors, depth, None, nprobe)
        )

    def add_lists(self, queries: Sequence[str], folder: str | Path | None = None) -> None:
        """Make inverted lists, by which searches of many passages find their candidates; of few there are none.

        One half of the queries chooses how many lists a search looks into and how many passages it scores: as few as
        find `RECALL` of their ten best passages. The other half measures what is then found, `lists.recall`. `folder`:
        of an index that is saved there; its lists are then written, not held.
        """
        place = None if folder is None else emptied(Path(folder), (LISTS, DATA))
        if len(self.cache) <= FEW:
            get_logger(__name__).info("%d distinct passages: searched whole, without lists", len(self.cache))
            return
        vectors = self.student.encode(list(queries), "query", self.mode)
        choosing, judging = vectors[::2], vectors[1::2] if len(vectors) > 1 else vectors
        with scoring():
            file, cached = None if place is None else place / DATA, self._cached(choosing)
            self.lists = Lists.make(self.student.scorer, self.rows, len(self.cache), file, cached, self.mode)
        self._choose(self.lists, choosing)
        exact = self.search_vectors(judging, RECALL_DEPTH, exact=True)
        self.lists.recall = found_of(exact, self.search_vectors(judging, RECALL_DEPTH))
        about = (len(self.lists.sizes), self.lists.nprobe, self.lists.recall, RECALL_DEPTH, len(judging))
        get_logger(__name__).info("%d lists: %d of them find %.3f of the %d best passages of %d queries", *about)
        if place is not None:
            save_lists(self.lists, place)

    def _choose(self, lists: Lists, vectors: np.ndarray) -> None:
        """Set how many lists are looked into, then how many passages are scored."""
        exact = self.search_vectors(vectors, RECALL_DEPTH, exact=True)
        lists.nprobe, enough = 1, RECALL
        while (recall := found_of(exact, self.search_vectors(vectors, RECALL_DEPTH))) < enough:
            if lists.nprobe >= len(lists.sizes):
                enough = recall
                break
            lists.nprobe = min(2 * lists.nprobe, len(lists.sizes))
        if not self.student.scorer.smooth:
            return
        for budget in BUDGETS:
            lists.budget = budget
            if found_of(exact, self.search_vectors(vectors, RECALL_DEPTH)) >= enough:
                lists.budget = 2 * budget
                return

    def _cached(self, vectors: np.ndarray) -> Tensor:
        """Embedded queries (n, d) → (n, c), where the scorer computes."""
        return self.student.scorer.query_cache(on_device(self.student, vectors))

    def _all(self, block: Tensor, depth: int, ties: Ties) -> tuple[Tensor, Tensor]:
        """(n, c) queries, (r,) tie numbers → scores and rows (n, depth) of the best, all of them scored."""

        def scores(rows: Tensor) -> Tensor:
            return finite(self.student.scorer.matrix_cached(block, rows, self.mode).float())

        return ranked(*self._best(len(block), depth, scores, ties), ties)

    def _some(self, block: Tensor, depth: int, nprobe: int | None, ties: Ties) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, query by query, of those rows that the lists say are worth it."""
        assert self.lists is not None

        # Twice what is asked for, as float16 may swap neighbours.
        for rows, scores in self.lists.search(block, self._exact, 2 * depth, nprobe):
            kept_scores, kept_rows = best(scores[None], rows[None], ties, depth)
            yield kept_scores[0], kept_rows[0]

    def _exact(self, block: Tensor, which: Tensor) -> Tensor:
        """(n, c) queries → (n, k) scores of these passages."""
        return finite(self.student.scorer.matrix_cached(block, self.rows(which), self.mode).float())

    def _best(self, count: int, depth: int, scores_of: Callable[[Tensor], Tensor], ties: Ties) -> tuple[Tensor, Tensor]:
        """Scores and rows (count, depth) of what `scores_of` finds best, equal scores in any order; a block of the
        cache at a time.
        """
        device = on_device(self.student, self.cache[:0]).device
        scores = [torch.empty(count, 0, device=device)]
        index = [torch.empty(count, 0, dtype=torch.long, device=device)]
        waiting = 0
        _, size = score_block(device)
        starts = range(0, len(self.cache), size)
        for start in progress(starts, "searching, blocks of passages") if len(starts) > 1 else starts:
            rows = self.rows(slice(start, start + size))
            scores.append(scores_of(rows))
            index.append(torch.arange(start, start + len(rows), device=device).expand(count, -1))
            waiting += len(rows)
            # Merged when as much waits as is kept: with a merge for every block, many candidates would cost their
            # number times that of blocks.
            if waiting >= depth or start == starts[-1]:
                merged = kept(torch.cat(scores, dim=1), torch.cat(index, dim=1), ties, depth)
                scores, index, waiting = [merged[0]], [merged[1]], 0
        return scores[0], index[0]

    def rows(self, which: Tensor | slice) -> Tensor:
        """(k, c) rows of the index where the scorer computes, as it made them, up to the loss of the precision they are
        kept in.
        """
        which = which.to(self.cache.device) if isinstance(which, Tensor) else which
        chosen = on_device(self.student, self.cache[which])
        if self.scale is not None:
            scale = on_device(self.student, self.scale[which])
            parts = self.student.scorer.cache_parts(chosen.shape[1])
            chosen = torch.cat(
                [part.float() * scale[:, i : i + 1] for i, part in enumerate(chosen.split(list(parts), dim=1))], dim=1
            )
        parameter = next(iter(self.student.scorer.parameters()), None)
        return chosen.to(torch.float32 if parameter is None else parameter.dtype)

    # -------------------------------------------------------------------------------------------------- save and load
    def save(self, folder: str | Path) -> None:
        """Write `index.safetensors` and `index.json`, which names the student by a digest of its weights and by its
        `settings`.
        """
        from safetensors.torch import save_file

        folder = emptied(Path(folder))
        parts = {"cache": self.cache, "scale": self.scale, "places": self.places}
        held = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
        save_file(held, str(folder / "index.safetensors"))
        self._describe(folder)
        if self.lists is not None:
            self.lists.save(folder / DATA)
            save_lists(self.lists, folder)

    def _describe(self, folder: Path) -> None:
        """Write `index.json`."""
        about: dict[str, Any] = {"layout": LAYOUT, "mode": self.mode, "vector_bytes": self.vector_bytes}
        about |= {"student": weights(self.student), "settings": settings(self.student)}
        write_json(folder / "index.json", about | {"shape": list(self.cache.shape)})

    @classmethod
    def merge(cls, student: Any, shards: Sequence[str | Path], to: str | Path) -> Index:
        """The index of all passages of some shards, one after the other, as `build` would have made it, without lists.

        Raises ConfigError for shards that were not built with `to`, or differ in mode or precision.
        """
        first, place = cls.load(shards[0], student), emptied(Path(to))
        store, seen = Store(place), Distinct(place / SEEN)
        try:
            for folder in shards:
                shard = cls.load(folder, student)
                if shard.digests is None or (shard.mode, shard.cache.dtype) != (first.mode, first.cache.dtype):
                    raise ConfigError(
                        f"{folder}: expected a shard that `d2llm index`, or Index.build with `to`, wrote, of the mode and "
                        f"precision of {shards[0]}"
                    )
                append(store, shard, seen)
        finally:
            seen.close()
        return finished(store, first)

    @classmethod
    def load(cls, folder: str | Path, student: Any, mapped: bool = True) -> Index:
        """A saved index of this very student. Raises ArtifactError when it is missing, damaged or another student's.

        `mapped`: it stays in its file, and a search reads of it what it needs; otherwise it is brought where the
        student computes.
        """
        from safetensors import safe_open

        folder = Path(folder)
        check_there(folder)
        about = read_json(folder / "index.json", AGAIN)
        try:
            with safe_open(str(folder / "index.safetensors"), framework="pt") as parts:
                cache = parts.get_tensor("cache")
                scale, places, digests = (
                    parts.get_tensor(name) if name in parts.keys() else None  # noqa: SIM118 - not a dict
                    for name in ("scale", "places", "digests")
                )
            fits = about["layout"] in (2, LAYOUT) and about["shape"] == list(cache.shape)
            mode, vector_bytes, owner = about["mode"], int(about["vector_bytes"]), about["student"]
            held = dict(about.get("settings", {}))  # older indexes have the digest alone
        except Exception as error:  # noqa: BLE001 - any way a file can be broken ends in the same advice
            raise ArtifactError(f"{folder}: not a saved index ({type(error).__name__}: {error}); {AGAIN}") from error
        if not fits:
            raise ArtifactError(f"{folder}: index.json is not of index.safetensors or of another layout; {AGAIN}")
        check_owner(folder, held, owner, student)
        if not mapped:
            cache = on_device(student, cache.clone())
            scale = None if scale is None else on_device(student, scale.clone())
            places = None if places is None else places.clone()
        index = cls(student, cache, vector_bytes, mode, scale, places)
        index.digests = digests
        if (folder / LISTS).is_file():
            index.lists = load_lists(index, folder)
        return index


# ------------------------------------------------------------------------------------------------------------- building
# A part of an index: rows (None: none yet), their digests, and the rows of the passages read.
Part = tuple[Index | None, Tensor, Tensor]


def check_candidates(scorer: Any, candidates: str, passages: Any, queries: Sequence[str] | None) -> None:
    """Raise ConfigError for candidates there cannot be."""
    if candidates != "faiss":
        raise ConfigError(f"candidates: expected faiss or none; found {candidates!r}")
    if not (scorer.smooth or scorer.inner):
        raise ConfigError(f"scorer {scorer.name}: inner products find no candidates for it; leave candidates out")
    if queries is None and not isinstance(passages, Sequence):
        raise ConfigError("queries: give some, by which candidates are judged; passages that come once cannot be asked")


def emptied(folder: Path, names: Sequence[str] = ("index.json", "index.safetensors", LISTS, DATA, SEEN)) -> Path:
    """A folder, made where it is not there, without files of an index that was, which would pass for the next one's,
    and without what a killed build left. Removed, not written over: an index that is open has them mapped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*map(folder.joinpath, names), *folder.glob("*.part")):
        file.unlink(missing_ok=True)
    return folder


def spread(passages: Any) -> list[Any]:
    """Some passages from everywhere, which stand for queries."""
    return list(passages[:: max(1, len(passages) // RECALL_QUERIES)][:RECALL_QUERIES])


def encoded(
    student: Any, passages: Iterable[str], seen: Distinct, batch_size: int, mode: Mode, precision: Precision
) -> Iterator[Part]:
    """Passages as parts of their index; the first has rows, if only none of them."""
    waiting = True
    for texts, keys, places in blocks(passages, BUILD_BLOCK, seen):
        part = None
        if texts or waiting:
            vectors = student.encode(texts, "passage", mode, batch_size)
            part = Index.of_vectors(student, vectors, range(len(texts)), mode, precision)
            waiting = False
        yield part, digests_of(keys), torch.tensor(places, dtype=torch.int64)


def gathered(parts: Iterable[Part]) -> Index:
    """All parts in memory."""
    indexes, _, places = zip(*parts, strict=True)
    held = [part for part in indexes if part is not None]
    index, rows = held[0], torch.cat(places)
    index.cache = torch.cat([part.cache for part in held])
    index.scale = joined([part.scale for part in held])
    index.places = rows if len(index.cache) < len(rows) else None
    return index


def written(parts: Iterable[Part], folder: Path) -> Index:
    """All parts in a folder, of which none but the present one is held."""
    store, first = Store(folder), None
    for part, digests, places in parts:
        if part is not None:
            first = first or part
            store.add("cache", part.cache)
            if part.scale is not None:
                store.add("scale", part.scale)
            store.add("digests", digests)
        store.add("places", places)
    assert first is not None
    return finished(store, first)


def append(store: Store, shard: Index, seen: Distinct) -> None:
    """The rows of a shard whose texts no shard before it had, and the rows of all its passages."""
    assert shard.digests is not None
    rows = np.empty(len(shard.cache), dtype=np.int64)
    for start in range(0, max(1, len(rows)), BUILD_BLOCK):
        block = slice(start, start + BUILD_BLOCK)
        numbers = [seen.number(key.tobytes()) for key in shard.digests[block].numpy()]
        rows[block] = [number for number, _ in numbers]
        new = torch.tensor([new for _, new in numbers], dtype=torch.bool)
        for name in ("cache", "scale", "digests"):
            part = getattr(shard, name)
            if part is not None:
                store.add(name, part[block][new])
    places = torch.arange(len(rows)) if shard.places is None else shard.places
    for start in range(0, len(places), BUILD_BLOCK):
        store.add("places", torch.from_numpy(rows[places[start : start + BUILD_BLOCK].numpy()]))


def finished(store: Store, like: Index) -> Index:
    """What was written, as an index like another."""
    counts = {name: shape[0] for name, (_, shape) in store.shapes.items()}
    store.close(without=["places"] if counts["cache"] == counts["places"] else [])
    shell = Index(like.student, torch.empty(counts["cache"], like.cache.shape[1]), like.vector_bytes, like.mode)
    shell._describe(store.folder)
    return Index.load(store.folder, like.student)


def save_lists(lists: Lists, folder: Path) -> None:
    """Write what is small of inverted lists."""
    from safetensors.torch import save_file

    about = {"nprobe": str(lists.nprobe), "recall": str(lists.recall), "budget": str(lists.budget)}
    save_file({name: part.contiguous() for name, part in lists.kept.items()}, str(folder / LISTS), metadata=about)


def load_lists(index: Index, folder: Path) -> Lists:
    """The inverted lists of a saved index. Raises ArtifactError for damaged ones."""
    from safetensors import safe_open

    try:
        with safe_open(str(folder / LISTS), framework="pt") as parts:
            kept = {name: parts.get_tensor(name) for name in parts.keys()}  # noqa: SIM118 - not a dict
            about = parts.metadata()
        with scoring():
            lists = Lists.load(index.student.scorer, index.mode, index.rows, kept, folder / DATA)
        lists.nprobe, lists.recall = int(about["nprobe"]), float(about["recall"])
        lists.budget = int(about["budget"]) or lists.budget  # 0: an inner product's, of older indexes
    except ArtifactError:
        raise
    except Exception as error:  # noqa: BLE001 - any way a file can be broken ends in the same advice
        raise ArtifactError(f"{folder / LISTS}: damaged ({type(error).__name__}: {error}); {AGAIN}") from error
    return lists


def check_there(folder: Path) -> None:
    """Raise ArtifactError unless a folder holds an index."""
    if not (folder / "index.json").is_file():
        why = "index.json is missing" if folder.is_dir() else "no such folder"
        raise ArtifactError(f"{folder}: no index here ({why}); `d2llm index` makes one")


def check_owner(folder: Path, held: dict[str, Any], owner: str, student: Any) -> None:
    """Raise ArtifactError unless a student has the settings and the digest that an index tells."""
    own = settings(student)
    other = [name for name, value in held.items() if value != own.get(name)]
    if other:
        raise ArtifactError(
            f"{folder}: the index of another student (not the same {', '.join(other)}); {AGAIN}, with this one"
        )
    if owner != weights(student):
        raise ArtifactError(f"{folder}: the index of another student; {AGAIN}, with this one")


def stored(scorer: Any, vectors: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """(m, d) → the scorer's (m, c) as kept in a precision, and (m, parts), by which int8 is multiplied (the largest
    entry of a part becomes 127).

    Raises ConfigError for a precision there is not, and for float16 where an entry is too large for it.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: expected one of {', '.join(get_args(Precision))}; found {precision!r}")
    cache = scorer.passage_cache(vectors)
    if precision == "float16":
        half = cache.to(torch.float16)
        if (half.isinf() & cache.isfinite()).any():
            largest = cache.abs().masked_fill(~cache.isfinite(), 0).max()
            raise ConfigError(f"precision: float16 holds numbers up to 65504; found {largest:.0f}; choose full or int8")
        return half, None
    if precision == "full":
        return cache, None
    parts = cache.float().split(list(scorer.cache_parts(cache.shape[1])), dim=1)
    scales = [(part.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12) for part in parts]
    rounded = [(part / scale).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
    return torch.cat(rounded, dim=1), torch.cat(scales, dim=1)


def joined(scales: Sequence[Tensor | None]) -> Tensor | None:
    """The scales of all parts of an index, each (m, parts), as one; None where the precision has none."""
    held = [scale for scale in scales if scale is not None]
    return torch.cat(held) if held else None


def shared(hits: Hits, depth: int, members: np.ndarray, starts: np.ndarray, ties: np.ndarray | None) -> Hits:
    """Hits of rows → hits of the passages that share them; members (m,), starts (r + 1,): the passages of each row,
    ties (m,) the tie number of each passage.

    The best `depth` rows suffice: every passage of another row ranks below one passage of each of them.
    """
    out: Hits = []
    for rows, scores in hits:
        parts = [members[starts[row] : starts[row + 1]] for row in rows]
        passages, repeated = np.concatenate(parts), np.repeat(scores, [len(part) for part in parts])
        order = np.lexsort((passages if ties is None else np.asarray(ties)[passages], -repeated))[:depth]
        out.append((passages[order], repeated[order]))
    return out


def found_of(exact: Hits, hits: Hits) -> float:
    """Part of the exact hits that others have, in the mean of the queries."""
    parts = [len({*a.tolist()} & {*b.tolist()}) / max(1, len(a)) for (a, _), (b, _) in zip(exact, hits, strict=True)]
    return float(np.mean(parts))


def finite(scores: Tensor) -> Tensor:
    """What is not finite sorts first, so that the check of what is kept cannot miss it."""
    return scores.masked_fill(~scores.isfinite(), torch.inf)


def score_block(device: torch.device) -> tuple[int, int]:
    """Queries and passages that are scored at a time: on a GPU as many as its memory has room for, each pair's score,
    number and place among the best.
    """
    pairs = block_bytes(device, 0) // 16
    return (QUERY_BLOCK, PASSAGE_BLOCK) if not pairs else (4 * QUERY_BLOCK, pairs // (4 * QUERY_BLOCK))


def on_device(student: Any, array: np.ndarray | Tensor) -> Tensor:
    """As a tensor where the student's scorer computes."""
    parameter = next(iter(student.scorer.parameters()), None)
    return torch.as_tensor(array, device=None if parameter is None else parameter.device)


def weights(student: Any) -> str:
    """Digest of a student's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(student.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings(student: Any) -> dict[str, Any]:
    """What decides a student's vectors and scores besides its weights (text formats, pooling, scorer, normalising, …),
    as JSON gives it back.
    """
    about = student.description()
    return json.loads(
        json.dumps({name: about[name] for name in about if name not in ("layout", "method", "parameters")})
    )

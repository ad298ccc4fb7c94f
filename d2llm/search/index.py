"""A searchable index of passages for a trained student: what its scorer needs of every passage, computed once.

For D2LLM that is Wp·p + b1 of every passage (`passage_cache`), from which its scores follow exactly; for a cosine the
unit vector. It may be kept in half or eight-bit precision. A search scores every passage, in blocks of both sides that
bound the memory, or, with `share`, only so large a part of them as inner products say is worth it (`candidates`). A
saved index is mapped, not read: it may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from d2llm.models.device import block_bytes
from d2llm.models.student import check_several
from d2llm.run.artifacts import read_json, write_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.logs import progress
from d2llm.search.candidates import LEAST_BUDGET, Approximation
from d2llm.search.ranking import best, kept, ranked

if TYPE_CHECKING:
    from d2llm.config.recipes import Mode

# On a CPU. A block of 256 queries × 4096 passages is 4 MB of float32 scores.
QUERY_BLOCK = 256
PASSAGE_BLOCK = 4096
# So few passages are searched whole whatever `share` says: candidates would save little, and cost the fit.
FEW = 5 * LEAST_BUDGET
# Texts embedded at a time while an index is built.
BUILD_BLOCK = 8192
# Bump when the layout of a saved index changes; layout 2, which is still read, has a row for every passage.
LAYOUT = 3
# What mends a saved index: no rule of the workflow makes one.
AGAIN = "build it again (`d2llm index`, or Index.build and save)"

Hits = list[tuple[np.ndarray, np.ndarray]]
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
        self._approximations: dict[int, Approximation] = {}

    @classmethod
    def build(
        cls,
        student: Any,
        passages: Sequence[str],
        batch_size: int = 256,
        mode: Mode = "asymmetric",
        precision: Precision = "full",
    ) -> Index:
        """Encode passages, each distinct text once, and keep what the student's scorer needs of them.

        Raises ConfigError for a precision there is not, TypeError for one text in place of several.
        """
        check_several("passages", passages)
        distinct = list(dict.fromkeys(passages))
        parts = [
            cls.of_vectors(
                student, student.encode(chunk, "passage", mode, batch_size), range(len(chunk)), mode, precision
            )
            for chunk in (distinct[start : start + BUILD_BLOCK] for start in range(0, len(distinct), BUILD_BLOCK))
        ] or [cls.of_vectors(student, student.encode([], "passage", mode), [], mode, precision)]
        places = None
        if len(distinct) < len(passages):
            place = {text: row for row, text in enumerate(distinct)}
            places = torch.tensor([place[text] for text in passages])
        return cls(
            student, torch.cat([part.cache for part in parts]), parts[0].vector_bytes, mode,
            joined([part.scale for part in parts]), places,
        )  # fmt: skip

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
        with torch.inference_mode():
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
        self, queries: Sequence[str], depth: int, share: float | None = None, ties: np.ndarray | None = None
    ) -> Hits:
        """For every query the numbers of the `depth` best passages and their scores, best first.

        `ties` (m,): of passages with equal scores the one with the smaller tie number is first (`ranking.by_id` gives
        the evaluation's rule); None: the first in the order given. `share`: the part of the passages whose exact score
        may be computed for a query, e.g. 0.02, of many passages (`budget`); None: all of them. Scores are exact either
        way, and which passages are found is approximate with it (`recall` measures how much so). Raises ConfigError for
        a share or a depth there cannot be, TypeError for one text in place of several.
        """
        check_several("queries", queries)
        return self.search_vectors(self.student.encode(list(queries), "query", self.mode), depth, share, ties)

    def search_vectors(
        self, queries: np.ndarray, depth: int, share: float | None = None, ties: np.ndarray | None = None
    ) -> Hits:
        """The same for embedded queries (n, d). Scores that are not finite come as +inf, first, for the caller to
        refuse.
        """
        if depth < 1:
            raise ConfigError(f"depth: expected a number of at least 1; found {depth!r}")
        q = on_device(self.student, queries)
        ties = np.arange(len(self)) if ties is None else np.asarray(ties)
        if len(ties) != len(self):
            raise ValueError(f"ties: expected a number for each of the {len(self)} passages; found {len(ties)}")
        of_rows = on_device(self.student, self._ties_of_rows(ties))
        hits: Hits = []
        with torch.inference_mode():
            size, _ = score_block(q.device)
            for first in range(0, len(q), size):
                block = self.student.scorer.query_cache(q[first : first + size])
                budget = self.budget(share, depth)
                scores, rows = (
                    self._all(block, depth, of_rows) if budget is None else self._some(block, depth, budget, of_rows)
                )
                hits.extend(zip(rows.cpu().numpy(), scores.cpu().numpy(), strict=True))
        return hits if self.places is None else shared(hits, depth, self.places.numpy(), ties)

    def _ties_of_rows(self, ties: np.ndarray) -> np.ndarray:
        """(m,) tie numbers of passages → (r,) of the cache's rows, the smallest of each."""
        if self.places is None:
            return ties
        smallest = np.full(len(self.cache), len(self))
        np.minimum.at(smallest, self.places.numpy(), ties)
        return smallest

    def recall(self, queries: Sequence[str], depth: int = 10, share: float = 0.02) -> float:
        """Part of the `depth` best passages that a search with `share` finds, in the mean of some queries."""
        check_several("queries", queries)
        vectors = self.student.encode(list(queries), "query", self.mode)
        exact, approximate = self.search_vectors(vectors, depth), self.search_vectors(vectors, depth, share)
        return float(
            np.mean([len(set(a) & set(b)) / max(1, len(a)) for (a, _), (b, _) in zip(exact, approximate, strict=True)])
        )

    def budget(self, share: float | None, depth: int) -> int | None:
        """How many distinct passages may be scored exactly for a query, at least `LEAST_BUDGET`; None: all.

        All are where they are few (`FEW`), or where the share has no room for twice the depth. Raises ConfigError for a
        share there cannot be.
        """
        if share is None:
            return None
        if not 0 < share <= 1:
            raise ConfigError(f"share: expected a number above 0 and at most 1; found {share!r}")
        count = len(self.cache)
        if not self.student.scorer.smooth or count <= FEW or share * count < 2 * depth:
            return None
        budget = max(int(share * count), LEAST_BUDGET)
        return None if budget >= count else budget

    def _all(self, block: Tensor, depth: int, ties: Tensor) -> tuple[Tensor, Tensor]:
        """(n, c) queries, (r,) tie numbers → scores and rows (n, depth) of the best, all of them scored."""

        def scores(rows: Tensor) -> Tensor:
            return finite(self.student.scorer.matrix_cached(block, rows, self.mode).float())

        return ranked(*self._best(len(block), depth, scores, ties), ties)

    def _some(self, block: Tensor, depth: int, budget: int, ties: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with at most `budget` rows scored for a query."""
        if budget not in self._approximations:
            self._approximations[budget] = Approximation(self.rows, len(self.cache), budget)
        fitted = self._approximations[budget]
        sampled = fitted.sample.to(block.device)
        known = self._exact(block, fitted.sample)
        weights = fitted.weights(known.nan_to_num(posinf=0.0))
        _, near = self._best(len(block), fitted.second, fitted.scan(weights), ties)
        second = [self._exact(query[None], chosen)[0] for query, chosen in zip(block, near, strict=True)]
        weights = torch.stack(
            [
                fitted.corrected(weight, self.rows(chosen), scores.nan_to_num(posinf=0.0))
                for weight, chosen, scores in zip(weights, near, second, strict=True)
            ]
        )
        left = budget - len(sampled) - fitted.second
        _, candidates = self._best(len(block), left, fitted.scan(weights), ties)
        parts = []
        for query, drawn, other, chosen, more in zip(block, known, second, near, candidates, strict=True):
            new = torch.isin(chosen, sampled, invert=True)
            rows, scores = torch.cat([sampled, chosen[new]]), torch.cat([drawn, other[new]])
            chosen = more[torch.isin(more, rows, invert=True)]
            rows, scores = torch.cat([rows, chosen]), torch.cat([scores, self._exact(query[None], chosen)[0]])
            parts.append(best(scores[None], rows[None], ties, depth))
        return torch.cat([scores for scores, _ in parts]), torch.cat([rows for _, rows in parts])

    def _exact(self, block: Tensor, which: Tensor) -> Tensor:
        """(n, c) queries → (n, k) scores of these passages."""
        return finite(self.student.scorer.matrix_cached(block, self.rows(which), self.mode).float())

    def _best(
        self, count: int, depth: int, scores_of: Callable[[Tensor], Tensor], ties: Tensor
    ) -> tuple[Tensor, Tensor]:
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

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"cache": self.cache, "scale": self.scale, "places": self.places}
        held = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
        save_file(held, str(folder / "index.safetensors"))
        about: dict[str, Any] = {"layout": LAYOUT, "mode": self.mode, "vector_bytes": self.vector_bytes}
        about |= {"student": weights(self.student), "settings": settings(self.student)}
        write_json(folder / "index.json", about | {"shape": list(self.cache.shape)})

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
                scale, places = (
                    parts.get_tensor(name) if name in parts.keys() else None  # noqa: SIM118 - not a dict
                    for name in ("scale", "places")
                )
            fits = about["layout"] in (2, LAYOUT) and about["shape"] == list(cache.shape)
            mode, vector_bytes, owner = about["mode"], int(about["vector_bytes"]), about["student"]
            held = dict(about.get("settings", {}))  # older indexes have the digest alone
        except Exception as error:  # noqa: BLE001 - any way a file can be broken ends in the same advice
            raise ArtifactError(f"{folder}: not a saved index ({type(error).__name__}: {error}); {AGAIN}") from error
        if not fits:
            raise ArtifactError(f"{folder}: index.json is not of index.safetensors or of another layout; {AGAIN}")
        own = settings(student)
        other = [name for name, value in held.items() if value != own.get(name)]
        if other:
            raise ArtifactError(
                f"{folder}: the index of another student (not the same {', '.join(other)}); {AGAIN}, with this one"
            )
        if owner != weights(student):
            raise ArtifactError(f"{folder}: the index of another student; {AGAIN}, with this one")
        if not mapped:
            cache = on_device(student, cache.clone())
            scale = None if scale is None else on_device(student, scale.clone())
            places = None if places is None else places.clone()
        return cls(student, cache, vector_bytes, mode, scale, places)


def check_there(folder: Path) -> None:
    """Raise ArtifactError unless a folder holds an index."""
    if not (folder / "index.json").is_file():
        why = "index.json is missing" if folder.is_dir() else "no such folder"
        raise ArtifactError(f"{folder}: no index here ({why}); `d2llm index` makes one")


def stored(scorer: Any, vectors: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """(m, d) → the scorer's (m, c) as kept in a precision, and (m, parts), by which int8 is multiplied (the largest
    entry of a part becomes 127).

    Raises ConfigError for a precision there is not.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: expected one of {', '.join(get_args(Precision))}; found {precision!r}")
    cache = scorer.passage_cache(vectors)
    if precision != "int8":
        return cache.to(torch.float16) if precision == "float16" else cache, None
    parts = cache.float().split(list(scorer.cache_parts(cache.shape[1])), dim=1)
    scales = [(part.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12) for part in parts]
    rounded = [(part / scale).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
    return torch.cat(rounded, dim=1), torch.cat(scales, dim=1)


def joined(scales: Sequence[Tensor | None]) -> Tensor | None:
    """The scales of all parts of an index, each (m, parts), as one; None where the precision has none."""
    held = [scale for scale in scales if scale is not None]
    return torch.cat(held) if held else None


def shared(hits: Hits, depth: int, places: np.ndarray, ties: np.ndarray) -> Hits:
    """Hits of rows → hits of the passages that share them; places, ties (m,): the row and the tie number of each
    passage.

    The best `depth` rows suffice: every passage of another row ranks below one passage of each of them.
    """
    members, starts = np.lexsort((ties, places)), np.append(0, np.cumsum(np.bincount(places)))
    out: Hits = []
    for rows, scores in hits:
        parts = [members[starts[row] : starts[row + 1]][:depth] for row in rows]
        passages, repeated = np.concatenate(parts), np.repeat(scores, [len(part) for part in parts])
        order = np.lexsort((ties[passages], -repeated))[:depth]
        out.append((passages[order], repeated[order]))
    return out


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

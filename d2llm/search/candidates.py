"""Candidates for a search: which passages are worth their exact score, found by inner products in faiss's inverted
lists.

Lists: k-means divides the passages by what the index stores of them, p′. A query looks into those `nprobe` whose
centroids score best by the student's own scorer; of many centroids, those are scored that the fit below puts first.
Within the lists faiss takes the largest inner products u·ψ(p′), in float16.

A cosine or inner product is one already: ψ(p′) = p′. The IEM is, for one query, a smooth function z(p′)
(`models.interaction`). Its exact scores of a fixed sample, some of the centroids, give by ridge regression the weights
u of the features ψ(p′) = [p′, p′² − 1] (standardised), so that

    z(p′) ≈ u·ψ(p′) + const,    u = Ψₛᵀ (Ψₛ Ψₛᵀ + λI)⁻¹ zₛ.

Everything but zₛ is the same for all queries. An inner product takes 2c products a passage where the IEM takes h². What
the fit misses among the best passages by it is fitted in the same way, so that it is right where the best ones are.
Nothing is trained but k-means, and no distribution of queries is assumed: the fit is made for the query at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from d2llm.run.errors import ArtifactError
from d2llm.run.logs import progress

if TYPE_CHECKING:
    from d2llm.models.scorers.base import Scorer

# Passages that are scored exactly for a query of the IEM, besides the centroids: the choices, of which an index takes the
# least that finds enough, and the part of them that is the second fit's.
BUDGETS, SECOND_SHARE = (125, 250, 500, 1000, 2000, 4000, 8000), 0.4
# λ, as a share of the mean of ΨΨᵀ's diagonal.
RIDGE = 1e-2
# Centroids whose exact scores are the sample of the IEM's fit, and how many, the best by it, are then scored to choose
# lists by. With a sample of a quarter of the features' number lists found 0.975 where they found all with one of all.
SAMPLED, ROUTED = 512, 128
# K-means sees so many passages a list, and never more bytes than these; of so many is the spread of the features.
TRAINED, TRAINED_BYTES, SPREAD = 64, 256 << 20, 1000
# Rows whose features are made at a time.
BLOCK = 8192
# Features are kept in float16, whose largest number is 65,504.
LARGEST = 6e4

# Rows of the index by their numbers, and the scores (n, k) of a block of queries with some rows.
Rows = Callable[[Tensor], Tensor]
Exact = Callable[[Tensor, Tensor], Tensor]
Found = tuple[Tensor, Tensor]
# Rows (k, c) → the scores (n, k) of a block of queries with them.
Score = Callable[[Tensor], Tensor]
# Weights (n, f) and a number → for every query the rows of the largest inner products, in the lists it looks into.
Nearest = Callable[[Tensor, int], Iterator[Tensor]]


class InnerProduct:
    """What a scorer that is an inner product needs: the stored vector itself, and no fit."""

    def route(self, centroids: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        """Of all centroids (k, c) their order for every query (n, k), best first, and the queries' scores with the
        sample (n, s).
        """
        scores = score(centroids)
        return scores.argsort(dim=1, descending=True), scores

    def coordinates(self, x: Tensor) -> Tensor:
        """(m, c) → (m, c), by which passages are divided into lists."""
        return x.float()

    features = coordinates

    def find(self, block: Tensor, known: Tensor, exact: Exact, nearest: Nearest, want: int) -> Iterator[Found]:
        """For every query of a block (n, c), whose scores with the sample are known (n, s), at least `want` candidates
        (k,) and their exact scores.
        """
        for number, rows in enumerate(nearest(block.float(), want)):
            yield rows, exact(block[number : number + 1], rows)[0]


class Approximation(InnerProduct):
    """The fit of the IEM over `rows` of an index: `sample` (s, c) are the rows every query's exact scores are needed of,
    mean and scale (c,) the spread of all rows, `budget` how many are scored exactly besides the sample.
    """

    def __init__(self, rows: Rows, sample: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.rows, self.sample, self.mean, self.scale = rows, sample.float(), mean, scale
        self.budget = BUDGETS[-1]
        features = self._with_constant(self.features(self.sample))
        # (f, s): takes the sample's scores to weights of the features.
        eye = torch.eye(len(sample), dtype=torch.float64, device=features.device)
        self.fit = ridge(features.double(), eye).float()

    @property
    def second(self) -> int:
        """How many rows the second fit takes."""
        return int(self.budget * SECOND_SHARE)

    def route(self, centroids: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        known = score(self.sample)
        if len(self.sample) == len(centroids):
            return known.argsort(dim=1, descending=True), known
        guessed = self.weights(known.nan_to_num(posinf=0.0)) @ self._with_constant(self.features(centroids)).T
        order = guessed.argsort(dim=1, descending=True)
        best = order[:, :ROUTED]
        # All queries of the block with the best of any, of which each takes its own.
        which, place = best.unique(return_inverse=True)
        best = best.gather(1, score(centroids[which]).gather(1, place).argsort(dim=1, descending=True))
        return torch.cat([best, order[:, ROUTED:]], dim=1), known

    def coordinates(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.scale

    def features(self, x: Tensor) -> Tensor:
        """(m, c) → (m, 2c)."""
        x = self.coordinates(x)
        return torch.cat([x, x.square() - 1], dim=1)

    def find(self, block: Tensor, known: Tensor, exact: Exact, nearest: Nearest, want: int) -> Iterator[Found]:
        weights, seen = self.weights(known.nan_to_num(posinf=0.0)), []
        for number, near in enumerate(nearest(weights[:, :-1], self.second)):
            scores = exact(block[number : number + 1], near)[0]
            weights[number] = self.corrected(weights[number], self.rows(near), scores.nan_to_num(posinf=0.0))
            seen.append((near, scores))
        want = max(want, self.budget - self.second)
        for number, (more, (rows, scores)) in enumerate(zip(nearest(weights[:, :-1], want), seen, strict=True)):
            new = more[torch.isin(more, rows, invert=True)]
            yield torch.cat([rows, new]), torch.cat([scores, exact(block[number : number + 1], new)[0]])

    def weights(self, scores: Tensor) -> Tensor:
        """(n, s) exact scores of the sample → u (n, 2c + 1), the last of a constant."""
        return scores @ self.fit.T

    def corrected(self, weights: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        """(2c + 1,) weights of one query made right for some rows (k, c) of it whose exact scores (k,) are known."""
        features = self._with_constant(self.features(rows))
        return weights + ridge(features, (scores - features @ weights)[:, None])[:, 0]

    def _with_constant(self, features: Tensor) -> Tensor:
        return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


def spread(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(m, c) rows → mean and scale (c,) of each number."""
    return drawn.float().mean(0), drawn.float().std(0, correction=0).clamp(min=1e-6)


def ridge(features: Tensor, targets: Tensor) -> Tensor:
    """(m, f), (m, t) → (f, t) weights Ψᵀ(ΨΨᵀ + λI)⁻¹T = (ΨᵀΨ + λI)⁻¹ΨᵀT, by the smaller of the two matrices."""
    strength = RIDGE * features.square().sum(1).mean()
    wide = features.shape[0] <= features.shape[1]
    gram = features @ features.T if wide else features.T @ features
    gram.diagonal().add_(strength)
    return features.T @ torch.linalg.solve(gram, targets) if wide else torch.linalg.solve(gram, features.T @ targets)


class Lists:
    """Inverted lists over the rows of one index. `centroids` (k, c), as rows of the index; `sizes` (k,).

    `nprobe`: lists a query looks into where it does not say; `recall`: what that found of the ten best when the lists
    were made.
    """

    def __init__(self, fit: InnerProduct, centroids: Tensor, sizes: Tensor, faiss_index: Any) -> None:
        self.fit, self.centroids, self.sizes, self.faiss_index = fit, centroids, sizes, faiss_index
        self.nprobe, self.recall = len(sizes), 1.0

    @classmethod
    def make(cls, scorer: Scorer, rows: Rows, count: int, file: Path | None, seed: int = 0) -> Lists:
        """Divide `count` rows into lists, which are kept in `file`, if there is one, and mapped.

        Rows are read in blocks. Raises ArtifactError for a row that is not finite.
        """
        import faiss

        drawn = torch.from_numpy(np.random.default_rng(seed).permutation(count))
        mean, scale = spread(finite(rows, drawn[:SPREAD].sort().values))
        if not scorer.smooth:
            mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
        size = 1 << round(np.log2(count**0.5))
        few = min(TRAINED * size, TRAINED_BYTES // (4 * len(mean)))
        means = faiss.Kmeans(len(mean), size, niter=10, seed=1, max_points_per_centroid=TRAINED)
        means.train(array((finite(rows, drawn[:few].sort().values).float() - mean) / scale))
        places = np.empty(count, dtype=np.int32)
        for start in progress(range(0, count, BLOCK), "lists, blocks of passages"):
            block = finite(rows, torch.arange(start, min(start + BLOCK, count))).float()
            places[start : start + BLOCK] = means.assign(array((block - mean) / scale))[1]
        centroids = torch.from_numpy(means.centroids).to(mean.device) * scale + mean
        fit = Approximation(rows, centroids[:SAMPLED], mean, scale) if scorer.smooth else InnerProduct()
        sizes = torch.from_numpy(np.bincount(places, minlength=size))
        made = empty(fit, rows(drawn[:1]), size)
        fill(made, fit, rows, places, sizes, file)
        return cls(fit, centroids, sizes, made)

    def search(self, block: Tensor, exact: Exact, score: Score, want: int, nprobe: int | None) -> Iterator[Found]:
        """For every query of a block (n, c) candidates (k,), at least `want` where there are so many, and their exact
        scores; `score` gives the queries' scores with centroids.
        """
        order, known = self.fit.route(self.centroids, score)
        held = self.sizes.to(order.device)[order].cumsum(1)
        enough = min(int(held[0, -1]), want)
        # Of each query by itself, whatever is searched with it; faiss passes over lists of number -1.
        chosen = ((held < enough).sum(1) + 1).clamp(min=nprobe or self.nprobe)
        order = order[:, : int(chosen.max())]
        unasked = torch.arange(order.shape[1], device=order.device) >= chosen[:, None]
        lists = order.masked_fill(unasked, -1).cpu().numpy()

        def nearest(weights: Tensor, count: int) -> Iterator[Tensor]:
            for found in self._nearest(array(weights), lists, count):
                yield torch.from_numpy(found[found >= 0]).to(block.device)

        return self.fit.find(block, known, exact, nearest, want)

    def _nearest(self, weights: np.ndarray, lists: np.ndarray, count: int) -> np.ndarray:
        """(n, f), (n, l) → (n, count) rows of the largest inner products in these lists, -1 where there are no more."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        self.faiss_index.nprobe = lists.shape[1]
        nothing = np.zeros(lists.shape, dtype=np.float32)
        return self.faiss_index.search_preassigned(weights, count, lists.astype(np.int64), nothing)[1]

    def save(self, file: Path) -> None:
        """The lists as `make` keeps them in a file."""
        from faiss.contrib.inspect_tools import get_invlist

        with file.open("wb") as stream:
            for number in range(len(self.sizes)):
                ids, codes = get_invlist(self.faiss_index.invlists, number)
                stream.write(codes.tobytes())
                stream.write(ids.tobytes())

    @classmethod
    def load(cls, scorer: Scorer, rows: Rows, kept: dict[str, Tensor], file: Path) -> Lists:
        """Lists in a file, mapped; `kept`: what the property of that name gave."""
        one = rows(torch.zeros(1, dtype=torch.long))
        centroids, mean, scale = (kept[name].to(one.device) for name in ("centroids", "mean", "scale"))
        fit = Approximation(rows, centroids[:SAMPLED], mean, scale) if scorer.smooth else InnerProduct()
        made = empty(fit, one, len(centroids))
        mapped(made, kept["sizes"], file)
        return cls(fit, centroids, kept["sizes"], made)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What `load` needs besides the file."""
        mean, scale = torch.zeros(self.centroids.shape[1]), torch.ones(self.centroids.shape[1])
        if isinstance(self.fit, Approximation):
            mean, scale = self.fit.mean.cpu(), self.fit.scale.cpu()
        return {"centroids": self.centroids.cpu(), "sizes": self.sizes, "mean": mean, "scale": scale}

    @property
    def budget(self) -> int | None:
        """Passages that are scored exactly for a query besides the centroids; None: those asked for, twice."""
        return self.fit.budget if isinstance(self.fit, Approximation) else None

    @budget.setter
    def budget(self, value: int) -> None:
        if isinstance(self.fit, Approximation):
            self.fit.budget = value


def finite(rows: Rows, numbers: Tensor) -> Tensor:
    """Some rows. Raises ArtifactError for one that is not finite."""
    block = rows(numbers)
    wrong = ~block.isfinite().all(1)
    if wrong.any():
        row = int(numbers[wrong.cpu().float().argmax()])
        raise ArtifactError(f"passage {row}: its vector is not finite; train the student again")
    return block


def empty(fit: InnerProduct, row: Tensor, size: int) -> Any:
    """An IVF index of faiss without passages: inner products in float16; which lists, it is told."""
    import faiss

    width = fit.features(row).shape[1]
    kind = faiss.ScalarQuantizer.QT_fp16
    quantizer = faiss.IndexFlatL2(width)
    made = faiss.IndexIVFScalarQuantizer(quantizer, width, size, kind, faiss.METRIC_INNER_PRODUCT, False)
    made.is_trained = True  # float16 has nothing to learn
    return made


def fill(made: Any, fit: InnerProduct, rows: Rows, places: np.ndarray, sizes: Tensor, file: Path | None) -> None:
    """Put all rows into their lists, one list at a time: into memory, or into a file, which is then mapped."""
    import faiss

    order, ends = np.argsort(places, kind="stable"), sizes.cumsum(0).tolist()
    stream = None if file is None else file.open("wb")
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        ids = order[start:end].astype(np.int64)
        blocks = (torch.from_numpy(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK))
        parts = [made.sq.compute_codes(array(fit.features(rows(b)).clamp(-LARGEST, LARGEST))) for b in blocks]
        codes = np.concatenate([np.empty((0, made.code_size), dtype=np.uint8), *parts])
        if stream is not None:
            stream.write(codes.tobytes())
            stream.write(ids.tobytes())
        elif len(ids):
            made.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
    made.ntotal = len(places)
    if stream is not None and file is not None:
        stream.close()
        mapped(made, sizes, file)


def mapped(made: Any, sizes: Tensor, file: Path) -> None:
    """Have an index read its lists from a file: of each list the codes, then the numbers of the rows."""
    import faiss

    count, counts = len(sizes), sizes.numpy().astype(np.uint64)
    expected = int(sizes.sum()) * (made.code_size + 8)
    if not file.is_file() or file.stat().st_size != expected:
        raise ArtifactError(f"{file}: expected {expected} bytes of inverted lists; build the index again")
    lists = faiss.OnDiskInvertedLists(count, made.code_size, str(file))
    lists.read_only, lists.totsize = True, expected
    lists.set_all_lists_sizes(faiss.swig_ptr(counts))
    lists.do_mmap()
    made.replace_invlists(lists, True)
    lists.this.disown()  # type: ignore[attr-defined]  # what SWIG adds
    made.ntotal = int(sizes.sum())


def array(x: Tensor) -> np.ndarray:
    """As faiss takes it."""
    return np.ascontiguousarray(x.float().cpu().numpy())

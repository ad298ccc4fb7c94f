"""Candidates for a search: which passages are worth their exact score, found by inner products in faiss's inverted
lists.

Lists: k-means divides the passages by what the index stores of them, p′. A query looks into those `nprobe` whose
centroids have the largest inner products with it. Within the lists faiss takes the largest inner products u·ψ(p′), in
float16.

A cosine or inner product is one already: ψ(p′) = p′. The IEM's logit is, for one query, a function z(p′). Its scorer
gives in closed form the weights u of the features ψ(p′) = [e, e² − 1], e = (p′ − mean) / deviation, that fit z best
where the e are normal (`Scorer.slopes`), so that

    z(p′) ≈ u·ψ(p′) + const.

Of these features an index keeps few. Over the passages, ψ's parts along the eigenvectors bᵢ of its covariance are
uncorrelated; over the queries, u is near its mean ū. So u·ψ = ū·ψ + Σᵢ ((u − ū)·bᵢ)(bᵢ·ψ), where the i-th term has the
variance λᵢ·E((u − ū)·bᵢ)². Terms are dropped, the smallest first, up to `LOST` of u·ψ's variance within lists.
What is dropped, and what the fit misses, the exact scores of the candidates mend. Nothing is trained but k-means.
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
    from d2llm.config.recipes import Mode
    from d2llm.models.scorers.base import Scorer

# Passages that are scored exactly for a query of the IEM: the choices, of which an index takes twice the least that
# finds enough of the passages of some queries, as others may need more; and those of an inner product.
BUDGETS, RESCORED = (64, 128, 256, 512, 1024, 2048, 4096), 100
# What may be lost of u·ψ's variance within lists; with fewer queries than these, all features are kept.
LOST, FEWEST = 0.03, 8
# Faiss multiplies so many numbers at a time, or one by one where their count is no multiple.
EVEN = 16
# K-means sees so many passages a list, and never more bytes than these.
TRAINED, TRAINED_BYTES = 64, 256 << 20
# Passages from which the spread of p′, and of the features, is measured.
SPREAD, COVARIANCE = 1000, 8192
# Rows whose features are made at a time.
BLOCK = 8192
# Features are kept in float16, whose largest number is 65,504.
LARGEST = 6e4

# Rows of the index by their numbers, and the scores (n, k) of a block of queries with some rows.
Rows = Callable[[Tensor], Tensor]
Exact = Callable[[Tensor, Tensor], Tensor]


class InnerProduct:
    """What a scorer that is an inner product needs: the stored vector itself."""

    def weights(self, block: Tensor) -> Tensor:
        """Query caches (n, c) → (n, f), whose inner products with features find candidates."""
        return block.float()

    @property
    def kept(self) -> dict[str, Tensor]:
        """Tensors that make it again."""
        return {}

    def coordinates(self, x: Tensor) -> Tensor:
        """(m, c) → (m, c), by which passages are divided into lists."""
        return x.float()

    def features(self, x: Tensor) -> Tensor:
        """(m, c) → (m, f)."""
        return x.float()


class Approximation(InnerProduct):
    """The IEM's: mean and scale (c,) are the spread of all rows, `base` (2c,) is ū, `basis` (2c, r) the bᵢ that are
    kept; without them, all features are.
    """

    def __init__(
        self, scorer: Scorer, mode: Mode, mean: Tensor, scale: Tensor, base: Tensor | None = None, basis: Tensor | None = None
    ) -> None:  # fmt: skip
        self.mean, self.scale, self.base, self.basis = mean, scale, base, basis
        self.slopes = scorer.slopes(mean, scale, mode)

    @property
    def kept(self) -> dict[str, Tensor]:
        parts = {"mean": self.mean, "scale": self.scale, "base": self.base, "basis": self.basis}
        return {name: part for name, part in parts.items() if part is not None}

    def coordinates(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.scale

    def weights(self, block: Tensor) -> Tensor:
        weights = self.slopes(block).nan_to_num(posinf=0.0, neginf=0.0)
        if self.base is None or self.basis is None:
            return weights
        return torch.cat([torch.ones_like(weights[:, :1]), (weights - self.base) @ self.basis], dim=1)

    def features(self, x: Tensor) -> Tensor:
        x = self.coordinates(x)
        features = torch.cat([x, x.square() - 1], dim=1)
        if self.base is None or self.basis is None:
            return features
        return torch.cat([(features @ self.base)[:, None], features @ self.basis], dim=1)

    def reduce(self, rows: Tensor, centroids: Tensor, queries: Tensor) -> None:
        """Keep the features that some queries (n, c) need of some rows (m, c), of whose lists these are the centroids
        (m, c).
        """
        if len(queries) < FEWEST:
            return
        features = self.features(rows)
        variances, vectors = torch.linalg.eigh(torch.cov(features.T, correction=0).double())
        weights = self.weights(queries).double()
        parts = weights @ vectors
        within = weights @ (features - self.features(centroids)).T.double()
        # Of the next query's, whose own weights are not in the mean.
        terms = variances.clamp(min=0) * parts.var(0) * (1 + 1 / len(queries))
        order = terms.argsort()
        needed = int((terms[order].cumsum(0) > LOST * within.var(1).mean()).sum()) + 1  # that of ū among them
        kept = order[-min(len(order), needed + -needed % EVEN - 1) :]
        self.base, self.basis = weights.mean(0).float(), vectors[:, kept].float().contiguous()


def spread(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(m, c) rows → mean and scale (c,) of each number."""
    return drawn.float().mean(0), drawn.float().std(0, correction=0).clamp(min=1e-6)


class Lists:
    """Inverted lists over the rows of one index. `centroids` (k, c), as rows of the index; `sizes` (k,).

    `nprobe`: lists a query looks into where it does not say; `budget`: passages that are scored exactly for it;
    `recall`: what that found of the ten best when the lists were made.
    """

    def __init__(self, fit: InnerProduct, centroids: Tensor, sizes: Tensor, faiss_index: Any) -> None:
        self.fit, self.centroids, self.sizes, self.faiss_index = fit, centroids, sizes, faiss_index
        self.routes = fit.features(centroids).T.contiguous()
        self.nprobe, self.recall = len(sizes), 1.0
        self.budget = BUDGETS[-1] if isinstance(fit, Approximation) else RESCORED

    @classmethod
    def make(
        cls, scorer: Scorer, rows: Rows, count: int, file: Path | None, queries: Tensor, mode: Mode, seed: int = 0
    ) -> Lists:
        """Divide `count` rows into lists, which are kept in `file`, if there is one, and mapped; queries (n, c): some,
        as they will be asked.

        Rows are read in blocks. Raises ArtifactError for a row that is not finite.
        """
        import faiss

        drawn = torch.from_numpy(np.random.default_rng(seed).permutation(count))
        fit = InnerProduct()
        if scorer.smooth:
            fit = Approximation(scorer, mode, *spread(finite(rows, drawn[:SPREAD].sort().values)))
        size, width = 1 << round(np.log2(count**0.5)), rows(drawn[:1]).shape[1]
        few = min(TRAINED * size, TRAINED_BYTES // (4 * width))
        means = faiss.Kmeans(width, size, niter=10, seed=1, max_points_per_centroid=TRAINED)
        means.train(array(fit.coordinates(finite(rows, drawn[:few].sort().values))))
        centroids = torch.from_numpy(means.centroids).to(queries.device)
        if isinstance(fit, Approximation):
            centroids = centroids * fit.scale + fit.mean
            some = finite(rows, drawn[:COVARIANCE].sort().values)
            fit.reduce(some, centroids[means.assign(array(fit.coordinates(some)))[1]], queries)
        places = np.empty(count, dtype=np.int32)
        for start in progress(range(0, count, BLOCK), "lists, blocks of passages"):
            block = finite(rows, torch.arange(start, min(start + BLOCK, count)))
            places[start : start + BLOCK] = means.assign(array(fit.coordinates(block)))[1]
        sizes = torch.from_numpy(np.bincount(places, minlength=size))
        faiss_index = empty(fit, centroids)
        fill(faiss_index, fit, rows, places, sizes, file)
        return cls(fit, centroids, sizes, faiss_index)

    def search(self, block: Tensor, exact: Exact, want: int, nprobe: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For every query of a block (n, c) candidates (k,) and their exact scores: `want` at least where there are so
        many, `budget` where its lists hold so many.
        """
        weights = self.fit.weights(block)
        order = (weights @ self.routes).argsort(dim=1, descending=True)
        held = self.sizes.to(order.device)[order].cumsum(1)
        enough = min(int(held[0, -1]), want)
        # Of each query by itself, whatever is searched with it; faiss passes over lists of number -1.
        chosen = ((held < enough).sum(1) + 1).clamp(min=nprobe or self.nprobe)
        order = order[:, : int(chosen.max())]
        unasked = torch.arange(order.shape[1], device=order.device) >= chosen[:, None]
        lists = order.masked_fill(unasked, -1).cpu().numpy()
        for number, nearest in enumerate(self._nearest(array(weights), lists, max(want, self.budget))):
            rows = torch.from_numpy(nearest[nearest >= 0]).to(block.device)
            yield rows, exact(block[number : number + 1], rows)[0]

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
    def load(cls, scorer: Scorer, mode: Mode, rows: Rows, kept: dict[str, Tensor], file: Path) -> Lists:
        """Lists in a file, mapped; `kept`: what the property of that name gave."""
        device = rows(torch.zeros(1, dtype=torch.long)).device
        parts = {name: part.to(device) for name, part in kept.items() if name != "sizes"}
        centroids = parts.pop("centroids")
        fit = Approximation(scorer, mode, **parts) if scorer.smooth else InnerProduct()
        faiss_index = empty(fit, centroids)
        mapped(faiss_index, kept["sizes"], file)
        return cls(fit, centroids, kept["sizes"], faiss_index)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What `load` needs besides the file."""
        parts = {"centroids": self.centroids.cpu(), "sizes": self.sizes}
        return parts | {name: part.cpu() for name, part in self.fit.kept.items()}


def finite(rows: Rows, numbers: Tensor) -> Tensor:
    """Some rows. Raises ArtifactError for one that is not finite."""
    block = rows(numbers)
    wrong = ~block.isfinite().all(1)
    if wrong.any():
        row = int(numbers[wrong.cpu().float().argmax()])
        raise ArtifactError(f"passage {row}: its vector is not finite; train the student again")
    return block


def empty(fit: InnerProduct, centroids: Tensor) -> Any:
    """An IVF index of faiss without passages: inner products in float16; which lists, it is told."""
    import faiss

    size, width = len(centroids), fit.features(centroids[:1]).shape[1]
    kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    faiss_index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatL2(width), width, size, kind, metric, False)
    faiss_index.is_trained = True  # float16 has nothing to learn
    return faiss_index


def fill(faiss_index: Any, fit: InnerProduct, rows: Rows, places: np.ndarray, sizes: Tensor, file: Path | None) -> None:
    """Put all rows into their lists, one list at a time: into memory, or into a file, which is then mapped."""
    import faiss

    order, ends = np.argsort(places, kind="stable"), sizes.cumsum(0).tolist()
    stream = None if file is None else file.open("wb")
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        ids = order[start:end].astype(np.int64)
        blocks = (torch.from_numpy(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK))
        parts = [faiss_index.sq.compute_codes(array(fit.features(rows(b)).clamp(-LARGEST, LARGEST))) for b in blocks]
        codes = np.concatenate([np.empty((0, faiss_index.code_size), dtype=np.uint8), *parts])
        if stream is not None:
            stream.write(codes.tobytes())
            stream.write(ids.tobytes())
        elif len(ids):
            faiss_index.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
    faiss_index.ntotal = len(places)
    if stream is not None and file is not None:
        stream.close()
        mapped(faiss_index, sizes, file)


def mapped(faiss_index: Any, sizes: Tensor, file: Path) -> None:
    """Have an index read its lists from a file: of each list the codes, then the numbers of the rows."""
    import faiss

    count, counts = len(sizes), sizes.numpy().astype(np.uint64)
    expected = int(sizes.sum()) * (faiss_index.code_size + 8)
    if not file.is_file() or file.stat().st_size != expected:
        raise ArtifactError(f"{file}: expected {expected} bytes of inverted lists; build the index again")
    lists = faiss.OnDiskInvertedLists(count, faiss_index.code_size, str(file))
    lists.read_only, lists.totsize = True, expected
    lists.set_all_lists_sizes(faiss.swig_ptr(counts))
    lists.do_mmap()
    faiss_index.replace_invlists(lists, True)
    lists.this.disown()  # type: ignore[attr-defined]  # what SWIG adds
    faiss_index.ntotal = int(sizes.sum())


def array(x: Tensor) -> np.ndarray:
    """As faiss takes it."""
    return np.ascontiguousarray(x.float().cpu().numpy())

"""D2LLM's interaction emulation module (IEM)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.config.recipes import Mode
from d2llm.models.device import block_bytes as block_of
from d2llm.models.precision import as_given, wide
from d2llm.models.scorers.base import MODES, Scorer, check_mode
from d2llm.run.errors import ConfigError

TITLE = "IEM"
# A block of this size stays in a CPU's cache.
IN_CACHE = 2 << 20


OPTIONS = {
    "activation": ("relu", "squared_relu"),
    "init": ("random", "matcher"),
    "branches": ("both", "shared"),
    "skip": ("none", "cosine"),
    "inputs": ("vectors", "compared"),
    "order": ("given", "average"),
}


def check_options(chosen: Mapping[str, str]) -> None:
    """Raise ConfigError for a value that an option does not have."""
    for key, value in chosen.items():
        if value not in OPTIONS[key]:
            raise ConfigError(f"scorer iem: {key} is one of {', '.join(OPTIONS[key])}, found {value!r}")


class IEM(Scorer):
    """Interaction emulation module: an MLP over two vectors that stands in for cross-attention (release: `IEM`).

        x = act(W1·[q; p] + b1)          (h)
        y = ReLU(W_mode·x + b_mode)      (h)   pair feature y^S; one branch for symmetric, one for asymmetric search
        z = w·y + b                            the logit z^S; one head for both branches

    W1·[q; p] = Wq·q + Wp·p, so a passage stores Wp·p + b1 and a query costs one product; only the branch of the mode
    runs. `matrix` works in blocks: its intermediate values stay within `block_bytes` (None: as much as is
    quickest on the device; under autograd, the graph keeps all of them).

    activation: act is "relu" (release) or "squared_relu", ReLU(·)²; the branch's is always ReLU.
    init: "random" is the release's (Xavier weights). "matcher" starts as a measure of closeness (docs/method.md):
        the first layer's rows come in pairs ±R(q − p), the branches are the identity plus noise, the head weighs all
        parts of the distance with one negative number:
            squared_relu   z ≈ scale · (1 − ‖q − p‖² / 2d)           = scale · cos(q, p) if ‖q‖² = ‖p‖² = d
            relu           z ≈ scale · (1 − √π/2 · ‖q − p‖₁ / d)     0 for independent normal vectors, in the mean
        It expects entries of about unit variance, as PMA's layer norm gives. R is the identity if 2d ≤ hidden, else
        hidden/2 random orthogonal directions, scaled so that ‖R(q − p)‖² keeps its size in the mean. Units to spare
        are random, with a head weight of 0.
    branches: "both" (paper) or "shared", one branch for either mode (ablation).
    skip: "none" (paper) or "cosine", which adds w_c · cos(q, p) with a learned w_c, at first `skip_scale` (variant;
        the caches then hold the normalised vector as well).
    inputs: "vectors" (paper) or "compared", which adds |q − p| and q∘p to what the first layer sees (variant; the
    caches
        then hold the vector as well, and a pair costs a product of 2d by h). With "matcher" these begin with weight 0.
    order: "given" (paper) or "average": the feature and the logit of two texts of one kind are the means of both
    orders'
        (variant; the caches then hold either part of the first layer). Retrieval has one order.
    Neither has slopes, so that no candidates are found for them.
    """

    name = "iem"
    sized = True
    smooth = True

    def __init__(
        self,
        size: int,
        hidden: int = 512,
        activation: Literal["relu", "squared_relu"] = "relu",
        init: Literal["random", "matcher"] = "random",
        branches: Literal["both", "shared"] = "both",
        skip: Literal["none", "cosine"] = "none",
        inputs: Literal["vectors", "compared"] = "vectors",
        order: Literal["given", "average"] = "given",
        scale: float = 10.0,
        skip_scale: float = 10.0,
        block_bytes: int | None = None,
    ) -> None:
        super().__init__()
        chosen = {"activation": activation, "init": init, "branches": branches, "skip": skip}
        check_options(chosen | {"inputs": inputs, "order": order})
        if hidden < (2 if init == "matcher" else 1):
            raise ConfigError(f"scorer iem: hidden must be at least {2 if init == 'matcher' else 1}, found {hidden}")
        self.size, self.hidden = size, hidden
        self.squared = activation == "squared_relu"
        self.block_bytes = block_bytes
        self.average, self.smooth = order == "average", (inputs, order) == ("vectors", "given")
        self.first = nn.Linear(2 * size, hidden)
        layers = {name: nn.Linear(hidden, hidden) for name in (MODES if branches == "both" else ("shared",))}
        self.branches = nn.ModuleDict(layers)
        self.head = nn.Linear(hidden, 1)
        self.skip_weight = nn.Parameter(torch.tensor(float(skip_scale))) if skip == "cosine" else None
        for layer in (self.first, *layers.values(), self.head):
            nn.init.xavier_uniform_(layer.weight)
        self.compared = nn.Linear(2 * size, hidden, bias=False) if inputs == "compared" else None
        if self.compared is not None:
            (nn.init.zeros_ if init == "matcher" else nn.init.xavier_uniform_)(self.compared.weight)
        if init == "matcher":
            self._become_matcher(scale, layers.values())

    @torch.no_grad()
    def _become_matcher(self, scale: float, branches: Iterable[nn.Linear]) -> None:
        size, count = self.size, min(self.size, self.hidden // 2)
        if count == size:
            directions = torch.eye(size)
        else:
            directions = nn.init.orthogonal_(torch.empty(count, size)) * math.sqrt(size / count)
        # Two rows for a direction, as ReLU passes one sign of a difference; the activations of both together are its
        # square or its absolute value.
        both = torch.cat([directions, -directions])
        self.first.weight[: 2 * count] = torch.cat([both, -both], 1)
        self.first.bias.zero_()
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.02 / math.sqrt(self.hidden))
            branch.weight.diagonal().add_(1.0)
            branch.bias.zero_()
        # What the activations sum to for independent vectors of unit variance: E(q − p)² = 2 and E|q − p| = 2/√π in
        # each of `count` directions, whose scale √(d/count) enters the first squared.
        expected = 2.0 * size if self.squared else 2.0 / math.sqrt(math.pi) * math.sqrt(size * count)
        self.head.weight.zero_()
        self.head.weight[0, : 2 * count] = -scale / expected
        self.head.bias.fill_(scale)

    # -------------------------------------------------------------------------------------------- the parts of one side

    def query_cache(self, q: Tensor) -> Tensor:
        """(n, d) → (n, h): Wq·q; of variants followed by what `cache_parts` lists."""
        return self._cache(q, self._query_side, self._passage_side)

    def passage_cache(self, p: Tensor) -> Tensor:
        """(m, d) → (m, h): Wp·p + b1; of variants likewise."""
        return self._cache(p, self._passage_side, self._query_side)

    def cache_parts(self, width: int) -> tuple[int, ...]:
        """h; h more for the other order; d for the vector that is compared; d for it normalised, for the cosine."""
        there = ((self.hidden, True), (self.hidden, self.average), (self.size, self.compared is not None))
        return (*(part for part, own in there if own), *([] if self.skip_weight is None else [self.size]))

    @property
    def _query_side(self) -> tuple[Tensor, Tensor | None]:
        return self.first.weight[:, : self.size], None

    @property
    def _passage_side(self) -> tuple[Tensor, Tensor | None]:
        return self.first.weight[:, self.size :], self.first.bias

    def _cache(self, x: Tensor, own: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> Tensor:
        x = x.to(own[0].dtype)
        parts = [F.linear(x, *own)]
        if self.average:
            parts.append(F.linear(x, *other))
        if self.compared is not None:
            parts.append(x)
        if self.skip_weight is not None:
            parts.append(F.normalize(x, dim=-1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    # ----------------------------------------------------------------------------------------------------------- scores

    def features_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        """(n, c), (n, c) → (n, h): y^S, the output of the mode's branch; also of rows that broadcast."""
        h = self.hidden
        sums = [query[..., :h] + passage[..., :h]]
        if self.average and mode == "symmetric":
            sums.append(query[..., h : 2 * h] + passage[..., h : 2 * h])
        if self.compared is not None:
            start = 2 * h if self.average else h
            left, right = (side[..., start : start + self.size] for side in (query, passage))
            seen = F.linear(torch.cat([(left - right).abs(), left * right], -1), self.compared.weight)
            sums = [x + seen for x in sums]
        features = [self._branch(x, mode) for x in sums]
        return features[0] if len(features) == 1 else (features[0] + features[1]) / 2

    def logits_of(self, features: Tensor) -> Tensor:
        """(…, h) features → (…) logits, without a cosine skip: a step that needs both runs the branch once."""
        with as_given(features):
            return F.linear(wide(features), wide(self.head.weight), wide(self.head.bias)).squeeze(-1)

    def pairs_cached(self, query: Tensor, passage: Tensor, mode: Mode, features: Tensor | None = None) -> Tensor:
        d = self.size
        logits = self.logits_of(self.features_cached(query, passage, mode) if features is None else features)
        if self.skip_weight is not None:
            logits = logits + self.skip_weight * (wide(query[..., -d:]) * wide(passage[..., -d:])).sum(-1)
        return logits

    def matrix_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        check_mode(mode)
        h, n, m = self.hidden, query.shape[0], passage.shape[0]
        # Pairs in a block: two values of (pairs, h) are alive at once, before and after the branch.
        alive = 2 * h if self.smooth else 4 * h + 2 * self.size
        rows = max(1, self._bytes(query) // (alive * query.element_size()))
        width = min(max(m, 1), rows)
        height = max(1, rows // width)
        before, after = self._space(min(n, height) * width, query, passage) if self.smooth else (None, None)
        strips = []
        for i in range(0, n, height):
            left = query[i : i + height, None, : h if self.smooth else None]
            blocks = []
            for j in range(0, m, width):
                right = passage[None, j : j + width, : h if self.smooth else None]
                if not self.smooth:
                    blocks.append(self.logits_of(self.features_cached(left, right, mode)))
                    continue
                shape = (left.shape[0], right.shape[1])
                pairs = shape[0] * shape[1]
                x = torch.add(left, right, out=None if before is None else before[:pairs].view(*shape, h))
                y = self._branch(x.view(pairs, h), mode, None if after is None else after[:pairs])
                blocks.append(self.logits_of(y).view(shape))
            strips.append(torch.cat(blocks, 1) if blocks else query.new_zeros(left.shape[0], 0))
        logits = torch.cat(strips) if strips else query.new_zeros(0, m)
        if self.skip_weight is not None:
            with as_given(query):
                logits = logits + self.skip_weight * (wide(query[:, -self.size :]) @ wide(passage[:, -self.size :]).T)
        return logits

    @torch.no_grad()
    def slopes(self, mean: Tensor, deviation: Tensor, mode: Mode) -> Callable[[Tensor], Tensor]:
        """The base's, unit by unit. An activation of a normal variable is fitted best by its Hermite coefficients, here
        E act′ · s and E act″ · s² / 2. A unit of the branch, which sums many of them, is taken as normal as well: it
        passes on its slope as often as it is positive.
        """
        branch: Any = self.branches[mode if mode in self.branches else "shared"]
        weight, bias, head = branch.weight.float(), branch.bias.float(), self.head.weight[0].float()
        h, squares = self.hidden, branch.weight.float().square()
        mean, deviation = mean.float(), deviation.float()
        centre, s = mean[:h], deviation[:h]

        def weights(query: Tensor) -> Tensor:
            query = query.float()
            expected, variance, first, second = moments(query[:, :h] + centre, s, self.squared)
            spread = (variance @ squares.T).sqrt_().clamp_(min=1e-6)
            passing = torch.special.ndtr(torch.addmm(bias, expected, weight.T).div_(spread))
            slope = passing.mul_(head) @ weight
            parts = [slope * first, slope * second]
            if self.skip_weight is not None:
                linear = self.skip_weight * query[:, h:] * deviation[h:]
                parts = [parts[0], linear, parts[1], torch.zeros_like(linear)]
            return torch.cat(parts, dim=1)

        return weights

    def _bytes(self, query: Tensor) -> int:
        return block_of(query.device, IN_CACHE) if self.block_bytes is None else self.block_bytes

    def _space(self, pairs: int, query: Tensor, passage: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Room for the two values of a block, (pairs, h) each, which all blocks share: fresh memory for each costs a
        fifth of the time.

        None where autograd keeps them, or where their type is another's to choose.
        """
        weight = self.head.weight
        plain = query.dtype == passage.dtype == weight.dtype and (
            weight.is_meta or not torch.is_autocast_enabled(weight.device.type)
        )
        if torch.is_grad_enabled() or not plain:
            return None, None
        return query.new_empty(pairs, self.hidden), query.new_empty(pairs, self.hidden)

    def _branch(self, x: Tensor, mode: Mode, out: Tensor | None = None) -> Tensor:
        """(r, h) before the first activation → (r, h) pair features, in `out` if given. Without autograd, x is
        overwritten.
        """
        check_mode(mode)
        # Linear; a ModuleDict declares any module.
        branch: Any = self.branches[mode if mode in self.branches else "shared"]
        if torch.is_grad_enabled():
            x = torch.relu(x)
            return torch.relu(branch(x.square() if self.squared else x))
        x.relu_()
        if self.squared:
            x.square_()
        return (branch(x) if out is None else torch.addmm(branch.bias, x, branch.weight.T, out=out)).relu_()


def moments(m: Tensor, s: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ReLU(x), or its square, for a normal x of mean m and deviation s: mean, variance, and coefficients of e and
    e² − 1, e = (x − m) / s.
    """
    z = m / s
    below = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    linear = m * below + s * density  # E ReLU(x)
    square = (m * m + s * s) * below + m * s * density  # E ReLU(x)²
    if not squared:
        return linear, (square - linear * linear).clamp_(min=0), s * below, 0.5 * s * density
    fourth = (m**4 + 6 * (m * s) ** 2 + 3 * s**4) * below + m * s * (m * m + 5 * s * s) * density  # E ReLU(x)⁴
    return square, (fourth - square * square).clamp_(min=0), 2 * s * linear, s * s * below


SCORER = IEM

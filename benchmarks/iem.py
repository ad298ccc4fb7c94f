"""Scoring one query against many passages with the IEM: this suite against the release's formula, and against the
machine's matrix product.

The release joins [q; p] for every pair, runs the first layer on all 2d numbers and both branches. Here a passage's half
of the first layer is precomputed (`Scorer.passage_cache`), and only the branch of the mode runs. What remains is one
h×h product a pair: its rate is compared with that of `torch.mm` on the same shapes in the same run. Precomputing is
timed apart ("index"). The same in bfloat16, against its own product; and what an index in fewer bits costs in scores.
"""

from __future__ import annotations

import copy

import torch
from common import arguments, publish, rounds
from torch import Tensor

from d2llm.models.scorers.iem import IEM
from d2llm.search.index import stored


def release(iem: IEM, q: Tensor, p: Tensor, batch: int = 4096) -> Tensor:
    """(1, d), (m, d) → (m,): the release's forward pass (both branches, then the one asked for), a batch of pairs at a time."""
    out = []
    for start in range(0, len(p), batch):
        part = p[start : start + batch]
        pair = torch.cat([q.expand(len(part), -1), part], dim=1)
        x = torch.relu(iem.first(pair))
        branches = {mode: torch.relu(branch(x)) for mode, branch in iem.branches.items()}
        out.append(iem.head(branches["asymmetric"]).squeeze(-1))
    return torch.cat(out)


def main() -> None:
    options = arguments(
        __doc__ or "",
        passages={"type": int, "default": 100_000},
        width={"type": int, "default": 2048, "help": "d"},
        hidden={"type": int, "default": 512, "help": "h"},
        rounds={"type": int, "default": 7},
    )
    torch.manual_seed(0)
    d, h, m = options.width, options.hidden, options.passages
    iem = IEM(d, h).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    iem.to(device)
    q, p = torch.randn(1, d, device=device), torch.randn(m, d, device=device)
    rows = []
    with torch.inference_mode():
        exact = release(iem, q, p)
        cache = iem.passage_cache(p)
        x, weight = torch.randn(m, h, device=device), iem.branches["asymmetric"].weight
        products = torch.empty(m, h, device=device)
        # The product in pieces that stay in the cache is the fastest way this machine has; the larger rate of the two counts.
        piece = 512

        def blocked(x: Tensor, weight: Tensor, products: Tensor) -> None:
            for start in range(0, m, piece):
                torch.mm(x[start : start + piece], weight.T, out=products[: min(piece, m - start)])

        narrow = copy.deepcopy(iem).bfloat16()
        short_q, short = narrow.query_cache(q.bfloat16()), narrow.passage_cache(p.bfloat16())
        short_x, short_weight = x.bfloat16(), weight.bfloat16()
        short_products = torch.empty(m, h, device=device, dtype=torch.bfloat16)

        def synchronised(call):  # noqa: ANN001, ANN202
            def run() -> None:
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize()

            return run

        timed = rounds(
            {
                "release": synchronised(lambda: release(iem, q, p)),
                "suite": synchronised(lambda: iem.matrix_cached(iem.query_cache(q), cache, "asymmetric")),
                "product": synchronised(lambda: torch.mm(x, weight.T, out=products)),
                "product, blocked": synchronised(lambda: blocked(x, weight, products)),
                "suite, bfloat16": synchronised(lambda: narrow.matrix_cached(short_q, short, "asymmetric")),
                "product, blocked, bfloat16": synchronised(lambda: blocked(short_x, short_weight, short_products)),
                "index": synchronised(lambda: iem.passage_cache(p)),
            },
            options.rounds,
        )
        fastest = min(("product", "product, blocked"), key=timed.median)
        computed = iem.matrix_cached(iem.query_cache(q), cache, "asymmetric")[0]
        error = float((computed - exact).abs().max() / exact.abs().max())
        rough = {"all of it in bfloat16": narrow.matrix_cached(short_q, short, "asymmetric")[0].float()}
        for precision in ("float16", "int8"):
            kept, scale = stored(iem, p, precision)
            read = kept.float() if scale is None else kept.float() * scale
            rough[f"an index in {precision}"] = iem.matrix_cached(iem.query_cache(q), read, "asymmetric")[0]
    flops = 2 * m * h * h
    for name in timed.seconds:
        low, middle, high = timed.ratio("release", name)
        rows.append(
            {"what": name, "seconds": timed.median(name), "times faster than the release": middle, "from": low, "to": high,
             "GFLOP/s": None if name in ("release", "index") else flops / timed.median(name) / 1e9}
        )  # fmt: skip
    publish("iem", rows, {"d": d, "h": h, "passages": m, "rounds": options.rounds}, options.json)
    share = timed.ratio(fastest, "suite")
    print(f"share of the machine's product rate ({fastest}): {share[1]:.3f} ({share[0]:.3f} to {share[2]:.3f})")
    print(f"largest difference from the release's formula: {error:.2e} of the largest score")
    share = timed.ratio("product, blocked, bfloat16", "suite, bfloat16")
    print(f"share of the rate in bfloat16: {share[1]:.3f} ({share[0]:.3f} to {share[2]:.3f})")
    for name, scores in rough.items():
        print(f"{name}: largest difference {float((scores - exact).abs().max() / exact.abs().max()):.2e}")


if __name__ == "__main__":
    main()

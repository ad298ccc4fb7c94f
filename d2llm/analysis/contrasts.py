"""Any two rows of a run against each other (`statistics.contrasts`): methods, variants of them, reference rows.

The same paired bootstrap as `comparison`, on the columns by which ablations are judged, corrected over the contrasts
alone. A reference row has one evaluation, which stands beside every seed of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from d2llm.run.schemas import COMPARISONS, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from d2llm.config.schema import Config

    Read = Callable[[str, str, str, list[int] | None], pd.DataFrame]


class Side(NamedTuple):
    """One side of a contrast: what stands in the predictions, and its seeds (None: a reference row's one)."""

    method: str
    variant: str
    seeds: list[int] | None


def sides(config: Config) -> dict[str, Side]:
    """Every row that can be contrasted, by its name: a method, `method/variant`, a reference row."""
    rows = {name: Side(name, "base", None) for name in config.rows()}
    rows |= {method: Side(method, "base", list(config.seeds)) for method in config.methods}
    for (method, name), (_, variant) in config.points().items():
        seeds = config.seeds if variant == "base" else config.seeds_of_variants()
        rows[f"{method}/{name}"] = Side(method, variant, sorted(seeds))
    return rows


def wanted(config: Config) -> list[tuple[str, str]]:
    """The contrasts of the config whose sides this run trains: variants that `include` leaves out have none."""
    known = sides(config)
    return [(one, two) for one, two in config.statistics.contrasts if {one, two} <= set(known)]


def contrasts(
    config: Config, tasks: pd.DataFrame, judged: list[tuple[str, str]], read: Read, compare: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    """A row a contrast and column: columns `COMPARISONS` and `SIZES`, `method` the first side and `baseline` the
    second; not corrected yet.

    `read(task, method, variant, seeds)` gives predictions; `compare` is `comparison.compare`.
    """
    known, parts = sides(config), []
    for names in wanted(config):
        one, two = (known[name] for name in names)
        seeds = common(one.seeds, two.seeds)
        of_task = partial(_both, dict(zip(names, (one, two), strict=True)), seeds, read)
        parts.append(compare(of_task, tasks, [names[1], names[0]], seeds, subject=names[0], judged=judged))
    if not parts:
        return pd.DataFrame(columns=[*COMPARISONS, *SIZES])
    return pd.concat(parts, ignore_index=True)


def scores_of(config: Config, scores: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """The collected scores of both sides, over their common seeds, each as a method of its name."""
    known = sides(config)
    seeds, parts = common(known[names[0]].seeds, known[names[1]].seeds), []
    for name in names:
        side = known[name]
        own = scores[(scores["method"] == side.method) & (scores["variant"] == side.variant)]
        own = own if side.seeds is None else own[own["seed"].isin(seeds)]
        parts.append(own.assign(method=name, variant="base"))
    return pd.concat(parts, ignore_index=True)


def common(one: Sequence[int] | None, two: Sequence[int] | None) -> list[int]:
    """The seeds that both sides have; one where neither is trained."""
    if one is None or two is None:
        return sorted(one or two or [0])
    return sorted(set(one) & set(two))


def _both(sides_of: dict[str, Side], seeds: list[int], read: Read, task: str) -> pd.DataFrame:
    """The predictions of both sides on a task, each under its name, those of a reference row once a seed."""
    parts = []
    for name, side in sides_of.items():
        own = read(task, side.method, side.variant, None if side.seeds is None else seeds).assign(method=name)
        parts += [own] if side.seeds is not None else [own.assign(seed=seed) for seed in seeds]
    return pd.concat(parts, ignore_index=True)

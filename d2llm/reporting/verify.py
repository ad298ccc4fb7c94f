"""Whether a fresh run says what a reference run says: scores within tolerances, and what may explain where they differ.

Compares files alone; runs nothing. Equal bytes are best, but trained scores move a little with processors and versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from d2llm.run.artifacts import read_csv, require
from d2llm.run.paths import Paths
from d2llm.run.provenance import damaged, records
from d2llm.run.schemas import SCORE_KEY, SCORES

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# Rows without training: the same everywhere, but for the last digits.
DETERMINISTIC = frozenset(("bm25",))
# Taken at a threshold that jumps from one example to another: they move several times as much as what they are made of.
JUMPING = {"precision": 5.0, "recall": 5.0, "f1": 2.0}
RUN = ["method", "variant", "seed"]
SHOWN = 40


@dataclass(frozen=True)
class Verdict:
    """What a comparison found. `wrong` holds the scores out of tolerance: SCORE_KEY, reference, found, difference,
    allowed.
    """

    identical: bool
    compared: int
    judged: int
    largest: float
    wrong: pd.DataFrame
    lacking: list[str] = field(default_factory=list)
    only_reference: list[str] = field(default_factory=list)
    only_found: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not len(self.wrong) and not self.lacking and not self.damaged

    def text(self) -> str:
        """All of it for a reader, the outcome last."""
        lines = []
        if len(self.wrong):
            table = self.wrong.head(SHOWN).to_string(index=False, float_format=lambda value: f"{value:.6f}")
            lines += ["Out of tolerance:", table]
            if len(self.wrong) > SHOWN:
                lines.append(f"… and {len(self.wrong) - SHOWN} more")
        if self.lacking:
            lines.append(f"Missing, or of other examples, in a run that both have: {listed(self.lacking)}")
        if self.only_reference:
            lines.append(f"Only in the reference, not compared: {listed(self.only_reference)}")
        if self.only_found:
            lines.append(f"Not in the reference, not compared: {listed(self.only_found)}")
        # Equal scores need no reasons, and variants that one of the runs left out would give a line a key.
        if self.reasons and (self.largest > 0 or not self.passed):
            lines += ["What differs between the two runs besides their scores:", *(f"- {why}" for why in self.reasons)]
        if self.damaged:
            lines.append(f"Not what their jobs wrote; remove them and run again: {listed(self.damaged)}")
        if self.identical and self.damaged:
            lines.append("failed: the scores are the reference's, other files of the run are damaged")
        elif self.identical:
            lines.append(f"identical: {self.compared} scores, byte for byte")
        elif not self.compared:
            lines.append("failed: the two have no score in common")
        elif self.passed:
            lines.append(
                f"passed: {self.judged} scores within tolerance (largest difference {self.largest:.6f}); "
                f"{self.compared - self.judged} breakdowns of few examples judge nothing"
            )
        else:
            lines.append(
                f"failed: {len(self.wrong)} of {self.judged} scores out of tolerance, {len(self.lacking)} missing, "
                f"{len(self.damaged)} files damaged"
            )
        return "\n".join(lines)


def listed(names: list[str]) -> str:
    """Names in a line, the first dozen of many."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def verify(config: Config, reference: Path, exact: float, tolerance: float) -> Verdict:
    """Compare the collected scores of a run with those in `reference`, a folder that `d2llm keep` or a run made.

    Raises ArtifactError when either has no scores or damaged ones.
    """
    paths = Paths.of(config)
    files = require(reference / paths.scores_csv.name, "d2llm keep"), require(paths.scores_csv)
    harmed = damaged(paths.root)
    if files[0].read_bytes() == files[1].read_bytes():
        rows = len(read_csv(files[1], SCORES))
        return Verdict(True, rows, rows, 0.0, pd.DataFrame(), damaged=harmed)
    verdict = compare(*(read_csv(file, SCORES) for file in files), exact=exact, tolerance=tolerance)
    verdict.damaged.extend(harmed)
    verdict.reasons.extend(explain(records(reference), records(paths.root)))
    return verdict


def compare(reference: pd.DataFrame, fresh: pd.DataFrame, *, exact: float, tolerance: float) -> Verdict:
    """The verdict on two tables of scores.

    Rows that nothing was trained for are judged by `exact`, others by `tolerance` (times JUMPING). Breakdowns of
    trained rows are of few examples and are compared, but judge nothing. A run (method, variant, seed) that one side
    lacks is named and fails nothing; a score that the fresh run lacks within a common run, or that is over other
    examples, does.
    """
    both = reference.merge(fresh, on=SCORE_KEY, how="outer", suffixes=("_reference", "_found"), indicator=True)
    common = set(map(tuple, reference[RUN].to_numpy())) & set(map(tuple, fresh[RUN].to_numpy()))
    shared = pd.Series([run in common for run in both[RUN].itertuples(index=False, name=None)], both.index, dtype=bool)
    only_reference, only_fresh = both["_merge"] == "left_only", both["_merge"] == "right_only"
    pairs = both[both["_merge"] == "both"]
    same = (pairs["n_reference"] == pairs["n_found"]) & (pairs["split_reference"] == pairs["split_found"])
    lacking = pd.concat([both[shared & only_reference], pairs[~same]])
    table, judged = _judge(pairs[same], exact, tolerance)
    difference = table["difference"].abs()
    # Written so that a value that is no number is out of tolerance as well.
    wrong = table[judged & ~(difference <= table["allowed"])]
    order = wrong["difference"].abs().sort_values(ascending=False, na_position="first", kind="stable").index
    return Verdict(
        identical=False,
        compared=len(table),
        judged=int(judged.sum()),
        largest=float(difference[judged].max()) if judged.any() else 0.0,
        wrong=wrong.loc[order],
        lacking=_name_scores(lacking),
        only_reference=runs_of(both[~shared & only_reference]),
        only_found=runs_of(both[~shared & only_fresh]) + _name_scores(both.loc[shared & only_fresh]),
    )


def _judge(pairs: pd.DataFrame, exact: float, tolerance: float) -> tuple[pd.DataFrame, pd.Series]:
    """(both values of every score with their difference and what is allowed, whether the score is judged)."""
    untrained = pairs["method"].isin(DETERMINISTIC)
    allowed = (tolerance * pairs["metric"].map(JUMPING).astype(float).fillna(1.0)).where(~untrained, exact)
    table = pairs[SCORE_KEY].assign(
        reference=pairs["value_reference"],
        found=pairs["value_found"],
        difference=pairs["value_found"] - pairs["value_reference"],
        allowed=allowed,
    )
    return table, untrained | (pairs["phenomenon"] == "all")


def _name_scores(rows: pd.DataFrame) -> list[str]:
    """Scores by their keys, a line each."""
    return [" ".join(map(str, row)) for row in rows[SCORE_KEY].itertuples(index=False)]


def runs_of(rows: pd.DataFrame) -> list[str]:
    """The runs that rows are of, by name."""
    runs = rows[RUN].drop_duplicates().itertuples(index=False)
    return [f"{row.method} {row.variant} seed {row.seed}" for row in runs]


# ------------------------------------------------------------------------------------------------------------ reasons
def explain(reference: Mapping[str, Mapping[str, Any]], fresh: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between the records of jobs that both runs have: software, machine, threads, settings, code; each
    difference once, with its stages.
    """
    places_of: dict[str, list[str]] = {}
    for name in sorted(reference.keys() & fresh.keys()):
        stage = str(fresh[name].get("stage", name))
        for difference in differences(reference[name], fresh[name]):
            places = places_of.setdefault(difference, [])
            if stage not in places:
                places.append(stage)
    return [f"{difference} ({', '.join(stages)})" for difference, stages in places_of.items()]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one record that bear on scores and are not as before."""
    for key in ("version", "python", "threads", "process_seed", "processor", "device"):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)} → {new.get(key)}"
    packages = old.get("packages", {}), new.get("packages", {})
    for name in sorted(packages[0].keys() | packages[1].keys()):
        if packages[0].get(name) != packages[1].get(name):
            yield f"{name}: {packages[0].get(name)} → {packages[1].get(name)}"
    settings = leaves(old.get("settings", {})), leaves(new.get("settings", {}))
    for key in sorted(settings[0].keys() | settings[1].keys()):
        if settings[0].get(key) != settings[1].get(key):
            yield f"{key}: {settings[0].get(key, 'not there')} → {settings[1].get(key, 'not there')}"
    if old.get("code") != new.get("code"):
        yield "other code"


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat

"""The teacher's scores of the training pairs out of a file: of an API, a colleague, a published set. No model is asked.

A row is a query, a passage and a score; which pairs there have to be, the mined negatives decide. Scores become logits
of yes, those of no are 0. What stage `teacher_scores` stores is the same as a model's (`score`); who reads it does not
know the difference.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d2llm.data.files.read import read_pieces, texts
from d2llm.run.artifacts import write_text
from d2llm.run.errors import DataError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from d2llm.config.schema import Config
    from d2llm.config.sections import TeacherSettings

Pair = tuple[str, str]
# Rows read at a time.
ROWS = 100_000
# Probabilities of 0 and 1 have no logit: they count as so near to them.
NEAREST = 1e-6
# Scores of one pair that differ by less are one, as formats round.
SAME = 1e-6
# By the scale.
BOUNDS = {"probability": (0.0, 1.0), "logit": (-1e4, 1e4)}


def scored(config: Config, teacher: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """What `score.score` gives, of all rows of the training pairs, out of a teacher's file.

    Raises DataError for a file that is damaged, contradicts itself or lacks a pair; what it lacks is then listed in
    `missing.jsonl` of the teacher's folder.
    """
    settings, rows = config.teacher_of(teacher), list(candidates(pairs))
    known = Scores(settings, {(query, text) for query, hard, easy in rows for text in (*hard, *easy)})
    known.require(((query, text) for query, hard, easy in rows for text in (*hard, *easy)), missing(config, teacher))
    table = [
        (known.logits(query, hard), known.logits(query, easy), known.cosines(query, hard)) for query, hard, easy in rows
    ]
    return pd.DataFrame(
        {
            "qid": pairs["qid"].tolist(),
            "yes": [hard for hard, _, _ in table],
            "no": [np.zeros_like(hard) for hard, _, _ in table],
            "easy_yes": [easy for _, easy, _ in table],
            "easy_no": [np.zeros_like(easy) for _, easy, _ in table],
            "features": [features for _, _, features in table],
        }
    )


def missing(config: Config, teacher: str) -> Path:
    """Where the pairs are listed that a file lacks."""
    return Paths.of(config).teacher_missing(teacher)


def candidates(pairs: pd.DataFrame) -> Iterator[tuple[str, list[str], list[str]]]:
    """Of every row its query, its positive and hard negatives, and its easy negatives."""
    packs = pairs.groupby("pack", sort=False)["positive"].agg(list).to_dict()
    place = pairs.groupby("pack", sort=False).cumcount()
    for row, own in zip(pairs.itertuples(), place, strict=True):
        mates = packs[row.pack]
        yield str(row.query), [row.positive, *row.negatives], mates[:own] + mates[own + 1 :]


class Scores:
    """The scores, and features where there are some, that a file has of some pairs."""

    def __init__(self, settings: TeacherSettings, wanted: set[Pair]) -> None:
        assert settings.scores is not None
        self.file, self.scale, self.feature = settings.scores, settings.scale, settings.features
        self.known: dict[Pair, float] = {}
        self.states: dict[Pair, np.ndarray] = {}
        self.rows = 0
        # Lines with no score of the scale, and pairs with several scores, each with what stands there.
        self.wrong: dict[int, str] = {}
        self.several: dict[Pair, str] = {}
        for frame in read_pieces(self.file, ROWS):
            self._add(frame, wanted)
        self._refuse()

    def _add(self, frame: pd.DataFrame, wanted: set[Pair]) -> None:
        """Keep what is wanted of some rows, and what is wrong with any."""
        names = ["query", "passage", "score", *([self.feature] if self.feature else [])]
        if lacking := [name for name in names if name not in frame]:
            raise DataError(f"{self.file}: no column {lacking[0]!r}; found {', '.join(map(str, frame.columns))}")
        queries, passages = (texts(self.file, frame, name) for name in names[:2])
        values = pd.to_numeric(frame["score"], errors="coerce").astype(float)
        good = values.between(*BOUNDS[self.scale or "logit"]) & ~frame["score"].map(lambda x: isinstance(x, bool))
        self.wrong |= {line: str(value) for line, value in frame.loc[~good, "score"].items()}
        self.rows += len(frame)
        states = frame[self.feature] if self.feature else [None] * len(frame)
        for line, query, passage, value, state in zip(frame.index, queries, passages, values, states, strict=True):
            pair = (query, passage)
            if pair not in wanted:
                continue
            before = self.known.setdefault(pair, value)
            if abs(before - value) > SAME:
                self.several.setdefault(
                    pair, f"line {line}: {query[:40]!r} with {passage[:40]!r}, {before:g} and {value:g}"
                )
            if state is not None:
                self.states[pair] = vector(self.file, line, state)

    def _refuse(self) -> None:
        """Raise DataError for what is wrong with the rows."""
        if self.wrong:
            line, value = next(iter(self.wrong.items()))
            least, most = BOUNDS[self.scale or "logit"]
            raise DataError(
                f"{self.file}: {len(self.wrong)} of {self.rows} rows have no score from {least:g} to {most:g}, as "
                f"teacher.scale: {self.scale} has it (first: line {line}, {value[:20] or 'nothing'}); mend or remove them, or state "
                "another scale"
            )
        if self.several:
            raise DataError(
                f"{self.file}: {len(self.several)} of {len(self.known)} pairs of the training set have several scores "
                f"(first: {next(iter(self.several.values()))}); keep one row a pair"
            )

    def require(self, pairs: Iterable[Pair], listed: Path) -> None:
        """Raise DataError for pairs without a score, and list them."""
        every = dict.fromkeys(pairs)
        lacking = [pair for pair in every if pair not in self.known]
        listed.unlink(missing_ok=True)
        if not lacking:
            self._doubt()
            return
        rows = (json.dumps({"query": query, "passage": passage}, ensure_ascii=False) for query, passage in lacking)
        write_text(listed, "".join(f"{row}\n" for row in rows))
        raise DataError(
            f"{self.file}: no score for {len(lacking)} of the {len(every)} pairs of the training set (first: "
            f"{lacking[0][0][:40]!r} with {lacking[0][1][:40]!r}); score those listed in {listed}, add them to the file "
            "and run again"
        )

    def _doubt(self) -> None:
        """Say where logits look like probabilities."""
        if self.scale == "logit" and all(0 <= value <= 1 for value in self.known.values()):
            get_logger(__name__).warning(
                "%s: all scores lie from 0 to 1, and teacher.scale says logit; set it to probability if they are some",
                self.file,
            )

    def logits(self, query: str, passages: list[str]) -> np.ndarray:
        """(n,) float32."""
        values = np.array([self.known[query, text] for text in passages])
        if self.scale == "probability":
            values = np.clip(values, NEAREST, 1 - NEAREST)
            values = np.log(values) - np.log1p(-values)
        return values.astype(np.float32)

    def cosines(self, query: str, passages: list[str]) -> np.ndarray:
        """(n · n,) as `score.cosines` gives it of features; NaN without any, which no loss can take for a number."""
        from d2llm.teacher.score import cosines

        if self.feature is None:
            return np.full(len(passages) ** 2, math.nan, dtype=np.float32)
        return cosines(np.stack([self.states[query, text] for text in passages])).ravel()


def vector(file: str, line: int, state: Any) -> np.ndarray:
    """A pair's features as an array. Raises DataError for what is none."""
    try:
        values = np.asarray(state, dtype=np.float32)
    except (TypeError, ValueError):
        values = np.empty(0, dtype=np.float32)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"{file}: line {line}: expected a list of numbers as features; found {str(state)[:40]!r}")
    return values

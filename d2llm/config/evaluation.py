"""The configuration sections `evaluation` and `runtime`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from d2llm.config.section import Names, Section

Depth = Annotated[int, Field(ge=0)]
Order = Literal["as_given", "average"]


class SymmetricOrder(Section):
    """How a pair of two texts of one kind is scored, for every method and reference row alike.

    `average`: the mean of both orders, fit for a relation without direction. `as_given`: (sentence1, sentence2) only.
    """

    # Of similarity, which has no direction.
    sts: Order = "average"
    # Of entailment, which has one.
    pair_classification: Order = "as_given"

    def of(self, task_type: str) -> Order:
        """The order of a symmetric task type."""
        return getattr(self, task_type)


class TeacherCandidates(Section):
    """How many passages of each retriever the teacher re-ranks for a query; it cannot read a whole corpus."""

    # Passages of BM25.
    bm25: Depth = 30
    # Passages of the pipeline's encoder.
    dense: Depth = 30

    @model_validator(mode="after")
    def _enough(self) -> TeacherCandidates:
        if self.bm25 + self.dense < 10:
            raise ValueError("bm25 and dense that add up to 10 or more, as metrics look at 10 passages")
        return self

    def __str__(self) -> str:
        return f"BM25 {self.bm25} + dense {self.dense}"


class Bm25Settings(Section):
    """The lexical reference row: Lucene's BM25 over jieba words or over characters."""

    # What it counts.
    tokens: Literal["words", "characters"] = "words"
    # How soon a repeated word stops to count.
    k1: Annotated[float, Field(ge=0.0)] = 1.5
    # How much long passages are held back.
    b: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75


class EvaluationSettings(Section):
    """What is evaluated, on which split, and how the reference rows score."""

    # "all": every folder below data/tasks.
    tasks: Literal["all"] | Names = "all"
    # Test is read once, at the end; dev is to choose settings by.
    split: Literal["dev", "test"] = "test"
    # Texts encoded at once.
    batch_size: Annotated[int, Field(ge=1)] = 256
    # Documents of a query that are kept in the predictions; metrics need 10.
    keep: Annotated[int, Field(ge=10)] = 100
    # How pairs of like texts are scored.
    symmetric_order: SymmetricOrder = SymmetricOrder()
    # What the teacher re-ranks.
    teacher_candidates: TeacherCandidates = TeacherCandidates()
    # The lexical reference row.
    bm25: Bm25Settings = Bm25Settings()

    @model_validator(mode="after")
    def _tasks_once(self) -> EvaluationSettings:
        if self.tasks != "all" and (not self.tasks or len(set(self.tasks)) < len(self.tasks)):
            raise ValueError("tasks that are all, or names of sets, each once")
        return self


class RuntimeSettings(Section):
    """What stage `runtime` measures, and for how long."""

    # Passages of the corpora searched, ascending.
    corpus_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1000, 10000, 100000]
    # Calls of each kind that are timed, at most; and the seconds they may take together (never fewer than three calls).
    repeats: Annotated[int, Field(ge=3)] = 20
    # Seconds that the calls of a kind may take together; never fewer than three calls.
    seconds: Annotated[float, Field(gt=0.0)] = 2.0
    # Pairs of one query the cross-encoder reads; what more would take is extrapolated.
    teacher_pairs: Annotated[int, Field(ge=1)] = 1000

    @model_validator(mode="after")
    def _ascending(self) -> RuntimeSettings:
        if self.corpus_sizes != sorted(set(self.corpus_sizes)):
            raise ValueError("corpus_sizes that grow, each once")
        return self

"""The configuration sections `evaluation`, `runtime` and `corpus`, and what a published model is as a reference row."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from d2llm.config.section import Names, Section
from d2llm.config.sections import PretrainedSettings

Depth = Annotated[int, Field(ge=0)]
Order = Literal["as_given", "average"]


class SymmetricOrder(Section):
    """How a pair of two texts of one kind is scored, for every method and reference row alike.

    `average`: the mean of both orders, fit for a relation without direction. `as_given`: (query, passage) only.
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


class PublishedModel(Section):
    """A reference row of a bi-encoder as published, which nothing here trains: one that mteb's registry knows, with the
    prompts and the similarity it has there, or any in sentence-transformers' format, with its own.
    """

    # As mteb's registry or a hub names it ("org/name"); "./folder", "../folder" or "/folder"; "package:module/path".
    model: Annotated[str, Field(min_length=1)]
    # Of the hub: a commit; null: the one that mteb's registry pins.
    revision: str | None = None
    # Its name in files and columns; null: made of the model's.
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,99}$")] | None = None
    # Its name in tables and figures; null: the model's.
    title: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    # What stands before texts: {query: …, document: …}, or by mteb's names of tasks and their types; null: as
    # published.
    prompts: dict[str, str] | None = None
    # Tokens of a text; null: as published.
    max_length: Annotated[int, Field(ge=1)] | None = None
    # How many of its lowest layers are kept; null: all.
    layers: Annotated[int, Field(ge=1)] | None = None
    # How the states of a plain checkpoint become one vector; null: as its files in sentence-transformers' format say.
    pooling: Literal["cls", "mean", "weightedmean", "lasttoken"] | None = None
    # Texts encoded at once; null: evaluation.batch_size.
    batch_size: Annotated[int, Field(ge=1)] | None = None
    # The files its weights are read from: safetensors, or pytorch_model.bin where it has no other (a pickle; no code of
    # it runs).
    weights: Literal["safetensors", "pytorch"] = "safetensors"
    # Whether Python code that comes with it may run.
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _found(self) -> PublishedModel:
        self.checkpoint()
        if not 0 < len(self.key) <= 100:
            raise ValueError("a name for it (name: …): its own gives none of 1 to 100 letters a-z and digits")
        return self

    def checkpoint(self, revision: str | None = None) -> PretrainedSettings:
        """Where its files lie, as of a base model. `revision` is what holds without one."""
        settings = PretrainedSettings(source=self.model, trust_remote_code=self.trust_remote_code)
        if settings.origin == "hub":
            return settings.model_copy(update={"revision": self.revision or revision})
        if self.revision is not None:
            raise ValueError("revision for a model on the hub only")
        return settings

    @property
    def short(self) -> str:
        """The last part of the model's name."""
        return re.split(r"[/:]", self.model.rstrip("/"))[-1]

    @property
    def key(self) -> str:
        """What stands in column `method` and in paths."""
        return self.name or re.sub(r"[^a-z0-9]+", "_", self.short.lower()).strip("_")


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
    # Right pairs of a pair classification set that are scored in reverse as well, drawn at random, to test whether a
    # score knows direction; 0: none.
    direction: Annotated[int, Field(ge=0)] = 0
    # Jobs that share the tasks of an evaluation; one: no job of its own for a share.
    shards: Annotated[int, Field(ge=1)] = 1
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


class CorpusSettings(Section):
    """What `snakemake corpus` makes ready to be searched, and by which run; no other target reads it."""

    # A file of texts (.txt, JSONL, CSV, TSV, Parquet), seen from where the workflow runs.
    texts: str | None = None
    # Its column of texts.
    column: str = "text"
    # Its column of ids; null: the number of the row.
    id: str | None = None
    # Whose student: a run of this config.
    method: str = "d2llm"
    # Its variant.
    variant: str = "base"
    # Its seed.
    seed: Annotated[int, Field(ge=0)] = 1
    # Questions and what answers them, or sentences of a kind.
    mode: Literal["asymmetric", "symmetric"] = "asymmetric"
    # What a passage is kept in.
    precision: Literal["full", "float16", "int8"] = "float16"
    # How candidates are found; null: every passage is scored.
    candidates: Literal["faiss"] | None = "faiss"
    # A file of some queries as they will be asked, by which candidates are judged; null: by passages.
    queries: str | None = None
    # Jobs that embed a part each.
    shards: Annotated[int, Field(ge=1)] = 1

    @property
    def run(self) -> tuple[str, str, int]:
        """Method, variant, seed."""
        return self.method, self.variant, self.seed

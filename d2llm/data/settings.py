"""The configuration section `data`: which source, how much of the generated world, or which files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from d2llm.section import Pair, Section

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=8)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Values = Annotated[list[str | int | bool | float], Field(min_length=1)]
Mode = Literal["symmetric", "asymmetric"]


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= value[0] < value[1] <= 1.0:
        raise ValueError("[from, to] with 0 <= from < to <= 1")
    return value


Part = Annotated[Pair, AfterValidator(_range)]


class WorldSettings(Section):
    """How much of the generated world is made; splits never share a composition of people, verb and object."""

    seed: Count = 1
    # Of the test sets alone: others draw test sets that no earlier run has been evaluated on.
    test_seed: Count = 1
    # Unlabelled texts for the base checkpoints.
    pretraining_texts: Size = 40000
    # Groups (a query and its candidates) the teacher is tuned on.
    teacher_symmetric: Size = 20000
    teacher_asymmetric: Size = 12000
    # Training pairs: premises (four hypotheses each), pairs of each STS set, queries of each retrieval set.
    nli_premises: Size = 2500
    sts_pairs: Size = 3000
    queries: Size = 2200
    # Pairs of each NLI and STS set, queries of each retrieval set.
    dev_pairs: Size = 600
    dev_queries: Size = 200
    test_pairs: Size = 2000
    test_queries: Size = 500


class Retrieval(Section):
    """A retrieval set as three files: texts with ids, and which passage is relevant to which query."""

    queries: Text
    corpus: Text
    qrels: Text
    # Columns of the three.
    id: Text = "id"
    text: Text = "text"
    query_id: Text = "query_id"
    doc_id: Text = "doc_id"
    # Null: every row of qrels is relevant.
    relevance: Text | None = "relevance"

    def paths(self) -> list[str]:
        """The three files."""
        return [self.queries, self.corpus, self.qrels]


class TrainingSet(Section):
    """Files one training set is made of. A row is a pair that is right, judged by a label, or graded by a score; or a triple."""

    # Symmetric: two texts of one kind; asymmetric: a query and a passage. It picks the teacher's prompt and the IEM's branch.
    mode: Mode = "symmetric"
    file: Text | None = None
    # Rows of `file` used, as a range of shares: a pair lies in it by a digest of its two texts, whatever their order.
    part: Part | None = None
    retrieval: Retrieval | None = None
    # Columns of `file`.
    query: Text = "query"
    passage: Text = "passage"
    # Values of column `label` that mean yes.
    label: Text | None = None
    yes: Values | None = None
    # Scores of column `score`, from the least to the most there can be; from `yes_from` on they mean yes.
    score: Text | None = None
    scores: Pair | None = None
    yes_from: float | None = None
    # A text, or a list of texts, that are wrong for the query.
    negatives: Text | None = None
    # Queries used, drawn at random; null: all.
    sample: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> TrainingSet:
        if (self.file is None) == (self.retrieval is None):
            raise ValueError("either file (pairs or triples) or retrieval (queries, corpus, qrels)")
        if (self.label is None) != (self.yes is None):
            raise ValueError("label (a column) together with yes (its values that mean yes)")
        if len({self.score is None, self.scores is None, self.yes_from is None}) > 1:
            raise ValueError("score (a column) together with scores (least and most) and yes_from")
        if self.retrieval is not None and {self.label, self.score, self.negatives, self.part} != {None}:
            raise ValueError("label, score, negatives and part with a file of pairs only, not with retrieval")
        if sum(key is not None for key in (self.label, self.score, self.negatives)) > 1:
            raise ValueError("one of label, score and negatives")
        return self

    def paths(self) -> list[str]:
        """Every file it reads."""
        return [self.file] if self.file else self.retrieval.paths()


class TaskSet(Section):
    """Files one evaluation set is made of."""

    type: Literal["pair_classification", "sts", "retrieval"]
    group: Literal["nli", "sts", "ir"]
    # In tables; null: its name.
    title: str | None = None
    description: str = ""
    # mteb's code of the language.
    language: str = "eng-Latn"
    dev: Text | Retrieval | None = None
    test: Text | Retrieval | None = None
    # Of pairs: the part of the file's rows that is each split, where one file holds several (see `part` of a training set).
    dev_part: Part | None = None
    test_part: Part | None = None
    # Columns of pairs.
    sentence1: Text = "sentence1"
    sentence2: Text = "sentence2"
    label: Text = "label"
    # Values of column `label` that mean yes.
    yes: Values = [1]
    score: Text = "score"
    scores: Pair = (0.0, 1.0)
    # What the breakdowns are by; null: whether the pair's texts occur in training.
    phenomenon: Text | None = None
    # Pairs or queries of a split used, drawn at random and said so in every output; null: all.
    sample: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _splits(self) -> TaskSet:
        given = [split for split in (self.dev, self.test) if split is not None]
        if not given:
            raise ValueError("a file for dev, for test, or for both")
        if any(isinstance(split, Retrieval) != (self.type == "retrieval") for split in given):
            raise ValueError("for retrieval a section of queries, corpus and qrels, for pairs a file")
        if self.type == "retrieval" and (self.dev_part or self.test_part):
            raise ValueError("dev_part and test_part with files of pairs only, not with retrieval")
        return self

    def paths(self) -> list[str]:
        """Every file it reads."""
        found = []
        for split in (self.dev, self.test):
            found += split.paths() if isinstance(split, Retrieval) else [split] if split else []
        return found


class FilesSettings(Section):
    """One's own files: training sets and evaluation sets by name."""

    train: dict[Name, TrainingSet] = {}
    tasks: dict[Name, TaskSet] = {}
    # Wrong passages drawn at random for a query of a set that names none, for the teacher to learn from.
    teacher_negatives: Annotated[int, Field(ge=1)] = 4
    # Share of the queries kept from the teacher to judge it by.
    teacher_dev: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    seed: Count = 1

    def paths(self) -> list[str]:
        """Every file it reads, in order, each once."""
        sets = [*self.train.values(), *self.tasks.values()]
        return list(dict.fromkeys(path for part in sets for path in part.paths()))


class DataSettings(Section):
    """Where texts come from."""

    source: Literal["world", "files"] = "world"
    world: WorldSettings = WorldSettings()
    files: FilesSettings = FilesSettings()

    @model_validator(mode="after")
    def _given(self) -> DataSettings:
        if self.source == "files" and not (self.files.train and self.files.tasks):
            raise ValueError("files.train and files.tasks, at least one set each, where the source is files")
        return self

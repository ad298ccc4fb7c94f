"""The configuration section `data`: which source, how much of the generated world, or which files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from d2llm.config.section import Names, Pair, Section, has
from d2llm.config.task_types import TASK_TYPES, Group, TypeName

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=8)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
Values = Annotated[list[str | int | bool | float], Field(min_length=1)]
# Without what Snakemake takes for a pattern, and a command for an option.
FilePath = Annotated[str, Field(pattern=r"^[^{}\x00-\x1f-][^{}\x00-\x1f]*$")]
# Of a data set: becomes a file's name.
SplitName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
Mode = Literal["symmetric", "asymmetric"]
Incomplete = Literal["refuse", "drop"]
# Whether quotation marks around a field of a CSV or TSV file belong to the format or to the text
# (`d2llm.data.files.delimited`).
Quotes = Literal["format", "text"]
Key = tuple[str, ...]
# Groups that are computed of any text (`d2llm.data.files.groups`).
Breakdown = Literal["overlap", "length", "negation"]
BREAKDOWNS: tuple[Breakdown, ...] = get_args(Breakdown)
# The generated world's evaluation sets: title, type, group, description.
TASKS = {
    "nli_indomain": (
        "NLI-A",
        "pair_classification",
        "nli",
        "premise and hypothesis in the wording of the training pairs",
    ),
    "nli_shifted": (
        "NLI-B",
        "pair_classification",
        "nli",
        "premise and hypothesis in sentence patterns no training pair has",
    ),
    "sts_graded": ("STS-G", "sts", "sts", "sentence pairs scored 0–5 by how much of the event they share"),
    "question_match": ("QMatch", "sts", "sts", "question pairs, 1 when they ask the same"),
    "role_swap": ("Swap", "sts", "sts", "pairs with the same words, 0 when the roles changed places"),
    "ir_question": ("IR-Q", "retrieval", "ir", "questions, two-sentence passages"),
    "ir_keyword": ("IR-K", "retrieval", "ir", "search words, one-sentence passages, several relevant"),
    "ir_claim": ("IR-C", "retrieval", "ir", "general statements, two-sentence passages that support them"),
}
# A hub's table below its download's folder.
TABLE = "table.parquet"
# What a download is of, in the same folder.
SOURCE = "source.json"


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= value[0] < value[1] <= 1.0:
        raise ValueError("[from, to] with 0 <= from < to <= 1")
    return value


Part = Annotated[Pair, AfterValidator(_range)]


class WorldSettings(Section):
    """How much of the generated world is made; splits never share a composition of people, verb and object."""

    # Of the events and of their wording.
    seed: Count = 1
    # Of the test sets alone: others draw test sets that no earlier run has been evaluated on.
    test_seed: Count = 1
    # Unlabelled texts for the base checkpoints.
    pretraining_texts: Size = 40000
    # Groups (a query and its candidates) the teacher is tuned on.
    teacher_symmetric: Size = 20000
    # Groups of a query and passages the teacher is tuned on.
    teacher_asymmetric: Size = 12000
    # Premises of the NLI training pairs, four hypotheses each.
    nli_premises: Size = 2500
    # Pairs made for each STS set; those that match become training pairs.
    sts_pairs: Size = 3000
    # Training queries of each retrieval set.
    queries: Size = 2200
    # Pairs of each NLI and STS set's dev split.
    dev_pairs: Size = 600
    # Queries of each retrieval set's dev split.
    dev_queries: Size = 200
    # Pairs of each NLI and STS set's test split.
    test_pairs: Size = 2000
    # Queries of each retrieval set's test split.
    test_queries: Size = 500


class OwnTable(Section):
    """A file of one's own, where more is to be said of it than its path."""

    # The file, as a plain path.
    path: FilePath
    # How quotation marks of a CSV or TSV file are read: format (RFC 4180: around a field they belong to the file) or
    # text. Null: refused where in doubt.
    quotes: Quotes | None = None

    @model_validator(mode="after")
    def _delimited(self) -> OwnTable:
        check_quotes(self.quotes, self.path, None)
        return self


class OwnPath(str):
    """The path of a file of one's own, with how its quotation marks are read: `FilesSettings.local` gives it,
    `files.read_table` asks it.
    """

    quotes: Quotes | None

    def __new__(cls, path: str, quotes: Quotes | None) -> OwnPath:
        typed_path = super().__new__(cls, path)
        typed_path.quotes = quotes
        return typed_path


def check_quotes(quotes: Quotes | None, path: str | None, kind: str | None) -> None:
    """Raise ValueError for `quotes` of a file that is neither CSV nor TSV."""
    kind = kind or (path or "").removesuffix(".gz").rpartition(".")[2]
    if quotes is not None and kind not in ("csv", "tsv"):
        raise ValueError("quotes with a CSV or TSV file only")


class HubTable(Section):
    """A table of a data set on the hub: a split of one of its subsets, or one of its files. Fetched once, by a rule of
    its own.
    """

    # org/name on the hub.
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    # A commit, best; a tag or a branch may change below one's feet.
    revision: Text
    # Of the data set, where it has several.
    subset: Text | None = None
    # Of the data set.
    split: Text | None = None
    # JSONL, CSV, TSV or Parquet, by its ending or as `format` says; `columns` names those of a CSV or TSV file without
    # a header.
    file: Text | None = None
    # Of a file; null: by its ending.
    format: Literal["jsonl", "csv", "tsv", "parquet"] | None = None
    # Names of columns of a CSV or TSV file without a header.
    columns: Names | None = None
    # How quotation marks of a CSV or TSV file are read, as of one's own files.
    quotes: Quotes | None = None
    # Columns that stay; rows that are then equal stay once. Null: all.
    keep: Names | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> HubTable:
        check_quotes(self.quotes, self.file, self.format)
        if (self.file is None) == (self.split is None):
            raise ValueError("either split (with subset, where there are several) or file")
        if self.file is None and (self.columns or self.format) or self.file is not None and self.subset is not None:
            raise ValueError("subset with split; format and columns with file")
        return self

    @property
    def name(self) -> str:
        """What it is called in the results folder; another revision has another."""
        parts = [self.repo, self.subset, self.split, self.file, self.revision[:12]]
        plain = "--".join(re.sub(r"[^\w.-]+", "--", part) for part in parts if part)
        return plain.lower()


def _tag(value: Any) -> str:
    if isinstance(value, str):
        return "path"
    return "own" if has(value, "path") else "hub" if has(value, "repo") else "three"


# A file of one's own, or a table of the hub.
Table = Annotated[
    Annotated[FilePath, Tag("path")] | Annotated[OwnTable, Tag("own")] | Annotated[HubTable, Tag("hub")],
    Discriminator(lambda value: _tag(value).replace("three", "hub")),
]


class Retrieval(Section):
    """A retrieval set as three tables: texts with ids, and which passage is relevant to which query."""

    # Table of queries.
    queries: Table
    # Table of passages.
    corpus: Table
    # Table of what is relevant to which query.
    qrels: Table
    # Columns of the three; null: the corpus names its ids as the queries do.
    id: Text = "id"
    # Column of the passages' ids.
    corpus_id: Text | None = None
    # Column of the texts of both.
    text: Text = "text"
    # Column of qrels.
    query_id: Text = "query_id"
    # Column of qrels.
    doc_id: Text = "doc_id"
    # Null: every row of qrels is relevant.
    relevance: Text | None = "relevance"

    def tables(self) -> dict[str, Table]:
        """The three, by key."""
        return {"queries": self.queries, "corpus": self.corpus, "qrels": self.qrels}


class TrainingSet(Section):
    """Files one training set is made of. A row is a pair that is right, judged by a label, or graded by a score; or a
    triple.
    """

    # Symmetric: two texts of one kind; asymmetric: a query and a passage. It picks the teacher's prompt and the IEM's
    # branch.
    mode: Mode = "symmetric"
    # Pairs or triples: a path (JSONL, CSV, TSV, Parquet), alone or with `quotes`, or a table of the hub. Either this or
    # retrieval.
    file: Table | None = None
    # Rows of `file` used, as a range of shares: a pair lies in it by a digest of its two texts, whatever their order.
    part: Part | None = None
    # Queries, passages and what is relevant, as three tables.
    retrieval: Retrieval | None = None
    # Columns of `file`. A passage may be a text, a list of texts, or a list of objects with a text.
    query: Text = "query"
    # Column of the right, or judged, passage.
    passage: Text = "passage"
    # Column of labels.
    label: Text | None = None
    # Values of column label that mean yes.
    yes: Values | None = None
    # Values of column label that mean no; null: 0. Any other value is refused, or left out by `incomplete: drop`.
    no: Values | None = None
    # Scores of column `score`, from the least to the most there can be; from `yes_from` on they mean yes.
    score: Text | None = None
    # The least and the most a score can be.
    scores: Pair | None = None
    # The score from which on a pair counts as right.
    yes_from: float | None = None
    # A text, or a list of texts, that are wrong for the query.
    negatives: Text | None = None
    # Queries used, drawn at random; null: all.
    sample: Annotated[int, Field(ge=1)] | None = None
    # Passages that negatives are drawn from beside the right ones, drawn at random; null: all there are.
    pool: Annotated[int, Field(ge=1)] | None = None
    # Rows without a text, a score or a label that is named: refused, or left out and counted in the data card.
    incomplete: Incomplete = "refuse"

    @model_validator(mode="after")
    def _one_kind(self) -> TrainingSet:
        if (self.file is None) == (self.retrieval is None):
            raise ValueError("either file (pairs or triples) or retrieval (queries, corpus, qrels)")
        if (self.label is None) != (self.yes is None):
            raise ValueError("label (a column) together with yes (its values that mean yes)")
        if self.no is not None and self.label is None:
            raise ValueError("no together with label and yes")
        if self.yes is not None:
            one_meaning(self.yes, self.no)
        if len({self.score is None, self.scores is None, self.yes_from is None}) > 1:
            raise ValueError("score (a column) together with scores (least and most) and yes_from")
        if self.retrieval is not None and {self.label, self.score, self.negatives, self.part} != {None}:
            raise ValueError("label, score, negatives and part with a file of pairs only, not with retrieval")
        if sum(key is not None for key in (self.label, self.score, self.negatives)) > 1:
            raise ValueError("one of label, score and negatives")
        return self

    def tables(self) -> dict[str, Table]:
        """Every table it reads, by key."""
        if self.retrieval is not None:
            return self.retrieval.tables()
        return {} if self.file is None else {"file": self.file}


# What a split of an evaluation set is read from.
Split = Annotated[
    Annotated[FilePath, Tag("path")]
    | Annotated[OwnTable, Tag("own")]
    | Annotated[HubTable, Tag("hub")]
    | Annotated[Retrieval, Tag("three")],
    Discriminator(_tag),
]


# Labels that mean no where a config names none.
NO: tuple[int, ...] = (0,)


def one_meaning(yes: Sequence[Any], no: Sequence[Any] | None) -> None:
    """Raise ValueError for a value that means both; two spellings of one label are refused by what reads the file
    (`data.files.labels`).
    """
    for value in yes:
        if value in (NO if no is None else no):
            raise ValueError(f"labels that mean yes or no, not both; {value!r} is in yes and in no (null: 0)")


def fits(kind: str, group: str) -> None:
    """Raise ValueError for a set in a table of other metrics: it would be missing there, and yet count in the group's
    average.
    """
    own = TASK_TYPES[kind].group
    if own != group:
        raise ValueError(f"group {own}, not {group}, for type {kind}, whose metrics its table has")


class TaskSet(Section):
    """Files one evaluation set is made of."""

    # What is measured: pair classification, correlation of pairs, or retrieval.
    type: TypeName
    # The table it stands in.
    group: Group
    # In tables; null: its name.
    title: str | None = None
    # One line, for the data card.
    description: str = ""
    # mteb's code of the language.
    language: str = "eng-Latn"
    # Its dev split: a path or a table of the hub; for retrieval three.
    dev: Split | None = None
    # Its test split, likewise.
    test: Split | None = None
    # Of pairs: the part of the file's rows that is each split, where one file holds several (see `part` of a training
    # set).
    dev_part: Part | None = None
    # Likewise of the test split.
    test_part: Part | None = None
    # Column of a pair's first text.
    query: Text = "sentence1"
    # Column of its second text.
    passage: Text = "sentence2"
    # Column of labels (pair classification).
    label: Text = "label"
    # Values of column `label` that mean yes.
    yes: Values = [1]
    # Values of column `label` that mean no; null: 0. Any other value is refused, or left out by `incomplete: drop`.
    no: Values | None = None
    # Column of scores (STS).
    score: Text = "score"
    # The least and the most a score can be.
    scores: Pair = (0.0, 1.0)
    # What the breakdowns are by; null: whether the pair's texts occur in training.
    phenomenon: Text | None = None
    # Further columns whose values group the pairs (of retrieval: columns of the queries), such as a genre; each group
    # is scored by itself.
    phenomena: Names = ()
    # Pairs or queries of a split used, drawn at random and said so in every output; null: all.
    sample: Annotated[int, Field(ge=2)] | None = None
    # Rows without a text, a score or a label that is named (of retrieval: texts, and what qrels say of them): refused,
    # or left out and counted in the data card.
    incomplete: Incomplete = "refuse"
    # Of retrieval: leave a passage whose id is the query's out of its ranking, as mteb's `ignore_identical_ids`.
    ignore_identical_ids: bool = False

    @model_validator(mode="after")
    def _splits(self) -> TaskSet:
        fits(self.type, self.group)
        one_meaning(self.yes, self.no)
        given = [split for split in (self.dev, self.test) if split is not None]
        if not given:
            raise ValueError("a file for dev, for test, or for both")
        if any(isinstance(split, Retrieval) != (self.type == "retrieval") for split in given):
            raise ValueError("for retrieval a section of queries, corpus and qrels, for pairs a file")
        if self.type == "retrieval" and (self.dev_part or self.test_part):
            raise ValueError("dev_part and test_part with files of pairs only, not with retrieval")
        if self.type != "retrieval" and self.ignore_identical_ids:
            raise ValueError("ignore_identical_ids with retrieval only")
        if taken := {*self.phenomena} & {*BREAKDOWNS, "direction"}:
            raise ValueError(f"phenomena of other names than {', '.join(sorted(taken))}, which the suite computes")
        return self

    def tables(self) -> dict[str, Table]:
        """Every table it reads, by key."""
        all_tables: dict[str, Table] = {}
        for name, split in (("dev", self.dev), ("test", self.test)):
            if isinstance(split, Retrieval):
                all_tables |= {f"{name}.{key}": table for key, table in split.tables().items()}
            elif split is not None:
                all_tables[name] = split
        return all_tables


class MtebSet(Section):
    """An evaluation set that mteb knows: fetched by its own task class at its pinned revision, by a rule of its own."""

    # mteb's name of the task.
    mteb: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    # mteb's name of the subset, of a task that has several (languages); null: the only one.
    subset: Text | None = None
    # What is measured; as mteb's task.
    type: TypeName
    # The table it stands in.
    group: Group
    # In tables; null: mteb's name.
    title: str | None = None
    # One line, for the data card.
    description: str = ""
    # mteb's code of the language.
    language: str = "cmn-Hans"
    # mteb's names of the splits that serve as dev and as test here; where it has one only, there is no dev.
    dev: SplitName | None = None
    # Split that serves as test.
    test: SplitName | None = "test"
    # Least and most score of an STS set; null: those of mteb's class.
    scores: Pair | None = None
    # Pairs or queries of a split used, drawn at random and said so in every output; null: all.
    sample: Annotated[int, Field(ge=2)] | None = None
    # Empty texts and what is said of them: refused, or left out and counted in the data card. A set that lost any no
    # longer goes by mteb's name.
    incomplete: Incomplete = "refuse"

    @model_validator(mode="after")
    def _splits(self) -> MtebSet:
        fits(self.type, self.group)
        if self.dev is None and self.test is None:
            raise ValueError("a split of mteb's for dev, for test, or for both")
        if self.dev == self.test:
            raise ValueError("two splits of mteb's; one cannot be both dev and test")
        return self

    @property
    def name(self) -> str:
        """What its download is called."""
        return "--".join(["mteb", self.mteb.lower(), *([self.subset.lower()] if self.subset else [])])

    def tables(self) -> dict[str, Table]:
        """No table of its own: mteb knows where it lies."""
        return {}

    def as_files(self, folder: str, scores: Pair = (0.0, 1.0)) -> TaskSet:
        """The set as files, once fetched into `folder`; `scores` are the bounds where the config names none."""

        def split(name: str | None) -> str | Retrieval | None:
            if name is None or self.type != "retrieval":
                return name and f"{folder}/{name}.parquet"
            return Retrieval(**{part: f"{folder}/{name}/{part}.parquet" for part in ("queries", "corpus", "qrels")})

        shared = self.model_dump(include={"type", "group", "description", "language", "sample", "incomplete"})
        return TaskSet(
            **shared,
            title=self.title or self.mteb,
            dev=split(self.dev),
            test=split(self.test),
            scores=self.scores or scores,
        )


AnyTask = Annotated[
    Annotated[TaskSet, Tag("files")] | Annotated[MtebSet, Tag("mteb")],
    Discriminator(lambda value: "mteb" if has(value, "mteb") else "files"),
]


class FilesSettings(Section):
    """One's own files: training sets and evaluation sets by name."""

    # What relative paths below are seen from; itself seen from where Snakemake is started.
    folder: FilePath = "."
    # Training sets by name; null in a later file leaves one out.
    train: dict[Name, TrainingSet] = {}
    # Evaluation sets by name: files, or sets that mteb knows; null in a later file leaves one out.
    tasks: dict[Name, AnyTask] = {}
    # What further groups of every evaluation set are computed by: overlap (thirds by shared character bigrams), length
    # (thirds by characters), negation (pairs of which one text denies, the other does not).
    breakdowns: list[Breakdown] = list(BREAKDOWNS)
    # Words by which a text denies; null: those known of the set's language (Chinese, English; others have none).
    negation: Names | None = None
    # Wrong passages drawn at random for a query of a set that names none, for the teacher to learn from.
    teacher_negatives: Annotated[int, Field(ge=1)] = 4
    # Share of the queries kept from the teacher to judge it by.
    teacher_dev: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    # Of what is drawn at random.
    seed: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, values: Any) -> Any:
        """A set that a later file lays null over is none."""
        if not isinstance(values, Mapping):
            return values
        return dict(values) | {
            part: {name: files for name, files in values[part].items() if files is not None}
            for part in ("train", "tasks")
            if isinstance(values.get(part), Mapping)
        }

    @model_validator(mode="after")
    def _each_once(self) -> FilesSettings:
        """Two tables of one name would be one download, and one of them lost."""
        seen: dict[str, HubTable | MtebSet] = {}
        for files in self.sets().values():
            for table in [files, *files.tables().values()]:
                if isinstance(table, HubTable | MtebSet) and seen.setdefault(table.name, table) != table:
                    name = table.repo if isinstance(table, HubTable) else table.mteb
                    raise ValueError(
                        f"one way of reading {name} (columns, format, quotes, keep; of mteb's sets all keys), as both "
                        "share a download"
                    )
        return self

    def sets(self) -> dict[Key, TrainingSet | TaskSet | MtebSet]:
        """Every set, by its key below `data.files`."""
        return {("train", name): files for name, files in self.train.items()} | {
            ("tasks", name): files for name, files in self.tasks.items()
        }

    def paths(self) -> dict[Key, str]:
        """Every file of one's own, as it is opened, by the key that names it."""
        return {
            (*key, *name.split(".")): self.located(table)
            for key, files in self.sets().items()
            for name, table in files.tables().items()
            if isinstance(table, str | OwnTable)
        }

    def downloads(self) -> dict[str, HubTable | MtebSet]:
        """Everything that comes from the hub, by its name in the results folder."""
        tables = [table for files in self.sets().values() for table in files.tables().values()]
        wanted: list[HubTable | MtebSet] = [table for table in tables if isinstance(table, HubTable)]
        wanted += [task for task in self.tasks.values() if isinstance(task, MtebSet)]
        return {table.name: table for table in wanted}

    def located(self, table: str | OwnTable) -> str:
        """A file's path as it is opened."""
        if isinstance(table, OwnTable):
            return OwnPath(self.located(table.path), table.quotes)
        return os.path.normpath(os.path.join(self.folder, os.path.expanduser(table)))

    def local(self, downloads: Path) -> FilesSettings:
        """The same with every table a file: one's own as they are opened, those of the hub as they lie below
        `downloads`.
        """

        def path(table: Table) -> str:
            return str(downloads / table.name / TABLE) if isinstance(table, HubTable) else self.located(table)

        def three(retrieval: Retrieval) -> Retrieval:
            return retrieval.model_copy(update={name: path(table) for name, table in retrieval.tables().items()})

        def split(files: Split | None) -> str | Retrieval | None:
            return files if files is None else three(files) if isinstance(files, Retrieval) else path(files)

        train = {
            name: task.model_copy(
                update={
                    "file": task.file and path(task.file),
                    "retrieval": task.retrieval and three(task.retrieval),
                }
            )
            for name, task in self.train.items()
        }
        tasks = {
            name: task.as_files(str(downloads / task.name))
            if isinstance(task, MtebSet)
            else task.model_copy(update={"dev": split(task.dev), "test": split(task.test)})
            for name, task in self.tasks.items()
        }
        return self.model_copy(update={"folder": ".", "train": train, "tasks": tasks})


class DataSettings(Section):
    """Where texts come from."""

    # Text generated by this repository, or files.
    source: Literal["world", "files"] = "world"
    # How much is generated.
    world: WorldSettings = WorldSettings()
    # What is read.
    files: FilesSettings = FilesSettings()

    @model_validator(mode="after")
    def _given(self) -> DataSettings:
        if self.source == "files" and not (self.files.train and self.files.tasks):
            raise ValueError("files.train and files.tasks, at least one set each, where the source is files")
        return self

"""Stage `download`: one data set of the hub into Parquet files of the results folder, which is all that later stages
read.

A table of the configuration (`HubTable`) keeps its columns. An evaluation set of mteb (`MtebSet`) is loaded by mteb's
own task class, with that class's renaming of columns, and written in the columns of one's own files (docs/data.md).
Nothing is sampled or dropped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import pyarrow as pa

from d2llm.config.data import SOURCE, TABLE, HubTable, MtebSet
from d2llm.config.task_types import BY_MTEB_TYPE
from d2llm.data.files.delimited import CHUNK
from d2llm.data.files.read import from_arrow, read_pieces
from d2llm.data.hub.parts import write_parts
from d2llm.run import hub
from d2llm.run.artifacts import atomic, remove, write_frame, write_json
from d2llm.run.errors import ConfigError, first_line
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config

T = TypeVar("T")


def run(config: Config, download: str) -> None:
    """Fetch one data set of the config by its name among the downloads."""
    paths = Paths.of(config)
    wanted = config.data.files.downloads()[download]
    place = paths.download(download)
    place.parent.mkdir(parents=True, exist_ok=True)
    where = key_of(config, wanted)
    scratch = place.with_name(f".{download}.scratch")
    remove(scratch)  # of a job that was killed; no other does this one
    scratch.mkdir()
    try:
        with atomic(place) as folder:
            folder.mkdir()
            if isinstance(wanted, HubTable):
                rows, description = (
                    {TABLE: table(wanted, folder / TABLE, scratch, where)},
                    wanted.model_dump(mode="json"),
                )
            else:
                frames, description = mteb_set(wanted, scratch, where)
                for name, frame in frames.items():
                    write_frame(folder / name, frame)
                rows = {name: len(frame) for name, frame in frames.items()}
            check_rows(rows, wanted, where)
            description |= {"rows": rows}
            get_logger(__name__).info("%s: %s", download, description)
            write_json(folder / SOURCE, description)
    finally:
        remove(scratch)


def check_rows(rows: dict[str, int], wanted: HubTable | MtebSet, where: str) -> None:
    """Raise ConfigError for a file or split that the hub has and that holds nothing."""
    empty = next((name for name, count in rows.items() if not count), None)
    if empty is None:
        return
    if isinstance(wanted, HubTable):
        asked = f"file {wanted.file!r}" if wanted.file is not None else f"split {wanted.split!r}"
        raise ConfigError(f"{where}: {repository_of(wanted, where)}: its {asked} has no rows; name another")
    raise ConfigError(
        f"{where}: mteb's {wanted.mteb} has no rows in {empty.removesuffix('.parquet')}; name another split"
    )


def key_of(config: Config, wanted: HubTable | MtebSet) -> str:
    """The key of the first set that asks for a download."""
    return "data.files." + next(
        ".".join(key)
        for key, settings in config.data.files.sets().items()
        if settings == wanted or wanted in settings.tables().values()
    )


def table(wanted: HubTable, file: Path, scratch: Path, where: str) -> int:
    """Write a table as the hub has it, piece by piece; how many rows there are. Raises ConfigError for a subset, split,
    file or column it has not, ArtifactError for a hub that stays away.
    """
    if (name := wanted.file) is not None:
        from huggingface_hub import hf_hub_download

        def fetch() -> str:
            return hf_hub_download(wanted.repo, name, repo_type="dataset", revision=wanted.revision)

        path = checked(fetch, wanted, where)
        pieces = read_pieces(path, CHUNK, wanted.columns, wanted.format, wanted.keep, wanted.quotes)
    else:
        loaded = checked(lambda: load(wanted, scratch, where), wanted, where)
        pieces = map(from_arrow, loaded.with_format("arrow").iter(CHUNK))
    pieces = iter(pieces)
    if (first := next(pieces, None)) is None:  # a split without rows; a file has a piece at least
        return 0
    try:
        return write_parts(chain([first], pieces), file, scratch, wanted.keep)
    except KeyError as error:
        column, there = error.args
        raise ConfigError(f"{where}: keep: {wanted.repo} has no column {column!r}; it has {', '.join(there)}") from None
    except pa.ArrowException as error:
        fix = "keep the columns that hold values of one type (keep: […])"
        raise ConfigError(f"{where}: {wanted.repo}: {first_line(error)}; {fix}") from error


def load(wanted: HubTable, scratch: Path, where: str) -> Any:
    """A split as the library datasets has it."""
    from datasets import load_dataset

    # A cache of its own: the libraries' shared one may hold another revision under the same name.
    with telling(repository_of(wanted, where), where):
        return load_dataset(
            wanted.repo, wanted.subset, split=wanted.split, revision=wanted.revision, cache_dir=str(scratch)
        )


@contextmanager
def telling(repository: hub.Repository, where: str) -> Iterator[None]:
    """Turn what `datasets` raises over a data set that is there into one line: no such subset or split, or a set that
    needs a loading script.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if hub.passing(error):
            raise
        raise ConfigError(f"{where}: {repository}: {first_line(error)}") from error


def to_come(wanted: HubTable | MtebSet, where: str) -> int:
    """Bytes that the hub will send of a data set. Raises ConfigError for what it does not have or give."""
    repository = repository_of(wanted, where)
    return hub.ask(repository, lambda there: chosen(there, wanted, repository, where), where)


def repository_of(wanted: HubTable | MtebSet, where: str) -> hub.Repository:
    """Where a download comes from."""
    if isinstance(wanted, HubTable):
        return hub.Repository(wanted.repo, "dataset", wanted.revision)
    dataset = mteb_task(wanted, where).metadata.dataset
    return hub.Repository(dataset["path"], "dataset", dataset["revision"])


def chosen(there: dict[str, int], wanted: HubTable | MtebSet, repository: hub.Repository, where: str) -> dict[str, int]:
    """Of the files of a repository, {name: bytes}, those that a download reads. Raises ConfigError for a file, subset
    or split that is not there.
    """
    if isinstance(wanted, HubTable) and wanted.file is not None:
        if wanted.file not in there:
            near = "".join(f"; nearest: {name!r}" for name in get_close_matches(wanted.file, there, 1))
            raise ConfigError(f"{where}: {repository} has no file {wanted.file!r}{near}")
        names = [wanted.file]
    elif isinstance(wanted, MtebSet) and (wanted.type == "retrieval" or wanted.subset is not None):
        # mteb's loaders choose among subsets of their own: all that may be data.
        names = [name for name in there if not name.endswith((".py", ".md", ".gitattributes"))]
    else:
        names = split_files(wanted, repository, where)
    return {name: there.get(name, 0) for name in names}


def split_files(wanted: HubTable | MtebSet, repository: hub.Repository, where: str) -> list[str]:
    """Names of the files that hold the splits wanted, as `datasets` resolves them; none of them is fetched. mteb loads
    all splits of a set.
    """
    from datasets import load_dataset_builder

    if isinstance(wanted, HubTable):
        subset, asked = wanted.subset, [wanted.split or ""]
    else:
        subset, asked = None, [split for split in (wanted.dev, wanted.test) if split is not None]
    with TemporaryDirectory() as cache, telling(repository, where):
        builder = load_dataset_builder(repository.name, subset, revision=repository.revision, cache_dir=cache)
    splits = builder.config.data_files or {}
    lacking = next((split for split in asked if splits and split not in splits), None)
    if lacking is not None:
        raise ConfigError(f"{where}: {repository} has no split {lacking!r}; it has {', '.join(splits)}")
    read = asked if isinstance(wanted, HubTable) else splits
    urls = [str(url) for name in read for url in splits.get(name, ())]
    return [url.partition(f"{repository.name}@")[2].partition("/")[2] for url in urls]


def checked(fetch: Callable[[], T], wanted: HubTable | MtebSet, where: str) -> T:
    """What `fetch` returns, once the hub has what is wanted and the disk has room, with the files it came from compared
    with the hub's digests.
    """
    repository = repository_of(wanted, where)

    def once() -> T:
        sizes = hub.needed(repository, lambda there: chosen(there, wanted, repository, where))
        hub.check_room(repository, sizes, where)
        result = fetch()
        hub.check(repository.name, "dataset")
        return result

    return hub.patiently(once, str(repository), where)


def mteb_set(wanted: MtebSet, scratch: Path, where: str) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """({file: frame} of the splits asked for, what it is).

    Raises ConfigError for a task, type, subset or split that mteb does not have, and for a set that only part of what
    is stored here could tell.
    """
    import datasets

    datasets.config.HF_DATASETS_CACHE = scratch  # mteb's loaders take no other
    task = mteb_task(wanted, where)
    kind = wanted.type
    splits = [split for split in (wanted.dev, wanted.test) if split is not None]
    dataset = task.metadata.dataset
    task = checked(lambda: _load_mteb(wanted, splits, where), wanted, where)
    frames: dict[str, pd.DataFrame] = {}
    for split in splits:
        if kind == "retrieval":
            parts = retrieval(split_of(task, wanted.subset, split, where), where)
            frames |= {f"{split}/{part}.parquet": frame for part, frame in parts.items()}
        else:
            frames[f"{split}.parquet"] = pairs(task, split_of(task, wanted.subset, split, where), where)
    origin = {"name": wanted.mteb, "subset": wanted.subset, "repo": dataset["path"], "revision": dataset["revision"]}
    return frames, origin | ({"scores": [task.min_score, task.max_score]} if kind == "sts" else {})


def mteb_task(wanted: MtebSet, where: str) -> Any:
    """mteb's task without its data. Raises ConfigError for one that it does not have, or of another type, subset or
    kind than is wanted.
    """
    import mteb

    try:
        task = mteb.get_task(wanted.mteb)
    except KeyError as error:
        raise ConfigError(f"{where}.mteb: {str(error).strip(chr(34))}") from error
    task_type = BY_MTEB_TYPE.get(task.metadata.type)
    if task_type is None or task_type.name != wanted.type:
        raise ConfigError(f"{where}.type: mteb has {wanted.mteb} as {task.metadata.type}; found {wanted.type!r}")
    check_subset(task, wanted.subset, f"{where}.subset")
    check_own_rules(task, [split for split in (wanted.dev, wanted.test) if split is not None], where)
    return task


def _load_mteb(wanted: MtebSet, splits: list[str], where: str) -> Any:
    """mteb's task with the data of these splits. Raises ConfigError for a split or file that mteb expects and the hub
    does not have.
    """
    import mteb

    subsets = None if wanted.subset is None else [wanted.subset]
    task: Any = mteb.get_task(wanted.mteb, eval_splits=splits, hf_subsets=subsets)
    with telling(repository_of(wanted, where), where):
        task.load_data()
    if wanted.type == "retrieval":
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    return task


def check_subset(task: Any, subset: str | None, where: str) -> None:
    """Raise ConfigError unless the subset is one that mteb's task has, or none where it has one only."""
    subsets = list(task.hf_subsets) if task.metadata.is_multilingual else []
    if subset is None and subsets or subset is not None and subset not in subsets:
        expected = f"one of {', '.join(subsets)}" if subsets else "null, as this task has one subset only"
        raise ConfigError(f"{where}: expected {expected}; found {'null' if subset is None else repr(subset)}")


def check_own_rules(task: Any, splits: Sequence[str], where: str) -> None:
    """Raise ConfigError for a task that is no single set of texts measured as its type is, and for a retrieval split
    that its class does not evaluate.
    """
    from mteb.abstasks import AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    name = task.metadata.name
    if isinstance(task, AbsTaskAggregate):
        parts = ", ".join(part.metadata.name for part in task.metadata.tasks)
        raise ConfigError(f"{where}.mteb: {name} is a mean over sets; name each as a set of its own: {parts}")
    if list(task.metadata.modalities) != ["text"]:
        raise ConfigError(
            f"{where}.mteb: {name} is of {', '.join(task.metadata.modalities)}; expected a set of texts alone"
        )
    measures = (base._evaluate_subset for base in (AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS))
    if type(task)._evaluate_subset not in measures:
        raise ConfigError(f"{where}.mteb: {name} is measured in a way of its own, which the suite does not store")
    # mteb's loader gives the only split of a retrieval set under any name.
    other = [split for split in splits if split not in task.metadata.eval_splits]
    if other and task.metadata.type == "Retrieval":
        evaluated = ", ".join(task.metadata.eval_splits)
        raise ConfigError(
            f"{where}: mteb evaluates {name} on {evaluated}; found {other[0]!r} (its tables can be named one by one)"
        )


def split_of(task: Any, subset: str | None, split: str, where: str) -> Any:
    """A split as mteb has loaded it. Raises ConfigError where there is none of that name."""
    data = task.dataset[subset] if subset is not None else task.dataset.get("default", task.dataset)
    if split not in data:
        raise ConfigError(f"{where}: mteb's {task.metadata.name} has no split {split!r}; it has {', '.join(data)}")
    return data[split]


def pairs(task: Any, data: Any, where: str) -> pd.DataFrame:
    """sentence1, sentence2 and label or score of a split that mteb has loaded, under whatever names its class has for
    them.
    """
    frame = data.to_pandas()
    if task.metadata.type == "STS":
        first, second = task.column_names
        return pd.DataFrame(
            {"sentence1": frame[first], "sentence2": frame[second], "score": frame["score"].astype(float)}
        )
    first, second, label = task.input1_column_name, task.input2_column_name, task.label_column_name
    if len(frame) == 1 and not isinstance(frame[first][0], str):  # the older layout: one row that holds lists
        frame = pd.DataFrame({column: list(frame[column][0]) for column in (first, second, label)})
    labels = pd.to_numeric(frame[label], errors="coerce")
    if not labels.isin([0, 1]).all():  # mteb takes whatever is not 1 for no
        odd = frame[label][~labels.isin([0, 1])].iloc[0]
        raise ConfigError(f"{where}: mteb's {task.metadata.name} has the label {odd!r}; expected 0 and 1 alone")
    return pd.DataFrame({"sentence1": frame[first], "sentence2": frame[second], "label": labels.astype(int)})


def retrieval(data: Any, where: str) -> dict[str, pd.DataFrame]:
    """queries and corpus (id, text) and qrels (query_id, doc_id, relevance) of a split that mteb has loaded; a title
    stands before its text.

    Raises ConfigError for a set whose texts are more than that: candidates to re-rank, instructions, conversations.
    """
    corpus, queries = data["corpus"].to_pandas(), data["queries"].to_pandas()
    extras = [
        name
        for name, present in (
            ("candidates of its own to re-rank", bool(data.get("top_ranked"))),
            ("instructions beside its queries", "instruction" in queries),
            ("conversations as queries", len(queries) > 0 and not isinstance(queries["text"].iloc[0], str)),
        )
        if present
    ]
    if extras:
        raise ConfigError(f"{where}: this set of mteb's has {extras[0]}, which the suite does not evaluate")
    titles = corpus["title"].fillna("") if "title" in corpus else ""
    corpus["text"] = (titles + " " + corpus["text"]).str.strip()
    # Sorted: mteb's loader has them in another order every time.
    rows = sorted(
        (query, doc, relevance) for query, docs in data["relevant_docs"].items() for doc, relevance in docs.items()
    )
    odd = next((relevance for _, _, relevance in rows if relevance != int(relevance)), None)
    if odd is not None:
        raise ConfigError(f"{where}: this set of mteb's has a relevance of {odd}, of which mteb computes no metric")
    return {
        "queries": queries[["id", "text"]],
        "corpus": corpus[["id", "text"]],
        "qrels": pd.DataFrame(
            [(query, doc, int(relevance)) for query, doc, relevance in rows],
            columns=["query_id", "doc_id", "relevance"],
        ),
    }

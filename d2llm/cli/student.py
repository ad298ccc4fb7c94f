"""`d2llm encode`, `index`, `merge-index`, `search` and `export`: a trained student at work, by hand.

Each reads texts, asks the library, prints or writes; the work itself is in `models.student`, `search` and `export`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.models.text import is_text
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.run.logs import utf_8
from d2llm.run.paths import EXAMPLE
from d2llm.search import corpus
from d2llm.search.corpus import kept_texts, read_texts

if TYPE_CHECKING:
    import pandas as pd


FILE = "JSONL, CSV, TSV or Parquet with a column of texts, or .txt with a text a line"


def add_parsers(commands: Any) -> None:
    """The subcommands, each with its `call`."""
    add_encode(commands)
    add_index(commands)
    add_merge(commands)
    add_search(commands)
    add_export(commands)


def command(commands: Any, name: str, text: str, example: str, call: Any) -> argparse.ArgumentParser:
    """A subcommand whose help ends in an example."""
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: d2llm {name} {example}")
    parser.set_defaults(call=call)
    return parser


def add_encode(commands: Any) -> None:
    """`encode`."""
    example = f"--student {EXAMPLE} --texts queries.txt --role query --to queries.npy"
    parser = command(commands, "encode", "embed texts with a trained student", example, encode)
    add_student(parser)
    add_mode(parser)
    parser.add_argument("--texts", required=True, metavar="FILE", help=FILE)
    parser.add_argument("--column", help="its column (default: text)")
    add_quotes(parser)
    parser.add_argument("--role", choices=("query", "passage"), default="passage", help="default: passage")
    parser.add_argument("--to", required=True, metavar="FILE", help="a .npy file: float32, a row a text")


def add_index(commands: Any) -> None:
    """`index`."""
    example = f"--student {EXAMPLE} --passages corpus.jsonl --to index"
    parser = command(commands, "index", "make passages ready to be searched", example, index)
    add_student(parser)
    add_mode(parser)
    parser.add_argument("--passages", required=True, metavar="FILE", help=FILE)
    parser.add_argument("--column", help="its column (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="a column of ids (default: the number of the row, from 0)")
    add_quotes(parser)
    precision = "number format of the stored passages (default: float16)"
    parser.add_argument("--precision", choices=("full", "float16", "int8"), default="float16", help=precision)
    part = "only the I-th of N parts of the passages, from 0, for `merge-index`: 0/4"
    parser.add_argument("--shard", metavar="I/N", help=part)
    add_candidates(parser)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="folder of the index; one that is there is replaced"
    )


def add_candidates(parser: argparse.ArgumentParser) -> None:
    """--candidates and --queries."""
    faiss = "make inverted lists besides, by which searches find their candidates (default: every passage is scored)"
    parser.add_argument("--candidates", choices=("faiss",), help=faiss)
    judged = "some queries as they will be asked, by which the lists are judged (default: passages): " + FILE
    parser.add_argument("--queries", metavar="FILE", help=judged)


def add_merge(commands: Any) -> None:
    """`merge-index`."""
    example = f"--student {EXAMPLE} --shards index.0 index.1 --to index"
    parser = command(commands, "merge-index", "bring the shards of an index together", example, merge)
    add_student(parser)
    parser.add_argument(
        "--shards", required=True, nargs="+", metavar="FOLDER", help="what `index --shard` wrote, in order"
    )
    add_candidates(parser)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="folder of the index; one that is there is replaced"
    )


def add_search(commands: Any) -> None:
    """`search`."""
    example = f'--student {EXAMPLE} --index index --query "谁修好了机器？"'
    parser = command(commands, "search", "find the best passages of an index", example, search)
    add_student(parser)
    parser.add_argument("--index", required=True, metavar="FOLDER", help="what `index` wrote")
    parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument("--queries", metavar="FILE", help=FILE)
    parser.add_argument("--column", help="its column (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="a column of its ids (default: the number of the query, from 0)")
    add_quotes(parser)
    parser.add_argument("--depth", type=int, default=10, help="passages a query (default: 10)")
    lists = "lists to look into, of an index made with --candidates (default: as many as found nearly all then)"
    parser.add_argument("--nprobe", type=int, metavar="N", help=lists)
    parser.add_argument("--exact", action="store_true", help="score every passage whatever the index has")
    form = "for people, a JSON object a hit, or the lines of a TREC run, the last two in UTF-8 (default: text)"
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help=form)


def add_export(commands: Any) -> None:
    """`export`."""
    text = "write a trained student as a whole folder for sentence-transformers, with a model card"
    example = "--config results/mini/config.yaml --method d2llm --seed 1 --to exported"
    parser = command(commands, "export", text, example, exported)
    parser.add_argument("--config", required=True, nargs="+", metavar="FILE", help="the run's resolved config")
    parser.add_argument("--method", required=True, help="method of the run")
    parser.add_argument("--variant", default="base", help="variant of the run (default: base, the method itself)")
    parser.add_argument("--seed", type=int, required=True, help="seed of the run")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder to make; it must not exist")


def add_student(parser: argparse.ArgumentParser) -> None:
    """--student and --device."""
    folder = "a run's model folder, or what `export` wrote"
    parser.add_argument("--student", required=True, metavar="FOLDER", help=folder)
    parser.add_argument("--device", help="default: a GPU where there is one")


def add_quotes(parser: argparse.ArgumentParser) -> None:
    """--quotes."""
    read = "how quotation marks of a CSV or TSV file are read (default: refused where in doubt)"
    parser.add_argument("--quotes", choices=("format", "text"), help=read)


def add_mode(parser: argparse.ArgumentParser) -> None:
    """--mode; an index keeps the one it was made with."""
    modes = "questions and what answers them, or sentences of a kind (default: asymmetric)"
    parser.add_argument("--mode", choices=("asymmetric", "symmetric"), default="asymmetric", help=modes)


def student_of(options: argparse.Namespace) -> Any:
    """The student that is asked for."""
    import d2llm

    _quiet()
    return d2llm.load(options.student, device=options.device)


def _quiet() -> None:
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def encode(options: argparse.Namespace) -> int:
    """Embeddings into a .npy file."""
    import numpy as np

    to = Path(options.to)
    if to.suffix != ".npy":
        raise ConfigError(f"--to {options.to}: expected a file that ends in .npy")
    if not to.parent.is_dir():
        raise ConfigError(f"--to {options.to}: no folder {to.parent}; make it, or choose another")
    texts = read_texts(options.texts, options.column, quotes=options.quotes)["text"].tolist()
    vectors = student_of(options).encode(texts, options.role, options.mode)
    np.save(to, vectors, allow_pickle=False)
    print(f"{to}: {vectors.shape[0]} texts, {vectors.shape[1]} numbers each")
    return 0


def index(options: argparse.Namespace) -> int:
    """An index and the texts it is of, in one folder, written as the texts are read."""
    from d2llm.run.artifacts import atomic

    check_to(options.to)
    queries = judges(options)
    number, count = shard_of(options.shard or "0/1")
    source = (options.passages, options.column, options.id, options.quotes)
    pieces = corpus.shard_of(lambda: corpus.texts_in(*source), number, count)
    first = next(pieces, None)  # what is wrong with the file is told before a student is loaded
    if first is None:
        raise ConfigError(f"--shard {options.shard}: {options.passages} has fewer passages than that")
    with atomic(options.to) as folder:
        whole = chain([first], pieces)
        student = student_of(options)
        built = corpus.write(student, whole, folder, options.passages, options.mode, options.precision)
        corpus.add_candidates(built, folder, options.candidates, queries)
    told(options.to, built, queries)
    return 0


def merge(options: argparse.Namespace) -> int:
    """One index of several, with their texts."""
    from d2llm.run.artifacts import atomic

    check_to(options.to)
    queries = judges(options)
    shards = list(map(Path, options.shards))
    for shard in shards:
        kept_texts(shard)
    with atomic(options.to) as folder:
        merged = corpus.merge(student_of(options), shards, folder)
        corpus.add_candidates(merged, folder, options.candidates, queries)
    told(options.to, merged, queries)
    return 0


def check_to(to: str) -> None:
    """Raise ConfigError for a folder that is there and no index."""
    if Path(to).exists() and not (Path(to) / "index.json").is_file():
        raise ConfigError(
            f"--to {to}: exists and is no index; an index is replaced, anything else is not: choose another folder"
        )


def shard_of(text: str) -> tuple[int, int]:
    """ "0/4" → (0, 4). Raises ConfigError for what is none."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard: expected I/N, I from 0 to N - 1; found {text!r}")
    return int(number), int(count)


def judges(options: argparse.Namespace) -> list[str] | None:
    """The queries by which lists are judged. Raises ConfigError where there will be no lists."""
    if options.queries and not options.candidates:
        raise ConfigError("--queries: they judge lists, and there are none without --candidates faiss; give both")
    return read_texts(options.queries)["text"].tolist() if options.queries else None


def told(to: str, index: Any, queries: list[str] | None) -> None:
    """Say what was made."""
    kind = str(index.cache.dtype).removeprefix("torch.")
    print(
        f"{to}: {len(index)} passages, {index.bytes_per_passage} bytes each ({kind}; an embedding has "
        f"{index.vector_bytes})"
    )
    if index.lists is not None:
        lists = index.lists
        asked_by = f"{len(queries)} queries" if queries else "some passages asked as queries; --queries judges by yours"
        print(f"{len(lists.sizes)} lists: {lists.nprobe} of them find {lists.recall:.3f} of the ten best of {asked_by}")


def search(options: argparse.Namespace) -> int:
    """Hits to standard output, best first."""
    from d2llm.search.index import Index

    queries, folder = asked(options), Path(options.index)
    texts = kept_texts(folder)
    if options.format == "trec":
        check_words(options.queries or "--query", queries["id"])
    loaded = Index.load(folder, student_of(options))
    if len(loaded) != texts.metadata.num_rows:
        raise ArtifactError(
            f"{folder}: {len(loaded)} passages and {texts.metadata.num_rows} texts; run `d2llm index` again"
        )
    asking = queries["text"].tolist()
    results = loaded.search(asking, options.depth, corpus.order_of(folder), options.nprobe, options.exact)
    passages = corpus.texts_at(texts, [row for rows, _ in results for row in rows])
    first = (rows[0] for rows, scores in results if not math.isfinite(scores[0]))  # such a score comes first
    if (wrong := next(first, None)) is not None:
        name = passages.loc[wrong, "id"]
        raise ArtifactError(f"{folder}: the score of passage {name} is not finite; train the student again")
    if options.format == "trec":
        check_words(options.index, passages["id"])
    if options.format != "text":
        utf_8()
    for query, (rows, scores) in zip(queries.itertuples(), results, strict=True):
        hits = passages.loc[rows].assign(rank=range(1, len(rows) + 1), score=scores)
        print("\n".join(FORMATS[options.format](query, hits)))
    return 0


def asked(options: argparse.Namespace) -> pd.DataFrame:
    """id and text of the queries, those of --query first. Raises ConfigError for none, a blank one, and a column that
    no file has.
    """
    import pandas as pd

    for option in ("column", "id", "quotes"):
        if getattr(options, option) and not options.queries:
            raise ConfigError(f"--{option}: there is no file to take it from; give --queries")
    if options.id and options.query:
        raise ConfigError("--id: a text of --query has none; write all queries into the file of --queries")
    blank = next((query for query in options.query if not is_text(query)), None)
    if blank is not None:
        raise ConfigError(f"--query: expected a text; found {blank!r}")
    if options.queries:
        listed = read_texts(options.queries, options.column, options.id, options.quotes)
        if not options.query:
            return listed
        texts = [*options.query, *listed["text"]]
    elif options.query:
        texts = options.query
    else:
        raise ConfigError("nothing to search for; give --query TEXT or --queries FILE")
    return pd.DataFrame({"id": [str(i) for i in range(len(texts))], "text": texts})


def check_words(origin: str, ids: pd.Series) -> None:
    """Raise DataError for an id that is not one word: blanks divide the fields of a TREC run."""
    blank = ids[ids.str.contains(r"\s")]
    if len(blank):
        raise DataError(
            f"{origin}: id {blank.iloc[0]!r} has a blank in it, which a TREC run cannot hold; choose --format json"
        )


def as_text(query: Any, hits: pd.DataFrame) -> Iterator[str]:
    """The query and its hits, for people."""
    yield query.text
    for hit in hits.itertuples():
        yield f"  {hit.rank:3d}  {hit.score:9.4f}  {hit.id}  {hit.text}"


def as_json(query: Any, hits: pd.DataFrame) -> Iterator[str]:
    """An object a hit."""
    for hit in hits.itertuples():
        about = {"query_id": query.id, "query": query.text, "rank": hit.rank, "score": float(_exact(hit.score))}
        yield json.dumps(about | {"id": hit.id, "text": hit.text}, ensure_ascii=False)


def as_trec(query: Any, hits: pd.DataFrame) -> Iterator[str]:
    """The lines of a TREC run, as trec_eval and pyserini read them: query, Q0, passage, rank, score, tag."""
    for hit in hits.itertuples():
        yield f"{query.id} Q0 {hit.id} {hit.rank} {_exact(hit.score)} d2llm"


def _exact(score: float) -> str:
    """A score in so many digits that float32, in which trec_eval compares, tells no other ties than there are."""
    return f"{score:.9g}"


# How hits are printed: a query (id and text) and its hits → lines.
FORMATS = {"text": as_text, "json": as_json, "trec": as_trec}


def exported(options: argparse.Namespace) -> int:
    """A folder others can load."""
    from d2llm.config.load import load
    from d2llm.search.export import export

    _quiet()
    print(
        export(load(options.config), options.method, options.variant, options.seed, Path(options.to)), file=sys.stdout
    )
    return 0

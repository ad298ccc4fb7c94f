"""An index with its texts, in one folder: read from files a piece at a time, by hand (`d2llm index`) or by stages
`corpus_shard` and `corpus`.

`passages.parquet` has id and text of every passage, `order.safetensors` which of equal scores ranks first (`ranking`'s
rule, by id): both are written as the texts come, and a search reads of them what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.models.text import is_blank
from d2llm.run.errors import ArtifactError, ConfigError, DataError, first_line
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from d2llm.config.data import Quotes
    from d2llm.config.recipes import Mode
    from d2llm.config.schema import Config
    from d2llm.search.index import Index, Precision

TEXTS, ORDER = "passages.parquet", "order.safetensors"
# Rows that are read and kept at a time.
PIECE = 8192


# --------------------------------------------------------------------------------------------------------------- stages
def run_shard(config: Config, shard: int, shards: int) -> None:
    """Index one part of the corpus."""
    from d2llm.run.artifacts import atomic

    corpus, paths = config.corpus, Paths.of(config)
    source = (str(corpus.texts), corpus.column, corpus.id)
    with atomic(paths.corpus_shard(shard, shards)) as folder:
        pieces = shard_of(lambda: texts_in(*source), shard, shards)
        write(student_of(config), pieces, folder, source[0], corpus.mode, corpus.precision)


def run(config: Config) -> None:
    """Bring all parts together, with candidates where they are asked for."""
    from d2llm.run.artifacts import atomic

    paths, shards = Paths.of(config), config.corpus.shards
    parts = [paths.corpus_shard(shard, shards) for shard in range(shards)]
    with atomic(paths.corpus) as folder:
        merged = merge(student_of(config), parts, folder)
        judges = config.corpus.queries
        queries = read_texts(judges)["text"].tolist() if judges else None
        add_candidates(merged, folder, config.corpus.candidates, queries)


def student_of(config: Config) -> Any:
    """The trained student that a corpus is indexed by."""
    from d2llm import load

    return load(Paths.of(config).run(*config.corpus.run) / "model")


# ------------------------------------------------------------------------------------------------------------- indexing
def write(
    student: Any, pieces: Iterable[pd.DataFrame], folder: Path, origin: str, mode: Mode, precision: Precision
) -> Index:
    """An index with its texts, in a folder that is made; `origin` is named where an id stands there twice."""
    from d2llm.search.index import Index

    folder.mkdir(parents=True)
    corpus = Corpus(folder, origin)
    built = Index.build(student, corpus.keep(pieces), mode=mode, precision=precision, to=folder)
    corpus.close()
    return built


def merge(student: Any, shards: Sequence[Path], folder: Path) -> Index:
    """One index with its texts of several, in a folder that is made."""
    from d2llm.search.index import Index

    folder.mkdir(parents=True)
    corpus = Corpus(folder, " and ".join(map(str, shards)))
    for _ in corpus.keep(chain.from_iterable(map(pieces_at, shards))):
        pass
    corpus.close()
    return Index.merge(student, shards, folder)


def add_candidates(index: Index, folder: Path, candidates: str | None, queries: Sequence[str] | None = None) -> None:
    """Give an index lists where they are asked for, judged by queries; None: by passages from everywhere, which find
    themselves and their like more easily than what people ask.
    """
    from d2llm.search.index import check_candidates, spread

    if candidates is not None:
        check_candidates(index.student.scorer, candidates, [], None)
        if queries is None:
            queries = texts_at(kept_texts(folder), spread(range(len(index))))["text"].tolist()
        index.add_lists(queries, folder)


def shard_of(pieces: Callable[[], Iterator[pd.DataFrame]], number: int, count: int) -> Iterator[pd.DataFrame]:
    """The `number`-th of `count` parts of all pieces, which are read twice: once to know how many rows there are."""
    whole, first = sum(map(len, pieces())) if count > 1 else 0, 0
    start, end = number * whole // count, (number + 1) * whole // count
    for piece in pieces():
        chosen = piece if count == 1 else piece.iloc[max(0, start - first) : max(0, end - first)]
        if len(chosen):
            yield chosen
        first += len(piece)


# ------------------------------------------------------------------------------------------------------------ from
# files
def read_texts(
    path: str, column: str | None = None, identity: str | None = None, quotes: Quotes | None = None
) -> pd.DataFrame:
    """id and text of a file, from its columns (default: `text`, and the number of the row).

    Raises DataError for one that is wrong, an id that is there twice among it, and ConfigError for a column of a text
    file.
    """
    import pandas as pd

    return pd.concat(list(texts_in(path, column, identity, quotes)), ignore_index=True)


def texts_in(
    path: str, column: str | None = None, identity: str | None = None, quotes: Quotes | None = None
) -> Iterator[pd.DataFrame]:
    """The same a piece at a time; an id that stands in two pieces is for `Corpus` to refuse."""
    import pandas as pd

    from d2llm.data.files import read as files

    place, start = Path(path), 0
    if place.suffix == ".txt":
        for option, value in (("--column", column), ("--id", identity), ("--quotes", quotes)):
            if value:
                raise ConfigError(f"{option}: {path} holds a text a line and has no columns")
        pieces: Iterator[Any] = pieces_of(lines_of(place))
    else:
        pieces = files.read_pieces(path, PIECE, quotes=quotes)
    for piece in pieces:
        values = piece if place.suffix == ".txt" else files.texts(path, piece, column or "text").tolist()
        numbers = map(str, range(start, start + len(values)))
        named = list(numbers) if identity is None else files.unique_ids(path, piece, identity).tolist()
        start += len(values)
        yield pd.DataFrame({"id": named, "text": values})


def pieces_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in lists of at most `PIECE`."""
    piece: list[str] = []
    for line in lines:
        piece.append(line)
        if len(piece) == PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, a text each: what only an editor takes for the end of one (a form feed, U+2028) stays
    in it.

    Raises DataError for a file that is missing or not UTF-8, and for a blank line: left out, it would shift the numbers
    of all that follow.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    number = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")  # with a byte order mark or without
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
            line = line.removesuffix("\n").removesuffix("\r")
            if is_blank(line):
                raise DataError(f"{path}: line {number}: expected a text; found a blank line")
            yield line
    if not number:
        raise DataError(f"{path}: no lines")


# -------------------------------------------------------------------------------------------------------- beside an
# index
class Corpus:
    """Keeps the texts that pass through, in a folder. `origin` is named where an id stands there twice."""

    def __init__(self, folder: Path, origin: str) -> None:
        from d2llm.search.store import Distinct

        self.folder, self.origin, self.count = folder, origin, 0
        self.ids = Distinct(folder / "ids.sqlite")
        self.writer: Any = None

    def keep(self, pieces: Iterable[pd.DataFrame]) -> Iterator[str]:
        """The texts of all pieces, one by one. Raises DataError for an id that was there before."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for piece in pieces:
            for name in piece["id"]:
                number, new = self.ids.number(name)
                if not new:
                    raise DataError(f"{self.origin}: expected every id once; found {name!r} again, as in row {number}")
            table = pa.Table.from_pandas(piece[["id", "text"]], preserve_index=False)
            if self.writer is None:
                self.writer = pq.ParquetWriter(self.folder / TEXTS, table.schema, compression="zstd")
            self.writer.write_table(table)
            self.count += len(piece)
            yield from piece["text"]

    def close(self) -> None:
        """All texts are there; of a part of fewer texts than parts, none."""
        import pandas as pd

        from d2llm.search.store import order_file

        if self.writer is None:
            pd.DataFrame({"id": [], "text": []}, dtype="str").to_parquet(self.folder / TEXTS)
        else:
            self.writer.close()
        order_file(self.folder / ORDER, self.ids.descending(), self.count)
        self.ids.close()


def kept_texts(folder: Path) -> Any:
    """The Parquet file of an index's texts. Raises ArtifactError where there is no index, or one without its texts."""
    import pyarrow.parquet as pq

    from d2llm.search.index import AGAIN, check_there

    check_there(folder)
    for name in (TEXTS, ORDER):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder}: an index without its texts ({name} is missing); `d2llm index` writes both")
    try:
        return pq.ParquetFile(folder / TEXTS)
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise ArtifactError(f"{folder / TEXTS}: damaged Parquet ({first_line(error)}); {AGAIN}") from error


def order_of(folder: Path) -> np.ndarray:
    """(m,) tie numbers of an index's passages, mapped."""
    from safetensors import safe_open

    with safe_open(str(folder / ORDER), framework="pt") as parts:
        return parts.get_tensor("ties").numpy()


def texts_at(texts: Any, rows: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """id and text of some rows of `kept_texts`, whose index they are."""
    import numpy as np
    import pandas as pd

    groups = [texts.metadata.row_group(number).num_rows for number in range(texts.num_row_groups)]
    starts = np.append(0, np.cumsum(groups))
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    which = np.searchsorted(starts, wanted, side="right") - 1
    parts = [
        texts.read_row_group(group)
        .to_pandas()
        .set_axis(range(starts[group], starts[group + 1]))
        .loc[wanted[which == group]]
        for group in np.unique(which)
    ]
    return pd.concat(parts) if parts else pd.DataFrame({"id": [], "text": []})


def pieces_at(folder: Path) -> Iterator[pd.DataFrame]:
    """All texts of an index, a piece at a time."""
    texts = kept_texts(folder)
    for number in range(texts.num_row_groups):
        yield texts.read_row_group(number).to_pandas()

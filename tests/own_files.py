"""Files as a user has them: JSON lines, and the three of a retrieval set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def rows(columns: str, *values: tuple) -> list[dict]:
    """Rows of columns named in one text."""
    return [dict(zip(columns.split(), row, strict=True)) for row in values]


def jsonl(path: Path, rows: Iterable[dict], mode: str = "w") -> str:
    """Write JSON lines, or add some (`mode` "a")."""
    with path.open(mode, encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return str(path)


def search_files(folder: Path, queries: dict, corpus: dict, qrels: Iterable[tuple]) -> dict[str, str]:
    """The three files of a retrieval set: {id: text}, {id: text} and (query id, document id, relevance)."""
    parts = {
        "queries": rows("id text", *queries.items()),
        "corpus": rows("id text", *corpus.items()),
        "qrels": rows("query_id doc_id relevance", *qrels),
    }
    return {name: jsonl(folder / f"{name}.jsonl", part) for name, part in parts.items()}

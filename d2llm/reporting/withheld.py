"""What `keep` copies of a run on files without a word of their texts: licences let results be published, not texts.

Cards and examples lose their texts, the page that shows texts is left out, and every kept file is then searched for
any text of the run. What is kept otherwise is decided in `reference`.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.data.card import markdown, without_examples
from d2llm.run.artifacts import read_frame, read_json, write_text
from d2llm.run.errors import ArtifactError

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.run.paths import Paths

# Keys of `examples.json` that hold a text.
TEXTS = ("query", "passage", "text")
# Characters by which a text is looked for, and by which a place is then confirmed: of texts in Chinese, and of others.
# Shorter texts are words that may stand anywhere.
LOOKED_FOR = {True: (8, 12), False: (24, 32)}


def rewritten(paths: Paths) -> dict[Path, str | None]:
    """The kept files that hold texts, by path: what is written in their place, or None for one that is left out."""
    card = without_examples(read_json(paths.card_json))
    return {
        paths.card_json: dumped(card),
        paths.card_md: markdown(card),
        paths.examples: dumped(hashed(read_json(paths.examples))),
        paths.search_notebook: None,
    }


def dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def hashed(content: Any) -> Any:
    """The same with a digest for every text, by which one who has the data can find it."""
    if isinstance(content, list):
        return [hashed(item) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
        if key in TEXTS and isinstance(value, str)
        else hashed(value)
        for key, value in content.items()
    }


def without_places(folder: Path, config: Config) -> None:
    """Name every absolute path of the config by its last part in the kept files: where it lies is the user's affair."""
    places = sorted({place for place in values(config.model_dump(mode="json")) if Path(place).is_absolute()})
    for file in readable(folder):
        text = renamed = file.read_text(encoding="utf-8")
        for place in reversed(places):  # what lies in a folder before the folder
            renamed = renamed.replace(place, Path(place).name)
        if renamed != text:
            write_text(file, renamed)


def values(content: Any) -> Iterator[str]:
    """Every text in a config."""
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from values(item)
    elif isinstance(content, str):
        yield content


def check(folder: Path, paths: Paths) -> None:
    """Raise ArtifactError for a kept file that holds a text of the run's data, as it is, escaped, or in part."""
    wanted: dict[str, set[str]] = {}
    for text in texts_of(paths):
        first, whole = LOOKED_FOR[any(character > "\u2e7f" for character in text)]
        if len(text) >= first:
            wanted.setdefault(text[:first], set()).add(text[:whole])
    for file in readable(folder):
        for content in spellings(file):
            held = search(content, wanted)
            if held is not None:
                place = file.relative_to(folder).as_posix()
                digest = hashlib.sha256(held.encode()).hexdigest()[:16]
                raise ArtifactError(
                    f"{place}: would hold a text of the data ({len(held)} characters with SHA-256 {digest}), and "
                    "nothing was kept; `d2llm keep --texts` keeps texts where you may publish them"
                )


def search(content: str, wanted: dict[str, set[str]]) -> str | None:
    """The first text of `wanted` (by its beginning) in a file's content."""
    for size, _ in LOOKED_FOR.values():
        for start in range(len(content) - size + 1):
            for text in wanted.get(content[start : start + size], ()):
                if content.startswith(text, start):
                    return text
    return None


def readable(folder: Path) -> Iterator[Path]:
    """Every kept file but tables of numbers in Parquet."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".parquet")


def spellings(file: Path) -> Iterable[str]:
    """A file's content, and what it means to a reader of its kind where that is spelled otherwise."""
    raw = file.read_text(encoding="utf-8")
    forms = {raw, html.unescape(raw)}
    if file.suffix in (".json", ".ipynb"):
        forms.add(json.dumps(json.loads(raw), ensure_ascii=False))
    return forms


def texts_of(paths: Paths) -> Iterator[str]:
    """Every text of the training pairs, the pool, the teacher's groups and the evaluation sets."""
    for name, columns in ((paths.train_pairs, ("query", "positive")), (paths.pool, ("text",))):
        for column in columns:
            yield from read_frame(name, {column: "str"})[column].unique()
    for file in (paths.teacher_train, paths.teacher_dev):
        groups = read_frame(file, {"query": "str", "passages": "list"})
        yield from groups["query"]
        yield from (text for passages in groups["passages"] for text in passages)
    for file in sorted(paths.tasks.rglob("*.parquet")):
        frame = read_frame(file)
        for column in ("query", "passage", "text"):
            if column in frame:
                yield from frame[column].unique()

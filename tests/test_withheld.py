"""`d2llm keep` of a run on files: no file it writes holds a text of the data, whichever file the text came by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from made_up_run import extras, make
from own_files import jsonl

from d2llm.config.schema import Config
from d2llm.data import build
from d2llm.reporting.reference import keep
from d2llm.run.artifacts import read_json, write_json, write_text
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths

MARK = "秘密记号二四六八"
ENGLISH = "a secret that nobody may publish, whatever happens"


@pytest.fixture
def finished(tmp_path: Path) -> Config:
    """A made-up run whose data stage has read real files, every text of which holds a marker."""
    texts = [(f"{MARK}第{n}句话", f"{ENGLISH} {n}", n % 2) for n in range(24)]
    pairs = jsonl(tmp_path / "texts" / "pairs.jsonl", rows(texts)) if (tmp_path / "texts").mkdir() is None else ""
    test = jsonl(tmp_path / "texts" / "test.jsonl", rows((f"{a}？", f"{MARK}{b}", n) for a, b, n in texts))
    train = {"file": Path(pairs).name, "query": "a", "passage": "b", "label": "l", "yes": [1]}
    task = {"type": "pair_classification", "group": "nli", "test": Path(test).name, "query": "a", "passage": "b",
            "label": "l"}  # fmt: skip
    files = {"folder": str(tmp_path / "texts"), "train": {"t": train}, "tasks": {"e": task}, "teacher_dev": 0.3}
    models = dict.fromkeys(("teacher", "decoder", "encoder"), {"source": str(tmp_path / "model")})
    settings = {"data": {"source": "files", "files": files}, "training": {"pack": 2, "dev_every": 0}, "models": models}
    config = make(tmp_path / "run", **settings)
    extras(config)
    build.run(config)
    paths = Paths.of(config)
    figure = paths.figure("main", "svg")
    for file in (
        figure,
        paths.ablations,
        paths.contrasts,
        paths.curves,
        paths.runtime,
        paths.search_notebook,
        paths.trials_md,
        paths.chosen,
    ):
        write_text(file, f"{MARK}第3句话" if file == paths.search_notebook else "numbers")
    paths.trials.unlink()
    example = {"query": f"{MARK}第3句话", "passage": ENGLISH, "instead": [{"methods": ["bge"], "text": MARK}]}
    write_json(paths.examples, {"kept": 40, "tasks": [{"task": "e", "examples": [example]}]})
    return config


def rows(texts) -> list[dict]:
    return [dict(zip("abl", row, strict=True)) for row in texts]


def test_no_kept_file_holds_a_text(finished: Config, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    files = keep(finished, folder)
    assert {"data/card.md", "examples.json", "provenance.json"} <= {str(file.relative_to(folder)) for file in files}
    escaped = json.dumps(MARK)[1:-1]
    for file in files:
        content = file.read_text(encoding="utf-8")
        assert not any(text in content for text in (MARK, escaped, ENGLISH, str(tmp_path))), file
    [example] = read_json(folder / "examples.json")["tasks"][0]["examples"]
    assert example["passage"] == f"sha256:{hashlib.sha256(ENGLISH.encode()).hexdigest()[:16]}"
    # What is known of the texts without them: which files they were read from.
    read = {row["file"]: row for row in read_json(folder / "data/card.json")["files"]}
    content = (tmp_path / "texts" / "pairs.jsonl").read_bytes()
    assert read["pairs.jsonl"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert read["pairs.jsonl"]["bytes"] == len(content) and set(read) == {"pairs.jsonl", "test.jsonl"}
    assert keep(finished, folder, texts=True) and MARK in (folder / "data/card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        f"a,{MARK}第5句话,b",
        json.dumps(f"<i>{MARK}第5句话"),
        "".join(f"&#{ord(letter)};" for letter in f"{MARK}第5句话"),
        f"x {ENGLISH[:40]}",
    ],
)
def test_a_text_that_came_another_way_stops_it(text: str, finished: Config, tmp_path: Path) -> None:
    file = Paths.of(finished).table("nli", "md")
    keep(finished, tmp_path / "kept")
    if text.startswith('"'):
        file = Paths.of(finished).negatives_report
    write_text(file, text)
    with pytest.raises(ArtifactError, match=rf"^{file.parent.name}/{file.name}: would hold a text of the data"):
        keep(finished, tmp_path / "kept")
    assert MARK not in (tmp_path / "kept/data/card.md").read_text(encoding="utf-8")  # the earlier copy stays

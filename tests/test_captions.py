"""Captions, figures and the page say of data and machine what the run's own say, whatever its tier."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from made_up_run import PAIRS, RANKS, SIMILARITY, extras, make
from test_report import PIXEL, Page

from d2llm.config.catalogue import entries
from d2llm.config.data import TASKS
from d2llm.config.schema import Config
from d2llm.reporting import captions
from d2llm.reporting.context import context
from d2llm.reporting.page import report
from d2llm.run.artifacts import write_text
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("table", "figure")
OTHERS = [
    ("sick", "SICK-E", "pair_classification", "nli", PAIRS),
    ("mrpc", "MSRP", "pair_classification", "nli", PAIRS),
    ("stsb", "STS-B", "sts", "sts", SIMILARITY),
    ("nfcorpus", "NFCorpus", "retrieval", "ir", RANKS),
]
# What only the generated world has, and what only some machines are.
TITLES = [re.escape(about[0]) for about in TASKS.values()]
WORLD = re.compile("|".join([*TITLES, "generat", "controlled text", "symbolic", "CPU", "models this small"]))


def other_data() -> dict:
    """Settings of files with titles of their own; a set of mteb goes by mteb's name."""
    retrieval = {"queries": "q.csv", "corpus": "c.csv", "qrels": "r.csv"}
    sets = {
        name: {"type": kind, "group": group, "title": title, "description": f"about {title}"}
        | {"test": retrieval if group == "ir" else "t.jsonl"}
        for name, title, kind, group, _ in OTHERS
    }
    sets["mrpc"] = {"mteb": "MSRP", "type": "pair_classification", "group": "nli", "description": "news"}
    train = {"nli": {"mode": "symmetric", "file": "t.jsonl", "label": "label", "yes": [1]}}
    return {"source": "files", "files": {"train": train, "tasks": sets}}


def told(config: Config) -> Iterator[tuple[str, str]]:
    """Everything that a run says of itself: the page, captions as Snakemake's report has them, figures."""
    paths = Paths.of(config)
    for name in entries("figure"):
        write_text(paths.figure(name, "svg"), PIXEL)
    yield "page", Page(report.html(config)).text
    for kind in KINDS:
        for name in entries(kind):
            text = captions.caption(kind, name, context(config))
            yield f"caption of {name}", f"{text.title} {text.text} {text.alt}"
    for file in (ROOT / "workflow" / "report").glob("*.rst"):
        yield file.name, file.read_text(encoding="utf-8")


def test_nothing_is_said_of_a_world_or_a_machine_that_the_run_does_not_have(tmp_path: Path) -> None:
    models = dict.fromkeys(("teacher", "decoder", "encoder"), {"source": "org/model"})
    config = make(tmp_path, tasks=OTHERS, data=other_data(), models=models, training={"dev_every": 0}, tier="own")
    extras(config, OTHERS)
    texts = dict(told(config))
    assert {name: match[0] for name, text in texts.items() if (match := WORLD.search(text))} == {}
    assert "MSRP (news) and SICK-E (about SICK-E)" in texts["caption of nli"]


def test_a_world_is_named_where_a_run_has_one(tmp_path: Path) -> None:
    texts = dict(told(make(tmp_path)))
    assert "texts are generated" in texts["page"]
    assert "NLI-A (premise and hypothesis in the wording of the training pairs)" in texts["caption of nli"]
    assert "IR-C, IR-K and IR-Q" in texts["caption of sweep_ir"] and "QMatch" in texts["caption of sts"]

"""Captions, figures and the page say of data and machine what the run's own say, whatever its tier."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import PAIRS, RANKS, SIMILARITY, extras, make
from test_report import PIXEL, Page

from d2llm.config.catalogue import entries
from d2llm.config.data import TASKS
from d2llm.config.schema import Config
from d2llm.reporting import captions
from d2llm.reporting.collected import Collected
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


def runtime(device: str) -> pd.DataFrame:
    """Times of all rows, measured on this device."""
    rows = [
        {"method": method, "phase": phase, "per": "query", "batch": 40, "corpus": 0 if phase == "score" else 1000}
        | {"q1": 1e-4, "median": 2e-4, "q3": 3e-4, "bytes_per_passage": 64.0, "embedding_bytes": 64.0}
        for method in ("teacher", "bge", "sgpt", "d2llm")
        for phase in ("encode_query", "encode_passage", "score", "rerank" if method == "teacher" else "search")
    ]
    return pd.DataFrame(rows).assign(threads=2, device=device, repeats=3, extrapolated=False)


def drawn(config: Config, device: str) -> Iterator[tuple[str, str]]:
    """Every figure with all its texts."""
    from matplotlib import pyplot
    from matplotlib.text import Text

    from d2llm.reporting.drawing import figures

    paths = Paths.of(config)
    scores = pd.read_parquet(paths.scores)
    pairs = [
        {"method": method, "variant": "base", "seed": 1, "task": task, "query_id": str(n), "doc_id": "", "score": n**2}
        for method in ("teacher", "bge", "sgpt", "d2llm")
        for task in sorted(set(scores.loc[scores["group"] != "ir", "task"]))
        for n in range(5)
    ]
    line = {"variant": "base", "seed": 1, "name": "info_nce", "value": 0.5, "step": 5, "stage": "fine-tuning"}
    curves = [line | {"method": method} for method in config.methods]
    curves += [row | {"stage": "dev", "name": scores["task"].iloc[0]} for row in curves]
    frames = {"runtime": runtime(device), "curves": pd.DataFrame(curves), "predictions": pd.DataFrame(pairs)}
    collected = Collected(scores, comparisons=pd.read_csv(paths.comparisons), **frames)
    data = figures.Data(collected, context(config), config)
    for name, entry in entries("figure").items():
        figure = import_module(entry.module).draw(data)
        yield name, " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
        pyplot.close(figure)


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
    yield from drawn(config, "NVIDIA H200")
    for file in (ROOT / "workflow" / "report").glob("*.rst"):
        yield file.name, file.read_text(encoding="utf-8")


def test_nothing_is_said_of_a_world_or_a_machine_that_the_run_does_not_have(tmp_path: Path) -> None:
    models = dict.fromkeys(("teacher", "decoder", "encoder"), {"source": "org/model"})
    config = make(tmp_path, tasks=OTHERS, data=other_data(), models=models, training={"dev_every": 0}, tier="own")
    extras(config, OTHERS)
    texts = dict(told(config))
    assert {name: match[0] for name, text in texts.items() if (match := WORLD.search(text))} == {}
    assert (
        "MSRP (news) and SICK-E (about SICK-E)" in texts["caption of nli"] and "MSRP" in texts["caption of sweep_nli"]
    )
    assert (
        "on STS-B (about STS-B)." in texts["caption of sts"]
        and "NFCorpus" in texts["main"]
        and "MSRP" in texts["phenomena"]
    )
    assert "NVIDIA H200." in texts["runtime"] and "NVIDIA H200," in texts["latency"]
    assert len(texts) == 1 + len(entries("table")) + 2 * len(entries("figure")) + 4


def test_a_world_and_a_processor_are_named_where_a_run_has_them(tmp_path: Path) -> None:
    config = make(tmp_path)
    texts = dict(told(config))
    assert "NLI-A (premise and hypothesis in the wording of the training pairs)" in texts["caption of nli"]
    assert "IR-C, IR-K and IR-Q" in texts["caption of sweep_ir"] and "QMatch" in texts["caption of sts"]
    assert all("texts are generated" in texts[name] for name in ("page", "main", "leads", "runtime", "phenomena"))
    texts = dict(drawn(config, "CPU"))
    assert "CPU, 2 threads." in texts["runtime"] and "CPU, 2 threads," in texts["latency"]


def test_a_page_without_nli_says_nothing_of_it(tmp_path: Path) -> None:
    config = make(tmp_path, methods=("d2llm",))
    path = Paths.of(config).scores_csv
    scores = pd.read_csv(path, keep_default_na=False)
    scores[scores["group"] != "nli"].to_csv(path, index=False)
    page = Page(report.html(config))
    assert "Entailment" not in page.text and "recall of NLI" not in page.text and "on labels of its own." in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_and_figure_has_its_texts(kind: str) -> None:
    about = context(Config(methods={"bge": {}}))
    for name in entries(kind):
        text = captions.caption(kind, name, about)
        assert text.section in captions.SECTIONS and text.title and text.text[-1] in ".…" and "{" not in text.text
        assert text.alt or kind == "table"
    assert captions.caption(kind, "not_known", about).title == "Not known"

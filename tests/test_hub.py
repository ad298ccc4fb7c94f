"""What the hub is asked before anything is fetched: every file that a config needs is there and may be had, and there is
room for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hub
import hub_sets
import pytest
import yaml
from huggingface_hub import constants
from test_download import PAPER, python

from d2llm.cli import doctor
from d2llm.config.load import load

ROOT = Path(__file__).resolve().parent.parent
GONE = "e482ee3f73c375a627a16fdf66fd0c8279743ca6"
# What doctor says of the hub, and a download, in one process: (files, free bytes or null) of each config.
CODE = """
import json, shutil, sys
from collections import namedtuple
from d2llm.cli import doctor, main as cli
from d2llm.config.load import load
from d2llm.run import hub
hub.SHORT = (0.0, 0.0)
for files, free in json.loads(sys.argv[1]):
    if free is not None:
        shutil.disk_usage = lambda place: namedtuple("Usage", "free")(free)
    findings, coming = doctor.sent(load(files))
    print("said", json.dumps([[f"{one.level}: {one.subject}: {one.state}; {one.fix}" for one in findings], coming]))
name = next(one for one in load(files).data.files.downloads() if "collection.tsv" in one)
sys.exit(cli.main(["download", "--download", name, "--config", *files]) != 2)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    hub_sets.write_sets(folder, 24)
    hub_sets.write_models(folder)
    return folder


def said(folder: Path, address: str, *wanted: tuple[dict, float | None]) -> tuple[list[list], str]:
    """[lines, bytes to come] of config/paper.yaml with each of these changes and so much room; the last line of a
    download of the last."""
    asked = []
    for number, (changes, free) in enumerate(wanted):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump({"results": str(folder / "results")} | changes))
        asked.append(([str(PAPER), str(folder / f"{number}.yaml")], free))
    out, err = python(ROOT, "-c", CODE, json.dumps(asked), HF_ENDPOINT=address, HF_HOME=str(folder / "home"))
    lines = [json.loads(line.removeprefix("said ")) for line in out.splitlines() if line.startswith("said ")]
    return lines, err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_hub_that_has_it_all_says_how_much_will_come(root: Path, tmp_path: Path) -> None:
    """From a hub that is busy at first. A disk that is too small for it is an error before anything is fetched, of
    doctor as of the download itself."""
    with hub.serving(root, failures=1) as (address, asked):
        [(lines, (everything, data)), (small, _)], refused = said(tmp_path, address, ({}, None), ({}, 100.0))
        fetched = {path for method, path in asked if method == "GET" and "/api/" not in path}
    assert [line.split(" ")[0] for line in lines] == ["ok:", "ok:"] and "has all of it" in lines[0]
    assert small[-1].startswith("error: disk: 0.0 GB free for ") and "set HF_HOME to a folder on a larger" in small[-1]
    corpus = r"error: data\.files\.train\.t2ranking: data set THUIR/T2Ranking at \w+ takes 0\.0 GB, 0\.0 are free for "
    assert re.match(corpus, refused)
    names = {path.rpartition("/")[2] for path in fetched}
    assert names == {"README.md", "model.safetensors.index.json"}  # the cards of data sets; nothing large
    needed: list[Path] = []
    for model in ("Qwen/Qwen1.5-7B-Chat", "Qwen/Qwen1.5-1.8B-Chat", "BAAI/bge-large-zh-v1.5"):
        needed += [file for file in (root / model).glob("model*.safetensors") if "fp16" not in file.name]
        needed += [file for file in (root / model).iterdir() if file.suffix in (".json", ".txt")]
    indices = [file for file in needed if "index" in file.name]  # fetched to ask
    assert everything - data == sum(file.stat().st_size for file in set(needed) - set(indices))
    tables = [one for one in load([PAPER]).data.files.downloads().values() if getattr(one, "file", None)]
    of_tables = sum((root / "datasets" / one.repo / one.file).stat().st_size for one in tables)
    of_sets = sum(file.stat().st_size for file in (root / "datasets/mteb").glob("*Retrieval/**/*.parquet"))
    assert of_tables + of_sets < data


CHANGES = {
    "references": ["teacher", {"model": "no/row", "revision": GONE}],
    "models": {"encoder": {"revision": "main", "source": "BAAI/bge-base-zh-v1.5"}},
    "data": {
        "files": {
            "train": {
                "snli_zh": {"file": {"file": "ChineseTextualInference-tain.txt"}},
                "nli_zh_bq": {"file": {"split": "trian"}},
                "nli_zh_pawsx": {"file": {"subset": "english"}},
                "dureader": {"file": {"repo": "no/where"}},
            },
            "tasks": {"ocnli": {"test": "train"}, "atec": {"type": "pair_classification", "group": "nli"}},
        }
    },
}
TERMS = "is gated: its page on the hub asks for terms; accept them there, then log in (hf auth login) or set HF_TOKEN"
LACKS = [
    f"models.teacher.source: Qwen/Qwen1.5-7B-Chat at 5f4f5e69ac7f1d508f8369e977de208b4803444b {TERMS}",
    f"models.decoder.source: the hub has no Qwen/Qwen1.5-1.8B-Chat at {GONE}: no such revision, or it is gone",
    "models.encoder.source: 'BAAI/bge-base-zh-v1.5': its weights are pytorch_model.bin alone, no model.safetensors",
    f"references: no/row: the hub has no no/row at {GONE}; check its name",
    "train.snli_zh: * has no file 'ChineseTextualInference-tain.txt'; nearest: 'ChineseTextualInference-train.txt'",
    "train.nli_zh_bq: data set C-MTEB/BQ at * has no split 'trian'; it has train, validation, test",
    "train.nli_zh_pawsx: data set C-MTEB/PAWSX at *: BuilderConfig 'english' not found. Available: ['default']",
    f"train.t2ranking: data set THUIR/T2Ranking at 2a369a430a70979223f1b9a41b1919774d46b432 {TERMS}",
    "train.dureader: the hub has no data set no/where at * check its name",
    "tasks.ocnli: data set C-MTEB/OCNLI at * has no split 'train'; it has validation",
    "tasks.atec.type: mteb has ATEC as STS; found 'pair_classification'",
    f"tasks.covid: data set mteb/CovidRetrieval at 9c6dc4b276bb47c3ff725bbc5ffcafd56dded38b {TERMS}",
]


@pytest.mark.slow
def test_each_thing_that_the_hub_does_not_give_is_one_line_with_its_key(root: Path, tmp_path: Path) -> None:
    gated = {"Qwen/Qwen1.5-7B-Chat": 401, "datasets/THUIR/T2Ranking": 403, "datasets/mteb/CovidRetrieval": 401}
    with hub.serving(root, gated=gated, gone=(GONE,)) as (address, _):
        [(lines, _)], refused = said(tmp_path, address, (CHANGES, None))
    errors = [line for line in lines if line.startswith("error: hub: ")]
    assert len(errors) == len(LACKS)
    for line, wanted in zip(errors, LACKS, strict=True):
        key = wanted if wanted.startswith(("models", "references")) else f"data.files.{wanted}"
        assert re.match(re.escape(f"error: hub: {key}").replace(r"\*", ".*"), line), line
    assert refused.startswith("error: data.files.train.t2ranking: data set THUIR/T2Ranking at ") and TERMS in refused


def test_without_a_network_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    findings = doctor.of_config(load([PAPER], {"results": str(tmp_path)}))
    [away] = [one for one in findings if one.level != "ok"]
    assert (away.level, away.subject) == ("error", "hub") and "127.0.0.1:9 cannot be reached (" in away.state
    assert "nothing of models and data sets there is asked, no sizes are estimated" in away.state

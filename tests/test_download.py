"""Data sets of the hub: every layout of the paper tier arrives as its rows, from a hub that fails; what is not there is
named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hub
import hub_sets
import pandas as pd
import pytest
from datasets import Dataset
from plain_mteb import PlainScorer

from d2llm.config.data import HubTable, MtebSet
from d2llm.config.evaluation import EvaluationSettings
from d2llm.config.load import load
from d2llm.data import build
from d2llm.data.hub import download
from d2llm.evaluation import tasks
from d2llm.evaluation.evaluate import evaluate
from d2llm.run import hub as library
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "config/paper.yaml"
SNLI = "shibing624--snli-zh--chinesetextualinference-train.txt--b0aa839a5138"
# Downloads in one process, without waits: (changes to config/paper.yaml, name of a download or None for all).
CODE = """
import json, sys, time
from pathlib import Path
from d2llm.cli import main as cli
from d2llm.config.load import load
time.sleep = lambda seconds: None  # as the hub library waits as well
paper, folder, wanted = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
for changes, only in wanted:
    (folder / "changes.yaml").write_text(changes)
    files = [paper, str(folder / "place.yaml"), str(folder / "changes.yaml")]
    for name in [only] if only else load(files).data.files.downloads():
        code = cli.main(["download", "--download", name, "--config", *files])
        print("code", code, name, file=sys.stderr)
"""


def python(folder: Path, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a process of its own says, on stderr too: the hub's address is read when libraries are imported."""
    given = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HOME")}
    command, options = [sys.executable, *arguments], {"capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(command, cwd=folder, env=given | environment, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def fetch(
    folder: Path, address: str, *wanted: tuple[str, str | None], home: dict[str, str] | None = None
) -> list[tuple[int, str]]:
    """(exit code, the line before it) of each."""
    (folder / "place.yaml").write_text(f"results: {folder / 'results'}\n")
    home = {"HF_HOME": str(folder / "home")} if home is None else home
    _, output = python(ROOT, "-c", CODE, str(PAPER), str(folder), json.dumps(wanted), HF_ENDPOINT=address, **home)
    lines = output.strip().splitlines()
    return [(int(line.split()[1]), lines[at - 1]) for at, line in enumerate(lines) if line.startswith("code ")]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    hub_sets.write_sets(root, 24)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("start", ["thuir--t2ranking--data--coll", "c-mteb--lcqmc"])
def test_a_cache_that_cannot_be_written_is_another_one_or_one_line(
    start: str, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the home: one in the results folder. Of HF_HOME, which the user chose: told at once, not after a minute and a
    half as a fault of the network."""
    (name,) = [name for name in load([PAPER]).data.files.downloads() if name.startswith(start)]
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with hub.serving(sets) as (address, _):
        ((code, _),) = fetch(tmp_path, address, ("{}", name), home={})
        assert code == 0 and (tmp_path / "results/paper/cache/huggingface").is_dir()
        ((code, line),) = fetch(tmp_path, address, ("{}", name), home={"HF_HOME": "/proc/none/hub"})
    assert code == 2 and "HF_HOME: the hub's cache /proc/none/hub/hub cannot be written; set HF_HOME" in line


@pytest.mark.slow
def test_every_set_of_the_paper_tier_from_a_hub_that_fails(sets: Path, tmp_path: Path) -> None:
    with hub.serving(sets, failures=1, cuts=1) as (address, _):
        outcomes = fetch(tmp_path, address, ("{}", None))
    assert {code for code, _ in outcomes} == {0}, [line for code, line in outcomes if code]
    config = load([PAPER, tmp_path / "place.yaml"])
    paths = Paths.of(config)
    rows = {name: read_json(paths.download(name) / "source.json")["rows"] for name in config.data.files.downloads()}
    expected = {
        SNLI: {"table.parquet": 26},
        "thuir--t2ranking--data--qrels.retrieval.train.tsv--2a369a430a70": {"table.parquet": 25},
        "thuir--t2ranking--data--collection.tsv--2a369a430a70": {"table.parquet": 25},
        # Triples of ids: the right pairs of each once.
        "fzkuji--cmedqa2--raw--train_candidates.txt--9c76bec03ab8": {"table.parquet": 24},
        "unicamp-dl--mmarco--data--triples.train.ids.small.tsv--6d039c4638c0": {"table.parquet": 24},
        "mteb--ocnli": {"validation.parquet": 24},  # one row of lists
        "mteb--stsb": {"validation.parquet": 24, "test.parquet": 24},
        # Eight queries, of which one is not judged.
        "mteb--t2retrieval": {"dev/queries.parquet": 7, "dev/corpus.parquet": 8, "dev/qrels.parquet": 13},
    }
    assert {name: rows[name] for name in expected} == expected

    # The stage that reads them has nothing but these files.
    build.run_texts(config)
    build.run(config)
    train = pd.read_parquet(paths.train_pairs)
    counts = train.groupby("dataset").size().to_dict()
    searches = {"t2ranking": 24, "dureader": 23, "cmedqa2": 24, "mmarco_zh": 24}
    assert counts == {name: 12 for name in counts if name.startswith(("snli", "nli"))} | searches
    assert set(train.loc[train["mode"] == "asymmetric", "dataset"]) == set(searches)
    row = train[train["dataset"] == "t2ranking"].iloc[3]
    assert row["positive"].startswith(row["query"].removesuffix("做什么"))  # the passage of this very question
    task = read_json(paths.task("ocnli") / "task.json")
    assert task["mteb"]["name"] == "Ocnli" and task["splits"] == ["test"]
    assert task["mteb"]["revision"] == "66e76a618a34d6d565d5538088562851e6daa7ec"


@pytest.mark.slow
def test_what_is_stored_under_mtebs_name_is_what_mtebs_own_class_returns(sets: Path, tmp_path: Path) -> None:
    """Every retrieval, pair and STS set of the paper tier, and one of several languages."""
    more = "{data: {files: {tasks: {sts22: {mteb: STS22, subset: zh, type: sts, group: sts}}}}}"
    with hub.serving(sets) as (address, _):
        assert {code for code, _ in fetch(tmp_path, address, (more, None))} == {0}
        config = load([PAPER, tmp_path / "place.yaml", tmp_path / "changes.yaml"])
        named = {name: task for name, task in config.data.files.tasks.items() if isinstance(task, MtebSet)}
        (tmp_path / "tasks.json").write_text(json.dumps([(t.mteb, t.test, t.subset) for t in named.values()]))
        places = {"HF_HOME": str(tmp_path / "home"), "MTEB_CACHE": str(tmp_path / "mteb")}
        plain = str(ROOT / "tests/plain_mteb.py")
        python(tmp_path, plain, "tasks.json", "scores.json", HF_ENDPOINT=address, **places)
    expected = read_json(tmp_path / "scores.json")
    assert len(expected) == 18
    build.run(config)
    settings = EvaluationSettings.model_validate({"symmetric_order": {"sts": "as_given"}, "keep": 10})
    for name, known in named.items():
        task = tasks.read(Paths.of(config).task(name), "test")
        scores, _ = evaluate(PlainScorer(), [task], "plain", settings, tmp_path / "stored")
        stored = read_json(tmp_path / f"stored/results/d2llm__plain/local/{known.mteb}.json")
        [result] = stored["scores"][known.test]
        assert result["hf_subset"] == (known.subset or "default")
        for metric, value in expected[known.mteb].items():
            assert result[metric] == (None if value != value else pytest.approx(value, abs=1e-6)), (name, metric)
        for row in scores[scores["phenomenon"] == "all"].itertuples():
            key = f"similarity_{row.metric}" if task.type == "pair_classification" else row.metric
            assert row.value == pytest.approx(expected[known.mteb][key], abs=1e-6), (name, row.metric)


@pytest.mark.slow
def test_a_file_that_came_damaged_is_fetched_again(sets: Path, tmp_path: Path) -> None:
    with hub.serving(sets, damage=("ChineseTextualInference-train.txt",)) as (address, _):
        assert [code for code, _ in fetch(tmp_path, address, ("{}", SNLI))] == [0]
    table = pd.read_parquet(tmp_path / "results" / "paper" / "downloads" / SNLI / "table.parquet")
    assert table["gold_label"].iloc[-1] == "-"  # the byte that was changed is the one after it


@pytest.mark.slow
def test_what_cannot_be_used_or_reached_is_named(sets: Path, tmp_path: Path) -> None:
    """What the hub does not give: tests/test_hub.py."""
    quest = "{data: {files: {train: {dureader: {file: {keep: [quest]}}}}}}"
    with hub.serving(sets) as (address, _):
        [(code, line)] = fetch(
            tmp_path, address, (quest, "zyznull--dureader-retrieval-ranking--train.jsonl.gz--70ae446852c1")
        )
    assert code == 2 and re.match("error: data.files.train.dureader: .*has no column 'quest'", line)
    [(code, line)] = fetch(tmp_path, "http://127.0.0.1:9", ("{}", "mteb--atec"))
    assert code == 2 and "check the network, HF_ENDPOINT" in line
    assert "data.files.tasks.atec: data set C-MTEB/ATEC at" in line


def test_only_what_the_config_says_is_fetched_and_nothing_else_runs_online() -> None:
    config = load([PAPER])
    assert not config.offline and load([ROOT / "config/mini.yaml"]).offline
    downloads = config.data.files.downloads().values()
    assert len([one for one in downloads if isinstance(one, MtebSet)]) == 17
    revisions = [one.revision for one in downloads if isinstance(one, HubTable)]
    revisions += [config.models.of(name).revision for name in config.models.names()]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)  # commits, that do not move


def test_a_split_without_rows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"repo": "org/set", "revision": "x", "split": "test", "keep": ["query", "passage"]}
    config = load([], settings({"nli": {"file": table}}) | {"results": str(tmp_path)})
    monkeypatch.setattr(download, "checked", lambda *_: Dataset.from_dict({"query": []}))
    (name,) = [name for name, one in config.data.files.downloads().items() if isinstance(one, HubTable)]
    with pytest.raises(ConfigError, match=r"train\.nli: data set org/set at x: its split 'test' has no rows"):
        download.run(config, name)
    assert not Paths.of(config).download(name).exists()


# --------------------------------------------------------------------------------------------------------- persistence
def test_one_failure_again_and_again_ends_and_other_ones_are_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WAITS", (0.0, 0.0))
    asked: list[Exception] = []

    def fails(error: Exception, times: int = 99) -> Callable[[], str]:
        def fetch() -> str:
            asked.append(error)
            if len(asked) <= times:
                raise type(error)(str(error).format(len(asked)))
            return "here"

        asked.clear()
        return fetch

    assert library.patiently(fails(OSError("503 for file {}"), 9), "set", "key") == "here"
    with pytest.raises(ArtifactError, match=r"key: set cannot be fetched \(503 for file 1\); what has come is kept"):
        library.patiently(fails(OSError("503 for file 1")), "set", "key")
    assert len(asked) == 3
    with pytest.raises(ArtifactError):  # a command somebody waits for asks once
        library.patiently(fails(OSError("503")), "set", "key", waits=())
    assert len(asked) == 1
    with pytest.raises(ZeroDivisionError):  # is no failure of the hub, and not hidden as one
        library.patiently(fails(ZeroDivisionError("a bug")), "set", "key")


def test_digests_by_the_names_a_cache_gives_its_files(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"hello\n")
    # As `sha256sum` and `git hash-object` print them.
    assert library.digest_of(file, 64) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert library.digest_of(file, 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert library.digest_of(file, 12) is None


# -------------------------------------------------------------------------------------------------------------- config
TABLE = {"repo": "a/b", "revision": "x", "file": "f.csv", "keep": ["query", "passage"]}


def settings(train: dict) -> dict:
    tasks = {"t": {"mteb": "Ocnli", "type": "pair_classification", "group": "nli", "test": "validation"}}
    models = {name: {"source": f"org/{name}"} for name in ("teacher", "encoder")}
    data = {"source": "files", "files": {"train": train, "tasks": tasks}}
    return {"data": data, "methods": {"bge": {}}, "models": models, "training": {"dev_every": 0}}


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ({"repo": "a/b", "revision": "x"}, {}, "either split .* or file"),
        ({"repo": "a/b", "revision": "x", "split": "t", "columns": ["a"]}, {}, "subset with split; format and columns"),
        ({"repo": "ab", "revision": "x", "split": "t"}, {}, r"data\.files\.train\.nli\.file\.repo: expected"),
        ({"repo": "a/b", "split": "t"}, {}, r"data\.files\.train\.nli\.file\.revision: missing"),
        ({"repo": "a/b", "revision": "x", "split": "t"}, {"no": [0]}, "no together with label and yes"),
    ],
)
def test_a_wrong_table_is_refused(table: dict, more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load([], settings({"nli": {"file": table} | more}))


def test_tables_become_files_below_downloads() -> None:
    local = load([PAPER]).data.files.local(Path("d"))
    corpus = "d/thuir--t2ranking--data--collection.tsv--2a369a430a70/table.parquet"
    assert local.train["snli_zh"].file == f"d/{SNLI}/table.parquet"
    assert local.train["t2ranking"].retrieval.corpus == corpus
    assert (local.tasks["ocnli"].dev, local.tasks["ocnli"].test) == (None, "d/mteb--ocnli/validation.parquet")
    assert local.tasks["t2"].test.qrels == "d/mteb--t2retrieval/dev/qrels.parquet"
    assert not local.downloads()


def test_two_ways_of_reading_one_file_are_refused() -> None:
    # Equal ones are one download.
    assert len(load([], settings({"one": {"file": TABLE}, "two": {"file": TABLE}})).data.files.downloads()) == 2
    with pytest.raises(ConfigError, match="data.files: expected one way of reading a/b"):
        load([], settings({"one": {"file": TABLE}, "two": {"file": TABLE | {"keep": ["query"]}}}))

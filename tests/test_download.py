"""Data sets of the hub: every layout of the paper tier arrives as its rows, from a hub that fails; what is not there is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub
import hub_sets
import pandas as pd
import pytest

from d2llm.config.data import HubTable, MtebSet
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.run import hub as library
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
# Downloads in one process, with short waits: (changes to config/paper.yaml, name of a download or None for all).
CODE = """
import json, sys, time
from pathlib import Path
from d2llm import cli, hub
from d2llm.config import load
time.sleep = lambda seconds: None  # as the hub library waits as well
paper, folder, wanted = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
for changes, only in wanted:
    (folder / "changes.yaml").write_text(changes)
    files = [paper, str(folder / "place.yaml"), str(folder / "changes.yaml")]
    for name in [only] if only else load(files).data.files.downloads():
        code = cli.main(["download", "--download", name, "--config", *files])
        print("code", code, name, file=sys.stderr)
"""


def fetch(
    folder: Path, address: str, *wanted: tuple[str, str | None], hub_home: str | None = ""
) -> list[tuple[int, str]]:
    """(exit code, the line before it) of each; the hub's address is read when libraries are imported. `hub_home`: HF_HOME, None for none."""
    (folder / "place.yaml").write_text(f"results: {folder / 'results'}\n")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment.pop("HF_HOME", None)
    environment |= {"HF_ENDPOINT": address} | (
        {} if hub_home is None else {"HF_HOME": hub_home or str(folder / "home")}
    )
    command = [sys.executable, "-c", CODE, str(ROOT / "config/paper.yaml"), str(folder), json.dumps(wanted)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.strip().splitlines()
    return [(int(line.split()[1]), lines[at - 1]) for at, line in enumerate(lines) if line.startswith("code ")]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    hub_sets.write_sets(root, 24)
    return root


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_another_one_or_one_line(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the home: one in the results folder. Of HF_HOME, which the user chose: told at once, not after a minute and a half as a fault of the network."""
    wanted = [name for name in load([ROOT / "config/paper.yaml"]).data.files.downloads() if name.startswith(("thuir--t2ranking--data--coll", "c-mteb--lcqmc"))]  # fmt: skip
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with hub.serving(sets) as (address, _):
        for name, hub_home in [(name, hub_home) for name in wanted for hub_home in (None, "/proc/none/hub")]:
            ((code, line),) = fetch(tmp_path, address, ("{}", name), hub_home=hub_home)
            if hub_home is None:
                assert code == 0 and (tmp_path / "results/paper/cache/huggingface").is_dir()
            else:
                assert (
                    code == 2 and "HF_HOME: the hub's cache /proc/none/hub/hub cannot be written; set HF_HOME" in line
                )


@pytest.mark.slow
def test_every_set_of_the_paper_tier_from_a_hub_that_fails(sets: Path, tmp_path: Path) -> None:
    with hub.serving(sets, failures=1, cuts=1) as (address, _):
        done = fetch(tmp_path, address, ("{}", None))
    assert {code for code, _ in done} == {0}, [line for code, line in done if code]
    config = load([ROOT / "config/paper.yaml", tmp_path / "place.yaml"])
    rows = {
        name: json.loads((Paths.of(config).download(name) / "source.json").read_text())["rows"]
        for name in config.data.files.downloads()
    }
    assert rows.pop("shibing624--snli-zh--chinesetextualinference-train.txt--b0aa839a5138") == {"table.parquet": 26}
    assert rows.pop("thuir--t2ranking--data--qrels.retrieval.train.tsv--2a369a430a70") == {"table.parquet": 25}
    assert rows.pop("thuir--t2ranking--data--collection.tsv--2a369a430a70") == {"table.parquet": 25}
    # Triples of ids: the right pairs of each once.
    assert rows.pop("fzkuji--cmedqa2--raw--train_candidates.txt--9c76bec03ab8") == {"table.parquet": 24}
    assert rows.pop("unicamp-dl--mmarco--data--triples.train.ids.small.tsv--6d039c4638c0") == {"table.parquet": 24}
    assert rows.pop("mteb--ocnli") == {"validation.parquet": 24}  # one row of lists
    assert rows.pop("mteb--stsb") == {"validation.parquet": 24, "test.parquet": 24}
    # Eight queries, of which one is not judged.
    found = {"dev/queries.parquet": 7, "dev/corpus.parquet": 8, "dev/qrels.parquet": 13}
    assert rows.pop("mteb--t2retrieval") == found

    # The stage that reads them has nothing but these files.
    from d2llm.data import build

    build.run_texts(config)
    build.run(config)
    made = pd.read_parquet(Paths.of(config).train_pairs)
    counts = made.groupby("dataset").size().to_dict()
    assert counts == {name: 12 for name in counts if name.startswith(("snli", "nli"))} | {
        "t2ranking": 24, "dureader": 23, "cmedqa2": 24, "mmarco_zh": 24,
    }  # fmt: skip
    assert set(made.loc[made["mode"] == "asymmetric", "dataset"]) == {"t2ranking", "dureader", "cmedqa2", "mmarco_zh"}
    row = made[made["dataset"] == "t2ranking"].iloc[3]
    assert row["positive"].startswith(row["query"].removesuffix("做什么"))  # the passage of this very question
    task = json.loads((Paths.of(config).task("ocnli") / "task.json").read_text())
    assert task["mteb"]["name"] == "Ocnli" and task["splits"] == ["test"]
    assert task["mteb"]["revision"] == "66e76a618a34d6d565d5538088562851e6daa7ec"


def untouched(folder: Path, address: str, wanted: list[tuple[str, str, str | None]]) -> dict[str, dict[str, float]]:
    """What mteb's own classes return for `plain_mteb`'s model, by task."""
    (folder / "tasks.json").write_text(json.dumps(wanted))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "MTEB_CACHE": str(folder / "mteb")}
    command = [sys.executable, str(ROOT / "tests/plain_mteb.py"), "tasks.json", "scores.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.slow
def test_what_is_stored_under_mtebs_name_is_what_mtebs_own_class_returns(sets: Path, tmp_path: Path) -> None:
    """Every retrieval, pair and STS set of the paper tier, and one of several languages."""
    from plain_mteb import PlainScorer

    from d2llm.config.evaluation import EvaluationSettings
    from d2llm.data import build
    from d2llm.evaluation import tasks
    from d2llm.evaluation.evaluate import evaluate

    more = "{data: {files: {tasks: {sts22: {mteb: STS22, subset: zh, type: sts, group: sts}}}}}"
    with hub.serving(sets) as (address, _):
        assert {code for code, _ in fetch(tmp_path, address, (more, None))} == {0}
        config = load([ROOT / "config/paper.yaml", tmp_path / "place.yaml", tmp_path / "changes.yaml"])
        named = {name: task for name, task in config.data.files.tasks.items() if isinstance(task, MtebSet)}
        expected = untouched(tmp_path, address, [(task.mteb, task.test, task.subset) for task in named.values()])
    assert len(expected) == 18
    build.run(config)
    settings = EvaluationSettings.model_validate({"symmetric_order": {"sts": "as_given"}, "keep": 10})
    for name, known in named.items():
        task = tasks.read(Paths.of(config).task(name), "test")
        scores, _ = evaluate(PlainScorer(), [task], "plain", settings, tmp_path / "stored")
        stored = json.loads((tmp_path / f"stored/results/d2llm__plain/local/{known.mteb}.json").read_text())
        [result] = stored["scores"][known.test]
        assert result["hf_subset"] == (known.subset or "default")
        for metric, value in expected[known.mteb].items():
            assert result[metric] == (None if value != value else pytest.approx(value, abs=1e-6)), (name, metric)
        for row in scores[scores["phenomenon"] == "all"].itertuples():
            key = f"similarity_{row.metric}" if task.type == "pair_classification" else row.metric
            assert row.value == pytest.approx(expected[known.mteb][key], abs=1e-6), (name, row.metric)


@pytest.mark.slow
def test_a_file_that_came_damaged_is_fetched_again(sets: Path, tmp_path: Path) -> None:
    name = "shibing624--snli-zh--chinesetextualinference-train.txt--b0aa839a5138"
    with hub.serving(sets, damage=("ChineseTextualInference-train.txt",)) as (address, _):
        assert [code for code, _ in fetch(tmp_path, address, ("{}", name))] == [0]
    made = pd.read_parquet(tmp_path / "results" / "paper" / "downloads" / name / "table.parquet")
    assert made["gold_label"].iloc[-1] == "-"  # the byte that was changed is the one after it


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_named(sets: Path, tmp_path: Path) -> None:
    key = "{data: {files: {train: {%s}}}}"
    wrong = [
        (key % "snli_zh: {file: {repo: no/where}}", "no--where--chinesetextualinference-train.txt--b0aa839a5138"),
        (key % "snli_zh: {file: {file: other.txt}}", "shibing624--snli-zh--other.txt--b0aa839a5138"),
        (key % "nli_zh_bq: {file: {split: trian}}", "c-mteb--bq--trian--e3dda5e115e4"),
        (
            key % "dureader: {file: {keep: [quest]}}",
            "zyznull--dureader-retrieval-ranking--train.jsonl.gz--70ae446852c1",
        ),
        ("{data: {files: {tasks: {ocnli: {type: sts, group: sts}}}}}", "mteb--ocnli"),
        ("{data: {files: {tasks: {ocnli: {test: train}}}}}", "mteb--ocnli"),
    ]
    with hub.serving(sets) as (address, _):
        found = fetch(tmp_path, address, *wrong)
    assert {code for code, _ in found} == {2}
    repo, file, split, column, kind, part = (line for _, line in found)
    assert repo == (
        "error: data.files.train.snli_zh: the hub has no data set no/where at b0aa839a5138eac8afbc3282c534cd8651f5350e; check name and revision"
    )
    assert "data.files.train.snli_zh" in file and "has no such file" in file
    assert split.startswith("error: data.files.train.nli_zh_bq: data set C-MTEB/BQ at e3dda5e") and "trian" in split
    assert "data.files.train.dureader" in column and "has no column 'quest'" in column
    assert "data.files.tasks.ocnli.type: mteb has Ocnli as PairClassification" in kind
    assert "data.files.tasks.ocnli: mteb's Ocnli has no split 'train'" in part
    [(code, away)] = fetch(tmp_path, "http://127.0.0.1:9", ("{}", "mteb--atec"))
    assert (
        code == 2
        and "data.files.tasks.atec: data set C-MTEB/ATEC at" in away
        and "check the network, HF_ENDPOINT" in away
    )


def test_only_what_the_config_says_is_fetched_and_nothing_else_runs_online() -> None:
    config = load([ROOT / "config/paper.yaml"])
    assert not config.offline and load([ROOT / "config/mini.yaml"]).offline
    assert len([d for d in config.data.files.downloads().values() if isinstance(d, MtebSet)]) == 17
    tables = [d for d in config.data.files.downloads().values() if isinstance(d, HubTable)]
    assert all(len(table.revision) == 40 for table in tables)  # commits, that do not move
    assert {m.revision for m in (config.models.teacher, config.models.decoder, config.models.encoder)} >= {None} - {
        None
    }
    assert all(len(config.models.of(name).revision) == 40 for name in config.models.names())


# --------------------------------------------------------------------------------------------------------- persistence
def test_one_failure_again_and_again_ends_and_other_ones_are_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WAITS", (0.0, 0.0))
    asked: list[int] = []

    def every_file_fails_once() -> str:
        asked.append(1)
        if len(asked) < 9:
            raise OSError(f"503 for file {len(asked)}")
        return "here"

    assert library.patiently(every_file_fails_once, "set", "key") == "here"

    def always() -> str:
        asked.append(1)
        raise OSError("503 for file 1")

    asked.clear()
    with pytest.raises(ArtifactError, match=r"key: set cannot be fetched \(503 for file 1\); what has come is kept"):
        library.patiently(always, "set", "key")
    assert len(asked) == 3

    asked.clear()
    with pytest.raises(ArtifactError):  # a command somebody waits for asks once
        library.patiently(always, "set", "key", waits=())
    assert len(asked) == 1

    def broken() -> str:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):  # is no failure of the hub, and not hidden as one
        library.patiently(broken, "set", "key")


def test_digests_by_the_names_a_cache_gives_its_files(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"hello\n")
    # As `sha256sum` and `git hash-object` print them.
    assert library.digest_of(file, 64) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert library.digest_of(file, 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert library.digest_of(file, 12) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": {"repo": "a/b", "revision": "x"}}, "either split .* or file"),
        ({"file": {"repo": "a/b", "revision": "x", "split": "train", "columns": ["a"]}}, "subset with split; format and columns with file"),
        ({"file": {"repo": "ab", "revision": "x", "split": "train"}}, r"data\.files\.train\.nli\.file\.repo: expected"),
        ({"file": {"repo": "a/b", "split": "train"}}, r"data\.files\.train\.nli\.file\.revision: missing"),
        ({"file": {"repo": "a/b", "revision": "x", "split": "t"}, "no": [0]}, "no together with label and yes"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(changes: dict, message: str) -> None:
    tasks = {"t": {"mteb": "Ocnli", "type": "pair_classification", "group": "nli", "dev": "validation", "test": None}}
    settings = {
        "data": {"source": "files", "files": {"train": {"nli": changes}, "tasks": tasks}},
        "methods": {"bge": {}},
    }
    with pytest.raises(ConfigError, match=message):
        load([], settings | {"evaluation": {"split": "dev"}})


def test_tables_become_files_below_downloads() -> None:
    config: Config = load([ROOT / "config/paper.yaml"])
    local = config.data.files.local(Path("d"))
    assert (
        local.train["snli_zh"].file
        == "d/shibing624--snli-zh--chinesetextualinference-train.txt--b0aa839a5138/table.parquet"
    )
    assert (
        local.train["t2ranking"].retrieval.corpus
        == "d/thuir--t2ranking--data--collection.tsv--2a369a430a70/table.parquet"
    )
    assert (local.tasks["ocnli"].dev, local.tasks["ocnli"].test) == (None, "d/mteb--ocnli/validation.parquet")
    assert local.tasks["t2"].test.qrels == "d/mteb--t2retrieval/dev/qrels.parquet"
    assert not local.downloads()


def test_two_ways_of_reading_one_file_are_refused(tmp_path: Path) -> None:
    table = {"repo": "a/b", "revision": "x", "file": "f.csv", "keep": ["query", "passage"]}
    tasks = {"t": {"mteb": "Ocnli", "type": "pair_classification", "group": "nli", "test": "validation"}}
    train = {"one": {"file": table}, "two": {"file": table}}
    settings = {"data": {"source": "files", "files": {"train": train, "tasks": tasks}}, "methods": {"bge": {}}}
    settings["training"] = {"dev_every": 0}
    settings["models"] = {name: {"source": f"org/{name}"} for name in ("teacher", "encoder")}
    assert len(load([], settings).data.files.downloads()) == 2  # equal ones are one download
    train["two"] = {"file": table | {"keep": ["query"]}}
    with pytest.raises(ConfigError, match="data.files: expected one way of reading a/b"):
        load([], settings)

"""`d2llm doctor`: each check finds what is amiss and says what mends it; an error ends with exit code 1."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import string
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny

from d2llm.cli import doctor, plan
from d2llm.cli import main as cli
from d2llm.config.load import load, read
from d2llm.config.schema import Config
from d2llm.data import build

ROOT = Path(__file__).resolve().parent.parent
# What a tiny tokenizer needs to spell English.
LETTERS = [*string.ascii_letters, *string.digits, *"?:,.'"]


def levels(found) -> dict[str, str]:
    return {one.subject: one.level for one in found}


def test_this_machine_is_seen() -> None:
    found = doctor.examine()
    assert {"python", "packages", "snakemake", "cores", "memory", "gpu", "fonts", "disk"} == set(levels(found))
    assert all(one.fix for one in found if one.level != "ok")


def test_versions_are_compared_with_the_pins() -> None:
    installed = {"a": "1.2+cpu", "b": "2.0", "c": "3", "d": "3.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    wanted = ["a==1.2+cu128", "b==2.1", "gone==1", "c>=1; python_version < '3'", "d>=3,<4"]
    found = list(doctor.packages(lambda: wanted, version))
    assert [(one.level, one.found) for one in found] == [
        ("warning", "b 2.0, asked for is ==2.1"),
        ("error", "gone is not installed"),
        ("ok", "2 of 4 as asked for"),
    ]
    assert "pip install 'gone==1'" in found[1].fix
    [late] = [one for one in doctor.packages(lambda: ["d>=2,<3"], version) if one.level != "ok"]
    assert late.found.startswith("d 3.1, asked for is ")


def test_a_clone_is_held_to_the_lock() -> None:
    """The exact versions that the reference was made with, not the ranges a library's user may have."""
    asked = doctor.requirements()
    assert len(asked) > 20 and all(re.match(r"[\w.-]+==[\w.+]+( ;|$)", line) for line in asked)
    assert not any(line.startswith(("pytest", "ruff")) for line in asked)


def test_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n")
    assert doctor.memory_bytes(info, group) == (16_000_000 * 1024, 8_000_000 * 1024)
    group.write_text("max\n")
    assert doctor.memory_bytes(info, group) == (16_000_000 * 1024, 8_000_000 * 1024)
    group.write_text("2000000000\n")
    assert doctor.memory_bytes(info, group) == (2e9, 2e9)
    assert doctor.memory_bytes(tmp_path / "no") is None


@pytest.mark.parametrize(
    ("found", "level"), [((16e9, 12e9), "ok"), ((16e9, 2e9), "warning"), ((6e9, 5e9), "warning"), ((3e9, 3e9), "error"), (None, "warning")]
)  # fmt: skip
def test_memory_is_judged(found, level: str) -> None:
    assert [one.level for one in doctor.memory(found)] == [level]


def test_room_on_disk_is_judged(tmp_path: Path) -> None:
    def level(needed: float) -> str:
        return next(doctor.disk(tmp_path / "not" / "there", needed, "it")).level

    free = next(doctor.disk(tmp_path, 1.0, "it")).found
    assert level(1.0) == "ok" and level(1e18) == "error" and "GB free" in free


def test_missing_files_are_named_with_their_keys(tmp_path: Path) -> None:
    values = read(ROOT / "config" / "local.yaml")
    values["models"] = {name: {"source": f"./{name}"} for name in ("teacher", "decoder", "encoder")}
    (tmp_path / "own.yaml").write_text(json.dumps(values), encoding="utf-8")
    found = doctor.examine([tmp_path / "own.yaml"])
    missing = [one for one in found if one.subject == "files" and one.level == "error"]
    config = load([tmp_path / "own.yaml"])
    assert len(missing) == len(set(config.data.files.paths().values()))
    assert "data.files.train." in missing[0].fix
    assert [one.level for one in found if one.subject == "models"] == ["error"] * 3


def test_the_template_serves_files_and_models_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config/local.yaml as it is, over files of the columns it names: what doctor says of a wrong row, a wrong width, a model that is away."""
    template = shutil.copy(ROOT / "config" / "local.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path / "my")

    def errors() -> list[str]:
        return [
            f"{one.subject}: {one.found}; {one.fix}"
            for one in doctor.of_config(load([template]))
            if one.level == "error"
        ]

    away = errors()
    assert len(away) == 3 and all("no model in models/my-" in line for line in away)  # and nothing about sizes
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4)
    tiny.backbone("encoder", tmp_path / "models/my-encoder", LETTERS)
    assert errors() == []
    # Counted from the files, none of which was prepared: 60 of 90 pairs mean yes, 40 questions have an answer.
    amounts = plan.amounts(load([template]), 50_000)
    assert (amounts.queries, amounts.pairs, amounts.asked, amounts.assumed) == (60 + 40, 30 + 30, 15, ())
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4, hidden_size=48)
    assert errors() == [
        "models: methods.d2llm: pooling pma: heads must divide the hidden size 48, found 32; choose a divisor, e.g. 24; "
    ]
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4)
    with (tmp_path / "my/train.jsonl").open("a") as stream:
        stream.write('{"sentence1": "", "sentence2": "b", "label": "entailment"}\n')
    [wrong] = errors()
    assert wrong.startswith("files: my/train.jsonl: line 91, column 'sentence1': expected a text; found ''")


def test_files_are_read_again_after_the_data_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever became of the files since: every set that is wrong is named, and a corpus that three sets share once."""
    template = shutil.copy(ROOT / "config" / "local.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path / "my")
    config = load([template])
    build.run(config)

    def said(level: str) -> list[str]:
        return [one.found for one in doctor.of_config(config) if (one.level, one.subject) == (level, "files")]

    assert said("error") == [] and said("ok") == ["all 12 are there", "the rows of 5 of 5 sets can be used"]
    with (tmp_path / "my/train.jsonl").open("ab") as stream:
        stream.write('{"sentence1": "café", "sentence2": "b", "label": "entailment"}\n'.encode("latin-1"))
    (tmp_path / "my/sts_dev.csv").write_text("sentence1,sentence_2,score\na,b,3\n")
    with (tmp_path / "my/test_qrels.csv").open("a") as stream:
        stream.write("\n55,800,1")
    train, column, judged = said("error")
    assert train.startswith("my/train.jsonl: line 91: not UTF-8")
    assert column.startswith("my/sts_dev.csv: no column 'sentence2'")
    assert (
        judged
        == "my/test_qrels.csv: line 17: expected an id of my/corpus.csv; found '800'; `incomplete: drop` leaves such judgements out"
    )
    assert said("ok") == ["all 12 are there", "the rows of 2 of 5 sets can be used"]
    with (tmp_path / "my/corpus.csv").open("a") as stream:
        stream.write("\n7,again")
    assert [line for line in said("error") if "corpus" in line] == [
        "my/corpus.csv: line 82, column 'id': expected every id once; found '7', as in line 9"
    ]


def write_own_files(folder: Path) -> None:
    """The files that config/local.yaml names."""
    folder.mkdir()
    for name, count in (("train", 90), ("dev", 30), ("test", 30)):
        rows = [{"sentence1": f"{name} {i} is here", "sentence2": f"{name} {i}", "label": ("neutral", "entailment")[i % 3 > 0]} for i in range(count)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("sts_dev", "sts_test"):
        lines = [f"{name} {i},{name} {i + 1},{i % 6}" for i in range(30)]
        (folder / f"{name}.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]))
    (folder / "corpus.csv").write_text("\n".join(["id,text", *(f"{i},number {i} is read" for i in range(80))]))
    for name, part in (("", range(40)), ("dev_", range(40, 55)), ("test_", range(55, 70))):
        (folder / f"{name}queries.csv").write_text("\n".join(["id,text", *(f"{i},what is {i}?" for i in part)]))
        (folder / f"{name}qrels.csv").write_text(
            "\n".join(["query_id,doc_id,relevance", *(f"{i},{i},1" for i in part)])
        )


def test_jobs_that_do_not_fit_are_an_error() -> None:
    config = load([ROOT / "config" / "mini.yaml"])
    assert levels(doctor.sizes(config, None, (8e9, 8e9)))["sizes"] == "ok"
    assert levels(doctor.sizes(config, None, (1e6, 1e6)))["sizes"] == "error"


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(methods={"bge": {}}, training={"precision": "float16"})
    monkeypatch.setattr(doctor, "gpus", list)
    assert [one.found for one in doctor.extras(config)] == ["none, and training.precision float16 need one"]
    monkeypatch.setattr(doctor, "gpus", lambda: [("one", 24e9)])
    assert not list(doctor.extras(config))


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def test_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert next(doctor.hub()).fix == "unset HF_HUB_OFFLINE"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert next(doctor.hub()).level == "ok"  # even a 404 is an answer
    finally:
        server.shutdown()
        server.server_close()
    assert next(doctor.hub()).level == "error"


def test_an_error_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--config", str(ROOT / "config" / "mini.yaml")]) == 0
    assert "tier mini, 6 methods" in capsys.readouterr().out
    (tmp_path / "wrong.yaml").write_text("trainin: {}\n")
    assert cli.main(["doctor", "--config", str(tmp_path / "wrong.yaml")]) == 1
    said = capsys.readouterr().out
    assert "error    config" in said and "nearest valid key: training" in said

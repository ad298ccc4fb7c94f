"""`d2llm doctor`: each check finds what is amiss and says what mends it; an error ends with exit code 1."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import string
from collections.abc import Iterable
from pathlib import Path

import hub
import pytest
import tiny
from own_files import jsonl, rows

from d2llm.cli import doctor
from d2llm.cli import main as cli
from d2llm.cli.plan.amounts import count_texts
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.data import build

ROOT = Path(__file__).resolve().parent.parent
# What a tiny tokenizer needs to spell English.
LETTERS = [*string.ascii_letters, *string.digits, *"?:,.'"]


def levels(findings) -> dict[str, str]:
    return {one.subject: one.level for one in findings}


def test_this_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.home, "left", ["/dev/null/.cache"])
    findings = doctor.examine()
    assert {"python", "packages", "snakemake", "home", "cores", "memory", "gpu", "fonts", "disk"} == set(
        levels(findings)
    )
    assert all(one.fix for one in findings if one.level != "ok")


def test_versions_are_compared_with_the_pins() -> None:
    installed = {"a": "1.2+cpu", "b": "2.0", "c": "3", "d": "3.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    wanted = ["a==1.2+cu128", "b==2.1", "gone==1", "c>=1; python_version < '3'", "d>=3,<4", "d>=2,<3"]
    b, gone, d, total = doctor.packages(lambda: wanted, version)
    assert (b.level, b.state) == ("warning", "b 2.0, asked for is ==2.1")
    assert (gone.level, gone.state) == ("error", "gone is not installed") and "pip install 'gone==1'" in gone.fix
    assert d.level == "warning" and d.state.startswith("d 3.1, asked for is ")
    assert (total.level, total.state) == ("ok", "2 of 5 as asked for")


def test_a_clone_is_held_to_the_lock() -> None:
    """The exact versions that the reference was made with, not the ranges a library's user may have."""
    asked = doctor.requirements()
    assert len(asked) > 20 and all(re.match(r"[\w.-]+==[\w.+]+( ;|$)", line) for line in asked)


def test_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n")
    for limit, sizes in (("max\n", (16_000_000 * 1024, 8_000_000 * 1024)), ("2000000000\n", (2e9, 2e9))):
        group.write_text(limit)
        assert doctor.memory_bytes(info, group) == sizes
    assert doctor.memory_bytes(tmp_path / "no") is None


def test_memory_and_room_on_disk_are_judged(tmp_path: Path) -> None:
    sizes = [(16e9, 12e9), (16e9, 2e9), (6e9, 5e9), (3e9, 3e9), None]
    assert [one.level for size in sizes for one in doctor.memory(size)] == ["ok", *["warning"] * 2, "error", "warning"]
    rooms = [one.level for needed in (1.0, 1e18) for one in doctor.disk(tmp_path / "not" / "there", needed, "it")]
    assert rooms == ["ok", "error"]
    config = load([ROOT / "config" / "mini.yaml"])
    jobs = [levels(doctor.sizes(config, None, (size, size)))["sizes"] for size in (8e9, 1e6)]
    assert jobs == ["ok", "error"]


@pytest.mark.slow
def test_the_template_serves_files_and_models_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config/local.yaml as it is, over files of the columns it names: what doctor says of a wrong row, a wrong width, a
    model that is away."""
    template = shutil.copy(ROOT / "config" / "local.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path / "my")

    def errors() -> list[str]:
        findings = [one for one in doctor.of_config(load([template])) if one.level == "error"]
        return [f"{one.subject}: {one.state}; {one.fix}" for one in findings]

    away = errors()
    assert len(away) == 3 and all("no model in models/my-" in line for line in away)  # and nothing about sizes
    (tmp_path / "my/train.jsonl").rename(tmp_path / "train")
    assert [line for line in errors() if "data.files.train." in line and "my/train.jsonl" in line]
    (tmp_path / "train").rename(tmp_path / "my/train.jsonl")
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4)
    tiny.backbone("encoder", tmp_path / "models/my-encoder", LETTERS)
    assert errors() == []
    # Counted from the files, none of which was prepared: 60 of 90 pairs mean yes, 40 questions have an answer. 9 of
    # these (14, 15, 16, 24 and so on) are near copies of evaluated ones (41, 51, 61, 42), so they do not train.
    amounts = count_texts(load([template]), 50_000)
    assert amounts.queries == 60 + 40 - 9 and not amounts.assumed
    assert sorted((one.type, one.queries.count) for one in amounts.test) == [
        ("pair_classification", 30), ("retrieval", 15), ("sts", 30),
    ]  # fmt: skip
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4, hidden_size=48)
    [wrong] = errors()
    assert wrong.startswith(
        "models: methods.d2llm: pooling pma: heads must divide the hidden size 48, found 32; choose"
    )
    tiny.backbone("decoder", tmp_path / "models/my-decoder", LETTERS, num_hidden_layers=4)
    jsonl(tmp_path / "my/train.jsonl", rows("sentence1 sentence2 label", ("", "b", "entailment")), "a")
    [wrong] = errors()
    assert wrong.startswith("files: my/train.jsonl: line 91, column 'sentence1': expected a text; found ''")


def test_files_are_read_again_after_the_data_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever became of the files since: every set that is wrong is named, and a corpus that three share once."""
    template = shutil.copy(ROOT / "config" / "local.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path / "my")
    config = load([template])
    build.run(config)

    def lines(level: str) -> list[str]:
        return [one.state for one in doctor.of_config(config) if (one.level, one.subject) == (level, "files")]

    assert lines("error") == [] and lines("ok") == ["all 12 are there", "the rows of 5 of 5 sets can be used"]
    (tmp_path / "my/sts_dev.csv").write_text("sentence1,sentence_2,score\na,b,3\n")
    with (tmp_path / "my/corpus.csv").open("a") as stream:
        stream.write("\n7,again")
    errors = lines("error")
    assert any(line.startswith("my/sts_dev.csv: no column 'sentence2'") for line in errors)
    twice = "my/corpus.csv: line 82, column 'id': expected every id once; found '7', as in line 9"
    assert [line for line in errors if "corpus" in line] == [twice]


def write_own_files(folder: Path) -> None:
    """The files that config/local.yaml names."""
    folder.mkdir()

    def write(name: str, header: str, values: Iterable[tuple]) -> None:
        lines = [header, *(",".join(map(str, row)) for row in values)]
        (folder / f"{name}.csv").write_text("\n".join(lines))

    for name, count in (("train", 90), ("dev", 30), ("test", 30)):
        pairs = ((f"{name} {i} is here", f"{name} {i}", ("neutral", "entailment")[i % 3 > 0]) for i in range(count))
        jsonl(folder / f"{name}.jsonl", rows("sentence1 sentence2 label", *pairs))
    for name in ("sts_dev", "sts_test"):
        write(name, "sentence1,sentence2,score", ((f"{name} {i}", f"{name} {i + 1}", i % 6) for i in range(30)))
    write("corpus", "id,text", ((i, f"number {i} is read") for i in range(80)))
    for name, part in (("", range(40)), ("dev_", range(40, 55)), ("test_", range(55, 70))):
        write(f"{name}queries", "id,text", ((i, f"what is {i}?") for i in part))
        write(f"{name}qrels", "query_id,doc_id,relevance", ((i, i, 1) for i in part))


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(methods={"bge": {}}, training={"precision": "float16"})
    monkeypatch.setattr(doctor, "gpus", list)
    assert [one.state for one in doctor.extras(config)] == ["none, and training.precision float16 need one"]
    monkeypatch.setattr(doctor, "gpus", lambda: [("one", 24e9)])
    assert not list(doctor.extras(config))


def test_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert next(doctor.hub()).fix == "unset HF_HUB_OFFLINE"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.serving(tmp_path) as (address, _):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert next(doctor.hub()).level == "ok"  # even a 404 is an answer
    assert next(doctor.hub()).level == "error"


def test_an_error_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--config", str(ROOT / "config" / "mini.yaml")]) == 0
    assert "tier mini, 6 methods" in capsys.readouterr().out
    (tmp_path / "wrong.yaml").write_text("trainin: {}\n")
    assert cli.main(["doctor", "--config", str(tmp_path / "wrong.yaml")]) == 1
    out = capsys.readouterr().out
    assert "error    config" in out and "nearest valid key: training" in out

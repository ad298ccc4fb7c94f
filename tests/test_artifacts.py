"""Artifacts are whole or absent, and damage is told with the file's name and a way out."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d2llm.run.artifacts import (
    append_jsonl,
    atomic,
    in_future,
    read_frame,
    read_json,
    read_jsonl,
    settle_times,
    write_frame,
    write_json,
)
from d2llm.run.errors import ArtifactError


def test_a_file_or_folder_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path, folder = tmp_path / "sub" / "a.txt", tmp_path / "model"
    with atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.suffix == ".txt"
    for name in ("old", "new"):
        with atomic(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    for target, write in ((path, Path.touch), (folder, Path.mkdir)):
        with pytest.raises(RuntimeError), atomic(target) as temporary:
            write(temporary)
            raise RuntimeError
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "nothing"):
        pass
    assert path.read_text() == "first" and [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert [entry.name for entry in folder.iterdir()] == ["new"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "sub"]


def test_atomic_removes_what_a_killed_writer_left_and_spares_a_living_one(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for process in (int(killed.stdout), os.getppid()):
        (tmp_path / f".model.tmp-{platform.node()}-{process}").mkdir()
    with atomic(tmp_path / "model") as temporary:
        temporary.mkdir()
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [f".model.tmp-{platform.node()}-{os.getppid()}", "model"]


def test_times_of_the_future_become_the_present_in_their_order(tmp_path: Path) -> None:
    now = time.time()
    wanted = {"past": -100, "b/late": 7200, "a": 3600, "b/.snakemake_timestamp": 9000, "c": 3601}
    (tmp_path / "b").mkdir()
    for name, late in wanted.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now + late, now + late))
    assert in_future(tmp_path / "a") and in_future(tmp_path / "b") and not in_future(tmp_path / "past")
    assert settle_times(tmp_path) == 4
    times = {name: (tmp_path / name).stat().st_mtime for name in wanted}
    assert times["past"] == pytest.approx(now - 100)
    assert now <= times["a"] < times["c"] < times["b/late"] < times["b/.snakemake_timestamp"] <= time.time()
    assert settle_times(tmp_path) == 0


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"名": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == read_json(path) == {"名": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"a\.json: damaged JSON .*remove it and run `snakemake"):
        read_json(path)
    with pytest.raises(ArtifactError, match=r"b\.json: missing; run `snakemake"):
        read_json(tmp_path / "b.json")


def test_jsonl_survives_a_cut_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1})
    append_jsonl(path, {"step": 2})
    with path.open("a") as stream:
        stream.write('{"step"')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ArtifactError, match="line 2"):
        read_jsonl(path)


COLUMNS = {"text": "str", "n": "int", "score": "float", "yes": "bool", "many": "list"}


def frame(**changes: list) -> pd.DataFrame:
    values = {"text": ["a", "b"], "n": [1, 2], "score": [0.5, -1.0], "yes": [True, False], "many": [["甲", "乙"], []]}
    return pd.DataFrame(values | changes)


def test_frame_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_frame(path, frame())
    table = read_frame(path, COLUMNS)
    assert table.assign(many=table["many"].map(list)).equals(frame())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"t\.parquet: damaged Parquet"):
        read_frame(path, COLUMNS)


@pytest.mark.parametrize(
    ("spoiled", "complaint"),
    [
        (frame(text=[1, 2]), "column 'text': expected str, found int64"),
        (frame(text=["a", None]), "column 'text' has no value in row 1"),
        (frame(n=[1.5, 2.5]), "column 'n': expected int, found float64"),
        (frame(score=[1.0, np.inf]), "column 'score' holds a value that is not finite"),
        (frame(score=[1.0, np.nan]), "column 'score' has no value in row 1"),
        (frame(many=["a", "b"]), "column 'many': expected list"),
        (frame(yes=[0, 1]), "column 'yes': expected bool, found int64"),
        (frame().drop(columns="n"), "column 'n' is missing"),
        (frame().iloc[:0], "no rows"),
    ],
)
def test_frame_columns_are_checked(tmp_path: Path, spoiled: pd.DataFrame, complaint: str) -> None:
    path = tmp_path / "t.parquet"
    write_frame(path, spoiled)
    with pytest.raises(ArtifactError, match=f"{path}: {complaint}.*snakemake"):
        read_frame(path, COLUMNS)


def test_predictions_read_as_categories_are_the_same_and_checked_alike(tmp_path):
    from d2llm.evaluation.predictions import read_predictions

    path, kinds = tmp_path / "predictions.parquet", {"task": "str", "query_id": "str", "score": "float"}
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"task": rng.choice(["a", "b"], 50), "query_id": [f"q{n % 7}" for n in range(50)]})
    table = table.assign(score=rng.normal(size=50), variant=["base", "other"] * 25)
    table.to_parquet(path, row_group_size=20)  # each with a dictionary of its own
    plain, coded = (read_predictions(path, kinds, {"variant": "base"}, coded) for coded in (False, True))
    assert isinstance(coded["task"].dtype, pd.CategoricalDtype) and coded.astype(plain.dtypes).equals(plain)
    assert plain.equals(table.loc[table["variant"] == "base", list(kinds)].reset_index(drop=True))
    for change, message in (
        ({"task": None}, "'task' has no value in row 0"),
        ({"query_id": 3}, "'query_id': expected str, found int64"),
    ):
        table.assign(**change).to_parquet(path)
        for coded in (False, True):
            with pytest.raises(ArtifactError, match=message):
                read_predictions(path, kinds, {"variant": "base"}, coded)

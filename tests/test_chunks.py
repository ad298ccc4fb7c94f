"""Large tables go through memory part by part, and come out as if they had been read whole."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2llm.config.data import HubTable
from d2llm.data.files.read import read_pieces
from d2llm.data.hub import download
from d2llm.data.hub.parts import write_parts
from d2llm.evaluation import collect
from d2llm.evaluation.predictions import read_predictions
from d2llm.run.artifacts import write_frame, write_frames
from d2llm.run.errors import ConfigError
from d2llm.run.schemas import PREDICTION_KEY, PREDICTIONS

ROWS = [
    *({"id": n, "text": f"t{n % 4}", "more": None if n < 7 else n} for n in range(9)),
    *({"id": n / 2, "text": f"t{n % 4}", "late": ["a"]} for n in range(9)),
    {"text": "t0", "id": 1, "late": [], "rare": "r"},
    {"text": "t0", "id": 1, "rare": None},
]


def written(tmp_path: Path, kind: str) -> Path:
    """The rows as a file of a kind; delimited ones hold texts."""
    path, frame = tmp_path / f"t.{kind}", pd.DataFrame(ROWS, dtype=object)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        frame.drop(columns="late").assign(id=frame["id"].astype(float)).to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    return path


@pytest.mark.parametrize("keep", [None, ["text", "id"], ["text", "rare"]])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_parts_are_the_table(kind: str, keep: list[str] | None, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    [whole] = read_pieces(path, None)
    parts = list(read_pieces(path, 4))
    assert [len(part) for part in parts] == [4, 4, 4, 4, 4]
    assert [*np.concatenate([part.index for part in parts])] == [*whole.index]
    count = write_parts(iter(parts), tmp_path / "out.parquet", tmp_path, keep)
    if keep is not None:  # the first of equal rows
        whole = whole[keep]
        whole = whole[~whole.duplicated()]
    expected = pa.Table.from_pandas(whole, preserve_index=False)
    assert count == len(whole) and pq.read_table(tmp_path / "out.parquet").equals(expected)
    assert not list(tmp_path.glob("part-*"))


def test_a_column_nobody_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as error:
        write_parts(iter([pd.DataFrame({"a": ["x"]})]), tmp_path / "out.parquet", tmp_path, ["b"])
    assert error.value.args == ("b", ["a"])


def test_a_column_of_several_types_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": "x"}\n')
    monkeypatch.setattr(download, "checked", lambda *_: tmp_path / "t.jsonl")
    monkeypatch.setattr(download, "CHUNK", 1)
    wanted = HubTable.model_validate({"repo": "a/b", "revision": "x", "file": "t.jsonl"})
    with pytest.raises(ConfigError, match="train.mine: a/b: .*Field a has incompatible types: .*; keep the columns"):
        download.table(wanted, tmp_path / "out.parquet", tmp_path, "train.mine")


def most(rows: int, folder: Path) -> float:
    """Bytes of Python's and of Arrow's that lie in memory at once, at most, while a table of so many rows is written."""
    arrow = [0]

    def parts() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, 1000):
            arrow.append(pa.total_allocated_bytes())
            yield pd.DataFrame({"id": range(start, start + 1000), "text": ["a passage of some length" * 20] * 1000})

    tracemalloc.start()
    write_parts(parts(), folder / "out.parquet", folder, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + max(arrow)


@pytest.mark.slow
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    most(2000, tmp_path)  # what is loaded once
    assert most(100_000, tmp_path) < 1.5 * most(10_000, tmp_path)


def run_of(seed: int, rows: int = 6) -> pd.DataFrame:
    """Predictions of a run on two tasks, not in order."""
    about = {"tier": "t", "method": "bge", "variant": "base", "seed": seed, "cluster": "c", "label": 1.0, "relevant": 1}
    return pd.DataFrame(
        about
        | {"task": f"task{n % 2}", "query_id": f"q{rows - n}", "doc_id": "", "score": n / 7 + seed, "phenomenon": "p"}
        for n in range(rows)
    )[list(PREDICTIONS)]


def test_predictions_are_collected_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {("bge", "base", seed): tmp_path / str(seed) for seed in (3, 1, 2)}
    for (_, _, seed), folder in folders.items():
        write_frame(folder / "predictions.parquet", run_of(seed))
    held, read = [], collect.read_frame

    def reading(*arguments: object) -> pd.DataFrame:
        frame = read(*arguments)
        held.append(weakref.ref(frame))
        assert sum(reference() is not None for reference in held) <= 2  # the one before may still be on its way
        return frame

    monkeypatch.setattr(collect, "read_frame", reading)
    parts = collect.collected("t", folders, "predictions", PREDICTIONS, PREDICTION_KEY)
    write_frames(tmp_path / "all.parquet", (part for run in parts for _, part in run.groupby("task", sort=False)))
    expected = pd.concat(map(run_of, (1, 2, 3))).sort_values(PREDICTION_KEY, kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "all.parquet"), expected)
    assert pq.ParquetFile(tmp_path / "all.parquet").num_row_groups == 6  # of which a reader of one task opens three
    whole = read_predictions(tmp_path / "all.parquet", PREDICTIONS, {"task": "task1"})
    pd.testing.assert_frame_equal(whole, expected[expected["task"] == "task1"].reset_index(drop=True))

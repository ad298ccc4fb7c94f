"""The notebook: committed without outputs, executed on a run's scores, in step with them; a failing cell is named."""

from __future__ import annotations

import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from made_up_run import make, value

from d2llm.cli import main as cli
from d2llm.config.load import load
from d2llm.reporting import notebook
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference" / "mini"


def read() -> Any:
    return nbformat.read(notebook.NOTEBOOK, as_version=4)


def table(book: Any, cell: str) -> pd.DataFrame:
    """The table a cell shows."""
    shown = next(part for part in book.cells if part.id == cell)
    html = next(out["data"]["text/html"] for out in shown.outputs if "text/html" in out.get("data", {}))
    return html_table(html)


def html_table(html: str) -> pd.DataFrame:
    """The body of pandas' HTML: first cells as index, the others as text."""
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)
        for row in re.findall(r"<tr>(.*?)</tr>", html.split("<tbody>")[1], re.S)
    ]
    return pd.read_csv(StringIO("\n".join("\t".join(row) for row in rows)), sep="\t", header=None, index_col=0)  # fmt: skip


def test_the_committed_notebook_has_no_outputs() -> None:
    book = read()
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    text = notebook.NOTEBOOK.read_text(encoding="utf-8")
    assert "D2LLM_RESULTS" in text and text.endswith("}\n")
    assert not re.search(r"import (d2llm|torch)|from d2llm", text)


def test_it_shows_the_scores_of_a_run(tmp_path: Path, capsys) -> None:
    config = make(tmp_path)
    code = cli.main(["notebook", "--config", str(Paths.of(config).config)])
    assert code == 0, capsys.readouterr().err
    book = nbformat.read(Paths.of(config).notebook, as_version=4)
    main = table(book, "main")
    # Kinds of task in alphabetical order: ir, nli, nli, sts.
    for method in ("d2llm", "bge", "bm25", "teacher"):
        wanted = [value(method, 1, t, m) for t, m in ((3, 0), (0, 1), (1, 1), (2, 1))]
        assert main.loc[method].tolist() == pytest.approx([round(number, 4) for number in wanted], abs=1e-9)
    breakdown = table(book, "breakdown")
    assert breakdown.index.tolist() == ["role swap"] and breakdown.iloc[0, 0] == 25
    figure = next(cell for cell in book.cells if cell.id == "figure")
    assert any("image/png" in out.get("data", {}) for out in figure.outputs)
    assert str(tmp_path) not in Paths.of(config).notebook.read_text(encoding="utf-8")
    assert (tmp_path / "mini" / "results.ipynb.provenance.json").exists()


def test_it_shows_the_reference_run_and_no_comparison_where_there_is_none(tmp_path: Path) -> None:
    done = notebook.execute(read(), REFERENCE)
    scores = pd.read_csv(REFERENCE / "scores.csv", keep_default_na=False)
    own = scores[(scores["method"] == "d2llm") & (scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    ap = own[own["metric"] == "ap"].groupby("task_title")["value"].mean().sort_index()
    assert set(ap.round(4)) <= set(table(done, "main").loc["d2llm"])
    config = make(tmp_path, methods=("bge",))
    bare = notebook.execute(read(), Paths.of(config).root)
    figure = next(cell for cell in bare.cells if cell.id == "figure")
    assert "Nothing to compare" in figure.outputs[0]["text"]


def test_a_failing_cell_is_one_error_that_names_it(tmp_path: Path, monkeypatch, capsys) -> None:
    config = make(tmp_path)
    book = read()
    place = next(number for number, cell in enumerate(book.cells, 1) if cell.id == "leads")
    book.cells[place - 1].source = "leads = comparisons['nothing of that name']"
    broken = tmp_path / "results.ipynb"
    nbformat.write(book, broken)
    monkeypatch.setattr(notebook, "NOTEBOOK", broken)
    assert cli.main(["notebook", "--config", str(Paths.of(config).config)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"results.ipynb: cell {place} (\"leads = comparisons['nothing of that name']\"): KeyError" in lines[0]
    assert not Paths.of(config).notebook.exists()


def test_the_search_notebook_is_committed_without_outputs() -> None:
    book = nbformat.read(notebook.SEARCH, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


def test_without_students_there_is_nothing_to_search_with(tmp_path: Path) -> None:
    config = make(tmp_path)
    with pytest.raises(ArtifactError, match=r"search.ipynb: cell 2 .*FileNotFoundError: no trained students"):
        notebook.run_search(config)


def test_no_scores_no_notebook(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        notebook.run(load([tmp_path / "config.yaml"], {"results": str(tmp_path)}))

"""The notebooks: committed without outputs, executed on a run's scores, in step with them; a failing cell is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from made_up_run import make, value

from d2llm.cli import main as cli
from d2llm.reporting import notebook
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths


def table(book: Any, cell: str) -> dict[str, list[str]]:
    """The body of the table a cell shows: first cells of rows, with the others."""
    shown = next(part for part in book.cells if part.id == cell)
    html = next(out["data"]["text/html"] for out in shown.outputs if "text/html" in out.get("data", {}))
    rows = re.findall(r"<tr>(.*?)</tr>", html.split("<tbody>")[1], re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return {name: values for name, *values in cells}


def outputs(book: Any, cell: str) -> list[Any]:
    return next(part for part in book.cells if part.id == cell).outputs


@pytest.mark.parametrize("file", [notebook.NOTEBOOK, notebook.SEARCH], ids=lambda file: file.stem)
def test_notebooks_are_committed_without_outputs(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    if file == notebook.NOTEBOOK:  # which reads files alone
        assert not re.search(r"import (d2llm|torch)|from d2llm", file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_shows_the_scores_of_a_run(tmp_path: Path) -> None:
    config = make(tmp_path)
    assert cli.main(["notebook", "--config", str(Paths.of(config).config)]) == 0
    book = nbformat.read(Paths.of(config).notebook, as_version=4)
    for method in ("d2llm", "bge", "bm25", "teacher"):  # kinds of task in alphabetical order: ir, nli, nli, sts
        wanted = [value(method, 1, t, m) for t, m in ((3, 0), (0, 1), (1, 1), (2, 1))]
        assert [float(cell) for cell in table(book, "main")[method]] == pytest.approx([round(n, 4) for n in wanted])
    assert float(table(book, "breakdown")["role swap"][0]) == 25
    assert any("image/png" in out.get("data", {}) for out in outputs(book, "figure"))
    assert str(tmp_path) not in Paths.of(config).notebook.read_text(encoding="utf-8")
    assert (tmp_path / "mini" / "results.ipynb.provenance.json").exists()


@pytest.mark.slow
def test_what_fails_is_one_error_that_names_the_cell(tmp_path: Path, monkeypatch, capsys) -> None:
    config = make(tmp_path)
    with pytest.raises(ArtifactError, match=r"search.ipynb: cell 2 .*FileNotFoundError: no trained students"):
        notebook.run_search(config)
    book = nbformat.read(notebook.NOTEBOOK, as_version=4)
    place = next(number for number, cell in enumerate(book.cells, 1) if cell.id == "leads")
    book.cells[place - 1].source = "leads = comparisons['nothing of that name']"
    nbformat.write(book, tmp_path / "results.ipynb")
    monkeypatch.setattr(notebook, "NOTEBOOK", tmp_path / "results.ipynb")
    assert cli.main(["notebook", "--config", str(Paths.of(config).config)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"results.ipynb: cell {place} (\"leads = comparisons['nothing of that name']\"): KeyError" in line
    assert not Paths.of(config).notebook.exists()
    Paths.of(config).scores_csv.unlink()
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        notebook.run(config)

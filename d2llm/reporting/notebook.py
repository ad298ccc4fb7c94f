"""Stages `notebook` and `search-notebook`: execute notebooks/results.ipynb on a run's collected scores, and
search.ipynb on its trained students, and keep the copies.

The kernel is this interpreter's, whatever kernels the machine has, and leaves nothing in the user's home.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run.artifacts import require, write_text
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "results.ipynb"
SEARCH = NOTEBOOK.with_name("search.ipynb")
# Seconds a cell may take.
PATIENCE = 300


def run(config: Config) -> None:
    """Write `results.ipynb`. Raises ArtifactError naming the cell that failed, or when the notebook or scores are
    missing.
    """
    import nbformat

    paths = Paths.of(config)
    require(paths.scores_csv)
    book = nbformat.read(require(NOTEBOOK), as_version=4)
    write_text(paths.notebook, nbformat.writes(execute(book, paths.root)) + "\n")


def run_search(config: Config) -> None:
    """Write `search.ipynb`. Raises ArtifactError naming the cell that failed, or when the notebook is missing."""
    import nbformat

    paths = Paths.of(config)
    book = nbformat.read(require(SEARCH), as_version=4)
    write_text(paths.search_notebook, nbformat.writes(execute(book, paths.root, SEARCH.name)) + "\n")


def execute(book: Any, results: Path, name: str | None = None) -> Any:
    """Execute a notebook, whose cells read the folder `results`, and return it with their outputs.

    `name` is what errors call it. Raises ArtifactError naming the cell that failed.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    name = name or NOTEBOOK.name
    with tempfile.TemporaryDirectory() as scratch:
        client = NotebookClient(
            book,
            kernel_manager_class=own_kernel(Path(scratch)),
            timeout=PATIENCE,
            record_timing=False,
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        )
        environment = {
            **os.environ,
            "D2LLM_RESULTS": str(results.resolve()),
            "IPYTHONDIR": scratch,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # tqdm's note that widgets are missing would keep the path of this environment in the page.
            "PYTHONWARNINGS": "ignore:IProgress not found",
        }
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            raise ArtifactError(f"{failed(book, name)}: {error.ename}: {' '.join(error.evalue.split())}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise ArtifactError(f"{failed(book, name)}: {str(error).strip().splitlines()[0]}") from None
    return book


def own_kernel(scratch: Path) -> type:
    """A manager whose kernel is this interpreter's, spoken to through sockets in `scratch`: no port is opened."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _no_folders(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])  # nowhere to look for others

        @default("transport")
        def _sockets(self) -> str:
            return "ipc"

        @default("connection_file")
        def _in_scratch(self) -> str:
            return str(scratch / "kernel.json")

    return OwnKernel


def failed(book: Any, name: str) -> str:
    """The cell that was executed last, as a reader finds it: its number, counted from 1 with text cells, and its first
    line.
    """
    code = [(place, cell) for place, cell in enumerate(book.cells, 1) if cell.cell_type == "code"]
    done = [entry for entry in code if entry[1].get("execution_count") is not None or entry[1].outputs]
    place, cell = (done or code)[-1 if done else 0]
    return f"{name}: cell {place} ({cell.source.strip().splitlines()[0]!r})"

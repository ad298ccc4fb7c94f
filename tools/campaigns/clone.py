"""What the campaigns share: the repository's root, the tests' helpers, and a copy of what a run of the workflow needs.

Imported first, as it lets `d2llm` and the helpers of `tests/` be found from any folder.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "config", "profiles", "d2llm", "baselines", "notebooks", "environment.yml")
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")


def copy_repository(folder: Path) -> None:
    """Copy those parts of the repository to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / part)

"""Memory stays flat: over the updates of a training, and over a corpus but for what the corpus itself takes.

tests/campaigns/memory.py measures both at length, by what the system counts.
"""

from __future__ import annotations

import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from task_folders import retrieval_task
from test_search import FORMATS

from d2llm.config import Config
from d2llm.evaluation.settings import EvaluationSettings
from d2llm.paths import Paths

sys.path.insert(0, str(Path(__file__).parent / "campaigns"))


LENGTH = 60  # tokens of a passage


@pytest.mark.slow
def test_a_training_holds_no_more_after_more_updates(tiny_scores: Config, tmp_path: Path) -> None:
    from memory import apart

    shutil.copytree(Paths.of(tiny_scores).root, tmp_path / tiny_scores.tier)
    held = apart(tmp_path, "training", 30, 150)
    assert list(held) == ["30", "150"]
    assert held["150"] - held["30"] < 6  # MB: 50 kB an update, a sixth of what a batch's activations take


def test_a_corpus_takes_what_its_texts_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and numpy allocate, which is the same every time; what torch does, a batch's states and the vectors, is not seen."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    sizes, most = (500, 2_500), []
    for count in (50, *sizes):  # the first loads what is loaded once
        folder = retrieval_task(tmp_path / f"of{count}", passages=count)
        rng = np.random.default_rng(count)
        texts = ["".join(rng.choice(tiny.WORDS, LENGTH)) for _ in range(count)]
        pd.DataFrame({"id": [f"d{i}" for i in range(count)], "text": texts}).to_parquet(folder / "test/corpus.parquet")
        most.append(traced(folder))
    assert (most[2] - most[1]) / (
        sizes[1] - sizes[0]
    ) < 30 * LENGTH  # bytes a passage: 24 a token, of its id and its character; ids as tuples were 8 more


def traced(folder: Path) -> int:
    """Bytes held at most while a student is evaluated on a task."""
    from d2llm.evaluation import run, tasks
    from d2llm.evaluation.adapter import StudentScorer
    from d2llm.models.student import Student

    student = Student(tiny.backbone("decoder"), ("mean", {}), ("cosine", {}), FORMATS).eval()
    tracemalloc.start()
    try:
        run.evaluate(StudentScorer(student), [tasks.read(folder, "test")], "toy/base/seed1", EvaluationSettings())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

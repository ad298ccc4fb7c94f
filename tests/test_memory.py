"""Memory stays flat: over the updates of a training, and while a corpus is encoded but for what the corpus itself
takes.

tools/campaigns/memory.py measures both at length, by what the system counts.
"""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny

from d2llm.config.schema import Config
from d2llm.models.student import Student, TextFormat
from d2llm.run.paths import Paths

CAMPAIGNS = Path(__file__).resolve().parent.parent / "tools" / "campaigns"
LENGTH = 60  # tokens of a passage


@pytest.mark.slow
def test_a_training_holds_no_more_after_more_updates(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    from memory import apart

    shutil.copytree(Paths.of(tiny_scores).root, tmp_path / tiny_scores.tier)
    held = apart(tmp_path, "training", 30, 150)
    assert list(held) == ["30", "150"]
    assert held["150"] - held["30"] < 6  # MB: 50 kB an update, a sixth of what a batch's activations take


def test_a_corpus_is_held_as_numbers_of_four_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and numpy allocate while it is encoded; a batch's states and its vectors are torch's."""
    monkeypatch.setattr("d2llm.models.student.TEXTS_AT_ONCE", 100)
    words = [f"w{number}" for number in range(600)]
    formats = {("passage", "asymmetric"): TextFormat()}
    model = Student(tiny.backbone("decoder", words=words), ("mean", {}), ("cosine", {}), formats).eval()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words[300:], LENGTH)) for _ in range(2_500)]
    model.encode(texts[:20], "passage", "asymmetric")  # loads what is loaded once
    most = []
    for count in (500, 2_500):
        tracemalloc.start()
        model.encode(texts[:count], "passage", "asymmetric", batch_size=64)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Of a passage: its ids, its embedding of 32 numbers, its place in the order. Numbers in a tuple take 36 bytes each.
    assert (most[1] - most[0]) / 2_000 < 4 * LENGTH + 4 * 32 + 300

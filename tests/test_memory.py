"""Memory stays flat: over the updates of a training, and over a corpus but for what the corpus itself takes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from d2llm.config import Config
from d2llm.paths import Paths

sys.path.insert(0, str(Path(__file__).parent / "campaigns"))


@pytest.mark.slow
def test_memory_stays_flat(tiny_scores: Config, tmp_path: Path) -> None:
    from memory import apart

    shutil.copytree(Paths.of(tiny_scores).root, tmp_path / tiny_scores.tier)
    held = apart(tmp_path, "training", 50, 100, 250)
    assert list(held) == ["50", "100", "250"]
    assert held["250"] - held["50"] < 6  # MB: 30 kB an update, a tenth of what a batch's activations take
    small, large = (apart(tmp_path, "evaluation", count) for count in (2_000, 12_000))
    # A passage's own: text and id, token ids, an embedding of 32 numbers, 16 of the index; several times, while they are made.
    assert (large["most"] - small["most"]) * 1e6 / 10_000 < 2_000  # bytes; with token ids as tuples it were 3,000

"""Jobs of one machine take different GPUs, wait when all are taken, and leave a scheduler's choice alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from d2llm.cli import gpus


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "driver" / "0000:01").mkdir(parents=True)
    (tmp_path / "driver" / "0000:02").mkdir()
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(gpus, "WAIT", 0.05)
    # As monkeypatch restores only what it has set.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path / "locks"


def test_every_job_takes_another_one_and_the_third_waits(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for _ in range(2):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        chosen.append((gpus.claim(two), os.environ["CUDA_VISIBLE_DEVICES"]))
    assert [name for _, name in chosen] == ["0", "1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    third: list = []
    waiting = threading.Thread(target=lambda: third.append(gpus.claim(two)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    chosen[1][0].close()  # a job that ends
    waiting.join(5)
    assert third and os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("named", "rank"), [("5", None), ("", None), ("0,1", "1")])
def test_nothing_to_choose(two: Path, monkeypatch: pytest.MonkeyPatch, named: str, rank: str | None) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert gpus.claim(two) is None and os.environ["CUDA_VISIBLE_DEVICES"] == named
    assert not two.exists()


def test_a_machine_without_gpus(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", two / "none")
    assert gpus.visible() == [] and gpus.claim(two) is None

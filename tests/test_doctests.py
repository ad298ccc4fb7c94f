"""Every example in a docstring, run; those of a trained student find a tiny one in the folder `model`."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import tiny
import torch

from d2llm.methods.registry import method

ROOT = Path(__file__).resolve().parent.parent
FILES = [path.relative_to(ROOT) for package in ("d2llm", "baselines") for path in (ROOT / package).rglob("*.py")]
MODULES = sorted(".".join(path.with_suffix("").parts) for path in FILES if ">>> " in (ROOT / path).read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: with a student of D2LLM of width 32."""
    place = tmp_path_factory.mktemp("examples")
    recipe = method("d2llm").recipe({"pooling": {"heads": 4}, "interaction": {"hidden": 16}})
    torch.manual_seed(0)
    method("d2llm").build(tiny.backbone("decoder", place / "base"), recipe).save(place / "model")
    return place


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert tried and not failed

"""Every example in a docstring, run; those of a trained student find a tiny one in the folder `model`."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import tiny
import torch

from d2llm.methods import base as methods

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("d2llm", "baselines")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: with a student of D2LLM of width 32."""
    place = tmp_path_factory.mktemp("examples")
    method = methods.method("d2llm")
    recipe = method.recipe({"pooling": {"heads": 4}, "interaction": {"hidden": 16}})
    base = place / "base"
    torch.manual_seed(0)
    method.build(tiny.backbone("decoder", base), recipe).save(place / "model")
    return place


def test_the_public_names_have_examples() -> None:
    assert {"d2llm.__init__", "d2llm.models.student", "d2llm.search.index"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert tried and not failed

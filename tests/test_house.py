"""The structure of the code (docs/architecture.md): arrows point one way, folders and functions are small, what is found by name is there."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from d2llm.config.catalogue import check_head, entries, row_names
from d2llm.config.load import load
from d2llm.config.registry import modules
from d2llm.models import parts
from d2llm.reporting import style
from d2llm.run import stages
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
# Each may import those of its own line and of the lines below.
LAYERS = [
    {"cli"},
    {"reporting", "analysis", "evaluation", "training", "teacher", "data", "search", "sentence_transformer"},
    {"methods"},
    {"models"},
    {"config", "run", "version"},
]
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}
PYTHON = sorted(path for package in ("d2llm", "baselines") for path in (ROOT / package).rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """Module → modules of the project that its text imports, lazily or for types alone too."""
    known = {module(path) for path in PYTHON}
    graph = {}
    for path in PYTHON:
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                named |= {
                    full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names
                }
        graph[module(path)] = (named & known) - {module(path)}
    return graph


def test_no_import_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' ← '.join(error.args[1])}")


def test_imports_point_one_way() -> None:
    wrong = []
    for name, targets in imports().items():
        if name.startswith("d2llm."):
            level = LEVEL[name.split(".")[1]]
            wrong += [(name, other) for other in targets if other == "baselines" or other.startswith("baselines.")]
            wrong += [
                (name, other) for other in targets if other.startswith("d2llm.") and LEVEL[other.split(".")[1]] > level
            ]
        elif name.startswith("baselines."):
            wrong += [(name, other) for other in targets if other.startswith("d2llm.cli")]
    assert wrong == []


def test_folders_are_small() -> None:
    for folder in [ROOT / "d2llm", *(path for path in (ROOT / "d2llm").rglob("*") if path.is_dir())]:
        count = len(list(folder.glob("*.py")))
        assert count <= (30 if folder.parent.name == "reporting" else 15), f"{folder.relative_to(ROOT)}: {count} files"


def test_functions_are_short() -> None:
    """40 lines; of a loss or a figure 60."""
    long = []
    for path in PYTHON:
        limit = 60 if {"losses", "figures", "drawing"} & set(path.with_suffix("").parts) else 40
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name}, {lines} lines"] if lines > limit else []
    assert long == []


def test_values_are_named_by_what_they_hold() -> None:
    """Not `found`, `made` or `said`, which any value is."""
    wrong = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            stored = isinstance(getattr(node, "ctx", None), ast.Store)
            name = getattr(node, "arg", None) if isinstance(node, ast.arg) else None
            name = getattr(node, "id", getattr(node, "attr", None)) if stored else name
            if name in {"found", "made", "said"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")  # type: ignore[attr-defined]
    assert wrong == []


def test_every_file_says_first_what_it_does() -> None:
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        assert not text or ast.get_docstring(ast.parse(text)), path


def test_what_is_found_by_name() -> None:
    """At least these: one more file is one more of its kind, and no list here to add it to."""
    assert list(modules())[0] == "d2llm"
    assert {"bge", "colbert", "llara", "retromae", "sgpt", "simcse", "udever"} <= set(modules())
    assert {"bilinear", "cosine", "dot", "iem", "maxsim"} <= set(parts.names("scorer"))
    assert {"cls", "cls_mlp", "last_token", "mean", "pma", "tokens", "weighted_mean"} <= set(parts.names("pooling"))
    assert {"bm25", "teacher"} <= set(row_names())
    assert list(entries("table"))[:5] == ["nli", "sts", "ir", "ablation", "settings"]
    assert list(entries("figure"))[:3] == ["main", "leads", "phenomena"] and len(entries("figure")) >= 13


@pytest.mark.parametrize("kind", ["pooling", "scorer"])
def test_a_part_is_named_as_its_file(kind: parts.Kind) -> None:
    for name in parts.names(kind):
        build = parts.build_pooling if kind == "pooling" else parts.build_scorer
        assert build(name, 32).name == name


GOOD = {"PLACE": 1, "READS": ("scores",), "CAPTION": {"section": "more", "title": "x", "text": "y."}}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"PLACE": None}, "figures/new.py: expected PLACE at its head, a plain int"),
        ({"READS": "scores"}, "expected READS at its head, a plain tuple"),
        ({"CAPTION": {"section": "more"}}, "CAPTION lacks text, title"),
    ],
)
def test_a_wrong_head_is_one_line(head: dict[str, object], message: str) -> None:
    file = ROOT / "d2llm" / "reporting" / "figures" / "new.py"
    check_head(file, GOOD)
    with pytest.raises(ConfigError, match=message):
        check_head(file, GOOD | head)


def test_a_head_that_reads_what_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(entries("figure")["main"], reads=("score",))
    monkeypatch.setattr(stages, "entries", lambda kind: {"new": entry})
    with pytest.raises(ConfigError, match="figure new: reads 'score', which is no file"):
        stages.STAGES["figure"].reads(load([ROOT / "config" / "mini.yaml"]), Paths(Path("r")), name="new")


def test_a_reference_row_without_a_look_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "row_head", lambda name: {"TITLE": "Length"})
    assert (style.look("length", ["bge"]), style.point("length", ["bge"])) == (("#7F7F7F", "|"), ("#7F7F7F", "8"))

"""Digests of the code behind an artifact: a module, and what it imports. Code is read, never imported."""

import ast
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("d2llm", "baselines")

# Folders whose modules carry settings, files and messages about, but decide no number: what they carry is compared by
# value.
CARRYING_FOLDERS = ("d2llm.cli", "d2llm.config", "d2llm.run")


# Packages whose versions a record names.
RECORDED = (
    "accelerate",
    "bm25s",
    "datasets",
    "jieba",
    "matplotlib",
    "mteb",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "snakemake",
    "tokenizers",
    "torch",
    "transformers",
)

# Their names in import statements, where these are others.
IMPORTED = {"sklearn": "scikit-learn", "sentence_transformers": "sentence-transformers"}

# Of them, those a training's bits depend on.
COMPUTING = ("accelerate", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")

# And those that decide no number, as those folders.
CARRYING = ("pydantic", "snakemake")

# What a package computes through, without an import statement of this project.
BEHIND = {
    "mteb": ("scikit-learn", "scipy"),
    "peft": ("safetensors", "tokenizers", "torch", "transformers"),
    "transformers": ("safetensors", "tokenizers", "torch"),
}


def code_digest(modules: list[str], root: Path = ROOT) -> str:
    """Digest of modules and all of this project's modules they import, blind to comments, docstrings, layout and `if
    TYPE_CHECKING:`.

    Which method a run trains is decided by name, so a method's file counts only where it is among `modules` or imported
    by a method that is. Thus editing one baseline touches its own trainings alone.
    """
    digest = hashlib.sha256()
    for module in sorted(closure(modules, root)):
        digest.update(f"{module}\0{module_digest(module, root)}\n".encode())
    return digest.hexdigest()[:16]


def closure(modules: list[str], root: Path = ROOT) -> set[str]:
    """The modules given, and transitively what they import of this project, without plumbing and unnamed methods."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        for imported in imports(module, root):
            if not carries(imported) and (is_method(module) or not is_method(imported)):
                waiting.append(imported)
    return reached


def packages(modules: list[str], root: Path = ROOT) -> list[str]:
    """Recorded packages that modules and all of this project's modules they import compute with, but for those that
    carry settings.
    """
    names = set().union(*(third_parties(module, root) for module in closure(modules, root)))
    names |= {behind for name in names for behind in BEHIND.get(name, ())}
    return [name for name in RECORDED if name in names and name not in CARRYING]


def carries(module: str) -> bool:
    """Whether a module is of a folder that decides no number; a package itself, without code of its own, is none
    either.
    """
    return module in ("d2llm", "baselines", "d2llm.version") or any(
        module == folder or module.startswith(f"{folder}.") for folder in CARRYING_FOLDERS
    )


def is_method(module: str) -> bool:
    """Whether a module is one method's file."""
    return module.startswith(("baselines.", "d2llm.methods.d2llm"))


@cache
def module_digest(module: str, root: Path) -> str:
    """Digest of one module's parsed code."""
    return hashlib.sha256(ast.dump(bare(parsed(module, root))).encode()).hexdigest()


@cache
def imports(module: str, root: Path) -> frozenset[str]:
    """This project's modules that a module's import statements name, wherever in it they stand."""
    return frozenset(name for name in imported_names(module, root) if source(name, root))


@cache
def third_parties(module: str, root: Path) -> frozenset[str]:
    """Packages of others that a module's import statements name, wherever in it they stand, by the names they are
    installed by.
    """
    names = set()
    for node in import_statements(module, root):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif not node.level:
            names.add((node.module or "").partition(".")[0])
    return frozenset(IMPORTED.get(name, name) for name in names) & frozenset(RECORDED)


@cache
def import_statements(module: str, root: Path) -> list[ast.Import | ast.ImportFrom]:
    """A module's import statements, wherever in it they stand."""
    return [node for node in statements(parsed(module, root)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_names(module: str, root: Path) -> Iterator[str]:
    """Every name of this project's an import statement could mean as a module, with the packages that hold it."""
    path = source(module, root)
    package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
    for node in import_statements(module, root):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                parts = name.split(".")
                yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


@cache
def parsed(module: str, root: Path) -> ast.Module:
    """A module's syntax tree as it runs; an empty one for a module that is not there (running it will say so)."""
    path = source(module, root)
    tree = ast.parse(path.read_bytes(), filename=str(path)) if path else ast.Module(body=[], type_ignores=[])
    tree.body = running(tree.body)
    return tree


# Where statements stand within another. Expressions, nine tenths of a tree, hold none, and are not looked into.
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


def statements(tree: ast.Module) -> Iterator[Any]:
    """The module and each statement in it, wherever it stands."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in BODIES:
            waiting += getattr(node, name, ())


def running(body: list[Any]) -> list[Any]:
    """Statements without what only type checkers read: an import there makes no job depend on a module."""
    kept: list[Any] = []
    for node in body:
        for name in BODIES:
            if inner := getattr(node, name, None):
                setattr(node, name, running(inner))
        kept += node.orelse if is_for_types(node) else [node]
    return kept


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    test = getattr(node, "test", None)
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return isinstance(node, ast.If) and name == "TYPE_CHECKING"


@cache
def source(module: str, root: Path) -> Path | None:
    """The file of a module of this project."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings (comments and layout are not in it anyway), which it loses for whoever holds it."""
    for node in statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not is_text(part)] or [ast.Pass()]
    return tree


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a mere string: a docstring, or a note below a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def constants(module: str, root: Path = ROOT) -> dict[str, Any]:
    """The plain values that a module's head assigns to names, without importing it."""
    values = {}
    for node in parsed(module, root).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):  # no plain value
                values[node.targets[0].id] = ast.literal_eval(node.value)
    return values

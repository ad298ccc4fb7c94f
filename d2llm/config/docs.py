"""`d2llm config-docs`: docs/configuration.md, made of the schema: every key with its type, its default and what it
means.

Meanings are the comments that stand above the fields in the code, and beside the keys in config/mini.yaml; nothing is
told here. Needs a clone, as comments are not in installed classes' metadata but in their source.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Tag
from pydantic_core import PydanticUndefined

from d2llm.config.recipes import MaxLengths, PretextStage, Recipe
from d2llm.config.registry import declared, names
from d2llm.config.schema import Config
from d2llm.config.section import Section
from d2llm.run.code import ROOT
from d2llm.run.errors import ConfigError

# Kinds of section that stand at one key, by their tags in the schema.
TOLD_APART = ("made", "checkpoint", "files", "mteb", "published")
MINI = Path("config") / "mini.yaml"
HEAD = """\
# Configuration

Every key of a config file, its type, its default and its meaning. **Made by `d2llm config-docs --to docs/configuration.md`** of the schema (`d2llm/config/schema.py` and the sections it is made of) and of the comments in `config/mini.yaml`: change it there.

A default is what holds where no file gives the key; `config/mini.yaml` and the other tiers set their own. Files are laid over each other key by key, then `-C` of the command line ([running.md](running.md#settings)). A key that is not here is refused before the first job, with the nearest one that is. `<name>` stands for a name of yours.
"""
RECIPES = """\
## methods.&lt;method&gt;

Keys that every method has. What a method's published recipe sets differently, and the keys it has besides, follow by method. In a file, a sub-section is laid over the published one key by key.
"""


def page(root: Path = ROOT) -> str:
    """The page. Raises ConfigError outside a clone."""
    if not (root / MINI).is_file():
        raise ConfigError(f"config-docs: no {MINI} in {root}; run it in a clone of the repository")
    beside = beside_keys((root / MINI).read_text(encoding="utf-8"))
    # A list may hold plain values beside sections.
    scalars = {
        name
        for name, field in Config.model_fields.items()
        if get_origin(field.annotation) is list or not list(inner(field.annotation, name))
    }
    parts = [HEAD, "## Top level\n\n" + table(Config, "", beside, only=scalars)]
    for section, keys in places().items():
        first, *others = keys
        level = "#" * min(4, 2 + first.count("."))
        also = f" The same keys at {', '.join(f'`{key}`' for key in others)}." if others else ""
        said = described(section) + also
        parts.append(f"{level} {escaped(first)}\n\n{said}\n\n{table(section, first, beside)}")
    parts += recipes(beside)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def places() -> dict[type[Section], list[str]]:
    """Every section below `Config` with the keys it stands at, in the order of the schema."""
    keys: dict[type[Section], list[str]] = {}

    def visit(section: type[Section], key: str) -> None:
        new = section not in keys
        keys.setdefault(section, []).append(key)
        for name, field in section.model_fields.items() if new else ():
            for inner_key, part in inner(field.annotation, f"{key}.{name}"):
                visit(part, inner_key)

    for name, field in Config.model_fields.items():
        for key, section in inner(field.annotation, name):
            visit(section, key)
    return keys


def recipes(beside: dict[str, str]) -> Iterator[str]:
    """Keys of all methods, then what is each one's own."""
    prefix = "methods.<method>"
    yield f"{RECIPES}\n{table(Recipe, prefix, beside)}"
    for name, part in (("max_lengths", MaxLengths),):
        yield f"### {escaped(f'{prefix}.{name}')}\n\n{described(part)}\n\n{table(part, f'{prefix}.{name}', beside)}"
    yield f"### Pre-training stages\n\n{described(PretextStage)} Keys that every such section has (`pretraining`, `unsupervised`, `adaptation`):\n\n{table(PretextStage, 'stage', beside)}"
    for name in names():
        own = declared(name).Recipe
        usual = Recipe()
        differs = {
            key
            for key, field in own.model_fields.items()
            if key not in Recipe.model_fields or field.get_default(call_default_factory=True) != getattr(usual, key)
        }
        yield f"### methods.{name}\n\n{described(own)}\n\n{table(own, f'methods.{name}', beside, only=differs)}"
        for key in own.model_fields:
            if key in Recipe.model_fields:
                continue
            for inner_key, found in inner(own.model_fields[key].annotation, f"methods.{name}.{key}"):
                only = {
                    k
                    for k in found.model_fields
                    if k not in PretextStage.model_fields
                    or found.model_fields[k].default != PretextStage.model_fields[k].default
                }
                yield f"#### {inner_key}\n\n{described(found)}\n\n{table(found, inner_key, beside, only=only if issubclass(found, PretextStage) else None)}"


def described(section: type[Section]) -> str:
    """A section's docstring, a line a paragraph."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(section.__doc__ or ""))


def table(section: type[Section], prefix: str, beside: dict[str, str], only: set[str] | None = None) -> str:
    """A row a key; sections within point to their own table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if only is not None and name not in only:
            continue
        key = f"{prefix}.{name}" if prefix else name
        text = sentence(meaning(section, name) or beside.get(key, ""))
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        lines.append(f"| `{name}` | {cell(kind(annotation))} | {cell(default(field))} | {cell(text)} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------- meanings
@cache
def comments(section: type[Section]) -> dict[str, str]:
    """The comment right above each field in a class's own body; one above several fields in a row is of the first."""
    source = textwrap.dedent(inspect.getsource(section))
    lines = source.splitlines()
    texts: dict[str, str] = {}
    (parsed,) = ast.parse(source).body
    assert isinstance(parsed, ast.ClassDef)
    for node in parsed.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            place, block = node.lineno - 2, list[str]()
            while place >= 0 and lines[place].strip().startswith("# "):
                block.insert(0, lines[place].strip().removeprefix("# "))
                place -= 1
            texts[node.target.id] = " ".join(block)
    return texts


def meaning(section: type[Section], name: str) -> str:
    """What the code says of a key, where it is declared, or where the section it derives from declares it."""
    for owner in section.__mro__:
        if owner is not Section and isinstance(owner, type) and issubclass(owner, Section) and comments(owner).get(name):  # fmt: skip
            return comments(owner)[name]
    return ""


def beside_keys(text: str) -> dict[str, str]:
    """The comment at the end of each key's line in a YAML file, by dotted key; one indented further goes on from the
    key above.
    """
    texts: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        matched = re.match(r"( *)([\w-]+):(.*)$", line)
        if not matched:
            continue
        indent = len(matched[1])
        path = [(place, name) for place, name in path if place < indent] + [(indent, matched[2])]
        comment = re.search(r"(?:^|\s)#\s*(.*)$", matched[3])
        if comment:
            texts[".".join(name for _, name in path)] = comment[1].strip()
    return texts


def sentence(text: str) -> str:
    """Text that begins and ends as a sentence does."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "…")) or not text else ".")


# ---------------------------------------------------------------------------------------------------------------- types
def inner(annotation: Any, key: str) -> Iterator[tuple[str, type[Section]]]:
    """The sections an annotation holds, each with the key it stands at."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield key, annotation
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tags = [one.tag for one in arguments[1:] if isinstance(one, Tag) and one.tag in TOLD_APART]
        yield from inner(arguments[0], f"{key} ({tags[0]})" if tags else key)
    elif origin is dict:
        yield from inner(arguments[1], f"{key}.<name>")
    elif origin in (list, tuple, Union, types.UnionType):
        for argument in arguments:
            yield from inner(argument, key)


def kind(annotation: Any) -> str:
    """A type in the words of someone who edits YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bounded(kind(arguments[0]), arguments[1:])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments) if len(arguments) > 1 else f"`{arguments[0]}`"
    if origin in (Union, types.UnionType):
        parts = ["null" if part is type(None) else kind(part) for part in arguments]
        return (
            " or ".join(dict.fromkeys(part for part in parts if part != "section"))
            + (" or section" if "section" in parts and len(set(parts)) > 1 else "")
            or "section"
        )
    if origin is dict:
        return f"`<name>`: {kind(arguments[1])}"
    if origin in (list, tuple):
        if not arguments:
            return "list"
        values = kind(arguments[0])
        return f"list of {plural(values)}" if " or " not in values and "one of" not in values else f"list ({values})"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true/false", type(None): "null"}.get(
        annotation, "any value"
    )


def bounded(kind: str, metadata: tuple[Any, ...]) -> str:
    """A type with the limits pydantic holds it to."""
    limits = []
    for one in metadata:
        for part in getattr(one, "metadata", None) or [one]:
            for known, sign in ((Ge, "≥"), (Gt, ">"), (Le, "≤"), (Lt, "<")):
                if isinstance(part, known):
                    limits.append(f"{sign} {getattr(part, known.__name__.lower()):g}")
            if isinstance(part, MinLen) and kind.startswith("list"):
                limits.append(f"({part.min_length} or more)") if part.min_length > 1 else None
    return " ".join([kind, ", ".join(limits)]).strip()


def plural(kind: str) -> str:
    """The name of a type, of several."""
    first, space, rest = kind.partition(" ")
    names = {"integer": "integers", "number": "numbers", "text": "texts", "section": "sections", "any": "any"}
    return names.get(first, first) + space + rest


def default(field: Any) -> str:
    """A default as YAML has it; of a section: its own table tells."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, Section):
        usual = {name: one.get_default(call_default_factory=True) for name, one in type(value).model_fields.items()}
        changed = {name: one for name, one in value if one != usual[name] and not isinstance(one, Section)}
        shown = ", ".join(f"{name}: {json.dumps(one, ensure_ascii=False)}" for name, one in changed.items())
        return (
            f"`{{{shown}}}`".replace('"', "")
            if changed and usual[next(iter(changed))] is not PydanticUndefined
            else "below"
        )
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"`{value:g}`"
    return (
        f"`{json.dumps(value, ensure_ascii=False, default=str)}`"
        if not isinstance(value, str) or not value
        else f"`{value!r}`".replace("'", "")
    )


def cell(text: str) -> str:
    """Text within a row of a Markdown table."""
    return re.sub(r"<(?=\w)(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", "&lt;", text.replace("|", "\\|").replace("\n", " "))


def escaped(key: str) -> str:
    """A key as a heading."""
    return key.replace("<", "&lt;").replace(">", "&gt;")

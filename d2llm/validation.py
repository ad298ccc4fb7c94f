"""Turns what does not fit a section of settings into one line: origin, key, found, expected, nearest valid key.

Holds no setting and reads no file; `d2llm.config` does.
"""

import difflib
import json
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from d2llm.errors import ConfigError
from d2llm.section import Section

S = TypeVar("S", bound=Section)
Key = tuple[str | int, ...]
# How the members of unions are tagged (`config.Base`, `data.settings`).
TAGS = ("made", "checkpoint", "path", "hub", "three", "files", "mteb")


def validate(schema: type[S], values: Any, origin: Callable[[Key], str], prefix: Key = ()) -> S:
    """Make a `schema` of `values`, or raise a ConfigError that names the first thing wrong.

    `origin(key)` says where the value of a key comes from (a file's name); `prefix` is the key of `values` itself.
    """
    try:
        # Through JSON, because pydantic's strict mode takes lists for tuples and strings for paths only from there.
        return schema.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems = [problem | {"loc": untagged(values, problem["loc"])} for problem in error.errors(include_url=False)]
    # An unknown key first: when a key is misspelt, whatever else is wrong usually follows from it.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    message = explain(schema, values, first["type"], first["msg"], first["loc"], prefix)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(f"{origin(prefix + first['loc'])}: {message}{more}")


def untagged(values: Any, location: Key) -> Key:
    """A problem's place as the file has it: pydantic adds which member of a union it tried."""
    found: Key = ()
    for part in location:
        here = at(values, found)
        if part not in TAGS or (isinstance(here, dict) and part in here):
            found = (*found, part)
    return found


def explain(schema: type[Section], values: Any, problem: str, message: str, location: Key, prefix: Key) -> str:
    """One of pydantic's problems in the words of someone who edits YAML."""
    key = dotted(prefix + location)
    found = at(values, location)
    if problem == "extra_forbidden":
        near = nearest(location, list(keys(schema)))
        hint = f"; nearest valid key: {dotted(prefix + near)}" if near else ""
        return f"{key}: unknown key (found {show(found)}){hint}"
    if problem == "missing":
        return f"{key}: missing; give it a value"
    if problem in ("model_type", "dict_type"):
        message = "a section of keys and values"
    expected = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key or 'the file'}: expected {expected}; found {show(found)} ({kind(found)})"


def keys(schema: type[Section], prefix: Key = ()) -> Iterator[Key]:
    """Every key of a schema as a path, sections included."""
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        for inner in sections(field.annotation):
            yield from keys(inner, (*prefix, name))


def sections(annotation: Any) -> list[type[Section]]:
    """The Section classes a field's annotation names directly or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for part in get_args(annotation) for inner in sections(part)]
    return []


def nearest(location: Key, known: list[Key]) -> Key | None:
    """The known key most like an unknown one: a sibling of like name, else the same or a like name elsewhere."""
    siblings = {str(key[-1]): key for key in known if key[:-1] == location[:-1]}
    everywhere = {str(key[-1]): key for key in reversed(known)}
    for candidates in (siblings, everywhere):
        match = difflib.get_close_matches(str(location[-1]), candidates, n=1, cutoff=0.6)
        if match:
            return candidates[match[0]]
    return None


def dotted(key: Key) -> str:
    """`("training", "steps")` as `training.steps`."""
    return ".".join(str(part) for part in key)


def at(values: Any, location: Key) -> Any:
    """The value at a key path, or None where the path leaves the values."""
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def kind(value: Any) -> str:
    """A value's type in YAML's words."""
    names = {dict: "a section", list: "a list", str: "text", bool: "true/false", int: "an integer", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    """A value, short enough for an error line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

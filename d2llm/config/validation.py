"""Turns what does not fit a section of settings into one line: origin, key, found, expected, nearest valid key.

Holds no setting and reads no file; `d2llm.config.schema` does.
"""

import difflib
import json
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from d2llm.config.section import Section
from d2llm.run.errors import ConfigError

S = TypeVar("S", bound=Section)
Key = tuple[str | int, ...]
# How the members of unions are tagged (`config.Base`, `data.settings`).
TAGS = ("made", "checkpoint", "path", "hub", "three", "files", "mteb", "row", "published")
# Stands for any name in a path of keys.
ANY = "NAME"
# What a file may hold at most: YAML's aliases let a few lines stand for any number of values, or for endless ones.
PLACES, DEPTH = 100_000, 40
# Keys by their former names.
RENAMED = {"sentence1": "query", "sentence2": "passage"}
# Keys that are listed where none is like an unknown one.
LISTED = 12


def validate(schema: type[S], values: Any, origin: Callable[[Key], str], prefix: Key = ()) -> S:
    """Make a `schema` of `values`, or raise a ConfigError that names the first thing wrong.

    `origin(key)` says where the value of a key comes from (a file's name); `prefix` is the key of `values` itself.
    """
    try:
        # Through JSON, because pydantic's strict mode takes lists for tuples and strings for paths only from there.
        return schema.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems = [problem | {"loc": untagged(values, problem["loc"])} for problem in error.errors(include_url=False)]
    # An unknown key first, and one that is known nowhere: when a key is misspelt, whatever else is wrong usually
    # follows from it.
    known = set(keys(schema))
    first = min(problems, key=lambda problem: (problem["type"] != "extra_forbidden", problem["loc"] in known))
    message = explain(schema, values, first["type"], first["msg"], first["loc"], prefix)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(f"{origin(prefix + first['loc'])}: {message}{more}")


def check_plain(values: Any, origin: str) -> None:
    """Refuse what YAML can hold and no setting is: keys that are no text, text that is no Unicode, other types, endless
    or huge values.
    """
    places = 0

    def walk(value: Any, key: Key) -> None:
        nonlocal places
        places += 1
        if places > PLACES or len(key) > DEPTH:
            raise ConfigError(
                f"{origin}: {dotted(key[:3])}: expected at most {PLACES} values, {DEPTH} deep; found more"
            )
        if isinstance(value, dict):
            for name, inner in value.items():
                if not isinstance(name, str):
                    raise ConfigError(
                        f"{origin}: {dotted((*key, name))}: expected text as a key (in quotes, where needed); found "
                        f"{show(name)}"
                    )
                walk(name, (*key, name))
                walk(inner, (*key, name))
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                walk(inner, (*key, place))
        elif isinstance(value, str):
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ConfigError(f"{origin}: {dotted(key)}: expected Unicode text; found {show(value)}")
        elif not isinstance(value, int | float | None):
            raise ConfigError(
                f"{origin}: {dotted(key)}: expected text, a number, a list or a section; found {show(value)} "
                f"({kind(value)})"
            )

    walk(values, ())


def untagged(values: Any, location: Key) -> Key:
    """A problem's place as the file has it: pydantic adds which member of a union it tried."""
    key: Key = ()
    for place, part in enumerate(location):
        here = at(values, key)
        # A key like a tag holds what the rest of the place is in.
        inside = isinstance(here, dict) and part in here
        if part not in TAGS or (inside and (place == len(location) - 1 or isinstance(here[part], dict | list))):
            key = (*key, part)
    return key


def explain(schema: type[Section], values: Any, problem: str, message: str, location: Key, prefix: Key) -> str:
    """One of pydantic's problems in the words of someone who edits YAML."""
    key = dotted(prefix + location)
    value = at(values, location)
    if location and location[-1] == "[key]":  # the name of an entry, not what it holds
        key, value = dotted(prefix + location[:-1]), location[-2]
    if problem == "extra_forbidden":
        known = list(keys(schema))
        near = nearest(location, known)
        here = [str(name[-1]) for name in siblings(location, known)]
        hint = f"valid keys here: {', '.join(here[:LISTED])}" + (", …" if len(here) > LISTED else "")
        if near:
            hint = f"nearest valid key: {dotted(prefix + near)}"
        if (now := RENAMED.get(str(location[-1]))) in here:
            hint = f"it is called {now} now"
        if location in known:
            hint = "a valid key of another kind of this section"
        return f"{key}: unknown key (found {show(value)}); {hint}"
    if problem == "missing":
        return f"{key}: missing; give it a value"
    if problem in ("model_type", "dict_type"):
        message = "a section of keys and values"
    expected = message.removeprefix("Input should be ").removeprefix("Value error, ")
    for pattern, meant in (("String should match pattern", "text of the form"), ("String should have", "text of")):
        expected = expected.replace(pattern, meant, 1)
    return f"{key or 'the file'}: expected {expected}; found {show(value)} ({kind(value)})"


def keys(schema: type[Section], prefix: Key = ()) -> Iterator[Key]:
    """Every key of a schema as a path, sections included."""
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        for inner in sections(field.annotation):
            yield from keys(inner, (*prefix, name))
        for inner in entries(field.annotation):
            yield from keys(inner, (*prefix, name, ANY))


def entries(annotation: Any) -> list[type[Section]]:
    """The Section classes that the entries of a field are, where it is a dictionary by name or a list."""
    return sections(get_args(annotation)[-1]) if get_origin(annotation) in (dict, list) else []


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
    here = {str(key[-1]): (*location[:-1], key[-1]) for key in siblings(location, known)}
    everywhere = {str(key[-1]): key for key in reversed(known)}
    for candidates in (here, everywhere):
        match = difflib.get_close_matches(str(location[-1]), candidates, n=1, cutoff=0.6)
        if match:
            return candidates[match[0]]
    return None


def siblings(location: Key, known: list[Key]) -> list[Key]:
    """The known keys of the section that a key is in."""

    def fits(key: Key) -> bool:
        return len(key) == len(location) and all(
            one in (two, ANY) for one, two in zip(key[:-1], location[:-1], strict=True)
        )

    return [key for key in dict.fromkeys(known) if fits(key)]


def dotted(key: Key) -> str:
    """`("training", "steps")` as `training.steps`; a part that would break the line as Python writes it."""
    return ".".join(part if (part := str(name)).isprintable() and 0 < len(part) <= 160 else show(name) for name in key)


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

"""Configs spoiled at random, starting from those of config/, and what has to hold of each: it is a config the workflow can plan, or it is refused in one line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from d2llm.config.load import load, loader, read
from d2llm.config.schema import Config
from d2llm.config.validation import dotted
from d2llm.models.base import pretrained
from d2llm.run import jobs, stages
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths

FOLDER = Path(__file__).parent.parent / "config"
FILES = sorted(FOLDER.glob("*.yaml"))
# Laid over another, as it has no tier of its own.
BELOW = {"study": FOLDER / "mini.yaml"}

STRANGE = [
    "", " ", "\n", "a\nb", "x" * 5000, "../up", "/", "a/b", "a b", "$(touch pwned)", "`id`", "'", '"', "{method}", "{", "}", "%s", "\x00", "\t",
    "\ud800", "甲", "🦆", "NA", "null", "true", "1e999", "nan", "__proto__", "base", "teacher", "-", ".", "..", "~", "package:", "package:a.b/c",
    "package:../x", "org/name", "a.gguf", "mteb", "path", "source", "!!python/object:os.system",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 10**6, 10**18, 10**30, -(10**30), 2**63, 10**400, 0.0, -0.0, 0.5, -0.5, 1.0, 1.5, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"),
]  # fmt: skip
SHAPES: list[Any] = [
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {1: 2},
    {None: 3},
    {True: {}},
    [1, [2, [3]]],
    {"source": "x"},
    {"mteb": "Ocnli"},
    {"repo": "a/b"},
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(STRANGE),
    st.sampled_from(SHAPES),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.sampled_from([*NUMBERS, *STRANGE]), max_size=3),
)
TEXT = [
    "\t",
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    "- ",
    "'",
    '"',
    "&a ",
    "*a",
    "!!binary ",
    "!!set ",
    "? ",
    "|",
    ">",
    "%",
    "@",
    "`",
    "\x00",
    "\x07",
    "\ufeff",
    "---\n",
    "<<: ",
    "#",
    "\n",
    "2024-13-45",
    "1" * 5000,
]


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key path of nested settings, lists included."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def holder(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        values = values[key]
    return values


def misspelt(draw: st.DrawFn, key: str) -> str:
    """A key with one letter gone, doubled, or exchanged with the next."""
    at = draw(st.integers(0, max(0, len(key) - 2)))
    return draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + key[at : at + 1] + key[at:],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
            ]
        )
    )


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[list[Path], str]:
    """(files that lie below, text of a config with one to three things wrong with it)."""
    source = draw(st.sampled_from(FILES))
    values = read(source)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(values))
        if not found:
            break
        place = draw(st.sampled_from(found))
        inside, key = holder(values, place), place[-1]
        match draw(
            st.sampled_from(["drop", "value", "value", "value", "rename", "add", "wrap", "move", "swap", "all"])
        ):
            case "drop":
                del inside[key]
            case "value":
                inside[key] = deepcopy(draw(VALUES))
            case "rename" if isinstance(inside, dict):
                new = (
                    misspelt(draw, key)
                    if isinstance(key, str) and draw(st.booleans())
                    else draw(st.sampled_from([*STRANGE, 1, None]))
                )
                inside[new] = inside.pop(key)
            case "add" if isinstance(inside, dict):
                inside[draw(st.sampled_from([*STRANGE, "steps", "seed", "name", 7]))] = deepcopy(draw(VALUES))
            case "wrap":
                inside[key] = draw(st.sampled_from([{key: inside[key]}, [inside[key]], str(inside[key])]))
            case "move":
                other = draw(st.sampled_from(found))
                target = holder(values, other)
                if isinstance(target, dict):
                    target[key] = deepcopy(inside[key])
            case "swap":
                other = draw(st.sampled_from(found))
                one, two = inside[key], deepcopy(holder(values, other)[other[-1]])
                inside[key] = two
                if other[: len(place)] != place and place[: len(other)] != other:
                    holder(values, other)[other[-1]] = deepcopy(one)
            case "all" if isinstance(inside[key], dict):
                inside[key] = {}
    # No aliases, but for those that stand for themselves.
    text = yaml.dump(values, Dumper=Plain, allow_unicode=True, sort_keys=False)
    if draw(st.integers(0, 4)) == 0:  # the text itself
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(TEXT)) + text[at + draw(st.integers(0, 3)) :]
    return [BELOW[source.stem]] if source.stem in BELOW else [], text


class Plain(yaml.SafeDumper):
    """Spells out what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where a block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def jobs(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, arguments) of every job that the workflow may plan for a config."""
    for name in config.data.files.downloads() if config.data.source == "files" else ():
        yield "download", {"download": name}
    for stage in (
        "texts",
        "data",
        "negatives",
        "collect",
        "comparison",
        "ablations",
        "runtime",
        "report",
        "notebook",
        "tune",
    ):
        yield stage, {}
    for model in config.models.names():
        yield "base", {"model": model}
    for teacher in ("teacher", *config.teachers):
        yield "teacher", {"teacher": teacher}
        yield "teacher-scores", {"teacher": teacher, "shard": 0, "shards": config.teacher.shards}
    for method, variant in config.pretexts():
        yield "pretext", {"method": method, "variant": variant}
    for run in (*config.runs(), *(trial.run for trial in config.trials())):
        yield "train", run._asdict()
    for run in config.evaluations():
        yield "evaluate", run._asdict()
    for name in ("ablation", "settings", "sweep_nli", "architecture"):
        yield ("figure" if name in ("sweep_nli", "architecture") else "table"), {"name": name}


def plan(config: Config) -> int:
    """Jobs of a config, each with its settings and with all it writes below the results folder. Raises what the workflow would end in."""
    root, count = Paths.of(config).root, 0
    for name in config.models.names():
        model = config.models.of(name)
        if hasattr(model, "source") and model.origin != "hub":
            pretrained.located(model, f"models.{name}.source")
    if config.data.source == "files":
        for path in config.data.files.paths().values():
            Path(path).is_file()
    for stage, arguments in jobs(config):
        count += 1
        jobs.settings_line(config, stage, **arguments)
        place = stages.STAGES[stage].provenance(Paths.of(config), **arguments)
        assert ".." not in place.relative_to(root).parts, place
        assert not set(str(place.relative_to(root))) & set(" '\"$`;&|<>*?\\{}\n\t"), place
    return count


def outcome(below: list[Path], text: str, folder: Path) -> str:
    """`planned`, or the line with which a config is refused. Raises AssertionError for a line that does not say where, and whatever else comes up."""
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        with at_most(10):
            config = load([*below, file])
    except ConfigError as error:
        line = str(error)
        where, _, rest = line.partition(": ")
        assert line.isprintable() and len(line) < 1500, f"not one line: {line!r}"
        assert where in map(str, [*below, file]), f"names no file: {line!r}"
        told = re.match(
            r"line \d+: not valid YAML|not valid YAML|cannot be read|nested too deep|expected keys and values", rest
        )
        assert told or any(rest.startswith(f"{name}") for name in sections(text)), f"names no key: {line!r}"
        if "unknown key" in rest:
            assert re.search(r"(nearest valid key|valid keys here): \w|a valid key of another kind", rest), (
                f"no way out: {line!r}"
            )
        return rest
    try:
        with at_most(10):
            plan(config)
    except ConfigError as error:
        assert re.fullmatch(r"models\.[^\n]+\.source: [^\n]+", str(error)), str(error)
        return str(error)
    return "planned"


def sections(text: str) -> list[str]:
    """The first parts of the keys that a config has, or lacks."""
    try:
        values = yaml.load(text, Loader=loader())
    except (yaml.YAMLError, RecursionError):
        return [""]
    return [*Config.model_fields, *(dotted((name,)) for name in values)] if isinstance(values, dict) else [""]

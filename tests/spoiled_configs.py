"""Configs spoiled at random, starting from those of config/, and what has to hold of each.

It is a config the workflow can plan, or it is refused in one line that names file and key.
"""

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
from d2llm.run.errors import ConfigError
from d2llm.run.jobs import settings_line
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES

FOLDER = Path(__file__).parent.parent / "config"
FILES = sorted(FOLDER.glob("*.yaml"))
# Laid over another, as they do not stand alone.
BELOW = {"controls": FOLDER / "mini.yaml", "study": FOLDER / "mini.yaml", "zh_hub": FOLDER / "zh.yaml"}

STRANGE = [
    "", "\n", "a\nb", "x" * 5000, "../up", "a/b", "a b", "$(touch pwned)", "`id`", "'", "{method}", "{", "%s", "\x00",
    "\ud800", "甲", "null", "true", "1e999", "base", "teacher", "-", "~", "package:../x", "org/name", "a.gguf", "mteb",
    "path", "source", "!!python/object:os.system",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 10**30, -(10**30), 2**63, 10**400, -0.0, 1.5, 1e-320, float("inf"), float("nan")]
SHAPES: list[Any] = [
    [], {}, [[]], [None], {"a": 1}, {1: 2}, {None: 3}, [1, [2, [3]]], {"source": "x"}, {"mteb": "Ocnli"}, None, True,
]  # fmt: skip
VALUES = st.one_of(*map(st.sampled_from, (NUMBERS, STRANGE, SHAPES)), st.integers(), st.floats(), st.text(max_size=20))
# What means something in YAML.
MARKS = [
    "\t", "{", "}", "[", "]", ": ", "- ", "'", '"', "&a ", "*a", "!!binary ", "? ", "|", "%", "@", "\x00", "\ufeff",
    "---\n", "<<: ", "#", "\n", "2024-13-45", "1" * 5000,
]  # fmt: skip


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key path of nested settings, lists included."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def holder(values: Any, place: tuple[Any, ...]) -> Any:
    """The section or list that holds a place."""
    for key in place[:-1]:
        values = values[key]
    return values


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[list[Path], str]:
    """(files that lie below, text of a config with one to three things wrong with it)."""
    source = draw(st.sampled_from(FILES))
    values = read(source)
    for _ in range(draw(st.integers(1, 3))):
        if spots := list(places(values)):
            spoil(draw, values, draw(st.sampled_from(spots)), draw(st.sampled_from(spots)))
    text = yaml.dump(values, Dumper=Plain, allow_unicode=True, sort_keys=False)
    if draw(st.integers(0, 4)) == 0:  # the text itself
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(MARKS)) + text[at + draw(st.integers(0, 3)) :]
    return [BELOW[source.stem]] if source.stem in BELOW else [], text


def spoil(draw: st.DrawFn, values: Any, place: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """One thing wrong at a place, or at two that are exchanged."""
    inside, key = holder(values, place), place[-1]
    kinds = ["drop", "value", "value", "wrap", "swap"] + ["rename", "add"] * isinstance(inside, dict)
    match draw(st.sampled_from(kinds)):
        case "drop":
            del inside[key]
        case "value":
            inside[key] = deepcopy(draw(VALUES))
        case "wrap":
            inside[key] = draw(st.sampled_from([{key: inside[key]}, [inside[key]], str(inside[key])]))
        case "swap" if other[: len(place)] != place and place[: len(other)] != other:
            far = holder(values, other)
            inside[key], far[other[-1]] = far[other[-1]], inside[key]
        case "rename":
            at = draw(st.integers(0, 8))
            names = [1, None, *STRANGE] + [key[:at] + key[at + 1 :]] * (20 * isinstance(key, str))  # a letter gone
            inside[draw(st.sampled_from(names))] = inside.pop(key)
        case "add":
            inside[draw(st.sampled_from([*STRANGE, "steps", "seed", "name", 7]))] = deepcopy(draw(VALUES))


class Plain(yaml.SafeDumper):
    """Spells out what occurs twice: no aliases but those that are put in."""

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
    """(stage, arguments) of the jobs that the workflow may plan for a config; of tables and figures two each."""
    for name in config.data.files.downloads() if config.data.source == "files" else ():
        yield "download", {"download": name}
    alone = "texts data negatives collect comparison ablations runtime report notebook tune"
    yield from ((stage, {}) for stage in alone.split())
    yield from (("base", {"model": model}) for model in config.models.names())
    for teacher in ("teacher", *config.teachers):
        yield "teacher", {"teacher": teacher}
        yield "teacher_scores", {"teacher": teacher, "shard": 0, "shards": config.teacher.shards}
    yield from (("pretext", {"method": method, "variant": variant}) for method, variant in config.pretexts())
    trained = [*config.runs(), *(trial.run for trial in config.trials())]
    yield from (("train", run._asdict()) for run in trained)
    yield from (("evaluate", run._asdict()) for run in config.evaluations())
    yield from (("table", {"name": name}) for name in ("ablation", "settings"))
    yield from (("figure", {"name": name}) for name in ("sweep_nli", "architecture"))


def every_job(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """These, and those of stages that no tier's `all` has, or whose settings are another's."""
    yield from jobs(config)
    yield from (("examples", {}), ("search_notebook", {}))
    yield "vectors", {"shard": 0, "shards": config.negatives.shards}
    yield from (("published", {"row": row}) for row in config.published())
    yield from (("evaluate_shard", {**run._asdict(), "shard": 0, "shards": 2}) for run in config.evaluations())
    yield from (("corpus_shard", {"shard": 0, "shards": 2}), ("corpus", {}))
    yield from (("evaluate_dev", trial.run._asdict()) for trial in config.trials())


def plan(config: Config) -> int:
    """Number of jobs of a config, each with its settings and with its record below the results folder.

    Raises what the workflow would end in.
    """
    paths, count = Paths.of(config), 0
    for name in config.models.names():
        model = config.models.of(name)
        if hasattr(model, "source") and model.origin != "hub":
            pretrained.located(model, f"models.{name}.source")
    if config.data.source == "files":
        for path in config.data.files.paths().values():
            Path(path).is_file()
    for count, (stage, arguments) in enumerate(every_job(config), 1):  # noqa: B007 - the last one counts
        settings_line(config, stage, **arguments)
        place = STAGES[stage].record(paths, **arguments).relative_to(paths.root)
        assert ".." not in place.parts, place
        assert not set(str(place)) & set(" '\"$`;&|<>*?\\{}\n\t"), place
    return count


def outcome(below: list[Path], text: str, folder: Path) -> str:
    """`planned`, or the line with which a config is refused.

    Raises AssertionError for a line that does not say where, and whatever else comes up.
    """
    file, config = folder / "mine.yaml", None
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        with at_most(10):
            config = load([*below, file])
            plan(config)
    except ConfigError as error:
        if config is None:
            return checked(str(error), [*below, file], text)
        assert re.fullmatch(r"models\.[^\n]+\.source: [^\n]+", str(error)), str(error)
        return str(error)
    return "planned"


def checked(line: str, files: list[Path], text: str) -> str:
    """What a refusal says behind the file it names; AssertionError where it names no file, key or way out."""
    where, _, rest = line.partition(": ")
    assert line.isprintable() and len(line) < 1500, f"not one line: {line!r}"
    assert where in map(str, files), f"names no file: {line!r}"
    of_file = r"(line \d+: )?not valid YAML|cannot be read|nested too deep|expected keys and values"
    assert re.match(of_file, rest) or rest.startswith(tuple(sections(text))), f"names no key: {line!r}"
    way_out = r"(nearest valid key|valid keys here): \w|it is called \w+ now|a valid key of another kind"
    assert "unknown key" not in rest or re.search(way_out, rest), f"no way out: {line!r}"
    return rest


def sections(text: str) -> list[str]:
    """The first parts of the keys that a config has, or lacks."""
    try:
        values = yaml.load(text, Loader=loader())
    except (yaml.YAMLError, RecursionError):
        return [""]
    return [*Config.model_fields, *(dotted((name,)) for name in values)] if isinstance(values, dict) else [""]

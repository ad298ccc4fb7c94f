"""Files and command-line values become one validated `Config`, and a config YAML again."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from d2llm.config.checks import (
    check_contrasts,
    check_features,
    check_files,
    check_grids,
    check_include,
    check_methods,
    check_models,
    check_seeds,
    check_sweeps,
    check_tasks,
)
from d2llm.config.schema import Config
from d2llm.config.validation import Key, at, check_plain, show, validate
from d2llm.config.values import merged
from d2llm.run.errors import ConfigError


def load(files: Iterable[str | Path], overrides: Mapping[str, Any] | None = None) -> Config:
    """Merge files (later ones win, key by key) and command-line values into a validated Config.

    Raises ConfigError for an unreadable file, an unknown key, a value of the wrong type, a method nobody knows.
    """
    layers = [(str(file), read(Path(file))) for file in files]
    if overrides:
        layers.append(("command line", typed(dict(overrides))))
    values: dict[str, Any] = {}
    for name, layer in layers:
        check_plain(layer, name)
        values = merged(values, layer)

    def origin(key: Key) -> str:
        """The last layer that holds the key, or the longest part of it that any holds."""
        for length in range(len(key), 0, -1):
            for name, layer in reversed(layers):
                if holds(layer, key[:length]):
                    return name
        return layers[-1][0] if layers else "config"

    config = validate(Config, values, origin)
    check_seeds(config, origin)
    check_methods(config, origin)
    check_include(config, origin)
    check_sweeps(config, origin)
    check_contrasts(config, origin)
    check_grids(config, origin)
    check_models(config, origin)
    check_tasks(config, origin)
    check_features(config, origin)
    check_files(config, origin)
    return config


def dump(config: Config) -> str:
    """The config as YAML with every default spelled out; loads to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def holds(values: Any, key: Key) -> bool:
    """Whether nested settings have this key."""
    outer = at(values, key[:-1])
    return isinstance(outer, Mapping) and key[-1] in outer


def typed(value: Any) -> Any:
    """Command-line text as YAML would read it: Snakemake hands on `-C training="{steps: 7}"` with "7" as text."""
    if isinstance(value, Mapping):
        return {name: typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    if isinstance(value, str):
        try:
            parsed = yaml.load(value, Loader=loader())
        except (yaml.YAMLError, RecursionError):
            return value
        # A text stays as it is: of a prompt YAML would take what follows a # for a comment, and fold the lines.
        text = isinstance(parsed, str) and value.lstrip()[:1] not in ("'", '"') or parsed is None and "#" in value
        return value if text else parsed
    return value


def read(file: Path) -> dict[str, Any]:
    """One YAML file of settings, or a ConfigError that names the file and the line."""
    try:
        values = deepcopy(parse_yaml(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{file}: {line}not valid YAML ({error.problem})") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{file}: not valid YAML (character {error.character:#06x} at place {error.position})"
        ) from None
    except RecursionError:
        raise ConfigError(f"{file}: nested too deep") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values; found {show(values)}")
    return values


@lru_cache(maxsize=32)
def parse_yaml(text: str) -> Any:
    """What a text of YAML holds, shared by all who ask: a process may read one file many times."""
    return yaml.load(text, Loader=loader())


@cache
def loader() -> type[yaml.SafeLoader]:
    """YAML's safe loader, three traps of YAML 1.1 closed: 1e-4 is a number, yes and no are text, a key comes once. What
    cannot be read names its line.
    """

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, TypeError, AttributeError) as error:  # a day that is none, a number of 5000 digits
                raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    number = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false|True|False)$"), list("tfTF"))
    return Loader

"""What stages would refuse hours later, asked of all base models and of the data of a config as soon as they can be
seen.

`d2llm doctor` asks, the workflow before its first job (`d2llm check-config --models`), and stage `data` of what it has
made. The conditions themselves are stated elsewhere: of models in `models.base.pretrained`, `pretraining` and
`demands`, of data in `monitor` and `evaluation.tasks`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from d2llm.cli.demands import Problem, check, problems, sample_of, spelling, unlabelled
from d2llm.config.sections import PretrainedSettings
from d2llm.models.base import remote
from d2llm.run.errors import ConfigError, D2LLMError
from d2llm.run.paths import Paths
from d2llm.training import trackers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from d2llm.config.schema import Config


# Of a model that only stage `base` brings.
AWAY = "not looked at, as it is not here yet"


class Outline(NamedTuple):
    """A base model without its weights."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase


def package_problems(config: Config) -> Iterator[Problem]:
    """What would be refused for want of a package."""
    try:
        trackers.check(config.training.trackers)
    except ConfigError as error:
        yield Problem("error", str(error))


# ---------------------------------------------------------------------------------------------------------- base models
def model_problems(config: Config, fetch: bool = False, texts: Sequence[str] = ()) -> Iterator[Problem]:
    """What would be refused of the base models that some job reads and of published models among the reference rows;
    `texts`: some of those that models will be given.

    Without `fetch` a model of the hub is looked at only once stage `base` has brought it.
    """
    yield from row_problems(config)
    for name, outline in outlines(config, fetch):
        if isinstance(outline, Problem):
            yield outline
        else:
            yield from problems(config, name, *outline)
            yield from spelling(outline.tokenizer, texts, f"models.{name}")


def row_problems(config: Config) -> Iterator[Problem]:
    """Published models that cannot be a reference row, as mteb's registry or their folders tell."""
    if not config.published():
        return  # spares others the import of mteb
    from d2llm.evaluation import published

    for model in config.published().values():
        try:
            published.check(model)
        except D2LLMError as error:
            yield Problem("error", str(error))


def sample_texts(config: Config) -> list[str]:
    """Some of the texts that models will be given, as far as the suite makes them or has made them."""
    import numpy as np

    from d2llm.data.world import generate as world

    if config.data.source == "world":
        return world.pretraining(np.random.default_rng(0), 200)["text"].tolist()
    return unlabelled(config)


def outlines(config: Config, fetch: bool = False) -> Iterator[tuple[str, Outline | Problem]]:
    """Every base model that some job reads, by name, or why it cannot be looked at."""
    remote.allow(config.remote_code)
    known: dict[str, Outline | None] = {}
    read: Read = {}
    # What grows from another comes after it.
    for name in sorted(config.bases(), key=lambda name: config.models.of(name).grown_from or ""):
        known[name] = None
        try:
            known[name] = outline(config, name, known, read, fetch)
        except D2LLMError as error:
            yield name, Problem("error", str(error))
        else:
            yield name, known[name] or Problem("warning", f"models.{name}: {AWAY}")


# Checkpoints by folder and file: a large vocabulary takes seconds to read.
Read = dict[tuple[Path, str | None], Outline]


def outline(config: Config, name: str, known: dict[str, Outline | None], read: Read, fetch: bool) -> Outline | None:
    """A base model as its settings have it, None for one that is not here; `known` has those it may grow from.

    Raises ConfigError or ArtifactError for one that cannot be used.
    """
    from d2llm.models.base.vocabulary import build_tokenizer
    from d2llm.training import pretraining

    settings = config.models.of(name)
    if isinstance(settings, PretrainedSettings):
        return checkpoint(config, name, settings, read, fetch)
    if settings.grown_from:
        source = known[settings.grown_from]
        return source and Outline(pretraining.grown_config(source.config, settings, f"models.{name}"), source.tokenizer)
    tokenizer = build_tokenizer(pretraining.vocabulary(config))
    return Outline(pretraining.model_config(name == "encoder", settings, tokenizer), tokenizer)


def checkpoint(config: Config, name: str, settings: PretrainedSettings, read: Read, fetch: bool) -> Outline | None:
    """That of a checkpoint: where it lies, or, of the hub, what stage `base` has made of it or the few small files that
    tell.
    """
    from d2llm.models.base import pretrained
    from d2llm.run.jobs import current

    where, folder = f"models.{name}.source", Paths.of(config).base(name)
    if settings.origin != "hub":
        place = pretrained.located(settings, where)
    elif current(config, "base", model=name):
        place, settings = (folder, None), settings.model_copy(update={"layers": None})  # cut already
    elif fetch:
        place = pretrained.fetched(settings, where, weights=False), None
    else:
        return None
    if place not in read:
        read[place] = Outline(*pretrained.described(*place, settings, where))
    pretrained.check_described(*read[place], settings, name, where)
    shortened = copy.deepcopy(read[place].config)
    if settings.layers is not None:
        pretrained.shorten(shortened, settings.layers)
    return Outline(shortened, read[place].tokenizer)


# ----------------------------------------------------------------------------------------------------- as a stage ends
def accept_base(config: Config, model: str) -> None:
    """Raise ConfigError for a base model, as stage `base` has brought it, that a later stage would refuse."""
    from transformers import AutoConfig, AutoTokenizer

    folder = Paths.of(config).base(model)
    options = {"trust_remote_code": remote.allowed()}
    network = AutoConfig.from_pretrained(folder, **options)
    check(config, model, network, AutoTokenizer.from_pretrained(folder, **options))


def accept_data(config: Config) -> None:
    """Raise DataError for evaluation sets that cannot be measured on, ConfigError for a checkpoint at hand that cannot
    spell the texts.
    """
    import pandas as pd

    paths = Paths.of(config)
    check_data(config, paths.tasks)
    check_texts(config, sample_of(pd.read_parquet(paths.pool, columns=["text"])["text"]))


# ----------------------------------------------------------------------------------------------------------------- data
def check_data(config: Config, tasks: Path) -> None:
    """Raise DataError for evaluation sets (folders in `tasks`) that cannot be measured on."""
    from d2llm.evaluation.tasks import has, names, read
    from d2llm.training.monitor import sample

    for name in names(tasks, config.evaluation.tasks):
        read(tasks / name, config.evaluation.split)
    for name in names(tasks):
        if has(tasks / name, "dev") and (config.training.dev_every or config.tuning.grids):
            read(tasks / name, "dev")
            if config.training.dev_every:
                sample(tasks / name, config.training.dev_sample)


def check_texts(config: Config, texts: Sequence[str]) -> None:
    """Raise ConfigError for a checkpoint at hand whose tokenizer cannot spell these texts."""
    if any(isinstance(config.models.of(name), PretrainedSettings) for name in config.bases()):
        for name, outline in outlines(config):
            if isinstance(outline, Outline):
                raise_first(spelling(outline.tokenizer, texts, f"models.{name}"))


def raise_first(problems: Iterator[Problem]) -> None:
    """Raise ConfigError for the first error."""
    for problem in problems:
        if problem.level == "error":
            raise ConfigError(problem.text)

"""What a config has the hub send: asked of the hub before anything is fetched.

`d2llm doctor` asks. What a model or a data set needs is said where it is fetched (`models.base.pretrained`,
`evaluation.published`, `data.hub.download`), which ask the same before each download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from d2llm.config.sections import PretrainedSettings
from d2llm.run.errors import D2LLMError

if TYPE_CHECKING:
    from d2llm.config.schema import Config


class Answer(NamedTuple):
    """What the hub says of all that is still to be fetched: what is wrong, a line each, and bytes to come."""

    problems: list[str]
    models: int
    data: int


def ask(config: Config) -> Answer:
    """Ask for every file of models and data sets that no job has brought yet. Nothing but indices of weights in parts
    and cards of data sets is fetched.
    """
    problems: list[str] = []
    bytes_of = {"base": 0, "download": 0}
    for stage, to_come in outstanding(config):
        try:
            bytes_of[stage] += to_come()
        except D2LLMError as error:
            problems.append(str(error))
    return Answer(list(dict.fromkeys(problems)), bytes_of["base"], bytes_of["download"])


def outstanding(config: Config) -> Iterator[tuple[str, Callable[[], int]]]:
    """(stage, what counts its bytes) of every model and data set of the hub that is not here yet."""
    from d2llm.data.hub import download
    from d2llm.evaluation import published
    from d2llm.models.base import pretrained
    from d2llm.run.jobs import current

    for name in config.bases():
        settings = config.models.of(name)
        if (
            isinstance(settings, PretrainedSettings)
            and settings.origin == "hub"
            and not current(config, "base", model=name)
        ):
            yield "base", partial(pretrained.to_come, settings, f"models.{name}.source")
    for name, row in config.published().items():
        if row.checkpoint().origin == "hub" and not current(config, "published", row=name):
            yield "base", partial(published.to_come, row)
    for name, wanted in config.data.files.downloads().items() if config.data.source == "files" else ():
        if not current(config, "download", download=name):
            yield "download", partial(download.to_come, wanted, download.key_of(config, wanted))

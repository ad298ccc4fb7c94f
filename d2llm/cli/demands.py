"""What a config's teachers and methods ask of a base model, asked of its configuration and its tokenizer alone; no
weights are read.

Each condition is stated where it belongs (`teacher`, the methods, the parts of a student) and only called here: a
student is built as its training builds it, on torch's device without memory. Stage `base` calls `check` with the model
at hand, `preflight` asks of all models of a config.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from d2llm.config.validation import dotted
from d2llm.methods.registry import method as find
from d2llm.models.base import remote
from d2llm.models.meta import without_weights
from d2llm.models.tokens import encodings
from d2llm.run.errors import ConfigError, D2LLMError, first_line
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from d2llm.config.schema import Config


# Of texts that tokenizers are tried on.
SAMPLE = 500


class Problem(NamedTuple):
    """What would be refused later ("error"), or could not be tried without weights ("warning")."""

    level: str
    text: str


def check(config: Config, name: str, model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError for the first thing that a later stage would refuse of a base model. What is uncertain is
    logged.
    """
    texts = unlabelled(config)
    for problem in [*problems(config, name, model, tokenizer), *spelling(tokenizer, texts, f"models.{name}")]:
        if problem.level == "error":
            raise ConfigError(problem.text)
        get_logger(__name__).warning(problem.text)


def unlabelled(config: Config) -> list[str]:
    """Some of the texts that models will be given; none as long as stage `texts` has not made any by these settings."""
    import pandas as pd

    from d2llm.run.jobs import current

    return sample_of(pd.read_parquet(Paths.of(config).pretraining)["text"]) if current(config, "texts") else []


def sample_of(texts: pd.Series) -> list[str]:
    """A sample, the same each time."""
    return texts.sample(min(SAMPLE, len(texts)), random_state=0).tolist()


def spelling(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: str) -> Iterator[Problem]:
    """Whether a tokenizer knows the language of some texts, or loses most of them."""
    if not texts:
        return
    known = known_share(tokenizer, texts)
    coverage = f"{where}: its tokenizer knows {known:.0%} of the letters and digits of the texts"
    if known < 0.5:
        yield Problem("error", f"{coverage}; choose a model of their language, or get its own tokenizer's files")
    elif known < 0.95:
        yield Problem("warning", f"{coverage}; the rest is lost on it")


def known_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Share of the letters and digits of texts that known tokens stand for; by a slow tokenizer, which tells no places,
    of the tokens that are known.
    """
    unknown = tokenizer.unk_token_id
    if not tokenizer.is_fast:
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        return sum(token != unknown for token in ids) / max(1, len(ids))
    letters = covered = 0
    for text, encoding in zip(texts, encodings(tokenizer, texts), strict=True):
        places = {
            place
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token != unknown
            for place in range(start, end)
        }
        own = {place for place, letter in enumerate(text) if letter.isalnum()}
        letters, covered = letters + len(own), covered + len(own & places)
    return covered / max(1, letters)


def problems(
    config: Config, name: str, model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Problem]:
    """All of them, each once; none for a model that no job reads."""
    if name not in config.bases():
        return
    if name == "teacher":
        yield from teacher_problems(config, model, tokenizer)
    runs = [*config.runs(), *(trial.run for trial in config.trials())]
    seen: set[str] = set()
    tokenizers: dict[str, Any] = {}  # a copy for each method, which may add tokens
    for method, variant in dict.fromkeys((run.method, run.variant) for run in runs):
        if find(method).base(config.recipe(method, variant)) != name:
            continue
        raised: list[Problem] = []
        with collect_problems(raised):
            if method not in tokenizers:
                tokenizers[method] = copy.deepcopy(tokenizer)
            try_student(config, name, model, tokenizers[method], method, variant)
        for problem in raised:
            if problem.text not in seen:
                seen.add(problem.text)
                # A variant is named where the method itself has no such problem.
                yield problem._replace(text=f"{dotted(config.place(method, variant))}: {problem.text}")


def teacher_problems(config: Config, model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """What teachers would refuse: prompts, answers, lengths, adapters, quantisation."""
    import transformers

    from d2llm.models.base.classifier import classifies
    from d2llm.models.lora import add_lora
    from d2llm.teacher.cross_encoder import check_positions, prompt_ids, quantized

    seen: set[str] = set()
    classifier = classifies(model.architectures)
    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    for teacher in ("teacher", *config.teachers):
        settings = config.teacher_of(teacher)
        if settings.scores is not None:
            continue
        raised: list[Problem] = []
        with collect_problems(raised):
            if not classifier:  # which is not asked
                prompt_ids(tokenizer, settings)
            if settings.quantization != "none":
                quantized(settings.quantization)
        with collect_problems(raised), without_weights():
            network = auto.from_config(copy.deepcopy(model), trust_remote_code=remote.allowed())
            check_positions(network, settings)
            if settings.steps and settings.tuning.kind == "lora":
                add_lora(network, settings.tuning)
        for problem in raised:
            if problem.text not in seen:
                seen.add(problem.text)
                yield problem._replace(
                    text=f"{teacher if teacher == 'teacher' else f'teachers.{teacher}'}: {problem.text}"
                )


def try_student(config: Config, name: str, model: PretrainedConfig, tokenizer: Any, method: str, variant: str) -> None:
    """Build the student that a run starts with. Raises what the stages of the run would."""
    from transformers import AutoModel

    from d2llm.models.backbone import Backbone, body_options

    chosen, recipe = find(method), config.recipe(method, variant)
    with without_weights():
        body = AutoModel.from_config(copy.deepcopy(model), trust_remote_code=remote.allowed(), **body_options(model))
        student = chosen.build(Backbone(body, tokenizer, chosen.kind, f"models.{name}"), recipe)
        student.limit_length(config.training.max_length)
        chosen.check(student, recipe, ordered=config.data.source == "world")


@contextmanager
def collect_problems(problems: list[Problem]) -> Iterator[None]:
    """Keep what is raised. What is none of this project's errors may be for want of weights alone."""
    try:
        yield
    except D2LLMError as error:
        problems.append(Problem("error", str(error)))
    except Exception as error:  # noqa: BLE001 - of any method's code
        problems.append(Problem("warning", f"not tried without weights ({type(error).__name__}: {first_line(error)})"))

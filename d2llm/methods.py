"""What a method is, and the registry that finds one by name. Importable without torch.

A method is one file: `d2llm/d2llm_method.py` for D2LLM itself, `baselines/<name>.py` for every other, with a module attribute
`METHOD`. It chooses special tokens, text formats, pooling, scorer, trained parameters and objective; the loop, the
sampler, the optimiser and the evaluation are the same for all.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, PlainValidator, model_validator

from d2llm.errors import ConfigError
from d2llm.resume import Resume
from d2llm.section import Names, Pair, Section
from d2llm.validation import validate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student
    from d2llm.resume import Loop
    from d2llm.text_ids import TextIds

Mode = Literal["symmetric", "asymmetric"]
Role = Literal["query", "passage"]
Schedule = Literal["constant", "linear", "cosine"]


def _warmup(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0.0 <= value < 1.0):
        raise ValueError("a whole number of steps, or a fraction of all steps below 1")
    return value


# An integer counts steps, a fraction below one is a share of all steps. One validator, for one readable error.
Warmup = Annotated[int | float, PlainValidator(_warmup)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]


# ---------------------------------------------------------------------------------------------------------- recipes
class Tuning(Section):
    """Which of the backbone's parameters train. Pooling and scorer always train in full."""

    # All weights, adapters of low rank, or biases alone.
    kind: Literal["full", "lora", "bitfit"] = "full"
    # LoRA only:
    r: Annotated[int, Field(ge=1)] = 8
    # Its scale: alpha divided by r.
    alpha: Positive = 8.0
    # On what goes into the adapters.
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # "auto": every linear projection of attention and feed-forward; otherwise the last parts of module names.
    targets: Literal["auto"] | Names = "auto"
    # Layers below it, counted from 0, stay as they are.
    first_layer: Annotated[int, Field(ge=0)] = 0


class MaxLengths(Section):
    """Longest inputs in tokens, prefix and suffix included. The text is cut, never the prefix or suffix."""

    # Of a query of retrieval.
    query: Annotated[int, Field(ge=1)] = 512
    # Of a passage.
    passage: Annotated[int, Field(ge=1)] = 512
    # Of either text of a symmetric pair.
    symmetric: Annotated[int, Field(ge=1)] = 512

    def of(self, role: Role, mode: Mode) -> int:
        """The limit of a text by its role and mode."""
        return self.symmetric if mode == "symmetric" else getattr(self, role)


class Stage(Section):
    """A pretext stage: its own optimiser run before fine-tuning. Zero steps skip it."""

    # Updates; null: from `epochs`.
    steps: Count | None = None
    # Passes over the unlabelled text, where steps is null.
    epochs: Weight = 1.0
    # Texts an update.
    batch_size: Annotated[int, Field(ge=1)] = 32
    # Its highest rate.
    learning_rate: Positive = 1e-4
    # Of matrices, not of biases and norms.
    weight_decay: Weight = 0.01
    # Whole steps, or a fraction of all steps.
    warmup: Warmup = 0.1
    # Of the rate after warm-up.
    schedule: Schedule = "linear"
    # Tokens of a text.
    max_length: Annotated[int, Field(ge=4)] = 512

    @property
    def trains(self) -> bool:
        """Whether there is any update, however many texts there are."""
        return bool(self.epochs if self.steps is None else self.steps)

    def updates(self, texts: int) -> int:
        """Number of updates over this many texts."""
        if self.steps is not None:
            return self.steps
        return -(-round(self.epochs * texts) // self.batch_size)


class Recipe(Section):
    """Settings every method has. Subclasses set the published values as defaults and add their own keys.

    The number of updates, the batch and the sampler are not here: they are shared by all methods (section `training`).
    """

    # The highest rate of what trains in the base model.
    learning_rate: Positive = 1e-4
    # Pooling and scorer; null: the same rate.
    head_learning_rate: Positive | None = None
    # Of matrices, not of biases and norms.
    weight_decay: Weight = 0.01
    # Adam's.
    betas: Pair = (0.9, 0.999)
    # Adam's.
    epsilon: Positive = 1e-8
    # Largest norm of the gradient; null: not clipped.
    clip: Positive | None = 1.0
    # Whole steps, or a fraction of all steps.
    warmup: Warmup = 0.1
    # Of the rate after warm-up.
    schedule: Schedule = "linear"
    # Scores are divided by it in the contrastive loss.
    temperature: Positive = 0.05
    # Which of the base model's weights train.
    tuning: Tuning = Tuning()
    # Longest inputs.
    max_lengths: MaxLengths = MaxLengths()
    # The base model it starts from, by its name in section `models`; null: the one of the method's kind.
    base: str | None = None
    # Hard negatives used per query; null: all that the batch holds.
    hard_negatives: Count | None = None
    # Forget activations and compute them again: less memory, more time.
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _keep_published(cls, values: Any) -> Any:
        """Lay a sub-section over the published one: `tuning: {r: 16}` changes the rank, not the kind."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        for name, value in values.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, Section) and isinstance(value, Mapping):
                values[name] = default.model_dump(mode="json") | dict(value)
        return values


# ------------------------------------------------------------------------------------------------------------ batch
@dataclass(frozen=True)
class TeacherTargets:
    """What the teacher said about a batch; logits are (yes, no), index 0 is yes.

    positive_logits (B, 2); negative_logits (B, K, 2); easy_logits (B, E, 2) of easy negatives, which are the positives
    at the batch positions easy_index (B, E); features (B, K+1, K+1), cosine matrix of the pair features over the
    positive (index 0) and the K negatives.
    """

    positive_logits: Tensor
    negative_logits: Tensor
    easy_logits: Tensor
    easy_index: Tensor
    features: Tensor

    def to(self, device: torch.device) -> TeacherTargets:
        """The same on another device."""
        return TeacherTargets(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


@dataclass(frozen=True)
class Batch:
    """One step's texts, of one dataset and mode: B queries, their positives and K hard negatives each.

    Rows with fewer than K negatives are filled up with any text and marked False in `negative_mask` (B, K), a boolean
    tensor, or None when every row is full. `text_ids` numbers the passages and tells which are right for which query, with all that the
    training set marks; without them (a batch made by hand) only the batch's own rows tell (`contrast.text_ids`).
    """

    dataset: str
    mode: Mode
    queries: list[str]
    positives: list[str]
    negatives: list[list[str]]
    teacher: TeacherTargets | None = None
    negative_mask: Tensor | None = None
    text_ids: TextIds | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def negative_count(self) -> int:
        """K, hard negatives of each query."""
        return len(self.negatives[0]) if self.negatives else 0

    def narrowed(self, count: int | None) -> Batch:
        """The batch with the first `count` hard negatives of each query (`Recipe.hard_negatives`); all of them for None."""
        if count is None or count >= self.negative_count:
            return self
        teacher, mask = self.teacher, self.negative_mask
        if teacher is not None:
            teacher = replace(
                teacher,
                negative_logits=teacher.negative_logits[:, :count],
                features=teacher.features[:, : 1 + count, : 1 + count],
            )
        return replace(
            self,
            negatives=[row[:count] for row in self.negatives],
            teacher=teacher,
            negative_mask=None if mask is None else mask[:, :count],
            text_ids=None if self.text_ids is None else self.text_ids.narrowed(count),
        )


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a batch, in its order: q (B, d), p (B, d) of the positives, n (B, K, d) of the hard negatives."""

    q: Tensor
    p: Tensor
    n: Tensor


@dataclass(frozen=True)
class PretextContext:
    """What a pretext stage may use besides texts.

    `next_texts[i]` follows the i-th text in its document ("" where nothing does; None where the source knows no order).
    `log(record)` appends one record to the run's log; `loop` is `d2llm.resume.Resume.loop` of the job, for that log.
    """

    seed: int = 0
    next_texts: list[str] | None = None
    device: torch.device | str = "cpu"
    accelerator: Any = None
    log: Callable[[dict[str, Any]], None] = field(default=lambda record: None)
    loop: Callable[..., Loop] = field(default=partial(Resume().loop, log_file=None))

    def autocast(self) -> AbstractContextManager:
        """The precision that the config's trainings compute in: around forward passes, not around what needs all digits."""
        return nullcontext() if self.accelerator is None else self.accelerator.autocast()


# ----------------------------------------------------------------------------------------------------------- method
R = TypeVar("R", bound=Recipe)


class Method(Generic[R]):
    """Base class of all methods, each with a recipe of its own type; stateless, so one instance serves every run."""

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    # Which base checkpoint it starts from.
    kind: ClassVar[Literal["decoder", "encoder"]]
    uses_teacher: ClassVar[bool] = False
    # Keys of the recipe that decide its pre-training stage; none: it has no such stage.
    pretext_keys: ClassVar[tuple[str, ...]] = ()
    # Of the class, like the others; ClassVar may not name a type variable.
    Recipe: type[R] = Recipe  # type: ignore[assignment]  # what a method has without a recipe of its own

    def recipe(self, settings: Mapping[str, Any] | None = None) -> R:
        """The published recipe with `settings` laid over it, sub-sections key by key. Raises ConfigError."""
        return validate(self.Recipe, dict(settings or {}), lambda key: "config", ("methods", self.name))

    def base(self, recipe: R) -> str:
        """Name of the base model it starts from."""
        return recipe.base or self.kind

    def pretext_recipe(self, recipe: R) -> dict[str, Any] | None:
        """What decides the outcome of its pre-training stage; None for a method without one."""
        return recipe.model_dump(mode="json", include={*self.pretext_keys, "base"}) if self.pretext_keys else None

    def phrases(self, recipe: R) -> tuple[str, ...]:
        """Strings fed besides the texts: a vocabulary made in the pipeline has to hold all their words."""
        return ()

    def build(self, backbone: Backbone, recipe: R) -> Student:
        """The student: special tokens added, pooling, scorer and formats chosen, trained parameters marked."""
        raise NotImplementedError

    def check(self, student: Student, recipe: R, ordered: bool) -> None:
        """Refuse what its pre-training stage would refuse of the student as built; asked before anything is trained, when the student has no weights.

        `ordered`: whether the source knows what follows a text.
        """

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: R) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, by name; the loop sums and logs them."""
        raise NotImplementedError

    def pretext(self, student: Student, texts: list[str], recipe: R, context: PretextContext) -> None:
        """Pre-training of the method's own on unlabelled texts, before fine-tuning; none by default.

        Runs alike on every process of a distributed run: texts and seeds are the same, so are the results.
        """

    def parameter_groups(self, student: Student, recipe: R) -> list[dict[str, Any]]:
        """Optimiser groups: the encoder at `learning_rate`, pooling and scorer at `head_learning_rate`."""
        from d2llm.optimization import groups

        rate, decay = recipe.learning_rate, recipe.weight_decay
        added = student.backbone.added_rows()
        body = [(name, p) for name, p in student.backbone.named_parameters() if p is not added]
        made = groups(body, rate, decay) + groups(student.head_parameters(), recipe.head_learning_rate or rate, decay)
        if added is not None:  # decay would draw them, and them alone, away from where the other rows lie
            made.append({"params": [added], "lr": rate, "weight_decay": 0.0})
        return made


def names() -> list[str]:
    """Every method there is: d2llm first, then one for each file in `baselines/`."""
    import baselines

    found = sorted(module.name for module in pkgutil.iter_modules(baselines.__path__))
    return ["d2llm", *(name for name in found if not name.startswith("_"))]


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError with the nearest known name."""
    if name == "d2llm":
        module = importlib.import_module("d2llm.d2llm_method")
    elif re.fullmatch(r"[a-z][a-z0-9_]*", name) and name in names():
        module = importlib.import_module(f"baselines.{name}")
    else:
        known = names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown method {name!r}{hint} Known: {', '.join(known)}")
    found = getattr(module, "METHOD", None)
    if not isinstance(found, Method):
        raise ConfigError(f"{module.__name__} has no METHOD, an instance of d2llm.methods.Method")
    if found.name != name:
        raise ConfigError(f"{module.__name__}.METHOD is named {found.name!r}; it must carry its file's name {name!r}")
    return found

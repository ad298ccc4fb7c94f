"""What a method does: its student, its objective, its pre-training. Importable without torch.

A method is `baselines/<name>.py`, or a package of `d2llm/methods/`, with a module attribute `METHOD`. It chooses
special tokens, text formats, pooling, scorer, trained parameters and objective; the loop, the sampler, the optimiser
and the evaluation are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from d2llm.config.registry import Declaration, R
from d2llm.run.checkpoint import Resume

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.batch import Batch, Embedded
    from d2llm.models.student import Student
    from d2llm.run.checkpoint import Loop


@dataclass(frozen=True)
class TrainingContext:
    """What a training loop is given: device, precision, log and checkpoints; of a pretext stage also its seed and what
    follows a text.

    `next_texts[i]` follows the i-th text in its document ("" where nothing does; None where the source knows no order).
    `log(record)` appends a record to the log, of every `log_every`-th update and of the last; `loop` is
    `d2llm.run.checkpoint.Resume.loop` of the job, for that log.
    """

    seed: int = 0
    next_texts: list[str] | None = None
    device: torch.device | str = "cpu"
    accelerator: Any = None
    log: Callable[[dict[str, Any]], None] = field(default=lambda record: None)
    log_every: int = 50
    loop: Callable[..., Loop] = field(default=partial(Resume().loop, log_file=None))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision that the config's trainings compute in: around forward passes, not around what needs all
        digits.
        """
        if self.accelerator is None:
            yield
        else:
            from d2llm.models.precision import even_rows

            with even_rows(self.accelerator.mixed_precision == "bf16"), self.accelerator.autocast():
                yield


class Method(Declaration[R]):
    """Base class of all methods; stateless, so one instance serves every run."""

    def build(self, backbone: Backbone, recipe: R) -> Student:
        """The student as its training begins: the method's own, with what every recipe asks for."""
        student = self.make_student(backbone, recipe)
        if recipe.gradient_checkpointing:
            backbone.checkpoint_gradients()
        return student

    def make_student(self, backbone: Backbone, recipe: R) -> Student:
        """The student: special tokens added, pooling, scorer and formats chosen, trained parameters marked."""
        raise NotImplementedError

    def check(self, student: Student, recipe: R, ordered: bool) -> None:
        """Refuse what its pre-training stage would refuse of the student as built; asked before anything is trained,
        when the student has no weights.

        `ordered`: whether the source knows what follows a text.
        """

    def has_pretext(self) -> bool:
        """Whether it has a pre-training stage of its own."""
        return type(self).pretext is not Method.pretext

    def objective(self, student: Student, embedded: Embedded, batch: Batch, recipe: R) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, by name; the loop sums and logs them."""
        raise NotImplementedError

    def pretext(self, student: Student, texts: list[str], recipe: R, context: TrainingContext) -> None:
        """Pre-training of the method's own on unlabelled texts, before fine-tuning; none by default.

        Runs alike on every process of a distributed run: texts and seeds are the same, so are the results.
        """

    def parameter_groups(self, student: Student, recipe: R) -> list[dict[str, Any]]:
        """Optimiser groups: the encoder at `learning_rate`, pooling and scorer at `head_learning_rate`."""
        from d2llm.methods.parameters import decay_groups

        rate, decay = recipe.learning_rate, recipe.weight_decay
        added = student.backbone.added_rows()
        body = [(name, p) for name, p in student.backbone.named_parameters() if p is not added]
        groups = decay_groups(body, rate, decay) + decay_groups(
            student.head_parameters(), recipe.head_learning_rate or rate, decay
        )
        if added is not None:  # decay would draw them, and them alone, away from where the other rows lie
            groups.append({"params": [added], "lr": rate, "weight_decay": 0.0})
        return groups

"""The teacher as a classifier of pairs: a re-ranker of one logit, as bge-reranker is, or of two (no, yes).

It reads the pair as its tokenizer joins two texts and has no prompt. One logit s counts as yes s, no 0, so that yes
minus no is s and the probability of yes its sigmoid, as such re-rankers are trained. The pair feature is the pooled
state that its last layer turns into logits. Scoring in batches, and tuning, are those of every teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from d2llm.models.tokens import pad_id, rows_of
from d2llm.run.errors import ConfigError
from d2llm.teacher.cross_encoder import Group, Planned, Row, Teacher, check_positions, padded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from d2llm.config.sections import TeacherSettings


class Classifier(Teacher):
    """A model of transformers for the classification of sequences, used as a cross-encoder of both modes alike."""

    auto = "AutoModelForSequenceClassification"
    packs = shares = False  # of decoders a matter of trying; here a row is a pair

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TeacherSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        check_positions(model, settings)
        self.head = head_of(model)
        self.rows = rows_of(model)
        self.pad_id = pad_id(tokenizer, self.rows)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.pad_id  # by which a decoder finds its last token
        self._cache = {}

    def plan(self, groups: Sequence[Group], mode: str, size: int | None = None) -> Iterator[Planned]:
        """A row a pair."""
        self.tokens(text for a, candidates in groups for text in (a, *candidates))
        around = self.tokenizer.num_special_tokens_to_add(pair=True)
        for number, (a, candidates) in enumerate(groups):
            for member, text in enumerate(candidates):
                whole = len(self._cache[a]) + len(self._cache[text]) + around
                yield Planned(number, [member], len(self._cache[a]), min(whole, self.settings.max_length))

    def lay_out(self, planned: Sequence[Planned], groups: Sequence[Group], mode: str) -> list[Row]:
        """Pairs cut to `teacher.max_length` at the longer text; `segments` are the tokenizer's token types."""
        if not planned:
            return []
        encoded = self.tokenizer(
            [groups[row.group][0] for row in planned],
            [groups[row.group][1][row.members[0]] for row in planned],
            truncation="longest_first",
            max_length=self.settings.max_length,
        )
        ids = encoded["input_ids"]
        types = encoded.get("token_type_ids") or [[0] * len(row) for row in ids]
        # No words are told apart within a pair: spans are empty.
        return [
            Row(own, list(range(len(own))), kinds, [0], [(0, 0)], row.group, row.members)
            for own, kinds, row in zip(ids, types, planned, strict=True)
        ]

    def instruction(self, mode: str) -> list[tuple[Tensor, Tensor]]:
        """Nothing: pairs begin with their first text."""
        return []

    def forward(
        self,
        rows: Sequence[Row],
        mode: str,
        begun: Sequence[tuple[Tensor, Tensor]] = (),
        only_answers: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (m, 2) yes/no, float32, of m pairs, their pooled states (m, d), and these as (m, 1, d)."""
        batch: dict[str, Any] = padded(rows, self.pad_id)
        if "token_type_ids" in self.tokenizer.model_input_names:
            types = torch.zeros_like(batch["input_ids"])
            types[batch["attention_mask"].bool()] = torch.tensor([kind for row in rows for kind in row.segments])
            batch["token_type_ids"] = types
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        with inputs_of(self.head) as kept:
            logits = self.model(**batch).logits.float()
        states = kept[-1]
        if states.ndim == 3:  # of every token: a decoder's answer stands at the last
            places = torch.arange(states.shape[1], device=states.device)
            last = ((batch["input_ids"] != self.model.config.pad_token_id) * places).argmax(1)
            states = states[torch.arange(len(states), device=states.device), last]
        two = torch.cat([logits, torch.zeros_like(logits)], 1) if logits.shape[1] == 1 else logits.flip(1)
        return two, states, states[:, None]


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The layer that gives the logits. Raises ConfigError for an architecture without one."""
    outside = (module for name, module in model.named_modules() if not any(p.isdigit() for p in name.split(".")))
    linear = [one for one in outside if isinstance(one, nn.Linear) and one.out_features == model.config.num_labels]
    if not linear:
        raise ConfigError(f"models.teacher: the layer that gives the logits of {type(model).__name__} was not found")
    return linear[-1]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module is given while this holds, a tensor a call."""
    kept: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        yield kept
    finally:
        hook.remove()

"""The teacher: a decoder that reads a prompt with both texts and answers yes or no (paper, section on the teacher model).

Scores many candidates of one query in one row: the candidates share the prompt's beginning and do not see each other, which gives the
logits of separate prompts with the shared part computed once; what all rows begin with, the instruction, is computed once a call.
Only the answer positions reach the two rows of the LM head that matter.
Tuning is in `teacher_tuning.py`, the stage that stores scores in `teacher_scores.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from d2llm.artifacts import MEND
from d2llm.errors import ArtifactError, ConfigError, TrainingError
from d2llm.models import remote
from d2llm.models.device import default_device
from d2llm.models.last_layer import only_at
from d2llm.models.positions import position_table
from d2llm.models.tokens import token_ids
from d2llm.prompts import Prompt, prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from d2llm.config import TeacherSettings

Group = tuple[str, Sequence[str]]  # a query and its candidates
# Fewer tokens of instruction than this are computed with every row: handing them on costs as much.
SHORTEST = 8


@dataclass(frozen=True)
class Row:
    """One packed row: token ids, positions, the segment of each token (0 shared, 1… candidates) and where each answer is read.

    `text_spans[j]` is the (start, end) of candidate j's own tokens in `ids`.
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[int]
    text_spans: list[tuple[int, int]]


class PromptIds:
    """A mode's prompt as token ids, with its two answer ids checked.

    Raises ConfigError for a prompt or an answer that the tokenizer cannot spell, and for one that leaves no room for texts.
    """

    def __init__(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        encode = _encoder(tokenizer)
        self.prefix = encode(prompt.instruction + prompt.query)
        self.middle = encode(prompt.passage)
        self.cue = encode(prompt.cue)
        self.yes, self.no = answer_ids(tokenizer, prompt)
        check_spelled(tokenizer, prompt.instruction + prompt.query, self.prefix)
        check_spelled(tokenizer, prompt.passage, self.middle)
        check_spelled(tokenizer, prompt.cue, self.cue)
        self.room = max_length - len(self.prefix) - len(self.middle) - len(self.cue)
        if self.room < 2:
            fixed = max_length - self.room
            raise ConfigError(
                f"teacher.max_length is {max_length}, but the prompt alone takes {fixed} tokens; raise it to at least {fixed + 32}"
            )

    def cut(self, a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
        """Shorten the longer text first until both fit; prefix and cue stay whole."""
        over = len(a) + len(b) - self.room
        if over <= 0:
            return a, b
        shorter = min(len(a), len(b), self.room // 2)
        if len(a) <= len(b):
            return a[:shorter], b[: self.room - shorter]
        return a[: self.room - shorter], b[:shorter]

    def row(self, a: list[int], candidates: Sequence[list[int]]) -> Row:
        """Pack a query with its candidates. The query is cut as much as its longest candidate needs."""
        longest = max(candidates, key=len)
        a, _ = self.cut(a, longest)
        ids = [*self.prefix, *a]
        positions = list(range(len(ids)))
        segments = [0] * len(ids)
        start, answers, spans = len(ids), [], []
        for number, b in enumerate(candidates, 1):
            b = b[: self.room - len(a)]
            part = [*self.middle, *b, *self.cue]
            spans.append((len(ids) + len(self.middle), len(ids) + len(self.middle) + len(b)))
            ids += part
            positions += range(start, start + len(part))
            segments += [number] * len(part)
            answers.append(len(ids) - 1)
        return Row(ids, positions, segments, answers, spans)


def check_spelled(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> None:
    """Raise ConfigError for a part of the prompt of which something is lost."""
    lost = (
        tokenizer.unk_token_id in ids and tokenizer.unk_token != tokenizer.eos_token
    )  # one and the same in GPT-2's kin
    if text.strip() and (not ids or lost):
        raise ConfigError(f"the teacher's tokenizer cannot spell all of its prompt {text[:40]!r}; choose other words")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, settings: TeacherSettings) -> dict[str, PromptIds]:
    """The prompt of each mode."""
    return {mode: PromptIds(prompt, tokenizer, settings.max_length) for mode, prompt in prompts(settings).items()}


def check_positions(model: PreTrainedModel, settings: TeacherSettings) -> None:
    """Raise ConfigError for a model that is not told positions, or has a table of them that prompts are longer than."""
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ConfigError(
            f"{type(model).__name__} takes no positions, by which the teacher's candidates share a prompt; choose another decoder"
        )
    table = position_table(model)
    if table is not None and settings.max_length > table:
        raise ConfigError(f"teacher.max_length is {settings.max_length}, and the model has {table} positions; lower it")


def _encoder(tokenizer: PreTrainedTokenizerBase):  # noqa: ANN202
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, int]:
    """First token ids of the two answers. Raises ConfigError when one is empty or unknown, or when they start alike."""
    found = []
    for word in (prompt.yes, prompt.no):
        ids = _encoder(tokenizer)(word)
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(
                f"answer {word!r} has no token in the teacher's tokenizer; set teacher.*.yes and .no to words it knows"
            )
        found.append(ids[0])
    if found[0] == found[1]:
        token = tokenizer.convert_ids_to_tokens(found[0])
        raise ConfigError(
            f"answers {prompt.yes!r} and {prompt.no!r} start with the same token {token!r} in the teacher's tokenizer; "
            "choose answers that differ in their first token (teacher.*.yes, .no)"
        )
    return found[0], found[1]


def collate(rows: Sequence[Row], pad_id: int, known: int = 0) -> dict[str, Tensor]:
    """Ids and positions (n, t) and a boolean mask (n, 1, t, t): causal, and candidates see only the shared part and themselves.

    The first `known` tokens of all rows are left out of all but the mask's last axis: their keys and values are there.
    """
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad_id)
    positions = np.zeros((len(rows), longest), dtype=np.int64)
    segments = np.full((len(rows), longest), -1)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        positions[i, : len(row.ids)] = row.positions
        segments[i, : len(row.ids)] = row.segments
    seg = torch.from_numpy(segments)
    visible = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
    mask = visible & torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": torch.from_numpy(ids[:, known:]),
        "position_ids": torch.from_numpy(positions[:, known:]),
        "attention_mask": mask[:, None, known:],
    }


class Teacher:
    """A causal language model used as a prompted yes/no cross-encoder."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TeacherSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        check_positions(model, settings)
        self.prompts = prompt_ids(tokenizer, settings)
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: str | Path, settings: TeacherSettings, dtype: str | torch.dtype = "auto") -> Teacher:
        """Load a saved teacher, in the type its weights are kept in or another, or quantised.

        Raises ArtifactError when the folder is missing or damaged, ConfigError where quantisation lacks its package.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": remote.allowed()}
        if settings.quantization != "none":
            options["quantization_config"] = quantized(settings.quantization)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote.allowed())
        except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
            raise ArtifactError(f"{folder}: cannot load the teacher ({str(error).splitlines()[0]}); {MEND}") from error
        model = model.eval() if settings.quantization != "none" else model.eval().to(default_device())
        return cls(model, tokenizer, settings)

    def tokens(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids without special tokens; each distinct text is tokenised once."""
        texts = list(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._cache))
        if new:
            self._cache.update(zip(new, token_ids(self.tokenizer, new), strict=True))
        return [self._cache[text] for text in texts]

    def pack(self, groups: Sequence[Group], mode: str) -> list[Row]:
        """One row a group; every group needs at least one candidate."""
        prompt = self.prompts[mode]
        # All at once: far faster than one by one.
        self.tokens(text for a, candidates in groups for text in (a, *candidates))
        return [prompt.row(self.tokens([a])[0], self.tokens(candidates)) for a, candidates in groups]

    @torch.no_grad()
    def instruction(self, mode: str) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, heads, k, d) of every layer for the k tokens each row of a mode begins with; empty for an architecture of its own."""
        from transformers import DynamicCache

        prefix = self.prompts[mode].prefix
        if len(prefix) < SHORTEST or not type(self.model).__module__.startswith("transformers."):
            return []  # code from a hub may cache in any way
        ids = torch.tensor([prefix], device=self.model.device)
        # A plain cache: an architecture's own may keep the last tokens only.
        cache = self.model.base_model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def forward(
        self,
        rows: Sequence[Row],
        mode: str,
        begun: Sequence[tuple[Tensor, Tensor]] = (),
        only_answers: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of a batch of rows: logits (m, 2) yes/no and answer states (m, d) of all candidates in order, and all states (n, t, d).

        With `begun`, what `instruction` gave for these very weights, the states lack the instruction's k tokens. With `only_answers`, states of other
        tokens are not to be read (`last_layer`).
        """
        device = self.model.device
        known = begun[0][0].shape[2] if begun else 0
        batch: dict[str, Any] = {
            key: value.to(device) for key, value in collate(rows, self.tokenizer.pad_token_id, known).items()
        }
        if begun:
            batch["past_key_values"] = repeated(begun, len(rows))
        where = [(i, answer - known) for i, row in enumerate(rows) for answer in row.answers]
        places = tuple(torch.tensor(where, device=device).T)
        width = batch["input_ids"].shape[1]
        with only_at(self.model, places[0] * width + places[1]) if only_answers else nullcontext():
            states = self.model.base_model(**batch, use_cache=bool(begun)).last_hidden_state
        answer = states[places]
        prompt = self.prompts[mode]
        head = self.model.get_output_embeddings()
        choice = torch.tensor([prompt.yes, prompt.no], device=device)
        logits = answer @ head.weight[choice].T
        if head.bias is not None:
            logits = logits + head.bias[choice]
        return logits, answer, states

    @overload
    def score(
        self, groups: Sequence[Group], mode: str, features: Literal[False] = False, description: str = ...
    ) -> list[np.ndarray]: ...

    @overload
    def score(
        self, groups: Sequence[Group], mode: str, features: Literal[True], description: str = ...
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...

    @torch.no_grad()
    def score(
        self, groups: Sequence[Group], mode: str, features: bool = False, description: str = "teacher scores"
    ) -> list[np.ndarray] | tuple[list[np.ndarray], list[np.ndarray]]:
        """Yes/no logits of every (query, candidate), a float32 (n, 2) array a group, index 0 yes.

        With `features`, also the pair features y^T: (n, d) arrays. Long groups are split, short ones batched by a token budget.
        Raises TrainingError on a score that is not finite.
        """
        from d2llm.logs import progress

        pieces: list[tuple[int, int, Group]] = []  # group, first candidate, part of the group
        size = self.settings.pack_size
        for number, (a, candidates) in enumerate(groups):
            pieces += [
                (number, start, (a, candidates[start : start + size])) for start in range(0, len(candidates), size)
            ]
        rows = self.pack([piece for _, _, piece in pieces], mode)
        order = np.argsort([len(row.ids) for row in rows], kind="stable").tolist()
        out = [np.zeros((len(candidates), 2), dtype=np.float32) for _, candidates in groups]
        states: list[np.ndarray] = []
        begun = self.instruction(mode) if len(rows) > 1 else []
        for batch in progress(list(token_batches(order, rows, self.settings.batch_tokens)), description):
            logits, answer, _ = self.forward([rows[i] for i in batch], mode, begun, only_answers=True)
            if not torch.isfinite(logits).all():
                raise TrainingError(
                    "the teacher's scores are not finite; its checkpoint is damaged; remove teacher/model and run snakemake again"
                )
            judged, read = logits.float().cpu().numpy(), answer.float().cpu().numpy()
            if features and not states:
                states = [np.zeros((len(candidates), read.shape[1]), dtype=np.float32) for _, candidates in groups]
            at = 0
            for i in batch:
                number, start, (_, candidates) = pieces[i]
                block = slice(at, at + len(candidates))
                out[number][start : start + len(candidates)] = judged[block]
                if features:
                    states[number][start : start + len(candidates)] = read[block]
                at += len(candidates)
        return (out, states) if features else out


def repeated(begun: Sequence[tuple[Tensor, Tensor]], rows: int) -> Any:
    """A cache that holds the same beginning for every row; nothing is copied until a layer adds to it."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(begun):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache


def quantized(kind: str) -> Any:
    """How transformers is told to load weights in 8 or 4 bits. Raises ConfigError without the package that does it."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"teacher.quantization: {kind} needs the package bitsandbytes; install it (pip), or set it to none"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=kind == "8bit", load_in_4bit=kind == "4bit")


def token_batches(order: Sequence[int], rows: Sequence[Row], budget: int) -> Iterable[list[int]]:
    """Consecutive runs of `order` whose padded size (rows x longest) stays within `budget` tokens; at least one row each."""
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, len(rows[i].ids))
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], len(rows[i].ids)
        batch.append(int(i))
    if batch:
        yield batch

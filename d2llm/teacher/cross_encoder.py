"""The teacher: a decoder that reads a prompt with both texts and answers yes or no (paper, section on the teacher
model).

Scores many candidates of one query in one row. The candidates share the prompt's beginning and do not see each other:
the logits are those of separate prompts, and the shared part is computed once. What all rows begin with, the
instruction, is computed once a call, and with larger models once an update as well (`shares`). A model that cannot keep
candidates apart gets a row for each. Only the answer positions reach the two rows of the LM head that matter.
Candidates share a row only where it is cut as each of them is alone. Tuning is in `tune`, the stage that stores scores
in `score`.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from d2llm.models.base import remote, shared
from d2llm.models.device import default_device
from d2llm.models.fast.last_layer import only_at
from d2llm.models.fast.packing import end_to_end, padding_mask
from d2llm.models.positions import position_table, reach
from d2llm.models.precision import as_given, embedding, wide
from d2llm.models.tokens import framing, pad_id, rows_of, token_ids, unknown_to_the_model
from d2llm.run.artifacts import MEND
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError
from d2llm.teacher.prompts import Prompt, prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from d2llm.config.sections import TeacherSettings

Group = tuple[str, Sequence[str]]  # a query and its candidates
# Texts that are tokenised at a time.
TEXTS_AT_ONCE = 65536
# Fewer tokens of instruction than this are computed with every row: handing them on costs as much.
SHORTEST = 8
# Weights of the layers from which an update computes the instruction once, and a row what announces its passages: two
# fifths less time at 67 M. Models made in the pipeline have fewer, gain seconds, and keep their numbers bit for bit.
SHARED_FROM = 20_000_000


@dataclass(frozen=True)
class Row:
    """One packed row: token ids, positions, the segment of each token (0 shared, 1… candidates) and where each answer
    is read.

    `text_spans[j]` is the (start, end) of candidate j's own tokens in `ids`; candidate j is number `members[j]` of
    group number `group`.
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[int]
    text_spans: list[tuple[int, int]]
    group: int
    members: list[int]


@dataclass(frozen=True, slots=True)
class Planned:
    """A row that is not laid out yet: its candidates, the tokens of the query that fit beside them, its length."""

    group: int
    members: list[int]
    head: int
    length: int


class PromptIds:
    """A mode's prompt as token ids, begun as the checkpoint's tokenizer begins a text, with its two answer ids checked.

    Raises ConfigError for a prompt or an answer that the tokenizer cannot spell, and for one that leaves no room for
    texts.
    """

    # Whether what announces a passage belongs to the part that candidates share.
    shares: bool = False

    def __init__(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        encode = _encoder(tokenizer)
        first, _ = framing(tokenizer)
        self.prefix = encode(prompt.instruction + prompt.query)
        if self.prefix[: len(first)] != first:  # a template may spell it
            self.prefix = [*first, *self.prefix]
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
                f"teacher.max_length is {max_length}, but the prompt alone takes {fixed} tokens; raise it to at least "
                f"{fixed + 32}"
            )

    def cut(self, a: int, b: int) -> tuple[int, int]:
        """Tokens left of two texts of so many: the longer one is shortened first until both fit; prefix and cue stay
        whole.
        """
        if a + b <= self.room:
            return a, b
        shorter = min(a, b, self.room // 2)
        return (shorter, self.room - shorter) if a <= b else (self.room - shorter, shorter)

    def plan(self, a: int, candidates: Sequence[int], group: int = 0, size: int | None = None) -> list[Planned]:
        """Rows for a query of so many tokens and its candidates, at most `size` a row: those for which the query is cut
        alike, as it is by each alone.
        """
        cuts = [self.cut(a, b) for b in candidates]
        parts: dict[int, list[int]] = {}
        for number, (head, _) in enumerate(cuts):
            parts.setdefault(head, []).append(number)
        step, (announced, before) = size or max(1, len(candidates)), self._announced
        begun, around = len(self.prefix) + len(announced), len(before) + len(self.cue)
        return [
            Planned(group, own, head, begun + head + sum(around + cuts[number][1] for number in own))
            for head, members in parts.items()
            for own in (members[start : start + step] for start in range(0, len(members), step))
        ]

    @property
    def _announced(self) -> tuple[list[int], list[int]]:
        """What announces a passage: as the end of the shared part, and as a candidate's beginning; one is empty."""
        return (self.middle, []) if self.shares else ([], self.middle)

    def rows(
        self, a: Sequence[int], candidates: Sequence[Sequence[int]], group: int = 0, size: int | None = None
    ) -> list[Row]:
        """The rows of `plan`, laid out."""
        planned = self.plan(len(a), [len(b) for b in candidates], group, size)
        return [self.row(row, a, [candidates[number] for number in row.members]) for row in planned]

    def row(self, planned: Planned, a: Sequence[int], candidates: Sequence[Sequence[int]]) -> Row:
        """A planned row of a query and those of its candidates that stand in it."""
        announced, before = self._announced
        ids = [*self.prefix, *a[: planned.head], *announced]
        positions = list(range(len(ids)))
        segments = [0] * len(ids)
        start, answers, spans = len(ids), [], []
        for number, b in enumerate(candidates, 1):
            own = b[: self.cut(len(a), len(b))[1]]
            part = [*before, *own, *self.cue]
            spans.append((len(ids) + len(before), len(ids) + len(before) + len(own)))
            ids += part
            positions += range(start, start + len(part))
            segments += [number] * len(part)
            answers.append(len(ids) - 1)
        return Row(ids, positions, segments, answers, spans, planned.group, planned.members)


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
    """Raise ConfigError for a model whose table of positions is shorter than prompts may be."""
    table = position_table(model)
    if table is not None and settings.max_length > table:
        raise ConfigError(f"teacher.max_length is {settings.max_length}, and the model has {table} positions; lower it")


def _encoder(tokenizer: PreTrainedTokenizerBase):  # noqa: ANN202
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, int]:
    """First token ids of the two answers. Raises ConfigError when one is empty or unknown, or when they start alike."""
    first_ids = []
    for word in (prompt.yes, prompt.no):
        ids = _encoder(tokenizer)(word)
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(
                f"answer {word!r} has no token in the teacher's tokenizer; set teacher.*.yes and .no to words it knows"
            )
        first_ids.append(ids[0])
    if first_ids[0] == first_ids[1]:
        token = tokenizer.convert_ids_to_tokens(first_ids[0])
        raise ConfigError(
            f"answers {prompt.yes!r} and {prompt.no!r} start with the same token {token!r} in the teacher's tokenizer; "
            "choose answers that differ in their first token (teacher.*.yes, .no)"
        )
    return first_ids[0], first_ids[1]


def collate(rows: Sequence[Row], pad_id: int, known: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Ids and positions (n, t) and a boolean mask (n, 1, t, t): causal, and candidates see only the shared part and
    themselves. The mask is made on the device: it is t times as large as what it is made of.

    The first `known` tokens of all rows are left out of all but the mask's last axis: their keys and values are there.
    """
    longest = max(len(row.ids) for row in rows)
    # Ids, positions, segments: one array, which is carried over at once.
    table = np.zeros((3, len(rows), longest), dtype=np.int64)
    table[0], table[2] = pad_id, -1
    for i, row in enumerate(rows):
        table[:, i, : len(row.ids)] = row.ids, row.positions, row.segments
    ids, positions, seg = torch.from_numpy(table).to(device)
    visible = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
    mask = visible & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    return {"input_ids": ids[:, known:], "position_ids": positions[:, known:], "attention_mask": mask[:, None, known:]}


def padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Ids and mask (n, t) of rows of one candidate each, as any decoder takes them."""
    mask = padding_mask([len(row.ids) for row in rows], "right")
    ids = torch.full_like(mask, pad_id)
    ids[mask.bool()] = end_to_end([row.ids for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


class Teacher:
    """A causal language model used as a prompted yes/no cross-encoder."""

    # The class of transformers that loads it.
    auto = "AutoModelForCausalLM"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TeacherSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        check_positions(model, settings)
        self.prompts = prompt_ids(tokenizer, settings)
        self.rows = rows_of(model)
        self.pad_id = pad_id(tokenizer, self.rows)
        # A corpus is held as numbers of four bytes: as lists its tokens would take nine times that.
        self._cache: dict[str, array[int]] = {}

    @classmethod
    def load(cls, folder: str | Path, settings: TeacherSettings, dtype: str | torch.dtype = "auto") -> Teacher:
        """Load a saved teacher, in the type its weights are kept in or another, or quantised.

        Raises ArtifactError when the folder is missing or damaged, ConfigError where quantisation lacks its package.
        """
        import transformers

        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": remote.allowed()}
        if settings.quantization != "none":
            options["quantization_config"] = quantized(settings.quantization)
        try:
            model = shared.opened(getattr(transformers, cls.auto), folder, **options)
            place = shared.tokenizer_folder(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=remote.allowed())
        except ArtifactError:  # its base's
            raise
        except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
            raise ArtifactError(f"{folder}: cannot load the teacher ({str(error).splitlines()[0]}); {MEND}") from error
        wrong = unknown_to_the_model(tokenizer, rows_of(model))
        if wrong is not None:
            raise ArtifactError(f"{folder}: {wrong}")
        model = model.eval() if settings.quantization != "none" else model.eval().to(default_device())
        return cls(model, tokenizer, settings)

    def tokens(self, texts: Iterable[str]) -> list[array[int]]:
        """Token ids without special tokens; each distinct text is tokenised once. Raises DataError for a token that the
        model has no embedding for.
        """
        texts = list(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._cache))
        if new:
            for start in range(0, len(new), TEXTS_AT_ONCE):
                part = new[start : start + TEXTS_AT_ONCE]
                ids = (array("i", row) for row in token_ids(self.tokenizer, part, self.rows))
                self._cache.update(zip(part, ids, strict=True))
        return [self._cache[text] for text in texts]

    def pack(self, groups: Sequence[Group], mode: str, size: int | None = None) -> list[Row]:
        """Rows of all groups in order, at most `size` candidates in each: one a group where nothing is cut, no size is
        given and the model `packs`.
        """
        return self.lay_out(list(self.plan(groups, mode, size)), groups, mode)

    def plan(self, groups: Sequence[Group], mode: str, size: int | None = None) -> Iterator[Planned]:
        """The same rows, not laid out: a row laid out takes a hundred times the memory of its texts."""
        prompt, size = self.prompts[mode], size if self.packs else 1
        prompt.shares = self.shares
        # All at once: far faster than one by one.
        self.tokens(text for a, candidates in groups for text in (a, *candidates))
        for number, (a, candidates) in enumerate(groups):
            lengths = [len(self._cache[text]) for text in candidates]
            yield from prompt.plan(len(self._cache[a]), lengths, number, size)

    def lay_out(self, planned: Sequence[Planned], groups: Sequence[Group], mode: str) -> list[Row]:
        """Some planned rows of these groups."""
        prompt, ids = self.prompts[mode], self._cache
        return [
            prompt.row(row, ids[a], [ids[candidates[number]] for number in row.members])
            for row, (a, candidates) in ((row, groups[row.group]) for row in planned)
        ]

    @cached_property
    def packs(self) -> bool:
        """Whether the model keeps candidates that share a row apart. Tried, as architectures may count positions or
        read masks in their own way.
        """
        from d2llm.run.logs import get_logger

        apart = self._keeps_apart()
        if not apart:
            name = type(self.model).__name__
            get_logger(__name__).info(
                "%s cannot keep candidates of a row apart: the teacher reads them one by one", name
            )
        return apart

    @torch.no_grad()
    def _keeps_apart(self) -> bool:
        prompt = self.prompts["symmetric"]
        if reach(self.model.config) < self.settings.max_length:
            return False  # the mask of a packed row knows of no window
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return False  # it counts distances in the row itself
        half = min(prompt.room // 2, 32)
        filler = (prompt.middle + prompt.cue + prompt.prefix) * half
        a, candidates = filler[:half], [filler[:half], filler[half : 2 * half]]

        def answer(row: Row, packed: bool) -> Tensor:
            return self._pass([row], "symmetric", packed=packed)[1][-1].float()

        try:
            (shared,) = prompt.rows(a, candidates)
            others = [
                prompt.yes if segment == 1 else token
                for token, segment in zip(shared.ids, shared.segments, strict=True)
            ]
            together, beside = answer(shared, True), answer(replace(shared, ids=others), True)
            alone = answer(prompt.rows(a, candidates[1:])[0], False)
        except Exception:  # noqa: BLE001 - a mask or positions that an architecture does not take are told in many ways
            return False
        # What is masked adds an exact zero; what a recurrent layer carries over may be as small as the rounding of half
        # precision.
        rounding = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return torch.equal(together, beside) and bool((together - alone).norm() <= rounding * alone.norm())

    def instruction(self, mode: str) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, heads, k, d) of every layer for the k tokens each row of a mode begins with; empty for an
        architecture of its own. Gradients reach what made them, where they are on.
        """
        prefix = self.prompts[mode].prefix
        if len(prefix) < SHORTEST or not self.packs or not type(self.model).__module__.startswith("transformers."):
            return []  # code from a hub may cache in any way
        return self._begun(prefix)

    def _begun(self, prefix: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        from transformers import DynamicCache

        ids = torch.tensor([prefix], device=self.model.device)
        # A plain cache: an architecture's own may keep the last tokens only.
        cache = self.model.base_model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    @cached_property
    def shares(self) -> bool:
        """Whether an update computes the instruction once, and a row what announces its passages: where a model of this
        size gains by it, and can.
        """
        weights = self.model.num_parameters(exclude_embeddings=True)
        theirs = type(self.model).__module__.startswith("transformers.")
        return weights >= SHARED_FROM and theirs and self.packs and self._goes_on()

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Whether a row that goes on from kept keys and values has the answer it has as a whole. Tried, as
        architectures may cache in their own way.
        """
        prompt = self.prompts["symmetric"]
        filler = (prompt.middle + prompt.cue + prompt.prefix)[: prompt.room // 2]
        (row,) = prompt.rows(filler[:1], [filler])
        training = self.model.training
        self.model.eval()
        try:
            kept = self._pass([row, row], "symmetric", True, self._begun(prompt.prefix))[1][-1].float()
            whole = self._pass([row], "symmetric", False)[1][-1].float()
        except Exception:  # noqa: BLE001 - a cache that an architecture does not take is told in many ways
            return False
        finally:
            self.model.train(training)
        rounding = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return bool((kept - whole).norm() <= rounding * whole.norm())

    def forward(
        self,
        rows: Sequence[Row],
        mode: str,
        begun: Sequence[tuple[Tensor, Tensor]] = (),
        only_answers: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of a batch of rows: logits (m, 2) yes/no, float32, and answer states (m, d) of all candidates in
        order, and all states (n, t, d).

        With `begun`, what `instruction` gave for these very weights, the states lack the instruction's k tokens. With
        `only_answers`, states of other tokens are not to be read (`last_layer`).
        """
        return self._pass(rows, mode, self.packs, begun, only_answers)

    def _pass(
        self,
        rows: Sequence[Row],
        mode: str,
        packed: bool,
        begun: Sequence[tuple[Tensor, Tensor]] = (),
        only_answers: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = self.model.device
        known = begun[0][0].shape[2] if begun else 0
        tensors = collate(rows, self.pad_id, known, device) if packed else padded(rows, self.pad_id)
        batch: dict[str, Any] = {key: value.to(device) for key, value in tensors.items()}
        if packed and self.model.config._attn_implementation != "sdpa":
            # Other implementations add the mask to their scores, as numbers.
            hidden = ~batch["attention_mask"]
            numbers = torch.zeros(hidden.shape, dtype=self.model.dtype, device=device)
            batch["attention_mask"] = numbers.masked_fill_(hidden, torch.finfo(numbers.dtype).min)
        if begun:
            batch["past_key_values"] = repeated(begun, len(rows))
        where = [(i, answer - known) for i, row in enumerate(rows) for answer in row.answers]
        places = tuple(torch.tensor(where, device=device).T)
        width = batch["input_ids"].shape[1]
        prompt = self.prompts[mode]
        with (
            only_at(self.model, places[0] * width + places[1]) if only_answers else nullcontext(),
            answering(self.model, places, (prompt.yes, prompt.no)) as head,
        ):
            logits = self.model(**batch, use_cache=bool(begun)).logits
        return logits, head.answers, head.states

    @overload
    def score(
        self, groups: Sequence[Group], mode: str, features: Literal[False] = False, description: str = ...
    ) -> list[np.ndarray]: ...

    @overload
    def score(
        self, groups: Sequence[Group], mode: str, features: Literal[True], description: str = ...
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...

    def score(
        self, groups: Sequence[Group], mode: str, features: bool = False, description: str = "teacher scores"
    ) -> list[np.ndarray] | tuple[list[np.ndarray], list[np.ndarray]]:
        """Yes/no logits of every (query, candidate), a float32 (n, 2) array a group, index 0 yes.

        With `features`, also the pair features y^T: (n, d) arrays. Both are means over the two directions of a
        symmetric pair where `teacher.both_directions` asks for them. Raises TrainingError on a score that is not
        finite.
        """
        out, states = self._score(groups, mode, features, description)
        if mode == "symmetric" and self.settings.both_directions:
            turned = [(text, [a]) for a, candidates in groups for text in candidates]
            ends = np.cumsum([len(candidates) for _, candidates in groups])[:-1]
            others = self._score(turned, mode, features, f"{description}, turned round")
            out, states = (
                [(one + two) / 2 for one, two in zip(given, np.split(np.concatenate(back), ends), strict=True)]
                if back
                else []
                for given, back in zip((out, states), others, strict=True)
            )
        return (out, states) if features else out

    @torch.no_grad()
    def _score(
        self, groups: Sequence[Group], mode: str, features: bool, description: str
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits and, if asked for, features of pairs as they are given. Long groups are split, short ones batched by a
        token budget.
        """
        from d2llm.run.logs import progress

        planned = list(self.plan(groups, mode, self.settings.pack_size))
        lengths = [row.length for row in planned]
        order = np.argsort(lengths, kind="stable").tolist()
        out = [np.zeros((len(candidates), 2), dtype=np.float32) for _, candidates in groups]
        states: list[np.ndarray] = []
        weight = next(self.model.parameters())
        with embedding(weight):
            begun = self.instruction(mode) if len(planned) > 1 else []
        for batch in progress(list(token_batches(order, lengths, self.settings.batch_tokens)), description):
            # Laid out when their turn comes: all at once took tens of gigabytes.
            rows = self.lay_out([planned[i] for i in batch], groups, mode)
            with embedding(weight):
                logits, answer, _ = self.forward(rows, mode, begun, only_answers=True)
            judged = logits.float().cpu().numpy()
            if not np.isfinite(judged).all():
                raise TrainingError(
                    "the teacher's scores are not finite; its checkpoint is damaged; remove teacher/model and run "
                    "snakemake again"
                )
            put(judged, rows, out)
            if features:
                read = answer.float().cpu().numpy()
                states = states or [np.zeros((len(own), read.shape[1]), dtype=np.float32) for _, own in groups]
                put(read, rows, states)
        return out, states


def put(values: np.ndarray, rows: Sequence[Row], out: Sequence[np.ndarray]) -> None:
    """(m, …) values of all candidates of some rows, in order, to their places: one array a group."""
    at = 0
    for row in rows:
        out[row.group][row.members] = values[at : at + len(row.members)]
        at += len(row.members)


class AnswerHead(nn.Module):
    """Two rows of a language model's head, read at the answers' places: (n, t, d) states → (m, 2) logits, formed in
    float32 at least.

    `states` are all states of the last pass, `answers` (m, d) those at the places.
    """

    states: Tensor
    answers: Tensor

    def __init__(self, head: Any, places: tuple[Tensor, ...], choice: tuple[int, int]) -> None:
        super().__init__()
        self.places, chosen = places, list(choice)
        self.two = head.weight[chosen], None if head.bias is None else head.bias[chosen]

    @property
    def weight(self) -> Tensor:
        """The two rows: some architectures ask a head for its type."""
        return self.two[0]

    def forward(self, states: Tensor) -> Tensor:
        self.states, self.answers = states, states[self.places]
        weight, bias = self.two
        with as_given(states):
            logits = wide(self.answers) @ wide(weight).T
            return logits if bias is None else logits + wide(bias)


@contextmanager
def answering(model: PreTrainedModel, places: tuple[Tensor, ...], choice: tuple[int, int]) -> Iterator[AnswerHead]:
    """Within it the model's logits are those of two tokens at some places alone; what an architecture does to logits
    (soft caps, scales) it does to them.
    """
    head = model.get_output_embeddings()
    answers = AnswerHead(head, places, choice)
    model.set_output_embeddings(answers)
    try:
        yield answers
    finally:
        model.set_output_embeddings(head)


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


def token_batches(order: Sequence[int], lengths: Sequence[int], budget: int) -> Iterable[list[int]]:
    """Consecutive runs of `order` whose padded size (rows x longest) stays within `budget` tokens; at least one row
    each.
    """
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], lengths[i]
        batch.append(int(i))
    if batch:
        yield batch

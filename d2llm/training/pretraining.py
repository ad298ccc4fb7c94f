"""Stage `base`: makes the base checkpoints of the mini tier (teacher decoder, student decoder, encoder) in Hugging Face
format.

Each is pre-trained on the same unlabelled text with the same three objectives: language modelling (masked for the
encoder), reading the slots of a text's events off its pooled states, and telling its paraphrase from other texts, one
of which has nearly the same words. The last two stand in for what billions of words teach a real checkpoint; they are
given to every method's base alike (docs/data.md). Hub tiers skip this stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2llm.config.checks import check_growth
from d2llm.config.schema import Config
from d2llm.config.sections import BaseSettings
from d2llm.data.world.lexicon import SLOTS, lexicon
from d2llm.methods.base import TrainingContext
from d2llm.methods.parameters import decay_groups
from d2llm.models.backbone import Backbone, head_of
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.models.tokens import token_ids
from d2llm.run.artifacts import atomic, read_frame, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PRETRAINING
from d2llm.training.loop import Rates, fit, means
from d2llm.training.trackers import Log

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ENCODERS = ("encoder",)
PARAPHRASE_TEMPERATURE = 0.05


def run(config: Config, model: str, resume: Resume | None = None) -> None:
    """Make base model `model` ("teacher", "decoder", "encoder" or one of `models.others`), which is no checkpoint."""
    paths = Paths.of(config)
    settings = config.models.of(model)
    assert isinstance(settings, BaseSettings)
    frame = read_frame(paths.pretraining, PRETRAINING)
    log = get_logger(__name__)
    torch.manual_seed(settings.seed)
    if settings.grown_from:
        network, tokenizer = grown(paths.base(settings.grown_from), settings, f"models.{model}")
    else:
        tokenizer = build_tokenizer(vocabulary(config))
        network = new_model(model in ENCODERS, settings, tokenizer)
    log.info("%s: %d parameters, vocabulary %d", model, sum(p.numel() for p in network.parameters()), len(tokenizer))
    with atomic(paths.base(model)) as folder:
        folder.mkdir(parents=True)
        losses = {}
        if settings.steps:
            name = f"pre-training {model}"
            log_file = folder / "log.jsonl"
            told = Log.of(log_file, resume, config.training.trackers, paths, paths.base(model))
            losses = pretrain(network, tokenizer, frame, settings, told, name, resume)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "summary.json", {"parameters": sum(p.numel() for p in network.parameters()), **losses})


def vocabulary(config: Config) -> list[str]:
    """All pieces the mini tokenizer knows: the world's words, the prompts, and the phrases methods add to texts."""
    from d2llm.data.world.surface import FUNCTION_WORDS
    from d2llm.teacher.prompts import prompts

    words = [*lexicon().words(), *FUNCTION_WORDS]
    for prompt in prompts(config.teacher).values():
        words += [prompt.instruction, prompt.query, prompt.passage, prompt.cue, prompt.yes, prompt.no]
    return [*words, *config.phrases()]


def new_model(encoder: bool, settings: BaseSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights. The decoder is a Llama with biases in all linear layers, which is what BitFit
    (SGPT, Udever) trains on the models those methods were published on."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return (AutoModelForMaskedLM if encoder else AutoModelForCausalLM).from_config(
        model_config(encoder, settings, tokenizer)
    )


def model_config(encoder: bool, settings: BaseSettings, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The sizes and parts of such a model."""
    from transformers import BertConfig, LlamaConfig

    shared = {
        "vocab_size": len(tokenizer), "hidden_size": settings.hidden_size, "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads, "intermediate_size": settings.intermediate_size,
        "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True,
    }  # fmt: skip
    if encoder:
        return BertConfig(
            **shared,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            type_vocab_size=1,
            initializer_range=0.05,
        )
    return LlamaConfig(
        **shared,
        attention_bias=True,
        mlp_bias=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )


def grown_config(config: PretrainedConfig, settings: BaseSettings, where: str = "models") -> PretrainedConfig:
    """The configuration of a deeper model. Raises ConfigError, beginning with the key `where`, for one that is not
    deeper or has other sizes.
    """
    known = {
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "layers": config.num_hidden_layers,
    }
    try:
        check_growth(settings, known)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    deeper = copy.deepcopy(config)
    deeper.num_hidden_layers = settings.layers
    if kinds := getattr(deeper, "layer_types", None):
        deeper.layer_types = [kinds[layer % len(kinds)] for layer in range(settings.layers)]
    return deeper


def grown(
    source: Path, settings: BaseSettings, where: str = "models"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A deeper copy of a saved decoder: its layers, then new ones whose outputs start near zero, so that it starts as
    its source.

    Teacher and student are then of one family that saw the same text, as Qwen 7B and 1.8B are, at the price of one
    pre-training.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smaller = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    known = smaller.state_dict()
    network = AutoModelForCausalLM.from_config(grown_config(smaller.config, settings, where))
    state = network.state_dict()
    for name in state:
        if name in known:
            state[name] = known[name]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] = state[name] * 0.1
    network.load_state_dict(state)
    return network, AutoTokenizer.from_pretrained(source)


@dataclass(frozen=True)
class SlotTargets:
    """Where each slot's nodes stand in one padded table: `table` (slots, widest) node ids, -1 for padding."""

    table: np.ndarray

    @classmethod
    def build(cls) -> SlotTargets:
        lex = lexicon()
        members = [[0, *np.flatnonzero(lex.slot == slot).tolist()] for slot in range(len(SLOTS))]
        members = members * 2 + [[0, 1], list(range(len(SLOTS) + 1))]
        widest = max(map(len, members))
        return cls(np.array([row + [-1] * (widest - len(row)) for row in members]))

    def encode(self, slots: np.ndarray, negated: np.ndarray, ask: np.ndarray) -> np.ndarray:
        """(n, 2·slots) nodes, (n,) polarity, (n,) slot asked for -> (n, 2·slots+2) positions; -100 where there is no
        second event.
        """
        full = np.concatenate([slots, negated[:, None], ask[:, None] + 1], axis=1)
        lookup = np.full((len(self.table), int(self.table.max()) + 1), -100)
        for row, nodes in enumerate(self.table):
            lookup[row, nodes[nodes >= 0]] = np.flatnonzero(nodes >= 0)
        out = lookup[np.arange(full.shape[1])[None, :], full]
        single = ~slots[:, len(SLOTS) :].any(1)
        out[np.ix_(single, np.arange(len(SLOTS), 2 * len(SLOTS)))] = -100
        return out


class SlotReader(nn.Module):
    """Reads every slot of a text's events off one pooled vector; used in pre-training only and thrown away."""

    def __init__(self, hidden_size: int, targets: SlotTargets) -> None:
        super().__init__()
        rows, width = targets.table.shape
        self.shape = (rows, width)
        self.linear = nn.Linear(hidden_size, rows * width)
        self.register_buffer("padding", torch.from_numpy(targets.table < 0))

    def forward(self, pooled: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the slots that count, and the share read correctly; pooled (n, d), wanted
        (n, rows).
        """
        logits = self.linear(pooled).view(-1, *self.shape).masked_fill(self.padding, float("-inf"))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        counted = wanted != -100
        right = (logits.detach().argmax(-1) == wanted)[counted].float().mean()
        return loss, right


def pooled_states(hidden: Tensor, mask: Tensor, kind: str) -> Tensor:
    """(n, t, d) -> (n, d): one of the poolings the methods use, so that pre-training favours none of them."""
    if kind == "cls":
        return hidden[:, 0]
    if kind == "last":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    weight = mask.to(hidden.dtype)
    if kind == "weighted":
        weight = weight * torch.arange(1, mask.shape[1] + 1, dtype=hidden.dtype)
    weight = weight / weight.sum(1, keepdim=True)
    return (hidden * weight[..., None]).sum(1)


def mask_tokens(
    ids: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT masking without the 10% random and kept tokens: (input, labels with -100 where nothing is asked)."""
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | (mask == 0)
    hidden = (torch.rand(ids.shape, generator=generator) < share) & ~special
    labels = torch.where(hidden, ids, torch.full_like(ids, -100))
    return torch.where(hidden, torch.full_like(ids, tokenizer.mask_token_id), ids), labels


def pretrain(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frame: pd.DataFrame, settings: BaseSettings,
    log: Log, name: str, resume: Resume | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train `network` in place; returns the last losses (means over the final tenth)."""
    network.train()
    task = _Task(network, tokenizer, frame, settings)
    named = [*network.named_parameters(), *task.reader.named_parameters()]
    tail = fit(
        decay_groups(named, settings.learning_rate, 0.01),
        lambda done: range(done + 1, settings.steps + 1),
        task.loss,
        steps=settings.steps,
        name=name,
        context=TrainingContext(loop=partial((resume or Resume()).loop, log_file=log.file), log=log),
        rates=Rates(0.05, betas=(0.9, 0.98)),
        draw=lambda number: (number, task.order.integers(0, len(task.texts), settings.batch_size)),
        generators=(task.generator, task.order),
        about=lambda batch: {"slots_right": float(task.right)},
    )
    log.close()
    return {key: value for key, value in means(tail).items() if key != "learning_rate"}


class _Task:
    """What a base model learns of the texts: who did what, paraphrases, language."""

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frame: pd.DataFrame, settings: BaseSettings
    ) -> None:
        from transformers import BertConfig

        self.settings, encoder = settings, isinstance(network.config, BertConfig)
        targets = SlotTargets.build()
        self.reader = SlotReader(settings.hidden_size, targets)
        slots = targets.encode(np.stack(frame["slots"]), frame["negated"].to_numpy(), frame["ask"].to_numpy())
        self.wanted = torch.from_numpy(slots)
        before, after = (
            [tokenizer.cls_token_id] * encoder,
            [tokenizer.sep_token_id if encoder else tokenizer.eos_token_id],
        )
        self.texts, self.paraphrases, self.distractors = (
            [[*before, *ids, *after] for ids in token_ids(tokenizer, frame[column])]
            for column in ("text", "paraphrase", "distractor")
        )
        self.poolings = ("cls", "mean") if encoder else ("mean", "weighted", "last")
        inner = cast("PreTrainedModel", network.base_model)
        self.body, self.head = Backbone(inner, tokenizer, "encoder" if encoder else "decoder"), head_of(network)
        self.generator, self.order = torch.Generator().manual_seed(settings.seed), np.random.default_rng(settings.seed)
        # Share of the slots that the last batch's were read correctly.
        self.right = torch.zeros(())

    def loss(self, batch: tuple[int, np.ndarray]) -> dict[str, Tensor]:
        """The loss terms of an update's texts (its number, their rows)."""
        number, rows = batch
        settings, half = self.settings, len(rows)
        sequences = [
            *(self.texts[i] for i in rows), *(self.paraphrases[i] for i in rows), *(self.distractors[i] for i in rows)
        ]  # fmt: skip
        pooling, wanted = self.poolings[number % len(self.poolings)], self.wanted[np.concatenate([rows, rows])]
        pooled, language = _pooled(
            self.body, self.head, sequences, pooling, settings.language_weight > 0, self.generator
        )
        slots, self.right = self.reader(pooled[: 2 * half], wanted)
        unit = F.normalize(pooled, dim=-1)
        alike = unit[:half] @ unit[half:].T / PARAPHRASE_TEMPERATURE
        terms = {
            "slots": settings.slot_weight * slots,
            "paraphrase": settings.paraphrase_weight * F.cross_entropy(alike, torch.arange(half)),
        }
        return terms | ({"language": settings.language_weight * language} if settings.language_weight else {})


def _pooled(
    body: Backbone,
    head: Callable[[Tensor], Tensor],
    sequences: list[list[int]],
    pooling: str,
    language: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Pooled states (n, d) in the given order, and the language-model loss over a quarter of the sequences, by its
    head.
    """
    # Those of equal length side by side, which is how they run fastest.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    ordered = [tuple(sequences[i]) for i in order]
    states, mask = body.states(ordered)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    pooled = pooled_states(states, mask, pooling)[back]
    if not language:
        return pooled, torch.zeros(())
    ids, mask = body.pad(ordered[::4])
    if body.kind == "encoder":
        masked, labels = mask_tokens(ids, mask, body.tokenizer, 0.3, generator)
        read, _ = body.states([tuple(row[:size].tolist()) for row, size in zip(masked, mask.sum(1), strict=True)])
    else:
        read, labels = states[::4, : ids.shape[1] - 1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    place = labels != -100
    return pooled, F.cross_entropy(head(read[place]), labels[place])

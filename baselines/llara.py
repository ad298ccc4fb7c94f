"""LLaRA (Llama2Vec): a decoder taught by two pretext tasks to put a text into eight tokens, then fine-tuned with LoRA.

Source: Li et al. 2023 (arXiv 2312.15503) in the form of the released code. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from d2llm.config.recipes import (
    Count,
    MaxLengths,
    PositiveFloat,
    PretextStage,
    Reading,
    Recipe,
    Schedule,
    TunedWeights,
    Warmup,
    Weight,
    tokens_of,
)
from d2llm.config.section import Section
from d2llm.methods.base import TrainingContext
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

SUMMARY_TOKENS = tuple(f"<s{number}>" for number in range(1, 9))
PREDICTION_TOKENS = tuple(f"<s{number}>" for number in range(9, 17))
# Texts of a batch, each with the one that follows it, as token ids.
Chosen = list[tuple[tuple[int, ...], tuple[int, ...]]]


class Prompts(Section):
    """What stands around a text; the eight tokens follow each suffix."""

    # Before every text.
    prefix: str = '"'
    # Passages, and the auto-encoding task (EBAE).
    summary: str = '", summarize the above passage within eight words: '
    # Queries, and the task of predicting what follows (EBAR).
    prediction: str = '", predict the following passage within eight words: '


# The same for tokenizers without English words.
CHINESE = {"prefix": "“", "summary": "”，用八个词总结上文：", "prediction": "”，用八个词预测下文："}


class Adaptation(PretextStage):
    """EBAE and EBAR: rate 1e-5, one epoch, length 128, all weights (released example)."""

    # Not in the released example; assumed.
    batch_size: Annotated[int, Field(ge=1)] = 256
    epochs: Weight = 1.0
    learning_rate: PositiveFloat = 1e-5
    weight_decay: Weight = 0.0
    warmup: Warmup = 0.1
    max_length: Annotated[int, Field(ge=4)] = 128
    # Weights of the auto-regressive language-model loss and of the mean of EBAE and EBAR. The paper's sum is 1 and 1;
    # the released code divides both bag-of-words losses by 10.
    language_model: Weight = 1.0
    # Weight of both bag-of-words losses; the release's is 0.1.
    bag_of_words: Weight = 1.0

    def reading(self, recipe: Any, ordered: bool) -> Reading:
        """A text and two prompts, which end in eight tokens each."""
        prompts = recipe.prompts
        around = sum(map(tokens_of, (prompts.prefix, prompts.summary, prompts.prediction)))
        return Reading(around=16 + around, predicted=1, besides=16)

    @model_validator(mode="after")
    def _some_term(self) -> Adaptation:
        if self.trains and not (self.language_model or self.bag_of_words):
            raise ValueError("language_model or bag_of_words above 0, or steps 0")
        return self


class LLaRARecipe(Recipe):
    """Fine-tuning: rate 3e-4, temperature 0.01, warm-up 0.1, LoRA r 64, groups of 16, lengths 64 and 160."""

    learning_rate: PositiveFloat = 3e-4
    weight_decay: Weight = 0.0
    warmup: Warmup = 0.1
    schedule: Schedule = "linear"
    temperature: PositiveFloat = 0.01
    hard_negatives: Count | None = 15
    tuning: TunedWeights = TunedWeights(kind="lora", r=64, alpha=16.0, dropout=0.1)
    max_lengths: MaxLengths = MaxLengths(query=64, passage=160, symmetric=160)
    # Words fed around texts.
    prompts: Prompts = Prompts()
    # Its pre-training stage.
    adaptation: Adaptation = Adaptation()


class Layout(NamedTuple):
    """Token ids of a pretext sequence around its text: prefix, EBAE suffix, EBAR suffix (each with its eight
    tokens).
    """

    prefix: tuple[int, ...]
    summary: tuple[int, ...]
    prediction: tuple[int, ...]


class LLaRA(ContrastiveMethod[LLaRARecipe]):
    """Mean of the last eight final states, scaled to unit length, cosine."""

    name = "llara"
    title = "LLaRA"
    citation = "Li et al. 2023, Making Large Language Models A Better Foundation For Dense Retrieval"
    kind = "decoder"
    pooling = ("last_token", {"k": len(SUMMARY_TOKENS)})
    scorer = ("cosine", {})
    new_tokens = len(SUMMARY_TOKENS + PREDICTION_TOKENS)
    Recipe = LLaRARecipe
    pretext_keys = ("adaptation", "prompts")

    def phrases(self, recipe: LLaRARecipe) -> tuple[str, ...]:
        """Prefix and suffixes, without the eight tokens."""
        return recipe.prompts.prefix, recipe.prompts.summary, recipe.prompts.prediction

    def layout(self, backbone: Backbone, recipe: LLaRARecipe) -> Layout:
        """Prefix and suffixes as token ids; adds the sixteen tokens where the tokenizer lacks them. The prefix begins
        as the tokenizer begins a text, as released.
        """
        prompts = recipe.prompts
        backbone.add_tokens([*SUMMARY_TOKENS, *PREDICTION_TOKENS])
        prefix = backbone.phrase(prompts.prefix) if prompts.prefix else []
        return Layout(
            (*backbone.framing()[0], *prefix),
            tuple(backbone.phrase(prompts.summary + "".join(SUMMARY_TOKENS))),
            tuple(backbone.phrase(prompts.prediction + "".join(PREDICTION_TOKENS))),
        )

    def make_student(self, backbone: Backbone, recipe: LLaRARecipe) -> Student:
        """Queries predict, passages and symmetric texts summarise; padded on the left."""
        from d2llm.models.student import Student, TextFormat, same_formats

        layout = self.layout(backbone, recipe)
        formats = same_formats(recipe.max_lengths, layout.prefix, layout.summary)
        formats["query", "asymmetric"] = TextFormat(layout.prefix, layout.prediction, recipe.max_lengths.query)
        backbone.tune(recipe.tuning)
        return Student(backbone, *self.parts(recipe), formats, padding="left", normalize=True, method=self.name)

    def check(self, student: Student, recipe: LLaRARecipe, ordered: bool) -> None:
        """Room for a text in its pre-training."""
        from d2llm.run.errors import TrainingError

        stage, around = recipe.adaptation, sum(map(len, self.layout(student.backbone, recipe)))
        if stage.trains and stage.max_length <= around:
            raise TrainingError(
                f"{self.name}, adaptation: adaptation.max_length {stage.max_length} leaves no room for a text between "
                "prompts of "
                f"{around} tokens"
            )

    def pretext(self, student: Student, texts: list[str], recipe: LLaRARecipe, context: TrainingContext) -> None:
        """EBAE and, where the texts' order is known, EBAR, with the language-model loss; trains all weights."""
        from d2llm.methods.parameters import decay_groups
        from d2llm.models.backbone import head_of
        from d2llm.run.errors import TrainingError
        from d2llm.training.loop import Rates, fit
        from d2llm.training.memory import InParts
        from d2llm.training.optimization import batches

        backbone, stage = student.backbone, recipe.adaptation
        name = f"{self.name}, adaptation"
        self.check(student, recipe, context.next_texts is not None)
        layout = self.layout(backbone, recipe)
        rows = text_rows(backbone, texts, context.next_texts, stage.max_length - sum(map(len, layout)))
        steps = stage.updates(len(rows))
        if steps == 0:
            return
        if not rows:
            raise TrainingError(f"{name}: there are no texts to adapt on")
        full, head = (model := backbone.language_model()), head_of(model)
        student.train()
        special = set(backbone.tokenizer.all_special_ids)

        def loss(chosen: Chosen) -> dict[str, Tensor]:
            with context.autocast():
                return adaptation_loss(backbone, head, layout, chosen, stage, special)

        with backbone.all_trainable(stage.embeddings, backbone.add_tokens([*SUMMARY_TOKENS, *PREDICTION_TOKENS])):
            named = [(key, value) for key, value in full.named_parameters() if "lora_" not in key]
            fit(
                decay_groups(named, stage.learning_rate, stage.weight_decay),
                partial(batches, len(rows), stage.batch_size, steps, context.seed),
                loss,
                draw=lambda members: [rows[index] for index in members],
                memory=InParts(lambda chosen, parts: split(chosen, parts, special)),
                steps=steps,
                name=name,
                context=context,
                rates=Rates(stage.warmup, stage.schedule),
            )


def text_rows(backbone: Backbone, texts: list[str], following: list[str] | None, room: int) -> Chosen:
    """Token ids of each text, cut to so many, and of the text that follows it, () where none is known; without texts
    that have none.
    """
    encoded = backbone.tokenize(texts)
    after = backbone.tokenize(following) if following is not None else [()] * len(texts)
    return [(text[:room], then) for text, then in zip(encoded, after, strict=True) if text]


def adaptation_inputs(layout: Layout, texts: list[tuple[int, ...]], pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids (n, t), visible (n, t, t), positions (n, t), is_text (n, t) of `prefix text EBAE EBAR`, padded on the left.

    The EBAR part sees the text but not the EBAE part, and its positions go on where the text ends, as if the EBAE part
    were not there.
    """
    import torch

    tail = len(layout.summary) + len(layout.prediction)
    width = len(layout.prefix) + max(map(len, texts)) + tail
    ids = torch.full((len(texts), width), pad)
    positions = torch.zeros(len(texts), width, dtype=torch.long)
    real = torch.zeros(len(texts), width, dtype=torch.bool)
    is_text = torch.zeros(len(texts), width, dtype=torch.bool)
    for index, text in enumerate(texts):
        row = [*layout.prefix, *text, *layout.summary, *layout.prediction]
        start, head = width - len(row), len(layout.prefix) + len(text)
        ids[index, start:] = torch.tensor(row)
        real[index, start:] = True
        is_text[index, start + len(layout.prefix) : start + head] = True
        positions[index, start : width - len(layout.prediction)] = torch.arange(head + len(layout.summary))
        positions[index, width - len(layout.prediction) :] = head + torch.arange(len(layout.prediction))
    visible = real[:, None, :] & torch.ones(width, width, dtype=torch.bool).tril()
    visible[:, width - len(layout.prediction) :, width - tail : width - len(layout.prediction)] = False
    # Padding sees itself, so that no row of the softmax is empty.
    visible = visible | torch.eye(width, dtype=torch.bool)
    return ids, visible, positions, is_text


def adaptation_loss(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    layout: Layout,
    chosen: Chosen,
    stage: Adaptation,
    special: set[int],
) -> dict[str, Tensor]:
    """Terms language_model, ebae, ebar; the last two are halved when a batch has both, as their mean is meant."""
    from d2llm.models.fast.token_loss import token_loss

    texts, following = [text for text, _ in chosen], [after for _, after in chosen]
    device = next(backbone.parameters()).device
    ids, visible, positions, is_text = (part.to(device) for part in adaptation_inputs(layout, texts, backbone.pad_id))
    states = backbone.hidden(ids, visible, positions)
    terms: dict[str, Tensor] = {}
    if stage.language_model > 0:
        read = is_text[:, 1:]
        if read.any():
            mean = token_loss(head, states[:, :-1][read], ids[:, 1:][read], backbone.rows)
            terms["language_model"] = stage.language_model * mean
    if stage.bag_of_words > 0:
        eight, end = len(PREDICTION_TOKENS), ids.shape[1]
        places = {"ebae": (end - len(layout.prediction), texts), "ebar": (end, following)}
        losses = {
            name: bag_of_words(head(states[:, stop - eight : stop]).float(), targets, special)
            for name, (stop, targets) in places.items()
        }
        present = {name: value for name, value in losses.items() if value is not None}
        for name, value in present.items():
            terms[name] = stage.bag_of_words * value / len(present)
    return terms


def split(chosen: Chosen, parts: int, special: set[int]) -> list[tuple[Chosen, dict[str, float]]]:
    """At most so many parts of a batch, each with its share of what every term of `adaptation_loss` is a mean over."""

    def counts(some: Chosen) -> tuple[int, int, int]:
        asked = [sum(bool(set(texts) - special) for texts in side) for side in zip(*some, strict=True)]
        return sum(len(text) for text, _ in some), asked[0], asked[1]

    whole, size = counts(chosen), -(-len(chosen) // parts)
    out = []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        sizes = counts(part)
        # Each batch halves the bags where it has both.
        halves = max(1, sum(map(bool, sizes[1:]))) / max(1, sum(map(bool, whole[1:])))
        shares = [mine / max(1, all_) for mine, all_ in zip(sizes, whole, strict=True)]
        out.append((part, {"language_model": shares[0], "ebae": halves * shares[1], "ebar": halves * shares[2]}))
    return out


def bag_of_words(logits: Tensor, targets: list[tuple[int, ...]], special: set[int]) -> Tensor | None:
    """−mean log p over the unique target ids, p from the maximum of eight tokens' logits (n, 8, V); mean over texts.

    Texts without a target (nothing but special ids) are left out; None when there is none at all.
    """
    import torch

    log_p = logits.amax(dim=1).log_softmax(-1)
    losses = []
    for row, target in zip(log_p, targets, strict=True):
        unique = sorted(set(target) - special)
        if unique:
            losses.append(-row[torch.tensor(unique, device=row.device)].mean())
    return torch.stack(losses).mean() if losses else None


METHOD = LLaRA()

"""RetroMAE: an encoder pre-trained to rebuild a text from its [CLS] state, then fine-tuned by dot products.

Source: Xiao et al. 2022 (arXiv 2205.12035) and its code in FlagEmbedding. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

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
)
from d2llm.methods.base import TrainingContext
from d2llm.methods.contrastive import ContrastiveMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


class Autoencoding(PretextStage):
    """Masked auto-encoding: 8 epochs, batch 32 on each of 8 devices, rate 1e-4, warm-up 0.1, decay 0.01, length 512."""

    epochs: Weight = 8.0
    batch_size: Annotated[int, Field(ge=1)] = 256
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Weight = 0.01
    warmup: Warmup = 0.1
    max_length: Annotated[int, Field(ge=4)] = 512
    # Share of tokens hidden from the encoder, and from each position of the decoder.
    encoder_mask: Rate = 0.3
    # Share of a text hidden from each position of the decoder.
    decoder_mask: Rate = 0.5

    def reading(self, recipe: Any, ordered: bool) -> Reading:
        """Masked tokens are predicted, then all of them by one layer more."""
        return Reading(around=2, predicted=1 + self.encoder_mask, layers=1)


class RetroMAERecipe(Recipe):
    """Fine-tuning as published: rate 2e-5, temperature 1, groups of 16 (15 hard negatives)."""

    learning_rate: PositiveFloat = 2e-5
    # The trainer's defaults, which its example leaves alone.
    weight_decay: Weight = 0.0
    warmup: Warmup = 0
    schedule: Schedule = "linear"
    temperature: PositiveFloat = 1.0
    hard_negatives: Count | None = 15
    tuning: TunedWeights = TunedWeights(kind="full")
    # Not among our facts; assumed as BGE's.
    max_lengths: MaxLengths = MaxLengths(query=64, passage=256, symmetric=256)
    # Its pre-training stage.
    pretraining: Autoencoding = Autoencoding()


class RetroMAE(ContrastiveMethod[RetroMAERecipe]):
    """[CLS] state, dot product without normalisation."""

    name = "retromae"
    title = "RetroMAE"
    citation = "Xiao et al. 2022, RetroMAE: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder"
    kind = "encoder"
    pooling = ("cls", {})
    scorer = ("dot", {})
    Recipe = RetroMAERecipe
    pretext_keys = ("pretraining",)

    def make_student(self, backbone: Backbone, recipe: RetroMAERecipe) -> Student:
        """[CLS] text [SEP] for every text."""
        from d2llm.models.student import Student, same_formats

        backbone.tune(recipe.tuning)
        formats = same_formats(recipe.max_lengths, *backbone.framing())
        return Student(backbone, *self.parts(recipe), formats, method=self.name)

    def check(self, student: Student, recipe: RetroMAERecipe, ordered: bool) -> None:
        """The special tokens and the encoder of its pre-training."""
        check_encoder(student.backbone, recipe.pretraining, f"{self.name}, pre-training")

    def pretext(self, student: Student, texts: list[str], recipe: RetroMAERecipe, context: TrainingContext) -> None:
        """RetroMAE pre-training of the encoder."""
        autoencode(student, texts, recipe.pretraining, context, f"{self.name}, pre-training")


def check_encoder(backbone: Backbone, stage: Autoencoding, name: str) -> None:
    """Refuse a tokenizer without the special tokens of masked auto-encoding, and an encoder that is not built as BERT
    is: one head, embeddings that can be given.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    from d2llm.models.backbone import head_of
    from d2llm.models.base import remote
    from d2llm.models.enhanced_decoder import EnhancedDecoder
    from d2llm.models.meta import without_weights
    from d2llm.run.errors import TrainingError, first_line

    if not stage.trains:
        return
    if not all(backbone.token(kind) for kind in ("cls", "sep", "mask")):
        raise TrainingError(f"{name}: the tokenizer of {backbone.source} lacks [CLS], [SEP] or [MASK]")
    config = backbone.model.config
    try:
        with without_weights():
            EnhancedDecoder(config)
            full = AutoModelForMaskedLM.from_config(config, trust_remote_code=remote.allowed())
            head_of(full)
            full.base_model.embeddings(inputs_embeds=torch.empty(1, 2, config.hidden_size))
    except Exception as error:
        raise TrainingError(
            f"{name}: {type(backbone.model).__name__} of {backbone.source} is not built as BERT is "
            f"({first_line(error)}); "
            "choose another encoder, or set pretraining.steps to 0"
        ) from error


def autoencode(student: Student, texts: list[str], stage: Autoencoding, context: TrainingContext, name: str) -> None:
    """Train the student's encoder by masked auto-encoding with enhanced decoding; decoder and head are then dropped."""
    from d2llm.methods.parameters import decay_groups
    from d2llm.models.backbone import head_of
    from d2llm.run.errors import TrainingError
    from d2llm.training.loop import Rates, fit
    from d2llm.training.memory import InParts
    from d2llm.training.optimization import batches

    backbone, rows = student.backbone, input_rows(student.backbone, texts, stage.max_length)
    steps = stage.updates(len(rows))
    if steps == 0:
        return
    check_encoder(backbone, stage, name)
    if not rows:
        raise TrainingError(f"{name}: there are no texts to pre-train on")
    decoder, generator = new_decoder(student, context.seed)
    full = backbone.language_model()
    head = head_of(full)
    student.train()

    def loss(batch: Masked) -> dict[str, Tensor]:
        with context.autocast():
            return autoencoding_loss(backbone, head, decoder, batch)

    with backbone.all_trainable(stage.embeddings):
        named = [*full.named_parameters(), *((f"decoder.{key}", value) for key, value in decoder.named_parameters())]
        fit(
            decay_groups(named, stage.learning_rate, stage.weight_decay),
            partial(batches, len(rows), stage.batch_size, steps, context.seed),
            loss,
            draw=partial(draw_masked, backbone, rows, stage, generator),
            memory=InParts(Masked.split),
            steps=steps,
            name=name,
            context=context,
            rates=Rates(stage.warmup, stage.schedule),
            generators=[generator],
        )


def input_rows(backbone: Backbone, texts: list[str], longest: int) -> list[tuple[int, ...]]:
    """[CLS] text [SEP] of every text that has tokens."""
    from d2llm.models.student import TextFormat

    before, after = backbone.framing()
    form = TextFormat(tuple(before), tuple(after), min(longest, backbone.longest))
    return [form.ids(ids) for ids in backbone.tokenize(texts) if ids]


def draw_masked(
    backbone: Backbone, rows: list[tuple[int, ...]], stage: Autoencoding, generator: torch.Generator, members: list[int]
) -> Masked:
    """A batch of these rows, with what is hidden of them drawn anew."""
    ids, mask = backbone.pad([rows[index] for index in members])
    vocabulary = min(len(backbone.tokenizer), backbone.rows)
    return masked(ids, mask, stage, backbone.token("mask")[0], vocabulary, generator)


def new_decoder(student: Student, seed: int) -> tuple[nn.Module, torch.Generator]:
    """The enhanced decoder with random weights of its own stream, and the generator of what is hidden of texts, which
    draws where they are: t² numbers a text.
    """
    import torch

    from d2llm.models.enhanced_decoder import EnhancedDecoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = EnhancedDecoder(student.backbone.model.config).to(student.device)
    return decoder, torch.Generator(student.device).manual_seed(seed)


@dataclass
class Masked:
    """A batch of `[CLS] text [SEP]` rows (n, t), padded on the right, and what is hidden of them: all that is random
    about an update.
    """

    ids: Tensor
    mask: Tensor
    # What the encoder reads, and where (n, t) it has to tell what was there.
    corrupted: Tensor
    hidden: Tensor
    # Where (n, t) the decoder has to: everywhere but at [CLS], [SEP] and padding. What each position sees of the text
    # (n, t, t).
    inner: Tensor
    visible: Tensor

    def split(self, parts: int) -> list[tuple[Masked, dict[str, float]]]:
        """At most so many parts, each with its share of the positions that a term is the mean over."""
        import torch

        whole = self.hidden.sum().item(), self.inner.sum().item()
        chunks = zip(*(torch.chunk(getattr(self, field.name), parts) for field in fields(self)), strict=True)
        return [
            (
                part,
                {"encoder_mlm": part.hidden.sum().item() / whole[0], "decoder_mlm": part.inner.sum().item() / whole[1]},
            )
            for part in (Masked(*chunk) for chunk in chunks)
        ]


def masked(
    ids: Tensor, mask: Tensor, stage: Autoencoding, mask_id: int, vocabulary: int, generator: torch.Generator
) -> Masked:
    """Hide `encoder_mask` of each text from the encoder, and of each position of the decoder `decoder_mask`."""
    import torch

    inner = mask.bool().clone()  # neither [CLS] nor [SEP] nor padding
    inner[:, 0] = False
    inner[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1] = False
    lengths = mask.sum(1)
    hidden = draw(inner, _count(lengths, stage.encoder_mask), generator)
    corrupted = corrupt(ids, hidden, mask_id, vocabulary, generator)
    visible = visible_positions(inner, mask.bool(), _count(lengths, stage.decoder_mask), generator)
    return Masked(ids, mask, corrupted, hidden, inner, visible)


def autoencoding_loss(
    backbone: Backbone, head: Callable[[Tensor], Tensor], decoder: nn.Module, batch: Masked
) -> dict[str, Tensor]:
    """Terms encoder_mlm and decoder_mlm.

    The decoder's queries are position embeddings plus the [CLS] state, its keys and values that state and the
    embeddings of the unmasked text; it predicts all but the first and the last token. One head serves both.
    """
    import torch

    from d2llm.models.fast.token_loss import token_loss

    ids, hidden, inner = batch.ids, batch.hidden, batch.inner
    states = backbone(batch.corrupted, batch.mask)
    encoder = token_loss(head, states[hidden], ids[hidden], backbone.rows)

    embed = backbone.model.embeddings
    sentence = states[:, :1]
    query = embed(inputs_embeds=sentence.expand(-1, ids.shape[1], -1))
    memory = torch.cat([sentence, embed(input_ids=ids)[:, 1:]], dim=1)
    rebuilt = decoder(query, memory, batch.visible)
    return {"encoder_mlm": encoder, "decoder_mlm": token_loss(head, rebuilt[inner], ids[inner], backbone.rows)}


def visible_positions(inner: Tensor, real: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """(n, t, t): what each position sees: all but its own sample of `count` (n,) inner positions, and never itself."""
    import torch

    size, width = inner.shape
    rows = inner[:, None, :].expand(size, width, width).reshape(-1, width)
    hidden = draw(rows, count.repeat_interleave(width), generator).view(size, width, width)
    itself = torch.eye(width, dtype=torch.bool, device=inner.device)
    return real[:, None, :] & ~hidden & ~itself


def draw(candidates: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """A random choice of `count` (n,) True entries in each row of candidates (n, t), all of them where there
    are fewer.
    """
    import torch

    order = torch.rand(candidates.shape, generator=generator, device=generator.device).to(candidates.device)
    rank = order.masked_fill(~candidates, 2.0).argsort(dim=1).argsort(dim=1)
    return candidates & (rank < count[:, None])


def corrupt(ids: Tensor, hidden: Tensor, mask_id: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """BERT's rule for chosen positions: 80% [MASK], 10% a random token of so many, 10% unchanged."""
    import torch

    device = generator.device
    dice = torch.rand(ids.shape, generator=generator, device=device).to(ids.device)
    random = torch.randint(vocabulary, ids.shape, generator=generator, device=device).to(ids.device)
    ids = torch.where(hidden & (dice < 0.8), mask_id, ids)
    return torch.where(hidden & (dice >= 0.9), random, ids)


def _count(lengths: Tensor, rate: float) -> Tensor:
    """Positions to hide of texts that long ([CLS] and [SEP] counted, as published code does), at least one."""
    return (lengths * rate).round().long().clamp(min=1)


METHOD = RetroMAE()

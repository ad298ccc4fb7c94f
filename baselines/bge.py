"""BGE: an encoder with [CLS] pooling and cosine, pre-trained in two stages, fine-tuned with hard negatives.

Source: Xiao et al. 2023, C-Pack (arXiv 2309.07597), and FlagEmbedding. docs/baselines.md lists every deviation.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from baselines.retromae import Autoencoding, autoencode, check_encoder
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
    from torch import Tensor

    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student

# As published for the Chinese models: before queries of retrieval, never before passages or symmetric texts.
INSTRUCTION = "为这个句子生成表示以用于检索相关文章："


class UnsupervisedPairs(PretextStage):
    """Contrastive learning on text pairs that need no label (the paper's "general-purpose fine-tuning")."""

    # The paper's batch of 19,200 needs a cluster; the other numbers are assumptions.
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: PositiveFloat = 1e-4
    # Of this stage's contrast.
    temperature: PositiveFloat = 0.01
    max_length: Annotated[int, Field(ge=4)] = 256
    # "next": a text and the one that follows it; "crop": two random spans of one text; "auto": next where known.
    pairs: Literal["auto", "next", "crop"] = "auto"
    # Shortest span of "crop", as a share of the text.
    shortest: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    def reading(self, recipe: Any, ordered: bool) -> Reading:
        """A text and the next, or two spans of one."""
        cropped = self.pairs == "crop" or (self.pairs == "auto" and not ordered)
        return Reading(sequences=2, around=2, share=(1 + self.shortest) / 2 if cropped else 1.0)


class BGERecipe(Recipe):
    """Rate 1e-5 (large; 2e-5 base, 3e-5 small), temperature of bge-v1.5 (bge: 0.01), groups of 2, lengths 64
    and 256.
    """

    learning_rate: PositiveFloat = 1e-5
    # The trainer's defaults, which its example leaves alone.
    weight_decay: Weight = 0.0
    warmup: Warmup = 0
    schedule: Schedule = "linear"
    temperature: PositiveFloat = 0.02
    hard_negatives: Count | None = 1
    tuning: TunedWeights = TunedWeights(kind="full")
    max_lengths: MaxLengths = MaxLengths(query=64, passage=256, symmetric=256)
    # Before queries of retrieval.
    instruction: str = INSTRUCTION
    # The stages upstream; zero steps where the encoder at hand has been through them.
    pretraining: Autoencoding = Autoencoding()
    # The second of its two pre-training stages.
    unsupervised: UnsupervisedPairs = UnsupervisedPairs()


class BGE(ContrastiveMethod[BGERecipe]):
    """[CLS] state scaled to unit length, cosine."""

    name = "bge"
    title = "BGE"
    citation = "Xiao et al. 2023, C-Pack: Packed Resources For General Chinese Embeddings"
    kind = "encoder"
    pooling = ("cls", {})
    scorer = ("cosine", {})
    Recipe = BGERecipe
    pretext_keys = ("pretraining", "unsupervised", "max_lengths")

    def phrases(self, recipe: BGERecipe) -> tuple[str, ...]:
        """The query instruction."""
        return (recipe.instruction,)

    def make_student(self, backbone: Backbone, recipe: BGERecipe) -> Student:
        """[CLS] text [SEP]; [CLS] instruction text [SEP] for queries of retrieval."""
        from d2llm.models.student import Student, TextFormat, same_formats

        backbone.tune(recipe.tuning)
        cls, sep = backbone.framing()
        formats = same_formats(recipe.max_lengths, cls, sep)
        instruction = backbone.phrase(recipe.instruction) if recipe.instruction else []
        formats["query", "asymmetric"] = TextFormat((*cls, *instruction), tuple(sep), recipe.max_lengths.query)
        return Student(backbone, *self.parts(recipe), formats, normalize=True, method=self.name)

    def check(self, student: Student, recipe: BGERecipe, ordered: bool) -> None:
        """The encoder of its first stage, the pairs of its second."""
        check_encoder(student.backbone, recipe.pretraining, f"{self.name}, pre-training")
        check_order(recipe.unsupervised, ordered, f"{self.name}, unsupervised pairs")

    def pretext(self, student: Student, texts: list[str], recipe: BGERecipe, context: TrainingContext) -> None:
        """RetroMAE pre-training, then unsupervised pairs."""
        autoencode(student, texts, recipe.pretraining, context, f"{self.name}, pre-training")
        contrast_pairs(student, texts, recipe.unsupervised, context, f"{self.name}, unsupervised pairs")


def check_order(stage: UnsupervisedPairs, ordered: bool, name: str) -> None:
    """Refuse pairs of a text and the next where no text is known to follow another."""
    from d2llm.run.errors import TrainingError

    if stage.trains and stage.pairs == "next" and not ordered:
        raise TrainingError(f"{name}: pairs is next, but these texts have no known order; set it to crop")


def contrast_pairs(
    student: Student, texts: list[str], stage: UnsupervisedPairs, context: TrainingContext, name: str
) -> None:
    """Cross-entropy of each text's partner among the batch's, without those that are right for it (`contrastive`)."""
    from d2llm.methods.losses import in_batch_contrast
    from d2llm.methods.parameters import decay_groups
    from d2llm.run.errors import TrainingError
    from d2llm.training.loop import Rates, fit
    from d2llm.training.memory import FewerTexts
    from d2llm.training.optimization import batches

    pairs = Pairs(student, texts, stage, context, name)
    steps = stage.updates(len(pairs))
    if steps == 0:
        return
    if len(pairs) < 2:
        raise TrainingError(f"{name}: {len(pairs)} usable text pairs; at least 2 are needed")
    student.train()

    def loss(drawn: tuple[list[tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
        rows, allowed = drawn
        with context.autocast():
            embedded = student.embed_ids(rows)
        a, b = embedded.chunk(2)
        scores = student.scorer.matrix(a, b, "symmetric")
        return {"info_nce": in_batch_contrast(scores, stage.temperature, allowed.to(scores.device))}

    with student.backbone.all_trainable(stage.embeddings):
        fit(
            decay_groups(student.backbone.named_parameters(), stage.learning_rate, stage.weight_decay),
            partial(batches, len(pairs), stage.batch_size, steps, context.seed + 1),
            loss,
            draw=pairs.draw,
            memory=FewerTexts(student, lambda batch: 2 * stage.batch_size, context.autocast),
            steps=steps,
            name=name,
            context=context,
            rates=Rates(stage.warmup, stage.schedule),
            generators=[pairs.generator],
        )


class Pairs:
    """A text and the one that follows it, or two spans of one text, as token ids; texts too short for that are left
    out.
    """

    def __init__(
        self, student: Student, texts: list[str], stage: UnsupervisedPairs, context: TrainingContext, name: str
    ) -> None:
        import torch

        from d2llm.methods.text_ids import PairTextIds
        from d2llm.models.student import TextFormat

        check_order(stage, context.next_texts is not None, name)
        plain, backbone = student.formats["passage", "symmetric"], student.backbone
        self.form = TextFormat(plain.prefix, plain.suffix, min(stage.max_length, backbone.longest))
        self.shortest, self.cropped = stage.shortest, stage.pairs == "crop" or context.next_texts is None
        partners = texts if self.cropped or context.next_texts is None else context.next_texts
        first = backbone.tokenize(texts)
        second = first if self.cropped else backbone.tokenize(partners)
        usable = [
            i for i, (a, b) in enumerate(zip(first, second, strict=True))
            if (len(a) > 1 if self.cropped else a and b and a != b)
        ]  # fmt: skip
        self.pairs = [(first[i], second[i]) for i in usable]
        none: list[tuple[str, ...]] = [()] * len(usable)
        names = [name] * len(usable)
        self.ids = PairTextIds(names, [texts[i] for i in usable], [partners[i] for i in usable], none, none)
        self.generator = torch.Generator().manual_seed(context.seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def draw(self, members: list[int]) -> tuple[list[tuple[int, ...]], Tensor]:
        """Inputs of the members' first texts, then of their partners, and (n, n) whether partner j may be a negative of
        text i.
        """
        import torch

        chosen = [self.pairs[index] for index in members]
        if self.cropped:
            share, random = self.shortest, self.generator
            chosen = [(crop(a, share, random), crop(b, share, random)) for a, b in chosen]
        partners = [self.form.ids(b) for _, b in chosen]
        # Nor is a partner a negative that is fed the same as one's own, cut or of unknown characters.
        place = {row: number for number, row in enumerate(partners)}
        same = torch.tensor([place[row] for row in partners])
        batch = self.ids.of(members)
        allowed = torch.from_numpy(~batch.are_right(batch.positives)) & (same[:, None] != same)
        return [self.form.ids(a) for a, _ in chosen] + partners, allowed


def crop(ids: tuple[int, ...], shortest: float, generator) -> tuple[int, ...]:
    """A random span of at least that share of the tokens (Izacard et al. 2022, independent cropping)."""
    import torch

    least = max(1, -int(-len(ids) * shortest // 1))
    length = int(torch.randint(least, len(ids) + 1, (), generator=generator))
    start = int(torch.randint(0, len(ids) - length + 1, (), generator=generator))
    return ids[start : start + length]


METHOD = BGE()

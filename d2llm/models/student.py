"""A bi-encoder: backbone, pooling and a scorer of pairs, with the text formats of its method."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.config.recipes import MaxLengths, Mode, Role
from d2llm.config.registry import Spec
from d2llm.models.backbone import Backbone
from d2llm.models.batch import Batch, Embedded
from d2llm.models.parts import build_pooling, build_scorer
from d2llm.models.precision import embedding, scoring, wide
from d2llm.run.artifacts import write_json
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError
from d2llm.run.logs import progress
from d2llm.run.paths import EXAMPLE, STUDENT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.nn import Parameter

    from d2llm.models.poolings.base import Pooling
    from d2llm.models.scorers.base import Scorer

Rows = list[tuple[int, ...]]


class Embedding(Protocol):
    """How a training embeds a batch that does not fit into memory at once (`training.gradient_cache`)."""

    size: int

    def forward(self, rows: Rows) -> Tensor:
        """Embeddings (n, d) of rows, whose gradient `backward` sends on."""
        ...

    def backward(self) -> None:
        """After the loss's backward pass: the gradients of the weights that embed."""
        ...

    def halve(self) -> None:
        """Half as many texts at a time from now on."""
        ...


class Sharing(Protocol):
    """How several processes share the embedding of a batch (`training.parallel`)."""

    def embed(self, rows: Rows, embed: Callable[[Rows], Tensor]) -> Tensor:
        """Embeddings (n, d) of rows, of which this process embeds some."""
        ...

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """After the backward pass: the mean over processes of every gradient."""
        ...


# Cost of one more forward pass in padded tokens (measured at width 128, where a pass is cheapest), and the most passes
# a call is split into.
PASS_COST, MOST_PASSES = 64, 5
# Places considered for a cut; of more, every other (third, …) is.
MOST_CUTS = 64
# Of a corpus, texts that are tokenised at a time.
TEXTS_AT_ONCE = 4096
# Bump when the layout of a saved student changes.
LAYOUT = 1


@dataclass(frozen=True)
class TextFormat:
    """What stands around a text, as token ids, and how long all of it may be.

    filler: a token with which inputs of fewer than `filled` tokens are filled up (ColBERT's query augmentation).
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_length: int = 512
    filler: int | None = None
    filled: int = 0

    def __post_init__(self) -> None:
        if len(self.prefix) + len(self.suffix) >= self.max_length:
            raise TrainingError(
                f"{self.max_length} tokens leave no room for a text between {len(self.prefix)} prefix and "
                f"{len(self.suffix)} suffix tokens; raise max_lengths or training.max_length"
            )

    def ids(self, text_ids: tuple[int, ...] | list[int]) -> tuple[int, ...]:
        """The whole input; a text too long is cut at its end, prefix and suffix never are."""
        room = self.max_length - len(self.prefix) - len(self.suffix)
        whole = (*self.prefix, *text_ids[:room], *self.suffix)
        return (
            whole if self.filler is None else whole + (self.filler,) * (min(self.filled, self.max_length) - len(whole))
        )


Formats = dict[tuple[Role, Mode], TextFormat]


def same_formats(lengths: MaxLengths, prefix: Sequence[int] = (), suffix: Sequence[int] = ()) -> Formats:
    """One prefix and suffix for every role and mode, each with its own longest input."""
    return {
        (role, mode): TextFormat(tuple(prefix), tuple(suffix), lengths.of(role, mode))
        for mode in get_args(Mode)
        for role in get_args(Role)
    }


class Student(nn.Module):
    """Turns texts into embeddings (n, d) and scores pairs of embeddings.

    formats: for every (role, mode) the text format. padding: the side, as the method's published code has it.
    normalize: whether embeddings are scaled to unit length. method: name, for the record. unpooled: how many leading
    tokens the pooling leaves out (the first position of many decoders is where idle attention goes; its state is huge).
    """

    def __init__(
        self,
        backbone: Backbone,
        pooling: Spec,
        scorer: Spec,
        formats: Formats,
        padding: Literal["right", "left"] = "right",
        normalize: bool = False,
        method: str = "",
        unpooled: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling_spec, self.scorer_spec = pooling, scorer
        self.pooling = build_pooling(pooling[0], backbone.hidden_size, **pooling[1])
        self.scorer = build_scorer(scorer[0], _width(self.pooling, backbone.hidden_size), **scorer[1])
        _check_fit(self.pooling, self.scorer)
        limit = backbone.longest
        self.formats: Formats = {
            key: form if form.max_length <= limit else replace(form, max_length=limit) for key, form in formats.items()
        }
        self.padding: Literal["right", "left"] = padding
        self.normalize = normalize
        self.method = method
        self.unpooled = unpooled
        # Set by a training whose batches do not fit into memory at once.
        self.cache: Embedding | None = None
        # Set by a training over several processes.
        self.shares: Sharing | None = None

    # ------------------------------------------------------------------------------------------------------ embedding
    @property
    def width(self) -> int:
        """d: how many numbers an embedding holds."""
        longest = max(form.max_length for form in self.formats.values())
        return self.pooling.width(self.backbone.hidden_size, longest)

    @property
    def device(self) -> torch.device:
        """Where the backbone lives."""
        return next(self.backbone.parameters()).device

    def embedding(self) -> AbstractContextManager:
        """The context in which texts are embedded without gradients (`precision.embedding`)."""
        return embedding(next(self.backbone.parameters()))

    def ids(self, texts: list[str], role: Role, mode: Mode, remember: bool = True) -> list[tuple[int, ...]]:
        """The exact token ids fed for each text; a text without any token is one padding token, as attention needs one.

        Raises ValueError for a role or mode there is not.
        """
        form = self.formats.get((role, mode))
        if form is None:
            name, value, known = ("mode", mode, Mode) if role in get_args(Role) else ("role", role, Role)
            raise ValueError(f"{name} is one of {', '.join(get_args(known))}, found {value!r}")
        return [form.ids(ids) or (self.backbone.pad_id,) for ids in self.backbone.tokenize(texts, remember)]

    def limit_length(self, tokens: int) -> None:
        """Shorten every format that allows more than this many tokens (the limit all methods of a comparison share)."""
        for key, form in self.formats.items():
            self.formats[key] = replace(form, max_length=min(tokens, form.max_length))

    def pool(self, rows: list[tuple[int, ...]]) -> Tensor:
        """Embeddings (n, d) of token id rows in one forward pass, in float32 at least."""
        states, mask = self.backbone.states(rows, self.padding, lambda mask: self.pooling.read(self._pooled(mask)))
        vectors = wide(self.pooling(states, self._pooled(mask)))
        if vectors.shape[1] < self.width:  # of every token, in a pass without the longest texts there may be
            vectors = F.pad(vectors, (0, self.width - vectors.shape[1]))
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _pooled(self, mask: Tensor) -> Tensor:
        """(n, t) → (n, t): of the real tokens, those that the pooling is given."""
        return mask * (mask.cumsum(1) > self.unpooled) if self.unpooled else mask

    def embed_ids(self, rows: list[tuple[int, ...]]) -> Tensor:
        """Embeddings (n, d) of token id rows: equal rows run once, rows of like length run together."""
        if not rows:
            return torch.zeros(0, self.width, device=self.device)
        unique = sorted(dict.fromkeys(rows), key=len)
        training = torch.is_grad_enabled()
        embed = self.cache.forward if self.cache is not None and training else self.passes
        vectors = self.shares.embed(unique, embed) if self.shares is not None and training else embed(unique)
        place = {row: index for index, row in enumerate(unique)}
        index = torch.tensor([place[row] for row in rows], device=self.device)
        return vectors.index_select(0, index)

    def passes(self, rows: list[tuple[int, ...]]) -> Tensor:
        """Embeddings (n, d) of rows sorted by length: those that need no padding in one forward pass, others in as many
        as cost least.
        """
        lengths = [len(row) for row in rows]
        whole = bisect_right(lengths, self.backbone.reach) if self.backbone.unpadded else 0
        padded = [whole + end for end in split_by_length(lengths[whole:])] if whole < len(rows) else []
        ends = [whole, *padded] if whole else padded
        return torch.cat([self.pool(rows[start:end]) for start, end in zip([0, *ends], ends, strict=False)])

    def embed(self, texts: list[str], role: Role, mode: Mode) -> Tensor:
        """Embeddings (n, d), with gradients."""
        return self.embed_ids(self.ids(texts, role, mode))

    def embed_batch(self, batch: Batch) -> Embedded:
        """Embeddings of all texts of a training batch, computed together."""
        queries, count, width = len(batch), len(batch.positives), batch.negative_count
        passages = [*batch.positives, *(text for row in batch.negatives for text in row)]
        rows = self.ids(batch.queries, "query", batch.mode) + self.ids(passages, "passage", batch.mode)
        q, p, n = self.embed_ids(rows).split([queries, count, count * width])
        return Embedded(q=q, p=p, n=n.view(count, width, self.width))

    def forward(self, batch: Batch) -> Embedded:
        """`embed_batch`, so that wrappers which intercept calls (distributed training) see the pass."""
        return self.embed_batch(batch)

    @torch.no_grad()
    def encode(self, texts: list[str], role: Role, mode: Mode = "asymmetric", batch_size: int = 256) -> np.ndarray:
        """Embeddings (n, d), float32, in evaluation mode; batches hold texts of like length. A GPU computes them in
        half precision, unless `gpu.half` says otherwise.

        role: "query" or "passage"; mode: "asymmetric" for a question and what answers it, "symmetric" for two sentences
        of a kind. Raises ValueError for any other, TypeError for one text in place of several.

        >>> student = Student.load("model")
        >>> vectors = student.encode(["人在看书。", "猫不吃花。"], "passage")
        >>> vectors.shape, str(vectors.dtype)
        ((2, 32), 'float32')
        """
        check_several("texts", texts)
        was_training = self.training
        self.eval()
        try:
            # A corpus is held as numbers of four bytes: as tuples its token ids would take ten times that.
            parts = (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))
            rows = [array("i", ids) for part in parts for ids in self.ids(part, role, mode, remember=False)]
            order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
            out = np.zeros((len(rows), self.width), dtype=np.float32)
            starts = range(0, len(order), batch_size)
            with self.embedding():
                for start in progress(starts, "embedding, batches") if len(starts) > 1 else starts:
                    members = order[start : start + batch_size]
                    out[members] = self.pool([tuple(rows[index]) for index in members]).float().cpu().numpy()
        finally:
            self.train(was_training)
        return out

    @torch.inference_mode()
    def score(
        self, queries: list[str], passages: list[str], mode: Mode = "asymmetric", batch_size: int = 256
    ) -> np.ndarray:
        """(n,) scores of query i with passage i, float32: the IEM's logits, which rank and are no calibrated
        probabilities, or cosines.

        Raises ValueError for lists of different lengths, TypeError for one text in place of several.

        >>> student = Student.load("model")
        >>> student.score(["人在看书。", "人在看书。"], ["人在看书。", "猫不吃花。"], mode="symmetric").shape
        (2,)
        """
        check_several("queries", queries)
        check_several("passages", passages)
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries and {len(passages)} passages: expected one passage a query")
        sides: list[tuple[list[str], Role, Callable[[Tensor], Tensor]]] = [
            (queries, "query", self.scorer.query_cache),
            (passages, "passage", self.scorer.passage_cache),
        ]
        parts = []
        for texts, role, part in sides:
            distinct = list(dict.fromkeys(texts))
            place = {text: row for row, text in enumerate(distinct)}
            vectors = torch.from_numpy(self.encode(distinct, role, mode, batch_size)).to(self.device)
            rows = torch.tensor([place[text] for text in texts], device=self.device)
            with scoring():
                parts.append(part(vectors).index_select(0, rows))
        left, right = parts
        with scoring():
            return self.scorer.pairs_cached(left, right, mode).float().cpu().numpy()

    @torch.inference_mode()
    def attention(self, text: str, role: Role = "query", mode: Mode = "asymmetric") -> tuple[list[str], np.ndarray]:
        """(tokens, (tokens, heads) shares) of a text under PMA: what the pooled value of each head is made of. Other
        poolings raise ConfigError.
        """
        rows = self.ids([text], role, mode)
        states, mask = self.backbone.states(rows, self.padding)
        tokens = [self.backbone.tokenizer.decode([token]) for token in rows[0]]
        return tokens, self.pooling.attention(states, self._pooled(mask))[0].float().cpu().numpy()

    # ------------------------------------------------------------------------------------------------------- training
    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Named parameters of pooling and scorer."""
        for part in ("pooling", "scorer"):
            for name, parameter in getattr(self, part).named_parameters():
                yield f"{part}.{name}", parameter

    def trainable(self) -> list[str]:
        """Names of the parameters that train."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def parameter_counts(self) -> dict[str, int]:
        """How many scalars train and how many there are: backbone_trained, head_trained, total."""
        added = self.backbone.added_rows()  # which the matrix has a place for
        return {
            "backbone_trained": self.backbone.trained_count(),
            "head_trained": sum(p.numel() for _, p in self.head_parameters() if p.requires_grad),
            "total": sum(p.numel() for p in self.parameters()) - (0 if added is None else added.numel()),
        }

    # -------------------------------------------------------------------------------------------------- save and load
    def save(self, folder: str | Path, base: str | Path | None = None) -> None:
        """Write `backbone/` (Hugging Face format, LoRA merged), `student.safetensors` and `student.json`.

        With the folder of the `base` its backbone started from, `backbone/` is what differs from that: it then needs
        the base where it is, seen from there. The folder must exist and be private to the caller (write below
        `artifacts.atomic`).
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder / "backbone", base)
        head = {
            f"{part}.{name}": value.detach().cpu().contiguous()
            for part in ("pooling", "scorer")
            for name, value in getattr(self, part).state_dict().items()
        }
        save_file(head, str(folder / "student.safetensors"))
        write_json(folder / "student.json", self.description())

    def description(self) -> dict[str, Any]:
        """What `load` needs besides the weights."""
        return {
            "layout": LAYOUT,
            "method": self.method,
            "kind": self.backbone.kind,
            "hidden_size": self.backbone.hidden_size,
            "pooling": {"name": self.pooling_spec[0], "options": self.pooling_spec[1]},
            "scorer": {"name": self.scorer_spec[0], "options": self.scorer_spec[1]},
            "normalize": self.normalize,
            "padding": self.padding,
            "unpooled": self.unpooled,
            "formats": [
                {"role": role, "mode": mode, **asdict(form)} for (role, mode), form in sorted(self.formats.items())
            ],
            "parameters": self.parameter_counts(),
        }

    @classmethod
    def load(cls, folder: str | Path, *, dtype: str | torch.dtype = "float32") -> Student:
        """A saved student, ready to encode; the method's module is not needed. Raises ArtifactError when damaged, or
        when none is there.
        """
        folder = Path(folder)
        if not (folder / "student.json").is_file():
            raise ArtifactError(f"{folder}: {_none_here(folder)}")
        try:
            return cls._read(folder, dtype).eval()
        except ArtifactError:
            raise
        except Exception as error:  # noqa: BLE001 - any way a file can be broken ends in the same advice
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ArtifactError(
                f"{folder}: not a saved student ({type(error).__name__}: {first}); remove it and run snakemake again"
            ) from error

    @classmethod
    def _read(cls, folder: Path, dtype: str | torch.dtype) -> Student:
        import json

        from safetensors.torch import load_file

        described = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        if described["layout"] != LAYOUT:
            raise ArtifactError(f"{folder}: saved with layout {described['layout']}, this version reads {LAYOUT}")
        student = cls(
            Backbone.load(folder / "backbone", described["kind"], dtype=dtype),
            (described["pooling"]["name"], described["pooling"]["options"]),
            (described["scorer"]["name"], described["scorer"]["options"]),
            dict(map(_read_format, described["formats"])),
            padding=described["padding"],
            normalize=described["normalize"],
            method=described["method"],
            unpooled=described.get("unpooled", 0),
        )
        head = load_file(str(folder / "student.safetensors"))
        for part in ("pooling", "scorer"):
            state = {name[len(part) + 1 :]: value for name, value in head.items() if name.startswith(f"{part}.")}
            getattr(student, part).load_state_dict(state)
        return student


def check_several(name: str, texts: Iterable[str]) -> None:
    """Raise TypeError for one text where several belong: it would pass for a sequence, of its letters."""
    if isinstance(texts, str):
        raise TypeError(f"{name}: expected a list of texts; found one text, {texts[:40]!r}: put it in brackets")


def _none_here(folder: Path) -> str:
    """What to say of a folder without a student; it may hold anything, so nothing of it is to be removed."""
    why = "student.json is missing" if folder.is_dir() else "no such folder"
    near = [
        place for place in (folder / "model", folder / STUDENT, folder.parent) if (place / "student.json").is_file()
    ]
    mend = f"{near[0]} has one" if near else f"expected a run's folder, like {EXAMPLE}, or an exported one"
    return f"no student here ({why}); {mend}"


def _read_format(form: dict[str, Any]) -> tuple[tuple[Role, Mode], TextFormat]:
    """A format as student.json has it, by its role and mode."""
    prefix, suffix = tuple(form["prefix"]), tuple(form["suffix"])
    text_format = TextFormat(prefix, suffix, form["max_length"], form.get("filler"), form.get("filled", 0))
    return (form["role"], form["mode"]), text_format


def _width(pooling: Pooling, hidden_size: int) -> int:
    """Numbers of the vector of a text of one token, by which scorers of a vector a text are built: all their texts'
    vectors have as many.

    Raises ConfigError where a pooling's `width` does not say what it gives: the first pass of a training would tell, in
    PyTorch's words.
    """
    declared = pooling.width(hidden_size, 1)
    with torch.no_grad():  # in evaluation mode: a dropout would draw from the stream of the run
        actual = pooling.eval()(torch.zeros(1, 1, hidden_size), torch.ones(1, 1, dtype=torch.long)).shape[1]
    pooling.train()
    if actual != declared:
        raise ConfigError(
            f"pooling {pooling.name}: its width says {declared} numbers a text, it gives {actual}; override width"
        )
    return declared


def _check_fit(pooling: Pooling, scorer: Scorer) -> None:
    """A vector a token and MaxSim go together, with equal sizes. Raises ConfigError."""
    sizes = pooling.token_size, scorer.token_size
    if sizes[0] != sizes[1]:
        words = ["one vector a text" if size is None else f"{size} numbers a token" for size in sizes]
        raise ConfigError(f"pooling {pooling.name} gives {words[0]}, scorer {scorer.name} takes {words[1]}")


def split_by_length(lengths: list[int]) -> list[int]:
    """Where to cut ascending lengths into at most `MOST_PASSES` passes so that padding costs least; the ends, last
    included.

    Cost of a pass: rows × longest row, plus a constant. Exact over all cuts between different lengths (up to 64).
    """
    count = len(lengths)
    cuts = [index for index in range(1, count) if lengths[index] != lengths[index - 1]]
    cuts = [*cuts[:: 1 + len(cuts) // MOST_CUTS], count]

    def cost(start: int, end: int) -> int:
        return (end - start) * lengths[end - 1] + PASS_COST

    best: dict[int, tuple[int, list[int]]] = {end: (cost(0, end), [end]) for end in cuts}
    answer = best[count]
    for _ in range(MOST_PASSES - 1):
        step: dict[int, tuple[int, list[int]]] = {}
        for end in cuts:
            options = [(value + cost(start, end), [*ends, end]) for start, (value, ends) in best.items() if start < end]
            if options:
                step[end] = min(options)
        best = step
        if count in best:
            answer = min(answer, best[count])
    return answer[1]

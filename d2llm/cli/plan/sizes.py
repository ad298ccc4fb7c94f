"""The sizes of base models and what a pass through one costs: FLOPs, bytes.

Sizes are read from `config.json`: of the base model as stage `base` has left it, of a folder, of the hub's cache, and
of the hub itself where that is allowed. Nothing here imports torch or transformers, as the workflow asks too. The
arithmetic is the usual one: 2 FLOPs a weight and token forward, plus attention; backward twice as much, once where the
weights stay (Kaplan et al. 2020, section 2.1; Korthikanti et al. 2022, section 4.1 for activations).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.recipes import TunedWeights, tokens_of
from d2llm.config.sections import BaseSettings, PretrainedSettings
from d2llm.models.base.classifier import classifies
from d2llm.models.base.pretrained import check_layers, located
from d2llm.run.errors import ConfigError, first_line
from d2llm.run.hub import patiently
from d2llm.run.jobs import current
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config


@dataclass(frozen=True)
class Sizes:
    """A transformer's sizes, how many tokens of its tokenizer one of `tokens_of` is, and whether it is a classifier of
    pairs, which reads each on its own.
    """

    hidden: int
    layers: int
    query_width: int
    kv_width: int
    intermediate: int
    vocabulary: int
    gated: bool
    tied: bool
    ratio: float = 1.0
    pairwise: bool = False

    @property
    def layer(self) -> int:
        """Weights of the matrices of one layer."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def body(self) -> int:
        """Weights of all layers."""
        return self.layers * self.layer

    @property
    def embeddings(self) -> int:
        """Weights of input embeddings, and of the head where it has its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.body + self.embeddings

    def forward(self, tokens: float, length: float) -> float:
        """FLOPs of a forward pass over texts of about `length` tokens, without a head."""
        return tokens * (2 * self.body + self._attention(length))

    def _attention(self, length: float) -> float:
        """FLOPs a token of the two products between tokens."""
        return 4 * self.layers * self.query_width * length

    def update(self, tuning: TunedWeights, tokens: float, length: float) -> float:
        """FLOPs of a forward and a backward pass by what of it trains."""
        if tuning.kind == "full":
            return 3 * self.forward(tokens, length)
        first = min(tuning.first_layer if tuning.kind == "lora" else 0, self.layers)
        # Gradients reach no layer below the first that trains, and not what its queries, keys and values are made of,
        # unless a bias lies below, as under an encoder's layers.
        passed = (1 - first / self.layers) * (2 * self.body + 2 * self._attention(length))
        if tuning.kind == "lora" or self.gated:
            passed -= 2 * self.hidden * (self.query_width + 2 * self.kv_width)
        activations = tokens * max(0.0, passed)
        adapters = 6 * tokens * self.trainable(tuning) if tuning.kind == "lora" else 0.0
        return self.forward(tokens, length) + activations + adapters

    def trainable(self, tuning: TunedWeights) -> int:
        """Weights that train."""
        if tuning.kind == "full":
            return self.parameters - (0 if tuning.embeddings else self.vocabulary * self.hidden)
        if tuning.kind == "bitfit":
            return 10 * self.hidden * self.layers
        return self.lora(tuning.r, tuning.first_layer)

    def changed(self, tuning: TunedWeights) -> int:
        """Weights that a tuned body has of its own: those that train, or that adapters are merged into. Rows of new
        tokens are too few to count.
        """
        if tuning.kind == "lora":
            return self.layer * max(0, self.layers - tuning.first_layer)
        return self.trainable(tuning) if tuning.kind == "bitfit" else self.body + self.vocabulary * self.hidden

    def lora(self, rank: int, first: int = 0) -> int:
        """Weights of adapters on every matrix from a layer on."""
        ends = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.kv_width)
        ends += (3 if self.gated else 2) * (self.hidden + self.intermediate)
        return rank * ends * max(0, self.layers - first)

    def activations(self, tokens: float, size: int) -> float:
        """Bytes kept of a forward pass for the backward one, attention by blocks (nothing kept of its matrix)."""
        return tokens * self.layers * (12 * self.hidden + 4 * self.intermediate) * size


# What stands in where a configuration cannot be had: of a model of seven billion weights, of an encoder of 300 million.
USUAL = {
    "decoder": Sizes(4096, 32, 4096, 4096, 11008, vocabulary=152_000, gated=True, tied=False),
    "encoder": Sizes(1024, 24, 1024, 1024, 4096, vocabulary=22_000, gated=False, tied=True),
}
# What families call their sizes; who leaves the feed-forward's out has four times the model's width.
HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer")
HEADS = ("num_attention_heads", "n_head")
FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")
# Families whose layers have no gate, and whose head is the embeddings unless their configuration says otherwise.
ENCODERS = ("bert", "roberta", "xlm-roberta", "electra")
UNGATED = (*ENCODERS, "gpt2", "bloom", "opt")


def all_sizes(config: Config, texts: Sequence[str], online: bool) -> tuple[dict[str, Sizes], list[str]]:
    """The sizes of every base model by name, and what was assumed. `texts`: some of the run's, which tell how a
    tokenizer divides them; `online`: whether the hub may be asked.

    Raises ConfigError or ArtifactError where the configuration of a model that is named cannot be had.
    """
    by_name, guesses = {}, []
    for name in config.models.names():
        settings, where = config.models.of(name), f"models.{name}.source"
        try:
            known = sizes(settings, where, Paths.of(config).base(name) if current(config, "base", model=name) else None)
        except LookupError:
            if online:
                known = sizes(settings, where, _asked(settings, where))
            else:
                known = _by_name(settings, name)
                guesses.append(f"the size of {name}, {known.parameters / 1e9:.1f} G parameters")
        ratio = _ratio(config, name, texts, online)
        by_name[name] = replace(known, ratio=ratio) if ratio else known
    return by_name, guesses


def row_sizes(config: Config, online: bool) -> tuple[dict[str, Sizes], list[str]]:
    """The sizes of the published models among the reference rows, by name, and what was assumed.

    Read from what is here or, where it may be asked, on the hub; else judged by the model's name.
    """
    by_name, guesses = {}, []
    for name, row in config.published().items():
        folder = Paths.of(config).published(name) if current(config, "published", row=name) else None
        try:
            if online and folder is None and row.checkpoint().origin == "hub":
                from d2llm.evaluation import published  # loads mteb, whose registry knows revisions

                where, known = published.check(row)
                folder = _asked(row.checkpoint(known.revision if known else None), where)
            by_name[name] = sizes(row.checkpoint(), f"references.{name}.model", folder)
        except (LookupError, ConfigError):  # modules of sentence-transformers may lie in folders of any name
            by_name[name] = _by_name(row.checkpoint(), "encoder")
            guesses.append(f"the size of {name}, {by_name[name].parameters / 1e9:.1f} G parameters")
    return by_name, guesses


def _by_name(settings: BaseSettings | PretrainedSettings, name: str) -> Sizes:
    """The sizes of a model of which nothing is here: those of a usual one, scaled to the size that its name gives
    ("-1.5B").
    """
    usual = USUAL["encoder" if name == "encoder" else "decoder"]
    billions = re.search(r"(\d+(?:\.\d+)?)B\b", getattr(settings, "source", ""))
    if not billions:
        return usual
    scale = math.sqrt(float(billions[1]) * 1e9 / usual.parameters)
    widths = ("hidden", "query_width", "kv_width", "intermediate")
    return replace(usual, **{width: round(scale * getattr(usual, width)) for width in widths})


def sizes(settings: BaseSettings | PretrainedSettings, where: str, folder: Path | None = None) -> Sizes:
    """The sizes of a base model; of a checkpoint by its configuration in `folder`, else where it lies.

    Raises LookupError for one of the hub of which nothing is here, ConfigError for what is not there or cannot be.
    """
    if isinstance(settings, BaseSettings):
        width, inner = settings.hidden_size, settings.intermediate_size
        return Sizes(width, settings.layers, width, width, inner, vocabulary=2000, gated=True, tied=True)
    if folder is None and (file := located_gguf(settings, where)):
        return _cut(_of_gguf(file), settings, where)
    folder = folder or _folder(settings, where)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _cut(of_config(config), settings, where)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: {folder / 'config.json'}: cannot be read ({first_line(error)})") from error


def of_config(config: Mapping[str, Any]) -> Sizes:
    """The sizes a checkpoint's configuration tells. Raises KeyError for one that lacks them."""
    config = {**config, **(config.get("text_config") or {})}

    def first_of(names: Sequence[str]) -> int | None:
        return next((config[name] for name in names if config.get(name)), None)

    hidden, layers, heads = map(first_of, (HIDDEN, LAYERS, HEADS))
    if not hidden or not layers or not heads:
        raise KeyError(f"expected {HIDDEN[0]}, {LAYERS[0]} and {HEADS[0]}")
    width = config.get("head_dim") or hidden // heads
    gated = config.get("model_type") not in UNGATED
    return Sizes(
        hidden=hidden,
        layers=layers,
        query_width=heads * width,
        kv_width=(config.get("num_key_value_heads") or heads) * width,
        intermediate=first_of(FEED_FORWARD) or 4 * hidden,
        vocabulary=config["vocab_size"],
        gated=gated,
        tied=bool(config.get("tie_word_embeddings", not gated)),
        pairwise=classifies(config.get("architectures")),
    )


def _of_gguf(file: Path) -> Sizes:
    """The sizes a GGUF file's head tells."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    family = fields["general.architecture"].contents()
    known = {key.removeprefix(f"{family}."): field for key, field in fields.items() if key.startswith(f"{family}.")}
    names = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count"}
    names |= {"num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv"}
    names |= {"intermediate_size": "feed_forward_length"}
    read = {name: known[key].contents() for name, key in names.items() if key in known}
    vocabulary = len(fields["tokenizer.ggml.tokens"].data)
    return of_config(read | {"model_type": family, "vocab_size": vocabulary, "tie_word_embeddings": True})


def _cut(known: Sizes, settings: PretrainedSettings, where: str) -> Sizes:
    """Of the layers that are kept; of a model that is cut already, of all."""
    if settings.layers is None or settings.layers == known.layers:
        return known
    check_layers(settings.layers, known.layers, f"{where.removesuffix('.source')}.layers")
    return replace(known, layers=settings.layers)


def located_gguf(settings: PretrainedSettings, where: str) -> Path | None:
    """The GGUF file of a checkpoint that is one."""
    if settings.origin == "hub":
        return None
    folder, file = located(settings, where, weights=False)
    return folder / file if file else None


def _folder(settings: PretrainedSettings, where: str) -> Path:
    """Where a checkpoint's small files lie on this machine. Raises LookupError for one of the hub that does not."""
    if settings.origin != "hub":
        return located(settings, where, weights=False)[0]
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(settings.source, "config.json", revision=settings.revision)
    if not isinstance(path, str):
        raise LookupError(settings.source)
    return Path(path).parent


def _asked(settings: BaseSettings | PretrainedSettings, where: str, file: str = "config.json") -> Path:
    """The folder of a hub's small file, which is fetched."""
    from huggingface_hub import hf_hub_download

    assert isinstance(settings, PretrainedSettings)  # others are here
    fetch = partial(hf_hub_download, settings.source, file, revision=settings.revision)
    what = f"{settings.source} at {settings.revision or 'its newest revision'}"
    return Path(patiently(fetch, what, where, waits=())).parent


def _ratio(config: Config, name: str, texts: Sequence[str], online: bool) -> float | None:
    """Tokens of a model's tokenizer for one of `tokens_of`; None without texts, or where it is not here as one file."""
    settings, file = config.models.of(name), "tokenizer.json"
    expected = sum(map(tokens_of, texts))
    if not expected:
        return None
    from tokenizers import Tokenizer

    try:
        if current(config, "base", model=name):
            folder = Paths.of(config).base(name)
        elif isinstance(settings, PretrainedSettings):
            folder = _asked(settings, name, file) if online and settings.origin == "hub" else _folder(settings, name)
        else:
            return None
        tokenizer = Tokenizer.from_file(str(folder / file))
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more particular; the plan then says what it assumed
        return None
    return sum(map(len, tokenizer.encode_batch(list(texts), add_special_tokens=False))) / expected

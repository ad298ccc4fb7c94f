"""The transformer body of a student with its tokenizer: any Hugging Face decoder or encoder, no head."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from d2llm.models.added_rows import added_rows, only_rows, train_rows
from d2llm.models.base import remote, shared
from d2llm.models.fast.last_layer import only_at
from d2llm.models.fast.packing import end_to_end, layout, packs, padding_mask
from d2llm.models.lora import adapters, add_lora, merge_lora
from d2llm.models.positions import first_position, position_table, reach
from d2llm.models.tokens import framing, pad_id, rows_of, token_ids, unknown_to_the_model
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Kind = Literal["decoder", "encoder"]
Side = Literal["right", "left"]
# Texts remembered by `tokenize`; beyond it texts are tokenised anew, so that memory stays bounded on large data.
CACHED_TEXTS = 400_000
# Tokens of the longest text by which packing is tried.
TRIED = 4


class Backbone(nn.Module):
    """A body (`.model`, returns last_hidden_state) with `.tokenizer`, `.kind`, `.hidden_size`, and its LoRA adapters.

    `source` is the folder or hub id the weights came from; pretext stages take the language-model head from there.
    """

    # A `PreTrainedModel`: its architecture, and with it most of its attributes, is not known before it is loaded.
    model: Any

    def __init__(self, model: PreTrainedModel, tokenizer: Any, kind: Kind, source: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.kind: Kind = kind
        self.source = source
        self.hidden_size: int = model.config.hidden_size
        self.pad_id = pad_id(tokenizer, self.rows)
        # Longest input in tokens, by the table of positions; rotary and ALiBi decoders have none to run out of.
        stated = getattr(model.config, "max_position_embeddings", 0) if kind == "encoder" else 0
        self.longest: int = position_table(model) or int(stated or 1 << 30)
        self._cache: dict[str, tuple[int, ...]] = {}
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._first_position = first_position(model)
        # Longest text that a pass without padding takes.
        self.reach = reach(model.config)
        self.packs = self.reach >= TRIED and packs(model)
        self.packs = self.packs and self._packs_rightly()

    # -------------------------------------------------------------------------------------------------- load and save
    @classmethod
    def load(
        cls,
        folder: str | Path,
        kind: Kind,
        *,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        attention: str | None = None,
    ) -> Backbone:
        """Load a body from a folder or hub id. Only safetensors are read; remote code runs only where the configuration
        says so.

        A checkpoint with a language-model head (a causal or masked one) loads as its body. Raises ArtifactError for a
        missing or damaged folder.
        """
        from transformers import AutoModel, AutoTokenizer

        if isinstance(folder, Path) and not (folder / "config.json").is_file():
            raise ArtifactError(f"{folder}: no model here (config.json is missing); remove it and run snakemake again")
        options: dict[str, Any] = {"trust_remote_code": remote.allowed()}
        if revision is not None:
            options["revision"] = revision
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(shared.tokenizer_folder(folder)), **options)
            if attention is not None:
                options["attn_implementation"] = attention
            model = shared.opened(AutoModel, folder, dtype=dtype, **_body_options(str(folder), options), **options)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArtifactError(f"{folder}: cannot load the {kind} model: {first}") from error
        wrong = unknown_to_the_model(tokenizer, rows_of(model))
        if wrong is not None:
            raise ArtifactError(f"{folder}: {wrong}")
        return cls(model, tokenizer, kind, source=str(folder))

    def save(self, folder: str | Path, base: str | Path | None = None) -> None:
        """Write body (LoRA merged into the weights, the live model untouched) and tokenizer in Hugging Face's format;
        with the `base` it started from, what differs from that (`models.base.shared`).
        """
        shared.save(self.model, self.tokenizer, merge_lora(self.model), folder, base)

    # ------------------------------------------------------------------------------------------------------ tokenizer
    @property
    def rows(self) -> int:
        """Rows of the embedding matrix: how many tokens the model knows."""
        return rows_of(self.model)

    def framing(self) -> tuple[list[int], list[int]]:
        """Ids before and after a text where a method's recipe does not say otherwise: as the checkpoint's tokenizer
        begins texts and, of encoders, ends them.

        A tokenizer that adds none leaves them to the method: an encoder's are then [CLS] and [SEP], where it has these.
        """
        before, after = framing(self.tokenizer)
        if self.kind == "decoder":
            return before, []
        return (before, after) if before or after else (self.token("cls"), self.token("sep"))

    def tokenize(self, texts: list[str], remember: bool = True) -> list[tuple[int, ...]]:
        """Token ids of each text without any special token. Repeated texts come from memory, where they are to be
        remembered.

        Raises DataError for a text with a token that the model has no embedding for.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if not unknown:
            return [self._cache[text] for text in texts]
        encoded = token_ids(self.tokenizer, unknown, self.rows)
        fresh = {text: tuple(ids) for text, ids in zip(unknown, encoded, strict=True)}
        known = {**{text: self._cache[text] for text in texts if text in self._cache}, **fresh}
        if remember and len(self._cache) + len(fresh) <= CACHED_TEXTS:
            self._cache.update(fresh)
        return [known[text] for text in texts]

    def phrase(self, text: str) -> list[int]:
        """Token ids of a method's own phrase. Raises ConfigError when the tokenizer does not know all of it."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        unknown = self.tokenizer.unk_token_id
        if text.strip() and (not ids or (unknown is not None and unknown in ids)):
            raise ConfigError(
                f"the tokenizer of {self.source or 'the base model'} cannot spell {text!r}: part of it becomes "
                f"{self.tokenizer.unk_token or 'nothing'!r}; put these words into its vocabulary or choose another "
                "phrase"
            )
        return ids

    def token(self, name: Literal["bos", "eos", "cls", "sep", "mask"]) -> list[int]:
        """The id of a special token as a list, empty where the tokenizer has none."""
        number = getattr(self.tokenizer, f"{name}_token_id")
        return [] if number is None else [int(number)]

    def add_tokens(self, tokens: list[str]) -> list[int]:
        """Add tokens and return their ids. New embedding rows start at the mean of the old ones plus small noise.

        Tokens the vocabulary already holds keep id and row. The noise is the same in every run, so that two runs of one
        seed start alike.
        """
        vocabulary = self.tokenizer.get_vocab()
        unknown = [token for token in tokens if token not in vocabulary]
        if unknown:
            self.tokenizer.add_tokens(unknown, special_tokens=True)
            ids, there = self.tokenizer.convert_tokens_to_ids(unknown), self.rows
            if max(ids) >= there:
                # Not mean_resizing: it draws from the global generator and inverts a covariance matrix.
                self.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
            # Ids of a vocabulary may have gaps, and a special token before them may have had no row.
            fresh = sorted({*ids, *range(there, max(ids) + 1)})
            weight = self.model.get_input_embeddings().weight
            with torch.no_grad():
                known = weight[: fresh[0]].float()
                noise = torch.randn((len(fresh), weight.shape[1]), generator=torch.Generator().manual_seed(fresh[0]))
                rows = known.mean(0) + 0.1 * known.std(0) * noise.to(known.device)
                weight[torch.tensor(fresh, device=weight.device)] = rows.to(weight.dtype)
            self._cache.clear()
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in tokens]

    # -------------------------------------------------------------------------------------------------------- forward
    def forward(self, input_ids: Tensor, attention_mask: Tensor, left: bool | None = None) -> Tensor:
        """Last hidden states (n, t, d) of padded ids (n, t); mask (n, t) is 1 on real tokens, padded on either side.

        left: whether any row is padded on the left; None: looked up, for which a GPU is waited for.
        """
        options: dict[str, Tensor | bool | None] = {"attention_mask": attention_mask}
        if self.kind == "decoder":
            if not (left if left is not None else bool((attention_mask[:, 0] == 0).any())):
                # Padded on the right: causality already hides the padding from every real token, and no mask is
                # fastest.
                options["attention_mask"] = None
            elif self._takes_positions:
                # Padded on the left: the first real token is at position 0, as it is without padding.
                options["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            options["use_cache"] = False
        return self.model(input_ids=input_ids, **options).last_hidden_state

    def pad(self, rows: list[tuple[int, ...]], padding: Side = "right") -> tuple[Tensor, Tensor]:
        """Ids (n, t) and mask (n, t), int64, of token id rows, padded to the longest on one side."""
        mask = padding_mask([len(row) for row in rows], padding)
        ids = torch.full_like(mask, self.pad_id)
        ids[mask.bool()] = end_to_end(rows)
        return ids.to(self._device), mask.to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def unpadded(self) -> bool:
        """Whether a pass has no padding here, unless a text is longer than the window (`reach`): on a CPU, where the
        model `packs`; a GPU prefers one large call.
        """
        return self.packs and self._device.type == "cpu"

    def states(
        self,
        rows: list[tuple[int, ...]],
        padding: Side = "right",
        read: Callable[[Tensor], Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states (n, t, d) and mask (n, t) of token id rows in one pass; fastest when sorted by length.

        Where the mask is 0 a state may hold anything. Without padding where that is possible (`packing`). `read` tells
        from the mask which states somebody reads, None for all; others may hold anything then as well (`last_layer`).
        """
        lengths = [len(row) for row in rows]
        # What is read follows from the lengths: found on the CPU, so that no GPU is waited for.
        mask = padding_mask(lengths, padding)
        wanted = None if read is None else read(mask)
        real = mask.flatten().nonzero()[:, 0] if self.unpadded and max(lengths) <= self.reach else None
        places = None
        if wanted is not None:
            flat = wanted.flatten()
            places = (flat if real is None else flat[real]).nonzero()[:, 0].to(self._device)
        with nullcontext() if places is None else only_at(self.model, places):
            if real is None:
                left = padding == "left" and min(lengths) < max(lengths)
                ids, mask = self.pad(rows, padding)
                return self(ids, mask, left), mask
            groups, positions = layout(lengths, self._first_position)
            outputs = self.model(
                input_ids=end_to_end(rows)[None],
                position_ids=positions,
                # Four dimensions: taken as it is, so that no mask is made; the packed attention reads none.
                attention_mask=torch.ones(1, 1, 1, 1),
                packed_groups=groups,
                **({"use_cache": False} if self.kind == "decoder" else {}),
            ).last_hidden_state[0]
        # Copied to their places: the gradient of that is a plain selection.
        states = outputs.new_zeros(mask.numel(), outputs.shape[1])
        return states.index_copy(0, real, outputs).view(*mask.shape, -1), mask

    @torch.no_grad()
    def _packs_rightly(self) -> bool:
        """Whether texts laid end to end have the states they have alone. Tried, as an architecture may take positions
        or masks in its own way.
        """
        other = {self.pad_id, self.model.config.pad_token_id}
        tokens = [token for token in range(min(self.rows, 16)) if token not in other]
        rows, training = [tuple(tokens[:1]), tuple(tokens[1:3]), tuple(tokens[2 : 2 + TRIED])], self.model.training
        self.model.eval()
        try:
            together, mask = self.states(rows)
            alone = [self(*self.pad([row]))[0] for row in rows]
        except Exception:  # noqa: BLE001 - masks and positions that an architecture does not take are told in many ways
            return False
        finally:
            self.model.train(training)
        rounding = 1e-3 if self.model.dtype == torch.float32 else 0.1
        pairs = zip(together, mask.bool().to(together.device), alone, strict=True)
        return all(bool((states[real] - own).norm() <= rounding * own.norm()) for states, real, own in pairs)

    def hidden(self, input_ids: Tensor, visible: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states (n, t, d) under a free attention pattern: visible (n, t, t) bool, row sees column."""
        kind = self.model.get_input_embeddings().weight.dtype
        mask = torch.zeros(visible.shape, dtype=kind, device=visible.device)
        mask = mask.masked_fill(~visible, torch.finfo(kind).min).unsqueeze(1)
        options = {"use_cache": False} if self.kind == "decoder" else {}
        return self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, **options
        ).last_hidden_state

    def checkpoint_gradients(self) -> None:
        """Trade time for memory: recompute activations in the backward pass."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # --------------------------------------------------------------------------------------------------------- tuning
    def tune(self, tuning: Any, new_tokens: list[int] | None = None) -> None:
        """Mark the parameters that train: all, LoRA adapters only, or those whose name contains "bias" (BitFit).

        `new_tokens` are embedding rows that train besides (`added_rows`). Raises TrainingError when nothing would
        train.
        """
        self.model.requires_grad_(tuning.kind == "full")
        if tuning.kind == "full" and tuning.embeddings:
            return
        self.model.get_input_embeddings().weight.requires_grad_(False)
        if tuning.kind == "bitfit":
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("bias" in name)
            biases = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            if not biases:
                raise TrainingError(
                    f"BitFit trains biases only and {type(self.model).__name__} of {self.source or 'this run'} has "
                    "none; "
                    "set tuning.kind to lora for this base model"
                )
        if tuning.kind == "lora":
            self.model = add_lora(self.model, tuning)
        if new_tokens:
            embedding = self.model.get_input_embeddings()
            train_rows(getattr(embedding, "base_layer", embedding), new_tokens)

    def added_rows(self) -> nn.Parameter | None:
        """(k, d): the rows of new tokens, where they train apart from the others; they do not decay."""
        return next((added.weight for added in added_rows(self.model).values()), None)

    def trained_count(self) -> int:
        """Number of scalars that train."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @contextmanager
    def all_trainable(self, embeddings: bool = True, rows: Sequence[int] = ()) -> Iterator[None]:
        """Train every weight for a while (pretext stages), then restore what was marked. Without `embeddings` the
        matrix stays, but for these `rows` of it.

        LoRA adapters are switched off: fresh ones add nothing, and the stage trains the base weights they will adapt.
        Added rows are put into their matrix for that time.
        """
        adapted = list(adapters(self.model).values())
        before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        apart = [(self.model.get_submodule(name).weight, added) for name, added in added_rows(self.model).items()]
        for module in adapted:
            module.enable_adapters(False)
        for weight, added in apart:
            added.merge(weight.detach())
            added.enabled = False
        merged = {id(added.weight) for _, added in apart}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" not in name and id(parameter) not in merged)
        try:
            with nullcontext() if embeddings else only_rows(self.model.get_input_embeddings(), rows):
                yield
        finally:
            for module in adapted:
                module.enable_adapters(True)
            for weight, added in apart:
                added.take(weight.detach())
                added.enabled = True
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(before[name])
                parameter.grad = None

    # ------------------------------------------------------------------------------------------- language-model heads
    def language_model(self) -> nn.Module:
        """The checkpoint's full language model (causal or masked, by kind) around this very body.

        Its head comes from the checkpoint, with input and output embeddings tied again where its configuration ties
        them; a checkpoint without a head gets a fresh one, the same in every run.
        """
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        auto = AutoModelForCausalLM if self.kind == "decoder" else AutoModelForMaskedLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.source is None:
                full = auto.from_config(self.model.config)
            else:
                options = {"use_safetensors": True, "dtype": self.model.dtype, "trust_remote_code": remote.allowed()}
                full = auto.from_pretrained(str(shared.root_of(self.source)), **options)
            rows = self.model.get_input_embeddings().num_embeddings
            if full.get_input_embeddings().num_embeddings != rows:
                full.resize_token_embeddings(rows, mean_resizing=False)
        setattr(full, full.base_model_prefix, self.model)
        full.tie_weights()
        return full.to(self.model.device).train()


def head_of(full: nn.Module) -> Callable[[Tensor], Tensor]:
    """The head of a language model: hidden states (…, d) to logits (…, vocabulary)."""
    heads = [child for name, child in full.named_children() if name != full.base_model_prefix]
    if len(heads) != 1:
        raise TrainingError(f"{type(full).__name__}: expected one language-model head, found {len(heads)}")
    return heads[0]


def _body_options(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Leave out the pooler of BERT-like bodies: nothing here uses it, and BitFit would count its bias."""
    from transformers import AutoConfig

    others = {key: value for key, value in options.items() if key != "attn_implementation"}
    return body_options(AutoConfig.from_pretrained(folder, **others))


def body_options(config: PretrainedConfig) -> dict[str, Any]:
    """The same for a model's configuration."""
    from transformers import AutoModel

    body = AutoModel._model_mapping.get(type(config), None)
    takes = isinstance(body, type) and "add_pooling_layer" in inspect.signature(body.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}

"""Base models that exist already: found, fetched where they are on a hub, cut to their lower layers, saved as the
pipeline's own are.

What comes out is a folder in Hugging Face format, so that every later stage runs the very code it runs on models made
here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.sections import PretrainedSettings
from d2llm.models.base.classifier import check_labels, classifies
from d2llm.models.tokens import rows_of, unknown_to_the_model
from d2llm.run import hub
from d2llm.run.artifacts import atomic, read_json, write_json
from d2llm.run.errors import ArtifactError, ConfigError, first_line
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from d2llm.config.schema import Config

# What a model needs of a repository's first level beside its weights; code of its own lies anywhere.
WANTED = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
CODE = "*.py"
# The file of weights by `models.<name>.weights`; in parts, an index beside it names them. Never another framework's.
WEIGHTS = {"safetensors": "model.safetensors", "pytorch": "pytorch_model.bin"}
INDEX = ".index.json"
TOKENIZER = "put its files (tokenizer.json, or vocab.txt and the like) beside config.json"


def run(config: Config, model: str) -> None:
    """Bring base model `model` of the config below `models/`."""
    settings = config.models.of(model)
    assert isinstance(settings, PretrainedSettings)  # all others are made (`pretraining`)
    where = f"models.{model}.source"
    folder, file = located(settings, where)
    network, tokenizer = load(folder, file, settings, model, where)
    wrong = unknown_to_the_model(tokenizer, rows_of(network))
    if wrong is not None:
        raise ConfigError(f"{where}: {settings.source!r}: {wrong}")
    whole = len(layers_of(network))
    if settings.layers is not None:
        cut(network, settings.layers, f"models.{model}.layers")
    if not judging(model, network.config):
        check_direction(network, model == "encoder", f"{where}: {settings.source!r}")
    count = sum(p.numel() for p in network.parameters())
    get_logger(__name__).info(
        "%s: %s, %d of %d layers, %d parameters", model, settings.source, len(layers_of(network)), whole, count
    )
    with atomic(Paths.of(config).base(model)) as place:
        network.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_json(
            place / "summary.json", {"source": settings.source, "parameters": count, "layers": len(layers_of(network))}
        )


def located(settings: PretrainedSettings, where: str, weights: bool = True) -> tuple[Path, str | None]:
    """(folder, GGUF file in it or None); `where` is the key that names it, for errors. Without `weights` a folder may
    lack them.

    Raises ConfigError for what is not there, ArtifactError for a hub that stays away.
    """
    if settings.origin == "hub":
        return fetched(settings, where), None
    path = Path(settings.source).expanduser()
    if settings.origin == "package":
        module, _, inside = settings.source.removeprefix("package:").partition("/")
        package = importlib.util.find_spec(module)
        if package is None or not package.submodule_search_locations:
            raise ConfigError(f"{where}: {settings.source!r}: no Python package {module!r} here; install it (pip)")
        path = Path(package.submodule_search_locations[0]) / inside
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{where}: {settings.source!r}: no such file ({path}); correct the path")
        return path.parent, path.name
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{where}: {settings.source!r}: no model in {path} (config.json is missing); correct the path"
        )
    if weights:
        weight_files({file.name for file in path.iterdir()}, settings, where, path.joinpath)
    return path, None


def weight_files(
    names: Collection[str], settings: PretrainedSettings, where: str, place: Callable[[str], Path]
) -> list[str]:
    """Of a checkpoint's files those that hold its weights, as transformers chooses them; `place` gives where one of
    that name lies.

    Raises ConfigError where the format asked for is not among them, or a part that the index names.
    """
    whole = WEIGHTS[settings.weights]
    if whole in names:
        return [whole]
    source = f"{where}: {settings.source!r}"
    if whole + INDEX in names:
        index = read_json(place(whole + INDEX))
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConfigError(f"{source}: {whole}{INDEX} names no weights (weight_map); get the checkpoint again")
        parts = sorted(set(weight_map.values()))
        missing = next((part for part in parts if part not in names), None)
        if missing is not None:
            raise ConfigError(f"{source}: {whole}{INDEX} names {missing}, which is not there; get the checkpoint again")
        return [whole + INDEX, *parts]
    (other,) = set(WEIGHTS.values()) - {whole}
    key = f"{where.removesuffix('.source')}.weights"
    if not {other, other + INDEX} & set(names):
        raise ConfigError(f"{source}: no weights (neither {whole} nor {other}); take another revision or folder")
    if settings.weights == "pytorch":
        raise ConfigError(f"{source}: its weights are {other}, no {whole}; leave out {key}: pytorch")
    raise ConfigError(
        f"{source}: its weights are {other} alone, no {whole}; take a revision or folder that holds safetensors, or "
        f"set {key}: pytorch (read by torch.load with weights_only=True, which runs no code)"
    )


def fetched(settings: PretrainedSettings, where: str, weights: bool = True) -> Path:
    """The hub's files in the local cache, checked against the hub's digests; without `weights` the small ones, asked
    for once.
    """
    waits = None if weights else ()
    return hub.fetch(repository(settings), lambda there: chosen(there, settings, where, weights), where, waits)


def to_come(settings: PretrainedSettings, where: str) -> int:
    """Bytes that the hub will send of a model. Raises ConfigError for what it does not have or give."""
    return hub.ask(repository(settings), lambda there: chosen(there, settings, where), where)


def repository(settings: PretrainedSettings) -> hub.Repository:
    """Where a model of the hub comes from."""
    return hub.Repository(settings.source, "model", settings.revision)


def chosen(there: hub.Sizes, settings: PretrainedSettings, where: str, weights: bool = True) -> hub.Sizes:
    """Of the files of a hub's repository those that are needed. Of weights in parts the index is fetched."""
    from huggingface_hub import hf_hub_download

    def fetched_index(name: str) -> Path:
        return Path(hf_hub_download(settings.source, name, revision=settings.revision))

    if "config.json" not in there:
        raise ConfigError(f"{where}: {settings.source!r}: no model in it (config.json is missing); check its name")
    small = [name for name in there if any("/" not in name and fnmatch(name, one) for one in WANTED)]
    names = [name for name in small if not name.endswith(INDEX)]
    names += [name for name in there if settings.trust_remote_code and fnmatch(name, CODE)]
    names += weight_files(there, settings, where, fetched_index) if weights else []
    return {name: there[name] for name in names}


# How transformers reads weights, by `models.<name>.weights`: a pickle never runs code.
READ = {"safetensors": {"use_safetensors": True}, "pytorch": {"use_safetensors": False, "weights_only": True}}


def load(
    folder: Path, file: str | None, settings: PretrainedSettings, model: str, where: str
) -> tuple[PreTrainedModel, Any]:
    """The model with its language-model head (a fresh one where it has none) or its classifier, and its tokenizer."""
    import torch
    import transformers

    described_config, tokenizer = described(folder, file, settings, where)
    check_described(described_config, tokenizer, settings, model, where)
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "dtype": getattr(torch, settings.dtype)}
    options |= {"gguf_file": file} if file else READ[settings.weights]
    with loading(settings, where):
        auto = getattr(transformers, f"AutoModelFor{head(model, described_config)}")
        network, loaded = auto.from_pretrained(folder, output_loading_info=True, **options)
    # A language model's head may be missing, and is then a fresh one; all else would be random as well.
    lacking = "" if judging(model, described_config) else f"{network.base_model_prefix}."
    missing = [name for name in sorted(loaded["missing_keys"]) if name.startswith(lacking)]
    if missing:
        raise ArtifactError(
            f"{where}: {settings.source!r}: {len(missing)} weights of {type(network).__name__} are not in the "
            f"checkpoint ({missing[0]}); get the checkpoint again"
        )
    return (plain(network).to(getattr(torch, settings.dtype)) if file else network), tokenizer


@contextmanager
def loading(settings: PretrainedSettings, where: str) -> Iterator[None]:
    """Turn what transformers raises over a checkpoint into one line."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{where}: {settings.source!r} needs a package: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{where}: {settings.source!r}: cannot be loaded ({first_line(error)}); get the checkpoint again"
        ) from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # of a module that nothing here imports
            raise
        raise ConfigError(
            f"{where}: {settings.source!r}: its {WEIGHTS['pytorch']} is damaged or holds more than weights, which "
            "torch.load refuses with weights_only=True; take a revision or folder that holds safetensors"
        ) from error


# --------------------------------------------------------------------------------------- what a base model has to be
def described(
    folder: Path, file: str | None, settings: PretrainedSettings, where: str
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """A checkpoint's configuration and tokenizer; no weights are read."""
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": settings.trust_remote_code} | ({"gguf_file": file} if file else {})
    with loading(settings, where):
        config = AutoConfig.from_pretrained(folder, **options)
        try:
            return config, AutoTokenizer.from_pretrained(folder, **options)
        except ImportError:
            raise
        except Exception as error:  # tokenizers raises nothing more particular
            raise ConfigError(
                f"{where}: {settings.source!r}: its tokenizer cannot be loaded ({first_line(error)}); {TOKENIZER}"
            ) from error


def check_described(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: PretrainedSettings,
    model: str,
    where: str,
) -> None:
    """Raise ConfigError for a model of the wrong kind, with too few layers or without a tokenizer; `where` is the key
    of its source.
    """
    source = f"{where}: {settings.source!r}"
    if judging(model, config):
        check_labels(config, source)
    else:
        check_kind(config, model == "encoder", source)
    check_tokenizer(tokenizer, source)
    if settings.layers is not None:
        check_layers(settings.layers, config.num_hidden_layers, f"{where.removesuffix('.source')}.layers")


def judging(model: str, config: PretrainedConfig) -> bool:
    """Whether a base model is a teacher that classifies pairs."""
    return model == "teacher" and classifies(config.architectures)


def head(model: str, config: PretrainedConfig) -> str:
    """What base model `model` is loaded with, in the words of transformers."""
    if judging(model, config):
        return "SequenceClassification"
    return "MaskedLM" if model == "encoder" else "CausalLM"


# What a model is that is given for another kind.
KINDS = {
    "encoder": "an encoder: every token sees the whole text",
    "decoder": "a decoder: no token sees what follows it",
    "both": "an encoder with a decoder",
}


def check_kind(config: PretrainedConfig, encoder: bool, where: str) -> None:
    """Raise ConfigError where a model is not of the kind that is asked for, or of a class that cannot be used as one.

    Encoders like BERT have a causal class in transformers as well, in which every token still sees the whole text.
    """
    from transformers.models.auto import modeling_auto

    own = getattr(config, "auto_map", None) or {}  # of code that comes with the checkpoint
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or "AutoModelForMaskedLM" in own
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own
    if getattr(config, "is_encoder_decoder", False):
        kind = "both"
    elif getattr(config, "is_decoder", False):
        kind = "decoder"
    elif not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        kind = "encoder"
    else:
        kind = "encoder" if masked else "decoder" if causal else ""
    name = (config.architectures or [config.model_type])[0]
    wanted = "an encoder (BERT and its kin)" if encoder else "a decoder (Qwen, Llama and their kin)"
    if kind != ("encoder" if encoder else "decoder") or not (masked if encoder else causal):
        raise ConfigError(f"{where}: expected {wanted}; found {name}, {KINDS.get(kind, 'which is neither')}")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise ConfigError(
            f"{where}: expected {wanted}, of text alone; found {name}, whose configuration has no hidden_size"
        )


def check_direction(network: PreTrainedModel, encoder: bool, where: str) -> None:
    """Raise ConfigError where a token's state depends on the next one and the model is to be a decoder, or does not and
    it is to be an encoder.
    """
    import torch

    network.eval()
    # Each alone: passes of one shape round alike, but for experts, whose batches differ.
    texts = (torch.tensor([[1, 2, 3, last]], device=network.device) % network.config.vocab_size for last in (4, 5))
    try:
        with torch.no_grad():
            one, two = (
                network.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, :3].float()
                for ids in texts
            )
    except Exception as error:  # noqa: BLE001 - code of its own may ask for a GPU
        get_logger(__name__).warning("%s: not tried whether its tokens see what follows (%s)", where, first_line(error))
        return
    exact = network.dtype == torch.float32
    sees = bool((one - two).norm() > (1e-4 if exact else 5e-2) * one.norm())
    if sees != encoder and (sees or exact):  # in half precision a small difference may be lost
        raise ConfigError(
            f"{where}: expected {'an encoder' if encoder else 'a decoder'}; found "
            f"{KINDS['encoder' if sees else 'decoder']}"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise ConfigError for a tokenizer that transformers has made up where its files are missing: it knows its special
    tokens and no word.
    """
    special = set(tokenizer.all_special_tokens)
    # Bytes in tokenizers of some repositories' own.
    tokens = (
        token if isinstance(token, str) else bytes(token).decode(errors="replace") for token in tokenizer.get_vocab()
    )
    if not any(letter.isalnum() for token in tokens if token not in special for letter in token):
        raise ConfigError(f"{where}: its tokenizer knows no word, only {len(special)} special tokens; {TOKENIZER}")


def check_layers(keep: int, there: int, where: str) -> None:
    """Raise ConfigError where more layers are to be kept than there are."""
    if keep > there:
        raise ConfigError(f"{where}: expected at most the {there} layers the checkpoint has; found {keep}")


def shorten(config: PretrainedConfig, keep: int) -> None:
    """Have a configuration tell of the lowest layers alone."""
    config.num_hidden_layers = keep
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:keep]


def plain(network: PreTrainedModel) -> PreTrainedModel:
    """A model from a GGUF file as an ordinary one: it refuses to be saved while it counts as quantised."""
    config = network.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state = {name: value.float() for name, value in network.state_dict().items()}
    copy = type(network)(config)
    copy.load_state_dict(state)
    copy.tie_weights()
    return copy


def layers_of(network: PreTrainedModel) -> Any:
    """The list of a model's layers. Raises ConfigError for an architecture that keeps them where none is looked for."""
    body = network.base_model
    for path in (("layers",), ("encoder", "layer"), ("h",), ("transformer", "h")):
        inner: Any = body
        for part in path:
            inner = getattr(inner, part, None)
        if inner is not None:
            return inner
    raise ConfigError(f"models: the layers of {type(body).__name__} were not found")


def cut(network: PreTrainedModel, keep: int, where: str) -> None:
    """Leave the lowest `keep` layers, in place; `where` is the key that says how many."""
    layers = layers_of(network)
    check_layers(keep, len(layers), where)
    del layers[keep:]
    shorten(network.config, keep)

"""Base models that exist already: found, fetched where they are on a hub, cut to their lower layers, saved as the pipeline's own are.

What comes out is a folder in Hugging Face format, so that every later stage runs the very code it runs on models made here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm import hub
from d2llm.artifacts import atomic, write_json
from d2llm.config import CheckpointSettings
from d2llm.errors import ArtifactError, ConfigError, first_line
from d2llm.logs import get_logger
from d2llm.models.tokens import rows_of, unknown_to_the_model
from d2llm.paths import Paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from d2llm.config import Config

# What a model needs of a repository: never pickles, never another framework's weights.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
CODE = ("*.py",)


def run(config: Config, model: str) -> None:
    """Bring base model `model` of the config below `models/`."""
    settings = config.models.of(model)
    assert isinstance(settings, CheckpointSettings)  # all others are made (`pretraining`)
    where = f"models.{model}.source"
    folder, file = located(settings, where)
    network, tokenizer = load(folder, file, settings, model == "encoder", where)
    wrong = unknown_to_the_model(tokenizer, rows_of(network))
    if wrong is not None:
        raise ConfigError(f"{where}: {settings.source!r}: {wrong}")
    whole = len(layers_of(network))
    if settings.layers is not None:
        cut(network, settings.layers, f"models.{model}.layers")
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


def located(settings: CheckpointSettings, where: str) -> tuple[Path, str | None]:
    """(folder, GGUF file in it or None); `where` is the key that names it, for errors.

    Raises ConfigError for what is not there, ArtifactError for a hub that stays away.
    """
    if settings.origin == "hub":
        return fetched(settings, where), None
    path = Path(settings.source).expanduser()
    if settings.origin == "package":
        module, _, inside = settings.source.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise ConfigError(f"{where}: {settings.source!r}: no Python package {module!r} here; install it (pip)")
        path = Path(found.submodule_search_locations[0]) / inside
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{where}: {settings.source!r}: no such file ({path}); correct the path")
        return path.parent, path.name
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{where}: {settings.source!r}: no model in {path} (config.json is missing); correct the path"
        )
    return path, None


def fetched(settings: CheckpointSettings, where: str) -> Path:
    """The hub's files in the local cache, checked against the hub's digests."""
    from huggingface_hub import snapshot_download

    patterns = list(WANTED + (CODE if settings.trust_remote_code else ()))

    def fetch() -> Path:
        found = snapshot_download(settings.source, revision=settings.revision, allow_patterns=patterns)
        hub.check(settings.source, "model")
        return Path(found)

    return hub.patiently(fetch, settings.source + (f" at {settings.revision}" if settings.revision else ""), where)


def load(
    folder: Path, file: str | None, settings: CheckpointSettings, encoder: bool, where: str
) -> tuple[PreTrainedModel, Any]:
    """The model with its language-model head (a fresh one where it has none), and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "dtype": getattr(torch, settings.dtype)}
    options |= {"gguf_file": file} if file else {"use_safetensors": True}
    try:
        tokens = {"trust_remote_code": settings.trust_remote_code} | ({"gguf_file": file} if file else {})
        tokenizer = AutoTokenizer.from_pretrained(folder, **tokens)
        network = (AutoModelForMaskedLM if encoder else AutoModelForCausalLM).from_pretrained(folder, **options)
    except ImportError as error:
        raise ConfigError(f"{where}: {settings.source!r} needs a package: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{where}: {settings.source!r}: cannot be loaded ({first_line(error)}); get the checkpoint again"
        ) from error
    return (plain(network).to(getattr(torch, settings.dtype)) if file else network), tokenizer


def plain(network: PreTrainedModel) -> PreTrainedModel:
    """A model from a GGUF file as an ordinary one: it refuses to be saved while it counts as quantised."""
    config = network.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state = {name: value.float() for name, value in network.state_dict().items()}
    made = type(network)(config)
    made.load_state_dict(state)
    made.tie_weights()
    return made


def layers_of(network: PreTrainedModel) -> Any:
    """The list of a model's layers. Raises ConfigError for an architecture that keeps them where none is looked for."""
    body = network.base_model
    for path in (("layers",), ("encoder", "layer"), ("h",), ("transformer", "h")):
        found: Any = body
        for part in path:
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise ConfigError(f"models: the layers of {type(body).__name__} were not found")


def cut(network: PreTrainedModel, keep: int, where: str) -> None:
    """Leave the lowest `keep` layers, in place; `where` is the key that says how many."""
    layers = layers_of(network)
    if keep > len(layers):
        raise ConfigError(f"{where}: expected at most the {len(layers)} layers the checkpoint has; found {keep}")
    del layers[keep:]
    config = network.config
    config.num_hidden_layers = keep
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:keep]

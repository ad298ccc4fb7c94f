"""Stage `published`: brings a model that others published, to be a reference row, and tries it: a bi-encoder that
mteb's registry knows, or one in sentence-transformers' format.

How it is loaded and fed is mteb's to say: its registry holds prompts, instructions and similarity as the models' cards
have them, its wrapper those of a folder. How it scores is in `rows.published`.
"""

from __future__ import annotations

import copy
import difflib
import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from d2llm.models.base.pretrained import check_layers, cut, located
from d2llm.run import hub
from d2llm.run.artifacts import atomic
from d2llm.run.errors import ArtifactError, ConfigError, first_line
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

    from d2llm.config.schema import Config, PublishedModel

# What is kept of a model, at any depth: its modules lie in folders.
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = {"safetensors": ("*model*.safetensors",), "pytorch": ("*model*.safetensors", "*pytorch_model*.bin")}
# Where sentence-transformers keeps the prompts of a model.
PROMPTS = "config_sentence_transformers.json"
# What makes a folder one of its own: without it, it would take the mean of whatever states there are.
MODULES = "modules.json"


def run(config: Config, row: str) -> None:
    """Bring the files of published model `row` below `models/published/`, and have it encode a text.

    Raises ConfigError for a model that cannot be a row, ArtifactError for a hub that stays away.
    """
    settings = config.published()[row]
    where, known = check(settings)
    source = fetched(settings, known, where) if settings.checkpoint().origin == "hub" else place(settings)
    check_prompts(settings, known, source, where)
    with atomic(Paths.of(config).published(row)) as folder:
        for file in kept(source, settings, known):
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        vector = load(folder, settings, known, where).model.encode(["1"], show_progress_bar=False)
    get_logger(__name__).info("%s: %s, vectors of %d numbers", row, settings.model, vector.shape[-1])


def load(folder: Path, settings: PublishedModel, known: ModelMeta | None, where: str) -> Any:
    """mteb's wrapper of a model: `encode`, `similarity`, `similarity_pairwise`, and `model` of sentence-transformers.

    Raises ConfigError or ArtifactError for what cannot be loaded.
    """
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    from d2llm.models.device import default_device

    device, trusted = str(default_device()), settings.trust_remote_code
    wrapper: Any
    # None at all is one for each side that is empty: sentence-transformers takes its own where it is given none.
    prompts = {"query": "", "document": ""} if settings.prompts == {} else settings.prompts
    try:
        if known is None:
            if settings.pooling is not None:
                plain = SentenceTransformer(modules=pooled(folder, settings, settings.pooling), device=device)
            else:
                plain = SentenceTransformer(
                    str(folder), device=device, local_files_only=True, trust_remote_code=trusted
                )
            wrapper = SentenceTransformerEncoderWrapper(plain, model_prompts=prompts)
        else:
            options = copy.deepcopy(known.loader_kwargs) | {"trust_remote_code": trusted}
            if prompts is not None:
                direct = known.loader is SentenceTransformerEncoderWrapper
                options["model_prompts" if direct else "prompts_dict"] = prompts
            here = known.model_copy(update={"name": str(folder), "revision": None, "loader_kwargs": options})
            wrapper = here.load_model(device=device)
    except ImportError as error:
        raise ConfigError(f"{where}: needs a package: {first_line(error)}") from error
    except Exception as error:  # sentence-transformers and the modules of a folder raise many kinds
        raise ArtifactError(f"{where}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    if settings.layers is not None:
        cut(wrapper.model[0].auto_model, settings.layers, f"{where}: layers")
    if settings.max_length is not None:
        wrapper.model.max_seq_length = settings.max_length
    return wrapper


def pooled(
    folder: Path, settings: PublishedModel, pooling: Literal["cls", "mean", "weightedmean", "lasttoken"]
) -> list[Any]:
    """sentence-transformers' modules of a plain checkpoint: its states, and what makes one vector of them."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": settings.trust_remote_code}
    body = Transformer(str(folder), model_kwargs=local, processor_kwargs=local, config_kwargs=local)
    return [body, Pooling(body.get_embedding_dimension(), pooling)]


# --------------------------------------------------------------------------------------------------- what can be a row
def check(settings: PublishedModel) -> tuple[str, ModelMeta | None]:
    """(how errors name a model, its entry in mteb's registry or None). Raises ConfigError for one that cannot be a row;
    of a folder its prompts as well.
    """
    import mteb

    where, known, hint = f"references: {settings.model}", None, ""
    if settings.checkpoint().origin != "hub":
        check_prompts(settings, None, place(settings), where)
        return where, None
    try:
        known = mteb.get_model_meta(settings.model)
    except KeyError:
        near = difflib.get_close_matches(settings.model, registry(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
    if (known.revision if known else None) is None and settings.revision is None:
        raise ConfigError(
            f"{where}: mteb's registry pins no revision of it{hint}; name the commit on the hub (revision: …), or give "
            "a folder"
        )
    if known is None:
        return where, None
    if "cross-encoder" in (known.model_type or ()):
        raise ConfigError(f"{where}: a re-ranker has no vectors; it can be the teacher (models.teacher)")
    if known.loader is None or known.model_type != ["dense"] or "Sentence Transformers" not in known.framework:
        raise ConfigError(f"{where}: expected a model of one vector a text, in sentence-transformers' format")
    if known.loader_kwargs.get("trust_remote_code") and not settings.trust_remote_code:
        raise ConfigError(f"{where}: runs Python code that comes with it; allow it (trust_remote_code: true), or not")
    return where, known


def registry() -> dict[str, Any]:
    """mteb's models by name."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    return MODEL_REGISTRY


def check_prompts(settings: PublishedModel, known: ModelMeta | None, folder: Path, where: str) -> None:
    """Raise ConfigError for a model that is made for prompts, as mteb knows it or one whose name its own holds, and
    that has none.
    """
    meta = known or relative(settings.short)
    if settings.prompts is not None or meta is None or not meta.use_instructions:
        return
    if known is not None and known.loader_kwargs.get("model_prompts"):
        return
    from mteb.models import SentenceTransformerEncoderWrapper

    if known is not None and known.loader is not SentenceTransformerEncoderWrapper:
        return  # an instruction of each task's
    file = folder / PROMPTS
    named = json.loads(file.read_text(encoding="utf-8")).get("prompts") if file.is_file() else None
    if any((named or {}).values()):
        return
    usual = meta.loader_kwargs.get("model_prompts")
    example = json.dumps(usual, ensure_ascii=False) if usual else '{"query": …, "document": …}'
    raise ConfigError(
        f"{where}: {meta.name} is fed prompts, and this has none registered (none in {PROMPTS}); give them as its card "
        f"says (prompts: {example}), or none knowingly (prompts: {{}})"
    )


def relative(name: str) -> ModelMeta | None:
    """The model of mteb's registry whose name another holds, the longest such: a copy, or a child of it."""
    shorts = {str(full).rsplit("/", 1)[-1].lower(): meta for full, meta in registry().items()}
    held = [short for short, meta in shorts.items() if len(short) > 5 and short in name.lower()]
    return shorts[max(held, key=len)] if held else None


# ------------------------------------------------------------------------------------------------------------ its files
def place(settings: PublishedModel) -> Path:
    """The folder of a model that is here, with all that a row needs. Raises ConfigError where there is none."""
    folder = located(settings.checkpoint(), f"references: {settings.model}", weights=False)[0]
    there = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("num_hidden_layers")
    if settings.layers is not None and isinstance(there, int):
        check_layers(settings.layers, there, f"references: {settings.model}: layers")
    kept(folder, settings, None)
    return folder


def fetched(settings: PublishedModel, known: ModelMeta | None, where: str) -> Path:
    """The hub's files in the local cache, checked against the hub's digests."""
    return hub.fetch(repository(settings, known), lambda there: chosen(there, settings, known), where)


def to_come(settings: PublishedModel) -> int:
    """Bytes that the hub will send of a model. Raises ConfigError for one that cannot be a row, and for what the hub
    does not have or give.
    """
    where, known = check(settings)
    return hub.ask(repository(settings, known), lambda there: chosen(there, settings, known), where)


def repository(settings: PublishedModel, known: ModelMeta | None) -> hub.Repository:
    """Where a model of the hub comes from."""
    return hub.Repository(settings.model, "model", settings.revision or (known.revision if known else None))


def chosen(there: hub.Sizes, settings: PublishedModel, known: ModelMeta | None) -> dict[str, int]:
    """Of a model's files, {path: bytes}, those that are kept. Raises ConfigError where weights are not among them, and
    where nobody says how its states are pooled.
    """
    if known is None and MODULES not in there and settings.pooling is None:
        raise ConfigError(
            f"references: {settings.model}: not in sentence-transformers' format: no {MODULES}; say how the states of a "
            "plain checkpoint become one vector (pooling: mean)"
        )
    weights = WEIGHTS[settings.weights]
    wanted = (*SMALL, *weights, *(("*.py",) if settings.trust_remote_code else ()))

    def among(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)

    if not any(among(path, weights) for path in there):
        more = "" if settings.weights == "pytorch" else "; where it has pytorch_model.bin alone: weights: pytorch"
        raise ConfigError(f"references: {settings.model}: no weights ({', '.join(weights)}){more}")
    return {path: size for path, size in there.items() if among(path, wanted)}


def kept(folder: Path, settings: PublishedModel, known: ModelMeta | None) -> list[Path]:
    """Its files that are kept. Raises ConfigError as `chosen` does."""
    files = {path.relative_to(folder).as_posix(): 0 for path in sorted(folder.rglob("*")) if path.is_file()}
    return [folder / path for path in chosen(files, settings, known)]

"""Models kept as what differs from the base they started from, so that runs which share a base share its copy.

Such a folder has `delta.safetensors` (whole tensors, or some rows of a matrix), `config.json`, `base.json` with the
base's place and digests, and tokenizer files where they are not the base's. What is loaded is bit for bit what was
saved; weights that did not change are mapped from the base's file, so that processes share their memory. A model that
shares less than a tenth of its bytes, or has code of its own, is kept whole, in Hugging Face's format.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from d2llm.run.artifacts import read_json, write_json
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import PROVENANCE
from d2llm.run.provenance import claimed, file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

BASE, DELTA = "base.json", "delta.safetensors"
# Bump when what base.json or delta.safetensors holds changes.
LAYOUT = 1
# Of a matrix of which a few rows changed: the rows, and their numbers.
ROWS, PLACES = "#rows", "#places"
# Rows that are compared at a time.
BLOCK = 16_384
# A model is kept whole where its difference takes more of its bytes.
MOST = 0.9
# What configurations may differ in: the class that was saved, its type, and the rows of the embeddings.
APART = ("architectures", "dtype", "vocab_size", "transformers_version", "_name_or_path")
# What a tokenizer says of how it was loaded.
LOADED = ("is_local", "local_files_only", "name_or_path")


# --------------------------------------------------------------------------------------------------------------- saving
def save(
    model: PreTrainedModel, tokenizer: Any, state: Mapping[str, Tensor], folder: str | Path, base: str | Path | None
) -> None:
    """Write a model with the weights `state`, under its own names, and its tokenizer; as its difference from the model
    in folder `base` where that is given and spares enough.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    delta = None if base is None else difference(model, state, Path(base))
    if base is None or delta is None:
        model.save_pretrained(str(folder), state_dict=dict(state))
        tokenizer.save_pretrained(str(folder))
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(delta, str(folder / DELTA), {"format": "pt"})
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], str(_dtype(state)).removeprefix("torch.")
    config.save_pretrained(str(folder))
    relied = _weight_files(Path(base)) + _shared_tokenizer(tokenizer, folder, Path(base))
    about = {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in relied}
    content = {"layout": LAYOUT, "folder": os.path.relpath(base, folder), "rows": _rows(model), "files": about}
    write_json(folder / BASE, content)


def difference(model: PreTrainedModel, state: Mapping[str, Tensor], base: Path) -> dict[str, Tensor] | None:
    """Of the weights of a model those that are not the base's, bit for bit; None where the whole is to be kept."""
    if getattr(model.config, "auto_map", None):
        return None
    takes = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    options = {"add_pooling_layer": False} if takes and getattr(model, "pooler", None) is None else {}
    start = opened(type(model), base, dtype=_dtype(state), **options)
    known = start.state_dict()
    if known.keys() != state.keys() or _plain(start.config) != _plain(model.config):
        return None
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, value in state.items():
        held, place = known[name], (value.data_ptr(), value.numel())
        longer = held.ndim > 1 and held.shape[1:] == value.shape[1:] and len(held) < len(value) == _rows(model)
        if held.dtype != value.dtype or not (longer or held.shape == value.shape):
            return None
        if place not in seen:  # tied: one tensor by two names
            tensors |= _changed(name, value.detach().cpu().contiguous(), held)
        seen.add(place)
    kept = sum(value.nbytes for value in tensors.values())
    whole = sum({value.data_ptr(): value.nbytes for value in state.values()}.values())
    return tensors if kept <= MOST * whole else None


def _changed(name: str, value: Tensor, held: Tensor) -> dict[str, Tensor]:
    """What is to be kept of a tensor: nothing, all of it, or the rows that are not the base's."""
    if value.ndim < 2:
        return {} if torch.equal(_bits(value), _bits(held)) else {name: value}
    parts = []
    for start in range(0, len(held), BLOCK):
        ours, theirs = (_bits(one[start : min(start + BLOCK, len(held))]).flatten(1) for one in (value, held))
        if not torch.equal(ours, theirs):
            parts.append(start + (ours != theirs).any(1).nonzero()[:, 0])
    places = torch.cat([*parts, torch.arange(len(held), len(value))])
    if 2 * len(places) > len(value):
        return {name: value}
    return {name + ROWS: value[places], name + PLACES: places} if len(places) else {}


def _rows(model: PreTrainedModel) -> int:
    """Rows of the embedding matrix."""
    embeddings: Any = model.get_input_embeddings()
    return len(embeddings.weight)


def _bits(value: Tensor) -> Tensor:
    """The same bytes as integers: NaN equals itself, and 0 is not −0."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.contiguous().view(sizes[value.element_size()])


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """That of a model's weights."""
    return next(value.dtype for value in state.values() if value.is_floating_point())


def _plain(config: Any) -> dict[str, Any]:
    """What a configuration decides, but for what a model and its base may differ in."""
    return {key: value for key, value in config.to_dict().items() if key not in APART}


def _weight_files(base: Path) -> list[Path]:
    """The files of a base that its weights follow from."""
    names = ("config.json", BASE)
    return [*(base / name for name in names if (base / name).is_file()), *sorted(base.glob("*.safetensors*"))]


def _shared_tokenizer(tokenizer: Any, folder: Path, base: Path) -> list[Path]:
    """Write a tokenizer's files; where they say what the base's do, remove them and tell which these are."""
    files = [Path(file) for file in tokenizer.save_pretrained(str(folder)) if Path(file).is_file()]
    theirs = [base / file.name for file in files]
    pairs = zip(files, theirs, strict=True)
    if not all(other.is_file() and _content(file) == _content(other) for file, other in pairs):
        return []
    for file in files:
        file.unlink()
    return theirs


def _content(file: Path) -> Any:
    """What a file of a tokenizer says."""
    data = file.read_bytes()
    if file.name != "tokenizer_config.json":
        return data
    return {key: value for key, value in json.loads(data).items() if key not in LOADED}


# -------------------------------------------------------------------------------------------------------------- loading
def opened(auto: Any, folder: str | Path, **options: Any) -> Any:
    """`auto.from_pretrained`, of a class of transformers, of safetensors alone, for a folder of either kind.

    Raises ArtifactError where the base is not there or is another one.
    """
    base = base_of(folder)
    if base is None:
        return auto.from_pretrained(str(folder), use_safetensors=True, **options)
    if options.get("dtype") == "auto":
        options["dtype"] = read_json(Path(folder) / "config.json")["dtype"]
    return _completed(opened(auto, base, **options), Path(folder), "quantization_config" in options)


@torch.no_grad()
def _completed(model: Any, folder: Path, quantized: bool) -> Any:
    """A base with what its descendant in a folder has of its own, in place."""
    from safetensors.torch import load_file

    tensors = load_file(str(folder / DELTA))
    if not tensors:
        return model
    if quantized:
        raise ArtifactError(f"{folder}: tuned weights cannot be quantised from their difference; run snakemake again")
    rows = read_json(folder / BASE)["rows"]
    with torch.random.fork_rng(devices=[]):  # new rows are drawn, and then replaced
        if rows != _rows(model):
            model.resize_token_embeddings(rows, mean_resizing=False)
    known, whole = model.state_dict(), dict[str, Any]()
    for name, value in tensors.items():
        if name.endswith(ROWS):
            matrix = known[name.removesuffix(ROWS)]
            matrix[tensors[name.removesuffix(ROWS) + PLACES]] = value.to(matrix.dtype)
        elif not name.endswith(PLACES):
            whole[name] = value.to(known[name].dtype)
    model.load_state_dict(whole, strict=False, assign=True)
    if whole and getattr(model.config, "tie_word_embeddings", False):
        model.tie_weights()
    return model


def base_of(folder: str | Path) -> Path | None:
    """The folder of the base that a model is kept as a difference from; None for one kept whole.

    Raises ArtifactError where it is not there or is another one.
    """
    folder = Path(folder)
    if not (folder / BASE).is_file():
        return None
    about = read_json(folder / BASE)
    if about.get("layout") != LAYOUT:
        raise ArtifactError(f"{folder}: {BASE} has layout {about.get('layout')}, this version reads {LAYOUT}")
    place = folder / about["folder"]
    if not place.is_dir():  # where a link lies on the way, what `..` means depends on who reads it
        place = Path(os.path.normpath(folder.absolute() / about["folder"]))
    for name, expected in about["files"].items():
        file = place / name
        if not file.is_file():
            raise ArtifactError(
                f"{folder}: its base model is not there (no {os.path.normpath(file)}), and this folder holds only what "
                "differs from it; bring that back, or in the run's own place `d2llm export` writes a folder that "
                "needs no other"
            )
        if file.stat().st_size != expected["bytes"] or _digest(file) != expected["sha256"]:
            raise ArtifactError(
                f"{folder}: {os.path.normpath(file)} is not of the base it was trained from (sha256 "
                f"{_digest(file)[:12]}…, expected {expected['sha256'][:12]}…); bring that back, or run "
                "`snakemake --cores all` to train anew"
            )
    return place


def tokenizer_folder(folder: str | Path) -> Path | str:
    """Where a model's tokenizer lies: with it, or with its base."""
    base = base_of(folder)
    own = base is None or (Path(folder) / "tokenizer_config.json").is_file()
    return folder if base is None or own else tokenizer_folder(base)


def root_of(folder: str | Path) -> Path | str:
    """The folder that holds the whole model which a model goes back to; itself, where that is kept whole."""
    base = base_of(folder)
    return folder if base is None else root_of(base)


def _digest(file: Path) -> str:
    """sha256: as the record of the job that wrote the file has it, where the file is no newer, else read once."""
    stamp, record = file.stat(), file.parent / PROVENANCE
    if record.is_file() and stamp.st_mtime_ns <= record.stat().st_mtime_ns:
        claim = claimed(file.parent).get(file)
        if isinstance(claim, str):
            return claim
    return _hashed(file.resolve(), stamp.st_size, stamp.st_mtime_ns)


@cache
def _hashed(file: Path, *stamp: int) -> str:
    return file_digest(file)

"""An index as a Vespa application: `python examples/vespa/make.py --student MODEL --index INDEX --to FOLDER`.

Writes FOLDER/app (the package, with the student's scorer as ONNX), FOLDER/feed.jsonl (a document a passage) and
FOLDER/client.safetensors (the passages' spread, by which `query.py` makes a query's weights). `--index` is what `d2llm index` wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import save_file

import d2llm
from d2llm.search import corpus, onnx
from d2llm.search.candidates import Approximation, InnerProduct, spread

HERE = Path(__file__).parent
# Passages whose spread is measured.
SAMPLE = 1000


def package(index: Any, to: Path) -> InnerProduct:
    """Write the application package; what passages' features are made by."""
    scorer, (count, width) = index.student.scorer, index.cache.shape
    onnx_file = to / "app" / "files" / "scorer.onnx"
    shutil.copytree(HERE / "app", to / "app")
    onnx_file.parent.mkdir()
    onnx.export(scorer, width, index.mode, onnx_file)
    sample = index.rows(torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE]).contiguous()
    mean, scale = spread(sample)
    fit = Approximation(scorer, index.mode, mean, scale) if scorer.smooth else InnerProduct()
    features = fit.features(sample[:1]).shape[1]
    schema = to / "app" / "schemas" / "passage.sd"
    text = Template(schema.read_text(encoding="utf-8")).substitute(width=width, features=features)
    schema.write_text(text, encoding="utf-8")
    save_file({"mean": mean, "scale": scale}, str(to / "client.safetensors"), {"mode": index.mode})
    return fit


def documents(index: Any, folder: Path, fit: InnerProduct) -> Iterator[dict[str, Any]]:
    """A document a passage, in the JSON that `vespa feed` takes; copies of a text have equal vectors."""
    start = 0
    for piece in corpus.pieces_at(folder):
        numbers = torch.arange(start, start + len(piece))
        rows = index.rows(numbers if index.places is None else index.places[numbers])
        for text, row, features in zip(piece.itertuples(), rows, fit.features(rows), strict=True):
            fields = {"id": text.id, "text": text.text, "passage": values(row), "features": values(features)}
            yield {"put": f"id:d2llm:passage::{text.id}", "fields": fields}
        start += len(piece)


def values(row: torch.Tensor) -> dict[str, list[float]]:
    """A dense tensor as Vespa reads it, in digits that float32 keeps."""
    return {"values": [float(f"{value:.7g}") for value in row.tolist()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("student", "index", "to"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    options.to.mkdir(parents=True)
    index = d2llm.Index.load(options.index, d2llm.load(options.student))
    with torch.inference_mode(), (options.to / "feed.jsonl").open("w", encoding="utf-8") as feed:
        fit = package(index, options.to)
        for document in documents(index, options.index, fit):
            feed.write(json.dumps(document, ensure_ascii=False) + "\n")
    print(f"{options.to}: {len(index)} documents; see examples/vespa/README.md for how they are deployed and fed")


if __name__ == "__main__":
    main()

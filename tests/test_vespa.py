"""The module as ONNX scores as the library does; the Vespa package that holds it is of one piece."""

from __future__ import annotations

import importlib.util
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_search import COSINE, PLAIN_IEM, SKIP, TOKENS, student, texts

from d2llm.models.parts import build_scorer
from d2llm.run.errors import ConfigError
from d2llm.search import corpus, onnx
from d2llm.search.index import Index

EXAMPLE = Path(__file__).parent.parent / "examples" / "vespa"
SCORERS = [
    ("iem", {"hidden": 24}),
    ("iem", {"hidden": 24, "activation": "squared_relu", "init": "matcher", "branches": "shared"}),
    ("iem", {"hidden": 24, "skip": "cosine"}),
    ("cosine", {}),
    ("dot", {}),
    ("bilinear", {}),
]


def logits(file: Path, query: torch.Tensor, passage: torch.Tensor) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logit"], {"query": query.numpy(), "passage": passage.numpy()})[0]


@pytest.mark.parametrize("spec", SCORERS, ids=str)
@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_onnx_gives_the_librarys_logits(spec: tuple[str, dict], mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    scorer = build_scorer(spec[0], 32, **spec[1]).eval()
    with torch.no_grad():
        for weight in scorer.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        query, passage = scorer.query_cache(torch.randn(9, 32)), scorer.passage_cache(torch.randn(9, 32))
        expected = scorer.pairs_cached(query, passage, mode).numpy()
    onnx.export(scorer, query.shape[1], mode, tmp_path / "scorer.onnx")
    computed = logits(tmp_path / "scorer.onnx", query, passage)
    assert computed.shape == (9, 1) and expected.std() > 1e-3
    np.testing.assert_allclose(computed[:, 0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_late_interaction_has_no_such_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scorer maxsim: no ONNX model of it"):
        onnx.export(build_scorer(TOKENS[0], 32, **TOKENS[1]), 32, "symmetric", tmp_path / "x")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def widths(declared: str) -> dict[str, int]:
    return {name: int(size) for name, size in re.findall(r"(\w+)\[(\d+)\]", declared)}


@pytest.mark.parametrize("spec", [PLAIN_IEM, SKIP, COSINE], ids=str)
@torch.inference_mode()
def test_the_package_is_of_one_piece_and_ranks_as_the_library(spec: tuple[str, dict], tmp_path: Path) -> None:
    """Every name and width of the schema, the model, the feed and a query; and, with numpy in Vespa's place, the hits."""
    import pandas as pd

    model, passages = student(spec), texts(60, 2) + texts(5, 2)
    pieces = [pd.DataFrame({"id": [f"p{i}" for i in range(65)], "text": passages})]
    index = corpus.write(model, pieces, tmp_path / "index", "made", "asymmetric", "full")
    make, query = example("make"), example("query")
    (tmp_path / "vespa").mkdir()
    fit = make.package(index, tmp_path / "vespa")
    feed = [json.loads(json.dumps(document)) for document in make.documents(index, tmp_path / "index", fit)]
    body = json.loads(
        json.dumps(query.request(model, tmp_path / "vespa" / "client.safetensors", "甲 乙", candidates=65))
    )

    app = tmp_path / "vespa" / "app"
    services = ElementTree.parse(app / "services.xml").getroot()
    hosts = {alias.text for alias in ElementTree.parse(app / "hosts.xml").getroot().iter("alias")}
    assert {node.get("hostalias") for node in services.iter("node")} == hosts
    assert [document.get("type") for document in services.iter("document")] == ["passage"]
    schema = (app / "schemas" / "passage.sd").read_text(encoding="utf-8")
    assert schema.count("{") == schema.count("}") and "$" not in schema.partition("\n")[2]
    fields = dict(re.findall(r"field (\w+) type (\S+)", schema))
    inputs = dict(re.findall(r"query\((\w+)\) (tensor\S+)", schema))
    assert set(re.findall(r"attribute\((\w+)\)", schema)) <= set(fields)
    assert set(re.findall(r"[^n]query\((\w+)\)", schema)) == set(inputs)
    assert {name.removeprefix("input.query(").rstrip(")") for name in body if name.startswith("input.")} == set(inputs)
    assert all(set(document["fields"]) == set(fields) for document in feed)
    assert widths(fields["passage"]) == widths(inputs["query"]) and widths(fields["features"]) == widths(
        inputs["weights"]
    )
    for name in ("passage", "features"):
        sizes = {len(document["fields"][name]["values"]) for document in feed}
        assert sizes == {int(np.prod(list(widths(fields[name]).values())))}
    nearest, weights = re.search(r"nearestNeighbor\((\w+), (\w+)\)", body["yql"]).groups()
    assert nearest in fields and weights in inputs and f"rank-profile {body['ranking.profile']} " in schema
    file, bound = re.search(r"file: (\S+)", schema)[1], dict(re.findall(r'input "(\w+)": (\S+)', schema))
    assert bound == {"query": "query(query)", "passage": "attribute(passage)"} and f"onnx(scorer).{'logit'}" in schema

    left = torch.tensor([body["input.query(query)"]] * 65)
    right = torch.tensor([document["fields"]["passage"]["values"] for document in feed])
    scores = logits(app / file, left, right)[:, 0]
    exact = model.score(["甲 乙"] * 65, passages)
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-5)
    first = np.array([document["fields"]["features"]["values"] for document in feed]) @ body["input.query(weights)"]
    assert np.corrcoef(first, exact)[0, 1] > 0.96
    assert isinstance(index, Index) and [document["fields"]["id"] for document in feed][:2] == ["p0", "p1"]

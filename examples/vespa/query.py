"""A query to the application that `make.py` wrote: `python examples/vespa/query.py --student MODEL --client FILE "谁修好了机器？"`.

Prints the JSON of a request to /search/; with `--endpoint ADDRESS` sends it and prints the hits. The student embeds the
query here; the content nodes find candidates by the weights, and score them by the module.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import d2llm
from d2llm.search.candidates import Approximation


def request(student: Any, client: Path, query: str, hits: int = 10, candidates: int = 1000) -> dict[str, Any]:
    """The body of a search for one query."""
    with safe_open(str(client), framework="pt") as parts:
        mean, scale, mode = parts.get_tensor("mean"), parts.get_tensor("scale"), parts.metadata()["mode"]
    with torch.inference_mode():
        cached = student.scorer.query_cache(torch.from_numpy(student.encode([query], "query", mode)))
        weights = cached
        if student.scorer.smooth:
            weights = Approximation(student.scorer, mode, mean, scale).weights(cached)
    nearest = f"{{targetHits:{candidates}}}nearestNeighbor(features, weights)"
    return {
        "yql": f"select id, text from passage where {nearest}",
        "hits": hits,
        "ranking.profile": "d2llm",
        "ranking.rerankCount": candidates,
        "input.query(query)": cached[0].tolist(),
        "input.query(weights)": weights[0].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--client", type=Path, required=True, help="client.safetensors, as make.py wrote it")
    parser.add_argument("--endpoint", help="e.g. http://localhost:8080")
    parser.add_argument("query")
    options = parser.parse_args()
    body = json.dumps(request(d2llm.load(options.student), options.client, options.query)).encode()
    if not options.endpoint:
        print(body.decode())
        return
    asked = urllib.request.Request(f"{options.endpoint}/search/", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        for hit in json.load(answer)["root"].get("children", []):
            print(f"{hit['relevance']:9.4f}  {hit['fields']['id']}  {hit['fields']['text']}")


if __name__ == "__main__":
    main()

"""mteb used as its documentation says, without the suite: a plain model on mteb's untouched task classes.
`python plain_mteb.py tasks.json scores.json`.

tasks.json holds [name, split, subset or null] of each task; scores.json gets {name: mteb's scores}. Scores have a
direction and depend on the texts alone, so that the suite's adapter (`PlainScorer`) can give the very same ones.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIZE = 6
MATRIX = np.random.default_rng(3).normal(size=(SIZE, SIZE)).astype(np.float32)


def embed(texts: Sequence[str]) -> np.ndarray:
    """(n, SIZE) float32, of each text the same numbers wherever it stands."""
    return np.stack(
        [np.random.default_rng(zlib.crc32(text.encode())).normal(size=SIZE).astype(np.float32) for text in texts]
    )


class PlainScorer:
    """The same scores through the suite (`d2llm.evaluation.adapter.PairScorer`)."""

    kind, candidates, trained = "iem", "all", True

    def begin(self, task: object) -> None:
        pass

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        return embed(texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        left, right = (embed(side) for side in zip(*pairs, strict=True))
        return (left @ MATRIX * right).sum(1)

    def search(
        self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: object = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        scores = embed(queries) @ MATRIX @ embed(passages).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return list(zip(order, np.take_along_axis(scores, order, 1), strict=True))

    def forget(self) -> None:
        pass


def main(tasks: str, results: str) -> None:
    import mteb
    import torch
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    class Plain:
        mteb_model_meta = ModelMeta.create_empty(
            {"name": "plain/plain", "revision": "1", "similarity_fn_name": ScoringFunction.CUSTOM}
        )

        def encode(self, inputs: object, **kwargs: object) -> np.ndarray:
            return embed([text for batch in inputs for text in batch["text"]])

        def similarity(self, left: np.ndarray, right: np.ndarray):
            return torch.from_numpy(np.asarray(left) @ MATRIX @ np.asarray(right).T)

        def similarity_pairwise(self, left: np.ndarray, right: np.ndarray):
            return torch.from_numpy((np.asarray(left) @ MATRIX * np.asarray(right)).sum(1))

    scores = {}
    for name, split, subset in json.loads(Path(tasks).read_text(encoding="utf-8")):
        task = mteb.get_task(name, eval_splits=[split], hf_subsets=[subset] if subset else None)
        task.load_data()
        measured = task.evaluate(Plain(), split=split, encode_kwargs={"batch_size": 8, "show_progress_bar": False})
        scores[name] = {key: float(value) for key, value in measured[subset or "default"].items()}
    Path(results).write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A whole run in miniature: a config of the real pipeline whose every stage takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2llm.config import Config, load, merged

BASE = {"hidden_size": 32, "layers": 1, "heads": 4, "intermediate_size": 48, "steps": 12, "batch_size": 16}
SETTINGS: dict[str, Any] = {
    "tier": "tiny",
    "methods": {
        "d2llm": {
            "learning_rate": 2e-3, "warmup": 1, "pooling": {"heads": 4}, "interaction": {"hidden": 16},
            "tuning": {"r": 2, "alpha": 2.0}, "beta": 0.1, "gamma": 0.1,
        },
        "bge": {
            "learning_rate": 1e-3,
            "hard_negatives": None,
            "pretraining": {"steps": 2, "batch_size": 8, "max_length": 48},
            "unsupervised": {"steps": 2, "batch_size": 8, "max_length": 48},
        },
        "retromae": {"learning_rate": 1e-3, "pretraining": {"steps": 2, "batch_size": 8, "max_length": 48}},
        "llara": {
            "prompts": {"prefix": "“", "summary": "”，用八个词总结上文：", "prediction": "”，用八个词预测下文："},
            "adaptation": {"steps": 2, "batch_size": 8, "max_length": 64},
        },
        "sgpt": {"hard_negatives": None},
        "udever": {},
    },
    "data": {
        "world": {
            "pretraining_texts": 200, "teacher_symmetric": 48, "teacher_asymmetric": 30, "nli_premises": 20, "sts_pairs": 60, "queries": 16,
            "dev_pairs": 30, "dev_queries": 12, "test_pairs": 40, "test_queries": 12,
        }
    },
    "models": {
        "teacher": BASE | {"layers": 2, "grown_from": "decoder", "steps": 0},
        "decoder": BASE,
        "encoder": BASE,
    },
    "negatives": {"per_query": 4, "bm25_ranks": [1, 8], "dense_ranks": [2, 9]},
    "teacher": {"max_length": 96, "steps": 8, "batch_pairs": 16, "min_ap": 0.0, "pack_size": 3, "batch_tokens": 2048},
    "training": {"steps": 6, "batch_size": 8, "pack": 4, "max_length": 48, "log_every": 2, "dev_every": 4, "dev_sample": 16},
    "evaluation": {"batch_size": 32, "keep": 20, "teacher_candidates": {"bm25": 8, "dense": 8}},
    "runtime": {"corpus_sizes": [20, 60, 300], "repeats": 3, "seconds": 0.2, "teacher_pairs": 30},
}  # fmt: skip


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The settings, with changes laid over them section by section."""
    return merged(SETTINGS | {"results": str(folder)}, changes)


def tiny_config(folder: Path, **changes: Any) -> Config:
    """The same as a validated config."""
    return load([], tiny_settings(folder, **changes))


def changed(config: Config, **changes: Any) -> Config:
    """A config of the same results folder with some settings changed."""
    return tiny_config(Path(config.results), **changes)

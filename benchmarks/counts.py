"""What a GPU would be charged for embedding, scoring and searching, counted without one: kernels launched, copies to and
from it, times the host waits for it, per thousand texts or pairs.

Models of two layers with random weights; the counting device (`counting.py`) computes on the CPU, and has a GPU's
blocks (`--block`, MiB). A kernel takes some microseconds to launch whatever it computes, so that counts which grow with
the pairs, and not with the blocks, are what makes a GPU slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import arguments, publish
from counting import counted, counting

from d2llm.config.recipes import MaxLengths
from d2llm.config.sections import BaseSettings, PromptSettings, TeacherSettings
from d2llm.evaluation.rows.student import StudentScorer
from d2llm.models import device
from d2llm.models.backbone import Backbone
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.models.student import Student, same_formats
from d2llm.search.index import Index
from d2llm.sentence_transformer import Embedder
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training.pretraining import new_model

WORDS = [f"w{number}" for number in range(50)]
PROMPT = PromptSettings(template="does " + "the " * 10 + "text {a} say that {b} is so", yes="yes", no="no")
SIZES = BaseSettings(hidden_size=32, layers=2, heads=4, intermediate_size=64)


def texts(count: int, seed: int) -> list[str]:
    """Of 3 to 30 words, each once."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 31))) + f" w{number % 50}" for number in range(count)]


def cases(options: Any, there: torch.device) -> dict[str, tuple[int, Callable[[], Any]]]:
    """By name: of how many texts or pairs, and what is counted."""
    tokenizer = build_tokenizer([*WORDS, *PROMPT.template.split(), "yes", "no"])
    torch.manual_seed(0)
    body = Backbone(new_model(False, SIZES, tokenizer).base_model.eval(), tokenizer, "decoder")
    parts = ("pma", {"heads": 4}), ("iem", {"hidden": options.hidden})
    student = Student(body, *parts, same_formats(MaxLengths())).eval().to(there)
    settings = TeacherSettings(symmetric=PROMPT, asymmetric=PROMPT, max_length=200)
    teacher = Teacher(new_model(False, SIZES, tokenizer).eval().to(there), tokenizer, settings)
    assert teacher.packs  # tried once, which is not counted
    many, queries, passages = texts(options.texts, 1), texts(options.queries, 2), texts(options.passages, 3)
    row = StudentScorer(student)
    pairs = list(zip(many, many[1:] + many[:1], strict=True))
    for side, role in zip(zip(*pairs, strict=True), ("query", "passage"), strict=True):
        row.vectors(side, role, "symmetric")
    index = Index.build(student, passages)
    vectors = student.encode(queries, "query")
    groups = [(query, passages[:8]) for query in queries]
    embedder = Embedder(student)
    features = {name: value.to(there) for name, value in embedder.preprocess(many[:64]).items()}
    return {
        "embedding, texts": (len(many), lambda: student.encode(many, "passage")),
        "sentence-transformers, texts": (64, lambda: embedder(dict(features))),
        "scoring pairs, pairs": (len(pairs), lambda: row.score_pairs(pairs, "symmetric")),
        "searching, pairs": (len(queries) * len(passages), lambda: index.search_vectors(vectors, 10)),
        "teacher, pairs": (8 * len(groups), lambda: teacher.score(groups, "asymmetric")),
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        texts={"type": int, "default": 2000}, queries={"type": int, "default": 100},
        passages={"type": int, "default": 600}, hidden={"type": int, "default": 512},
        block={"type": int, "default": 1024, "help": "MiB of a block of scores"},
    )  # fmt: skip
    device._gpu_block = lambda there: options.block << 20
    rows = []
    with counting() as there, torch.no_grad():
        for name, (count, call) in cases(options, there).items():
            counts = counted(call)
            rows.append({"what": name, "of": count} | {key: 1000 * n / count for key, n in vars(counts).items()})
    settings = {key: getattr(options, key) for key in ("texts", "queries", "passages", "hidden", "block")}
    publish("counts per thousand", rows, settings, options.json)


if __name__ == "__main__":
    main()

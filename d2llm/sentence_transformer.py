"""A student as modules of sentence-transformers: `load(folder)`, or that library's own `SentenceTransformer(folder,
trust_remote_code=True)`.

`Embedder` is the student's backbone and pooling with its text formats; `Interaction` lets embeddings pass and holds the
scorer, as the IEM is no similarity that library knows: `model[1].matrix(queries, documents)`. The flag is there because
that library imports none but its own classes by itself; the code that runs is this package, and nothing from the
model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import InputModule, Module
from torch import Tensor

import d2llm
from d2llm.config.recipes import Mode, Role
from d2llm.models.scorers.base import Scorer
from d2llm.models.student import Student
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import STUDENT


class Embedder(InputModule):
    """Texts to embeddings. `encode_query` and `encode_document` frame texts for asymmetric search, `encode` for
    symmetric.
    """

    save_in_root = False

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.tokenizer = student.backbone.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Longest input in tokens."""
        return max(form.max_length for form in self.student.formats.values())

    def get_embedding_dimension(self) -> int:
        """d."""
        return self.student.width

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """The exact token ids the student was trained on, padded. `task` is "query", "document" or none."""
        role, mode = _frame(kwargs.get("task"))
        ids, mask = self.student.backbone.pad(self.student.ids([(prompt or "") + text for text in inputs], role, mode))
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` (n, d)."""
        # Brought together: a text at a time would wait for the GPU as often as there are texts.
        ids, mask = (features[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        rows = [tuple(row[real].tolist()) for row, real in zip(ids, mask.astype(bool), strict=True)]
        with nullcontext() if torch.is_grad_enabled() else self.student.embedding():
            return features | {"sentence_embedding": self.student.pool(rows)}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """The student's own folder."""
        self.student.save(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *places: Any, **options: Any) -> Embedder:
        """From a folder or a repository of the hub."""
        return cls(Student.load(_folder(cls, model_name_or_path, subfolder, places, options)))


class Interaction(Module):
    """The scorer of pairs (for D2LLM the IEM). Its weights are in the student's file."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Embeddings pass unchanged."""
        return features

    @torch.inference_mode()
    def matrix(self, queries: Any, documents: Any, mode: Mode = "asymmetric") -> Tensor:
        """(n, d), (m, d) embeddings → (n, m) scores."""
        left, right = self._tensors(queries, documents)
        return self.scorer.matrix(left, right, mode)

    @torch.inference_mode()
    def pairs(self, queries: Any, documents: Any, mode: Mode = "asymmetric") -> Tensor:
        """(n, d), (n, d) embeddings → (n,) scores of row i with row i."""
        left, right = self._tensors(queries, documents)
        return self.scorer.pairs(left, right, mode)

    def _tensors(self, *sides: Any) -> list[Tensor]:
        parameter = next(iter(self.scorer.parameters()), None)
        return [torch.as_tensor(side, device=None if parameter is None else parameter.device) for side in sides]

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Nothing but the name of the folder that holds the weights."""
        self.save_config(output_path)

    def get_config_dict(self) -> dict[str, Any]:
        """Where the weights are."""
        return {"student": STUDENT}

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *places: Any, **options: Any) -> Interaction:
        """From the student beside it."""
        return cls(Student.load(_folder(cls, model_name_or_path, STUDENT, places, options)).scorer)


def _frame(task: str | None) -> tuple[Role, Mode]:
    if task is None:
        return "query", "symmetric"
    return ("query" if task == "query" else "passage"), "asymmetric"


def _folder(module: type[Module], model: str, subfolder: str, places: tuple[Any, ...], options: dict[str, Any]) -> Path:
    known = ("token", "cache_folder", "revision", "local_files_only")  # in this order, where they come without names
    asked = dict(zip(known, places, strict=False)) | {key: options[key] for key in known if key in options}
    path = module.load_dir_path(model, subfolder, **asked)
    if path is None:
        raise ArtifactError(f"{model}: no folder {subfolder} in it; export the student again (`d2llm export`)")
    return Path(path)


def load(folder: str | Path, device: str | None = None) -> SentenceTransformer:
    """What `d2llm export` wrote, or a run's model folder, as a SentenceTransformer. Raises ArtifactError for a folder
    that holds no student.
    """
    student = d2llm.load(folder, device=device)
    return SentenceTransformer(modules=[Embedder(student), Interaction(student.scorer)], device=str(student.device))

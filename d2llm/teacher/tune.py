"""Stage `teacher`: tunes the base model as a yes/no cross-encoder on graded groups, and reports whether it is good
enough.

The loss is binary cross-entropy of yes against no, with graded targets (1 for entailed or relevant, below one half
otherwise). Where the source knows how each word of a candidate stands to the query (the generated world does), a
word-relation loss is added; its head is thrown away. A teacher below `teacher.min_ap` on dev is refused, because every
later number would rest on it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2llm.methods.base import TrainingContext
from d2llm.methods.parameters import decay_groups
from d2llm.models.base import remote, shared
from d2llm.models.lora import add_lora, merge_lora
from d2llm.models.tokens import encodings
from d2llm.run.artifacts import atomic, read_frame, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import TrainingError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import TEACHER_PAIRS
from d2llm.teacher.cross_encoder import Row, Teacher
from d2llm.teacher.load import load
from d2llm.training.loop import Rates, fit
from d2llm.training.memory import InParts
from d2llm.training.optimization import accelerate_precision
from d2llm.training.trackers import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import pandas as pd

    from d2llm.config.schema import Config
    from d2llm.config.sections import TeacherSettings

RELATIONS = 6  # d2llm.data.world.events.relation
LOG_EVERY = 50  # of the updates


def run(config: Config, teacher: str, resume: Resume | None = None) -> None:
    """Tune a teacher of the config, check it on dev, save model and report."""
    from transformers import AutoConfig

    paths, settings = Paths.of(config), config.teacher_of(teacher)
    folder = paths.teacher(teacher)
    train = some_of(read_frame(paths.teacher_train, TEACHER_PAIRS), settings)
    train, dev = (taught(frame, settings) for frame in (train, read_frame(paths.teacher_dev, TEACHER_PAIRS)))
    torch.manual_seed(settings.seed)
    judge = load(paths.base("teacher"), settings, torch.float32 if settings.steps else "auto")
    log_file, report_file = folder / "log.jsonl", folder / "report.json"
    log = Log.of(log_file, resume, config.training.trackers, paths, folder)
    if settings.steps:
        tune(judge, train, settings, log, resume, config.training.precision)
    report = assess(judge, dev)
    write_json(report_file, report)
    for mode, scores in report.items():
        get_logger(__name__).info(
            "%s on dev, %s: AP %.3f, accuracy %.3f", teacher, mode, scores["ap"], scores["accuracy"]
        )
        if scores["ap"] < settings.min_ap:
            raise TrainingError(
                f"the teacher is not good enough to learn from: {mode} dev AP {scores['ap']:.3f} is below "
                "teacher.min_ap "
                f"{settings.min_ap}; raise teacher.steps, or lower the bar knowingly ({report_file} has the details)"
            )
    if settings.quantization != "none":
        # What is kept are the weights themselves; every stage quantises them anew, alike.
        judge = load(paths.base("teacher"), settings.model_copy(update={"quantization": "none"}))
    with atomic(folder / "model") as place:
        stored_dtype = AutoConfig.from_pretrained(paths.base("teacher"), trust_remote_code=remote.allowed()).dtype
        state = {name: value.to(stored_dtype) for name, value in merge_lora(judge.model).items()}
        # The model itself as well: what `Teacher.load` computes in is what the saved config says of it. One that is
        # quantised anew is read whole, unless nothing of it was tuned.
        base = None if settings.quantization != "none" and settings.steps else paths.base("teacher")
        shared.save(judge.model.to(stored_dtype), judge.tokenizer, state, place, base)


def some_of(groups: pd.DataFrame, settings: TeacherSettings) -> pd.DataFrame:
    """The groups it is tuned on: of each mode `teacher.share` of them, rounded up, in their order."""
    if settings.share == 1:
        return groups
    chosen: list[int] = []
    for mode, rows in groups.groupby("mode", sort=True).groups.items():
        order = np.random.default_rng([settings.seed, *f"share {mode}".encode()]).permutation(rows.to_numpy())
        chosen += order[: int(np.ceil(len(order) * settings.share - 1e-9))].tolist()
    return groups.loc[sorted(chosen)].reset_index(drop=True)


def taught(groups: pd.DataFrame, settings: TeacherSettings) -> pd.DataFrame:
    """With the targets of `teacher.targets`. Raises TrainingError where the data were made without them."""
    if settings.targets == "graded":
        return groups
    column = {"label": "label", "probability": "chance"}[settings.targets]
    if column not in groups:
        raise TrainingError(f"teacher.targets: {settings.targets}, which these data lack; remove data/ and run again")
    return groups.assign(target=[np.asarray(values, dtype=float) for values in groups[column]])


def relation_labels(
    teacher: Teacher, candidates: list[str], marks: list[str], rows_tokens: Sequence[Sequence[int]]
) -> list[list[int]]:
    """For every token of every candidate, the digit of its first character (-100 outside slots)."""
    out = []
    for encoded, digits, ids in zip(encodings(teacher.tokenizer, candidates), marks, rows_tokens, strict=True):
        labels = [int(digits[start]) or -100 for start, _ in encoded.offsets]
        assert len(labels) == len(ids)
        out.append(labels)
    return out


class _Examples:
    """Packed rows with targets and word relations, ready to batch."""

    def __init__(self, teacher: Teacher, frame: pd.DataFrame) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.targets: dict[str, list[np.ndarray]] = {}
        self.relations: dict[str, list[list[list[int]]]] = {}
        for mode, part in frame.groupby("mode", sort=True):
            pairs = list(zip(part["query"], (list(b) for b in part["passages"]), strict=True))
            self.rows[mode] = teacher.pack(pairs, mode)
            targets = [np.asarray(values, dtype=np.float32) for values in part["target"]]
            self.targets[mode] = [targets[row.group][row.members] for row in self.rows[mode]]
            flat = [text for _, candidates in pairs for text in candidates]
            marks = [mark for values in part["relations"] for mark in values]
            labels = relation_labels(teacher, flat, marks, teacher.tokens(flat))
            ends = np.cumsum([len(candidates) for _, candidates in pairs])
            by_group = [labels[end - len(c) : end] for end, (_, c) in zip(ends, pairs, strict=True)]
            self.relations[mode] = [[by_group[row.group][i] for i in row.members] for row in self.rows[mode]]

    def batches(self, pairs: int, steps: int, seed: int, asymmetric_share: float) -> list[tuple[str, np.ndarray]]:
        """`steps` batches of one mode and about `pairs` pairs; rows of like length travel together (within 16
        batches).
        """
        rng = np.random.default_rng(seed)
        sizes = {
            mode: max(1, round(pairs * len(rows) / sum(len(row.answers) for row in rows)))
            for mode, rows in self.rows.items()
        }
        queues: dict[str, list[np.ndarray]] = {mode: [] for mode in self.rows}
        out = []
        for _ in range(steps):
            mode = "asymmetric" if rng.random() < asymmetric_share else "symmetric"
            mode = mode if mode in self.rows else next(iter(self.rows))  # some sources have one mode only
            size = sizes[mode]
            if not queues[mode]:
                order = rng.permutation(len(self.rows[mode]))
                lengths = np.array([len(self.rows[mode][i].ids) for i in order])
                chunks = []
                for start in range(0, len(order), 16 * size):
                    part = slice(start, start + 16 * size)
                    chunk = order[part][np.argsort(lengths[part], kind="stable")]
                    chunks += [chunk[i : i + size] for i in range(0, len(chunk), size)]
                queues[mode] = [chunks[i] for i in rng.permutation(len(chunks))]
            out.append((mode, queues[mode].pop()))
        return out


def tune(
    teacher: Teacher, frame: pd.DataFrame, settings: TeacherSettings, log: Log, resume: Resume | None = None,
    precision: str = "float32",
) -> None:  # fmt: skip
    """Train the teacher in place."""
    from accelerate import Accelerator

    examples = _Examples(teacher, frame)
    relation = nn.Linear(teacher.model.config.hidden_size, RELATIONS).to(teacher.model.device)
    if settings.tuning.kind == "lora":
        teacher.model.requires_grad_(False)
        teacher.model = add_lora(teacher.model, settings.tuning)
    teacher.model.train()
    batches = examples.batches(settings.batch_pairs, settings.steps, settings.seed, settings.asymmetric_share)
    context = TrainingContext(
        device=teacher.model.device,
        accelerator=Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=accelerate_precision(precision)),
        loop=partial((resume or Resume()).loop, log_file=log.file),
        log=log,
        log_every=LOG_EVERY,
    )
    task = _Task(teacher, examples, relation, settings.relation_weight, context.autocast)
    fit(
        decay_groups([*teacher.model.named_parameters(), *relation.named_parameters()], settings.learning_rate, 0.01),
        lambda done: batches[done:],
        task.loss,
        steps=settings.steps,
        name="tuning the teacher",
        context=context,
        rates=Rates(settings.warmup, betas=(0.9, 0.98)),
        memory=InParts(task.split),
        about=lambda batch: {"mode": batch[0]},
    )
    log.close()
    teacher.model.eval()


# A mode, and the numbers of its rows.
_Batch = tuple[str, np.ndarray]


class _Task:
    """What the teacher learns: the answers and, where the source knows them, how words relate."""

    def __init__(
        self, teacher: Teacher, examples: _Examples, relation: nn.Linear, weight: float,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:  # fmt: skip
        self.teacher, self.examples, self.relation = teacher, examples, relation
        self.weight, self.autocast = weight, autocast

    def loss(self, batch: _Batch) -> dict[str, Tensor]:
        """The loss terms of a batch."""
        mode, index = batch
        rows, device = [self.examples.rows[mode][i] for i in index], self.teacher.model.device
        labels = [self.examples.relations[mode][i] for i in index] if self.weight else []
        shares = self.teacher.shares
        with self.autocast():
            begun = self.teacher.instruction(mode) if shares else []
            known = begun[0][0].shape[2] if begun else 0
            width = max(len(row.ids) for row in rows) - known
            at, digits = marked(rows, labels, width, known)
            logits, _, states = self.teacher.forward(rows, mode, begun, only_answers=shares and not digits)
        wanted = torch.from_numpy(np.concatenate([self.examples.targets[mode][i] for i in index])).to(device)
        logits = logits.float()
        terms = {"answer": F.binary_cross_entropy_with_logits(logits[:, 0] - logits[:, 1], wanted)}
        if digits:  # only some sources know any
            picked = states.flatten(0, 1)[torch.tensor(at, device=device)].float()
            right = torch.tensor(digits, device=device)
            terms["relation"] = self.weight * F.cross_entropy(self.relation(picked), right)
        return terms

    def split(self, batch: _Batch, parts: int) -> list[tuple[_Batch, dict[str, float]]]:
        """At most so many parts of the rows, each with its share of the candidates and of the marked words."""
        mode, index = batch
        answers, words = self._counts(mode, index)
        pieces = [(piece, self._counts(mode, piece)) for piece in np.array_split(index, min(parts, len(index)))]
        return [
            ((mode, piece), {"answer": own / answers, "relation": related / max(1, words)})
            for piece, (own, related) in pieces
        ]

    def _counts(self, mode: str, index: np.ndarray) -> tuple[int, int]:
        rows = [self.examples.rows[mode][i] for i in index]
        words = marked(rows, [self.examples.relations[mode][i] for i in index], 0)[1]
        return sum(len(row.answers) for row in rows), len(words)


def marked(rows: list[Row], labels: list[list[list[int]]], width: int, known: int = 0) -> tuple[list[int], list[int]]:
    """Where the candidates' words that have a relation stand in rows of so many tokens laid end to end, the first
    `known` of each left out, and the relations; nothing without `labels`.
    """
    at, digits = list[int](), list[int]()
    for i, (row, spans) in enumerate(zip(rows, labels, strict=bool(labels))):
        for (start, end), own in zip(row.text_spans, spans, strict=True):
            for offset, digit in enumerate(own[: end - start]):
                if digit != -100:
                    at.append(i * width + start + offset - known)
                    digits.append(digit)
    return at, digits


def calibration(probability: np.ndarray, label: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """By bin of the probability of yes: how many, its mean, and the share that is true."""
    edges = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        {
            "from": k / bins,
            "to": (k + 1) / bins,
            "n": int((edges == k).sum()),
            "mean_probability": float(probability[edges == k].mean()),
            "share_true": float(label[edges == k].mean()),
        }
        for k in range(bins)
        if (edges == k).any()
    ]


def assess(teacher: Teacher, dev: pd.DataFrame, bins: int = 10) -> dict[str, dict]:
    """By mode: AP, accuracy at 0.5, precision of yes, how often it says yes to what is wrong, expected calibration
    error against labels, Spearman with the targets, accuracy by phenomenon.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score

    report = {}
    for mode, part in dev.groupby("mode", sort=True):
        pairs = [(a, list(b)) for a, b in zip(part["query"], part["passages"], strict=True)]
        logits = np.concatenate(teacher.score(pairs, mode, description=f"teacher on dev, {mode}"))
        margin = logits[:, 0] - logits[:, 1]  # ranks: a sure teacher's probabilities tie at 1
        probability = 1 / (1 + np.exp(-margin))
        label, wanted, name = (
            np.concatenate([np.asarray(v) for v in part[key]]) for key in ("label", "target", "phenomenon")
        )
        label = label.astype(bool)
        curve = calibration(probability, label, bins)
        error = sum(b["n"] * abs(b["mean_probability"] - b["share_true"]) for b in curve) / len(label)
        yes = probability >= 0.5
        right = label == yes
        report[str(mode)] = {
            "n": len(label),
            "ap": float(average_precision_score(label, margin)),
            "accuracy": float(right.mean()),
            # Of what it says yes to, the share that is right; of what is wrong, the share it says yes to.
            "precision": float(label[yes].mean()) if yes.any() else None,
            "yes_to_wrong": float(yes[~label].mean()) if not label.all() else None,
            "expected_calibration_error": float(error),
            "spearman_with_targets": float(spearmanr(margin, wanted)[0]),
            "accuracy_by_phenomenon": {str(k): float(right[name == k].mean()) for k in sorted(set(name))},
            "reliability": curve,
        }
    return report

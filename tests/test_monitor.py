"""Development samples and curves: metrics against plain loops and libraries, and a training that being watched does not
change.
"""

from __future__ import annotations

import shutil
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from task_folders import pair_task, retrieval_task, sts_task
from test_training import prepared, weights

from d2llm.cli.preflight import check_data
from d2llm.config.load import load
from d2llm.config.recipes import TunedWeights
from d2llm.config.schema import Config
from d2llm.models.student import Student, TextFormat
from d2llm.run.artifacts import read_jsonl
from d2llm.run.errors import ArtifactError, ConfigError, DataError, TrainingError
from d2llm.run.paths import Paths
from d2llm.training import monitor
from d2llm.training import train as training
from d2llm.training.monitor import Monitor


def dev_tasks(root: Path) -> Path:
    """A set of each kind whose only split is dev, in words the tiny tokenizer knows."""
    rng = np.random.default_rng(4)

    def words() -> str:
        return " ".join(rng.choice(tiny.WORDS[:20], rng.integers(5, 12)))

    pair_task(root, n=60, split="dev")
    (sts_task(root, n=50) / "test.parquet").rename(root / "sts_x" / "dev.parquet")
    (retrieval_task(root, queries=40, passages=150) / "test").rename(root / "ir_x" / "dev")
    for file in root.rglob("*.parquet"):
        frame = pd.read_parquet(file)
        for column in set(frame) & {"query", "passage", "text"}:
            frame[column] = [words() for _ in range(len(frame))]
        frame.to_parquet(file)
    return root


def config_of(folder: Path) -> Config:
    config = Config(results=str(folder), methods={"sgpt": {}}, training={"dev_every": 5, "dev_sample": 24})
    dev_tasks(Paths.of(config).tasks)
    return config


def student(kind: str = "decoder", lora: bool = False) -> Student:
    """One that tells roles and kinds of search apart, with the interaction module."""
    # Dropout, without which training and evaluation mode would be the same.
    backbone = tiny.backbone(kind, **({"hidden_dropout_prob": 0.3} if kind == "encoder" else {}))
    if lora:
        backbone.tune(TunedWeights(kind="lora", r=2, alpha=4.0, dropout=0.3))
        torch.manual_seed(5)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide whether it counts
                torch.nn.init.normal_(parameter, std=0.3)
    formats = {
        (role, mode): TextFormat((number,))
        for number, (role, mode) in enumerate(product(("query", "passage"), ("symmetric", "asymmetric")), 5)
    }
    return Student(backbone, ("mean", {}), ("iem", {"hidden": 16}), formats)


# ------------------------------------------------------------------------------------------------------------- samples
def changed(config: Config, **training: Any) -> Config:
    return Config(**config.model_dump() | {"training": training})


def test_samples_are_of_dev_small_fixed_and_hold_all_that_is_relevant(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    parts, again = ({part.task: part for part in Monitor.load(config).samples} for _ in range(2))
    assert set(parts) == {"nli_x", "sts_x", "ir_x"}
    assert all((parts[name].left, parts[name].right) == (again[name].left, again[name].right) for name in parts)
    folder = Paths.of(config).tasks
    for name, column in (("nli_x", "label"), ("sts_x", "score")):
        frame = pd.read_parquet(folder / name / "dev.parquet")
        part = list(zip(parts[name].left, parts[name].right, parts[name].target, strict=True))
        assert len(part) == 24
        assert set(part) <= set(zip(frame["query"], frame["passage"], frame[column].astype(float), strict=True))
    corpus, queries, qrels = (
        pd.read_parquet(folder / "ir_x" / "dev" / f"{name}.parquet") for name in ("corpus", "queries", "qrels")
    )
    part = parts["ir_x"]
    assert (len(part.left), part.target.shape) == (6, (6, len(part.right)))
    ids, texts = dict(zip(queries.text, queries.id, strict=True)), corpus.set_index("id").text
    relevant = [set(texts[qrels[qrels.query_id == ids[query]].doc_id]) for query in part.left]
    for row, wanted in zip(part.target, relevant, strict=True):
        assert {text for text, hit in zip(part.right, row, strict=True) if hit} == wanted  # all, and nothing else
    assert len(part.right) == max(36, len(set().union(*relevant)))
    # Of equal scores, mteb ranks the greater id first: so do passages stand.
    key = {text: name for name, text in zip(corpus.id, corpus.text, strict=True)}
    order = [key[text] for text in part.right]
    assert len(key) == len(corpus) and order == sorted(order, reverse=True)
    # More is wanted than there is.
    whole = {part.task: part for part in Monitor.load(changed(config, dev_sample=9999)).samples}
    assert (len(whole["nli_x"].left), whole["ir_x"].target.shape) == (60, (40, 150))
    assert [[n for n in range(1, 13) if Monitor([], every).due(n, 12)] for every in (5, 0)] == [[1, 5, 10, 12], []]


def test_damaged_dev_sets_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    """What they hold by the data stage, what has become of their files by the training."""
    config = config_of(tmp_path)
    folder = Paths.of(config).tasks
    nli, sts = (folder / f"{name}/dev.parquet" for name in ("nli_x", "sts_x"))
    for file in (nli, sts):
        shutil.copy(file, file.with_name("test.parquet"))
    shutil.copytree(folder / "ir_x" / "dev", folder / "ir_x" / "test")
    check_data(config, folder)
    good = pd.read_parquet(nli)
    good.assign(label=good.label.replace(1, -1)).to_parquet(nli)
    with pytest.raises(DataError, match=r"nli_x/dev.parquet: column 'label', row 1: expected 0 or 1, found -1"):
        check_data(config, folder)
    sts.unlink()
    with pytest.raises(ArtifactError, match=r"sts_x/dev.parquet: missing"):
        Monitor.load(config)
    assert Monitor.load(changed(config, dev_every=0)).samples == []  # reads none
    with pytest.raises(ConfigError, match="training.dev_every"):
        load([], {"training": {"dev_every": float("nan")}})


# ------------------------------------------------------------------------------------------------------------- metrics
@pytest.mark.parametrize(("kind", "lora"), [("decoder", True), ("encoder", False)])
def test_values_are_those_of_every_pair_scored_by_hand(tmp_path: Path, kind: str, lora: bool) -> None:
    watch, subject = Monitor.load(config_of(tmp_path)), student(kind, lora)
    subject.train()
    measured = watch.measure(subject, "here")
    subject.eval()

    @cache
    def embedded(text: str, role: str, mode: str) -> torch.Tensor:
        return subject.embed([text], role, mode).detach()

    def score(part: monitor.Sample, a: str, b: str) -> float:
        q, p = embedded(a, "query", part.mode), embedded(b, "passage", part.mode)
        return subject.scorer.pairs(q, p, part.mode).item()

    for part in watch.samples:
        if part.type == "retrieval":
            ranks = []
            for query, row in zip(part.left, part.target, strict=True):
                values = {place: score(part, query, passage) for place, passage in enumerate(part.right)}
                order = sorted(values, key=values.get, reverse=True)
                first = 1 + min(place for place, passage in enumerate(order) if row[passage])
                ranks.append(1 / first if first <= 10 else 0.0)
            expected = np.mean(ranks)
        else:
            values = [score(part, a, b) for a, b in zip(part.left, part.right, strict=True)]
            sts = part.type == "sts"
            expected = spearmanr(values, part.target)[0] if sts else average_precision_score(part.target, values)
        assert measured[part.task] == pytest.approx(expected, abs=1e-6), part.task
    assert len({round(value, 6) for value in measured.values()}) == 3


def test_equal_scores_rank_by_place_and_correlate_with_nothing_and_broken_ones_are_an_error(tmp_path: Path) -> None:
    relevant = np.zeros((3, 14), dtype=bool)
    relevant[0, 0] = relevant[1, 9] = relevant[2, 10] = True
    assert monitor.mrr_at_10(np.zeros((3, 14)), relevant) == pytest.approx((1 + 1 / 10 + 0) / 3)
    watch, subject = Monitor.load(config_of(tmp_path)), student()
    with torch.no_grad():
        subject.scorer.head.weight.zero_()
    assert set(watch.measure(subject, "here")) == {"nli_x", "ir_x"}
    with torch.no_grad():
        subject.scorer.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"sgpt/base seed 1, step 9: \d+ of \d+ scores on the dev sample of ir_x"):
        watch.measure(subject, "sgpt/base seed 1, step 9")


# ------------------------------------------------------------------------------------------------------- no disturbance
def test_measuring_leaves_modes_and_weights_alone(tmp_path: Path) -> None:
    watch, subject = Monitor.load(config_of(tmp_path)), student(lora=True)
    subject.train()
    subject.scorer.eval()  # a part kept from training mode stays so
    modes = [part.training for part in subject.modules()]
    assert len(set(modes)) == 2
    before = {name: (p.data_ptr(), p.detach().clone(), p.requires_grad) for name, p in subject.named_parameters()}
    first = watch.measure(subject, "here")
    assert [part.training for part in subject.modules()] == modes
    for name, parameter in subject.named_parameters():
        place, value, trains = before[name]
        assert parameter.data_ptr() == place and torch.equal(parameter, value) and parameter.requires_grad == trains
    assert watch.measure(subject, "here") == first
    # Also when it fails, and training goes on with LoRA in its place.
    with torch.no_grad():
        subject.scorer.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError):
        watch.measure(subject, "here")
    assert [part.training for part in subject.modules()] == modes
    assert not any(getattr(part, "merged", False) for part in subject.modules())
    assert all(parameter.data_ptr() == before[name][0] for name, parameter in subject.named_parameters())


@pytest.mark.parametrize("name", ["d2llm", "sgpt"])
def test_a_watched_training_ends_with_the_same_weights(name: str, tiny_scores: Config, tmp_path: Path) -> None:
    # Dropout draws from the global generator, which watching must not touch.
    methods = {"d2llm": {"tuning": {"dropout": 0.2}}, "sgpt": {"learning_rate": 0.05}}
    digests, logs = [], []
    for every in (0, 2):
        config = prepared(tiny_scores, tmp_path / str(every), training={"dev_every": every}, methods=methods)
        training.run(config, name, "base", 1)
        digests.append(weights(config, name))
        log = read_jsonl(Paths.of(config).run(name, "base", 1) / "log.jsonl")
        dev = [record for record in log if record["stage"] == "dev"]
        assert [record["step"] for record in dev] == ([1, 2, 4, 6] if every else [])
        tasks = {path.parent.name for path in Paths.of(config).tasks.glob("*/task.json")}
        assert all(set(record) == {"stage", "step"} | tasks for record in dev)
        logs.append([record for record in log if record["stage"] != "dev"])
    assert digests[0] == digests[1] and logs[0] == logs[1]
    assert dev[0] != {**dev[-1], "step": 1}  # it did see the student change


def test_a_damaged_dev_set_stops_a_training_before_it_starts(tiny_scores: Config, tmp_path: Path) -> None:
    config = prepared(tiny_scores, tmp_path / "run")
    data = Paths.of(config).data
    source = data.resolve()
    data.unlink()
    shutil.copytree(source, data)
    (data / "tasks" / "ir_claim" / "dev" / "qrels.parquet").write_bytes(b"no table")
    with pytest.raises(ArtifactError, match=r"ir_claim/dev/qrels.parquet: damaged Parquet"):
        training.run(config, "sgpt", "base", 1)
    assert not Paths.of(config).run("sgpt", "base", 1).exists()

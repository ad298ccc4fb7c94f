"""Table 5: what the configuration, the trainings and the data card say is what it shows, in three forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import training_records as records

from d2llm.config.schema import Config
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.context import context
from d2llm.reporting.layout import formats as layout
from d2llm.reporting.tables.settings import TABLE
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths

METHODS = {
    "d2llm": {
        "learning_rate": 0.002, "head_learning_rate": 5e-4, "temperature": 1.5, "beta": 0.1, "gamma": 0.01,
        "schedule": "linear", "warmup": 0.05, "tuning": {"r": 16, "alpha": 12.0, "dropout": 0.25},
        "max_lengths": {"symmetric": 33},
    },
    "bge": {
        "learning_rate": 3e-4, "temperature": 0.03, "warmup": 7, "hard_negatives": 2, "weight_decay": 0.125,
        "pretraining": {"steps": 300, "batch_size": 64}, "unsupervised": {"steps": 0},
    },
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Config:
    models = {"decoder": {"hidden_size": 96, "layers": 3}, "encoder": {"hidden_size": 64, "layers": 5}}
    config = Config(results=str(tmp_path), methods=METHODS, seeds=[1, 2], models=models, training={"max_length": 96})
    records.write_collected(config)
    return config


def inputs(config: Config) -> Collected:
    scores = pd.DataFrame([{"task": "nli_x", "task_title": "NLI-X"}, {"task": "ir_x", "task_title": "IR_X"}])
    return replace(collected(Paths.of(config), ("trainings", "curves", "card_json")), scores=scores)


def test_settings_and_data_are_those_of_config_trainings_and_card(config: Config) -> None:
    table = TABLE.build(inputs(config), context(config), config)
    methods, data = table.blocks
    assert methods.header == ("Setting", "BGE", "D2LLM")
    assert {row[0]: row[1:] for row in methods.rows} == {
        "Base model": ("encoder, 5 layers of width 64", "decoder, 3 layers of width 96"),
        "Parameters": ("958,337", "958,337"),
        "of them trained, base model": ("69,632", "69,632"),
        "of them trained, pooling and scorer": ("0", "461,441"),
        "Tuning": ("all weights", "LoRA, rank 16, α 12, dropout 0.25"),
        "Pooling": ("[CLS]", "PMA (heads 4)"),
        "Scorer": ("cosine", "IEM"),
        "Loss": ("InfoNCE", "CI + FI"),
        "Loss weights": ("–", "CI 1, RI-PHN 1, RI-EHN 0.1, FI 0.01"),
        "Teacher's scores": ("no", "yes"),
        "Temperature": ("0.03", "1.5"),
        "Learning rate": ("0.0003", "0.002"),
        "Learning rate of pooling and scorer": ("–", "0.0005"),
        "Schedule": ("linear, warm-up 7 updates", "linear, warm-up 5%"),
        "Weight decay": ("0.125", "0.01"),
        "Hard negatives a query": ("2", "4"),
        "Most tokens (query / passage / symmetric)": ("64 / 96 / 96", "96 / 96 / 33"),
        "Own pre-training": ("pretraining 300 × 64", "–"),
        "Updates × queries": ("40 × 16", "40 × 16"),
    }
    assert data.header == ("Used for", "Set", "Mode", "Queries", "Pairs", "Passages")
    assert data.rows == (
        ("training", "nli", "symmetric", "3,656", "7,466", "14,676"),
        ("dev", "NLI-X (nli_x)", "symmetric", "–", "600", "–"),
        ("test", "IR_X (ir_x)", "asymmetric", "500", "1.93 a query", "2,000"),
        ("teacher, train", "–", "asymmetric", "12,000", "47,975", "–"),
    )
    text = layout.to_markdown(table)
    assert "101" not in text and "102" not in text  # no seconds: two runs give the same bytes


def test_variants_stay_out_and_an_untrained_method_is_told(config: Config) -> None:
    own = inputs(config)
    trainings = pd.concat([own.trainings.assign(variant="hot", parameters=1), own.trainings])
    curves = pd.concat([own.curves.assign(variant="hot", name="other"), own.curves])
    about = context(config)
    mixed = TABLE.build(replace(own, trainings=trainings, curves=curves), about, config)
    assert mixed == TABLE.build(own, about, config)
    with pytest.raises(ArtifactError, match=r"runs.csv holds no training of bge"):
        TABLE.build(replace(own, trainings=own.trainings[own.trainings["method"] != "bge"]), about, config)

"""The whole suite on one's own files and checkpoints in real formats: Qwen2 with a byte-level BPE tokenizer, BERT."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from own_files import jsonl, rows
from test_pipeline import run
from test_workflow import fresh, refused  # noqa: F401 - fresh is a fixture

from d2llm.cli import main as cli

WHO, DOES, WHERE = (
    ("A man", "A woman", "The girl", "Two dogs"),
    ("is playing", "is eating", "is asleep"),
    ("in the park", "near the lake", "at home"),
)


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(part) for part in (WHO, DOES, WHERE))


def write_files(folder: Path) -> None:
    """Labelled and graded pairs (JSONL), a retrieval set (CSV), for train, dev and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 110), ("dev", 40), ("test", 40)):
        lines = []
        for number in range(count):
            a, entailed = sentence(rng), number % 5 < 2
            b = a.rpartition(" ")[0].rpartition(" ")[0] if entailed else sentence(rng)
            lines.append((a, b, *(("yes", 5) if entailed else ("no", number % 3))))
        jsonl(folder / f"{split}.jsonl", rows("sentence1 sentence2 label score", *lines))
        texts = [f"{sentence(rng)} {number}" for number in range(20)]
        queries = [f"who {text.split(' ', 2)[2]} {split}?" for text in texts]
        tables = {"q": {"id": range(20), "text": queries}, "c": {"id": range(20), "text": texts}}
        for letter, table in (tables | {"r": {"query_id": range(20), "doc_id": range(20)}}).items():
            pd.DataFrame(table).to_csv(folder / f"{letter}_{split}.csv", index=False)


def write_models(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    rng = np.random.default_rng(1)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([sentence(rng) + " yes no" for _ in range(200)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 256}
    sizes_of_qwen = {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "num_key_value_heads": 2}
    qwen = Qwen2Config(tie_word_embeddings=True, **sizes_of_qwen, **sizes)
    Qwen2ForCausalLM(qwen).save_pretrained(folder / "qwen")
    tokenizer.save_pretrained(folder / "qwen")
    words = tiny.tokenizer(sorted({word for part in (WHO, DOES, WHERE) for phrase in part for word in phrase.split()}))
    bert = BertConfig(vocab_size=len(words), num_hidden_layers=2, pad_token_id=0, **sizes)
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")


def three(split: str) -> dict[str, object]:
    names = {"queries": "q", "corpus": "c", "qrels": "r"}
    return {part: f"own/{letter}_{split}.csv" for part, letter in names.items()} | {"relevance": None}


ASKED = {"yes": " yes", "no": " no"}
TRAIN = {"file": "own/train.jsonl", "query": "sentence1", "passage": "sentence2"}
SPLITS = {split: f"own/{split}.jsonl" for split in ("dev", "test")}
SETTINGS = {
    "tier": "own",
    "data": {
        "source": "files",
        "files": {
            "train": {
                "nli": TRAIN | {"label": "label", "yes": ["yes"], "no": ["no"]},
                "sts": TRAIN | {"score": "score", "scores": [0, 5], "yes_from": 4.0},
                "ir": {"mode": "asymmetric", "retrieval": three("train")},
            },
            "tasks": {
                "entail": {"type": "pair_classification", "group": "nli", "yes": ["yes"], "no": ["no"], **SPLITS},
                "related": {"type": "sts", "group": "sts", "scores": [0, 5], "sample": 30, "title": "Related"} | SPLITS,
                "find": {"type": "retrieval", "group": "ir", "dev": three("dev"), "test": three("test")},
            },
            "teacher_dev": 0.1,
        },
    },
    "models": {
        "teacher": {"source": "./own/qwen", "layers": 2},
        "decoder": {"source": "./own/qwen", "layers": 1},
        "encoder": {"source": "./own/bert"},
    },
    "teacher": {
        "symmetric": {"template": "Does A imply B?\nA: {a}\nB: {b}\nanswer:", **ASKED},
        "asymmetric": {"template": "Does the text answer the question?\nquestion: {a}\ntext: {b}\nanswer:", **ASKED},
        "tuning": {"kind": "lora", "r": 4, "alpha": 8.0, "first_layer": 1},
        "max_length": 200, "steps": 8, "batch_pairs": 16, "min_ap": 0.0,
    },
    "negatives": {"per_query": 2, "bm25_ranks": [1, 5], "dense_ranks": [1, 8]},
    "training": {
        "steps": 8, "batch_size": 8, "pack": 4, "max_length": 64, "texts_at_once": 8,
        "log_every": 2, "dev_every": 4, "dev_sample": 20,
    },
    "methods": {
        "d2llm": {"learning_rate": 1e-3, "warmup": 1, "pooling": {"heads": 4}, "interaction": {"hidden": 16}},
        "retromae": {"learning_rate": 1e-3, "pretraining": {"steps": 2, "batch_size": 8}},
    },
    "tuning": {"grids": {name: {"learning_rate": [1e-3, 4e-3]} for name in ("d2llm", "retromae")}},
    "evaluation": {"teacher_candidates": {"bm25": 5, "dense": 5}},
    "runtime": {"corpus_sizes": [20, 60], "repeats": 3, "seconds": 0.2, "teacher_pairs": 20},
}  # fmt: skip


OWN = ("--configfile", "own.yaml", "-C", "results=out")


def tuning(fresh: Path, out: Path) -> None:  # noqa: F811
    """Two trials a method, of which one is the run that is there; the best on development data is adopted."""
    done = run(fresh, *OWN, target="tune")
    ran = Counter(re.findall(r"rule (train\w*|evaluate_dev|tune):", done.stdout + done.stderr))
    assert ran == Counter({"train": 1, "train_retromae": 1, "evaluate_dev": 4, "tune": 1})
    trials = pd.read_csv(out / "tuning" / "trials.csv", keep_default_na=False)
    chosen = yaml.safe_load((out / "tuning" / "chosen.yaml").read_text(encoding="utf-8"))["methods"]
    assert list(chosen) == list(SETTINGS["methods"])
    for name in chosen:
        means = {}
        for rate, variant in ((1e-3, "base"), (4e-3, "learning_rate=0.004")):
            scores = pd.read_parquet(out / "development" / name / variant / "seed1" / "scores.parquet")
            assert set(scores["split"]) == {"dev"}
            scores = scores[(scores["phenomenon"] == "all") & scores["metric"].isin(["ap", "spearman", "mrr_at_10"])]
            means[rate] = scores.groupby("task_type")["value"].mean().mean()
        assert trials.loc[trials["method"] == name, "mean"].tolist() == pytest.approx(list(means.values()))
        assert chosen[name] == {"learning_rate": max(means, key=means.get)}
    before = yaml.safe_load((fresh / "own.yaml").read_text(encoding="utf-8"))
    shutil.copy(fresh / "own.yaml", fresh / "adopted.yaml")
    with contextlib.chdir(fresh):  # by which results are found
        assert cli.main(["adopt", "--config", "out/own/config.yaml", "--to", "adopted.yaml"]) == 0
    adopted = yaml.safe_load((fresh / "adopted.yaml").read_text(encoding="utf-8"))
    assert {name: settings["learning_rate"] for name, settings in adopted["methods"].items()} == {
        name: settings["learning_rate"] for name, settings in chosen.items()
    }
    assert adopted | {"methods": None} == before | {"methods": None}


@pytest.mark.slow
def test_own_files_and_checkpoints_through_the_whole_workflow(fresh: Path) -> None:  # noqa: F811
    (fresh / "own").mkdir()
    write_files(fresh / "own")
    write_models(fresh / "own")
    (fresh / "own.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    # All but the notebook and the page, and of tables and figures those that tell of files and checkpoints.
    files = ("scores.csv", "comparisons.csv", "runtime.csv", "tables/settings.md", "tables/nli.md")
    figures = ("figures/architecture.svg", "figures/main.svg", "figures/dev.svg")
    run(fresh, *OWN, target=[f"out/own/{name}" for name in (*files, *figures)])
    out = fresh / "out" / "own"
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["method"]) == {"d2llm", "retromae", "teacher", "bm25"}
    assert set(scores["task"]) == {"entail", "related", "find"} and scores["value"].notna().all()
    assert "Related (sample of 30)" in set(scores["task_title"])
    assert "decoder, qwen, lowest 1 layer" in (out / "tables" / "settings.md").read_text(encoding="utf-8")
    drawn = json.loads((out / "figures" / "architecture.svg.provenance.json").read_text(encoding="utf-8"))
    about = json.loads((out / "about.json").read_text(encoding="utf-8"))
    assert about["widths"] == {"teacher": 32, "decoder": 32, "encoder": 32}
    assert any("about.json" in name for name in drawn["inputs"])
    tuning(fresh, out)
    # A changed file makes what is made of it stale; a checkpoint that exists stays.
    row = rows("sentence1 sentence2 label score", ("A man is here", "A man is", "yes", 5))
    jsonl(fresh / "own" / "train.jsonl", row, "a")
    again = run(fresh, *OWN, "--dry-run")
    rules = set(re.findall(r"^(\w+) +\d+$", again.stdout, re.M))
    assert {"texts", "data", "teacher", "train_retromae", "evaluate"} <= rules
    assert not any(rule.startswith("base") for rule in rules)
    # One that is gone is told before anything runs.
    shutil.rmtree(fresh / "own" / "bert")
    assert refused(fresh, *OWN).startswith("error: models.encoder.source: './own/bert': no model in")

"""Models as published as reference rows: their scores are those of mteb's own evaluation, what cannot be a row is
refused before anything is fetched, and every table says that nothing was trained for them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import hub
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from task_folders import pair_task, retrieval_task, sts_task
from tiny_run import tiny_config, tiny_settings

from d2llm.config.evaluation import RuntimeSettings
from d2llm.config.load import load
from d2llm.config.schema import Config, Run
from d2llm.evaluation import evaluate, published, tasks
from d2llm.evaluation.mteb import mteb_task
from d2llm.evaluation.rows.published import PublishedScorer
from d2llm.evaluation.rows.published import load as load_row
from d2llm.evaluation.runtime import Texts, published_timings
from d2llm.reporting.context import context
from d2llm.run import jobs
from d2llm.run.errors import ConfigError, D2LLMError
from d2llm.run.paths import Paths
from d2llm.teacher.prompts import prompts

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = {"query": "问 ", "document": "答 ", "STS": "甲 "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder in sentence-transformers' format, with prompts in its configuration and a pickle beside it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    place = tmp_path_factory.mktemp("shelf") / "tiny-model"
    letters = sorted(set("前提假设段落号问题答甲乙0123456789"))
    tiny.backbone("encoder", place / "encoder", words=[letter for letter in letters if letter not in tiny.WORDS])
    body = Transformer(str(place / "encoder"))
    model = SentenceTransformer(modules=[body, Pooling(32, "mean")], prompts=PROMPTS, device="cpu")
    model.save(str(place / "model"))
    (place / "model" / "training_args.bin").write_bytes(b"pickle")
    return place / "model"


def config_of(root: Path, **row: object) -> Config:
    settings = tiny_settings(root, references=["bm25", {"name": "tiny_model", **row}])
    (root / "own.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return load([root / "own.yaml"])


@pytest.mark.slow
def test_scores_are_those_of_mtebs_own_evaluation(folder: Path, tmp_path: Path) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    config = config_of(tmp_path, model=str(folder), batch_size=7)
    published.run(config, "tiny_model")
    brought = Paths.of(config).published("tiny_model")
    assert {file.suffix for file in brought.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".txt"}
    places = (pair_task(tmp_path / "t"), sts_task(tmp_path / "t"), retrieval_task(tmp_path / "t"))
    read = [tasks.read(place, "test") for place in places]
    scores, _ = evaluate.evaluate(load_row(config, Run("tiny_model", "base", 1)), read, "tiny", config.evaluation)
    metrics = {"pair_classification": {"ap": "similarity_ap"}, "sts": {"spearman": "spearman"}}
    alone = SentenceTransformer(str(folder), device="cpu")
    spread = []
    for task in read:
        known, split, subset = mteb_task(task)
        result = mteb.evaluate(alone, known, cache=None, show_progress_bar=False, co2_tracker=False)
        expected = result.task_results[0].scores[split][0]
        own = scores[(scores["task"] == task.name) & (scores["phenomenon"] == "all")].set_index("metric")["value"]
        for metric, key in metrics.get(task.type, {"mrr_at_10": "mrr_at_10", "ndcg_at_10": "ndcg_at_10"}).items():
            assert own[metric] == pytest.approx(expected[key], abs=1e-6), (task.name, metric)
            spread.append(expected[key])
    assert np.ptp(spread) > 0.01 and set(scores["scorer"]) == {"cosine"}
    # It is timed as a bi-encoder is.
    texts = Texts(["问题1", "问题2"], ["段落1", "段落2", "段落3"])
    settings = RuntimeSettings(corpus_sizes=[5, 12], repeats=3, seconds=0.1)
    timed = list(published_timings(load_row(config, Run("tiny_model", "base", 1)), texts, settings))
    assert [(one.phase, one.batch, one.corpus) for one in timed] == [
        ("encode_query", 1, 0), ("encode_passage", 7, 0), ("score", 7, 0), ("search", 1, 5), ("search", 1, 12),
    ]  # fmt: skip
    assert all((one.seconds > 0).all() for one in timed) and timed[-1].bytes_per_passage == 32 * 4
    # Prompts and length are what the config says where it does.
    other = config_of(tmp_path, model=str(folder), prompts={"query": "乙 ", "document": ""}, max_length=3)
    scorer = load_row(other, Run("tiny_model", "base", 1))
    scorer.begin(mteb_task(read[2]).task.metadata)
    vectors = scorer.vectors(["段落1号"], "query", "asymmetric")
    alone.max_seq_length = 3
    np.testing.assert_allclose(vectors, alone.encode(["乙 段落1号"]), atol=1e-6)


def test_a_plain_checkpoint_of_some_layers_is_a_row(folder: Path, tmp_path: Path) -> None:
    decoder = tiny.backbone("decoder", tmp_path / "plain")
    row = {"model": str(tmp_path / "plain"), "pooling": "mean", "layers": 1}
    config = config_of(tmp_path, **row)
    published.run(config, "tiny_model")
    scorer = load_row(config, Run("tiny_model", "base", 1))
    with torch.no_grad():
        inner = decoder.model
        inner.layers = inner.layers[:1]
        states = inner(input_ids=torch.tensor([decoder.tokenizer("甲乙")["input_ids"]])).last_hidden_state
    scorer.begin(MagicMock())
    np.testing.assert_allclose(scorer.model.model.encode(["甲乙"])[0], states[0].mean(0), atol=1e-6)
    with pytest.raises(ConfigError, match="layers: expected at most the 2 layers the checkpoint has; found 3"):
        published.check(config_of(tmp_path, **row | {"layers": 3}).published()["tiny_model"])
    with pytest.raises(ConfigError, match=r"no modules.json; say how .* one vector \(pooling: mean\)"):
        published.run(config_of(tmp_path, model=row["model"]), "tiny_model")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "intfloat/multilingual-e5-smal"}, r"no revision of it \(did you mean intfloat/multilingual-e5-small\?"),
        ({"model": "BAAI/bge-reranker-v2-m3"}, r"a re-ranker has no vectors; it can be the teacher"),
        ({"model": "openai/text-embedding-3-small"}, "one vector a text, in sentence-transformers' format|no revision"),
        ({"model": "nomic-ai/nomic-embed-text-v1.5"}, "runs Python code|one vector a text"),
        ({"model": "./nowhere"}, r"no model in nowhere \(config\.json is missing\)"),
        ({"model": "no model"}, "source as org/name on the hub"),
        ({"model": "./甲"}, r"a name for it \(name: …\)"),
        ({"model": "./here", "revision": "main"}, "revision for a model on the hub only"),
        ({"model": "org/model", "name": "bge"}, "its name 'bge' is taken"),
        ({"model": "org/bm25"}, "expected each once|its name 'bm25' is taken"),
        ({"modell": "org/name"}, r"references\.1\.modell: unknown key .* nearest valid key: references\.1\.model"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_row_is_refused(row: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(D2LLMError, match=message):
        config = load([], {"methods": {"bge": {}}, "references": ["bm25", row], "results": str(tmp_path)})
        published.check(next(iter(config.published().values())))


def test_a_model_made_for_prompts_is_not_fed_without(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "my-multilingual-e5-small"
    copied.symlink_to(folder)
    config = config_of(tmp_path, model=str(copied))
    published.check(config.published()["tiny_model"])  # it has prompts
    bare = tmp_path / "multilingual-e5-small-bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not in sentence-transformers' format: no modules\.json"):
        published.check(config_of(tmp_path, model=str(bare)).published()["tiny_model"])
    (bare / "modules.json").write_text("[]")
    (bare / "model.safetensors").touch()
    for known in ({}, {"prompts": {"query": "", "document": ""}}):
        (bare / published.PROMPTS).write_text(json.dumps(known))
        with pytest.raises(ConfigError, match=r'none registered .* \(prompts: \{"query": "query: ", "document": "pass'):
            published.check(config_of(tmp_path, model=str(bare)).published()["tiny_model"])
    published.check(config_of(tmp_path, model=str(bare), prompts={}).published()["tiny_model"])


@pytest.mark.slow
def test_it_is_fetched_from_a_hub_with_a_pickle_only_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    there = tmp_path / "hub" / "some-org" / "model_a"
    shutil.copytree(folder, there)
    torch.save(load_file(there / "model.safetensors"), there / "pytorch_model.bin")
    (there / "model.safetensors").unlink()
    row = {"model": "some-org/model_a", "revision": hub.COMMIT}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with hub.serving(tmp_path / "hub", failures=1) as (address, _):
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        for weights, code in (("safetensors", 2), ("pytorch", 0)):
            config_of(tmp_path, **row, weights=weights)
            command = [sys.executable, "-m", "d2llm.cli", "published", "--row", "tiny_model", "--config", "own.yaml"]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == code, done.stderr[-2000:]
            assert code == 0 or "some-org/model_a: no weights (*model*.safetensors); where it has" in done.stderr
    given = load_row(config_of(tmp_path, **row, weights="pytorch"), Run("tiny_model", "base", 1)).model.model
    np.testing.assert_array_equal(
        given.encode(["问题"]), SentenceTransformer(str(folder), device="cpu").encode(["问题"])
    )


def test_equal_passages_have_equal_scores() -> None:
    """Whatever batches their texts would come in: here every encoding rounds in its own way."""
    rng = np.random.default_rng(0)
    model = MagicMock(encode=lambda batches, **_: rng.random((sum(len(b["text"]) for b in batches), 4), np.float32))
    model.model.device, model.similarity = torch.device("cpu"), lambda a, b: a @ b.T
    ((rows, scores),) = PublishedScorer(model, 2).search(["问"], ["甲", "乙", "甲", "甲"], 4, np.arange(4)[::-1].copy())
    places = [rows.tolist().index(row) for row in (3, 2, 0)]
    assert len(set(scores[places])) == 1 and places == sorted(places)


def test_the_modern_tier_asks_as_mteb_does_and_has_rows_that_mteb_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from mteb.models.model_implementations.qwen3_reranker import Qwen3RerankerWrapper

    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(transformers, name, MagicMock())
    judge, config = Qwen3RerankerWrapper("none", device="cpu"), load([ROOT / "config/modern.yaml"])
    for prompt in prompts(config.teacher).values():
        wanted = prompt.text("甲", "乙")
        instruction = wanted.split("<Instruct>: ")[1].split("\n")[0]
        assert wanted == judge.prefix + judge.format_instruction(instruction, "甲", "乙") + judge.suffix
        assert (prompt.yes, prompt.no) == ("yes", "no")
    pinned = {name: published.check(model)[1].revision for name, model in config.published().items()}
    assert len(pinned) == 3 and all(len(revision) == 40 for revision in pinned.values())
    # What encodes their texts is among the versions that make their scores stale.
    versions = [jobs.versions_line(config, "evaluate", method=row, variant="base", seed=1) for row in (*pinned, "bm25")]
    assert ["sentence-transformers" in line for line in versions] == [True, True, True, False]


def test_rows_without_training_are_marked(tmp_path: Path) -> None:
    model = {"model": "Qwen/Qwen3-Embedding-0.6B"}
    config = tiny_config(tmp_path, references=["teacher", "bm25", model], teacher={"steps": 0})
    about = context(config)
    assert list(config.rows()) == about.references == about.untrained == ["teacher", "bm25", "qwen3_embedding_0_6b"]
    assert about.label("qwen3_embedding_0_6b") == "Qwen3-Embedding-0.6B†" and about.note.startswith("† Nothing was")
    tuned = context(tiny_config(tmp_path, references=["teacher"]))
    assert tuned.label("teacher") == "Teacher (cross-encoder)" and not tuned.note

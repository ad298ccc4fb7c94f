"""The base checkpoints: what they are asked to read, how states are pooled, how the teacher grows from the decoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_negatives import changed_results
from test_world_logic import event
from tiny_run import changed, tiny_config
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from d2llm.config.schema import Config
from d2llm.config.sections import BaseSettings
from d2llm.data import build
from d2llm.data.world.lexicon import SLOTS, lexicon
from d2llm.data.world.surface import FUNCTION_WORDS
from d2llm.models.backbone import Backbone, head_of
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.run.artifacts import read_json, read_jsonl
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths
from d2llm.teacher.prompts import prompts
from d2llm.training import pretraining

LEX = lexicon()
TARGETS = pretraining.SlotTargets.build()


# --------------------------------------------------------------------------------------------------------- slot targets
def test_encoding_by_hand() -> None:
    count = len(SLOTS)
    first = event(agent="护士", verb="借走", object="苹果", place="公园")[:count]
    second = event(agent="画家", verb="归还", object="钢琴")[:count]
    slots = np.stack([np.concatenate([first, second]), np.concatenate([second, np.zeros(count, int)])])
    positions = TARGETS.encode(slots, np.array([0, 1]), np.array([-1, SLOTS.index("time")]))
    assert positions.shape == (2, 2 * count + 2)
    for row, columns in ((0, 2 * count), (1, count)):
        for column in range(columns):  # a position among the nodes of the slot
            nodes = [0, *(i for i in range(1, len(LEX)) if LEX.slot[i] == column % count)]
            assert nodes[positions[row, column]] == slots[row, column]
    assert (positions[1, count : 2 * count] == -100).all()  # there is no second event to read
    assert positions[:, -2].tolist() == [0, 1]
    assert positions[:, -1].tolist() == [0, SLOTS.index("time") + 1]


def test_the_reader_scores_only_what_counts() -> None:
    torch.manual_seed(0)
    reader = pretraining.SlotReader(8, TARGETS)
    pooled = torch.randn(5, 8)
    wanted = torch.zeros(5, 2 * len(SLOTS) + 2, dtype=torch.long)
    wanted[0, 0], wanted[1, 3] = 4, -100
    wanted[2, len(SLOTS) :] = -100
    loss, right = reader(pooled, wanted)
    logits = reader.linear(pooled).view(5, *TARGETS.table.shape)
    values, hits = [], []
    for i, row in np.ndindex(*wanted.shape):
        if wanted[i, row] == -100:
            continue
        size = int((TARGETS.table[row] >= 0).sum())
        own = logits[i, row, :size].detach().double()
        values.append(float(torch.logsumexp(own, 0) - own[wanted[i, row]]))
        hits.append(int(own.argmax()) == int(wanted[i, row]))
    assert float(loss.detach()) == pytest.approx(np.mean(values), rel=1e-5)
    assert float(right) == pytest.approx(np.mean(hits))


# -------------------------------------------------------------------------------------------------------------- pooling
def small(encoder: bool, layers: int) -> tuple[Backbone, Any]:
    """A body and its head, with weights that differ everywhere."""
    torch.manual_seed(1)
    tokenizer = build_tokenizer(["甲乙丙丁戊己庚辛"])
    sizes = BaseSettings(hidden_size=16, layers=layers, heads=2, intermediate_size=24)
    network = pretraining.new_model(encoder, sizes, tokenizer).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Backbone(network.base_model, tokenizer, "encoder" if encoder else "decoder"), head_of(network)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "weighted"])
def test_pooled_texts_keep_their_order_whatever_their_neighbours(encoder: bool, pooling: str) -> None:
    body, head = small(encoder, 2)
    rng = np.random.default_rng(2)
    sequences = [rng.integers(6, len(body.tokenizer), n).tolist() for n in (5, 40, 2, 5, 17, 1, 40, 9, 3, 22, 2)]
    with torch.no_grad():
        pooled, loss = pretraining._pooled(
            body, head, sequences, pooling, not encoder, torch.Generator().manual_seed(0)
        )
        for vector, ids in zip(pooled, sequences, strict=True):
            states, n = body.model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy(), len(ids)
            weights = {"mean": [1] * n, "last": [0] * (n - 1) + [1], "cls": [1] + [0] * (n - 1)}
            alone = np.average(states, axis=0, weights=weights.get(pooling, range(1, n + 1)))
            np.testing.assert_allclose(vector.numpy(), alone, atol=1e-4, rtol=1e-4)
    assert pooled.shape == (11, 16) and (float(loss) == 0.0) == encoder


def test_the_language_loss_of_a_decoder_is_that_of_a_quarter_of_its_texts() -> None:
    body, head = small(False, 1)
    sizes = (6, 4, 9, 5, 7, 8, 3, 10)  # one pass
    sequences = [np.random.default_rng(n).integers(6, len(body.tokenizer), n).tolist() for n in sizes]
    values = []
    with torch.no_grad():
        _, loss = pretraining._pooled(body, head, sequences, "mean", True, torch.Generator())
        for ids in sorted(sequences, key=len)[::4]:
            logits = head(body.model(input_ids=torch.tensor([ids])).last_hidden_state[0])
            values += [float(F.cross_entropy(logits[i], torch.tensor(ids[i + 1]))) for i in range(len(ids) - 1)]
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- masking
def test_masking_spares_what_is_not_text() -> None:
    special = SimpleNamespace(cls_token_id=2, sep_token_id=3, mask_token_id=4)
    ids = torch.tensor([[2, 10, 11, 12, 13, 3, 0, 0], [2, 14, 3, 0, 0, 0, 0, 0], [2, 10, 15, 16, 17, 18, 19, 3]] * 200)
    hidden, labels = pretraining.mask_tokens(ids, (ids != 0).long(), special, 0.3, torch.Generator().manual_seed(0))
    asked, text = labels != -100, ids >= 10
    assert not (asked & ~text).any() and (hidden[~asked] == ids[~asked]).all()
    assert (hidden[asked] == 4).all() and (labels[asked] == ids[asked]).all()
    assert float(asked[text].float().mean()) == pytest.approx(0.3, abs=0.02)


# ----------------------------------------------------------------------------------------------------------------
def test_a_grown_model_starts_as_its_source(tiny_bases: Config) -> None:
    paths = Paths.of(tiny_bases)
    source = AutoModelForCausalLM.from_pretrained(paths.base("decoder")).eval()
    torch.manual_seed(0)
    sizes = BaseSettings(hidden_size=32, layers=4, heads=4, intermediate_size=48)
    network, tokenizer = pretraining.grown(paths.base("decoder"), sizes)
    assert network.config.num_hidden_layers == 4
    known = dict(network.named_parameters())
    assert all(torch.equal(parameter, known[name]) for name, parameter in source.named_parameters())
    models = (source, network.eval(), AutoModelForCausalLM.from_config(source.config).eval())
    for text in pd.read_parquet(paths.pretraining)["text"].head(20):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            before, after, other = (model(input_ids=ids).logits.log_softmax(-1) for model in models)
        assert float((after - before).abs().mean()) < 0.2 * float((other - before).abs().mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 1}, "layers 1 is not more than the 1 of the model it grows from"),
        ({"layers": 2, "hidden_size": 64}, "hidden_size 64 is not the 32 of the model it grows from"),
        ({"layers": 2, "intermediate_size": 64}, "intermediate_size 64 is not the 48"),
    ],
)
def test_a_model_grows_only_upwards(changes: dict, message: str, tiny_bases: Config) -> None:
    """In the stage of the source's files, before any job of the settings."""
    settings = BaseSettings(**{"hidden_size": 32, "heads": 4, "intermediate_size": 48} | changes)
    with pytest.raises(ConfigError, match=f"models.teacher: {message}"):
        pretraining.grown(Paths.of(tiny_bases).base("decoder"), settings, "models.teacher")
    with pytest.raises(ConfigError, match=f"models.teacher: {message}"):
        changed(tiny_bases, models={"teacher": changes})


# ----------------------------------------------------------------------------------------------------------- vocabulary
def test_the_vocabulary_spells_everything_the_pipeline_feeds(tiny_bases: Config) -> None:
    paths = Paths.of(tiny_bases)
    tokenizers = [AutoTokenizer.from_pretrained(paths.base(name)) for name in ("teacher", "decoder", "encoder")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab() == tokenizers[2].get_vocab()
    tokenizer = tokenizers[0]

    def spelled(text: str) -> list[str]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        pieces = tokenizer.convert_ids_to_tokens(ids)
        assert "".join(pieces) == "".join(text.split())
        return pieces

    assert all(spelled(word) == [word] for word in LEX.words())  # a word is one token
    for prompt in prompts(tiny_bases.teacher).values():
        for part in (prompt.instruction, prompt.query, prompt.passage, prompt.cue, prompt.yes, prompt.no):
            assert len(spelled(part)) <= len(part.split())  # every piece of a prompt is one token
    assert len(tiny_bases.phrases()) > 2
    files = [paths.pretraining, paths.pool, *sorted(paths.tasks.rglob("*.parquet"))]
    columns = ["text", "paraphrase", "distractor", "next_text", "query", "passage"]
    texts = [pd.read_parquet(file).filter(columns).stack() for file in files]
    for text in {*FUNCTION_WORDS, *tiny_bases.phrases(), *pd.concat(texts)}:
        spelled(text)


# ---------------------------------------------------------------------------------------------------------------- stage
def test_the_stage_twice(tiny_bases: Config, tmp_path: Path) -> None:
    copy = changed_results(tiny_bases, tmp_path)
    shutil.rmtree(Paths.of(copy).root / "models")
    summaries = {}
    for model in ("decoder", "teacher", "encoder"):
        torch.rand(1)
        pretraining.run(copy, model)
        one, two = (Paths.of(config).base(model) for config in (tiny_bases, copy))
        for name in ("model.safetensors", "tokenizer.json", "summary.json"):
            assert (one / name).read_bytes() == (two / name).read_bytes()
        summaries[model] = set(read_json(two / "summary.json"))
    assert summaries["teacher"] == {"parameters"}  # grown, not trained
    assert {"parameters", "slots", "paraphrase", "language", "loss", "slots_right"} <= summaries["encoder"]


def test_pretraining_learns(tmp_path: Path) -> None:
    """Every term of the loss falls well below that of a guess, for decoder and encoder alike."""
    world = {"pretraining_texts": 60}
    base = {"steps": 50, "batch_size": 16, "learning_rate": 1e-2}
    config = tiny_config(tmp_path, data={"world": world}, models={"decoder": base, "encoder": base})
    build.run_texts(config)
    build.run(config)
    for model in ("decoder", "encoder"):
        short = changed(config, models={model: base | {"steps": 1}}, data={"world": world})
        pretraining.run(short, model)
        (first,) = read_jsonl(Paths.of(short).base(model) / "log.jsonl")
        pretraining.run(config, model)
        last = read_jsonl(Paths.of(config).base(model) / "log.jsonl")[-1]
        for term in ("slots", "paraphrase", "language"):
            assert last[term] < 0.8 * first[term], (model, term, first[term], last[term])
        assert last["slots_right"] > first["slots_right"] + 0.2


def test_a_weight_of_zero_leaves_the_language_loss_out(tiny_data: Config, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, models={"encoder": {"steps": 1, "language_weight": 0.0}})
    Paths.of(config).root.mkdir(parents=True)
    Paths.of(config).data.symlink_to(Paths.of(tiny_data).data)
    pretraining.run(config, "encoder")
    (record,) = read_jsonl(Paths.of(config).base("encoder") / "log.jsonl")
    assert "language" not in record and {"slots", "paraphrase", "slots_right"} <= set(record)

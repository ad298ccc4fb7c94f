"""`d2llm plan`: sizes against the models themselves, FLOPs against torch's own counter, and the words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from tiny_run import tiny_settings

from d2llm.cli import main as cli
from d2llm.cli import plan
from d2llm.config.load import load
from d2llm.config.recipes import TunedWeights
from d2llm.config.schema import Config
from d2llm.config.sections import PretrainedSettings
from d2llm.data import build
from d2llm.run.artifacts import write_json
from d2llm.run.errors import ConfigError
from d2llm.run.paths import PROVENANCE, Paths
from d2llm.run.stages import settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_sizes_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    backbone = tiny.backbone(kind, tmp_path / "model", num_hidden_layers=3)
    settings = PretrainedSettings(source=str(tmp_path / "model"))
    found = plan.sizes(settings, "models.x.source")
    layers = [p for name, p in backbone.model.named_parameters() if p.ndim == 2 and any(c.isdigit() for c in name)]
    assert found.body == sum(p.numel() for p in layers)
    assert (found.layers, found.hidden) == (3, backbone.hidden_size)
    embedding = backbone.model.get_input_embeddings().weight
    assert found.embeddings == embedding.numel() * (1 if found.tied else 2)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("OPT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}),
    ],
)  # fmt: skip
def test_sizes_of_families_that_name_them_otherwise(family: str, sizes: dict[str, int], tmp_path: Path) -> None:
    import transformers

    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(vocab_size=50, **sizes))
    model.save_pretrained(tmp_path / "model")
    layers = [
        p for name, p in model.named_parameters() if p.ndim == 2 and any(part.isdigit() for part in name.split("."))
    ]
    assert plan.sizes(PretrainedSettings(source=str(tmp_path / "model")), "").body == sum(p.numel() for p in layers)


def test_layers_that_are_cut_are_not_counted(tmp_path: Path) -> None:
    tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    source = str(tmp_path / "model")
    whole, cut = (plan.sizes(PretrainedSettings(source=source, **more), "") for more in ({}, {"layers": 1}))
    assert 3 * cut.body == whole.body and cut.embeddings == whole.embeddings
    with pytest.raises(
        ConfigError, match="models.decoder.layers: expected at most the 3 layers the checkpoint has; found 4"
    ):
        plan.sizes(PretrainedSettings(source=source, layers=4), "models.decoder.source")


def test_flops_of_a_pass_are_what_torch_counts(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone = tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    settings = PretrainedSettings(source=str(tmp_path / "model"))
    length, texts = 64, 4
    model = type(backbone.model)._from_config(backbone.model.config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(texts, length, dtype=torch.long), use_cache=False)
    expected = plan.sizes(settings, "").forward(texts * length, length)
    # Torch also counts the rotary positions' small products.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:

    backbone = tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    settings = PretrainedSettings(source=str(tmp_path / "model"))
    tuning = TunedWeights(kind="lora", r=4, first_layer=1)
    backbone.tune(tuning)
    assert plan.trainable(plan.sizes(settings, ""), tuning) == backbone.trained_count()


def made(folder: Path, **training: object) -> Config:
    """The paper tier with models of this machine."""
    for kind in ("decoder", "encoder"):
        if not (folder / kind).exists():
            tiny.backbone(kind, folder / kind, num_hidden_layers=2)
    values = load([ROOT / "config/paper.yaml"]).model_dump(mode="json")
    named = {"teacher": "decoder", "decoder": "decoder", "encoder": "encoder"}
    values["models"] = {name: {"source": str(folder / kind)} for name, kind in named.items()}
    values["training"] |= training
    values["results"] = str(folder / "r")
    (folder / "c.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return load([folder / "c.yaml"])


def test_the_paper_tier_is_planned_without_its_data(tmp_path: Path) -> None:
    config = made(tmp_path)
    found = plan.plan(config, "h100")
    by = {cost.stage: cost for cost in found["costs"]}
    assert by["train d2llm"].jobs == sum(run.method == "d2llm" for run in config.runs())
    tokens = 6000 * 256 * (2 + 8) * 70  # updates, queries, texts of each, mean of 20 and 120 tokens
    assert by["train d2llm"].tokens == pytest.approx(tokens)
    assert by["train sgpt"].tokens == pytest.approx(tokens * 3 / 10)  # one hard negative, as published
    assert by["teacher scores, a shard"].jobs == 8
    assert found["amounts"].corpus == 118605 + 106813 + 3 * 100001 + 100902 + 100999 + 100930
    assert any("nli_zh_atec" in line for line in found["assumed"])
    assert found["disk"]["base models"] > 0
    # Twice the updates, twice the hours.
    longer = made(tmp_path, steps=12000)
    assert {c.stage: c for c in plan.plan(longer, "h100")["costs"]}["train d2llm"].hours == pytest.approx(2 * by["train d2llm"].hours)  # fmt: skip


@pytest.fixture
def with_data(tiny_data: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config whose data stage has run where it stands: its results folder is the usual one, `results`."""
    shutil.copytree(tiny_data.results, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    config = load([], tiny_settings(Path("results")))
    write_json(Paths.of(config).data / PROVENANCE, {"settings": settings(config, "data"), "inputs": {}})
    return config


def test_a_run_that_has_its_data_is_planned_from_it(with_data: Config) -> None:
    found = plan.plan(with_data, "cpu")
    assert found["assumed"] == () and found["amounts"].queries > 0
    sets = [name for name, (_, kind, _, _) in build.TASKS.items() if kind != "retrieval"]
    assert found["amounts"].pairs == len(sets) * with_data.data.world.test_pairs  # nothing leaked
    assert "one core" in plan.run(with_data, "cpu", 1)


@pytest.mark.parametrize("what", ["elsewhere", "other settings", "half", "damaged"])
def test_another_run_s_data_is_not_planned_from(what: str, with_data: Config, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Whoever stands in a clone that has run something plans what the config says, as in a fresh one."""
    config, record = with_data, Paths.of(with_data).data / PROVENANCE
    if what == "elsewhere":
        monkeypatch.chdir(elsewhere)
    elif what == "other settings":
        config = load([], tiny_settings(Path("results"), data={"world": {"test_pairs": 38}}))
    elif what == "half":
        record.unlink()
    else:
        record.write_text("{", encoding="utf-8")
    found = plan.plan(config, "cpu")
    assert found["assumed"] == ("all numbers of texts",) and found["amounts"].pairs == 5 * config.data.world.test_pairs


# ------------------------------------------------------------------------------------------------------ pretext stages
# By hand: width 8, feed-forward 16, two layers of 4·64 + 3·8·16 = 640 weights, 2000 words of width 8; texts of 16 tokens.
SMALL = {"hidden_size": 8, "layers": 2, "heads": 2, "intermediate_size": 16}


def pretexts(methods: dict, **more: object) -> list[plan.Cost]:
    """The lines of pretext stages of a run of the generated world with these methods."""
    models = dict.fromkeys(("teacher", "decoder", "encoder"), SMALL)
    world = {"source": "world", "world": {"pretraining_texts": 100}}
    config = load([], {"data": world, "models": models, "methods": methods} | more)
    found = plan.plan(config, "a100")["costs"]
    assert all(cost.hours == pytest.approx(cost.flops / (156e12 * 0.35) / 3600) for cost in found if "pretext" in cost.stage)  # fmt: skip
    return [cost for cost in found if cost.stage.startswith("pretext")]


def test_autoencoding_by_hand() -> None:
    recipe = {"pretraining": {"steps": 10, "batch_size": 4}}
    [found] = pretexts({"retromae": recipe})
    assert (found.stage, found.jobs, found.tokens) == ("pretext retromae", 1, 10 * 4 * 18)  # [CLS] and [SEP]
    body = 720 * (2 * 3 * 640 + 4 * 3 * 8 * 18)  # one layer more decodes
    head = 10 * 4 * (1 + 0.3) * 16 * 2 * 2000 * 8  # 30% of the tokens, then all
    assert found.flops == pytest.approx(3 * (body + head)) == 91_898_880
    # Sixteen bytes a weight, three layers' states and two copies of the logits of four texts of 512 tokens.
    states, logits = 4 * 512 * 3 * (12 * 8 + 4 * 16) * 4, 2 * 4 * 2000 * 4 * 1.3 * 510
    assert found.memory == pytest.approx(16 * (2 * 640 + 2000 * 8) + states + logits)
    [spared] = pretexts({"retromae": recipe | {"gradient_checkpointing": True}})
    assert spared.flops == pytest.approx(4 * body + 3 * head)
    assert found.memory - spared.memory == pytest.approx(states / 2)


def test_half_precision_is_reckoned_with() -> None:
    """States take half, logits what they did; the device computes at its other rate. Of the teacher's tuning as well."""
    models = dict.fromkeys(("teacher", "decoder", "encoder"), SMALL)
    world = {"source": "world", "world": {"pretraining_texts": 100}}
    methods = {"retromae": {"pretraining": {"steps": 10, "batch_size": 4}}}
    by = []
    for precision in ("float32", "bfloat16"):
        changes = {"data": world, "models": models, "methods": methods, "training": {"precision": precision}}
        by.append({cost.stage: cost for cost in plan.plan(load([], changes), "a100")["costs"]})
    full, half = by
    stage = "pretext retromae"
    assert full[stage].memory - half[stage].memory == pytest.approx(4 * 512 * 3 * (12 * 8 + 4 * 16) * 4 / 2)
    for stage in ("pretext retromae", "teacher, tuning", "train retromae"):
        assert half[stage].hours == pytest.approx(full[stage].hours * 156 / 312)
        assert half[stage].memory < full[stage].memory


def test_passes_over_the_texts_become_updates() -> None:
    # 8 passes, as published, over 100 texts, 3 a time: 267 updates.
    [found] = pretexts({"retromae": {"pretraining": {"batch_size": 3}}})
    assert found.tokens == 267 * 3 * 18


def test_unsupervised_pairs_by_hand() -> None:
    recipe = {"pretraining": {"steps": 0}, "unsupervised": {"steps": 5, "batch_size": 6}}
    [following] = pretexts({"bge": recipe})
    assert following.tokens == 5 * 2 * 6 * 18
    assert following.flops == 3 * 1080 * (2 * 2 * 640 + 4 * 2 * 8 * 18)
    [spans] = pretexts({"bge": recipe | {"unsupervised": recipe["unsupervised"] | {"pairs": "crop"}}})
    assert spans.tokens == 5 * 2 * 6 * 14  # from half of a text to all of it: 12 tokens on average
    both = recipe | {"pretraining": {"steps": 10, "batch_size": 4}}
    [whole] = pretexts({"bge": both})
    assert whole.flops == following.flops + 91_898_880  # one job does both
    assert not pretexts({"bge": recipe | {"unsupervised": {"steps": 0}}})


def test_adaptation_by_hand() -> None:
    # Four letters are a token, three Chinese characters two; eight tokens of its own after each prompt.
    recipe = {"prompts": {"prefix": "wxyz", "summary": "abcd", "prediction": "接下来"}}
    [found] = pretexts({"llara": recipe | {"adaptation": {"steps": 10, "batch_size": 2}}})
    assert found.tokens == 10 * 2 * (16 + 1 + 1 + 2 + 16)
    body, head = 720 * (2 * 2 * 640 + 4 * 2 * 8 * 36), 10 * 2 * (16 + 16) * 2 * 2000 * 8
    assert found.flops == 3 * (body + head) == 71_946_240
    [cut] = pretexts({"llara": recipe | {"adaptation": {"steps": 10, "batch_size": 2, "max_length": 30}}})
    assert cut.tokens == 10 * 2 * 30


def test_seeds_and_variants_share_a_pretext_stage() -> None:
    variants = {
        "fast": {"method": "retromae", "settings": {"learning_rate": 1e-3}},
        "short": {"method": "retromae", "settings": {"pretraining": {"steps": 5}}},
        "other": {"method": "retromae", "settings": {"pretraining": {"steps": 5, "learning_rate": 1e-3}}},
    }
    recipe = {"pretraining": {"steps": 10, "batch_size": 4}}
    found = pretexts({"retromae": recipe, "sgpt": {}}, seeds=[1, 2, 3], variants=variants)
    assert [(cost.jobs, cost.tokens) for cost in found] == [(1, 720), (2, 360)]


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    assert plan.longest_of({1.0: 0.5, 3.0: 0.5}, 1) == 2
    assert plan.longest_of({1.0: 0.5, 3.0: 0.5}, 2) == 2.5  # three times in four at least one is long
    assert plan.longest_of({3.0: 0.25, 1.0: 0.75}, 1000) == pytest.approx(3)


# Of the models' own config.json, as their pages show them.
PUBLIC = {
    "Qwen/Qwen1.5-7B-Chat": {"model_type": "qwen2", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen/Qwen1.5-1.8B-Chat": {"model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5504, "vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen/Qwen2.5-1.5B-Instruct": {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-0.5B-Instruct": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "BAAI/bge-large-zh-v1.5": {"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 21128},
    "BAAI/bge-base-zh-v1.5": {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 21128},
}  # fmt: skip


@pytest.mark.parametrize(("tier", "device"), [("paper", "h100"), ("small", "rtx4090")])
def test_every_job_of_a_tier_fits_the_device_it_is_for(tier: str, device: str, tmp_path: Path) -> None:
    values = load([ROOT / f"config/{tier}.yaml"]).model_dump(mode="json")
    for name in ("teacher", "decoder", "encoder"):
        (tmp_path / name).mkdir()
        known = PUBLIC[values["models"][name]["source"]]
        (tmp_path / name / "config.json").write_text(json.dumps(known), encoding="utf-8")
        values["models"][name] |= {"source": str(tmp_path / name), "revision": None}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    found = plan.plan(load([tmp_path / "c.yaml"]), device)
    assert {cost.stage: cost.memory for cost in found["costs"] if cost.memory > found["device"].memory} == {}


def test_what_does_not_fit_names_the_keys_that_mend_it(tmp_path: Path) -> None:
    found = plan.plan(made(tmp_path), "h100")
    found["device"] = plan.Device("a thimble", 1.0, 1.0, 1.0)
    lines = {line.split("  ")[1].strip(): line for line in plan.text(found).splitlines() if "more than it has" in line}
    assert "batch_size and max_length" in lines["pretext llara"]
    assert "texts_at_once" in lines["train sgpt"] and "batch_tokens" in lines["teacher scores, a shard"]


def test_small_jobs_take_minutes_or_seconds_and_not_no_hours(tmp_path: Path) -> None:
    found = plan.plan(made(tmp_path), "h100")
    found["costs"] = [plan.Cost("a", 3, 0.0, 0.0, 0.0, 0.02), plan.Cost("b", 100, 0.0, 0.0, 0.0, 0.002), plan.Cost("c", 2, 0.0, 0.0, 0.0, 5.5)]  # fmt: skip
    lines = [line.split() for line in plan.text(found).splitlines()]
    assert [line[5:] for line in lines if line[:1] in (["a"], ["b"], ["c"])] == [
        ["1.2", "min", "3.6", "min"], ["7", "s", "0.20", "h"], ["5.50", "h", "11.0", "h"]]  # fmt: skip
    assert ["together", "11.3", "h"] in [line[:3] for line in lines]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    file = tmp_path / "c.yaml"
    assert cli.main(["plan", "--config", str(file), "--device", "a100"]) == 0
    said = capsys.readouterr().out
    assert "NVIDIA A100" in said and "train d2llm" in said and "disk" in said and "assumed" in said
    assert cli.main(["plan", "--config", str(file), "--device", "abacus"]) == 2
    assert "--device: expected one of h100" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        plan.plan(made(tmp_path), "abacus")

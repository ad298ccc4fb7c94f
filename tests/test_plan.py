"""`d2llm plan`: sizes against the models themselves, FLOPs against torch's own counter, and the words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from tiny_run import tiny_settings
from torch.utils.flop_counter import FlopCounterMode

from d2llm.cli import main as cli
from d2llm.cli import plan
from d2llm.cli.plan import amounts, jobs
from d2llm.cli.plan.devices import Device
from d2llm.cli.plan.sizes import Sizes, all_sizes, of_config, sizes
from d2llm.config.load import load
from d2llm.config.recipes import TunedWeights
from d2llm.config.schema import Config
from d2llm.config.sections import PretrainedSettings
from d2llm.data import build
from d2llm.methods.registry import method
from d2llm.run.artifacts import write_json
from d2llm.run.errors import ConfigError
from d2llm.run.jobs import settings
from d2llm.run.paths import PROVENANCE, Paths

ROOT = Path(__file__).resolve().parent.parent


def sizes_of(folder: Path, **settings: object) -> Sizes:
    """What the plan takes for the sizes of a checkpoint."""
    return sizes(PretrainedSettings(source=str(folder), **settings), "models.decoder.source")


def matrices(model: torch.nn.Module) -> int:
    """Weights of the matrices of a model's layers, counted on the model."""
    layers = ((name.split("."), weight) for name, weight in model.named_parameters())
    return sum(weight.numel() for name, weight in layers if weight.ndim == 2 and any(part.isdigit() for part in name))


SMALL_MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
OPT = SMALL_MODEL | {"ffn_dim": 48, "word_embed_proj_dim": 32}
GROUPED = SMALL_MODEL | {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("family", "config"),
    [
        *[("GPT2", GPT2), ("GPT2", GPT2 | {"n_inner": 48}), ("OPT", OPT)],
        *[("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}), ("Qwen3", GROUPED)],
        *[("Qwen2", SMALL_MODEL | {"intermediate_size": 48}), ("Bert", SMALL_MODEL | {"intermediate_size": 48})],
    ],
)
def test_sizes_are_those_of_the_model(family: str, config: dict[str, int], tmp_path: Path) -> None:
    import transformers

    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(vocab_size=50, **config))
    model.save_pretrained(tmp_path)
    known = sizes_of(tmp_path)
    assert (known.body, known.layers, known.hidden) == (matrices(model), 2, 32)
    assert known.embeddings == 50 * 32 * (1 if known.tied else 2)


def test_a_classifier_of_pairs_reads_each_pair_alone(tmp_path: Path) -> None:
    """Three candidates of each of ten queries of five tokens, of seven tokens each; no prompt, no row that they share."""
    from test_classifier_teacher import saved

    config = load([ROOT / "config/mini.yaml"])
    size = sizes_of(saved(tmp_path))
    given = SimpleNamespace(config=config, models={"teacher": size})
    texts = amounts.Texts(10, {5.0: 1.0}), amounts.Texts(30, {7.0: 1.0})
    tokens, flops = jobs._asked(given, "symmetric", *texts, 3)  # type: ignore[arg-type]
    pair = 5 + 7 + jobs.BETWEEN
    assert tokens == 10 * 3 * pair and flops == size.forward(tokens, pair)


def test_layers_that_are_cut_are_not_counted(tmp_path: Path) -> None:
    tiny.backbone("decoder", tmp_path, num_hidden_layers=3)
    whole, cut = sizes_of(tmp_path), sizes_of(tmp_path, layers=1)
    assert 3 * cut.body == whole.body and cut.embeddings == whole.embeddings
    with pytest.raises(ConfigError, match="models.decoder.layers: expected at most the 3 layers the checkpoint has; f"):
        sizes_of(tmp_path, layers=4)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize(
    "tuning",
    [None, {"kind": "full"}, {"kind": "lora", "r": 4}, {"kind": "lora", "r": 4, "first_layer": 2}, {"kind": "bitfit"}],
)
def test_flops_of_a_model_are_what_torch_counts(kind: str, tuning: dict | None) -> None:
    """Forward, and forward with backward by what of it trains; on tensors without memory."""
    backbone = tiny.backbone(kind, num_hidden_layers=3, attn_implementation="eager", max_position_embeddings=512)
    chosen = None if tuning is None else TunedWeights(**tuning)
    if chosen is not None:
        backbone.tune(chosen)
    model, length, texts = backbone.model.to("meta"), 64, 4
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(chosen is not None):
        states = model(input_ids=torch.ones(texts, length, dtype=torch.long, device="meta")).last_hidden_state
        if chosen is not None:
            states.sum().backward()
    known = of_config(backbone.model.config.to_dict())
    expected = known.forward(texts * length, length) if chosen is None else known.update(chosen, texts * length, length)
    # Torch also counts the rotary positions' small products.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("name", "settings", "counted"),
    [
        ("d2llm", {"pooling": {"heads": 8}, "interaction": {"hidden": 64}}, 6),
        ("multi", {"vectors": 4, "vector_size": 16, "heads": 8}, 6),
        ("hypencoder", {"layers": 2, "max_lengths": {"query": 96}}, 2),  # of a query alone
    ],
)
def test_flops_of_pooling_and_scoring_are_what_torch_counts(name: str, settings: dict, counted: int) -> None:
    chosen, texts, length = method(name), 6, 96
    recipe = chosen.recipe(settings)
    student = chosen.build(tiny.backbone(chosen.kind, hidden_size=64), recipe)
    hidden, mask = torch.ones(texts, length, 64), torch.ones(texts, length)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vectors = student.pooling(hidden, mask)
        student.scorer.matrix(vectors[:2], vectors[2:], "symmetric")
    expected = counted * chosen.text_flops(recipe, 64, length) + 2 * 4 * chosen.pair_flops(recipe, 64, length)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def paper(folder: Path, **training: object) -> Config:
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
    config = paper(tmp_path)
    estimate = plan.plan(config, "h100")
    by = {cost.stage: cost for cost in estimate["costs"]}
    assert by["train d2llm"].jobs == sum(run.method == "d2llm" for run in config.runs())
    # Sets of 270 thousand queries in symmetric sets and 180 in others, whose passages are as long as those evaluated.
    corpora = {
        part.passages.count: part.passages.mean() for part in estimate["amounts"].test if part.type == "retrieval"
    }
    assert corpora[118605] == pytest.approx(874.118 / 1.5, rel=1e-4)  # T2's, by mteb's own statistics
    passage = sum(part.passages.mean() for part in estimate["amounts"].test if part.type == "retrieval") / 8
    for name, passages in (("d2llm", 9), ("sgpt", 2)):  # one hard negative, as published
        texts = 270_000 * 20 * (1 + passages) + 180_000 * (15 + passages * passage)
        assert by[f"train {name}"].tokens == pytest.approx(6000 * 256 * texts / 450_000)
    assert by["teacher scores, a shard"].jobs == 8
    # Each query meets 85 passages, of which nine share a row with it; pairs of STS are read both ways.
    asked = sum(part.queries.count for part in estimate["amounts"].test if part.type == "retrieval")
    assert asked == 39740 and by["evaluate teacher"].tokens > 85 * asked * passage / 2
    assert any("nli_zh_atec" in line for line in estimate["assumed"])
    assert estimate["disk"]["base models"] > 0
    longer = {cost.stage: cost for cost in plan.plan(paper(tmp_path, steps=12000), "h100")["costs"]}
    assert longer["train d2llm"].hours == pytest.approx(2 * by["train d2llm"].hours)


@pytest.fixture
def with_data(tiny_data: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config whose data stage has run where it stands: its results folder is the usual one, `results`."""
    shutil.copytree(tiny_data.results, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    config = load([], tiny_settings(Path("results")))
    write_json(Paths.of(config).data / PROVENANCE, {"settings": settings(config, "data"), "inputs": {}})
    return config


def test_a_run_that_has_its_data_is_planned_from_it(with_data: Config) -> None:
    estimate = plan.plan(with_data, "cpu")
    assert estimate["assumed"] == () and estimate["amounts"].queries > 0
    sets = [name for name, (_, kind, _, _) in build.TASKS.items() if kind != "retrieval"]
    pairs = [part.queries.count for part in estimate["amounts"].test if part.type != "retrieval"]
    assert pairs == len(sets) * [with_data.data.world.test_pairs]  # nothing leaked
    assert "one core" in plan.run(with_data, "cpu", 1)


def test_tokens_are_counted_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    """The tiny one makes a token of a word; `tokens_of` takes four letters for one."""
    config, texts = paper(tmp_path), ["甲 乙 丙", "山"]
    models, guesses = all_sizes(config, texts, online=False)
    assert models["decoder"].ratio == pytest.approx(4 / (4 / 1.5 + 2 * 0.25)) and not guesses
    hub = load([ROOT / "config/paper.yaml"])
    models, guesses = all_sizes(hub, texts, online=False)  # nothing of it is here, and nobody is asked
    assert len(guesses) == 3 and 1.8e9 < models["decoder"].parameters < 2.5e9 < 7e9 < models["teacher"].parameters < 8e9


@pytest.mark.parametrize("what", ["elsewhere", "other settings", "half", "damaged"])
def test_another_runs_data_is_not_planned_from(
    what: str, with_data: Config, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    estimate = plan.plan(config, "cpu")
    assert estimate["assumed"] == ("all numbers of texts",)
    assert sum(part.queries.count for part in estimate["amounts"].test[:5]) == 5 * config.data.world.test_pairs


# ------------------------------------------------------------------------------------------------------- pretext stages
# By hand: width 8, feed-forward 16, two layers of 4·64 + 3·8·16 = 640 weights, 2000 words; texts of 16 tokens.
SMALL = {"hidden_size": 8, "layers": 2, "heads": 2, "intermediate_size": 16}
TEN = {"steps": 10, "batch_size": 4}


def costs(methods: dict, device: str = "a100", **more: object) -> list[jobs.Cost]:
    """The costs of a run of the generated world with these methods."""
    models = dict.fromkeys(("teacher", "decoder", "encoder"), SMALL)
    world = {"source": "world", "world": {"pretraining_texts": 100}}
    config = load([], {"data": world, "models": models, "methods": methods} | more)
    return plan.plan(config, device)["costs"]


def pretexts(methods: dict, **more: object) -> list[jobs.Cost]:
    """Those of pretext stages."""
    pretexts = [cost for cost in costs(methods, **more) if cost.stage.startswith("pretext")]
    assert all(cost.hours == pytest.approx(cost.flops / (156e12 * 0.35) / 3600) for cost in pretexts)
    return pretexts


def test_autoencoding_by_hand() -> None:
    [cost] = pretexts({"retromae": {"pretraining": TEN}})
    assert (cost.stage, cost.jobs, cost.tokens) == ("pretext retromae", 1, 10 * 4 * 18)  # [CLS] and [SEP]
    body = 720 * (2 * 3 * 640 + 4 * 3 * 8 * 18)  # one layer more decodes
    head = 10 * 4 * (1 + 0.3) * 16 * 2 * 2000 * 8  # 30% of the tokens, then all
    assert cost.flops == pytest.approx(3 * (body + head)) == 91_898_880
    # Sixteen bytes a weight, three layers' states and two copies of the logits of four texts of 512 tokens.
    states, logits = 4 * 512 * 3 * (12 * 8 + 4 * 16) * 4, 2 * 4 * 2000 * 4 * 1.3 * 510
    assert cost.memory == pytest.approx(16 * (2 * 640 + 2000 * 8) + states + logits)
    [spared] = pretexts({"retromae": {"pretraining": TEN, "gradient_checkpointing": True}})
    assert spared.flops == pytest.approx(4 * body + 3 * head)
    assert cost.memory - spared.memory == pytest.approx(states / 2)


def test_a_matrix_that_stays_or_is_made_anew_is_reckoned_with() -> None:
    """And on a CPU the libraries, and of a pre-training the head that is read beside the model."""
    matrix, full = 2000 * 8, {"udever": {"tuning": {"kind": "full"}}}
    memory = {device: {c.stage: c.memory for c in costs(full, device)} for device in ("a100", "cpu")}
    stage = "train udever"
    assert memory["cpu"][stage] - memory["a100"][stage] == pytest.approx(0.5e9 + 4 * matrix)
    assert memory["cpu"]["teacher, tuning"] - memory["a100"]["teacher, tuning"] == pytest.approx(0.5e9)
    full["udever"]["tuning"]["embeddings"] = False
    (spared,) = (cost.memory for cost in costs(full) if cost.stage == stage)
    assert memory["a100"][stage] - spared == pytest.approx(12 * matrix)
    stages = [{"retromae": {"pretraining": TEN | {"embeddings": kept}}} for kept in (True, False)]
    (whole,), (part,) = map(pretexts, stages)
    assert whole.memory - part.memory == pytest.approx(12 * matrix)


def test_half_precision_is_reckoned_with() -> None:
    """States take half, logits what they did; the device computes at its other rate. The teacher's tuning too."""
    methods = {"retromae": {"pretraining": TEN}}
    full, half = (
        {cost.stage: cost for cost in costs(methods, training={"precision": precision})}
        for precision in ("float32", "bfloat16")
    )
    stage = "pretext retromae"
    assert full[stage].memory - half[stage].memory == pytest.approx(4 * 512 * 3 * (12 * 8 + 4 * 16) * 4 / 2)
    for stage in ("pretext retromae", "teacher, tuning", "train retromae"):
        assert half[stage].hours == pytest.approx(full[stage].hours * 156 / 312)
        assert half[stage].memory < full[stage].memory


def test_passes_over_the_texts_become_updates() -> None:
    # 8 passes, as published, over 100 texts, 3 a time: 267 updates.
    [cost] = pretexts({"retromae": {"pretraining": {"batch_size": 3}}})
    assert cost.tokens == 267 * 3 * 18


def test_unsupervised_pairs_by_hand() -> None:
    pairs = {"steps": 5, "batch_size": 6}
    [following] = pretexts({"bge": {"pretraining": {"steps": 0}, "unsupervised": pairs}})
    assert following.tokens == 5 * 2 * 6 * 18
    assert following.flops == 3 * 1080 * (2 * 2 * 640 + 4 * 2 * 8 * 18)
    [spans] = pretexts({"bge": {"pretraining": {"steps": 0}, "unsupervised": pairs | {"pairs": "crop"}}})
    assert spans.tokens == 5 * 2 * 6 * 14  # from half of a text to all of it: 12 tokens on average
    [whole] = pretexts({"bge": {"pretraining": TEN, "unsupervised": pairs}})
    assert whole.flops == following.flops + 91_898_880  # one job does both
    assert not pretexts({"bge": {"pretraining": {"steps": 0}, "unsupervised": {"steps": 0}}})


def test_adaptation_by_hand() -> None:
    # Four letters are a token, three Chinese characters two; eight tokens of its own after each prompt.
    prompts, adaptation = {"prefix": "wxyz", "summary": "abcd", "prediction": "接下来"}, {"steps": 10, "batch_size": 2}
    [cost] = pretexts({"llara": {"prompts": prompts, "adaptation": adaptation}})
    assert cost.tokens == 10 * 2 * (16 + 1 + 1 + 2 + 16)
    body, head = 720 * (2 * 2 * 640 + 4 * 2 * 8 * 36), 10 * 2 * (16 + 16) * 2 * 2000 * 8
    assert cost.flops == 3 * (body + head) == 71_946_240
    [cut] = pretexts({"llara": {"prompts": prompts, "adaptation": adaptation | {"max_length": 30}}})
    assert cut.tokens == 10 * 2 * 30


def test_seeds_and_variants_share_a_pretext_stage() -> None:
    variants = {
        "fast": {"method": "retromae", "settings": {"learning_rate": 1e-3}},
        "short": {"method": "retromae", "settings": {"pretraining": {"steps": 5}}},
        "other": {"method": "retromae", "settings": {"pretraining": {"steps": 5, "learning_rate": 1e-3}}},
    }
    shared = pretexts({"retromae": {"pretraining": TEN}, "sgpt": {}}, seeds=[1, 2, 3], variants=variants)
    assert [(cost.jobs, cost.tokens) for cost in shared] == [(3, (720 + 2 * 360) / 3)]


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    assert amounts.longest_of({1.0: 0.5, 3.0: 0.5}, 1) == 2
    assert amounts.longest_of({1.0: 0.5, 3.0: 0.5}, 2) == 2.5  # three times in four at least one is long
    assert amounts.longest_of({3.0: 0.25, 1.0: 0.75}, 1000) == pytest.approx(3)


# Of the models' own config.json, as their pages show them: family, whether embeddings are tied, and these sizes.
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "vocab_size"),
)
PUBLIC = {
    "Qwen/Qwen1.5-7B-Chat": ("qwen2", False, 4096, 32, 32, 32, 11008, 151936),
    "Qwen/Qwen1.5-1.8B-Chat": ("qwen2", False, 2048, 24, 16, 16, 5504, 151936),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", True, 1536, 28, 12, 2, 8960, 151936),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", True, 896, 24, 14, 2, 4864, 151936),
    "Qwen/Qwen3-Reranker-4B": ("qwen3", True, 2560, 36, 32, 8, 9728, 151669),
    "Qwen/Qwen3-0.6B": ("qwen3", True, 1024, 28, 16, 8, 3072, 151936),
    "Qwen/Qwen3-Embedding-0.6B": ("qwen3", True, 1024, 28, 16, 8, 3072, 151669),
    **dict.fromkeys(
        ("BAAI/bge-m3-unsupervised", "BAAI/bge-m3", "intfloat/multilingual-e5-large"),
        ("xlm-roberta", True, 1024, 24, 16, 16, 4096, 250002),
    ),
    "BAAI/bge-large-zh-v1.5": ("bert", True, 1024, 24, 16, 16, 4096, 21128),
    "BAAI/bge-base-zh-v1.5": ("bert", True, 768, 12, 12, 12, 3072, 21128),
}


@pytest.mark.parametrize(("tier", "device"), [("paper", "h100"), ("small", "rtx4090"), ("modern", "rtx4090")])
def test_every_job_of_a_tier_fits_the_device_it_is_for(tier: str, device: str, tmp_path: Path) -> None:
    values = load([ROOT / f"config/{tier}.yaml"]).model_dump(mode="json")
    rows = [row for row in values["references"] if isinstance(row, dict)]
    for key, entry in [("source", values["models"][name]) for name in ("teacher", "decoder", "encoder")] + [
        ("model", row) for row in rows
    ]:
        place = tmp_path / entry[key].rpartition("/")[2]
        place.mkdir()
        family, tied, *sizes = PUBLIC[entry[key]]
        config = {"model_type": family, "tie_word_embeddings": tied, **dict(zip(SIZES, sizes, strict=True))}
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        entry |= {key: str(place), "revision": None} | ({"prompts": {}} if key == "model" else {})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    estimate = plan.plan(load([tmp_path / "c.yaml"]), device)
    assert {cost.stage: cost.memory for cost in estimate["costs"] if cost.memory > estimate["device"].memory} == {}


def test_the_words(tmp_path: Path) -> None:
    """What does not fit names the keys that mend it; small jobs take minutes or seconds and not no hours."""
    estimate = plan.plan(paper(tmp_path), "h100")
    estimate["device"] = Device("a thimble", 1.0, 1.0, 1.0, 1.0)
    lines = plan.text(estimate).splitlines()
    wrong = {line.split("  ")[1].strip(): line for line in lines if "more than it has" in line}
    assert "batch_size and max_length" in wrong["pretext llara"]
    assert "texts_at_once" in wrong["train sgpt"] and "batch_tokens" in wrong["teacher scores, a shard"]
    hours = {"a": (3, 0.02), "b": (100, 0.002), "c": (2, 5.5)}
    estimate["costs"] = [jobs.Cost(name, count, 0.0, 0.0, 0.0, each) for name, (count, each) in hours.items()]
    words = [line.split() for line in plan.text(estimate).splitlines()]
    times = [line[5:] for line in words if line[:1] in (["a"], ["b"], ["c"])]
    assert times == [["1.2", "min", "3.6", "min"], ["7", "s", "0.20", "h"], ["5.50", "h", "11.0", "h"]]
    assert ["together", "11.3", "h"] in [line[:3] for line in words]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper(tmp_path)
    file = tmp_path / "c.yaml"
    assert cli.main(["plan", "--config", str(file), "--device", "a100"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("NVIDIA A100", "train d2llm", "disk", "assumed"))
    assert cli.main(["plan", "--config", str(file), "--device", "abacus"]) == 2
    assert "--device: expected one of h100" in capsys.readouterr().err

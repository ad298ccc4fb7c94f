"""`d2llm plan`: sizes against the models themselves, FLOPs against torch's own counter, and the words."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import yaml

from d2llm import cli, plan
from d2llm.config import CheckpointSettings, Config, load
from d2llm.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_sizes_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    backbone = tiny.backbone(kind, tmp_path / "model", num_hidden_layers=3)
    settings = CheckpointSettings(source=str(tmp_path / "model"))
    found = plan.sizes(settings, "models.x.source")
    layers = [p for name, p in backbone.model.named_parameters() if p.ndim == 2 and any(c.isdigit() for c in name)]
    assert found.body == sum(p.numel() for p in layers)
    assert (found.layers, found.hidden) == (3, backbone.hidden_size)
    embedding = backbone.model.get_input_embeddings().weight
    assert found.embeddings == embedding.numel() * (1 if found.tied else 2)


def test_layers_that_are_cut_are_not_counted(tmp_path: Path) -> None:
    tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    source = str(tmp_path / "model")
    whole, cut = (plan.sizes(CheckpointSettings(source=source, **more), "") for more in ({}, {"layers": 1}))
    assert 3 * cut.body == whole.body and cut.embeddings == whole.embeddings


def test_flops_of_a_pass_are_what_torch_counts(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone = tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    settings = CheckpointSettings(source=str(tmp_path / "model"))
    length, texts = 64, 4
    model = type(backbone.model)._from_config(backbone.model.config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(texts, length, dtype=torch.long), use_cache=False)
    expected = plan.sizes(settings, "").forward(texts * length, length)
    # Torch also counts the rotary positions' small products.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    from d2llm.methods import Tuning

    backbone = tiny.backbone("decoder", tmp_path / "model", num_hidden_layers=3)
    settings = CheckpointSettings(source=str(tmp_path / "model"))
    tuning = Tuning(kind="lora", r=4, first_layer=1)
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


def test_a_run_that_has_its_data_is_planned_from_it(tiny_data: Config) -> None:
    found = plan.plan(tiny_data, "cpu")
    assert found["assumed"] == () and found["amounts"].queries > 0
    assert found["amounts"].pairs == 5 * 40  # test pairs of its five sets of pairs, less what leaked
    assert "one core" in plan.run(tiny_data, "cpu", 1)


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

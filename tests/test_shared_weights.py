"""Models kept as what differs from their base: bit for bit the weights that were saved, in as many bytes as changed;
another base, or none, is one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_negatives import changed_results
from tiny_run import changed

import d2llm
from d2llm.cli.plan.sizes import sizes
from d2llm.config.schema import Config
from d2llm.config.sections import PretrainedSettings
from d2llm.methods.registry import method
from d2llm.models.backbone import Backbone
from d2llm.models.base import shared
from d2llm.models.lora import merge_lora
from d2llm.models.student import Student
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.load import load as load_teacher

WORDS = [f"w{i}" for i in range(1000)]
RECIPES: dict[str, dict[str, Any]] = {
    "d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}, "tuning": {"first_layer": 1}},
    "llara": {"prompts": {"prefix": "，", "summary": "，", "prediction": "，"}},
    "sgpt": {},
}
# Names that a student's weights end in where they train.
TRAINED = {"d2llm": "proj.weight", "llara": "proj.weight", "sgpt": "bias"}


def trained(base: Path, name: str = "d2llm", **changes: Any) -> Student:
    """A student of a method as after some training: all that trains is moved."""
    chosen = method(name)
    student = chosen.build(Backbone.load(base, "decoder"), chosen.recipe(RECIPES[name] | changes))
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return student


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether weights are the same bytes by the same names."""
    return one.keys() == two.keys() and all(
        one[name].numpy().tobytes() == value.detach().numpy().tobytes() for name, value in two.items()
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "models" / "decoder"
    tiny.backbone("decoder", folder, words=WORDS)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_what_comes_back_is_bit_for_bit_what_was_saved(name: str, base: Path, tmp_path: Path) -> None:
    student, place = trained(base, name), tmp_path / "results" / "runs" / name
    student.save(place, base)
    expected, again = merge_lora(student.backbone.model), d2llm.load(place)
    assert same(again.backbone.model.state_dict(), expected)
    assert again.backbone.tokenizer.get_vocab() == student.backbone.tokenizer.get_vocab()
    # What is kept: weights that changed, of the new tokens' matrix their rows alone.
    kept, new = load_file(place / "backbone" / shared.DELTA), 16 * (name == "llara")
    rows = {key: value for key, value in kept.items() if "#" in key}
    assert {len(value) for value in rows.values()} == ({new} if new else set())
    if not new:  # as `d2llm plan` counts them, without biases and the file's head
        size = sizes(PretrainedSettings(source=str(base)), "models.decoder.source")
        reckoned = 4 * size.changed(method(name).recipe(RECIPES[name]).tuning)
        assert reckoned == pytest.approx(sum(value.nbytes for value in kept.values()), rel=0.25)
    frozen = "layers.0" if name == "d2llm" else "none"
    wanted = {key for key in expected if key.endswith(TRAINED[name]) and not key.startswith(frozen)}
    assert kept.keys() - rows.keys() == wanted
    files = {file.name for file in (place / "backbone").iterdir()}
    assert files == {"base.json", "config.json", shared.DELTA} | (
        {"tokenizer.json", "tokenizer_config.json"} if new else set()
    )


def test_one_that_shares_little_is_kept_whole_and_its_own_runs_share_it(base: Path, tmp_path: Path) -> None:
    """A method's pre-training changes every weight; what starts from it is kept by its difference from that."""
    student, pretext = trained(base, tuning={"kind": "full"}), tmp_path / "results" / "models" / "pretext"
    student.backbone.save(pretext, base)
    assert (pretext / "model.safetensors").is_file() and not (pretext / shared.BASE).exists()
    other = trained(base)  # and where the configuration would compute otherwise
    other.backbone.model.config.rms_norm_eps = 0.1
    other.backbone.save(tmp_path / "other", base)
    assert not (tmp_path / "other" / shared.BASE).exists()
    one, two = tmp_path / "results" / "one", tmp_path / "results" / "two"
    first = trained(pretext)
    first.backbone.save(one, pretext)
    second = trained(one, "sgpt")  # and so on
    second.backbone.save(two, one)
    assert read_json(two / shared.BASE)["folder"] == "../one"
    assert same(Backbone.load(two, "decoder").model.state_dict(), second.backbone.model.state_dict())


@pytest.mark.parametrize("steps", [2, 0])
def test_a_teacher_tuned_by_adapters_is_kept_so_and_one_as_it_is_takes_nothing(
    steps: int, tiny_bases: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, changes = [], {"steps": steps, "tuning": {"kind": "lora", "r": 2, "first_layer": 1}}
    for whole in (True, False):
        config = changed(changed_results(tiny_bases, tmp_path / str(whole)), teacher=changes)
        with monkeypatch.context() as patch:
            if whole:
                patch.setattr(shared, "difference", lambda *_: None)
            teacher_tuning.run(config, "teacher")
        place = Paths.of(config).teacher_model
        assert (place / shared.DELTA).exists() != whole
        loaded.append(load_teacher(place, config.teacher))
    assert same(loaded[0].model.state_dict(), dict(loaded[1].model.state_dict()))
    kept = load_file(place / shared.DELTA)
    assert {name.split(".")[2] for name in kept} == ({"1"} if steps else set())
    assert (
        loaded[0].score([("甲", ["乙"])], "symmetric")[0].tolist()
        == loaded[1].score([("甲", ["乙"])], "symmetric")[0].tolist()
    )


def test_zeros_of_either_sign_differ_and_a_nan_does_not_from_itself() -> None:
    held = torch.tensor([[0.0, 1.0], [float("nan"), 2.0], [1.0, 1.0]])
    value = held.clone()
    assert shared._changed("w", value, held) == {}
    value[0, 0] = -0.0
    assert list(shared._changed("b", value[0], held[0])) == ["b"] and not shared._changed("b", value[1], held[1])
    kept = shared._changed("w", value, held)
    assert kept["w#places"].tolist() == [0] and kept["w#rows"][0].signbit().tolist() == [True, False]


def test_another_base_or_none_is_one_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "results" / "runs" / "seed1" / "model"
    trained(base).save(run, base)
    # The results as a whole may be moved, and read from anywhere.
    shutil.copytree(tmp_path / "results", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "runs")
    assert d2llm.load("seed1/model").width == 32
    shutil.copytree(run, tmp_path / "alone" / "model")
    with pytest.raises(
        ArtifactError, match=r"its base model is not there .*`d2llm export` writes a folder that\s+needs no"
    ):
        d2llm.load(tmp_path / "alone" / "model")
    d2llm.load(run).save(tmp_path / "exported")  # needs no other
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not of the base it was trained from \(sha256"):
        d2llm.load(run)
    shutil.rmtree(base)
    assert d2llm.load(tmp_path / "exported").width == 32
    with pytest.raises(ArtifactError, match=r"no .*config\.json"):
        d2llm.load(run)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_weights_that_did_not_change_are_mapped_from_the_base(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "model", base)
    student = d2llm.load(tmp_path / "model")
    weight = student.backbone.model.get_input_embeddings().weight.data_ptr()
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        [int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] == str(base / "model.safetensors")
    ]
    assert any(start <= weight < end for start, end in spans)

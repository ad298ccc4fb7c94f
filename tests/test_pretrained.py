"""Base models taken from elsewhere: folders, packages, a hub that fails; whole and cut to their lower layers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub
import hub_sets
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import BASE, tiny_settings

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.config.sections import PromptSettings, TeacherSettings
from d2llm.models.backbone import Backbone
from d2llm.models.base import pretrained
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training.base import run as make_base

ROOT = Path(__file__).resolve().parent.parent


def config(folder: Path, **models: dict) -> Config:
    settings = tiny_settings(folder / "results")
    settings["models"] = {"teacher": BASE, "decoder": BASE, "encoder": BASE} | models
    # Of the methods those that ask for no words of their own.
    settings["methods"] = {name: settings["methods"][name] for name in ("d2llm", "retromae")}
    return load([], settings)


def states(folder: Path | str, kind: str, text: str = "甲乙丙丁") -> torch.Tensor:
    backbone = Backbone.load(Path(folder), kind)
    with torch.no_grad():
        return backbone.states([tiny.ids(text)])[0]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    tiny.backbone("decoder", folder / "decoder", num_hidden_layers=3)
    tiny.backbone("encoder", folder / "encoder")
    return folder


def bring(folder: Path, kind: str, source: Path | str, **settings: object) -> Path:
    """The folder of a base model that stage `base` brings."""
    models = config(folder, **{kind: {"source": str(source), **settings}})
    make_base(models, kind)
    return Paths.of(models).base(kind)


# --------------------------------------------------------------------------------------------------------------- local
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_cut_checkpoint_gives_the_states_of_a_lower_layer(kind: str, models: Path, tmp_path: Path) -> None:
    folder = bring(tmp_path, kind, models / kind, layers=1)
    assert read_json(folder / "summary.json")["layers"] == 1  # none is saved that is not used
    whole = Backbone.load(models / kind, kind).model
    with torch.no_grad():
        out = whole(input_ids=torch.tensor([tiny.ids("甲乙丙丁")]), output_hidden_states=True)
        expected = out.hidden_states[1]  # after the first layer
        if kind == "decoder":
            expected = whole.norm(expected)  # which every Llama ends with
    torch.testing.assert_close(states(folder, kind), expected, rtol=1e-5, atol=1e-5)


LAYOUTS = [{"bin": 3}, {"safetensors": 1, "bin": 1}, {"bin": 1, "safetensors": 2}]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("parts", LAYOUTS, ids=str)
def test_a_whole_checkpoint_is_that_checkpoint(kind: str, parts: dict[str, int], models: Path, tmp_path: Path) -> None:
    """Its weights in either format, at once or in parts."""
    expected = states(models / kind, kind)
    hub_sets.lay_out(models / kind, **parts)
    for ending in parts:
        weights = {"safetensors": "safetensors", "bin": "pytorch"}[ending]
        folder = bring(tmp_path, kind, models / kind, weights=weights)
        torch.testing.assert_close(states(folder, kind), expected, rtol=0, atol=0)
        assert {file.name for file in folder.glob("*model*")} == {"model.safetensors"}  # whatever it came from
        summary = read_json(folder / "summary.json")
        assert summary["source"] == str(models / kind) and summary["layers"] == {"decoder": 3, "encoder": 2}[kind]


@pytest.mark.parametrize(
    ("kind", "odd", "name"),
    [("decoder", "", "model."), ("decoder", "lm_head", "model.embed_tokens"), ("encoder", "Norm.gamma", "Norm.weight")],
)
def test_weights_under_other_names(kind: str, odd: str, name: str, models: Path, tmp_path: Path) -> None:
    """As older checkpoints have them: of a body alone, tied ones under the head's name, norms as TensorFlow has them."""
    expected, file = states(models / kind, kind), models / kind / "model.safetensors"
    renamed = {key.replace(name, odd): value for key, value in load_file(file).items()}
    assert set(renamed) != set(load_file(file))
    save_file(renamed, file, {"format": "pt"})
    torch.testing.assert_close(states(bring(tmp_path, kind, models / kind), kind), expected, rtol=0, atol=0)


class Touch:
    """What a pickle can be: a call of anything, made as it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_pickle_that_would_run_code_is_refused(models: Path, tmp_path: Path) -> None:
    hub_sets.lay_out(models / "decoder", bin=1)
    torch.save({"x": torch.zeros(1), "y": Touch(tmp_path / "ran")}, models / "decoder" / "pytorch_model.bin")
    assert b"touch" in (models / "decoder" / "pytorch_model.bin").read_bytes()
    with pytest.raises(
        ConfigError, match=r"models\.decoder\.source.*pytorch_model.bin is damaged or holds more than w"
    ):
        bring(tmp_path, "decoder", models / "decoder", weights="pytorch")
    assert not (tmp_path / "ran").exists()


BOTH = r"alone, no model\.safetensors; take a revision or folder .*, or set models\.decoder\.weights: pytorch"


@pytest.mark.parametrize(
    ("source", "settings", "error", "message"),
    [
        ("./nowhere", {}, ConfigError, r"no model in nowhere \(config.json is missing\)"),
        ("./none.gguf", {}, ConfigError, r"models\.decoder\.source: './none.gguf': no such file"),
        ("package:no_such_package/model", {}, ConfigError, "no Python package 'no_such_package' here; install it"),
        (
            "{models}/decoder",
            {"layers": 4},
            ConfigError,
            r"models\.decoder\.layers: expected at most the 3 .*; found 4",
        ),
        ("{models}/broken", {}, ArtifactError, "cannot be loaded"),
        ("{models}/bin", {}, ConfigError, rf"models\.decoder\.source: .* its weights are pytorch_model\.bin {BOTH}"),
        ("{models}/bins", {}, ConfigError, BOTH),
        ("{models}/decoder", {"weights": "pytorch"}, ConfigError, "no pytorch_model.bin; leave out .*weights: pytorch"),
        ("{models}/none", {}, ConfigError, "no weights "),
        ("{models}/part", {}, ConfigError, "index.json names model-00002-of-00002.safetensors, which is not there"),
        ("{models}/other", {}, ArtifactError, r"50 weights of LlamaForCausalLM are not in .*\(model\.embed_tokens\.w"),
    ],
)
def test_what_is_not_there_is_named(
    source: str, settings: dict, error: type, message: str, models: Path, tmp_path: Path
) -> None:
    for name, parts in {"bin": {"bin": 1}, "bins": {"bin": 2}, "none": {}, "part": {"safetensors": 2}}.items():
        shutil.copytree(models / "decoder", models / name)
        hub_sets.lay_out(models / name, **parts)
    (models / "part" / "model-00002-of-00002.safetensors").unlink()
    for name in ("other", "broken"):
        shutil.copytree(models / "decoder", models / name)
    (models / "broken" / "config.json").write_text("{}")
    weights = models / "other" / "model.safetensors"
    save_file({f"net.{key}": value for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(error, match=message):
        bring(tmp_path, "decoder", source.format(models=models), **settings)


def test_a_checkpoint_inside_a_package(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "some_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('looked for, never imported')")
    (models / "decoder").rename(package / "inside")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert config(tmp_path, decoder={"source": "package:some_weights/inside"}).offline
    folder = bring(tmp_path, "decoder", "package:some_weights/inside")
    assert len(pretrained.layers_of(Backbone.load(folder, "decoder").model)) == 3


# -------------------------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "Qwen"}, ": expected source as org/name on the hub"),
        ({"source": "./x", "revision": "main"}, ": expected revision for a source on the hub only"),
        ({"source": "./x.gguf", "weights": "pytorch"}, ": expected weights: pytorch for a checkpoint that is no GGUF"),
        ({"source": "a/b", "layrs": 3}, r"\.layrs: unknown key .*; nearest valid key: models\.decoder\.layers"),
        ({"source": "a/b", "layers": 0}, r"\.layers: expected greater than or equal to 1; found 0"),
        ({"hidden_size": 32, "layers": "two"}, r"\.layers: expected a valid integer; found 'two'"),
    ],
)
def test_a_wrong_model_section(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"models\.decoder{message}"):
        config(tmp_path, decoder=settings)


def test_only_the_hub_needs_the_network(tmp_path: Path) -> None:
    assert config(tmp_path, decoder={"source": "./here", "layers": 2}).offline
    assert not config(tmp_path, encoder={"source": "org/name"}).offline
    assert not config(tmp_path, others={"big": {"source": "org/name"}}).offline


# ----------------------------------------------------------------------------------------------------------------- hub
def base(folder: Path, address: str, **model: object) -> tuple[int, str]:
    """Exit code and last line of stage `base` of a decoder on that hub, in a process of its own, as the address is read
    when libraries are imported."""
    settings = tiny_settings(folder / "results")
    settings["models"] = {"teacher": BASE, "encoder": BASE, "decoder": {"source": "some-org/model_a", **model}}
    settings["methods"] = {"d2llm": settings["methods"]["d2llm"]}
    (folder / "c.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}
    code = (
        "from d2llm.cli.main import main; from d2llm.run import hub; hub.WAITS = (0.1, 0.1); raise SystemExit(main())"
    )
    command = [sys.executable, "-c", code, "base", "--model", "decoder", "--config", str(folder / "c.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.fixture
def there(models: Path) -> Path:
    """Of the hub that serves `models` the folder of its repository."""
    place = models / "some-org" / "model_a"
    place.parent.mkdir()
    (models / "decoder").rename(place)
    hub_sets.write_beside(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "stem"), [("safetensors", "model"), ("pytorch", "pytorch_model")])
def test_a_hub_that_fails_at_first_gives_what_is_needed_and_is_needed_no_more(
    weights: str, stem: str, models: Path, there: Path, tmp_path: Path
) -> None:
    ending, other = ("safetensors", "bin") if stem == "model" else ("bin", "safetensors")
    hub_sets.lay_out(there, **{ending: 2, other: 1})
    asked_for = {"revision": hub.COMMIT, "weights": weights}
    with hub.serving(models, failures=1, cuts=1) as (address, asked):
        assert base(tmp_path, address, **asked_for, layers=2)[0] == 0
        names = {path.rpartition("/")[2] for method, path in asked if method == "GET" and "/api/" not in path}
    needed = {f"{stem}-0000{part}-of-00002.{ending}" for part in (1, 2)} | {f"{stem}.{ending}.index.json"}
    needed |= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == needed
    folder = Paths(tmp_path / "results" / "tiny").base("decoder")
    assert len(pretrained.layers_of(Backbone.load(folder, "decoder").model)) == 2
    assert base(tmp_path, "http://127.0.0.1:9", **asked_for, layers=1)[0] == 0


@pytest.mark.slow
def test_a_hub_that_stays_away_and_what_it_does_not_give(models: Path, there: Path, tmp_path: Path) -> None:
    code, line = base(tmp_path, "http://127.0.0.1:9")
    assert code == 2 and "HF_ENDPOINT" in line
    assert line.startswith("error: models.decoder.source: some-org/model_a cannot be fetched (")
    hub_sets.lay_out(there, bin=1)
    with hub.serving(models) as (address, asked):
        code, line = base(tmp_path, address, revision=hub.COMMIT)
        assert code == 2 and re.search("^error: models.decoder.source: 'some-org/model_a': .*" + BOTH, line)
        assert not any("resolve" in path for _, path in asked)  # before anything is fetched
        lacks = "error: models.decoder.source: the hub has no some-org/model_b; check its name"
        assert base(tmp_path, address, source="some-org/model_b")[1].startswith(lacks)


# ---------------------------------------------------------------------------------------------------------------- GGUF
def write_gguf(model: torch.nn.Module, tokens: list[str], path: Path) -> None:
    """A Qwen2 model as a GGUF file in float32, by the format's own library; tokens are those of a byte-level BPE that
    merges nothing."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, value in {
        "block_count": config.num_hidden_layers, "context_length": 128, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads, "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": 10000.0, "vocab_size": len(tokens), "tokenizer_model": "gpt2", "token_list": tokens,
        "token_types": [1] * len(tokens), "token_merges": ["a b"], "eos_token_id": 0,
    }.items():  # fmt: skip
        getattr(writer, f"add_{key}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_an_ordinary_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokens = ["<|endoftext|>", *"abcdefgh", "ab"]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": len(tokens)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 10000.0}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    write_gguf(model, tokens, tmp_path / "tiny.gguf")
    folder = bring(tmp_path, "decoder", tmp_path / "tiny.gguf", layers=2)
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    ids = AutoTokenizer.from_pretrained(folder)("abca")["input_ids"]
    assert [tokens[i] for i in ids] == ["ab", "c", "a"]
    del model.model.layers[2:]
    with torch.no_grad():
        expected, logits = (net(input_ids=torch.tensor([ids]), use_cache=False).logits for net in (model, loaded))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    # Nor does it name a padding token: rows of several lengths are filled up all the same.
    prompt = PromptSettings(template="a{a}b{b}c", yes="d", no="e")
    teacher = Teacher.load(folder, TeacherSettings(symmetric=prompt, asymmetric=prompt, max_length=40))
    assert teacher.tokenizer.pad_token_id is None
    scores = teacher.score([("f", ["g"]), ("fg", ["gh", "hhh"])], "symmetric")
    for text, score in zip(("afbgc", "afgbghc", "afgbhhhc"), [*scores[0], *scores[1]], strict=True):
        with torch.no_grad():
            alone = loaded(input_ids=torch.tensor([[tokens.index(letter) for letter in text]])).logits[0, -1]
        np.testing.assert_allclose(score, alone[[tokens.index("d"), tokens.index("e")]], atol=1e-4)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_that_names_no_weights_is_named(content: str, tmp_path: Path) -> None:
    name = "model.safetensors.index.json"
    (tmp_path / name).write_text(content)
    settings = pretrained.PretrainedSettings(source="./model")
    with pytest.raises(ConfigError, match=rf"models\.decoder\.source: '\./model': {name} names no weights"):
        pretrained.weight_files({name}, settings, "models.decoder.source", tmp_path.joinpath)

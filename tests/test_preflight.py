"""What a later stage would refuse is refused before the first job: by the config alone, by a model's small files, by
the data once they are there.

Each model is asked at two doors, stage `base` and `d2llm doctor`; the third, the workflow's own look, asks as doctor.
"""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub
import pytest
import tiny
import torch
import yaml
from test_workflow import fresh, snakemake  # noqa: F401 - fresh is a fixture
from tiny_run import BASE, changed, tiny_settings

from d2llm.cli import demands, doctor, preflight
from d2llm.cli import main as cli
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.config.sections import BaseSettings
from d2llm.config.values import merged, nested
from d2llm.data import build
from d2llm.data.world.lexicon import lexicon
from d2llm.data.world.surface import FUNCTION_WORDS
from d2llm.models.base import pretrained
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.run import jobs
from d2llm.run.artifacts import write_json
from d2llm.run.errors import ConfigError, D2LLMError, DataError
from d2llm.run.paths import PROVENANCE, Paths
from d2llm.training import pretraining

ROOT = Path(__file__).resolve().parent.parent


def at(key: str, value: object) -> dict[str, Any]:
    """A change of a config by its dotted key."""
    return nested({key: value})


# ------------------------------------------------------------------------------------------------- by the config alone
FILES = {
    "train": {"t": {"file": "x.jsonl", "label": "l", "yes": [1]}},
    "tasks": {"s": {"type": "sts", "group": "sts", "dev": "x.csv", "test": "y.csv"}},
}
WEIGHTLESS = dict.fromkeys(("ci", "alpha", "beta", "gamma"), 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (at("evaluation.teacher_candidates", {"bm25": 5, "dense": 4}),
         "evaluation.teacher_candidates: expected bm25 and dense that add up to 10"),
        (at("evaluation.tasks", ["ir_question", "ir_qestion"]), "evaluation.tasks: expected some of .*; found 'ir_qes"),
        (at("evaluation.tasks", ["sts_graded"] * 2), "evaluation: expected tasks that are all, or names of sets, each"),
        (at("evaluation.tasks", []), "evaluation: expected tasks that are all, or names"),
        (at("references", ["bm25", "bm25"]), "references: expected each once"),
        (at("models.decoder.heads", 3), "models.decoder: expected heads that divide hidden_size"),
        ({"models": {"others": {"odd": {"hidden_size": 36, "heads": 4}}},
          "variants": {"v": {"method": "d2llm", "settings": {"base": "odd"}}}},
         "models.others.odd.heads: expected heads of even width in a decoder; found 36 / 4"),
        (at("models.teacher.layers", 1), "models.teacher: layers 1 is not more than the 1 of the model it grows from"),
        (at("models.teacher.hidden_size", 64), "models.teacher: hidden_size 64 is not the 32 of the model it grows fr"),
        (at("models.encoder.grown_from", "decoder"), "models.encoder.grown_from: decoder cannot be the beginning of e"),
        (at("models.decoder.grown_from", "decoder"), "models.decoder.grown_from: decoder cannot be the beginning of d"),
        (at("data", {"source": "files", "files": FILES}),
         "models.teacher: only generated text .* can make a base model; give the source of a checkpoint"),
        (at("negatives.dense_ranks", [9, 2]), "negatives: .* bm25_ranks and dense_ranks whose first rank is not above"),
        (at("teacher.symmetric", {"template": "{b}{a}?", "yes": "是", "no": "不"}),
         "teacher.symmetric: expected prompt .* needs {a} once and after it {b} once"),
        (at("teacher.asymmetric", {"template": "{a}{b}?", "yes": "是", "no": "是"}),
         "teacher.asymmetric: expected prompt .* needs two different answers"),
        (at("methods.d2llm", {"gamma": 0.1, "interaction": {"name": "cosine"}}),
         "methods.d2llm: expected gamma 0 with interaction cosine"),
        (at("sweeps.d2llm", {"interaction.name": ["iem", "dot"]}),
         "sweeps.d2llm.interaction.name: expected gamma 0 with interaction dot"),
        (at("methods.d2llm", WEIGHTLESS | {"in_batch": "none"}),
         "methods.d2llm: expected a term of the loss with a weight above 0"),
        (at("methods.d2llm.interaction", {"init": "matcher", "hidden": 1}),
         "methods.d2llm.interaction: expected hidden of at least 2 with init matcher"),
        (at("methods.llara.adaptation", {"language_model": 0.0, "bag_of_words": 0.0}),
         "methods.llara.adaptation: expected language_model or bag_of_words above 0"),
        (at("tuning.grids.d2llm", {"base": ["half"]}),
         "tuning.grids.d2llm.base: expected one of teacher, decoder; found 'half'"),
    ],
)  # fmt: skip
def test_what_the_config_alone_tells(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    load([], tiny_settings(tmp_path, methods={"d2llm": WEIGHTLESS | {"in_batch": "separate"}}))  # one term will do
    with pytest.raises(ConfigError, match=f"command line: {message}"):
        load([], tiny_settings(tmp_path, **changes))


# ------------------------------------------------------------------------------------------------------ by small files
METHODS = {
    "d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}},
    "retromae": {"pretraining": {"steps": 2, "max_length": 48}},
}
ASKED = {"template": "Is it so? {a} {b} answer?", "yes": "yes", "no": "no"}
TEACHER = {"symmetric": ASKED, "asymmetric": ASKED, "max_length": 64}
SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 48}


@cache
def words() -> list[str]:
    """The generated world's, and letters for what is asked in English."""
    return [*lexicon().words(), *FUNCTION_WORDS, *string.ascii_letters, *"?:"]


def save(folder: Path, network: Any, **special: str | None) -> None:
    """A checkpoint with a tokenizer that knows the words."""
    tokenizer = build_tokenizer(words())
    for name, token in special.items():
        setattr(tokenizer, name, token)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model(encoder: bool, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    sizes = pretraining.model_config(encoder, BaseSettings(**SIZES), build_tokenizer(words()))
    sizes.update(changes)
    return (AutoModelForMaskedLM if encoder else AutoModelForCausalLM).from_config(sizes)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 48}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(build_tokenizer(words())), **sizes))


def electra() -> Any:
    from transformers import ElectraConfig, ElectraForMaskedLM

    sizes = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return ElectraForMaskedLM(ElectraConfig(vocab_size=len(build_tokenizer(words())), intermediate_size=48, **sizes))


# What stands in a folder.
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "decoder": lambda folder: save(folder, model(False)),
    "encoder": lambda folder: save(folder, model(True)),
    "decoder without biases": lambda folder: save(folder, model(False, attention_bias=False, mlp_bias=False)),
    "encoder without tokenizer": lambda folder: model(True).save_pretrained(folder),
    "encoder without [MASK]": lambda folder: save(folder, model(True), mask_token=None),
    "decoder without ends": lambda folder: save(folder, model(False), eos_token=None),
    "decoder of 48 positions": lambda folder: save(folder, gpt2()),
    "other encoder": lambda folder: save(folder, electra()),
    "encoder of another language": lambda folder: tiny.backbone("encoder", folder, ["the"]) and None,
}


def settings(folder: Path, model: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A run that has one base model from elsewhere."""
    values = tiny_settings(folder / "results", teacher=TEACHER)
    values["models"] = {"teacher": BASE, "decoder": BASE, "encoder": BASE, model: {"source": str(folder / "given")}}
    return merged(values | {"methods": METHODS}, changes)


LORA = {"kind": "lora", "first_layer": 2}
BITFIT = {"method": "d2llm", "settings": {"tuning": {"kind": "bitfit"}}}
PROMPTS = dict.fromkeys(("prefix", "summary", "prediction"), "so?")
NO_PRETRAINING = {"retromae": {"pretraining": {"steps": 0}}, "colbert": {}}
# Base model, what is given as it, what is changed of the config, and the beginning of what is said.
MODELS: list[tuple[str, str, dict[str, Any], str]] = [
    ("encoder", "decoder", {}, "models.encoder.source: .*: expected an encoder .*; found LlamaForCausalLM, a decoder"),
    ("decoder", "encoder", {}, "models.decoder.source: .*: expected a decoder .*; found BertForMaskedLM, an encoder"),
    ("encoder", "encoder without tokenizer", {}, "models.encoder.source: .*: its tokenizer knows no word, only 5 spec"),
    ("decoder", "decoder", at("models.decoder.layers", 4), "models.decoder.layers: expected at most the 2 .*; found 4"),
    ("decoder", "decoder", at("models.teacher", {"grown_from": "decoder", "layers": 2}),
     "models.teacher: layers 2 is not more than the 2"),
    ("teacher", "decoder", at("teacher.symmetric", ASKED | {"no": "yet"}),
     "teacher: answers 'yes' and 'yet' start with the same token 'y'"),
    ("teacher", "decoder", at("teacher.symmetric", ASKED | {"no": "龙"}), "teacher: answer '龙' has no token"),
    ("teacher", "decoder", at("teacher.symmetric", ASKED | {"template": "{a} {b} 龙？"}),
     "teacher: the teacher's tokenizer cannot spell all of its prompt ' 龙"),
    ("teacher", "decoder", at("teacher.max_length", 12), "teacher: .*max_length is 12, but the prompt alone takes 14"),
    ("teacher", "decoder", at("teachers.teacher-b.max_length", 12), "teachers.teacher-b: teacher.max_length is 12"),
    ("teacher", "decoder of 48 positions", {}, "teacher: teacher.max_length is 64, and the model has 48 positions"),
    ("teacher", "decoder", at("teacher.tuning", LORA), "teacher: tuning.first_layer: 2: the model has no layer as hig"),
    ("decoder", "decoder without biases", at("methods.sgpt", {}),
     "methods.sgpt: BitFit trains biases only and LlamaModel of models.decoder has none"),
    ("decoder", "decoder without biases", at("variants.few", BITFIT), "variants.few.settings: BitFit trains biases on"),
    ("decoder", "decoder", at("methods.d2llm.tuning.targets", ["wqkv"]), r"methods.d2llm: tuning.targets \['wqkv'\]: "),
    ("decoder", "decoder", at("sweeps.d2llm", {"pooling.heads": [4, 5]}),
     "sweeps.d2llm: pooling pma: heads must divide the hidden size 32, found 5; choose a divisor, e.g. 4"),
    ("decoder", "decoder", at("methods.udever.max_lengths.query", 2),
     "methods.udever: 2 tokens leave no room for a text between 1 prefix and 1 suffix"),
    ("decoder", "decoder", at("methods.llara", {"prompts": PROMPTS, "adaptation": {"max_length": 20}}),
     "methods.llara: llara, adaptation: adaptation.max_length 20 leaves no room"),
    ("encoder", "encoder", at("methods.bge.instruction", "为了："),
     "methods.bge: the tokenizer of models.encoder cannot spell '为了：'"),
    ("encoder", "encoder without [MASK]", {}, "methods.retromae: retromae, pre-training: the tokenizer of models.enco"),
    ("encoder", "other encoder", {},
     "methods.retromae: retromae, pre-training: ElectraModel of models.encoder is not built as BERT is"),
    ("encoder", "encoder without [MASK]", at("methods", NO_PRETRAINING), r"methods.colbert: .* has no \[MASK\]"),
    ("decoder", "decoder without ends", at("methods.d2llm.sink", "bos"), "methods.d2llm: .*sink: bos, but the tokeniz"),
    ("encoder", "encoder of another language", {},
     r"models.encoder: its tokenizer knows \d+% of the letters and digits of the texts; choose"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "checkpoint", "changes", "expected"), MODELS)
def test_what_a_model_cannot_do_is_refused_at_every_door(
    model: str, checkpoint: str, changes: dict, expected: str, tmp_path: Path
) -> None:
    CHECKPOINTS[checkpoint](tmp_path / "given")
    config = load([], settings(tmp_path, model, changes))
    [message] = [one.state for one in doctor.of_config(config) if one.level == "error"]
    assert re.match(expected, message), message
    if "grows" not in message and "texts" not in message:  # of these the stage asks later
        with pytest.raises(D2LLMError, match=re.escape(message)):
            cli.run_stage(config, "base", {"model": model}, [])
    assert not (Paths.of(config).base(model) / PROVENANCE).exists()


@pytest.mark.slow
def test_all_that_configs_ask_can_be_tried_without_weights(tmp_path: Path) -> None:
    """Of every method, variant, sweep and trial there is; and nothing is drawn from the stream of random numbers."""
    more = {"methods": {"colbert": {}, "simcse": {}}, "results": str(tmp_path)}
    config = load([ROOT / "config/mini.yaml", ROOT / "config/study.yaml"], more)
    state = torch.get_rng_state()
    assert list(preflight.model_problems(config, texts=preflight.sample_texts(config))) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_only_what_is_read_is_asked(tmp_path: Path) -> None:
    """Of a run of encoders without a teacher, neither decoder nor teacher."""
    CHECKPOINTS["encoder"](tmp_path / "given")
    values = settings(tmp_path, "decoder", {}) | {"methods": {"bge": {}}, "references": ["bm25"]}
    config = load([], values)
    assert config.bases() == ["encoder"] and list(preflight.model_problems(config)) == []


@pytest.mark.parametrize("encoder", [False, True])
def test_whether_a_model_sees_what_follows_is_tried(encoder: bool) -> None:
    """Whatever its configuration says: an encoder's causal class is none."""
    from transformers import AutoModelForCausalLM

    network = model(encoder)
    pretrained.check_direction(network, encoder, "x")
    kinds = ("a decoder", "an encoder") if encoder else ("an encoder", "a decoder")
    with pytest.raises(ConfigError, match="x: expected {}; found {}".format(*kinds)):
        pretrained.check_direction(network, not encoder, "x")
    pretrained.check_direction(network.bfloat16(), encoder, "x")
    if encoder:
        network = AutoModelForCausalLM.from_config(network.config)
        pretrained.check_direction(network, True, "x")
        network.config.is_decoder = True
        pretrained.check_direction(AutoModelForCausalLM.from_config(network.config), False, "x")


@pytest.mark.parametrize(
    ("changes", "encoder", "fits"),
    [
        ({}, True, True),
        ({"is_decoder": True}, True, False),
        ({"is_encoder_decoder": True}, True, False),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, False, False),
        ({"model_type": "gemma3_text"}, False, True),
        ({"model_type": "clip"}, False, False),
        ({"model_type": "own", "auto_map": {"AutoModelForMaskedLM": "x.Y"}}, True, True),
    ],
)
def test_what_a_configuration_says_of_its_kind(changes: dict[str, Any], encoder: bool, fits: bool) -> None:
    described = SimpleNamespace(**{"model_type": "bert", "architectures": None, "hidden_size": 8} | changes)
    with nullcontext() if fits else pytest.raises(ConfigError, match="x: expected a"):
        pretrained.check_kind(described, encoder, "x")


def test_a_share_of_letters_is_of_what_tokens_stand_for() -> None:
    """By hand: of five letters and digits three are known; blanks and marks do not count."""
    assert demands.known_share(tiny.tokenizer(), ["甲 a，1", "乙丙。 !"]) == 3 / 5
    assert demands.known_share(tiny.tokenizer(), ["，。"]) == 0
    levels = [
        [problem.level for problem in demands.spelling(tiny.tokenizer(), texts, "x")]
        for texts in (["甲 " * 9 + "a"], ["甲 a"], ["甲 a a"], [])
    ]
    assert levels == [["warning"], ["warning"], ["error"], []]


# ----------------------------------------------------------------------------------------------------- by what is there
def test_a_base_made_here_is_asked_as_the_stage_ends(tiny_bases: Config) -> None:
    preflight.accept_base(tiny_bases, "decoder")
    config = changed(tiny_bases, methods={"d2llm": {"pooling": {"heads": 5}}})
    with pytest.raises(ConfigError, match="methods.d2llm: pooling pma: heads must divide the hidden size 32, found 5"):
        preflight.accept_base(config, "decoder")


def test_texts_of_another_language_are_refused_where_texts_and_model_meet(tmp_path: Path) -> None:
    """By stage `base` where texts are there, by stage `data` where the model is."""
    CHECKPOINTS["encoder of another language"](tmp_path / "given")
    config = load([], settings(tmp_path, "encoder", {}))
    cli.run_stage(config, "texts", {}, [])
    for stage, arguments in (("base", {"model": "encoder"}), ("data", {})):
        with pytest.raises(ConfigError, match="models.encoder: its tokenizer knows .* of the letters"):
            cli.run_stage(config, stage, arguments, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (at("training.dev_sample", 1), "the 1 pairs drawn from dev all have (score|label)"),
        (at("negatives.per_query", 400), "texts are too few for 400 negatives of"),
    ],
)
def test_the_data_stage_refuses_what_trainings_would(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = load([], tiny_settings(tmp_path, **changes))
    build.run_texts(config)
    with pytest.raises(DataError, match=message):
        cli.run_stage(config, "data", {}, [])
    assert not (Paths.of(config).data / PROVENANCE).exists()


@pytest.mark.slow
def test_the_workflow_refuses_before_its_first_job(fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    CHECKPOINTS["decoder without biases"](tmp_path / "given")
    values = settings(tmp_path, "decoder", {"methods": {"sgpt": {}}})
    (fresh / "c.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    done = snakemake(fresh, "--configfile", "c.yaml")
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "error: methods.sgpt: BitFit trains biases only" in output
    assert "Traceback" not in output and not re.search(r"^(local)?rule ", output, re.M)
    # A model that exists is fetched before anything is trained, so that a hub's is looked at then.
    planned = snakemake(fresh, "--configfile", "c.yaml", "--dry-run").stdout
    priorities = re.findall(r"^rule (base\w*):.*?priority: (\d+)", planned, re.M | re.S)
    assert dict(priorities) == {"base": "96", "base_teacher": "90", "base_encoder": "65"}


def test_a_model_of_the_hub_is_asked_once_it_is_here(tmp_path: Path) -> None:
    """From what stage `base` has made by these settings; without a hub in reach nothing else is known of it."""
    config = load([], settings(tmp_path, "decoder", {"models": {"decoder": {"source": "org/name", "layers": 1}}}))
    assert [problem.level for problem in preflight.model_problems(config)] == ["warning"]
    folder = Paths.of(config).base("decoder")
    CHECKPOINTS["decoder"](folder)
    assert [problem.level for problem in preflight.model_problems(config)] == ["warning"]
    write_json(folder / PROVENANCE, {"settings": jobs.settings(config, "base", model="decoder"), "inputs": {}})
    assert list(preflight.model_problems(config)) == []
    (folder / "tokenizer.json").unlink()
    [(level, text)] = preflight.model_problems(config)
    assert level == "error"
    assert text.startswith("models.decoder.source: 'org/name': its tokenizer cannot be loaded")


@pytest.mark.slow
def test_doctor_fetches_what_is_small(tmp_path: Path) -> None:
    CHECKPOINTS["decoder without biases"](tmp_path / "hub" / "some-org" / "name")
    values = settings(tmp_path, "decoder", at("models.decoder.source", "some-org/name") | at("methods.sgpt", {}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with hub.serving(tmp_path / "hub") as (address, asked):
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address}
        command = [sys.executable, "-m", "d2llm.cli", "doctor", "--config", str(tmp_path / "c.yaml")]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "models       methods.sgpt: BitFit trains biases only" in done.stdout
    paths = [path for method, path in asked if method == "GET" and "/resolve/" in path]
    assert paths and not any(path.endswith(".safetensors") for path in paths)

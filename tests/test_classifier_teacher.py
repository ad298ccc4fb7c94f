"""A classifier of pairs as the teacher: its logits are those of transformers' own pass over one pair, whatever its
architecture and whoever shares its batch; it is brought, told apart and tuned.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_pretrained import config as with_models
from test_teacher import trivial
from transformers import BertConfig

from d2llm.config.sections import TeacherSettings
from d2llm.models.base import pretrained
from d2llm.models.base.classifier import check_labels
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths
from d2llm.teacher import parts as teacher_parts
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.classifier import Classifier
from d2llm.teacher.load import load
from d2llm.training.trackers import Log

KINDS = [("xlm-roberta", 1), ("bert", 2), ("qwen3", 1)]
GROUPS = [("甲乙丙", ["甲乙", "丁戊己庚辛壬" * 3, "丙"]), ("山水", ["火木金", "甲"])]


def saved(folder: Path, kind: str = "xlm-roberta", labels: int = 1) -> Path:
    """A random classifier of the kind, and a tokenizer that joins two texts."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tiny.tokenizer()
    special = [(token, tiny.SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    join = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = join
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if kind == "bert" else []), "attention_mask"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = (
        {"num_key_value_heads": 2, "head_dim": 8}
        if kind == "qwen3"
        else {"type_vocab_size": 2 if kind == "bert" else 1}
    )
    settings = AutoConfig.for_model(
        kind, **sizes, **more, vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.2, num_labels=labels
    )
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alone(teacher: Classifier, query: str, passage: str) -> tuple[np.ndarray, np.ndarray]:
    """(yes, no) and the pooled state of one pair, by the model itself."""
    model, kind = teacher.model, teacher.model.config.model_type
    encoded = teacher.tokenizer(query, passage, return_tensors="pt", truncation=True, max_length=24)
    with torch.no_grad():
        logits = model(**encoded).logits[0]
        states = model.base_model(**encoded)
    last = states.last_hidden_state[0]
    with torch.no_grad():
        pooled = {
            "xlm-roberta": lambda: torch.tanh(model.classifier.dense(last[0])),
            "bert": lambda: states.pooler_output[0],
            "qwen3": lambda: last[-1],
        }[kind]()
    yes_no = [float(logits[0]), 0.0] if len(logits) == 1 else [float(logits[1]), float(logits[0])]
    return np.array(yes_no), pooled.numpy()


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_scores_are_those_of_one_pair_at_a_time(kind: str, labels: int, tmp_path: Path) -> None:
    teacher = load(saved(tmp_path, kind, labels), TeacherSettings(max_length=24))
    logits, states = teacher.score(GROUPS, "symmetric", features=True)
    for (query, passages), group, features in zip(GROUPS, logits, states, strict=True):
        for passage, score, feature in zip(passages, group, features, strict=True):
            expected, pooled = alone(teacher, query, passage)
            np.testing.assert_allclose(score, expected, atol=1e-5)
            np.testing.assert_allclose(feature, pooled, atol=1e-5)


def test_tuning_teaches_it(tmp_path: Path) -> None:
    settings = TeacherSettings(max_length=24, steps=60, batch_pairs=16, learning_rate=5e-3)
    teacher = load(saved(tmp_path), settings)
    before = teacher_tuning.assess(teacher, trivial(60, 9))
    teacher_tuning.tune(teacher, trivial(64, 1), settings, Log(tmp_path / "log.jsonl"))
    after = teacher_tuning.assess(teacher, trivial(60, 9))
    assert all(after[mode]["ap"] > 0.99 > 0.9 > before[mode]["ap"] for mode in ("symmetric", "asymmetric"))


def test_it_is_brought_as_it_is_and_by_its_architecture(tmp_path: Path) -> None:
    source = saved(tmp_path / "given")
    config = with_models(tmp_path, teacher={"source": str(source)})
    pretrained.run(config, "teacher")
    brought, given = (load(place, config.teacher) for place in (Paths.of(config).base("teacher"), source))
    assert isinstance(brought, Classifier)
    one, two = (teacher.score(GROUPS, "asymmetric") for teacher in (brought, given))
    assert [scores.tolist() for scores in one] == [scores.tolist() for scores in two]
    # It is no student's decoder; and an answer among three is no yes or no.
    with pytest.raises(ConfigError, match="expected a decoder"):
        pretrained.run(with_models(tmp_path, decoder={"source": str(source)}), "decoder")
    saved(source, labels=3)
    with pytest.raises(ConfigError, match=r"one label .* or two .*; found 3"):
        pretrained.run(config, "teacher")


NAMES = "expected two labels named as no and yes, in this order; its config.json has "


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("no", "yes"), None),
        (("not_entailment", "entailment"), None),
        (("Irrelevant", "Relevant"), None),
        (("0", "1"), None),
        (("LABEL_0",), None),  # one logit is a score of yes, whatever its name
        (("LABEL_0", "LABEL_1"), NAMES + 'LABEL_0, LABEL_1; say which is which: "id2label"'),
        (("entailment", "not_entailment"), NAMES + "entailment, not_entailment; take a checkpoint with no before yes"),
        (("yes", "yes"), NAMES + "yes, yes; say which"),
    ],
)
def test_two_labels_have_to_say_which_is_yes(labels: tuple[str, ...], message: str | None) -> None:
    config = BertConfig(id2label=dict(enumerate(labels)))
    with nullcontext() if message is None else pytest.raises(ConfigError, match=f"^models.teacher: {message}"):
        check_labels(config, "models.teacher")


def test_what_another_device_scored_is_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was killed on one machine and goes on upon another."""
    teacher, scored = load(saved(tmp_path / "model"), TeacherSettings(max_length=24)), list[str]()
    for device in ("one", "one", "two"):
        monkeypatch.setattr(teacher_parts, "name_of", lambda _, device=device: device)
        judge = lambda part, device=device: scored.append(device) or {"x": np.zeros(len(part))}  # noqa: E731
        list(teacher_parts.in_parts(teacher, GROUPS, "symmetric", Resume(tmp_path / "state", {}, 1.0), judge))
    assert scored == ["one", "two"]

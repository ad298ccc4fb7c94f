"""Backbone, student, D2LLM's objective, recipes and the guarded step, against naive computations."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.methods import base as methods
from d2llm.methods.text_ids import PairTextIds
from d2llm.models import parts
from d2llm.models.backbone import Backbone
from d2llm.models.batch import Batch, Embedded, TeacherTargets
from d2llm.models.lora import merge_lora
from d2llm.models.poolings.base import Pooling
from d2llm.models.student import PASS_COST, Student, TextFormat, same_formats, split_by_length
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError
from d2llm.training import optimization

SMALL = {"pooling": {"heads": 4}, "interaction": {"hidden": 16}}


def student_of(backbone, pooling=("mean", {}), scorer=("cosine", {}), padding="right", **options) -> Student:
    return Student(backbone, pooling, scorer, same_formats(MaxLengths()), padding=padding, **options)


# ------------------------------------------------------------------------------------------------ registry and recipes
def test_the_registry_finds_every_method_without_torch():
    code = (
        "import sys, d2llm.methods.base as m; names = m.names(); [m.method(n).recipe() for n in names]; "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy; print(*names)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # A file in baselines/ is a method, whoever adds one; the paper's six and the two examples are there.
    baselines = Path(methods.__file__).parent.parent / "baselines"
    assert out.split() == ["d2llm", *sorted(file.stem for file in baselines.glob("[a-z]*.py"))]
    assert {"d2llm", "bge", "retromae", "llara", "sgpt", "udever", "simcse", "colbert"} <= set(out.split())


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'sgpt'"):
        methods.method("sgtp")


def test_a_sub_section_is_laid_over_the_published_one():
    recipe = methods.method("llara").recipe({"tuning": {"r": 16}, "adaptation": {"steps": 7}})
    assert (recipe.tuning.kind, recipe.tuning.r, recipe.tuning.alpha, recipe.tuning.dropout) == ("lora", 16, 16.0, 0.1)
    assert (recipe.adaptation.steps, recipe.adaptation.learning_rate) == (7, 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1.0}, "methods.d2llm.learning_rat: unknown key.*learning_rate"),
        ({"learning_rate": "fast"}, "methods.d2llm.learning_rate: expected .*'fast'"),
        ({"warmup": 1.5}, "methods.d2llm.warmup: expected a whole number of steps.*1.5"),
        ({"pooling": {"head": 2}}, "methods.d2llm.pooling.head: unknown key.*pooling.heads"),
        ({"in_batch": "joint", "ci": 0}, "in_batch"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        methods.method("d2llm").recipe(settings)


# -------------------------------------------------------------------------------------------------------------- formats
def test_truncation_cuts_the_text_only():
    form = TextFormat((1, 2), (9,), 6)
    assert form.ids((5, 6)) == (1, 2, 5, 6, 9)
    assert form.ids(tuple(range(20, 40))) == (1, 2, 20, 21, 22, 9)
    with pytest.raises(TrainingError, match="no room"):
        TextFormat((1, 2), (9,), 3)


def test_short_inputs_are_filled_up_where_the_format_says_so():
    form = TextFormat((1,), (9,), 6, filler=4, filled=5)
    assert form.ids((7,)) == (1, 7, 9, 4, 4) and form.ids((5, 6, 7)) == (1, 5, 6, 7, 9)
    assert form.ids(tuple(range(20, 40))) == (1, 20, 21, 22, 23, 9)
    assert replace(form, max_length=4).ids((7,)) == (1, 7, 9, 4)


def test_a_vector_for_every_token(tmp_path):
    """Embeddings are as wide as the longest input may be, whatever stands in a pass; zeros follow; a saved student gives the same."""
    size = {"size": 4}
    student = student_of(tiny.backbone("encoder", tmp_path / "m"), ("tokens", size), ("maxsim", size))
    student.limit_length(12)
    assert student.width == 48
    short, long = (
        student.encode(["甲乙"], "query", "symmetric"),
        student.encode(["甲乙", "山水火木金"], "query", "symmetric"),
    )
    assert short.shape == (1, 48) and long.shape == (2, 48)
    np.testing.assert_allclose(short[0], long[0], atol=1e-5)
    assert not short[0, 8:].any() and (np.abs(np.linalg.norm(short[0].reshape(12, 4)[:2], axis=1) - 1) < 1e-5).all()
    student.save(tmp_path / "saved")
    again = Student.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(["甲乙"], "query", "symmetric"), short)
    assert again.formats == student.formats and student.encode([], "query", "symmetric").shape == (0, 48)
    for pooling, scorer in ((("tokens", size), ("cosine", {})), (("mean", {}), ("maxsim", size)), (("tokens", size), ("maxsim", {"size": 5}))):  # fmt: skip
        with pytest.raises(ConfigError, match="pooling .* scorer"):
            student_of(tiny.backbone("encoder"), pooling, scorer)


class Both(Pooling):
    """First and mean state, side by side."""

    name = "both"

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden[:, 0], hidden.mean(1)], 1)


class Wide(Both):
    def width(self, hidden_size: int, longest: int) -> int:
        return 2 * hidden_size


def as_pooling(monkeypatch, kind):
    """Let a class be the pooling of its name."""
    place = f"d2llm.models.poolings.{kind.name}"
    monkeypatch.setitem(sys.modules, place, SimpleNamespace(POOLING=kind))
    monkeypatch.setattr(parts, "module", lambda kind, name: place if name == "both" else f"d2llm.models.{kind}s.{name}")


@pytest.mark.parametrize("scorer", [("iem", {"hidden": 16}), ("bilinear", {}), ("cosine", {})])
def test_a_scorer_is_as_wide_as_the_pooling(monkeypatch, tmp_path, scorer):
    as_pooling(monkeypatch, Wide)
    student = student_of(tiny.backbone("decoder", tmp_path / "m"), ("both", {}), scorer)
    assert student.training and student.width == 2 * student.backbone.hidden_size
    scores = student.score(TEXTS, TEXTS)
    assert scores.shape == (len(TEXTS),) and np.isfinite(scores).all()
    student.save(tmp_path / "saved")
    np.testing.assert_allclose(Student.load(tmp_path / "saved").score(TEXTS, TEXTS), scores, rtol=1e-4, atol=1e-5)
    # One whose author did not think of the width is told so when it is built.
    as_pooling(monkeypatch, Both)
    with pytest.raises(
        ConfigError, match="pooling both: its width says 32 numbers a text, it gives 64; override width"
    ):
        student_of(tiny.backbone("decoder"), ("both", {}), scorer)


def test_an_encoder_never_gets_more_tokens_than_it_has_positions():
    student = student_of(tiny.backbone("encoder"))
    assert {form.max_length for form in student.formats.values()} == {128}
    student.encode(["甲" * 300], "query", "symmetric")
    student.limit_length(10)
    assert len(student.ids(["甲" * 300], "query", "symmetric")[0]) == 10


def test_a_corpus_is_encoded_in_parts_and_not_remembered(monkeypatch):
    student = student_of(tiny.backbone("decoder"))
    expected = student.encode(TEXTS, "passage", "asymmetric", batch_size=3)
    monkeypatch.setattr("d2llm.models.student.TEXTS_AT_ONCE", 2)
    asked, real = [], student.backbone.tokenize
    monkeypatch.setattr(
        student.backbone, "tokenize", lambda texts, *more: asked.append(len(texts)) or real(texts, *more)
    )
    np.testing.assert_array_equal(student.encode(TEXTS, "passage", "asymmetric", batch_size=3), expected)
    assert max(asked) == 2 and sum(asked) == len(TEXTS)
    assert not student.backbone._cache


def test_a_role_or_mode_there_is_not_is_named():
    student = student_of(tiny.backbone("decoder"))
    with pytest.raises(ValueError, match="role is one of query, passage, found 'document'"):
        student.encode(TEXTS, "document")
    with pytest.raises(ValueError, match="mode is one of .*, found 'sym'"):
        student.score(TEXTS, TEXTS, "sym")


def test_splitting_by_length_is_the_cheapest_of_all_splits():
    def cost(lengths, ends):
        return sum((b - a) * lengths[b - 1] + PASS_COST for a, b in itertools.pairwise([0, *ends]))

    generator = np.random.default_rng(0)
    for _ in range(30):
        lengths = sorted(generator.choice([5, 8, 20, 60, 61, 200], generator.integers(1, 9)).tolist())
        count = len(lengths)
        every = [[*inner, count] for size in range(3) for inner in itertools.combinations(range(1, count), size)]
        assert cost(lengths, split_by_length(lengths)) == min(cost(lengths, ends) for ends in every)


# ------------------------------------------------------------------------------------------------------------ embedding
TEXTS = ["甲乙丙丁戊", "山", "甲乙丙丁戊", "日月星云吃看给书花猫狗人天地" * 3, "水火"]


# Encoders have absolute positions and pad on the right.
@pytest.mark.parametrize(("kind", "padding"), [("decoder", "left"), ("decoder", "right"), ("encoder", "right")])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token", "cls"])
def test_an_embedding_does_not_depend_on_its_neighbours(kind, padding, pooling):
    student = student_of(tiny.backbone(kind), (pooling, {}), padding=padding)
    alone = np.concatenate([student.encode([text], "query", "symmetric") for text in TEXTS])
    np.testing.assert_allclose(student.encode(TEXTS, "query", "symmetric", batch_size=2), alone, atol=1e-5)
    np.testing.assert_allclose(student.embed(TEXTS, "query", "symmetric").detach().numpy(), alone, atol=1e-5)
    for text, vector in zip(TEXTS, alone, strict=True):  # Hugging Face's own forward, nothing padded
        states = student.backbone.model(input_ids=torch.tensor([tiny.ids(text)])).last_hidden_state[0]
        weights = {
            "mean": torch.ones(len(text)),
            "weighted_mean": torch.arange(1, len(text) + 1.0),
            "last_token": F.one_hot(torch.tensor(len(text) - 1), len(text)).float(),
            "cls": F.one_hot(torch.tensor(0), len(text)).float(),
        }[pooling]
        np.testing.assert_allclose(vector, ((weights / weights.sum()) @ states).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["GPT2", "Bloom"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_decoders_with_other_positions(family, padding, tmp_path):
    """Learned absolute positions, where a shift shows, and ALiBi, which takes no positions (SGPT's own families)."""
    import transformers

    sizes = {"GPT2": {"n_embd": 32, "n_positions": 64}, "Bloom": {"hidden_size": 32}}[family]
    config = getattr(transformers, f"{family}Config")(vocab_size=60, n_layer=2, n_head=4, **sizes)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    torch.manual_seed(0)
    body = getattr(transformers, f"{family}Model")(config).eval()
    torch.nn.init.normal_(body.get_input_embeddings().weight)
    student = student_of(Backbone(body, tiny.tokenizer(), "decoder"), ("last_token", {}), padding=padding)
    texts = [text[:20] for text in TEXTS]
    expected = [body(input_ids=torch.tensor([tiny.ids(text)])).last_hidden_state[0, -1].tolist() for text in texts]
    np.testing.assert_allclose(student.encode(texts, "query", "symmetric"), expected, atol=1e-5)
    student.backbone.tune(TunedWeights(kind="bitfit"))
    assert all(name.endswith("bias") for name in student.trainable())
    student.backbone.tune(TunedWeights(kind="lora"))
    assert {name.split(".")[-4] for name in student.trainable()} == {
        "GPT2": {"c_attn", "c_proj", "c_fc"},
        "Bloom": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    }[family]
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned = student.encode(texts, "query", "symmetric")
    student.save(tmp_path)
    np.testing.assert_allclose(Student.load(tmp_path).encode(texts, "query", "symmetric"), tuned, atol=1e-4)


def test_the_gradient_of_repeated_texts_is_that_of_separate_passes():
    student = student_of(tiny.backbone("decoder"))
    weights = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(1))
    (student.embed(TEXTS, "query", "symmetric") * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    for text, row in zip(TEXTS, weights, strict=True):
        (student.embed([text], "query", "symmetric") * row).sum().backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_a_batch_is_embedded_in_its_order():
    student = student_of(tiny.backbone("decoder"))
    batch = Batch("d", "symmetric", ["甲", "乙丙"], ["丁", "甲"], [["山", "水"], ["火", "乙丙"]])
    found = student(batch)
    one = student.embed
    torch.testing.assert_close(found.q, one(["甲", "乙丙"], "query", "symmetric"))
    torch.testing.assert_close(found.p, one(["丁", "甲"], "passage", "symmetric"))
    torch.testing.assert_close(found.n[1], one(["火", "乙丙"], "passage", "symmetric"))
    bare = student(Batch("d", "symmetric", ["甲"], ["丁"], [[]]))
    assert bare.n.shape == (1, 0, 32)


def test_an_empty_text_has_a_finite_embedding():
    assert np.isfinite(student_of(tiny.backbone("decoder")).encode(["", "甲"], "query", "symmetric")).all()


def test_unit_length_where_the_method_wants_it():
    student = student_of(tiny.backbone("decoder"), normalize=True)
    np.testing.assert_allclose(np.linalg.norm(student.encode(TEXTS, "query", "symmetric"), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token"])
@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_half_precision_ends_at_the_states(pooling, precision):
    """What becomes of them, vector and cosine, is formed in float32: no two texts tie because bfloat16 has few numbers."""
    student = student_of(tiny.backbone("decoder"), (pooling, {}), normalize=True).eval()
    if precision == "weights":
        student.backbone.bfloat16()
    texts = [a + b + c for a in tiny.WORDS[:6] for b in tiny.WORDS[6:12] for c in tiny.WORDS[12:14]]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = student.embed(texts, "query", "symmetric")
        states, mask = student.backbone.states(student.ids(texts, "query", "symmetric"))
    weights = {"mean": mask, "weighted_mean": mask.cumsum(1), "last_token": mask.cumsum(1) == 3}[pooling].double()
    expected = F.normalize((weights[:, None] @ states.double())[:, 0] / weights.sum(1, keepdim=True), dim=-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    cosines = student.scorer.matrix(found, found, "symmetric")[~torch.eye(len(texts), dtype=torch.bool)]
    assert len(cosines.unique()) > 2 * len(cosines.bfloat16().unique())


# --------------------------------------------------------------------------------------------------------------- tuning
def test_new_tokens_start_near_the_mean_and_the_same_every_time():
    first, second = tiny.backbone("decoder"), tiny.backbone("decoder")
    old = first.model.get_input_embeddings().weight.detach().clone()
    torch.manual_seed(1)
    ids = first.add_tokens(["[BOQ]", "[EOQ]", "甲"])
    torch.manual_seed(2)
    assert second.add_tokens(["[BOQ]", "[EOQ]", "甲"]) == ids == [len(old), len(old) + 1, tiny.ids("甲")[0]]
    new = first.model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(new, second.model.get_input_embeddings().weight.detach())
    torch.testing.assert_close(new[: len(old)], old)
    assert ((new[len(old) :] - old.mean(0)).abs() < 0.6 * old.std(0)).all()
    assert not torch.equal(new[-1], new[-2])
    assert first.tokenize(["甲[BOQ]"]) == [(*tiny.ids("甲"), ids[0])]


def test_lora_adapts_every_projection_and_saves_merged(tmp_path):
    method = methods.method("d2llm")
    student = method.build(tiny.backbone("decoder", tmp_path / "base"), method.recipe(SMALL))
    adapted = {name.split(".")[-4] for name in student.trainable() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    body = [name for name in student.trainable() if name.startswith("backbone")]
    assert all("lora_" in name for name in body)
    assert len(body) == 2 * 7 * 2
    per_layer = 4 * (32 + 32) * 8 + 3 * (32 + 64) * 8
    head = sum(p.numel() for _, p in student.head_parameters())
    assert student.parameter_counts() | {"total": 0} == {
        "backbone_trained": 2 * per_layer,
        "head_trained": head,
        "total": 0,
    }
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name or name.startswith(("pooling", "scorer")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    before = student.encode(TEXTS, "query", "symmetric")
    student.save(tmp_path / "student")
    np.testing.assert_array_equal(student.encode(TEXTS, "query", "symmetric"), before)
    loaded = Student.load(tmp_path / "student")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    np.testing.assert_allclose(loaded.encode(TEXTS, "query", "symmetric"), before, atol=1e-5)
    q, p = torch.from_numpy(before[:2]), torch.from_numpy(before[3:])
    torch.testing.assert_close(
        loaded.scorer.matrix(q, p, "asymmetric"), student.scorer.matrix(q, p, "asymmetric"), atol=1e-5, rtol=1e-5
    )
    plain = tiny.backbone("decoder")
    assert not np.allclose(student_of(plain).encode(TEXTS, "query", "symmetric"), before)


def test_bitfit_without_biases_is_refused():
    bare = tiny.backbone("decoder", attention_bias=False, mlp_bias=False)
    with pytest.raises(TrainingError, match="has none; set tuning.kind to lora"):
        bare.tune(TunedWeights(kind="bitfit"))


def test_only_the_new_rows_of_the_embedding_move():
    backbone = tiny.backbone("decoder")
    new = backbone.add_tokens(["[BOQ]"])
    backbone.tune(TunedWeights(kind="bitfit"), new_tokens=new)
    student = student_of(backbone)
    before = backbone.model.get_input_embeddings().weight.detach().clone()
    recipe = methods.method("udever").recipe({"learning_rate": 0.1, "weight_decay": 0.5})
    made = optimization.optimizer(methods.method("udever").parameter_groups(student, recipe))
    for _ in range(3):
        student.embed(["甲[BOQ]乙"], "query", "symmetric").sum().backward()
        made.step()
        made.zero_grad()
    after = merge_lora(backbone.model)["embed_tokens.weight"]
    moved = (after != before).any(1).nonzero().flatten().tolist()
    assert moved == new
    biases = sum(p.numel() for name, p in backbone.model.named_parameters() if "bias" in name)
    assert backbone.trained_count() == biases + 32


def test_lora_targets_by_name_and_unknown_ones():
    backbone = tiny.backbone("decoder")
    backbone.tune(TunedWeights(kind="lora", targets=("q_proj",)))
    assert {n.split(".")[-4] for n, p in backbone.model.named_parameters() if p.requires_grad} == {"q_proj"}
    with pytest.raises(ConfigError, match="nowhere"):
        tiny.backbone("decoder").tune(TunedWeights(kind="lora", targets=("nowhere",)))


def test_rates_of_encoder_and_head_and_what_decays():
    method = methods.method("d2llm")
    recipe = method.recipe(SMALL | {"tuning": {"kind": "full"}, "learning_rate": 1e-3, "head_learning_rate": 2e-3})
    student = method.build(tiny.backbone("decoder"), recipe)
    seen = {
        id(p): (group["lr"], group["weight_decay"])
        for group in method.parameter_groups(student, recipe)
        for p in group["params"]
    }
    for name, parameter in student.named_parameters():
        rate = 1e-3 if name.startswith("backbone") else 2e-3
        decay = 0.01 if parameter.ndim > 1 else 0.0
        assert seen[id(parameter)] == (rate, decay), name


# -------------------------------------------------------------------------------------------------------- save and load
def test_a_damaged_student_is_an_artifact_error(tmp_path):
    student_of(tiny.backbone("decoder")).save(tmp_path / "s")
    (tmp_path / "s" / "student.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a saved student"):
        Student.load(tmp_path / "s")
    with pytest.raises(ArtifactError, match="config.json is missing"):
        Backbone.load(tmp_path / "nothing", "decoder")


def test_where_no_student_is_nothing_is_to_be_removed(tmp_path):
    """A wrong path may be anything, somebody's own folder among it; where the student is near, it is named."""
    student_of(tiny.backbone("decoder")).save(tmp_path / "seed1" / "model")
    own, model = tmp_path / "own", tmp_path / "seed1" / "model"
    own.mkdir()
    expected = "expected a run's folder, like results/mini/runs/d2llm/base/seed1/model, or an exported one"
    for place, message in (
        (own, f"{own}: no student here (student.json is missing); {expected}"),
        (Path("org/name"), f"org/name: no student here (no such folder); {expected}"),
        (tmp_path / "seed1", f"{tmp_path}/seed1: no student here (student.json is missing); {model} has one"),
        (model / "backbone", f"{model}/backbone: no student here (student.json is missing); {model} has one"),
    ):
        with pytest.raises(ArtifactError) as error:
            Student.load(place)
        assert str(error.value) == message


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    tiny.backbone("decoder", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot load"):
        Backbone.load(tmp_path / "m", "decoder")


# ------------------------------------------------------------------------------------------------------------ objective
# Of the example's rows, what the training set marks as right besides their positives: an easy negative's text, and a hard negative's of another row.
MARKED = [["木"], ["火", "星"], [], ["猫"]]


def example(size=4, count=3, easy=2, marked=MARKED):
    """A batch with one repeated query (rows 0 and 3), a short row of negatives, marked texts, and made-up embeddings and teacher."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(size, count, dtype=torch.bool)
    mask[1, -1] = False
    queries, positives = ["甲", "乙", "丙", "甲"], ["山", "水", "火", "木"]
    negatives = [["日", "月", "星"], ["吃", "看", "看"], ["山", "书", "花"], ["猫", "狗", "人"]]
    ids = None if marked is None else PairTextIds(["d"] * size, queries, positives, negatives, marked).of(range(size))
    batch = Batch(
        "d",
        "symmetric",
        queries,
        positives,
        negatives,
        TeacherTargets(
            normal(size, 2),
            normal(size, count, 2),
            normal(size, easy, 2),
            torch.tensor([[1, 2], [0, 2], [0, 3], [0, 1]]),
            torch.rand(size, count + 1, count + 1, generator=generator),
        ),
        mask,
        ids,
    )
    return batch, Embedded(normal(size, 32), normal(size, 32), normal(size, count, 32))


def by_hand(student, embedded, batch, recipe):
    """Every term by loops over single pairs, in float64."""
    size, count = len(batch), batch.negative_count

    def z(q, p):
        return student.scorer.pairs(q[None], p[None], batch.mode)[0].item()

    def prob(logits):
        yes, no = (float(x) for x in logits)
        return math.exp(yes) / (math.exp(yes) + math.exp(no))

    def softmax_loss(first, rest):
        values = np.array([first, *rest]) / recipe.temperature
        return -(values[0] - np.log(np.exp(values).sum()))

    teacher, right = batch.teacher, [{"甲", "山", "木"}, {"乙", "水"}, {"丙", "火"}, {"甲", "山", "木"}]
    if batch.text_ids is not None:
        right[0], right[3], right[1] = right[0] | {"猫"}, right[3] | {"猫"}, right[1] | {"火", "星"}
    rows = {name: [] for name in ("ci", "cl", "ri_phn", "ri_ehn", "fi", "p2q")}
    for i in range(size):
        q, kept = embedded.q[i], [k for k in range(count) if batch.negative_mask[i, k]]
        zp, zn = z(q, embedded.p[i]), [z(q, embedded.n[i, k]) for k in kept]
        sp, sn = prob(teacher.positive_logits[i]), [prob(teacher.negative_logits[i, k]) for k in kept]
        others = [z(q, embedded.p[j]) for j in range(size) if j != i and batch.positives[j] not in right[i]]
        if recipe.in_batch_passages == "all":
            others += [
                z(q, embedded.n[j, k])
                for j in range(size)
                for k in range(count)
                if j != i and batch.negative_mask[j, k] and batch.negatives[j][k] not in right[i]
            ]
        own = [(1 - s) * value for s, value in zip(sn, zn, strict=True)]
        rows["ci"].append(softmax_loss(sp * zp, own + (others if recipe.in_batch == "joint" else [])))
        rows["cl"].append(softmax_loss(zp, others))
        rows["ri_phn"].append(1 - np.corrcoef([zp, *zn], [sp, *sn])[0, 1])
        pairs = []
        for e, j in enumerate(teacher.easy_index[i].tolist()):
            if batch.positives[j] in right[i]:
                continue
            se, ze = prob(teacher.easy_logits[i, e]), z(q, embedded.p[j])
            pairs += [
                max(0, s - se) * -math.log(1 / (1 + math.exp(-(value - ze)))) for s, value in zip(sn, zn, strict=True)
            ]
        rows["ri_ehn"].append(np.mean(pairs))
        vectors = [
            student.scorer.features(q[None], p[None], batch.mode)[0].detach().double().numpy()
            for p in [embedded.p[i], *(embedded.n[i, k] for k in kept)]
        ]
        cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in vectors] for b in vectors])
        chosen = [0, *(k + 1 for k in kept)]
        target = teacher.features[i].double().numpy()[np.ix_(chosen, chosen)]
        rows["fi"].append(((target - cosines) ** 2).sum() / len(chosen) ** 2)
        queries = [
            z(embedded.q[j], embedded.p[i]) for j in range(size) if j != i and batch.positives[i] not in right[j]
        ]
        rows["p2q"].append(softmax_loss(zp, queries))
    return {name: float(np.mean(values)) for name, values in rows.items()}


WEIGHTS = {"ci": 1.5, "alpha": 0.7, "beta": 0.3, "gamma": 0.2, "in_batch_weight": 0.9, "passage_to_query": 0.5}
TERMS = {"ci": "ci", "cl": "in_batch_weight", "ri_phn": "alpha", "ri_ehn": "beta", "fi": "gamma"} | {
    "p2q": "passage_to_query"
}


@pytest.mark.parametrize("in_batch", ["separate", "joint", "none"])
@pytest.mark.parametrize("passages", ["positives", "all"])
@pytest.mark.parametrize("marked", [MARKED, None], ids=["marked", "by hand"])
def test_the_objective_is_what_loops_give(in_batch, passages, marked):
    method = methods.method("d2llm")
    settings = {"in_batch": in_batch, "in_batch_passages": passages, "temperature": 0.6}
    recipe = method.recipe(SMALL | WEIGHTS | settings)
    torch.manual_seed(5)
    student = method.build(tiny.backbone("decoder"), recipe)
    batch, embedded = example(marked=marked)
    expected = {name: getattr(recipe, TERMS[name]) * v for name, v in by_hand(student, embedded, batch, recipe).items()}
    if in_batch != "separate":
        del expected["cl"]
    found = method.objective(student, embedded, batch, recipe)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_weight_zero_removes_exactly_its_term(term):
    method = methods.method("d2llm")
    batch, embedded = example()
    full = method.recipe(SMALL | WEIGHTS)
    student = method.build(tiny.backbone("decoder"), full)
    complete = method.objective(student, embedded, batch, full)
    without = method.objective(student, embedded, batch, method.recipe(SMALL | WEIGHTS | {TERMS[term]: 0}))
    assert set(complete) == set(TERMS)
    assert set(complete) - set(without) == {term}
    for name, value in without.items():
        assert value.item() == pytest.approx(complete[name].item(), rel=1e-6)


def test_fewer_hard_negatives_and_no_teacher():
    method = methods.method("d2llm")
    batch, embedded = example()
    student = method.build(tiny.backbone("decoder"), method.recipe(SMALL))
    assert batch.narrowed(None) is batch and batch.narrowed(99) is batch
    recipe, fewer = method.recipe(SMALL | {"gamma": 1.0}), replace(embedded, n=embedded.n[:, :2])
    two = method.objective(student, fewer, batch.narrowed(2), recipe)
    teacher = replace(
        batch.teacher, negative_logits=batch.teacher.negative_logits[:, :2], features=batch.teacher.features[:, :3, :3]
    )
    cut = replace(
        batch, negatives=[r[:2] for r in batch.negatives], teacher=teacher, negative_mask=batch.negative_mask[:, :2]
    )
    expected = method.objective(student, fewer, cut, recipe)
    assert {k: v.item() for k, v in two.items()} == pytest.approx({k: v.item() for k, v in expected.items()})
    with pytest.raises(TrainingError, match="need teacher scores"):
        method.objective(student, embedded, replace(batch, teacher=None), method.recipe(SMALL))


def test_every_trained_parameter_of_the_mode_gets_a_gradient():
    method = methods.method("d2llm")
    recipe = method.recipe(SMALL | WEIGHTS)
    student = method.build(tiny.backbone("decoder"), recipe).train()
    batch, _ = example()
    longer = replace(batch, queries=["甲乙丙", "丙丁", "山水", "火木日"])  # attention over one token has no gradient
    sum(method.objective(student, student(longer), batch, recipe).values()).backward()
    dead = [n for n, p in student.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # lora_A has no gradient while lora_B is zero; the asymmetric branch is not this batch's
    branch = "scorer.branches.asymmetric."
    assert [n for n in dead if "lora_A" not in n] == [f"{branch}weight", f"{branch}bias"]


# --------------------------------------------------------------------------------------------------------- optimisation
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, *(0.5 + 0.5 * math.cos(math.pi * x) for x in (0.25, 0.5, 0.75))]),
    ],
)
@pytest.mark.parametrize("warmup", [2, 0.3])
def test_schedules(kind, expected, warmup):
    parameter = torch.nn.Parameter(torch.zeros(1))
    made = torch.optim.SGD([parameter], lr=1.0)
    plan = optimization.schedule(made, kind, warmup, 6)
    rates = []
    for _ in range(6):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        plan.step()
    assert rates == pytest.approx(expected)


def test_a_loss_that_is_not_finite_names_method_step_and_term():
    parameter = torch.nn.Parameter(torch.ones(1))
    made = optimization.optimizer([{"params": [parameter], "lr": 1.0, "weight_decay": 0.0}])
    terms = {"fine": parameter.sum(), "broken": (parameter * math.nan).sum()}
    with pytest.raises(TrainingError, match=r"sgpt, step 12: loss term 'broken' is nan"):
        optimization.step(None, [terms], made, None, 1.0, "sgpt, step 12")
    with pytest.raises(TrainingError, match="the gradient of root is nan"):
        optimization.step(None, [{"root": (parameter - 1).abs().sqrt().sum()}], made, None, 1.0, "sgpt, step 13")
    assert parameter.item() == 1.0
    with pytest.raises(TrainingError, match="no term"):
        optimization.step(None, [{}], made, None, 1.0, "x")
    with pytest.raises(TrainingError, match="nothing to train"):
        optimization.optimizer([])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_scaled_loss_gives_the_plain_update_and_an_overflow_gives_none(clip: float | None) -> None:
    """float16's scale is a power of two: undone before clipping, it leaves no trace; an update that overflows is left out."""

    def trained(accelerator: Any, losses: list[float]) -> tuple[torch.nn.Parameter, list[float]]:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        made = optimization.optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}])
        norms = [
            optimization.step(accelerator, [{"loss": (weight**2).sum() * by}], made, None, clip, "x")["gradient_norm"]
            for by in losses
        ]
        return weight, norms

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = SimpleNamespace(scaler=scaler, backward=lambda loss: scaler.scale(loss).backward())
    (plain, norms), (found, scaled_norms) = trained(None, [1.0, 3.0]), trained(scaled, [1.0, 3.0])
    assert torch.equal(found, plain)
    assert scaled_norms == norms == pytest.approx([2 * 5**0.5, norms[1]])

    before = scaler.get_scale()
    kept, _ = trained(scaled, [1e36])  # times 1024 it is too large for float32
    assert kept.tolist() == [1.0, -2.0]
    assert scaler.get_scale() == before / 2


def test_a_step_clips_and_reports():
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    made = optimization.optimizer([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}])
    log = optimization.step(None, [{"a": (parameter**2).sum() / 2, "b": parameter.sum() * 0}], made, None, 1.0, "x")
    assert log == pytest.approx({"a": 12.5, "b": 0, "loss": 12.5, "gradient_norm": 5, "learning_rate": 0.1})
    assert made.state[parameter]["exp_avg"].tolist() == pytest.approx([0.06, 0.08])  # 0.1 × clipped gradient


def test_batches_pass_over_everything_and_repeat_themselves():
    drawn = list(optimization.batches(5, 2, 5, seed=1))
    assert drawn == list(optimization.batches(5, 2, 5, seed=1))
    flat = [index for batch in drawn for index in batch]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5))
    assert [index for batch in optimization.batches(5, 2, 5, seed=2) for index in batch] != flat

"""Backbone, student, D2LLM's objective, recipes and the guarded step, against naive computations."""

from __future__ import annotations

import itertools
import math
import pkgutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers

import baselines
from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.methods.d2llm import recipe as d2llm_recipe
from d2llm.methods.d2llm.objective import LOSSES
from d2llm.methods.registry import method
from d2llm.methods.text_ids import PairTextIds
from d2llm.models import parts
from d2llm.models.backbone import Backbone
from d2llm.models.batch import Batch, Embedded, TeacherTargets
from d2llm.models.poolings.base import Pooling
from d2llm.models.student import PASS_COST, Student, TextFormat, same_formats, split_by_length
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError
from d2llm.training import optimization

D2LLM = method("d2llm")
SMALL = {"pooling": {"heads": 4}, "interaction": {"hidden": 16}}
TEXTS = ["甲乙丙丁戊", "山", "甲乙丙丁戊", "日月星云吃看给书花猫狗人天地" * 3, "水火"]


def student_of(backbone, pooling=("mean", {}), scorer=("cosine", {}), **options) -> Student:
    return Student(backbone, pooling, scorer, same_formats(MaxLengths()), **options)


def encode(student, texts=TEXTS, **options):
    return student.encode(texts, "query", "symmetric", **options)


# ------------------------------------------------------------------------------------------------ registry and recipes
def test_the_registry_finds_every_method_without_torch():
    code = (
        "import sys; from d2llm.config.registry import names; from d2llm.methods.registry import method; "
        "[method(name).recipe() for name in names()]; "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy; print(*names())"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    # A file in baselines/ is a method, whoever adds one.
    files = Path(baselines.__file__).parent.glob("[a-z]*.py")
    assert names == ["d2llm", *sorted(file.stem for file in files)]
    with pytest.raises(ConfigError, match="did you mean 'sgpt'"):
        method("sgtp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 1.5}, "methods.d2llm.warmup: expected a whole number of steps.*1.5"),
        ({"pooling": {"head": 2}}, "methods.d2llm.pooling.head: unknown key.*pooling.heads"),
        ({"in_batch": "joint", "ci": 0}, "in_batch"),
        ({"interaction": {"name": "cosine"}}, "gamma 0 with interaction cosine"),
        ({"losses": {"margin": 0.5}}, "losses among the further files .none., not margin"),
        ({"losses": {"cl": 0.5}}, "not cl, which has a weight of its own"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        D2LLM.recipe(settings)


# -------------------------------------------------------------------------------------------------------------- formats
def test_what_is_fed_of_a_text():
    """Too long a text is cut, never what stands around it; a short input is filled up where the format says so."""
    long, filled = tuple(range(20, 40)), TextFormat((1,), (9,), 6, filler=4, filled=5)
    for form, text, fed in (
        (TextFormat((1, 2), (9,), 6), (5, 6), (1, 2, 5, 6, 9)),
        (TextFormat((1, 2), (9,), 6), long, (1, 2, 20, 21, 22, 9)),
        (filled, (7,), (1, 7, 9, 4, 4)),
        (filled, (5, 6, 7), (1, 5, 6, 7, 9)),
        (filled, long, (1, 20, 21, 22, 23, 9)),
        (replace(filled, max_length=4), (7,), (1, 7, 9, 4)),
    ):
        assert form.ids(text) == fed
    with pytest.raises(TrainingError, match="no room"):
        TextFormat((1, 2), (9,), 3)


def test_a_vector_for_every_token(tmp_path):
    """As wide as the longest input may be, whatever stands in a pass; zeros follow; a saved student gives the same."""
    tokens, maxsim = ("tokens", {"size": 4}), ("maxsim", {"size": 4})
    student = student_of(tiny.backbone("encoder", tmp_path / "m"), tokens, maxsim)
    student.limit_length(12)
    short, long = encode(student, ["甲乙"]), encode(student, ["甲乙", "山水火木金"])
    assert student.width == 48 and short.shape == (1, 48) and encode(student, []).shape == (0, 48)
    np.testing.assert_allclose(short[0], long[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(short.reshape(12, 4), axis=1), [1, 1, *[0] * 10], atol=1e-5)
    student.save(tmp_path / "saved")
    again = Student.load(tmp_path / "saved")
    np.testing.assert_array_equal(encode(again, ["甲乙"]), short)
    assert again.formats == student.formats
    for pair in ((tokens, ("cosine", {})), (("mean", {}), maxsim), (tokens, ("maxsim", {"size": 5}))):
        with pytest.raises(ConfigError, match="pooling .* scorer"):
            student_of(tiny.backbone("encoder"), *pair)


class Wide(Pooling):
    """First and mean state, side by side."""

    name = "both"

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden[:, 0], hidden.mean(1)], 1)

    def width(self, hidden_size: int, longest: int) -> int:
        return 2 * hidden_size


@pytest.mark.parametrize("scorer", [("iem", {"hidden": 16}), ("bilinear", {}), ("cosine", {})])
def test_a_scorer_is_as_wide_as_the_pooling(monkeypatch, tmp_path, scorer):
    monkeypatch.setitem(sys.modules, "d2llm.models.poolings.both", SimpleNamespace(POOLING=Wide))
    monkeypatch.setattr(parts, "module", lambda kind, name: f"d2llm.models.{kind}s.{name}")
    student = student_of(tiny.backbone("decoder", tmp_path / "m"), ("both", {}), scorer)
    assert student.training and student.width == 2 * student.backbone.hidden_size
    scores = student.score(TEXTS, TEXTS)
    student.save(tmp_path / "saved")
    np.testing.assert_allclose(Student.load(tmp_path / "saved").score(TEXTS, TEXTS), scores, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(Wide, "width", Pooling.width)  # its author did not think of it: told so when it is built
    with pytest.raises(ConfigError, match="pooling both: its width says 32 numbers a text, it gives 64"):
        student_of(tiny.backbone("decoder"), ("both", {}), scorer)


def test_an_encoder_never_gets_more_tokens_than_it_has_positions():
    student = student_of(tiny.backbone("encoder"))
    assert {form.max_length for form in student.formats.values()} == {128}
    encode(student, ["甲" * 300])
    student.limit_length(10)
    assert len(student.ids(["甲" * 300], "query", "symmetric")[0]) == 10


def test_a_corpus_is_encoded_in_parts_and_not_remembered(monkeypatch):
    student = student_of(tiny.backbone("decoder"))
    expected = encode(student, batch_size=3)
    monkeypatch.setattr("d2llm.models.student.TEXTS_AT_ONCE", 2)
    sizes, tokenize = [], student.backbone.tokenize
    watched = lambda part, *more: sizes.append(len(part)) or tokenize(part, *more)  # noqa: E731
    monkeypatch.setattr(student.backbone, "tokenize", watched)
    np.testing.assert_array_equal(encode(student, batch_size=3), expected)
    assert sizes == [2, 2, 1] and not student.backbone._cache


def test_a_role_or_mode_there_is_not_is_named():
    student = student_of(tiny.backbone("decoder"))
    for call, message in (
        (lambda: student.encode(TEXTS, "document"), "role is one of query, passage, found 'document'"),
        (lambda: student.score(TEXTS, TEXTS, "sym"), "mode is one of .*, found 'sym'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


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
# Encoders have absolute positions and pad on the right.
@pytest.mark.parametrize(("kind", "padding"), [("decoder", "left"), ("decoder", "right"), ("encoder", "right")])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token", "cls"])
def test_an_embedding_does_not_depend_on_its_neighbours(kind, padding, pooling):
    student = student_of(tiny.backbone(kind), (pooling, {}), padding=padding)
    expected = []
    for text in TEXTS:  # Hugging Face's own forward, nothing padded
        states = student.backbone.model(input_ids=torch.tensor([tiny.ids(text)])).last_hidden_state[0]
        last = len(text) - 1
        weights = {"mean": [1.0] * len(text), "weighted_mean": range(1, last + 2), "cls": [1.0, *[0.0] * last]}
        row = torch.tensor(weights.get(pooling, [*[0.0] * last, 1.0]), dtype=torch.float32)
        expected.append(((row / row.sum()) @ states).tolist())
    np.testing.assert_allclose([encode(student, [text])[0] for text in TEXTS], expected, atol=1e-5)
    np.testing.assert_allclose(encode(student, batch_size=2), expected, atol=1e-5)
    np.testing.assert_allclose(student.embed(TEXTS, "query", "symmetric").tolist(), expected, atol=1e-5)
    assert np.isfinite(encode(student, ["", "甲"])).all()
    student.normalize = True
    np.testing.assert_allclose(np.linalg.norm(encode(student), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "size", "projections"),
    [
        ("GPT2", {"n_embd": 32, "n_positions": 64}, {"c_attn", "c_proj", "c_fc"}),
        ("Bloom", {"hidden_size": 32}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_decoders_with_other_positions(family, size, projections, padding, tmp_path):
    """Learned absolute positions, where a shift shows, and ALiBi, which takes no positions (SGPT's own families)."""
    config = getattr(transformers, f"{family}Config")(vocab_size=60, n_layer=2, n_head=4, **size)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    torch.manual_seed(0)
    body = getattr(transformers, f"{family}Model")(config).eval()
    torch.nn.init.normal_(body.get_input_embeddings().weight)
    student = student_of(Backbone(body, tiny.tokenizer(), "decoder"), ("last_token", {}), padding=padding)
    texts = [text[:20] for text in TEXTS]
    expected = [body(input_ids=torch.tensor([tiny.ids(text)])).last_hidden_state[0, -1].tolist() for text in texts]
    for packs in (student.backbone.packs, False):
        student.backbone.packs = packs
        np.testing.assert_allclose(encode(student, texts), expected, atol=1e-5)
    student.backbone.tune(TunedWeights(kind="bitfit"))
    assert all(name.endswith("bias") for name in student.trainable())
    student.backbone.tune(TunedWeights(kind="lora"))
    assert {name.split(".")[-4] for name in student.trainable()} == projections
    adapt(student)
    tuned = encode(student, texts)
    student.save(tmp_path)
    np.testing.assert_allclose(encode(Student.load(tmp_path), texts), tuned, atol=1e-4)


def adapt(student, *more):
    """Random weights in the adapters, which at first add nothing, and in parts whose names begin with `more`."""
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name or name.startswith(more):
                parameter.add_(torch.randn_like(parameter) * 0.3)


def test_a_batch_is_embedded_in_its_order():
    student = student_of(tiny.backbone("decoder"))
    embedded = student(Batch("d", "symmetric", ["甲", "乙丙"], ["丁", "甲"], [["山", "水"], ["火", "乙丙"]]))
    torch.testing.assert_close(embedded.q, student.embed(["甲", "乙丙"], "query", "symmetric"))
    torch.testing.assert_close(embedded.p, student.embed(["丁", "甲"], "passage", "symmetric"))
    torch.testing.assert_close(embedded.n[1], student.embed(["火", "乙丙"], "passage", "symmetric"))
    assert student(Batch("d", "symmetric", ["甲"], ["丁"], [[]])).n.shape == (1, 0, 32)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token"])
@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_half_precision_ends_at_the_states(pooling, precision):
    """Vector and cosine are formed in float32: no two texts tie because bfloat16 has few numbers."""
    student = student_of(tiny.backbone("decoder"), (pooling, {}), normalize=True).eval()
    if precision == "weights":
        student.backbone.bfloat16()
    texts = [a + b + c for a in tiny.WORDS[:6] for b in tiny.WORDS[6:12] for c in tiny.WORDS[12:14]]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        vectors = student.embed(texts, "query", "symmetric")
        states, mask = student.backbone.states(student.ids(texts, "query", "symmetric"))
    weights = {"mean": mask, "weighted_mean": mask.cumsum(1), "last_token": mask.cumsum(1) == 3}[pooling].double()
    expected = F.normalize((weights[:, None] @ states.double())[:, 0] / weights.sum(1, keepdim=True), dim=-1)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.double(), expected, rtol=1e-5, atol=1e-6)
    cosines = student.scorer.matrix(vectors, vectors, "symmetric")[~torch.eye(len(texts), dtype=torch.bool)]
    assert len(cosines.unique()) > 2 * len(cosines.bfloat16().unique())


# --------------------------------------------------------------------------------------------------------------- tuning
@pytest.mark.parametrize("gap", [0, 1])
def test_new_tokens_start_near_the_mean_and_the_same_every_time(gap):
    """gap: a special token that the model has no row for, as Gemma 3's text models have one, stands before them."""
    first, second = tiny.backbone("decoder"), tiny.backbone("decoder")
    old = first.model.get_input_embeddings().weight.detach().clone()
    for seed, backbone in enumerate((first, second)):
        backbone.tokenizer.add_tokens(["<image>"][:gap], special_tokens=True)
        torch.manual_seed(seed)
        ids = backbone.add_tokens(["[BOQ]", "[EOQ]", "甲"])
        assert ids == [len(old) + gap, len(old) + gap + 1, *tiny.ids("甲")]
    new, same = (backbone.model.get_input_embeddings().weight.detach() for backbone in (first, second))
    assert torch.equal(new, same) and torch.equal(new[: len(old)], old) and len(new) == len(old) + gap + 2
    assert ((new[len(old) :] - old.mean(0)).abs() < 0.6 * old.std(0)).all() and not torch.equal(new[-1], new[-2])
    assert first.tokenize(["甲[BOQ]"]) == [(*tiny.ids("甲"), ids[0])]


def test_lora_adapts_every_projection_and_saves_merged(tmp_path):
    student = D2LLM.build(tiny.backbone("decoder", tmp_path / "base"), D2LLM.recipe(SMALL))
    body = [name for name in student.trainable() if name.startswith("backbone")]
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-4] for name in body if "lora_A" in name} == projections
    counts, head = student.parameter_counts(), sum(p.numel() for _, p in student.head_parameters())
    assert counts["backbone_trained"] == 2 * (4 * (32 + 32) * 8 + 3 * (32 + 64) * 8) and counts["head_trained"] == head
    adapt(student, "pooling", "scorer")
    before, scores = encode(student), student.score(TEXTS, TEXTS)
    student.save(tmp_path / "student")
    np.testing.assert_array_equal(encode(student), before)
    loaded = Student.load(tmp_path / "student")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    np.testing.assert_allclose(encode(loaded), before, atol=1e-5)
    np.testing.assert_allclose(loaded.score(TEXTS, TEXTS), scores, rtol=1e-4, atol=1e-4)


def test_which_weights_train():
    def trained(**tuning):
        backbone = tiny.backbone("decoder", num_hidden_layers=3)
        backbone.tune(TunedWeights(kind="lora", **tuning))
        return {name for name, p in backbone.model.named_parameters() if p.requires_grad}

    assert {name.split(".")[-4] for name in trained(targets=("q_proj",))} == {"q_proj"}
    upper = trained(first_layer=2)
    assert len(upper) == 2 * 7 and all(name.startswith("layers.2.") for name in upper)
    for tuning, message in (
        ({"first_layer": 3}, "first_layer: 3: the model has no layer as high"),
        ({"targets": ("nowhere",)}, "nowhere"),
    ):
        with pytest.raises(ConfigError, match=message):
            trained(**tuning)
    with pytest.raises(TrainingError, match="has none; set tuning.kind to lora"):
        tiny.backbone("decoder", attention_bias=False, mlp_bias=False).tune(TunedWeights(kind="bitfit"))


def test_rates_of_encoder_and_head_and_what_decays():
    recipe = D2LLM.recipe(SMALL | {"tuning": {"kind": "full"}, "learning_rate": 1e-3, "head_learning_rate": 2e-3})
    student = D2LLM.build(tiny.backbone("decoder"), recipe)
    groups = D2LLM.parameter_groups(student, recipe)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in student.named_parameters():
        expected = 1e-3 if name.startswith("backbone") else 2e-3, 0.01 if parameter.ndim > 1 else 0.0
        assert rates[id(parameter)] == expected, name


# -------------------------------------------------------------------------------------------------------- save and load
def test_what_cannot_be_loaded_is_told(tmp_path):
    """A wrong path may be anything, somebody's own folder among it; where the student is near, it is named."""
    model = tmp_path / "seed1" / "model"
    student_of(tiny.backbone("decoder")).save(model)
    (tmp_path / "own").mkdir()
    for place, message in (
        (tmp_path / "own", r"own: no student here \(student.json is missing\); expected a run's folder, like results/"),
        (Path("org/name"), r"org/name: no student here \(no such folder\); expected"),
        (tmp_path / "seed1", f"{model} has one"),
        (model / "backbone", f"{model} has one"),
    ):
        with pytest.raises(ArtifactError, match=message):
            Student.load(place)
    with pytest.raises(ArtifactError, match="config.json is missing"):
        Backbone.load(tmp_path / "nothing", "decoder")
    (model / "backbone" / "model.safetensors").rename(model / "backbone" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot load the decoder model"):
        Student.load(model)
    (model / "student.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a saved student"):
        Student.load(model)


# ------------------------------------------------------------------------------------------------------------ objective
# Of the example's rows, what the training set marks as right besides their positives: an easy negative's text, and a
# hard negative's of another row.
MARKED = [["木"], ["火", "星"], [], ["猫"]]
WEIGHTS = {"ci": 1.5, "alpha": 0.7, "beta": 0.3, "gamma": 0.2, "in_batch_weight": 0.9, "passage_to_query": 0.5}
# The key of each term's weight.
KEYS = dict(zip(("ci", "ri_phn", "ri_ehn", "fi", "cl", "p2q"), WEIGHTS, strict=True))


def example(marked=MARKED):
    """A batch of four with one repeated query (rows 0 and 3), a short row of negatives, marked texts, and made-up
    embeddings and teacher."""
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, -1] = False
    queries, positives = ["甲", "乙", "丙", "甲"], ["山", "水", "火", "木"]
    negatives = [["日", "月", "星"], ["吃", "看", "看"], ["山", "书", "花"], ["猫", "狗", "人"]]
    ids = None if marked is None else PairTextIds(["d"] * 4, queries, positives, negatives, marked).of(range(4))
    easy, features = torch.tensor([[1, 2], [0, 2], [0, 3], [0, 1]]), torch.rand(4, 4, 4, generator=generator)
    teacher = TeacherTargets(normal(4, 2), normal(4, 3, 2), normal(4, 2, 2), easy, features)
    batch = Batch("d", "symmetric", queries, positives, negatives, teacher, mask, ids)
    return batch, Embedded(normal(4, 32), normal(4, 32), normal(4, 3, 32))


def setting(**settings):
    """(recipe, student) of D2LLM with every term, but for the settings given."""
    recipe = D2LLM.recipe(SMALL | WEIGHTS | settings)
    torch.manual_seed(5)
    return recipe, D2LLM.build(tiny.backbone("decoder"), recipe)


def all_pairs(student, embedded):
    """(B, B, 1 + K): z of query i with each candidate of query j, one pair at a time."""
    candidates = torch.cat([embedded.p[:, None], embedded.n], 1)
    score = lambda q, p: student.scorer.pairs(q[None], p[None], "symmetric")[0].item()  # noqa: E731
    return np.array([[[score(q, p) for p in row] for row in candidates] for q in embedded.q])


def right_texts(batch):
    """What is right for each query of the example: the positives of its text, itself, and what is marked."""
    right = [{"甲", "山", "木"}, {"乙", "水"}, {"丙", "火"}, {"甲", "山", "木"}]
    if batch.text_ids is not None:
        right = [right[0] | {"猫"}, right[1] | {"火", "星"}, right[2], right[3] | {"猫"}]
    return right


def in_batch(batch, z, i, passages):
    """Scores of query i with the passages of other queries that may be its negatives."""
    right, others = right_texts(batch)[i], [j for j in range(len(batch)) if j != i]
    scores = [z[i, j, 0] for j in others if batch.positives[j] not in right]
    if passages == "all":
        places = [(j, k) for j in others for k in range(3) if batch.negative_mask[j, k]]
        scores += [z[i, j, 1 + k] for j, k in places if batch.negatives[j][k] not in right]
    return scores


def loop_terms(student, embedded, batch, recipe):
    """Every term by loops over single pairs, in float64."""

    def prob(logits):
        yes, no = (math.exp(float(x)) for x in logits)
        return yes / (yes + no)

    def softmax_loss(first, rest):
        values = np.array([first, *rest]) / recipe.temperature
        return np.log(np.exp(values).sum()) - values[0]

    teacher, right, z = batch.teacher, right_texts(batch), all_pairs(student, embedded)
    rows = {name: [] for name in KEYS}
    for i in range(len(batch)):
        places = [k for k in range(3) if batch.negative_mask[i, k]]
        zp, zn = z[i, i, 0], [z[i, i, 1 + k] for k in places]
        sp, sn = prob(teacher.positive_logits[i]), [prob(teacher.negative_logits[i, k]) for k in places]
        others = in_batch(batch, z, i, recipe.in_batch_passages)
        own = [(1 - s) * value for s, value in zip(sn, zn, strict=True)]
        rows["ci"].append(softmax_loss(sp * zp, own + (others if recipe.in_batch == "joint" else [])))
        rows["cl"].append(softmax_loss(zp, others))
        rows["ri_phn"].append(1 - np.corrcoef([zp, *zn], [sp, *sn])[0, 1])
        pairs = []
        for e, j in enumerate(teacher.easy_index[i].tolist()):
            if batch.positives[j] not in right[i]:
                se, ze = prob(teacher.easy_logits[i, e]), z[i, j, 0]
                pairs += [max(0, s - se) * math.log(1 + math.exp(ze - v)) for s, v in zip(sn, zn, strict=True)]
        rows["ri_ehn"].append(np.mean(pairs))
        chosen = [0, *(k + 1 for k in places)]
        texts = torch.cat([embedded.p[i, None], embedded.n[i]])[chosen]
        vectors = student.scorer.features(embedded.q[i].expand_as(texts), texts, batch.mode).detach().double().numpy()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        target = teacher.features[i].double().numpy()[np.ix_(chosen, chosen)]
        rows["fi"].append(((target - unit @ unit.T) ** 2).sum() / len(chosen) ** 2)
        rows["p2q"].append(softmax_loss(zp, [z[j, i, 0] for j in range(4) if batch.positives[i] not in right[j]]))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def numbers(terms):
    return {name: value.item() for name, value in terms.items()}


def counted(student, monkeypatch):
    """Filled with how often the scorer forms each of its parts and scores."""
    counts = Counter()

    def count(name, compute, *args):
        counts[name.removesuffix("_cached")] += 1
        return compute(*args)

    for name in ("query_cache", "passage_cache", "features_cached", "pairs_cached", "matrix_cached"):
        monkeypatch.setattr(student.scorer, name, partial(count, name, getattr(student.scorer, name)))
    return counts


ONCE, EVERY = {"features": 1, "pairs": 1, "matrix": 1}, {"in_batch_passages": "all"}
ALONE = {"in_batch": "none", "passage_to_query": 0}


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, ONCE),
        (EVERY, {"features": 1, "matrix": 1}),  # own pairs are among all pairs
        ({"in_batch": "joint"}, ONCE),
        (EVERY | {"in_batch": "joint"}, {"features": 1, "matrix": 1}),
        ({"in_batch": "none"}, ONCE),
        (EVERY | {"in_batch": "none"}, ONCE),
        # No term has need of all positives: the easy pairs alone are scored, with features of their own.
        (ALONE, {"features": 2, "pairs": 2}),
        (ALONE | {"beta": 0}, {"features": 1, "pairs": 1}),
    ],
)
@pytest.mark.parametrize("marked", [MARKED, None], ids=["marked", "by hand"])
def test_the_objective_is_what_loops_give_and_what_terms_share_is_computed_once(settings, calls, marked, monkeypatch):
    recipe, student = setting(temperature=0.6, **settings)
    batch, embedded = example(marked)
    loops = loop_terms(student, embedded, batch, recipe)
    weights = {name: getattr(recipe, KEYS[name]) for name in loops if name != "cl" or recipe.in_batch == "separate"}
    counts = counted(student, monkeypatch)
    terms = D2LLM.objective(student, embedded, batch, recipe)
    assert counts == {"query_cache": 1, "passage_cache": 1} | calls
    expected = {name: weight * loops[name] for name, weight in weights.items() if weight}
    assert numbers(terms) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("term", KEYS)
def test_weight_zero_removes_exactly_its_term(term):
    recipe, student = setting()
    batch, embedded = example()
    complete = numbers(D2LLM.objective(student, embedded, batch, recipe))
    assert set(complete) == set(KEYS)
    without = D2LLM.objective(student, embedded, batch, D2LLM.recipe(SMALL | WEIGHTS | {KEYS[term]: 0}))
    assert numbers(without) == pytest.approx({name: complete[name] for name in KEYS if name != term})


def test_a_further_loss_is_found_by_its_file_and_weighed(monkeypatch):
    files = lambda path: [*pkgutil.iter_modules(path), SimpleNamespace(name="margin")]  # noqa: E731
    monkeypatch.setattr(d2llm_recipe, "pkgutil", SimpleNamespace(iter_modules=files))
    monkeypatch.setitem(sys.modules, f"{LOSSES}.margin", SimpleNamespace(term=lambda scores: scores.hard[:, 0].mean()))
    batch, embedded = example()
    for weight in (0.25, 0):
        recipe, student = setting(losses={"margin": weight})
        terms = numbers(D2LLM.objective(student, embedded, batch, recipe))
        assert set(terms) == {*KEYS} | ({"margin"} if weight else set())
        if weight:
            positives = student.scorer.pairs(embedded.q, embedded.p, "symmetric")
            assert terms["margin"] == pytest.approx(weight * positives.mean().item())
            assert D2LLM.modules(recipe)[-1] == f"{LOSSES}.margin"


def test_fewer_hard_negatives_and_no_teacher():
    recipe, student = setting()
    batch, embedded = example()
    assert batch.narrowed(None) is batch and batch.narrowed(99) is batch
    narrow, teacher = batch.narrowed(2), batch.teacher
    assert narrow.negatives == [row[:2] for row in batch.negatives]
    for part, whole in (
        (narrow.negative_mask, batch.negative_mask[:, :2]),
        (narrow.teacher.negative_logits, teacher.negative_logits[:, :2]),
        (narrow.teacher.features, teacher.features[:, :3, :3]),
        (narrow.teacher.easy_logits, teacher.easy_logits),
    ):
        assert torch.equal(part, whole)
    with pytest.raises(TrainingError, match="ci, alpha, beta, gamma need teacher scores"):
        D2LLM.objective(student, embedded, replace(batch, teacher=None), recipe)


def test_every_trained_parameter_of_the_mode_gets_a_gradient():
    recipe, student = setting()
    batch, _ = example()
    longer = replace(batch, queries=["甲乙丙", "丙丁", "山水", "火木日"])  # attention over one token has no gradient
    sum(D2LLM.objective(student, student.train()(longer), batch, recipe).values()).backward()
    dead = [n for n, p in student.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # lora_A has no gradient while lora_B is zero; the asymmetric branch is not this batch's
    branch = "scorer.branches.asymmetric."
    assert [name for name in dead if "lora_A" not in name] == [f"{branch}weight", f"{branch}bias"]


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
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, rates = optimization.schedule(sgd, kind, warmup, 6), []
    for _ in range(6):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        plan.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_scaled_loss_gives_the_plain_update_and_an_overflow_gives_none(clip):
    """float16's scale is a power of two: undone before clipping, it leaves no trace; an overflow skips its update."""

    def trained(accelerator, factors):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        adam = optimization.optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}])
        losses = ([{"loss": (weight**2).sum() * factor}] for factor in factors)
        return weight, [optimization.step(accelerator, one, adam, None, clip, "")["gradient_norm"] for one in losses]

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = SimpleNamespace(scaler=scaler, backward=lambda loss: scaler.scale(loss).backward())
    (plain, norms), (weight, scaled_norms) = trained(None, [1.0, 3.0]), trained(scaled, [1.0, 3.0])
    assert torch.equal(weight, plain) and scaled_norms == norms == pytest.approx([2 * 5**0.5, norms[1]])
    before = scaler.get_scale()
    weight, _ = trained(scaled, [1e36])  # times 1024 it is too large for float32
    assert weight.tolist() == [1.0, -2.0] and scaler.get_scale() == before / 2


def test_batches_pass_over_everything_and_repeat_themselves():
    drawn = list(optimization.batches(5, 2, 5, seed=1))
    assert drawn == list(optimization.batches(5, 2, 5, seed=1)) != list(optimization.batches(5, 2, 5, seed=2))
    flat = [index for batch in drawn for index in batch]
    assert flat[:5] != flat[5:] and sorted(flat[:5]) == sorted(flat[5:]) == list(range(5))
    with pytest.raises(TrainingError, match="nothing to train"):
        optimization.optimizer([])

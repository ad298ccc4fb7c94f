"""The teacher: prompts and how they are cut, packed scoring against plain prompts one by one, tuning, stored scores.

Tuning in parts and in half precision: test_out_of_memory.py; tuning that is killed: test_resume.py.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_negatives import changed_results
from tiny_run import changed

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.config.sections import PromptSettings, TeacherSettings
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.models.tokens import encodings, token_ids
from d2llm.run.artifacts import read_json, read_jsonl
from d2llm.run.errors import ArtifactError, ConfigError, TrainingError
from d2llm.run.paths import Paths
from d2llm.teacher import score as teacher_scores
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.cross_encoder import PromptIds, Teacher, token_batches
from d2llm.teacher.prompts import Prompt, prompts
from d2llm.teacher.targets import read_scores
from d2llm.training.trackers import Log

SYMMETRIC = (
    "#P和#H将分别描述一种事件或问题，它们可能并无关系。仅使用此描述和您对世界的了解，判断#H是不是一个关于#P中的事件绝对"
    "正确的句子，或者#H是不是绝对正确地描述了#P的事件或问题，请回答是或不是，若您不确定，请回答不是。\n#P：甲\n#H：乙\n回答："
)
ASYMMETRIC = (
    "#Q将描述一个问题，#A将描述一个网络段落，它们可能并没有关系。仅依据这些描述和您对世界的了解，判断#A能不能正确地回答"
    "#Q中提出的问题，请回答能或不能。\n#Q：甲\n#A：乙\n回答："
)
LETTERS = "甲乙丙丁戊己庚辛壬癸"
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


def small_settings(**more: object) -> TeacherSettings:
    return TeacherSettings(**({"max_length": 200, "batch_pairs": 12, "learning_rate": 5e-3} | more))


def made(seed: int = 0, bias: bool = False, first: bool = False, **more: object) -> Teacher:
    """A random two-layer Llama whose tokens are single characters, so that a text and its parts are tokenised alike;
    `first`: texts begin with <bos>.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = build_tokenizer([*SYMMETRIC, *ASYMMETRIC, *LETTERS])
    if first:
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
        tiny.framed_by(tokenizer)
    shape = LlamaConfig(
        **WIDTH, vocab_size=len(tokenizer), intermediate_size=48, max_position_embeddings=512, initializer_range=0.2,
        attention_bias=True, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(len(tokenizer)))
    return Teacher(model.eval(), tokenizer, small_settings(**more))


def of_architecture(kind: str, teacher: Teacher, more: dict[str, Any], **chosen: object) -> Teacher:
    """A random model of another kind, with the same tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": len(teacher.tokenizer), "intermediate_size": 48, "initializer_range": 0.2} | WIDTH | more
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    return Teacher(model, teacher.tokenizer, small_settings(**chosen))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Not to be changed."""
    return made()


# ------------------------------------------------------------------------------------------------------------- prompts
def test_the_prompts_are_those_of_the_release() -> None:
    symmetric, asymmetric = (prompts(TeacherSettings())[mode] for mode in ("symmetric", "asymmetric"))
    assert (symmetric.text("甲", "乙"), asymmetric.text("甲", "乙")) == (SYMMETRIC, ASYMMETRIC)
    assert (symmetric.yes, symmetric.no, asymmetric.yes, asymmetric.no) == ("是", "不是", "能", "不能")
    assert (symmetric.query, symmetric.passage, symmetric.cue) == ("#P：", "\n#H：", "\n回答：")
    for template in ("问：{a}答：{b}。对吗", "说明\n多行\n甲{a}\n乙{b}\n回答：", "{a}|{b}|？"):
        assert Prompt.parse(template, "对", "错").text("一", "二") == template.replace("{a}", "一").replace("{b}", "二")


@pytest.mark.parametrize(
    "template", ["只有{a}。回答：", "{b}在{a}前。", "{a}{a}{b}：", "{a}{b}{b}：", "{a}和{b}", "{a}和{b}\n "]
)
def test_a_template_needs_both_texts_once_in_order_and_a_cue(template: str) -> None:
    with pytest.raises(ConfigError, match="answer cue" if "和" in template else "once and after it"):
        Prompt.parse(template, "是", "不是")


def test_unusable_answers_and_prompts_without_room_are_refused(teacher: Teacher) -> None:
    plain = Prompt.parse("{a}和{b}回答：", "是", "不是")
    for changes, message in (
        ({"yes": "龙"}, r"answer '龙' has no token.*teacher\.\*\.yes"),
        ({"no": " "}, "answer ' ' has no token"),
        ({"yes": "不能"}, "'不能' and '不是' start with the same token '不'"),
    ):
        with pytest.raises(ConfigError, match=message):
            PromptIds(replace(plain, **changes), teacher.tokenizer, 200)
    prompt = prompts(small_settings())["symmetric"]
    fixed = len(teacher.tokenizer(prompt.text("", ""), add_special_tokens=False)["input_ids"])
    with pytest.raises(ConfigError, match=rf"max_length is {fixed + 1}, but the prompt alone takes {fixed} tokens"):
        PromptIds(prompt, teacher.tokenizer, fixed + 1)
    assert PromptIds(prompt, teacher.tokenizer, fixed + 2).room == 2


# ----------------------------------------------------------------------------------------------------------- truncation
texts = st.lists(st.integers(1000, 9999), max_size=60)


@settings(max_examples=80, deadline=None)
@given(
    room=st.integers(2, 50), a=texts, candidates=st.lists(texts, min_size=1, max_size=6),
    size=st.one_of(st.none(), st.integers(1, 6)),
)  # fmt: skip
def test_every_candidate_stands_in_its_row_as_in_a_prompt_of_its_own(
    teacher: Teacher, room: int, a: list[int], candidates: list[list[int]], size: int | None
) -> None:
    """Cut by the pair alone, the longer text first, so that all the room is used."""
    ids = PromptIds.__new__(PromptIds)
    ids.__dict__.update(teacher.prompts["symmetric"].__dict__, room=room)
    rows = ids.rows(a, candidates, 3, size)
    assert sorted(number for row in rows for number in row.members) == list(range(len(candidates)))
    for row in rows:
        assert row.group == 3 and 1 <= len(row.members) <= (size or len(candidates))
        assert len(row.ids) == len(row.positions) == len(row.segments)
        shared = [row.ids[i] for i, segment in enumerate(row.segments) if segment == 0]
        one = shared[len(ids.prefix) :]
        for place, number in enumerate(row.members):
            own = [i for i, segment in enumerate(row.segments) if segment == place + 1]
            start, end = row.text_spans[place]
            two = row.ids[start:end]
            assert shared + [row.ids[i] for i in own] == [*ids.prefix, *one, *ids.middle, *two, *ids.cue]
            assert [row.positions[i] for i in own] == list(range(len(shared), len(shared) + len(own)))
            assert row.answers[place] == own[-1]
            assert (one, two) == (a[: len(one)], candidates[number][: len(two)])
            naive = [len(a), len(candidates[number])]
            while sum(naive) > room:
                naive[0 if naive[0] > naive[1] else 1] -= 1
            assert sorted((len(one), len(two))) == sorted(naive)
    if len(a) + max(map(len, candidates)) <= room:  # nothing is cut: as few rows as there can be
        assert len(rows) == -(-len(candidates) // (size or len(candidates)))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 200), seed=st.integers(0, 99)
)
def test_token_batches_stay_within_the_budget_and_leave_no_room(lengths: list[int], budget: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    batches = list(token_batches(order, lengths, budget))
    assert [i for batch in batches for i in batch] == order
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert not following or (len(batch) + 1) * max(longest, lengths[following[0]]) > budget


# -------------------------------------------------------------------------------------------------------------- scoring
GROUPS = [
    ("甲乙丙", ["丁戊", "己", "甲乙丙丁戊己庚", "辛壬", "癸"]),
    ("壬", ["壬壬"]),
    ("丁戊己庚辛壬癸", ["甲", "甲", "乙丙丁"]),
]


@torch.no_grad()
def one_by_one(teacher: Teacher, a: str, b: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and last state of one plain prompt: the whole text tokenised at once, all tokens through the model and its
    head.
    """
    prompt = prompts(teacher.settings)[mode]
    ids = teacher.tokenizer(prompt.text(a, b), add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = teacher.model(input_ids=ids, output_hidden_states=True)
    vocabulary = teacher.tokenizer.get_vocab()
    answers = [vocabulary[prompt.yes[0]], vocabulary[prompt.no[0]]]
    return out.logits[0, -1, answers].numpy(), out.hidden_states[-1][0, -1].numpy()


def check_scores(teacher: Teacher, mode: str = "symmetric") -> list[np.ndarray]:
    """Logits and features of all groups are those of plain prompts; the logits."""
    logits, states = teacher.score(GROUPS, mode, features=True)
    for (a, candidates), own, features in zip(GROUPS, logits, states, strict=True):
        expected = [one_by_one(teacher, a, b, mode) for b in candidates]
        assert own.dtype == features.dtype == np.float32
        np.testing.assert_allclose(own, [one for one, _ in expected], atol=1e-5)
        np.testing.assert_allclose(features, [state for _, state in expected], atol=1e-5)
    return logits


@pytest.mark.parametrize(
    ("mode", "pack_size", "bias"), [("symmetric", 2, False), ("asymmetric", 8, True), ("symmetric", 1, True)]
)
def test_packed_scores_and_features_are_those_of_separate_prompts(mode: str, pack_size: int, bias: bool) -> None:
    teacher = made(bias=bias, pack_size=pack_size, batch_tokens=700)
    logits = check_scores(teacher, mode)
    assert np.concatenate(logits).std() > 0.01  # they do differ
    np.testing.assert_array_equal(np.concatenate(teacher.score(GROUPS, mode)), np.concatenate(logits))


def test_the_instruction_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2llm.teacher.cross_encoder.SHORTEST", 1)
    teacher = made(pack_size=2, batch_tokens=300)
    assert teacher.packs  # tried once, by passes of its own
    fed: list[tuple[int, ...]] = []
    body, known = teacher.model.base_model, len(teacher.prompts["symmetric"].prefix)
    whole = body.forward
    monkeypatch.setattr(body, "forward", lambda **given: fed.append(given["input_ids"].shape) or whole(**given))
    with_it = teacher.score(GROUPS, "symmetric")
    lengths = [len(row.ids) for row in teacher.pack(GROUPS, "symmetric", 2)]
    (first, *rest) = fed
    assert first == (1, known) and len(rest) > 1
    assert (sum(n for n, _ in rest), max(t for _, t in rest)) == (len(lengths), max(lengths) - known)
    # Code from elsewhere may cache in any way: all of every row goes through it.
    monkeypatch.setattr(type(teacher.model), "__module__", "transformers_modules.theirs")
    fed.clear()
    without = teacher.score(GROUPS, "symmetric")
    assert (sum(n for n, _ in fed), max(t for _, t in fed)) == (len(lengths), max(lengths))
    np.testing.assert_allclose(np.concatenate(with_it), np.concatenate(without), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_the_last_feed_forward_runs_for_the_answers_alone(kind: str, teacher: Teacher) -> None:
    """In Llama's kin; of every architecture the answers' logits and states are those of plain prompts."""
    other = of_architecture(kind, teacher, {})
    assert other.packs
    seen: list[int] = []
    mlp = other.model.base_model.layers[-1].mlp
    mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    other.score(GROUPS, "symmetric")
    answers = sum(len(candidates) for _, candidates in GROUPS)
    assert (seen[-1] == answers) if kind != "mixtral" else (seen[-1] > 3 * answers)
    check_scores(other)


# ---------------------------------------------------------------------------------------------- what a checkpoint adds
def test_a_prompt_begins_as_the_checkpoint_begins_a_text() -> None:
    teacher = made(first=True)
    bos, whole = teacher.tokenizer.bos_token_id, teacher.tokenizer(SYMMETRIC)["input_ids"]
    assert whole[0] == bos and teacher.pack([("甲", ["乙"])], "symmetric")[0].ids == whole
    logits = teacher.score([("甲", ["乙", "丙丁"])], "symmetric")[0]
    with torch.no_grad():
        expected = teacher.model(input_ids=torch.tensor([whole])).logits[0, -1]
    answers = [teacher.prompts["symmetric"].yes, teacher.prompts["symmetric"].no]
    np.testing.assert_allclose(logits[0], expected[answers].numpy(), atol=1e-5)
    # The first token takes of the room that texts have; a template that spells it has it once.
    assert teacher.prompts["symmetric"].room == made().prompts["symmetric"].room - 1
    spelt = PromptSettings(template="<bos>#P：{a}\n#H：{b}\n回答：", yes="是", no="不")
    again = Teacher(teacher.model, teacher.tokenizer, small_settings(symmetric=spelt))
    assert again.pack([("甲", ["乙"])], "symmetric")[0].ids == again.tokenizer("#P：甲\n#H：乙\n回答：")["input_ids"]


def test_the_tokenizer_itself_says_what_its_wrapper_says() -> None:
    tokenizer, texts = made().tokenizer, ["甲乙", "丙 丁。", "x", ""]
    wrapped = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    # What a checkpoint's tokenizer.json may ask for must not cut or fill up texts.
    tokenizer.backend_tokenizer.enable_truncation(1)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    direct = encodings(tokenizer, texts)
    assert [one.ids for one in direct] == token_ids(tokenizer, texts) == wrapped["input_ids"]
    assert [one.offsets for one in direct] == [list(map(tuple, spans)) for spans in wrapped["offset_mapping"]]


@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_answer_logits_of_a_half_precision_teacher_do_not_tie(precision: str) -> None:
    teacher = made()
    prompt = teacher.prompts["symmetric"]
    with torch.no_grad():  # between 16 and 32 bfloat16 has steps of 1/8
        teacher.model.lm_head.weight = torch.nn.Parameter(teacher.model.lm_head.weight.detach().clone())
        teacher.model.lm_head.weight[[prompt.yes, prompt.no]] *= 20
    if precision == "weights":
        teacher.model.to(torch.bfloat16)
    rows = teacher.pack([("甲乙", [a + b for a in LETTERS for b in LETTERS])], "symmetric", 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        logits, states, _ = teacher.forward(rows, "symmetric")
    weight = teacher.model.lm_head.weight[[prompt.yes, prompt.no]].double()
    np.testing.assert_allclose(logits.numpy(), (states.double() @ weight.T).detach().numpy(), rtol=1e-5)
    assert logits.dtype == torch.float32 and logits.abs().max() > 16
    assert len(logits[:, 0].unique()) > 95 and len(logits[:, 0].bfloat16().unique()) < 90


# Whether candidates can share a row, and what is special of it.
ARCHITECTURES: dict[str, tuple[bool, dict[str, Any]]] = {
    "gemma2": (True, {"head_dim": 8, "final_logit_softcapping": 2.0}),  # adds masks as numbers; caps its logits
    "cohere": (True, {"logit_scale": 0.5}),
    "granite": (True, {"logits_scaling": 4.0}),
    "gpt_neox": (True, {"rotary_pct": 1.0}),
    "gpt2": (True, {}),
    "mistral": (False, {"sliding_window": 24}),  # shorter than a prompt
    "mpt": (False, {}),  # counts distances in the row itself
    "bloom": (False, {}),  # takes no mask of rows and columns
    "mamba": (False, {}),  # recurrent, and asks its head for its type
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_of_every_architecture_scores_are_those_of_the_model_itself(kind: str, teacher: Teacher) -> None:
    packs, more = ARCHITECTURES[kind]
    other = of_architecture(kind, teacher, more, max_length=150)
    head = other.model.get_output_embeddings()
    check_scores(other)
    assert other.packs is packs and other.model.get_output_embeddings() is head


LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
}


@pytest.mark.parametrize(("kind", "more"), [("mpt", {}), pytest.param("qwen3_next", LINEAR, marks=pytest.mark.slow)])
def test_half_precision_does_not_hide_that_candidates_touch(kind: str, more: dict[str, Any], teacher: Teacher) -> None:
    """Distances counted in the row, or a state carried on, are less than a tenth of an answer's state, and change
    scores by the size of their spread.
    """
    other = of_architecture(kind, teacher, more)
    model, group = other.model.bfloat16(), (LETTERS, [LETTERS[i:] + LETTERS[: 9 - i] for i in range(8)])
    shared, alone = (
        Teacher(model, teacher.tokenizer, small_settings(pack_size=size)).score([group, group], "symmetric")[0]
        for size in (8, 1)
    )
    np.testing.assert_array_equal(shared, alone)


def test_scores_that_are_not_finite_are_refused() -> None:
    teacher = made()
    torch.nn.init.constant_(teacher.model.model.layers[0].mlp.down_proj.weight, math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        teacher.score(GROUPS, "symmetric")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_teacher_scores_as_before(dtype: torch.dtype, teacher: Teacher, tmp_path: Path) -> None:
    """In the type it is kept in; to be tuned, in float32."""
    with pytest.raises(ArtifactError, match=r"nowhere: cannot load the teacher"):
        Teacher.load(tmp_path / "nowhere", teacher.settings)
    copy.deepcopy(teacher.model).to(dtype).save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    again = Teacher.load(tmp_path, teacher.settings)
    assert again.model.dtype == dtype
    logits, states = map(np.concatenate, again.score(GROUPS, "asymmetric", features=True))
    assert logits.dtype == states.dtype == np.float32
    before = np.concatenate(teacher.score(GROUPS, "asymmetric"))
    np.testing.assert_allclose(logits, before, rtol=0, atol=0 if dtype == torch.float32 else 0.05)
    assert Teacher.load(tmp_path, teacher.settings, torch.float32).model.dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- tuning
ASKED = PromptSettings(template="#P：{a}\n#H：{b}\n回答：", yes="是", no="不")
SHORT = {"symmetric": ASKED, "asymmetric": ASKED}


def trivial(n: int, seed: int) -> pd.DataFrame:
    """Groups of two candidates: those of 甲 and 乙 are right, those of 丙 and 丁 are wrong, whatever is asked."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        label = [True, False] if i % 2 else [False, True]
        b = [str(rng.choice(list("甲乙" if yes else "丙丁"))) + str(rng.choice(list("戊己庚"))) for yes in label]
        rows.append((("symmetric", "asymmetric")[i % 4 == 0], b, str(rng.choice(list(LETTERS))), label))
    frame = pd.DataFrame(rows, columns=["mode", "passages", "query", "label"])
    for column, right, wrong in (("target", 1.0, 0.1), ("relations", "10", "50"), ("phenomenon", "right", "wrong")):
        frame[column] = [[right if yes else wrong for yes in label] for label in frame["label"]]
    return frame


def test_tuning_learns_a_trivial_task(tmp_path: Path) -> None:
    teacher = made(seed=3, steps=60, asymmetric_share=0.3, **SHORT)
    before = teacher_tuning.assess(teacher, trivial(60, 9))
    teacher_tuning.tune(teacher, trivial(64, 1), teacher.settings, Log(tmp_path / "log.jsonl"))
    after = teacher_tuning.assess(teacher, trivial(60, 9))
    records = read_jsonl(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == [50, 60]
    assert records[-1]["answer"] < 0.3  # log 2 = 0.69 for a guess, 0.16 for the graded targets themselves
    assert records[-1]["relation"] < 0.5  # log 6 = 1.79
    for mode in ("symmetric", "asymmetric"):
        assert after[mode]["ap"] > 0.99 > 0.9 > before[mode]["ap"]
    # The relation term can be left out.
    teacher_tuning.tune(
        made(**SHORT), trivial(8, 1), small_settings(steps=1, relation_weight=0.0), Log(tmp_path / "other")
    )
    (record,) = read_jsonl(tmp_path / "other")
    assert "answer" in record and "relation" not in record


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "bloom"])
@pytest.mark.parametrize("weight", [1.0, 0.0])  # without relations the last layer runs at the answers alone
def test_an_update_that_shares_the_instruction_learns_what_others_do(
    kind: str, weight: float, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are those of plain prompts, loss and gradients those of rows that share nothing but the query; what
    announces a passage stands once a row. A model that cannot keep candidates apart goes on as before.
    """
    monkeypatch.setattr("d2llm.teacher.cross_encoder.SHORTEST", 1)
    frame, found, lengths = trivial(6, 1), [], []
    for shared_from in (0, 1 << 40):
        monkeypatch.setattr("d2llm.teacher.cross_encoder.SHARED_FROM", shared_from)
        more = {"head_dim": 8, "sliding_window": 200} if kind.startswith("gemma") else {}
        judge = of_architecture(kind, teacher, more, **SHORT)
        assert judge.shares is (shared_from == 0 and kind != "bloom")
        check_scores(judge)
        examples = teacher_tuning._Examples(judge, frame)
        torch.manual_seed(1)
        relation = torch.nn.Linear(32, teacher_tuning.RELATIONS)
        task = teacher_tuning._Task(judge, examples, relation, weight, nullcontext)
        terms = task.loss(("symmetric", np.arange(4)))
        sum(terms.values()).backward()
        lengths.append(next(judge.plan([("甲", ["乙"] * 3)], "symmetric")).length)
        found.append((terms, {name: p.grad for name, p in judge.model.named_parameters()}))
    (one, own), (two, expected) = found
    middle = len(judge.prompts["symmetric"].middle)
    assert lengths[1] - lengths[0] == (0 if kind == "bloom" else 2 * middle)
    assert set(one) == set(two) == ({"answer", "relation"} if weight else {"answer"})
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_relations_are_read_at_the_words_of_the_candidates(teacher: Teacher) -> None:
    """In rows laid end to end, the places are those of marked tokens, with their digits; a token of several characters
    takes the first one's.
    """
    groups, marks = [("甲", ["乙丙丁", "戊己"]), ("庚辛", ["壬"])], [["105", "20"], ["3"]]
    rows = teacher.pack(groups, "symmetric")
    labels = [
        teacher_tuning.relation_labels(teacher, texts, digits, teacher.tokens(texts))
        for (_, texts), digits in zip(groups, marks, strict=True)
    ]
    assert labels == [[[1, -100, 5], [2, -100]], [[3]]]
    width = max(len(row.ids) for row in rows)
    (first, second), (third,) = rows[0].text_spans, rows[1].text_spans
    places = [first[0], first[0] + 2, second[0], width + third[0]]
    assert teacher_tuning.marked(rows, labels, width) == (places, [1, 5, 2, 3])
    wide = SimpleNamespace(tokenizer=build_tokenizer([*SYMMETRIC, *ASYMMETRIC, "甲乙", "丙丁戊", "己"]))
    ids = [wide.tokenizer.get_vocab()[piece] for piece in ("甲乙", "己", "丙丁戊")]
    assert teacher_tuning.relation_labels(wide, ["甲乙己丙丁戊"], ["110555"], [ids]) == [[1, -100, 5]]


def test_tuning_batches(teacher: Teacher) -> None:
    examples = teacher_tuning._Examples(teacher, trivial(40, 2))  # 30 symmetric and 10 asymmetric groups of two pairs
    batches, again = (examples.batches(pairs=8, steps=400, seed=5, asymmetric_share=0.25) for _ in range(2))
    assert np.mean([mode == "asymmetric" for mode, _ in batches]) == pytest.approx(0.25, abs=0.06)
    symmetric = np.concatenate([index for mode, index in batches if mode == "symmetric"])
    assert max(len(index) for _, index in batches) == 4  # groups, that is 8 pairs
    for start in range(0, len(symmetric) - 29, 30):  # every pass holds every group once
        assert sorted(symmetric[start : start + 30]) == list(range(30))
    assert all(one[0] == two[0] and (one[1] == two[1]).all() for one, two in zip(batches, again, strict=True))


def test_targets_follow_candidates_whose_rows_are_parted_by_the_cut(teacher: Teacher) -> None:
    room = teacher.prompts["symmetric"].room
    lengths = [3, 2 * room, 5, room, 6]
    b, marks = ([text[i] * n for i, n in enumerate(lengths)] for text in (LETTERS, "12345"))
    long, short = ("甲" * (room - 4), b, [0.1, 0.2, 0.3, 0.4, 0.5], marks), ("甲", ["乙"], [0.9], ["7"])
    frame = pd.DataFrame([long, short], columns=["query", "passages", "target", "relations"]).assign(mode="symmetric")
    examples = teacher_tuning._Examples(teacher, frame)
    rows, targets, relations = (part["symmetric"] for part in (examples.rows, examples.targets, examples.relations))
    assert len(rows) == len(targets) == len(relations) > 2
    for row, wanted, digits in zip(rows, targets, relations, strict=True):
        own = frame.iloc[row.group]
        for place, number in enumerate(row.members):
            assert wanted[place] == np.float32(own["target"][number])
            assert set(digits[place]) == {int(own["relations"][number][0])}
            assert row.ids[row.text_spans[place][0]] == teacher.tokens([own["passages"][number]])[0][0]
    batches = examples.batches(pairs=3, steps=4, seed=1, asymmetric_share=0.0)
    assert max(int(i) for _, index in batches for i in index) == len(rows) - 1


def test_the_report_by_hand() -> None:
    probability = np.array([0.05, 0.15, 0.18, 0.45, 0.52, 0.58, 0.91, 0.97, 0.33, 1.0])
    label = np.array([0, 0, 1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
    target = np.where(label, 1.0, [0.1, 0.2, 0, 0, 0.3, 0, 0, 0, 0.05, 0])
    names = np.array(["one" if i % 3 else "two" for i in range(10)])
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    logits = np.stack([np.log(clipped), np.log1p(-clipped)], axis=1) + 3.0
    parts = [slice(0, 4), slice(4, 10)]
    columns = {"passages": names, "label": label, "target": target, "phenomenon": names}
    rows = [{key: values[part].tolist() for key, values in columns.items()} for part in parts]
    judge = SimpleNamespace(score=lambda groups, mode, description: [logits[part] for part in parts])
    (report,) = teacher_tuning.assess(judge, pd.DataFrame(rows).assign(mode="symmetric", query="q")).values()
    # AP by hand: precision at each right pair from the highest probability down: 1/1, 2/2, 3/3, 4/4, 5/6, 6/8.
    assert report["ap"] == pytest.approx((1 + 1 + 1 + 1 + 5 / 6 + 6 / 8) / 6)
    assert (report["accuracy"], report["n"]) == (pytest.approx(7 / 10), 10)
    # Yes to six, of which 0.52 is wrong, one of the four wrong ones.
    assert (report["precision"], report["yes_to_wrong"]) == (pytest.approx(4 / 5), pytest.approx(1 / 4))
    # Bins of a tenth: 0.15 and 0.18 are in one, 0.52 and 0.58, and 0.91, 0.97 and 1.0.
    gaps = [0.05, 2 * abs(0.165 - 0.5), 0.33, 1 - 0.45, 2 * abs(0.55 - 0.5), 3 * (1 - 0.96)]
    assert report["expected_calibration_error"] == pytest.approx(sum(gaps) / 10, abs=1e-5)
    assert report["spearman_with_targets"] == pytest.approx(spearmanr(probability, target)[0])
    right = (probability >= 0.5) == label
    assert report["accuracy_by_phenomenon"] == {name: pytest.approx(right[names == name].mean()) for name in set(names)}
    (second,) = [part for part in report["reliability"] if part["from"] == 0.1]
    assert (second["n"], second["share_true"], second["mean_probability"]) == (2, 0.5, pytest.approx(0.165))


def test_targets_and_share_of_what_it_is_tuned_on() -> None:
    groups = pd.DataFrame({"mode": ["symmetric"] * 10 + ["asymmetric"] * 4, "query": range(14)})
    groups = groups.assign(target=[[0.3]] * 14, label=[[True]] * 14, chance=[[0.25]] * 14)
    values = {
        name: teacher_tuning.taught(groups, small_settings(targets=name)) for name in ("graded", "label", "probability")
    }
    assert {name: frame["target"][0][0] for name, frame in values.items()} == {
        "graded": 0.3,
        "label": 1,
        "probability": 0.25,
    }
    with pytest.raises(TrainingError, match="which these data lack"):
        teacher_tuning.taught(groups.drop(columns="chance"), small_settings(targets="probability"))
    few, more = (set(teacher_tuning.some_of(groups, small_settings(share=share))["query"]) for share in (0.25, 0.5))
    assert few < more and [len([q for q in part if q < 10]) for part in (few, more)] == [3, 5] and len(more) == 7
    files = {
        "source": "files",
        "files": {
            "train": {"a": {"file": "a.csv"}},
            "tasks": {"b": {"type": "sts", "group": "sts", "test": "b.csv", "scores": [0, 1]}},
        },
    }
    with pytest.raises(
        ConfigError, match=r"teachers\.teacher-x\.targets: probability, which only generated text knows"
    ):
        load([], {"methods": {"d2llm": {}}, "data": files, "teachers": {"teacher-x": {"targets": "probability"}}})


def test_a_teacher_below_its_bar_or_tuned_by_biases_is_refused(tiny_bases: Config, tmp_path: Path) -> None:
    config = changed(changed_results(tiny_bases, tmp_path), teacher={"min_ap": 1.0, "steps": 1})
    paths = Paths.of(config)
    with pytest.raises(TrainingError, match=r"not good enough.* is below teacher\.min_ap 1\.0; raise teacher\.steps"):
        teacher_tuning.run(config, "teacher")
    assert set(read_json(paths.teacher_report)) == {"asymmetric", "symmetric"}  # tells why
    assert not paths.teacher_model.exists()
    with pytest.raises(ConfigError, match=r"teacher: expected tuning\.kind full or lora"):
        load([], {"methods": {"d2llm": {}}, "teacher": {"tuning": {"kind": "bitfit"}}})


def test_the_stage_reports_and_saves_the_same_twice(tiny_scores: Config, tmp_path: Path) -> None:
    config = changed_results(tiny_scores, tmp_path)
    teacher_tuning.run(config, "teacher")
    one, two = Paths.of(tiny_scores), Paths.of(config)
    for name in ("report.json", "log.jsonl", "model/model.safetensors"):
        assert (one.teacher() / name).read_bytes() == (two.teacher() / name).read_bytes()
    base, tuned = (place / "model.safetensors" for place in (one.base("teacher"), one.teacher_model))
    assert base.read_bytes() != tuned.read_bytes()
    counts = pd.read_parquet(one.teacher_dev).groupby("mode")["passages"].apply(lambda texts: sum(map(len, texts)))
    assert {mode: part["n"] for mode, part in read_json(one.teacher_report).items()} == counts.to_dict()


# -------------------------------------------------------------------------------------------------------- stored scores
def test_stored_scores_by_loops(teacher: Teacher) -> None:
    """Two packs of three queries with two negatives each."""
    queries = list("甲乙丙丁戊己")
    negatives = [[queries[(i + 1) % 6] + "庚", queries[(i + 2) % 6] + "辛"] for i in range(6)]
    rows = pd.DataFrame({"qid": [f"q{i}" for i in range(6)], "query": queries, "positive": [2 * q for q in queries]})
    rows = rows.assign(dataset="set", mode="symmetric", pack=[0, 0, 0, 1, 1, 1], negatives=negatives)
    scores = teacher_scores.score(teacher, rows, "symmetric")
    assert scores["qid"].tolist() == rows["qid"].tolist()
    for i, row in enumerate(scores.itertuples()):
        query, mates = queries[i], [j for j in range(6) if rows["pack"][j] == rows["pack"][i] and j != i]
        hard = [one_by_one(teacher, query, text, "symmetric") for text in [rows["positive"][i], *negatives[i]]]
        easy = [one_by_one(teacher, query, rows["positive"][j], "symmetric") for j in mates]
        np.testing.assert_allclose(np.stack([row.yes, row.no], axis=1), [z for z, _ in hard], atol=1e-5)
        np.testing.assert_allclose(np.stack([row.easy_yes, row.easy_no], axis=1), [z for z, _ in easy], atol=1e-5)
        cosine = [[float(y @ x / np.linalg.norm(y) / np.linalg.norm(x)) for _, x in hard] for _, y in hard]
        np.testing.assert_allclose(np.reshape(row.features, (3, 3)), cosine, atol=1e-5)
    # A zero vector is like nothing, and no division by zero.
    zero = teacher_scores.cosines(np.array([[3, 4], [0, 0], [4, 3]], dtype=np.float32))
    assert zero.dtype == np.float32
    np.testing.assert_allclose(zero, [[1, 0, 0.96], [0, 0, 0], [0.96, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_both_directions_are_asked_of_like_texts_alone(mode: str) -> None:
    judge, groups = made(both_directions=True), [("甲乙", ["丙", "丁戊己"]), ("庚", ["辛壬"])]
    logits, features = judge.score(groups, mode, features=True)
    for (query, candidates), z, y in zip(groups, logits, features, strict=True):
        for i, text in enumerate(candidates):
            ways = [one_by_one(judge, query, text, mode), one_by_one(judge, text, query, mode)]
            ways = ways if mode == "symmetric" else ways[:1]
            np.testing.assert_allclose(z[i], np.mean([way[0] for way in ways], axis=0), atol=1e-5)
            np.testing.assert_allclose(y[i], np.mean([way[1] for way in ways], axis=0), atol=1e-5)
    assert all(np.array_equal(one, two) for one, two in zip(judge.score(groups, mode), logits, strict=True))


def test_the_stage_scores_every_training_query_in_any_number_of_shards(tiny_scores: Config, tmp_path: Path) -> None:
    paths = Paths.of(tiny_scores)
    pairs = pd.read_parquet(paths.pairs)
    qids = pairs["qid"].tolist()
    whole, row = read_scores(tiny_scores, qids), pairs.iloc[-1]
    teacher = Teacher.load(paths.teacher_model, tiny_scores.teacher)
    logits = teacher.score([(row["query"], [row["positive"], *row["negatives"]])], row["mode"])[0]
    np.testing.assert_allclose(np.stack([whole["yes"].iloc[-1], whole["no"].iloc[-1]], axis=1), logits, atol=1e-5)
    config = changed(changed_results(tiny_scores, tmp_path), teacher={"shards": 3})
    for folder in ("pairs", "teacher"):
        (Paths.of(config).root / folder).mkdir()
        for file in (paths.root / folder).iterdir():
            if file.name != "scores":
                (Paths.of(config).root / folder / file.name).symlink_to(file)
    for shard in range(2):
        teacher_scores.run(config, "teacher", shard, 3)
    with pytest.raises(ArtifactError, match=r"2-of-3.parquet: missing"):
        read_scores(config, qids)
    teacher_scores.run(config, "teacher", 2, 3)
    parts = read_scores(config, qids[::-1])
    assert parts["qid"].tolist() == qids[::-1]
    for name in ("yes", "no", "easy_yes", "easy_no", "features"):
        np.testing.assert_allclose(np.stack(parts[name]), np.stack(whole[name])[::-1], atol=1e-5)
    with pytest.raises(ArtifactError, match=r"no teacher scores for 2 training queries \(first 'new-1'\)"):
        read_scores(config, [*qids, "new-1", "new-2"])

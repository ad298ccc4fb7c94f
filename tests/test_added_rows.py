"""New tokens' embedding rows that train alone: what a masked whole matrix ends with, in the memory of the rows."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, Gemma3TextConfig, Gemma3TextModel

from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.methods.parameters import decay_groups
from d2llm.methods.registry import method
from d2llm.models.backbone import Backbone
from d2llm.models.lora import merge_lora
from d2llm.models.student import Student, same_formats
from d2llm.training import optimization

TOKENS = ["[BOQ]", "[EOQ]", "[BOD]", "[EOD]"]
TEXTS = ["[BOQ]甲乙[EOQ]", "[BOD]山水火[EOD]", "[BOQ]丙[EOQ]", "[BOD]日月[EOD]"]
BITFIT = TunedWeights(kind="bitfit")


def gemma() -> Backbone:
    """Its embedding scales what it looks up."""
    torch.manual_seed(0)
    tokenizer = tiny.tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64}
    config = Gemma3TextConfig(**sizes, **heads, pad_token_id=0, initializer_range=0.2)
    return Backbone(Gemma3TextModel(config).eval(), tokenizer, "decoder")


def student_of(backbone: Backbone) -> Student:
    return Student(backbone, ("last_token", {}), ("cosine", {}), same_formats(MaxLengths()))


def train(student: Student, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Some clipped updates of a contrast in which not every step has every new token."""
    adam = optimization.optimizer(groups)
    for number in range(6):
        texts = TEXTS if number % 2 else TEXTS[:1] + TEXTS[2:3]
        embedded = student.embed(texts, "query", "symmetric")
        loss = -(student.scorer.matrix(embedded, embedded, "symmetric") * 5).log_softmax(1).diagonal().mean()
        optimization.step(None, [{"loss": loss}], adam, None, 0.5, f"step {number}")
    return adam


def masked_groups(backbone: Backbone, tuning: TunedWeights, new: list[int]) -> list[dict[str, Any]]:
    """The naive way: the whole matrix trains, with a gradient of zero in every other row, which Adam leaves alone."""
    backbone.tune(tuning)
    weight = backbone.model.get_input_embeddings().weight.requires_grad_(True)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[new] = False
    weight.register_hook(lambda gradient: gradient.masked_fill(others[:, None], 0.0))
    body = [(name, p) for name, p in backbone.named_parameters() if p is not weight]
    return decay_groups(body, 0.05, 0.1) + [{"params": [weight], "lr": 0.05, "weight_decay": 0.0}]


@pytest.mark.parametrize(("family", "kind"), [("llama", "bitfit"), ("llama", "lora"), ("gemma", "lora")])
def test_updates_are_those_of_the_whole_matrix_with_all_other_rows_masked(
    family: str, kind: str, tmp_path: Path
) -> None:
    tuning, udever = TunedWeights(kind=kind, r=2), method("udever")
    results = []
    for naive in (True, False):
        backbone = gemma() if family == "gemma" else tiny.backbone("decoder")
        new = backbone.add_tokens(TOKENS)
        torch.manual_seed(1)  # the adapters' first weights
        if naive:
            groups, student = masked_groups(backbone, tuning, new), student_of(backbone)
        else:
            backbone.tune(tuning, new_tokens=new)
            student = student_of(backbone)
            recipe = udever.recipe({"learning_rate": 0.05, "weight_decay": 0.1})
            groups = udever.parameter_groups(student, recipe)
        before = merge_lora(backbone.model)["embed_tokens.weight"].clone()
        train(student, groups)
        results.append(merge_lora(backbone.model))
    expected, state = results
    assert list(state) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert (state["embed_tokens.weight"] != before).any(1).nonzero().flatten().tolist() == new
    # Saved, they are part of the matrix, and transformers alone loads it.
    student.save(tmp_path)
    vectors = student.encode(TEXTS, "query", "symmetric")
    np.testing.assert_allclose(Student.load(tmp_path).encode(TEXTS, "query", "symmetric"), vectors, atol=1e-5)
    loaded, report = AutoModel.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.get_input_embeddings().weight, state["embed_tokens.weight"])


class Watch(TorchDispatchMode):
    """The largest tensor that an operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(part, torch.Tensor) and part._base is None:
                self.largest = max(self.largest, part.numel())
        return out


def test_neither_gradient_nor_state_nor_any_passing_value_is_of_the_matrix_size() -> None:
    backbone, udever = tiny.backbone("decoder", words=[f"w{i}" for i in range(5000)]), method("udever")
    backbone.tune(BITFIT, new_tokens=backbone.add_tokens(TOKENS))
    student = student_of(backbone)
    groups = udever.parameter_groups(student, udever.recipe())
    with Watch() as watch:
        adam = train(student, groups)
    assert watch.largest < backbone.rows * 32 / 4
    sizes = [value.numel() for state in adam.state.values() for value in state.values() if value.numel() > 1]
    biases = sum(p.numel() for name, p in backbone.named_parameters() if "bias" in name)
    assert sum(sizes) == 2 * backbone.trained_count() and backbone.trained_count() == biases + len(TOKENS) * 32
    counts = student.parameter_counts()
    assert counts["total"] == sum(value.numel() for value in merge_lora(backbone.model).values())


def test_a_stage_that_trains_every_weight_trains_these_rows_in_their_matrix(tmp_path: Path) -> None:
    """With a tied head, whose rows they are as well."""
    backbone = tiny.backbone("decoder", tmp_path)
    new = backbone.add_tokens(TOKENS)
    backbone.tune(BITFIT, new_tokens=new)
    full = backbone.language_model()
    weight, rows = backbone.model.get_input_embeddings().weight, backbone.added_rows()
    assert full.lm_head.weight is weight and rows is not None
    with torch.no_grad():
        rows += 1.0
    ids = torch.tensor(backbone.tokenize(["[BOQ]甲乙[EOQ]"]))
    expected = full.get_input_embeddings()(ids)
    with backbone.all_trainable():
        assert not rows.requires_grad and weight.requires_grad
        torch.testing.assert_close(full.get_input_embeddings()(ids), expected)
        torch.testing.assert_close(weight[new], rows)
        full(input_ids=ids, labels=ids).loss.backward()
        assert rows.grad is None and weight.grad[new].any() and weight.grad[: new[0]].any()
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    assert rows.requires_grad and not weight.requires_grad
    assert torch.equal(rows, weight[new])
    assert torch.equal(merge_lora(backbone.model)["embed_tokens.weight"], weight)


@pytest.mark.parametrize("stage", [True, False])  # a pretext stage, or a tuning of all weights
def test_all_weights_train_but_for_the_matrix_of_which_new_rows_do(stage: bool) -> None:
    backbone = gemma()
    new = backbone.add_tokens(TOKENS)
    weight = backbone.model.get_input_embeddings().weight
    before = weight.detach().clone()
    names = [name for name, _ in backbone.model.named_parameters()]
    backbone.tune(TunedWeights(kind="full", embeddings=stage), new_tokens=new)
    ids = torch.tensor(backbone.tokenize(["[BOQ]甲乙[EOQ]"]))
    with backbone.all_trainable(False, new) if stage else nullcontext():
        trained = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
        assert trained == {*names, "embed_tokens.added.rows.weight"} - {"embed_tokens.weight"}
        backbone.model(ids).last_hidden_state.square().sum().backward()
        assert weight.grad is None
        with torch.no_grad():
            backbone.added_rows().sub_(backbone.added_rows().grad)
        after = backbone.model(ids).last_hidden_state
    if stage:  # what they have learned is in the matrix
        assert [name for name, _ in backbone.model.named_parameters()] == names and weight.requires_grad
        torch.testing.assert_close(backbone.model(ids).last_hidden_state, after)
    state = merge_lora(backbone.model)["embed_tokens.weight"]
    changed = (state != before).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(set(new) & set(ids[0].tolist()))

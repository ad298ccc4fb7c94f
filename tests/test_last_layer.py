"""The last layer at some tokens alone, against passes over all of them: states, gradients, and where it is not done."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_packing import ROWS, body

from d2llm.config.recipes import MaxLengths
from d2llm.models.backbone import Backbone
from d2llm.models.fast.last_layer import only_at
from d2llm.models.parts import build_pooling
from d2llm.models.student import Student, same_formats

FEWER = ["Llama", "Qwen2", "Gemma2", "Bert", "Roberta", "Electra", "Camembert"]
ALL = ["GPT2", "Bloom", "Mixtral", "ModernBert"]
ENDS = ("o_proj", "down_proj", "output.dense", "c_proj", "Wo", "dense_4h_to_h")


def counted(model: torch.nn.Module) -> list[int]:
    """Filled, as passes are made, with how many tokens each of the last layer's linear modules after attention gets."""
    body = getattr(model, "encoder", model)
    layer = (getattr(body, "layers", None) or getattr(body, "layer", None) or body.h)[-1]
    counts: list[int] = []
    for name, part in layer.named_modules():
        if name.endswith(ENDS) and not name.startswith("attn"):
            part.register_forward_hook(lambda _, given, __: counts.append(given[0].shape[:-1].numel()))
    return counts


@pytest.mark.parametrize("family", [*FEWER, *ALL])
def test_what_is_read_is_that_of_a_whole_pass(family: str) -> None:
    model = body(family, pad_token_id=0, **({"num_key_value_heads": 2} if family == "Mixtral" else {}))
    ids = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([0, 6, 9, 20])  # the first row's ends, one of the second, the last of the third
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))

    def read() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.flatten(0, 1)[places]
        model.zero_grad()
        (states * weights).sum().backward()
        return states.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, gradients = read()
    counts = counted(model)
    with only_at(model, places):
        states, others = read()
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)
    if family != "Mixtral":  # its experts hold their matrices themselves
        assert set(counts) == {4 if family in FEWER else 21}
    counts.clear()
    torch.testing.assert_close(read()[0], expected)  # and it is over
    assert family == "Mixtral" or set(counts) == {21}


def test_it_is_over_after_an_error_and_not_done_where_passes_are_made_again() -> None:
    model = body("Bert")

    def hooked() -> bool:
        return any(part._forward_pre_hooks or part._forward_hooks for part in model.encoder.modules())

    with pytest.raises(KeyError), only_at(model, torch.tensor([0])):
        assert hooked()
        raise KeyError
    assert not hooked()
    Backbone(model, tiny.tokenizer(), "encoder").checkpoint_gradients()
    with only_at(model, torch.tensor([0])):
        assert not hooked()


FEW = [("cls", {}), ("last_token", {}), ("last_token", {"k": 3})]
MANY = [("mean", {}), ("weighted_mean", {}), ("cls_mlp", {}), ("pma", {"heads": 4}), ("tokens", {"size": 8})]


@pytest.mark.parametrize(("name", "settings"), [*FEW, *MANY])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pooling_reads_what_it_says(name: str, settings: dict[str, int], side: str) -> None:
    torch.manual_seed(0)
    pooling = build_pooling(name, 12, **settings)
    hidden, mask = torch.randn(4, 7, 12), torch.zeros(4, 7, dtype=torch.long)
    for row, size in zip(mask, (7, 1, 4, 2), strict=True):
        row[slice(0, size) if side == "right" else slice(7 - size, 7)] = 1
    read = pooling.read(mask)
    vectors = pooling(hidden.requires_grad_(), mask)
    gradient = torch.autograd.grad((vectors * torch.randn(vectors.shape)).sum(), hidden)[0].any(-1)
    assert torch.equal(gradient, mask.bool() if read is None else read)
    if read is not None:
        spoiled = torch.where(read[:, :, None], hidden.detach(), torch.nan)
        torch.testing.assert_close(pooling(spoiled, mask), pooling(hidden, mask))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("kind", "family"), [("decoder", "Llama"), ("encoder", "Bert")])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("pooling", FEW, ids=str)
def test_embeddings_are_those_of_all_states(packed: bool, kind: str, family: str, padding: str, pooling) -> None:
    backbone = Backbone(body(family), tiny.tokenizer(), kind)
    backbone.packs = packed
    formats = same_formats(MaxLengths())
    student = Student(backbone, pooling, ("cosine", {}), formats, padding=padding, unpooled=1)
    counts = counted(backbone.model)
    vectors, few = student.pool(ROWS), max(counts)
    counts.clear()
    states, mask = backbone.states(ROWS, padding)
    inner = mask * (mask.cumsum(1) > 1)
    torch.testing.assert_close(vectors, student.pooling(states, inner), rtol=1e-5, atol=1e-5)
    assert few == int(student.pooling.read(inner).sum()) < max(counts)

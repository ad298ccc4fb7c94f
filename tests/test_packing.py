"""Passes without padding against Hugging Face's own forward of every text alone, and where they are not made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers

from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.models.backbone import Backbone
from d2llm.models.fast import packing
from d2llm.models.fast.packing import NAME, layout, padding_mask
from d2llm.models.student import Student, same_formats

ROWS = [tuple(range(7, 7 + size)) for size in (1, 1, 2, 4, 4, 4, 9)]
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def body(family: str, **changes: object) -> torch.nn.Module:
    """A random transformers body of another family, attention heads shared in groups where it has that."""
    grouped = {"num_key_value_heads": 2} if family in ("Qwen2", "Llama", "Mistral", "Gemma2") else {}
    config = getattr(transformers, f"{family}Config")(**(SIZES | grouped | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What backward passes have left, taken away."""
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


@pytest.mark.parametrize(
    ("family", "kind"),
    [("Qwen2", "decoder"), ("Llama", "decoder"), ("GPT2", "decoder"), ("Bert", "encoder"), ("Roberta", "encoder")],
)
@pytest.mark.parametrize("padding", ["right", "left"])
# A fused projection's query, key and value of a single token are parts of one memory.
@pytest.mark.parametrize("rows", [ROWS, [(7,)]], ids=["several", "one token"])
def test_states_and_gradients_are_those_of_texts_alone(family: str, kind: str, padding: str, rows: list) -> None:
    model = body(family)  # RoBERTa's positions begin behind the padding index
    backbone = Backbone(model, tiny.tokenizer(), kind)
    assert backbone.packs and model.config._attn_implementation == NAME
    states, mask = backbone.states(rows, padding)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(len(row), 32, generator=generator) for row in rows]
    sum((state[real.bool()] * w).sum() for state, real, w in zip(states, mask, weights, strict=True)).backward()
    together = gradients(model)
    model.set_attn_implementation("eager")  # another implementation altogether
    for row, state, real, weight in zip(rows, states, mask, weights, strict=True):
        alone = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(state[real.bool()], alone, rtol=1e-4, atol=1e-4)
        (alone * weight).sum().backward()
    apart = gradients(model)
    largest = max(float(gradient.abs().max()) for gradient in apart.values())
    for name, gradient in apart.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Nemotron", {"num_key_value_heads": 4}),  # says that its attention may be replaced, and goes on with its own
        ("Mistral", {"sliding_window": 3}),
        ("Gemma2", {"sliding_window": 3, "head_dim": 8}),
    ],
)
def test_models_that_read_masks_in_their_own_way_are_padded(family: str, changes: dict) -> None:
    model = body(family, **changes)
    backbone = Backbone(model, tiny.tokenizer(), "decoder")
    states, _ = backbone.states(ROWS)
    for row, state in zip(ROWS, states, strict=True):
        alone = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(state[: len(row)], alone, rtol=1e-4, atol=1e-4)
    assert not backbone.packs and backbone.model.training is False


@pytest.mark.parametrize("causal", [True, False])
def test_one_node_gives_the_very_numbers_of_the_graph_it_replaces(causal: bool, monkeypatch) -> None:
    groups, positions = layout([1, 1, 3, 3, 3, 8, 21])
    generator = torch.Generator().manual_seed(0)
    shape = (1, positions.shape[1], 4, 16)
    sides = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    transposed, weight = [side.transpose(1, 2) for side in sides], torch.randn(shape, generator=generator)

    def attention() -> tuple[str, list[torch.Tensor]]:
        options = {"is_causal": causal, "packed_groups": groups}
        out, _ = packing.packed_attention(torch.nn.Module(), *transposed, None, **options)
        return type(out.grad_fn).__name__, [out, *torch.autograd.grad(out, sides, weight)]

    name, one = attention()
    monkeypatch.setattr(packing, "_one_node", lambda *_: False)
    other, many = attention()
    assert "PackedAttention" in name and "PackedAttention" not in other
    assert all(torch.equal(*pair) for pair in zip(one, many, strict=True))


def test_shared_heads_dropout_and_mixed_numbers_take_the_general_way() -> None:
    x = torch.zeros(1, 4, 5, 8)
    assert packing._one_node(x, x, x, 0.0)
    assert not packing._one_node(x, x[:, :2], x[:, :2], 0.0)
    assert not packing._one_node(x, x, x, 0.1)
    assert not packing._one_node(x, x, x.double(), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packing._one_node(x, x, x, 0.0)


def test_checkpointed_gradients_stay_apart_as_well() -> None:
    results = []
    for checkpointed in (False, True):
        backbone = Backbone(body("Llama"), tiny.tokenizer(), "decoder")
        backbone.tune(TunedWeights())
        backbone.train()
        if checkpointed:
            backbone.checkpoint_gradients()
        backbone.states(ROWS)[0].square().mean().backward()
        results.append(gradients(backbone))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_saved_model_knows_nothing_of_it(tmp_path) -> None:
    tiny.backbone("decoder").save(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_the_layout_by_hand() -> None:
    groups, positions = layout([1, 2, 2, 3])
    assert groups == ((1, 1), (2, 2), (1, 3))
    assert positions.tolist() == [[0, 0, 1, 0, 1, 0, 1, 2]]
    assert padding_mask([1, 3], "right").tolist() == [[1, 0, 0], [1, 1, 1]]
    assert padding_mask([1, 3], "left").tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_sink_is_fed_but_not_pooled(padding, tmp_path) -> None:
    backbone, texts = tiny.backbone("decoder"), ["甲乙丙", "山"]
    formats = same_formats(MaxLengths(), [5])
    student = Student(backbone, ("mean", {}), ("cosine", {}), formats, padding=padding, unpooled=1).eval()
    with torch.no_grad():
        rows = [torch.tensor([[5, *tiny.ids(text)]]) for text in texts]
        expected = [backbone.model(input_ids=row).last_hidden_state[0, 1:].mean(0) for row in rows]
    student.save(tmp_path)
    for one in (student, Student.load(tmp_path)):
        vectors = torch.from_numpy(one.encode(texts, "query", "symmetric"))
        torch.testing.assert_close(vectors, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lacking", ["names", "arguments", "numbers"])
def test_without_torchs_private_kernels_the_public_path_gives_the_same(lacking: str, monkeypatch) -> None:
    """In a torch that lacks their names, has them with other arguments, or with other numbers."""

    def attention() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        sides = [torch.randn(1, 2, 11, 8, requires_grad=True) for _ in range(3)]
        module = SimpleNamespace(is_causal=True)
        out, _ = packing.packed_attention(module, *sides, None, packed_groups=((2, 3), (1, 5)))
        return out, *torch.autograd.grad(out.square().sum(), sides)

    kernel = torch._scaled_dot_product_flash_attention_for_cpu
    other = {
        "names": None,
        "arguments": lambda query: query,
        "numbers": lambda *sides, **options: tuple(2 * part for part in kernel(*sides, **options)),
    }
    packing.flash_kernels.cache_clear()
    assert packing.flash_kernels() is not None
    private = attention()
    monkeypatch.setattr(torch, "_scaled_dot_product_flash_attention_for_cpu", other[lacking])
    packing.flash_kernels.cache_clear()
    assert packing.flash_kernels() is None
    assert all(torch.equal(*pair) for pair in zip(private, attention(), strict=True))
    packing.flash_kernels.cache_clear()

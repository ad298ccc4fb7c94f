"""Passes without padding against Hugging Face's own forward of every text alone: states, gradients, and where it is not done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch

from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.models.backbone import Backbone
from d2llm.models.fast import packing
from d2llm.models.fast.packing import NAME, layout, padding_mask
from d2llm.models.student import Student, same_formats
from d2llm.run.errors import ConfigError

ROWS = [tuple(range(7, 7 + size)) for size in (1, 1, 2, 4, 4, 4, 9)]


def body(family: str, **changes: object) -> torch.nn.Module:
    """A random transformers body of another family, attention heads shared in groups where it has that."""
    import transformers

    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    grouped = {"num_key_value_heads": 2} if family in ("Qwen2", "Llama", "Mistral", "Gemma2") else {}
    config = getattr(transformers, f"{family}Config")(**(sizes | grouped | changes))
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Model")(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize(
    ("family", "kind"),
    [("Qwen2", "decoder"), ("Llama", "decoder"), ("GPT2", "decoder"), ("Bert", "encoder"), ("Roberta", "encoder")],
)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_states_and_gradients_are_those_of_texts_alone(family: str, kind: str, padding: str) -> None:
    model = body(family)  # RoBERTa's positions begin behind the padding index
    backbone = Backbone(model, tiny.tokenizer(), kind)
    assert backbone.packs and model.config._attn_implementation == NAME
    states, mask = backbone.states(ROWS, padding)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(len(row), 32, generator=generator) for row in ROWS]
    loss = sum((state[real.bool()] * weight).sum() for state, real, weight in zip(states, mask, weights, strict=True))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")  # another implementation altogether
    for row, state, real, weight in zip(ROWS, states, mask, weights, strict=True):
        assert int(real.sum()) == len(row)
        alone = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(state[real.bool()], alone, rtol=1e-4, atol=1e-4)
        (alone * weight).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("family", ["GPT2", "Phi3", "Llama"])
def test_a_text_of_one_token_alone(family: str) -> None:
    """A fused projection's query, key and value of a single token are parts of one memory."""
    model = body(family, pad_token_id=0)
    backbone = Backbone(model, tiny.tokenizer(), "decoder")
    assert backbone.packs
    found = []
    for states in (lambda: backbone.states([(7,)])[0], lambda: model(input_ids=torch.tensor([[7]])).last_hidden_state):
        model.zero_grad()
        made = states()
        made.square().sum().backward()
        found.append([made, *(p.grad for p in model.parameters() if p.grad is not None)])
        model.set_attn_implementation("eager")
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_architecture_that_reads_the_mask_in_its_own_way_is_padded() -> None:
    """Nemotron says that its attention may be replaced, and goes on with its own."""
    model = body("Nemotron", num_key_value_heads=4)
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
    weight = torch.randn(shape, generator=generator)
    found = []
    for one in (True, False):
        if not one:
            monkeypatch.setattr(packing, "_one_node", lambda *_: False)
        out, _ = packing.packed_attention(
            torch.nn.Module(), *(x.transpose(1, 2) for x in sides), None, is_causal=causal, packed_groups=groups
        )
        assert ("PackedAttention" in type(out.grad_fn).__name__) is one
        found.append([out, *torch.autograd.grad(out, sides, weight)])
    for one, many in zip(*found, strict=True):
        assert torch.equal(one, many)


def test_shared_heads_dropout_and_mixed_numbers_take_the_general_way() -> None:
    x = torch.zeros(1, 4, 5, 8)
    assert packing._one_node(x, x, x, 0.0)
    assert not packing._one_node(x, x[:, :2], x[:, :2], 0.0)
    assert not packing._one_node(x, x, x, 0.1)
    assert not packing._one_node(x, x, x.double(), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packing._one_node(x, x, x, 0.0)


def test_checkpointed_gradients_stay_apart_as_well() -> None:
    found = []
    for checkpointed in (False, True):
        backbone = Backbone(body("Llama"), tiny.tokenizer(), "decoder")
        backbone.tune(TunedWeights())
        backbone.train()
        if checkpointed:
            backbone.checkpoint_gradients()
        states, _ = backbone.states(ROWS)
        states.square().mean().backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_saved_model_knows_nothing_of_it(tmp_path) -> None:
    backbone = tiny.backbone("decoder")
    backbone.save(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    from transformers import AutoModel

    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("family", "changes"), [("Mistral", {"sliding_window": 3}), ("Gemma2", {"sliding_window": 3, "head_dim": 8})]
)
def test_models_with_windows_are_padded(family: str, changes: dict) -> None:
    model = body(family, **changes)
    backbone = Backbone(model, tiny.tokenizer(), "decoder")
    states, mask = backbone.states(ROWS)
    for row, state, real in zip(ROWS, states, mask, strict=True):
        alone = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(state[real.bool()], alone, rtol=1e-4, atol=1e-4)
    assert not backbone.packs


def test_the_layout_by_hand() -> None:
    groups, positions = layout([1, 2, 2, 3])
    assert groups == ((1, 1), (2, 2), (1, 3))
    assert positions.tolist() == [[0, 0, 1, 0, 1, 0, 1, 2]]
    assert padding_mask([1, 3], "right").tolist() == [[1, 0, 0], [1, 1, 1]]
    assert padding_mask([1, 3], "left").tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_sink_is_fed_but_not_pooled(padding, tmp_path) -> None:
    backbone = tiny.backbone("decoder")
    formats = same_formats(MaxLengths(), [5])
    student = Student(backbone, ("mean", {}), ("cosine", {}), formats, padding=padding, unpooled=1).eval()
    found = student.encode(["甲乙丙", "山"], "query", "symmetric")
    for vector, text in zip(found, ["甲乙丙", "山"], strict=True):
        with torch.no_grad():
            alone = backbone.model(input_ids=torch.tensor([[5, *tiny.ids(text)]])).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(vector), alone[1:].mean(0), rtol=1e-4, atol=1e-5)
    student.save(tmp_path)
    torch.testing.assert_close(
        torch.from_numpy(Student.load(tmp_path).encode(["山"], "query", "symmetric")), torch.from_numpy(found[1:])
    )


def test_lora_from_a_layer_on_leaves_the_lower_ones_alone() -> None:
    backbone = tiny.backbone("decoder", num_hidden_layers=3)
    backbone.tune(TunedWeights(kind="lora", r=2, first_layer=2))
    trained = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 and all(name.startswith("layers.2.") for name in trained)
    with pytest.raises(ConfigError, match="first_layer: 3: the model has no layer as high"):
        tiny.backbone("decoder", num_hidden_layers=3).tune(TunedWeights(kind="lora", r=2, first_layer=3))


@pytest.mark.parametrize("lacking", ["names", "arguments", "numbers"])
def test_without_torchs_private_kernels_the_public_path_gives_the_same(lacking: str, monkeypatch) -> None:
    """In a torch that lacks their names, has them with other arguments, or with other numbers."""

    def loss() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        query, key, value = (torch.randn(1, 2, 11, 8, requires_grad=True) for _ in range(3))
        module = SimpleNamespace(is_causal=True)
        out, _ = packing.packed_attention(module, query, key, value, None, packed_groups=((2, 3), (1, 5)))
        return out, *torch.autograd.grad(out.square().sum(), (query, key, value))

    kernel = torch._scaled_dot_product_flash_attention_for_cpu
    other = {
        "names": None,
        "arguments": lambda query: query,
        "numbers": lambda *sides, **options: tuple(2 * part for part in kernel(*sides, **options)),
    }
    packing.flash_kernels.cache_clear()
    assert packing.flash_kernels() is not None
    private = loss()
    monkeypatch.setattr(torch, "_scaled_dot_product_flash_attention_for_cpu", other[lacking])
    packing.flash_kernels.cache_clear()
    assert packing.flash_kernels() is None
    for own, public in zip(private, loss(), strict=True):
        assert torch.equal(own, public)
    packing.flash_kernels.cache_clear()

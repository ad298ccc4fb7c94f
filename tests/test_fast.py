"""The fast paths, against the plain ones: passes without padding, the last layer at some tokens alone, LoRA's product
formed first; and where they are not taken.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from peft.tuners.lora.layer import Linear

from d2llm.config.recipes import MaxLengths, TunedWeights
from d2llm.models.backbone import Backbone
from d2llm.models.fast import composed_lora, packing
from d2llm.models.fast.composed_lora import ComposedLinear
from d2llm.models.fast.last_layer import only_at
from d2llm.models.fast.packing import NAME, layout
from d2llm.models.parts import build_pooling
from d2llm.models.student import Student, same_formats

ROWS = [tuple(range(7, 7 + size)) for size in (1, 1, 2, 4, 4, 4, 9)]
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def body(family: str, **changes: object) -> torch.nn.Module:
    """A random transformers body of another family, attention heads shared in groups where it has that."""
    grouped = {"num_key_value_heads": 2} if family in ("Qwen2", "Llama", "Mistral", "Gemma2", "Gemma3Text") else {}
    config = getattr(transformers, f"{family}Config")(**(SIZES | grouped | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What backward passes have left, taken away."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return grads


def check_gradients(own: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Some are zero but for rounding: a shift of all keys moves no attention."""
    assert set(own) == set(expected) and expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


# Two kinds of layers, which count positions by rotary bases of their own.
GEMMA = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        *[(family, "decoder", {}) for family in ("Qwen2", "Llama", "GPT2")],
        *[(family, "encoder", {}) for family in ("Bert", "Roberta")],
        ("Mistral", "decoder", {"sliding_window": 9}),  # as long as the longest text: each token sees all before it
        ("Gemma3Text", "decoder", GEMMA | {"sliding_window": 9}),
        ("Gemma3Text", "decoder", GEMMA | {"sliding_window": 8}),  # a text is longer
        ("Gemma3Text", "decoder", GEMMA | {"sliding_window": 512}),
    ],
)
@pytest.mark.parametrize("padding", ["right", "left"])
# A fused projection's query, key and value of a single token are parts of one memory.
@pytest.mark.parametrize("rows", [ROWS, [(7,)]], ids=["several", "one token"])
def test_states_and_gradients_are_those_of_texts_alone(
    family: str, kind: str, changes: dict, padding: str, rows: list
) -> None:
    model = body(family, **changes)  # RoBERTa's positions begin behind the padding index
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
    check_gradients(together, gradients(model))


def test_texts_longer_than_the_window_are_padded_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = body("Gemma3Text", **(GEMMA | {"sliding_window": 4}))
    student = Student(
        Backbone(model, tiny.tokenizer(), "decoder"), ("mean", {}), ("cosine", {}), same_formats(MaxLengths())
    )
    whole, fed = model.forward, []
    monkeypatch.setattr(model, "forward", lambda **given: fed.append(given["input_ids"].shape) or whole(**given))
    with torch.no_grad():
        vectors = student.passes([*ROWS, tuple(range(7, 18))])
        assert fed == [(1, sum(len(row) for row in ROWS[:-1])), (2, 11)]
        for row, vector in zip([*ROWS, tuple(range(7, 18))], vectors, strict=True):
            alone = whole(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(vector, alone.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Gemma2", {"head_dim": 8}),  # caps attention's scores
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


def test_shared_heads_dropout_and_mixed_numbers_take_the_general_way() -> None:
    x = torch.zeros(1, 4, 5, 8)
    assert packing._one_node(x, x, x, 0.0)
    assert not packing._one_node(x, x[:, :2], x[:, :2], 0.0)
    assert not packing._one_node(x, x, x, 0.1)
    assert not packing._one_node(x, x, x.double(), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packing._one_node(x, x, x, 0.0)


def test_a_saved_model_knows_nothing_of_it(tmp_path) -> None:
    tiny.backbone("decoder").save(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_sink_is_fed_but_not_pooled(padding, tmp_path) -> None:
    backbone, texts, formats = tiny.backbone("decoder"), ["甲乙丙", "山"], same_formats(MaxLengths(), [5])
    student = Student(backbone, ("mean", {}), ("cosine", {}), formats, padding=padding, unpooled=1).eval()
    with torch.no_grad():
        rows = [torch.tensor([[5, *tiny.ids(text)]]) for text in texts]
        expected = [backbone.model(input_ids=row).last_hidden_state[0, 1:].mean(0) for row in rows]
    student.save(tmp_path)
    for one in (student, Student.load(tmp_path)):
        vectors = torch.from_numpy(one.encode(texts, "query", "symmetric"))
        torch.testing.assert_close(vectors, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lacking", ["names", "arguments", "numbers"])
@pytest.mark.parametrize("causal", [True, False])
def test_without_torchs_private_kernels_the_public_path_gives_the_same(lacking: str, causal: bool, monkeypatch) -> None:
    """In a torch that lacks their names, has them with other arguments, or with other numbers."""
    groups, positions = layout([1, 1, 3, 3, 3, 8, 21])

    def attention() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        sides = [torch.randn(1, 2, positions.shape[1], 8, requires_grad=True) for _ in range(3)]
        out, _ = packing.packed_attention(SimpleNamespace(is_causal=causal), *sides, None, packed_groups=groups)
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


# ------------------------------------------------------------------------------------------------------- the last layer
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
        (states * weights).sum().backward()
        return states.detach(), gradients(model)

    expected, whole = read()
    counts = counted(model)
    with only_at(model, places):
        states, few = read()
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    check_gradients(few, whole)
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


# -------------------------------------------------------------------------------------------------------- composed LoRA
def layers(model: torch.nn.Module) -> list[ComposedLinear]:
    return [module for module in model.modules() if isinstance(module, ComposedLinear)]


def tuned(dropout: float = 0.0):
    backbone = tiny.backbone("decoder")
    backbone.tune(TunedWeights(kind="lora", r=16, alpha=8.0, dropout=dropout))
    torch.manual_seed(1)
    for layer in layers(backbone):  # both start at zero, which would hide the product
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        torch.nn.init.normal_(layer.base_layer.bias)
    return backbone.train()


def test_outputs_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = torch.randint(7, 30, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    weights = torch.randn(5, 9, 32)  # not the squares: the last layer norm keeps their sum

    def outputs() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        backbone = tuned()
        assert all(layer._composable(torch.zeros(45, 32)) for layer in layers(backbone))
        states = backbone(ids, mask)
        (states * weights).sum().backward()
        return states.detach(), gradients(backbone)

    states, ours = outputs()
    monkeypatch.setattr(ComposedLinear, "forward", Linear.forward)
    expected, theirs = outputs()
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    check_gradients(ours, theirs)
    assert len(ours) == 2 * 14


def test_it_steps_aside_where_it_does_not_pay_or_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = torch.zeros(40, 32), layers(tuned())[0]
    assert layer._composable(x)
    assert layer._composable(x[:16]) is None  # 16 tokens spare as much as composing a matrix of 32 by 32 costs
    assert layer._composable(x.double()) is None
    layer.base_layer.weight.requires_grad_(True)
    assert layer._composable(x) is None  # peft's own way gives that a gradient
    layer = layers(tuned(dropout=0.1))[0]
    assert layer._composable(x) is None
    assert layer.eval()._composable(x)  # dropout rests
    with monkeypatch.context() as patch:
        patch.setattr(composed_lora, "LARGEST", 1000)
        assert layer._composable(x) is None  # the graph would keep a copy of a large matrix
    layer.enable_adapters(False)
    assert layer._composable(x) is None and torch.equal(layer(x), layer.base_layer(x))

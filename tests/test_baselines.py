"""The five baselines, the examples of further ones and the rivals, against naive computations: exact inputs, trained parameters,
pooling, objective and pretext tasks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

from baselines import bge, llara, retromae
from d2llm.config.registry import names
from d2llm.methods.base import TrainingContext
from d2llm.methods.registry import method as find_method
from d2llm.methods.text_ids import PairTextIds
from d2llm.models.backbone import head_of
from d2llm.models.batch import Batch, Embedded, TeacherTargets
from d2llm.models.enhanced_decoder import EnhancedDecoder
from d2llm.models.lora import merge_lora
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.training.optimization import batches

CLS, SEP, MASK, BOS, EOS = 2, 3, 4, 5, 6
FIRST_NEW = len(tiny.SPECIAL) + len(tiny.WORDS)  # id of the first token a method adds
# Phrases the tiny vocabulary can spell; their published forms are pinned below.
OVERRIDES = {
    "bge": {"instruction": "给书看"},
    "llara": {"prompts": {"prefix": '"', "summary": "吃，", "prediction": "看，"}},
    "d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}},
    "pma": {"pooling": {"heads": 4}},
    "kd": {"pooling": {"heads": 4}},
    "multi": {"heads": 4},
    "hypencoder": {"layers": 2},
}
CONTRASTIVE = ["bge", "colbert", "llara", "multi", "pma", "retromae", "sgpt", "simcse", "udever"]
BASELINES = [*CONTRASTIVE, "hypencoder", "kd"]
Q, P = "甲乙", "山水火"


def built(name, backbone=None, framed=False, **settings):
    """(method, recipe, student) on a tiny base model; `framed`: its tokenizer puts <bos> before a text and, of an
    encoder, <eos> behind it."""
    method = find_method(name)
    recipe = method.recipe(OVERRIDES.get(name, {}) | settings)
    backbone = backbone or tiny.backbone(method.kind)
    if framed:
        tiny.framed_by(backbone.tokenizer, "<bos>", "<eos>" if method.kind == "encoder" else "")
    return method, recipe, method.build(backbone, recipe)


# --------------------------------------------------------------------------------------------------------------- inputs
def test_the_published_phrases():
    methods = {name: find_method(name) for name in BASELINES}
    assert {name: method.phrases(method.recipe()) for name, method in methods.items()} == {
        "bge": ("为这个句子生成表示以用于检索相关文章：",),
        "sgpt": ("[", "]", "{", "}"),
        "llara": (
            '"',
            '", summarize the above passage within eight words: ',
            '", predict the following passage within eight words: ',
        ),
    } | dict.fromkeys({*BASELINES} - {"bge", "sgpt", "llara"}, ())
    assert (*llara.SUMMARY_TOKENS, *llara.PREDICTION_TOKENS) == tuple(f"<s{n}>" for n in range(1, 17))


@pytest.mark.parametrize("framed", [False, True])
def test_the_token_ids_fed(framed):
    """As the recipe has it, begun as the checkpoint's tokenizer begins a text; an encoder's ends as that ends it."""
    q, p, ids = tiny.ids(Q), tiny.ids(P), tiny.ids
    first, (cls, sep) = ((BOS,), (BOS, EOS)) if framed else ((), (CLS, SEP))
    new = list(range(FIRST_NEW, FIRST_NEW + 16))
    around = {  # (role, mode) -> what stands before and after the text
        name: {
            ("query", "asymmetric"): query,
            ("passage", "asymmetric"): passage,
            ("query", "symmetric"): symmetric,
            ("passage", "symmetric"): symmetric,
        }
        for name, (query, passage, symmetric) in {
            "bge": (((cls, *ids("给书看")), (sep,)), ((cls,), (sep,)), ((cls,), (sep,))),
            "sgpt": (((*first, *ids("[")), ids("]")), ((*first, *ids("{")), ids("}")), (first, ())),
            "udever": (((*first, new[0]), (new[1],)), *[((*first, new[2]), (new[3],))] * 2),
            "llara": (
                ((*first, *ids('"')), (*ids("看，"), *new[8:])),
                *[((*first, *ids('"')), (*ids("吃，"), *new[:8]))] * 2,
            ),
        }.items()
    }
    around |= dict.fromkeys(("retromae", "simcse", "hypencoder"), dict.fromkeys(around["bge"], ((cls,), (sep,))))
    around["colbert"] = {key: ((cls, new[0 if key[0] == "query" else 1]), (sep,)) for key in around["bge"]}
    around |= dict.fromkeys(("d2llm", "pma", "kd", "multi"), dict.fromkeys(around["bge"], (first, ())))
    for name, expected in around.items():
        _, _, student = built(name, framed=framed)
        assert set(student.formats) == set(expected)
        for (role, mode), (before, after) in expected.items():
            fed = student.ids([Q, P], role, mode)
            expected_ids = [(*before, *q, *after), (*before, *p, *after)]
            if name == "colbert" and role == "query":  # as far as 32 tokens
                expected_ids = [(*row, *[MASK] * (32 - len(row))) for row in expected_ids]
            assert fed == expected_ids, (name, role, mode)
    # D2LLM's sink is what the checkpoint begins with anyway, not a second one; nothing else is left out of the pooling.
    _, _, student = built("d2llm", framed=framed, sink="bos")
    assert student.ids([Q], "query", "symmetric") == [(BOS, *q)] and student.unpooled == 1
    assert built("d2llm", framed=framed)[2].unpooled == 0
    for name, tokens in (("udever", ["[BOQ]", "[EOQ]", "[BOD]", "[EOD]"]), ("colbert", ["[Q]", "[D]"])):
        assert built(name)[2].backbone.tokenizer.convert_ids_to_tokens(new[: len(tokens)]) == tokens


@pytest.mark.parametrize(
    ("name", "unknown"), [("bge", {"instruction": "谜"}), ("llara", {"prompts": {"prefix": "谜"}})]
)
def test_a_phrase_the_tokenizer_cannot_spell_is_refused(name, unknown):
    method = find_method(name)
    with pytest.raises(ConfigError, match="cannot spell"):
        method.build(tiny.backbone(method.kind), method.recipe(unknown))


# --------------------------------------------------------------------------------------------------- what trains, how
def test_trained_parameters():
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    projections += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    everywhere = [f"backbone.model.layers.{layer}.{part}" for layer in (0, 1) for part in projections]
    biases = [f"{place}.bias" for place in everywhere]
    adapters = [f"{place}.lora_{side}.default.weight" for place in everywhere for side in "AB"]
    for name, expected in {
        **dict.fromkeys(("bge", "colbert", "retromae", "simcse", "hypencoder"), None),  # all there are
        "sgpt": biases,
        "udever": [*biases, "backbone.model.embed_tokens.added.rows.weight"],
        **dict.fromkeys(("pma", "kd", "multi", "llara"), adapters),
    }.items():
        student = built(name)[2]
        every = [key for key, _ in student.named_parameters()]
        heads = [] if expected is None else [f"pooling.{key}" for key, _ in student.pooling.named_parameters()]
        expected = every if expected is None else [*expected, *heads]
        assert sorted(student.trainable()) == sorted(expected) and not any("pooler" in key for key in every)
    # A query's network: two layers of 32 rows and a bias each, and the last row, by two learned rows and three linear
    # layers.
    numbers = sum(p.numel() for p in built("hypencoder")[2].scorer.parameters())
    assert numbers == 2 * 32 * (2 * 33 + 1) + 5 * 3 * (32 * 32 + 32)
    student = built("llara")[2]
    layer = student.backbone.model.layers[0].mlp.up_proj
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (64, 16 / 64, 0.1)


PMA = ("pma", {"heads": 4, "scale": "model", "init": "random"})
MULTI = ("multi_pma", {"vectors": 8, "size": 128, "heads": 4})
PUBLISHED = {  # pooling, scorer, padding, unit length; rate, temperature, hard negatives, what trains
    "bge": (("cls", {}), ("cosine", {}), "right", True, 1e-5, 0.02, 1, "full"),
    "hypencoder": (("states", {"count": 64}), ("hypernetwork", {"layers": 2}), "right", False, 2e-5, 1.0, 7, "full"),
    "kd": (PMA, ("cosine", {}), "right", False, 1e-4, 0.05, 1, "lora"),
    "multi": (MULTI, ("maxsim", {"size": 128}), "right", False, 1e-4, 0.4, None, "lora"),
    "pma": (PMA, ("cosine", {}), "right", False, 1e-4, 0.05, None, "lora"),
    "colbert": (("tokens", {"size": 128}), ("maxsim", {"size": 128}), "right", False, 3e-6, 1.0, 1, "full"),
    "llara": (("last_token", {"k": 8}), ("cosine", {}), "left", True, 3e-4, 0.01, 15, "lora"),
    "retromae": (("cls", {}), ("dot", {}), "right", False, 2e-5, 1.0, 15, "full"),
    "sgpt": (("weighted_mean", {}), ("cosine", {}), "right", False, 4e-4, 0.05, 1, "bitfit"),
    "simcse": (("cls_mlp", {}), ("cosine", {}), "right", False, 5e-5, 0.05, 1, "full"),
    "udever": (("last_token", {"k": 1}), ("cosine", {}), "left", False, 1e-4, 0.05, 8, "bitfit"),
}


@pytest.mark.parametrize("name", BASELINES)
def test_published_numbers(name):
    _, recipe, student = built(name)
    settings = (recipe.learning_rate, recipe.temperature, recipe.hard_negatives, recipe.tuning.kind)
    specs = student.pooling_spec, student.scorer_spec
    assert (*specs, student.padding, student.normalize, *settings) == PUBLISHED[name]


@pytest.mark.parametrize("name", names())
def test_a_student_has_the_parts_its_method_declares(name):
    """Of any method, whoever adds it: plans, titles and staleness go by `parts`."""
    method = find_method(name)
    recipe = method.recipe()
    letters = {*"".join(method.phrases(recipe))} - {*tiny.WORDS, " "}
    student = method.build(tiny.backbone(method.kind, words=sorted(letters)), recipe)
    pooling, scorer = method.parts(recipe)
    assert (student.pooling_spec, student.scorer_spec) == (pooling, scorer)
    assert (student.pooling.name, student.scorer.name) == (pooling[0], scorer[0])
    assert student.method == name and student.backbone.kind == method.kind


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("marked", [[["天"], ["山", "地"], []], None], ids=["marked", "by hand"])
@pytest.mark.parametrize("others", ["all", "positives"])
def test_objective_by_loops(name, marked, others):
    """Every query against all positives and all hard negatives of the batch; what is right for its text left out."""
    eight = {"colbert": {"token_size": 8}, "multi": {"vectors": 4, "vector_size": 8, "heads": 4}}
    method, recipe, student = built(name, in_batch_passages=others, **eight.get(name, {}))
    generator = torch.Generator().manual_seed(1)
    q, p, n = (torch.randn(*shape, 32, generator=generator) * 0.3 for shape in ((3,), (3,), (3, 3)))
    mask = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])
    queries, positives = ["甲", "乙", "甲"], ["山", "水", "火"]
    negatives = [["日", "火", "月"], ["山", "", "吃"], ["天", "地", "人"]]
    right = [{"甲", "山", "火"}, {"乙", "水"}, {"甲", "山", "火"}]
    ids = None
    if marked is not None:
        ids = PairTextIds(["d"] * 3, queries, positives, negatives, marked).of(range(3))
        right = [right[0] | {"天"}, right[1] | {"山", "地"}, right[2] | {"天"}]
    batch = Batch("d", "asymmetric", queries, positives, negatives, None, mask, ids)

    def score(a, b):
        a, b = a.double().numpy(), b.double().numpy()
        if name in eight:  # four vectors each
            return (a.reshape(4, 8) @ b.reshape(4, 8).T).max(1).sum() / recipe.temperature
        return a @ b / (1 if name == "retromae" else np.linalg.norm(a) * np.linalg.norm(b)) / recipe.temperature

    losses = []
    for i in range(3):
        met = [(p[j], batch.positives[j]) for j in range(3) if j != i]
        far = [(n[j, k], batch.negatives[j][k]) for j in range(3) for k in range(2) if j != i and mask[j, k]]
        passages = [p[i], *(n[i, k] for k in range(2) if mask[i, k])]
        met += far if others == "all" else []
        passages += [vector for vector, text in met if text not in right[i]]
        logits = [score(q[i], vector) for vector in passages]
        losses.append(np.logaddexp.reduce(logits) - logits[0])
    terms = method.objective(student, Embedded(q, p, n[:, :2]), batch.narrowed(2), recipe)
    assert {key: value.item() for key, value in terms.items()} == pytest.approx({"info_nce": np.mean(losses)}, rel=1e-4)


@pytest.mark.parametrize(("loss", "easy"), [("margin_mse", True), ("margin_mse", False), ("kl", True)])
def test_distillation_by_loops(loss, easy):
    """Of each query its positive, the hard negatives there are and, if asked for, positives of its pack that are not
    right for it."""
    method, recipe, student = built("kd", loss=loss, easy_negatives=easy, contrast=0.5, teacher_temperature=2.0)
    generator = torch.Generator().manual_seed(1)
    q, p, n = (torch.randn(*shape, 32, generator=generator) for shape in ((3,), (3,), (3, 2)))
    teacher = [torch.randn(*shape, 2, generator=generator) * 3 for shape in ((3,), (3, 2), (3, 2))]
    place = [[1, 2], [0, 2], [0, 1]]
    targets = TeacherTargets(*teacher, torch.tensor(place), torch.zeros(3, 3, 3))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    batch = Batch("d", "symmetric", list("甲乙甲"), list("山水火"), [["日", "月"]] * 3, targets, mask)
    values, gaps = [], []
    for i in range(3):
        passages, logits = [p[i]], [teacher[0][i]]
        chosen = [k for k in range(2) if mask[i, k]]
        passages += [n[i, k] for k in chosen]
        logits += [teacher[1][i, k] for k in chosen]
        if easy:  # the first and the last query are one text: either positive is right for both
            chosen = [e for e in range(2) if {i, place[i][e]} != {0, 2}]
            passages += [p[place[i][e]] for e in chosen]
            logits += [teacher[2][i, e] for e in chosen]
        s = np.array([torch.cosine_similarity(q[i], x, dim=0).item() / 0.05 for x in passages])
        t = np.array([(yes - no).item() / 2 for yes, no in logits])
        gaps += [((s[0] - s[k]) - (t[0] - t[k])) ** 2 for k in range(1, len(s))]
        log_s, log_t = s - np.logaddexp.reduce(s), t - np.logaddexp.reduce(t)
        values.append((np.exp(log_t) * (log_t - log_s)).sum())
    terms = method.objective(student, Embedded(q, p, n), batch, recipe)
    plain, other, same = built("pma")
    expected = {loss: np.mean(gaps if loss == "margin_mse" else values)}
    expected["info_nce"] = plain.objective(same, Embedded(q, p, n), batch, other)["info_nce"].item() / 2
    assert {key: value.item() for key, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert set(method.objective(student, Embedded(q, p, n), batch, method.recipe())) == {"margin_mse"}
    assert find_method("hypencoder").recipe().contrast == 1 and find_method("hypencoder").uses_teacher


# ------------------------------------------------------------------------------------------------------------- RetroMAE
STAGE = retromae.Autoencoding(max_length=64)


def padded(*texts):
    """[CLS] text [SEP] rows padded on the right, and the mask."""
    rows = [(CLS, *tiny.ids(text), SEP) for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def test_corruption_is_eighty_ten_ten():
    ids = torch.full((200, 50), 30)
    hidden = torch.zeros_like(ids).bool()
    hidden[:, :25] = True
    corrupted = retromae.corrupt(ids, hidden, MASK, FIRST_NEW, torch.Generator().manual_seed(0))
    assert (corrupted[:, 25:] == 30).all()
    for token, share in ((MASK, 0.8), (30, 0.1)):
        assert (corrupted[:, :25] == token).float().mean().item() == pytest.approx(share + 0.1 / FIRST_NEW, abs=0.02)


def test_no_position_of_the_decoder_sees_itself_or_padding():
    ids, mask = padded("甲乙丙丁戊己庚辛", "山水火")
    inner = mask.bool().clone()
    inner[:, 0] = inner[0, 9] = inner[1, 4] = False
    visible = retromae.visible_positions(inner, mask.bool(), torch.tensor([5, 2]), torch.Generator().manual_seed(2))
    assert not visible.diagonal(dim1=1, dim2=2).any() and not visible[1, :, 5:].any()
    assert visible[:, 1:, 0].all() and visible[0, :9, 9].all()  # the sentence vector; [SEP] is never hidden
    inner_seen = visible[0, 1:9, 1:9]  # 8 inner tokens, 5 of them hidden, itself besides if it was not among them
    assert set(inner_seen.sum(1).tolist()) <= {2, 3}
    assert len({tuple(row.tolist()) for row in inner_seen}) > 4  # every position has a sample of its own


def test_the_enhanced_decoder_is_one_bert_layer():
    """Against Hugging Face's own layer, which has one input for queries, keys and values: give it equal ones."""
    body = tiny.backbone("encoder").model
    layer, decoder = body.encoder.layer[0], EnhancedDecoder(body.config)
    own = layer.attention
    for target, source in {
        decoder.query: own.self.query,
        decoder.key: own.self.key,
        decoder.value: own.self.value,
        decoder.output: own.output.dense,
        decoder.norm0: own.output.LayerNorm,
        decoder.widen: layer.intermediate.dense,
        decoder.narrow: layer.output.dense,
        decoder.norm1: layer.output.LayerNorm,
    }.items():
        torch.nn.init.normal_(source.bias, std=0.1)
        target.load_state_dict(source.state_dict())
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    visible = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    visible[:, :, 0] = True
    expected = layer(states, attention_mask=torch.zeros(2, 1, 5, 5).masked_fill(~visible[:, None], -1e9))
    torch.testing.assert_close(decoder(states, states, visible), expected, atol=1e-5, rtol=1e-5)


def test_autoencoding_loss_by_hand(tmp_path):
    backbone = tiny.backbone("encoder", tmp_path / "m")
    full = backbone.language_model().eval()
    torch.manual_seed(1)
    decoder = EnhancedDecoder(backbone.model.config).eval()
    ids, mask = padded("甲乙丙丁戊己庚", "山水火")
    drawn = retromae.masked(ids, mask, STAGE, MASK, FIRST_NEW, torch.Generator().manual_seed(5))
    terms = retromae.autoencoding_loss(backbone, head_of(full), decoder, drawn)
    # the same draws again, then every text alone and every position by itself
    generator = torch.Generator().manual_seed(5)
    inner = torch.tensor([[0, *[1] * 7, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    counts = [round(9 * 0.3), round(5 * 0.3)]
    hidden = retromae.draw(inner, torch.tensor(counts), generator)
    assert hidden.sum(1).tolist() == counts == [3, 2]
    masked = retromae.corrupt(ids, hidden, MASK, FIRST_NEW, generator)
    visible = retromae.visible_positions(inner, mask.bool(), torch.tensor([4, 2]), generator)
    encoder_losses, decoder_losses = [], []
    for row, length in enumerate((9, 5)):
        out = full(input_ids=masked[row : row + 1, :length], output_hidden_states=True)
        log_p = out.logits[0].log_softmax(-1)
        encoder_losses += [-log_p[i, ids[row, i]].item() for i in range(length) if hidden[row, i]]
        sentence = out.hidden_states[-1][:, :1]
        embed = backbone.model.embeddings
        memory = torch.cat([sentence, embed(input_ids=ids[row : row + 1, :length])[:, 1:]], 1)
        for i in range(1, length - 1):
            position = torch.tensor([[i]])
            query = embed(inputs_embeds=sentence, position_ids=position)
            seen = visible[row, i, :length]
            rebuilt = decoder(query, memory[:, seen], torch.ones(1, 1, int(seen.sum())).bool())
            decoder_losses.append(-full.cls(rebuilt)[0, 0].log_softmax(-1)[ids[row, i]].item())
    assert len(decoder_losses) == 7 + 3
    assert terms["encoder_mlm"].item() == pytest.approx(np.mean(encoder_losses), rel=1e-4)
    assert terms["decoder_mlm"].item() == pytest.approx(np.mean(decoder_losses), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------- LLaRA
LAYOUT = llara.Layout((BOS, 45), (20, 52, 53, 54, 55, 56, 57, 58, 59), (21, 22, 60, 61, 62, 63, 64, 65, 66, 67))
SPECIAL = {0}


def llama(tmp_path):
    backbone = tiny.backbone("decoder", tmp_path / "m")
    backbone.add_tokens([*llara.SUMMARY_TOKENS, *llara.PREDICTION_TOKENS])
    return backbone


def test_adaptation_terms(tmp_path):
    """Every part alone, as if the others were not there; what is asked for once and special tokens are not."""
    backbone = llama(tmp_path)
    full = backbone.language_model().eval()
    texts, after = [tiny.ids("甲乙丙丁"), tiny.ids("山水"), tiny.ids("火")], [(*tiny.ids("日月月"), 0), (), (0,)]
    language, ebae, ebar = [], [], []
    for text, next_text in zip(texts, after, strict=True):
        log_p = full(input_ids=torch.tensor([[*LAYOUT.prefix, *text]])).logits[0].log_softmax(-1)
        language += [-log_p[1 + i, token].item() for i, token in enumerate(text)]
        for losses, suffix, target in ((ebae, LAYOUT.summary, text), (ebar, LAYOUT.prediction, next_text)):
            logits = full(input_ids=torch.tensor([[*LAYOUT.prefix, *text, *suffix]])).logits[0, -8:]
            row = logits.amax(0).log_softmax(-1)
            if set(target) - SPECIAL:
                losses.append(-np.mean([row[token].item() for token in set(target) - SPECIAL]))
    assert len(ebar) == 1
    both = {"ebae": np.mean(ebae) / 2, "ebar": np.mean(ebar) / 2}
    for following, changes, expected in (
        (after, {}, both | {"language_model": np.mean(language)}),
        ([()] * 3, {}, {"language_model": np.mean(language), "ebae": np.mean(ebae)}),
        (after, {"language_model": 0.0, "bag_of_words": 0.1}, {key: value / 10 for key, value in both.items()}),
    ):
        pairs, stage = list(zip(texts, following, strict=True)), llara.Adaptation(**changes)
        terms = llara.adaptation_loss(backbone, head_of(full), LAYOUT, pairs, stage, SPECIAL)
        assert {key: value.item() for key, value in terms.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("framed", [False, True])
def test_the_published_prompts_fill_the_sequence(framed, tmp_path):
    """Pre-training begins a text as fine-tuning does."""
    method, recipe, student = built("llara", tiny.backbone("decoder", tmp_path / "m"), framed)
    layout = method.layout(student.backbone, recipe)
    assert student.formats["query", "asymmetric"].suffix == layout.prediction
    assert student.formats["passage", "asymmetric"].suffix == layout.summary
    assert layout.prefix == student.formats["passage", "symmetric"].prefix == ((BOS,) if framed else ()) + tiny.ids('"')


# -------------------------------------------------------------------------------------------------------------- pretext
WORLD = ["甲吃书", "乙看花", "丙给书", "丁吃看", "山水火", "日月星"]
STEPS = {
    "bge": {"pretraining": {"steps": 15, "batch_size": 6}, "unsupervised": {"steps": 15, "batch_size": 6}},
    "retromae": {"pretraining": {"steps": 30, "batch_size": 6}},
    "llara": {"adaptation": {"steps": 30, "batch_size": 6}},
}
RATES = {"pretraining": 5e-3, "unsupervised": 5e-3, "adaptation": 5e-3}


def adapted(name, folder, texts=WORLD, steps=None, **context):
    """(student, log) after a method's own pre-training of so many steps a stage."""
    more = {"warmup": 2} if steps is None else {"warmup": 2, "steps": steps}
    settings = {stage: own | {"learning_rate": RATES[stage]} | more for stage, own in STEPS[name].items()}
    method, recipe, student = built(name, tiny.backbone(find_method(name).kind, folder), **settings)
    marked, log = student.trainable(), []
    torch.manual_seed(7)
    method.pretext(student, texts, recipe, TrainingContext(seed=3, log=log.append, **({"log_every": 1} | context)))
    assert student.trainable() == marked
    return student, log


@pytest.mark.parametrize("name", STEPS)
def test_pretext_learns_and_repeats_itself(name, tmp_path):
    (first, log), (second, again) = (adapted(name, tmp_path / side, next_texts=WORLD[::-1]) for side in "ab")
    stages = list(dict.fromkeys(record["stage"] for record in log))
    assert len(stages) == len(STEPS[name]) and log == again
    for stage in stages:
        losses = [record["loss"] for record in log if record["stage"] == stage]
        assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4]), stage
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert all(p.grad is None for p in first.parameters())


def test_adaptation_trains_the_weights_that_lora_adapts(tmp_path):
    plain = tiny.backbone("decoder", tmp_path / "a")
    student, log = adapted("llara", tmp_path / "b")
    assert "ebar" not in log[0]  # no order known
    before, after = plain.model.state_dict(), merge_lora(student.backbone.model)
    assert all(not torch.equal(before[key], after[key][: len(before[key])]) for key in before)
    lora = [value for key, value in student.named_parameters() if "lora_B" in key]
    assert not any(value.any() for value in lora)
    unadapted = student.encode(WORLD, "query", "symmetric")
    torch.nn.init.normal_(lora[0])  # the adapters are in force again
    assert not np.allclose(student.encode(WORLD, "query", "symmetric"), unadapted)


@pytest.mark.parametrize("framed", [False, True])
def test_masked_texts_are_framed_as_in_fine_tuning(framed, tmp_path, monkeypatch):
    seen, real = [], retromae.masked
    monkeypatch.setattr(retromae, "masked", lambda ids, mask, *more: seen.append((ids, mask)) or real(ids, mask, *more))
    stage = {"steps": 1, "batch_size": 6}
    method, recipe, student = built("retromae", tiny.backbone("encoder", tmp_path / "m"), framed, pretraining=stage)
    method.pretext(student, WORLD, recipe, TrainingContext())
    (ids, mask) = seen[0]
    rows = sorted(tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True))
    assert rows == sorted(student.ids(WORLD, "passage", "symmetric"))
    ends = {(row[0], row[-1]) for row in rows}
    assert ends == {(BOS, EOS) if framed else (CLS, SEP)}


def test_pretext_of_no_steps_and_of_no_texts(tmp_path):
    method, recipe, student = built("retromae", tiny.backbone("encoder", tmp_path / "m"), pretraining={"steps": 0})
    before = copy.deepcopy(student.state_dict())
    method.pretext(student, WORLD, recipe, TrainingContext())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert retromae.Autoencoding(epochs=8, batch_size=32).updates(100) == 25
    with pytest.raises(TrainingError, match="no texts"):
        method.pretext(student, [], method.recipe({"pretraining": {"steps": 2}}), TrainingContext())


def test_spans_of_unsupervised_pairs():
    generator = torch.Generator().manual_seed(0)
    text = tuple(range(10, 20))
    spans = [bge.crop(text, 0.5, generator) for _ in range(300)]
    assert all(span == text[span[0] - 10 : span[0] - 10 + len(span)] for span in spans)
    assert {len(span) for span in spans} == {5, 6, 7, 8, 9, 10}
    assert {span[0] for span in spans} == set(range(10, 16))
    assert bge.crop((4,), 0.5, generator) == (4,)


@pytest.mark.parametrize("order", ["next", "crop"])
def test_right_partners_are_no_negatives_in_unsupervised_pairs(order, tmp_path):
    """What follows a text anywhere, the text itself, copies of either, and what is fed the same (two [UNK])."""
    if order == "next":
        texts, following = ["甲乙", "甲乙 ", "丙", "丁戊", "己", "庚"], ["日月", "火", "甲乙", "谜", "语", ""]
        right = [{0, 1, 2}, {0, 1, 2}, {2}, {3, 4}, {3, 4}]
    else:  # two texts, each drawn twice
        texts, following = ["甲乙丙丁戊己庚辛壬癸", "日月星云山水火木金土"], None
    size = 5 if following else 4  # the sixth text has no partner
    backbone = tiny.backbone("encoder", tmp_path / "m", hidden_dropout_prob=0.0)
    _, recipe, student = built("bge", backbone, unsupervised={"steps": 1, "batch_size": size, "pairs": order})
    (members,) = batches(5 if following else 2, size, 1, 1)
    if following:
        a, b = (student.embed([side[i] for i in members], "passage", "symmetric") for side in (texts, following))
        hidden = [[j in right[i] for j in members] for i in members]
    else:
        generator = torch.Generator().manual_seed(0)
        shortest = recipe.unsupervised.shortest
        spans = [bge.crop(tiny.ids(texts[i]), shortest, generator) for i in members for _ in range(2)]
        assert len(set(spans[1::2])) > 2  # partners that only their text tells apart
        a, b = student.embed_ids([(CLS, *span, SEP) for span in spans]).view(4, 2, -1).unbind(1)
        hidden = [[i == j for j in members] for i in members]
    losses = []
    for i in range(size):
        scores = [a[i] @ b[j] / 0.01 for j in range(size) if j == i or not hidden[i][j]]
        losses.append(torch.logsumexp(torch.stack(scores), 0) - a[i] @ b[i] / 0.01)
    log = []
    bge.contrast_pairs(
        student, texts, recipe.unsupervised, TrainingContext(next_texts=following, log=log.append), "bge"
    )
    assert log[0]["info_nce"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    if order == "next":
        with pytest.raises(TrainingError, match="no known order"):
            bge.contrast_pairs(student, texts, recipe.unsupervised, TrainingContext(), "bge")

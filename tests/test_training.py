"""Fine-tuning: the same batches for every method, the teacher's targets in their places, the same weights twice, and
what a run starts from and leaves. The loop itself is in test_loop.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_negatives import changed_results
from tiny_run import changed

from d2llm.config.registry import names
from d2llm.config.schema import Config
from d2llm.methods.registry import method
from d2llm.models.backbone import Backbone
from d2llm.models.lora import merge_lora
from d2llm.models.student import Student
from d2llm.run.artifacts import append_jsonl, read_json, read_jsonl
from d2llm.run.errors import ArtifactError, DataError, TrainingError
from d2llm.run.paths import Paths
from d2llm.teacher import score as teacher_scores
from d2llm.teacher import tune as teacher_tuning
from d2llm.training import pretext, pretraining
from d2llm.training import train as training
from d2llm.training.pairs import PairData

SIZES = {"nli": (10, "symmetric"), "sts": (3, "symmetric"), "search": (6, "asymmetric")}
PACK, WIDTH = 4, 3


def pairs() -> pd.DataFrame:
    """Packs of four of three data sets, as the negatives stage leaves them, in the order of their pack numbers."""
    columns = ["qid", "query", "positive", "dataset", "mode", "pack", "marked", "negatives"]
    rows: list[tuple[Any, ...]] = []
    for name, (packs, mode) in SIZES.items():
        for key in (f"{name}-{pack}-{i}" for pack in range(packs) for i in range(PACK)):
            negatives = [f"n {key} {k}" for k in range(WIDTH)]
            rows.append((key, f"q {key}", f"p {key}", name, mode, len(rows) // PACK, [f"p {key}"], negatives))
    return pd.DataFrame(rows, columns=columns)


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores that tell whose they are: row number in the hundreds, then the place."""
    rows = []
    for i, qid in enumerate(frame["qid"]):
        hard = 100.0 * i + np.arange(1 + WIDTH)
        mates = [j for j in range(len(frame)) if frame["pack"][j] == frame["pack"][i] and j != i]
        easy = np.array([1000.0 * i + j for j in mates]), -np.array(mates, dtype=float)
        rows.append((qid, hard, -hard, *easy, 100.0 * i + np.arange((1 + WIDTH) ** 2)))
    return pd.DataFrame(rows, columns=["qid", "yes", "no", "easy_yes", "easy_no", "features"])


# ------------------------------------------------------------------------------------------------------------ batches
def test_the_plan_is_the_seeds_alone_and_keeps_packs_whole() -> None:
    frame = pairs()
    with_teacher, without = PairData(frame, scores(frame)), PairData(frame, None)
    plan = with_teacher.plan(8, 500, 3)
    assert plan == without.plan(8, 500, 3)
    assert plan != without.plan(8, 500, 4)
    assert plan[:200] != without.plan(12, 200, 3)
    owner = frame.groupby("pack")["dataset"].first()
    assert all(len(packs) == 2 for _, packs in plan)
    assert all(owner[pack] == name for name, packs in plan for pack in packs)
    total = sum(n for n, _ in SIZES.values())
    for name, count in Counter(name for name, _ in plan).items():
        assert count / 500 == pytest.approx(SIZES[name][0] / total, abs=0.06)  # in proportion to the packs
    for name, (count, _) in SIZES.items():
        drawn = [pack for other, packs in plan if other == name for pack in packs]
        for start in range(0, len(drawn) - count + 1, count):  # every pass holds every pack once
            assert sorted(drawn[start : start + count]) == sorted(owner.index[owner == name])
        assert drawn[:count] != drawn[count : 2 * count] or count == 3


def test_a_batch_is_its_packs_rows_in_order() -> None:
    frame = pairs()
    data = PairData(frame, None)
    batches = data.batches(8, 30, 5)
    assert len(batches) == 30
    for batch, (name, packs) in zip(batches, data.plan(8, 30, 5), strict=True):
        rows = [i for pack in packs for i in frame.index[frame["pack"] == pack]]
        assert (batch.dataset, batch.mode) == (name, SIZES[name][1])
        assert batch.queries == frame["query"][rows].tolist()
        assert batch.positives == frame["positive"][rows].tolist()
        assert batch.negatives == frame["negatives"][rows].tolist()
        assert batch.teacher is None
    assert len(data.batch("nli", [0])) == PACK
    assert len(next(iter(data.batches(2, 1, 0)))) == PACK  # a batch holds a pack at least


def test_the_teachers_targets_belong_to_their_texts() -> None:
    frame = pairs()
    data = PairData(frame, scores(frame))
    for batch in data.batches(12, 40, 6):
        size, targets = len(batch), batch.teacher
        assert targets.negative_logits.shape == (size, WIDTH, 2)
        assert targets.easy_logits.shape == targets.easy_index.shape + (2,) == (size, PACK - 1, 2)
        assert targets.features.shape == (size, WIDTH + 1, WIDTH + 1)
        for i, query in enumerate(batch.queries):
            row = int(frame.index[frame["query"] == query][0])
            assert targets.positive_logits[i].tolist() == [100.0 * row, -100.0 * row]
            assert targets.negative_logits[i, :, 0].tolist() == [100.0 * row + k for k in (1, 2, 3)]
            assert targets.features[i].flatten().tolist() == [100.0 * row + k for k in range(16)]
            for e, place in enumerate(targets.easy_index[i].tolist()):
                mate = int(frame.index[frame["positive"] == batch.positives[place]][0])
                assert place != i and frame["pack"][mate] == frame["pack"][row]
                assert targets.easy_logits[i, e].tolist() == [1000.0 * row + mate, -mate]  # of this very positive


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        # Probabilities of yes: the positive 0.9; the negatives 0.88, 0.1, 0.5, 0.2, 0.4 in the order of the mining.
        ({"below": 0.95}, [1, 2, 3, 4, None]),
        ({"below": 1.0}, [0, 1, 2, 3, 4]),
        ({"below": 0.05}, [None] * 5),
        ({"stratified": True}, [0, 1, 2]),  # logits 2, −2.2, 0, −1.4, −0.4: nearest to −2.2, −0.1 and 2
        ({"stratified": True, "below": 0.95}, [1, 2, 3]),  # nearest to −2.2, −1.1 and 0
    ],
)
def test_negatives_are_chosen_by_the_teachers_scores(settings: dict[str, Any], taken: list[int | None]) -> None:
    """Texts, numbers, scores and features move together; a method that imitates nobody is given no score."""
    count = 3 if "stratified" in settings else None
    recipe = method("bge").recipe({"negatives": settings, "hard_negatives": count})
    frame = pairs()
    frame["negatives"] = [[f"n {qid} {k}" for k in range(5)] for qid in frame["qid"]]
    yes = np.log(np.divide(*np.array([[0.9, 0.1], [0.88, 0.12], [0.1, 0.9], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]]).T))
    known = scores(frame).assign(
        yes=[yes] * len(frame), no=[0 * yes] * len(frame), features=[np.arange(36.0)] * len(frame)
    )
    batch = PairData(frame, known, recipe).batch("nli", [0, 1]).narrowed(count)
    blind = PairData(frame, known, recipe, imitates=False).batch("nli", [0, 1]).narrowed(count)
    assert blind.teacher is None and blind.negatives == batch.negatives and batch.teacher is not None
    assert batch.negative_mask is not None and batch.text_ids is not None
    plain = PairData(frame, None).text_ids
    for i, row in enumerate(frame.index[:8]):
        kept = [k for k in taken if k is not None]
        assert batch.negative_mask[i].tolist() == [k is not None for k in taken]
        assert batch.negatives[i][: len(kept)] == [frame["negatives"][row][k] for k in kept]
        assert batch.text_ids.negatives[i, : len(kept)].tolist() == plain.negatives[row, kept].tolist()
        assert batch.teacher.negative_logits[i, : len(kept), 0].tolist() == pytest.approx(yes[[k + 1 for k in kept]])
        places = [0, *(k + 1 for k in kept)]
        expected = np.arange(36.0).reshape(6, 6)[np.ix_(places, places)]
        assert np.array_equal(batch.teacher.features[i, : len(places), : len(places)], expected)
    assert not method("bge").reads_scores(method("bge").recipe()) and method("bge").reads_scores(recipe)


def test_uneven_pairs_and_scores_of_other_pairs_are_refused() -> None:
    frame = pairs()
    uneven = frame.copy()
    uneven.at[3, "negatives"] = ["only one"]
    with pytest.raises(DataError, match=r"same number of negatives, found \[1, 3\]"):
        PairData(uneven, None)
    fewer = frame.assign(negatives=[texts[:2] for texts in frame["negatives"]])
    with pytest.raises(DataError, match="teacher scores cover 3 negatives a query, the pairs have 2"):
        PairData(fewer, scores(frame))


def test_every_method_sees_the_same_batches(tiny_scores: Config) -> None:
    plans, texts = [], []
    for name in names():
        data = PairData.load(tiny_scores, method(name))
        assert (data.scores is not None) == method(name).uses_teacher == (name in ("d2llm", "hypencoder", "kd"))
        plans.append(data.plan(8, 20, 1))
        texts.append([(batch.queries, batch.positives, batch.negatives) for batch in data.batches(8, 20, 1)])
    assert all(plan == plans[0] for plan in plans)
    assert all(seen == texts[0] for seen in texts)


# ---------------------------------------------------------------------------------------------------------- whole runs
def train(config: Config, name: str, variant: str, seed: int) -> None:
    """A training after the pre-training stage it starts from, if it has one."""
    owner = config.pretext_of(name, variant)
    if owner:
        pretext.run(config, name, owner)
    training.run(config, name, variant, seed)


def prepared(config: Config, folder: Path, **changes: Any) -> Config:
    """The tiny run's inputs in another results folder, with some settings changed."""
    copy = changed_results(config, folder)
    for name in ("pairs", "teacher"):
        (Paths.of(copy).root / name).symlink_to(Paths.of(config).root / name)
    return changed(copy, **changes) if changes else copy


def tuned(log: Path) -> list[dict[str, Any]]:
    """The records of fine-tuning in a log."""
    return [record for record in read_jsonl(log) if record["stage"] == "fine-tuning"]


def weights(config: Config, name: str, variant: str = "base", seed: int = 1) -> dict[str, str]:
    """Digests of all weights of a run."""
    folder = Paths.of(config).run(name, variant, seed) / "model"
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 2  # backbone, head
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("name", ["d2llm", "bge", "retromae", "llara", "sgpt", "udever"])
def test_a_run_twice_gives_the_same_weights(name: str, tiny_scores: Config, tmp_path: Path) -> None:
    configs = [prepared(tiny_scores, tmp_path / side) for side in ("one", "two")]
    for config in configs:
        torch.rand(3)  # whatever ran before must not matter
        np.random.default_rng()
        train(config, name, "base", 1)
    assert weights(configs[0], name) == weights(configs[1], name)
    folders = [Paths.of(config).run(name, "base", 1) for config in configs]
    assert (folders[0] / "log.jsonl").read_bytes() == (folders[1] / "log.jsonl").read_bytes()
    records = tuned(folders[0] / "log.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6]
    summary = read_json(folders[0] / "summary.json")
    assert (summary["method"], summary["variant"], summary["seed"]) == (name, "base", 1)
    assert (summary["updates"], summary["queries"], summary["negatives_per_query"]) == (6, 48, 4)
    assert summary["parameters"]["total"] >= summary["parameters"]["backbone_trained"] > 0
    assert summary["last_losses"]["loss"] == pytest.approx(records[-1]["loss"])  # of six updates the last tenth is one
    assert summary["seconds"] > 0
    assert (summary["pretext_seconds"] > 0) == bool(method(name).pretext_keys)
    # It trained: the weights are no longer those of the base checkpoint.
    student = Student.load(folders[0] / "model")
    base = Backbone.load(Paths.of(configs[0]).base(method(name).kind), method(name).kind)
    before, trained = dict(base.model.named_parameters()), student.backbone.model.named_parameters()
    assert any(not torch.equal(p, before[key]) for key, p in trained if p.shape == before[key].shape)
    assert np.isfinite(student.encode(["护士借走了苹果"], "query", "symmetric")).all()
    assert all(form.max_length <= 48 for form in student.formats.values())


def test_seeds_start_from_one_pretraining(tiny_scores: Config, tmp_path: Path) -> None:
    config = prepared(tiny_scores, tmp_path, seeds=[1, 2])
    pretext.run(config, "llara", "base")
    folder = Paths.of(config).pretext("llara", "base")
    backbone, base = Backbone.load(folder, "decoder"), Backbone.load(Paths.of(config).base("decoder"), "decoder")
    # The sixteen tokens are known and keep what they learnt: building the student adds nothing and changes nothing.
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    after = merge_lora(method("llara").build(backbone, config.recipe("llara")).backbone.model)
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    key = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[key], base.model.state_dict()[key])
    for seed in (1, 2):
        training.run(config, "llara", "base", seed)
    logs = [Paths.of(config).run("llara", "base", seed) / "log.jsonl" for seed in (1, 2)]
    own = [[record for record in read_jsonl(log) if record["stage"] == "llara, adaptation"] for log in logs]
    assert own[0] == own[1] and own[0]
    assert tuned(logs[0]) != tuned(logs[1])
    assert weights(config, "llara", seed=1) != weights(config, "llara", seed=2)


def test_a_variant_may_start_from_another_base_and_learn_from_another_teacher(
    tiny_scores: Config, tmp_path: Path
) -> None:
    """Or leave a term out: no two of them train alike."""
    settings = {
        "small": {"base": "half", "pooling": {"heads": 2}},
        "weak": {"teacher": "teacher-weak"},
        "no-phn": {"alpha": 0.0},
    }
    variants = {name: {"method": "d2llm", "settings": own} for name, own in settings.items()}
    half = tiny_scores.models.decoder.model_dump() | {"hidden_size": 16, "seed": 5}
    others = {"models": {"others": {"half": half}}, "teachers": {"teacher-weak": {"steps": 1}}}
    config = prepared(tiny_scores, tmp_path, variants=variants, **others)
    pretraining.run(config, "half")
    teacher_tuning.run(config, "teacher-weak")
    teacher_scores.run(config, "teacher-weak", 0, 1)
    first, sizes, trained = {}, {}, set()
    for variant in ("base", *settings):
        training.run(config, "d2llm", variant, 1)
        folder = Paths.of(config).run("d2llm", variant, 1)
        first[variant] = tuned(folder / "log.jsonl")[0]
        sizes[variant] = Student.load(folder / "model").backbone.hidden_size
        trained.add(tuple(weights(config, "d2llm", variant).values()))
    assert sizes == {"base": 32, "small": 16, "weak": 32, "no-phn": 32} and len(trained) == 4
    assert first["weak"]["ci"] != first["base"]["ci"]
    assert set(first["base"]) - set(first["no-phn"]) == {"ri_phn"}


@pytest.mark.parametrize("used", [0, 1])
def test_negatives_that_a_method_leaves_out_are_not_embedded(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int
) -> None:
    config = prepared(tiny_scores, tmp_path, methods={"d2llm": {"hard_negatives": used}})
    counts, real = list[int](), Student.embed_batch
    monkeypatch.setattr(
        Student, "embed_batch", lambda self, batch: counts.append(batch.negative_count) or real(self, batch)
    )
    train(config, "d2llm", "base", 1)
    assert counts == [used] * 6  # of the four that the pairs hold
    assert read_json(Paths.of(config).run("d2llm", "base", 1) / "summary.json")["negatives_per_query"] == used


def test_a_training_that_fails_names_method_step_and_term_and_leaves_a_new_log(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier training had logged is gone."""
    config = prepared(tiny_scores, tmp_path)
    folder = Paths.of(config).run("sgpt", "base", 1)
    append_jsonl(folder / "log.jsonl", {"stage": "fine-tuning", "step": 999})
    terms = iter([1.0, 1.0, float("nan")])
    one = lambda self, student, *_: {"broken": next(terms) * sum(p.sum() for p in student.parameters())}  # noqa: E731
    monkeypatch.setattr(type(method("sgpt")), "objective", one)
    with pytest.raises(TrainingError, match=r"sgpt/base seed 1, step 3: loss term 'broken' is nan"):
        train(config, "sgpt", "base", 1)
    assert [file.name for file in folder.iterdir()] == ["log.jsonl"]  # neither model nor summary
    assert [record["step"] for record in tuned(folder / "log.jsonl")] == [2]


def test_without_teacher_scores_only_d2llm_cannot_run(tiny_scores: Config, tmp_path: Path) -> None:
    copy = prepared(tiny_scores, tmp_path)
    (Paths.of(copy).root / "teacher").unlink()
    with pytest.raises(ArtifactError, match=r"0-of-1.parquet: missing"):
        train(copy, "d2llm", "base", 1)
    train(copy, "sgpt", "base", 1)
    assert (Paths.of(copy).run("sgpt", "base", 1) / "summary.json").exists()

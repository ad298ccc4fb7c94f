"""What trainings are told of their pairs: fewer labels, wrong ones, right passages among negatives; and what losses make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_students import D2LLM, example, numbers, setting
from test_training import PACK, SIZES, WIDTH, pairs, scores
from tiny_run import tiny_config

from d2llm.config.recipes import LabelSettings
from d2llm.run.errors import ConfigError
from d2llm.training.labels import labelled_packs, tell
from d2llm.training.pairs import PairData


def asked() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs, and scores by which each candidate is known: hard ones number·100 + place, features of two their product."""
    frame = pairs()
    scored = scores(frame)
    squares = [np.outer(hard := 100.0 * i + np.arange(1 + WIDTH), hard).ravel() for i in range(len(frame))]
    return frame, scored.assign(features=squares)


def test_a_smaller_share_is_part_of_a_larger_one_and_of_another_seed_another() -> None:
    frame = pairs()
    packs = [set(labelled_packs(frame, LabelSettings(share=share), 1)) for share in (0.1, 0.3, 0.7, 1.0)]
    assert packs[0] < packs[1] < packs[2] < packs[3] == set(frame["pack"])
    owner = frame.groupby("pack")["dataset"].first()
    counts = {name: sum(owner[pack] == name for pack in packs[1]) for name in SIZES}
    assert counts == {"nli": 3, "sts": 1, "search": 2}  # 3, .9, 1.8
    assert set(labelled_packs(frame, LabelSettings(share=0.3), 2)) != packs[1]
    told = tell(*asked(), LabelSettings(share=0.3), 1)
    assert set(told.pairs["pack"]) == packs[1] and told.labelled is None
    assert told.scores is not None and told.scores["qid"].tolist() == told.pairs["qid"].tolist()
    assert told.counts == {"queries": 76, "labelled": 24, "wrong_positives": 0, "false_negatives": 0}


def test_wrong_positives_take_their_scores_along() -> None:
    frame, scored = asked()
    told, more = (tell(frame, scored, LabelSettings(noise=noise), 1) for noise in (0.3, 0.6))
    assert told.scores is not None
    wrong = told.pairs["positive"] != frame["positive"]
    assert 0.15 < wrong.mean() < 0.45 and wrong.sum() == told.counts["wrong_positives"]
    assert set(frame.index[wrong]) < set(frame.index[more.pairs["positive"] != frame["positive"]])
    for i, row in told.pairs.iterrows():
        old, new = frame.loc[i], told.scores.loc[i]
        order = [1, 0, 2, 3] if wrong[i] else [0, 1, 2, 3]
        passages = [old["positive"], *old["negatives"]]
        assert [row["positive"], *row["negatives"]] == [passages[k] for k in order]
        assert new["yes"].tolist() == [100.0 * i + k for k in order] and (new["no"] == -new["yes"]).all()
        assert (new["features"] == np.outer(new["yes"], new["yes"]).ravel()).all()
        assert row["marked"] == ([] if wrong[i] else [old["positive"]])
        mates = [j for j in frame.index if frame["pack"][j] == old["pack"] and j != i]
        known = [1000.0 * i + j for j in mates]
        np.testing.assert_array_equal(
            new["easy_yes"], [np.nan if wrong[j] else z for j, z in zip(mates, known, strict=True)]
        )
    pd.testing.assert_frame_equal(scored, asked()[1])  # what all variants share is left alone


def test_a_false_negative_is_the_querys_right_passage_of_another_pair() -> None:
    frame, scored = asked()
    frame.loc[[0, 9], "query"] = "甲"
    told = tell(frame, scored, LabelSettings(false_negatives=1.0), 1)
    assert told.counts["false_negatives"] == 2 and told.scores is not None
    assert [told.pairs["negatives"][i][0] for i in (0, 9)] == [frame["positive"][j] for j in (9, 0)]
    assert [told.scores["yes"][i][1] for i in (0, 9)] == [900.0, 0.0]
    square = np.isnan(told.scores["features"][9].reshape(1 + WIDTH, -1))
    assert square[1].all() and square[:, 1].all() and square.sum() == 7
    assert (told.pairs["negatives"].drop([0, 9]) == frame["negatives"].drop([0, 9])).all()


def test_half_of_every_batch_is_labelled_where_the_teacher_tells_of_the_rest() -> None:
    told = tell(*asked(), LabelSettings(share=0.3, rest="teacher"), 1)
    data = PairData(told.pairs, told.scores, labelled=told.labelled)
    for batch in data.batches(4 * PACK, 30, 1):
        assert batch.labelled is not None and batch.labelled.view(-1, PACK).all(1).tolist() == [
            True,
            True,
            False,
            False,
        ]
    assert data.plan(8, 20, 1) == data.plan(8, 20, 1)


@pytest.mark.parametrize("joint", [False, True])
def test_what_is_not_labelled_or_not_asked_is_left_to_other_terms(joint: bool) -> None:
    """CI, CL: the mean over labelled queries. RI-EHN, FI: without the candidates that the teacher was not asked of."""
    recipe, student = setting(in_batch="joint" if joint else "separate", passage_to_query=0)
    batch, embedded = example(None)
    whole = numbers(D2LLM.objective(student, embedded, batch, recipe))
    parts = []
    for labelled in ([True, True, False, False], [False, False, True, True]):
        own = replace(batch, labelled=torch.tensor(labelled))
        parts.append(numbers(D2LLM.objective(student, embedded, own, recipe)))
    for name in whole:
        if name in ("ci", "cl"):
            assert parts[0][name] != parts[1][name]
            assert whole[name] == pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-5)
        else:
            assert parts[0][name] == parts[1][name] == whole[name]
    easy, features = batch.teacher.easy_logits.clone(), batch.teacher.features.clone()
    easy[0, 0] = features[0, 1, :] = features[0, :, 1] = torch.nan
    holes = replace(batch, teacher=replace(batch.teacher, easy_logits=easy, features=features))
    terms = numbers(D2LLM.objective(student, embedded, holes, recipe))
    assert {name for name in whole if terms[name] != whole[name]} == {"ri_ehn", "fi"} and np.isfinite(
        [*terms.values()]
    ).all()


REST: dict[str, Any] = {"labels": {"rest": "teacher", "share": 0.5}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"bge": {"labels": {"noise": 0.1}}}}, "methods.bge.labels: for variants only"),
        ({"variants": {"odd": {"method": "bge", "settings": REST}}}, "variants.odd.settings.labels.rest: teacher, but bge"),
        ({"training": REST}, "training.labels.rest: teacher, but bge by methods.bge reads no teacher's scores"),
        ({"variants": {"odd": {"method": "d2llm", "settings": REST}}, "training": {"batch_size": 4}}, "holds one pack"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_config(tmp_path, **changes)
    assert message in str(error.value)


def test_labels_of_all_methods_and_of_variants(tmp_path: Path) -> None:
    variants = {"few": {"method": "d2llm", "settings": {"labels": {"share": 0.5}}}}
    config = tiny_config(
        tmp_path, variants=variants, training={"labels": {"noise": 0.2}}, sweeps={"d2llm": {"labels.noise": [0.2, 0.4]}}
    )
    assert config.recipe("sgpt").labels == LabelSettings(noise=0.2) and config.recipe(
        "d2llm", "few"
    ).labels == LabelSettings(share=0.5)
    assert config.points()["d2llm", "labels.noise=0.2"] == ("d2llm", "base")

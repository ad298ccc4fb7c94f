"""Sweeps, variants, other base models and teachers: what is trained for them, shared by them, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import BASE, tiny_config

from d2llm.config.load import load
from d2llm.config.schema import Run
from d2llm.run import jobs
from d2llm.run.errors import ConfigError

CONFIG = Path(__file__).parent.parent / "config"
VARIANTS = {
    "no_rank": {"method": "d2llm", "settings": {"alpha": 0.0}},
    "same": {"method": "d2llm", "settings": {"beta": 0.1}},
    "plain": {"method": "d2llm", "settings": {"ci_weighting": "none"}},
}


SWEEP = {"d2llm": {"alpha": [0.0, 1.0]}}
WEAK: dict[str, Any] = {"teacher-weak": {}}


def set_of(method: str, **settings: str) -> dict[str, Any]:
    """A variant of a method with these settings."""
    return {"variants": {"odd": {"method": method, "settings": settings}}}


def test_points_of_one_recipe_share_a_training(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, seeds=[3, 4], sweeps={"d2llm": {"alpha": [0.0, 1, 10.0]}}, variants=VARIANTS)
    assert config.points() == {
        ("d2llm", "alpha=0"): ("d2llm", "alpha=0"),
        ("d2llm", "alpha=1"): ("d2llm", "base"),  # as configured
        ("d2llm", "alpha=10"): ("d2llm", "alpha=10"),
        ("d2llm", "no_rank"): ("d2llm", "alpha=0"),  # the sweep's
        ("d2llm", "same"): ("d2llm", "base"),
        ("d2llm", "plain"): ("d2llm", "plain"),
    }
    extra = [run for run in config.runs() if run.variant != "base"]
    assert extra == [Run("d2llm", "alpha=0", 3), Run("d2llm", "alpha=10", 3), Run("d2llm", "plain", 3)]
    assert len(config.runs()) == 2 * len(config.methods) + 3 == len(set(config.runs()))
    assert config.recipe("d2llm", "alpha=10").alpha == 10.0 and config.recipe("d2llm", "alpha=10").beta == 0.1


def test_what_is_included_is_trained_with_seeds_of_its_own(tmp_path: Path) -> None:
    changes = {"sweeps": SWEEP, "variants": VARIANTS, "seeds": [1, 7, 9], "variant_seeds": [7, 9]}
    plain = {("base", seed) for seed in (1, 7, 9)}
    grouped = {name: settings | {"group": "One" if name == "plain" else "Two"} for name, settings in VARIANTS.items()}
    changes["variants"] = grouped
    cases = ([], ()), (["sweeps"], ("alpha=0",)), (["variants"], ("no_rank", "plain")), (["One"], ("plain",))
    for include, names in cases:
        runs = tiny_config(tmp_path, include=include, **changes).runs()
        assert {(run.variant, run.seed) for run in runs} == plain | {(name, seed) for name in names for seed in (7, 9)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweeps": {"sgptt": {"temperature": [1.0, 2.0]}}}, "sweeps.sgptt: expected one of the methods"),
        ({"sweeps": {"d2llm": {"alpa": [0.0, 1.0]}}}, "unknown key"),
        ({"sweeps": {"d2llm": {"alpha": [0.1, 1e-1]}}}, "a value twice"),
        ({"sweeps": SWEEP, "variants": {"alpha=0": VARIANTS["plain"]}}, "variant's name already"),
        (set_of("d2llm", base="half"), "variants.odd.settings.base: expected one of teacher, decoder; found 'half'"),
        (set_of("d2llm", teacher="teacher-x"), "expected one of teacher; found 'teacher-x'"),
        ({"teachers": {"teacher-weak": {"stepps": 3}}}, "teachers.teacher-weak.stepps: unknown key"),
        (set_of("bge", base="decoder"), "expected one of encoder; found 'decoder'"),
        ({"models": {"others": {"encoder": BASE}}}, "models.others.encoder: this name is taken"),
        ({"models": {"others": {"pretext": BASE}}}, "models.others.pretext: this name is taken"),
        ({"teachers": {"teacher-weak": {"shards": 3}}}, "teachers.teacher-weak.shards: the same for all teachers"),
        ({"teachers": WEAK, "methods": {"d2llm": {"teacher": "teacher-weak"}}}, "d2llm.teacher: for variants only"),
        ({"methods": {"d2llm": {"base": "teacher"}}}, "methods.d2llm.base: for variants only"),
        ({"include": ["Onne"]}, "include: expected some of sweeps, variants; found 'Onne'"),
        ({"seeds": [1, 1]}, "seeds: expected each seed once; found [1, 1]"),
        ({"seeds": [1, 2], "variant_seeds": [3]}, "variant_seeds: expected some of seeds [1, 2]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_key(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_config(tmp_path, **changes)
    assert message in str(error.value)


def test_another_teacher_is_the_main_one_with_changes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, teachers={"teacher-weak": {"steps": 3}})
    weak = config.teacher_of("teacher-weak")
    assert weak.steps == 3 and weak.model_copy(update={"steps": config.teacher.steps}) == config.teacher
    lines = {name: jobs.settings(config, "teacher", teacher=name) for name in ("teacher", "teacher-weak")}
    assert {key for key in lines["teacher"] if lines["teacher"][key] != lines["teacher-weak"][key]} == {"teacher.steps"}
    # How it was tuned is the model's affair: its scores depend on how it is asked.
    scored = [jobs.settings_line(config, "teacher_scores", teacher=n, shard=0, shards=1) for n in lines]
    assert scored[0] == scored[1]
    with pytest.raises(ConfigError, match="known: teacher, teacher-weak"):
        config.teacher_of("teacher-strong")


def test_seeds_and_trials_share_a_methods_own_pretraining(tmp_path: Path) -> None:
    variants = {
        "hot": {"method": "bge", "settings": {"temperature": 1.0}},
        "longer": {"method": "bge", "settings": {"pretraining": {"steps": 5}}},
    }
    config = tiny_config(tmp_path, seeds=[1, 2], variants=variants)
    assert config.pretexts() == [("bge", "base"), ("retromae", "base"), ("llara", "base"), ("bge", "longer")]
    assert config.pretext_of("bge", "hot") == "base" and config.pretext_of("sgpt", "base") is None
    line = {name: jobs.settings_line(config, "pretext", method="bge", variant=name) for name in ("base", "longer")}
    assert line["base"] != line["longer"]


def test_a_pretext_stage_that_would_never_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.retromae import RetroMAE

    monkeypatch.setattr(RetroMAE, "pretext_keys", ())
    with pytest.raises(ConfigError, match="method retromae: it has a pretext stage, and no pretext_keys"):
        tiny_config(tmp_path)


def test_a_control_differs_from_its_counterpart_in_what_it_is_for() -> None:
    config = load([CONFIG / "mini.yaml", CONFIG / "controls.yaml"])
    recipes = {
        name: config.recipe("d2llm", name).model_dump()
        for name, one in config.variants.items()
        if one.method == "d2llm"
    }

    def differing(one: str, two: str) -> set[str]:
        return {key for key, value in recipes[one].items() if value != recipes[two][key]}

    for part in ("cosine", "dot", "bilinear", "shared", "mean", "weighted", "last"):
        assert differing(f"plain_{part}", f"ci_{part}") == {"ci_weighting"}
        own = {"interaction"} if config.variants[f"ci_{part}"].group == "Interaction" else {"pooling"}
        assert differing("ci", f"ci_{part}") == own | ({"temperature"} if part in ("cosine", "dot") else set())


def test_the_study_goes_on_from_a_plain_run() -> None:
    mini, study = load([CONFIG / "mini.yaml"]), load([CONFIG / "mini.yaml", CONFIG / "study.yaml"])
    for config in (mini, study):
        for key, values in config.sweeps["d2llm"].items():
            assert len(values) >= 5 and getattr(config.recipe("d2llm"), key) in values  # the centre is the main run
    assert set(mini.runs()) < set(study.runs())

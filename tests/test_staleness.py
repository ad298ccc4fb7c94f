"""What an edited module or a changed key makes stale, as a table. What follows from a stale job through its files is Snakemake's, and in `test_workflow`.

A job is stale where one of the two lines that the workflow gives Snakemake to compare is another: the digest of its code, which follows every module in
its closure (`test_provenance`), or its settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from d2llm.reporting.catalogue import FIGURES, TABLES
from spoiled_configs import jobs

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.run import jobs, provenance
from d2llm.run.code import closure

MINI = Path(__file__).resolve().parent.parent / "config" / "mini.yaml"
METHODS = {"d2llm", "bge", "retromae", "llara", "sgpt", "udever"}
TRAININGS = {f"train {name}" for name in METHODS}
PRETEXTS = {f"pretext {name}" for name in ("bge", "retromae", "llara")}
EVALUATIONS = {f"evaluate {name}" for name in METHODS | {"teacher", "bm25"}}
BASES = {f"base {name}" for name in ("decoder", "encoder", "teacher")}
TABLES_OF_SCORES = {f"table {name}" for name in TABLES}
# The table of settings shows them, and the page shows all but where results lie.
SHOWN = {"table settings", "report"}
# What depends on which trainings stand for which variants.
POINTS = {"ablations", "table ablation", "figure sweep_nli", "figure sweep_ir", "report"}


def named(config: Config) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, stage, arguments) of every kind of job; of trainings the methods themselves."""
    for stage, arguments in jobs(config):
        if stage not in ("figure", "table") and (arguments.get("variant", "base"), arguments.get("seed", 1)) == (
            "base",
            1,
        ):
            words = [str(arguments[key]) for key in ("method", "model", "teacher") if key in arguments]
            yield " ".join([stage, *words]), stage, arguments
    for kind, names in (("figure", FIGURES), ("table", TABLES)):
        yield from ((f"{kind} {name}", kind, {"name": name}) for name in names)


@cache
def modules() -> dict[str, set[str]]:
    """The modules that each job of the mini tier depends on."""
    return {name: closure(jobs.modules(stage, **arguments)) for name, stage, arguments in named(load([MINI]))}


@pytest.mark.parametrize(
    ("module", "stale"),
    [
        ("d2llm.methods.d2llm.losses", {"train d2llm"}),
        ("d2llm.methods.d2llm.method", {"train d2llm"}),
        ("d2llm.methods.losses", TRAININGS | PRETEXTS),
        ("d2llm.training.train", TRAININGS),
        ("d2llm.methods.text_ids", TRAININGS | PRETEXTS),
        ("d2llm.models.normal_form", {"texts", "data", "negatives", "runtime"} | TRAININGS | PRETEXTS | EVALUATIONS),
        ("baselines.llara", {"train llara", "pretext llara"}),
        ("baselines.sgpt", {"train sgpt"}),
        ("d2llm.teacher.tune", {"teacher teacher"}),
        ("d2llm.data.world.generate", {"texts", "data"}),
        ("d2llm.reporting.figures.leads", {"figure leads"}),
        ("d2llm.reporting.page.report", {"report"}),
        ("d2llm.reporting.captions", {"report"}),
        ("d2llm.run.hub", BASES),
        ("d2llm.config.schema", set()),
        ("d2llm.config.validation", set()),
        ("d2llm.run.artifacts", set()),
        ("d2llm.run.provenance", set()),
        ("d2llm.cli", set()),
    ],
)
def test_an_edited_module(module: str, stale: set[str]) -> None:
    assert {name for name, found in modules().items() if module in found} == stale


LOADING = {"negatives", "runtime", "teacher teacher"} | BASES | PRETEXTS | TRAININGS | EVALUATIONS  # models
VERSIONS = [
    ("matplotlib", {f"figure {name}" for name in FIGURES}),
    ("bm25s", {"negatives", "runtime"} | EVALUATIONS),
    ("mteb", EVALUATIONS),
    ("accelerate", PRETEXTS | TRAININGS | {"teacher teacher"}),
    ("peft", LOADING),
    ("tokenizers", LOADING | {"teacher-scores teacher"}),
    ("transformers", LOADING | {"teacher-scores teacher"}),
    ("scikit-learn", {"comparison", "ablations", "report", "teacher teacher"} | TRAININGS | EVALUATIONS | {f"figure {name}" for name in FIGURES} | TABLES_OF_SCORES),
    ("snakemake", set()),
    ("pydantic", set()),
]  # fmt: skip


@pytest.mark.parametrize(("package", "stale"), VERSIONS)
def test_another_version(package: str, stale: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = provenance.version
    config = load([MINI])

    def lines() -> dict[str, str]:
        return {name: jobs.versions_line(stage, **arguments) for name, stage, arguments in named(config)}

    before = lines()
    monkeypatch.setattr(provenance, "version", lambda name: "9.9" if name == package else plain(name))
    after = lines()
    assert {name for name in before if before[name] != after[name]} == stale


KEYS = [
    ({"results": "elsewhere"}, set()),
    ({"threads": 2}, {"runtime"}),
    ({"seeds": [1, 2]}, POINTS),  # and the trainings of seed 2, which are new
    ({"variants": {"more": {"method": "d2llm", "settings": {"gamma": 0.7}}}}, POINTS),
    ({"include": []}, POINTS),
    ({"data": {"world": {"seed": 9}}}, {"texts", "data", "report"}),
    ({"data": {"world": {"test_seed": 9}}}, {"data", "report"}),
    ({"models": {"encoder": {"seed": 2}}}, {"base encoder"} | SHOWN),
    ({"negatives": {"seed": 2}}, {"negatives"} | SHOWN),
    ({"teacher": {"min_ap": 0.5}}, {"teacher teacher", "report"}),
    ({"teacher": {"max_length": 90}}, {"teacher teacher", "teacher-scores teacher", "evaluate teacher", "runtime", "report"}),
    ({"teacher": {"shards": 2}}, {"teacher-scores teacher", "report"}),
    ({"training": {"steps": 7}}, TRAININGS | SHOWN),
    ({"training": {"steps_of": {"sgpt": 7}}}, {"train sgpt"} | SHOWN),
    ({"methods": {"sgpt": {"temperature": 0.9}}}, {"train sgpt", "tune", "figure architecture"} | SHOWN | POINTS - {"ablations"}),
    ({"methods": {"bge": {"pretraining": {"steps": 3}}}}, {"pretext bge", "train bge", "tune", "figure architecture"} | SHOWN | POINTS - {"ablations"}),
    ({"evaluation": {"keep": 50}}, EVALUATIONS | {"report"}),
    ({"statistics": {"resamples": 500}}, {"comparison", "ablations", "report"} | TABLES_OF_SCORES),
    ({"statistics": {"subject": "sgpt"}}, {"comparison", "figure leads", "table nli", "table sts", "table ir", "report"}),
    ({"tuning": {"seed": 2}}, {"tune", "report"}),
    ({"runtime": {"repeats": 5}}, {"runtime", "report"}),
]  # fmt: skip


@cache
def settings_as_they_are() -> dict[str, str]:
    return settings({})


def settings(changes: dict[str, Any]) -> dict[str, str]:
    """The settings line of every job of the mini tier with some keys changed."""
    config = load([MINI], changes)
    return {name: jobs.settings_line(config, stage, **arguments) for name, stage, arguments in named(config)}


@pytest.mark.parametrize(("changes", "stale"), KEYS, ids=[str(changes) for changes, _ in KEYS])
def test_a_changed_key(changes: dict[str, Any], stale: set[str]) -> None:
    before, after = settings_as_they_are(), settings(changes)
    assert before.keys() <= after.keys()
    assert {name for name in before if before[name] != after[name]} == stale


def test_every_section_has_its_row() -> None:
    """But the tier's name, which is another folder; references, which are rows fewer; and sweeps and teachers, which are kinds of variants."""
    left = set(Config.model_fields) - {name for changes, _ in KEYS for name in changes}
    assert left == {"tier", "references", "sweeps", "variant_seeds", "teachers"}

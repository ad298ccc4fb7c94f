"""What an edited module, a changed key or another version makes stale, as tables. What follows from a stale job through its files is Snakemake's.

A job is stale where one of the lines that the workflow gives Snakemake to compare is another: the digest of its code, which follows every module in its
closure (`test_provenance`), its settings, or the versions of packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import spoiled_configs

from d2llm.config.catalogue import entries
from d2llm.config.load import load
from d2llm.config.schema import Config, Run
from d2llm.run import jobs, provenance
from d2llm.run.code import closure
from d2llm.run.jobs import find_stage
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES

CONFIGS = Path(__file__).resolve().parent.parent / "config"
MINI, PAPER = CONFIGS / "mini.yaml", CONFIGS / "paper.yaml"
METHODS = {"d2llm", "bge", "retromae", "llara", "sgpt", "udever"}
TRAIN = {f"train {name}" for name in METHODS}
PRETEXT = {f"pretext {name}" for name in ("bge", "retromae", "llara")}
STUDENTS = {f"evaluate {name}" for name in METHODS}
EVALUATE = STUDENTS | {"evaluate teacher", "evaluate bm25"}
BASE = {f"base {name}" for name in ("decoder", "encoder", "teacher")}
TEACHER = {"teacher teacher", "teacher_scores teacher", "evaluate teacher"}
FIGURES = {f"figure {name}" for name in entries("figure")}
TABLES = {f"table {name}" for name in entries("table")}
MAIN_TABLES = {"table nli", "table sts", "table ir"}
# The pipeline's encoder as a dense retriever.
DENSE = {"negatives", "evaluate teacher", "runtime"}
# What runs the students of all methods.
USING = {"runtime", "search_notebook"}
# The table of settings shows them, and the page shows all but where results lie.
SHOWN = {"table settings", "report"}
# What depends on which trainings stand for which variants.
POINTS = {"ablations", "table ablation", "figure sweep_nli", "figure sweep_ir", "figure labels", "report"}

# Of a prompt.
WORDS = {"template": "{a}和{b}？", "yes": "对", "no": "错"}


def named(config: Config) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, stage, arguments) of every kind of job; of trainings the methods themselves."""
    for name, arguments in spoiled_configs.jobs(config):
        stage = find_stage(name)
        itself = (arguments.get("variant", "base"), arguments.get("seed", 1)) == ("base", 1)
        if stage not in ("figure", "table") and itself:
            words = [str(arguments[key]) for key in ("method", "model", "teacher") if key in arguments]
            yield " ".join([stage, *words]), stage, arguments
    yield from ((stage, stage, {}) for stage in ("examples", "search_notebook"))
    for kind in ("figure", "table"):
        yield from ((f"{kind} {name}", kind, {"name": name}) for name in entries(kind))


@cache
def modules() -> dict[str, set[str]]:
    """The modules that each job of the mini tier depends on."""
    config = load([MINI])
    return {name: closure(jobs.modules(config, stage, **arguments)) for name, stage, arguments in named(config)}


MODULES = {
    # a student's parts
    "models.scorers.iem": {"train d2llm", "evaluate d2llm", *USING},
    "models.scorers.dot": {"pretext retromae", "train retromae", "evaluate retromae", *USING},
    "models.scorers.cosine": DENSE
    | USING
    | {f"{stage} {name}" for name in ("bge", "llara", "sgpt", "udever") for stage in ("train", "evaluate")}
    | {"pretext bge", "pretext llara"},
    "models.scorers.bilinear": set(),
    **dict.fromkeys(("models.scorers.maxsim", "models.scorers.hypernetwork", "models.poolings.states"), set()),
    "models.poolings.pma": {"train d2llm", "evaluate d2llm", *USING},
    "models.poolings.weighted_mean": {"train sgpt", "evaluate sgpt", *USING},
    "models.poolings.mean": DENSE,
    "models.student": DENSE | PRETEXT | TRAIN | STUDENTS | USING,
    # methods and losses
    "methods.d2llm.objective": {"train d2llm"},
    "methods.d2llm.losses.ri_ehn": {"train d2llm"},
    "methods.d2llm.losses.p2q": set(),  # a variant's
    "methods.losses": TRAIN | PRETEXT,
    "methods.text_ids": TRAIN | PRETEXT,
    **{f"baselines.{name}": {f"train {name}"} for name in ("sgpt", "udever")},
    "baselines.bge": {"train bge", "pretext bge"},
    "baselines.llara": {"train llara", "pretext llara"},
    "baselines.retromae": {f"{stage} {name}" for stage in ("train", "pretext") for name in ("retromae", "bge")},
    **dict.fromkeys(("baselines.simcse", "baselines.kd", "baselines.hypencoder"), set()),
    # teacher
    "teacher.cross_encoder": TEACHER | {"runtime"},
    "teacher.load": TEACHER | {"runtime"},
    "teacher.classifier": set(),  # a checkpoint's
    "teacher.tune": {"teacher teacher"},
    "teacher.score": {"teacher_scores teacher"},
    "teacher.parts": {"teacher_scores teacher", "evaluate teacher"},
    "teacher.targets": TRAIN,  # reads what a method that imitates is given
    "teacher.prompts": TEACHER | BASE | {"runtime", "figure architecture"},  # the vocabulary holds their words
    # training
    "training.train": TRAIN,
    "training.loop": TRAIN | PRETEXT | BASE | {"teacher teacher"},
    "training.optimization": TRAIN | PRETEXT | BASE | {"teacher teacher"},
    "training.gradient_cache": TRAIN | PRETEXT | BASE | {"teacher teacher"},
    "training.monitor": TRAIN,
    "training.labels": TRAIN,
    "training.pretraining": BASE,
    "models.base.pretrained": set(),
    # data
    "data.world.generate": {"texts", "data"},
    "data.negatives.mine": {"negatives"},
    "data.negatives.bm25": {"negatives", "evaluate bm25", "evaluate teacher", "runtime"},
    "models.normal_form": {"texts", "data", "negatives"} | TRAIN | PRETEXT,
    # evaluation and analysis
    "evaluation.tasks": EVALUATE | {"runtime", "examples"},
    "evaluation.evaluate": EVALUATE,
    "evaluation.mteb": EVALUATE,
    "evaluation.rows.bm25": {"evaluate bm25"},
    "evaluation.rows.teacher": {"evaluate teacher"},
    **dict.fromkeys(("evaluation.published", "evaluation.rows.published"), set()),  # of models that mini has not
    "search.index": STUDENTS | {"runtime", "search_notebook"},
    "analysis.statistics": {"comparison", "ablations"},
    "analysis.comparison": {"comparison", "ablations"},
    # reporting
    "reporting.tables.nli": {"table nli"},
    "reporting.layout.main_table": MAIN_TABLES,
    "reporting.figures.leads": {"figure leads"},
    "reporting.drawing.heatmap": {"figure phenomena", "figure phenomena_sts", "figure phenomena_ir"},
    "reporting.style": FIGURES | TABLES | {"report"},
    "reporting.page.report": {"report"},
    "reporting.captions": MAIN_TABLES | {"report"},
    # what decides no number is known by its folder
    **{f"{folder}.{name}": set() for folder, names in {
        "cli": ("main", "doctor", "preflight"), "config": ("schema", "registry", "task_types", "catalogue"),
        "run": ("artifacts", "stages", "jobs", "schemas", "checkpoint", "hub"),
    }.items() for name in names},
}  # fmt: skip


@pytest.mark.parametrize(("module", "stale"), MODULES.items(), ids=MODULES.keys())
def test_an_edited_module(module: str, stale: set[str]) -> None:
    full = module if module.startswith("baselines.") else f"d2llm.{module}"
    assert {name for name, reached in modules().items() if full in reached} == stale


def test_a_checkpoint_depends_on_what_brings_it_and_on_no_prompt() -> None:
    """The vocabulary of a model that is made here holds the prompts' words; a checkpoint has its own."""
    models = {"models": {"others": {"brought": {"source": "org/model"}}}}
    plain, asked = load([MINI], models), load([MINI], models | {"teacher": {"symmetric": WORDS}})
    all_makers = {"models.base.pretrained", "training.pretraining", "teacher.prompts"}
    for model, makers in (
        ("brought", {"models.base.pretrained"}),
        ("encoder", all_makers - {"models.base.pretrained"}),
    ):
        reached = closure(jobs.modules(plain, "base", model=model))
        assert {name for name in all_makers if f"d2llm.{name}" in reached} == makers
        lines = [jobs.settings_line(config, "base", model=model) for config in (plain, asked)]
        assert (lines[0] == lines[1]) == (model == "brought")


def downstream(config: Config, changed: dict[str, Any]) -> set[tuple[str, ...]]:
    """(stage, argument, …) of the jobs of a config that some changed keys make again: those whose settings differ, and
    those that read what such a job writes.
    """
    other, paths = load([PAPER], changed), Paths.of(config)
    jobs_of = {(stage, *map(str, own.values())): (stage, own) for stage, own in spoiled_configs.jobs(config)}
    jobs_of = {key: job for key, job in jobs_of.items() if key != ("tune",)}  # for which this tier has no grids
    lines = [
        {key: jobs.settings_line(one, stage, **own) for key, (stage, own) in jobs_of.items()} for one in (config, other)
    ]
    stale = {key for key in jobs_of if lines[0][key] != lines[1][key]}
    while True:
        remade = {path for key in stale for path in jobs.outputs(jobs_of[key][0], paths, **jobs_of[key][1])}
        reads = {key: STAGES[stage].reads(config, paths, **own) for key, (stage, own) in jobs_of.items()}
        more = {key for key, files in reads.items() if any({file, *file.parents} & remade for file in files)} - stale
        if not more:
            return stale
        stale |= more


def test_a_prompt_of_checkpoints_makes_the_teacher_and_what_reads_its_scores_again() -> None:
    """Rivals that imitate it and a baseline that chooses its negatives by it; neither a base model nor negatives, other
    baselines, or a variant of plain contrast.
    """
    plain = {"ci_weighting": "none", "alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    chosen = {"method": "sgpt", "settings": {"negatives": {"below": 0.95}}}
    variants: dict[str, Any] = {"references": ["teacher", "bm25"], "methods": {"kd": {}, "hypencoder": {}, "pma": {}}}
    variants["variants"] = {"plain": {"method": "d2llm", "settings": plain}, "chosen": chosen}
    config = load([PAPER], variants)
    stale = downstream(config, variants | {"teacher": {"symmetric": WORDS}})
    models = ("base", "negatives", "pretext", "teacher", "teacher_scores", "train", "evaluate")
    found = {" ".join(key[:2]) for key in stale if key[0] in models}
    reading = ("d2llm", "kd", "hypencoder", "sgpt")
    assert found == TEACHER | {f"{stage} {name}" for stage in ("train", "evaluate") for name in reading}
    assert {key[2] for key in stale if key[:2] == ("train", "sgpt")} == {"chosen"}
    assert {("train", "d2llm", "base", "1"), ("runtime",), ("collect",)} <= stale
    assert Run("d2llm", "plain", 1) in config.runs() and not any("plain" in key for key in stale)


LOADING = {"negatives", "teacher teacher"} | USING | BASE | PRETEXT | TRAIN | STUDENTS | {"evaluate teacher"}  # models
VERSIONS = {
    "matplotlib": FIGURES,
    "bm25s": {"negatives", "runtime", "evaluate bm25", "evaluate teacher"},
    "mteb": EVALUATE,
    "peft": LOADING,
    "scikit-learn": {"comparison", "ablations", "teacher teacher"} | TRAIN | EVALUATE,
    "snakemake": set(),
    "pydantic": set(),
}


@pytest.mark.parametrize(("package", "stale"), VERSIONS.items())
def test_another_version(package: str, stale: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, config = provenance.version, load([MINI])

    def lines() -> dict[str, str]:
        return {name: jobs.versions_line(config, stage, **arguments) for name, stage, arguments in named(config)}

    before = lines()
    monkeypatch.setattr(provenance, "version", lambda name: "9.9" if name == package else plain(name))
    after = lines()
    assert {name for name in before if before[name] != after[name]} == stale


KEYS = [
    ({"results": "elsewhere"}, set()),
    ({"threads": 2}, {"runtime"}),
    ({"device": "h100"}, set()),
    ({"cpu": {"half": True}}, BASE | PRETEXT | TRAIN | TEACHER | EVALUATE | {"negatives", "runtime", "report"}),
    ({"gpu": {"half": False}}, BASE | PRETEXT | TRAIN | TEACHER | EVALUATE | {"negatives", "runtime", "report"}),
    ({"seeds": [1, 2]}, POINTS),  # and the trainings of seed 2, which are new
    ({"variants": {"more": {"method": "d2llm", "settings": {"gamma": 0.7}}}}, POINTS | {"table contrasts"}),
    ({"include": []}, POINTS),
    ({"data": {"world": {"seed": 9}}}, {"texts", "data", "report"}),
    ({"data": {"world": {"test_seed": 9}}}, {"data", "report"}),
    ({"models": {"encoder": {"seed": 2}}}, {"base encoder"} | SHOWN),
    ({"negatives": {"seed": 2}}, {"negatives"} | SHOWN),
    ({"teacher": {"min_ap": 0.5}}, {"teacher teacher", "report"}),
    ({"teacher": {"max_length": 90}}, TEACHER | {"runtime", "report"}),
    ({"teacher": {"both_directions": True}}, TEACHER | {"runtime", "report"}),
    ({"teacher": {"targets": "label", "share": 0.5}}, {"teacher teacher", "report"}),
    ({"teacher": {"shards": 2}}, {"teacher_scores teacher", "report"}),
    ({"teacher": {"symmetric": WORDS}}, TEACHER | BASE | {"runtime", "figure architecture", "report"}),
    ({"training": {"steps": 7}}, TRAIN | SHOWN),
    ({"training": {"labels": {"noise": 0.1}}}, TRAIN | SHOWN | {"figure labels"}),
    ({"training": {"steps_of": {"sgpt": 7}}}, {"train sgpt"} | SHOWN),
    (
        {"methods": {"sgpt": {"temperature": 0.9}}},
        {"train sgpt", "tune", "figure architecture"} | SHOWN | POINTS - {"ablations"},
    ),
    (
        {"methods": {"bge": {"pretraining": {"steps": 3}}}},
        {"pretext bge", "train bge", "tune", "figure architecture"} | SHOWN | POINTS - {"ablations"},
    ),
    ({"evaluation": {"keep": 50}}, EVALUATE | {"report"}),
    ({"statistics": {"resamples": 500}}, {"comparison", "ablations", "report"} | TABLES),
    ({"statistics": {"subject": "sgpt"}}, {"comparison", "figure leads", "report"} | MAIN_TABLES),
    ({"tuning": {"seed": 2}}, {"tune", "report"}),
    ({"runtime": {"repeats": 5}}, {"runtime", "report"}),
    ({"training": {"trackers": ["wandb"], "checkpoint_minutes": 1}}, set()),
    ({"corpus": {"texts": "mine.jsonl", "shards": 2}}, set()),  # but of `snakemake corpus`, no job's
]


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
    """But the tier's name, which is another folder; references, which are rows fewer; and kinds of variants."""
    left = set(Config.model_fields) - {name for changes, _ in KEYS for name in changes}
    assert left == {"tier", "references", "sweeps", "variant_seeds", "teachers"}

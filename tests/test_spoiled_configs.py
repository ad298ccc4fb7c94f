"""Whatever a config holds, it is planned or refused in one line that names file and key.

`campaigns/spoil.py` tries thousands.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from spoiled_configs import BELOW, FILES, every_job, outcome, plan, spoiled
from test_config import MINI, refusal, write

from d2llm.config.load import load, read
from d2llm.config.schema import Config
from d2llm.config.validation import ANY, keys, nearest
from d2llm.run.stages import STAGES


@settings(
    max_examples=500 if "CI" in os.environ else 30,  # 500 take half a minute
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(config=spoiled())
def test_a_spoiled_config_is_planned_or_refused_in_one_line(
    config: tuple[list[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcome(*config, tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_unspoiled_configs_are_planned_and_together_have_every_stage(tmp_path: Path) -> None:
    # Models of one's own are elsewhere.
    away = {"models": {name: {"source": f"org/{name}"} for name in ("teacher", "decoder", "encoder")}}
    seen = set()
    for file in FILES:
        values = read(file) | (away if file.stem in ("local", "laptop", "zh") else {})
        mine = write(tmp_path / "mine.yaml", yaml.safe_dump(values, allow_unicode=True))
        config = load([BELOW[file.stem], mine] if file.stem in BELOW else [mine])
        assert plan(config) > 20, file
        seen |= {stage for stage, _ in every_job(config)}
    assert seen == set(STAGES)


def test_every_misspelt_key_of_the_schema_is_told_the_right_one() -> None:
    """One letter gone: the key that was meant is found, within sections by name as well."""
    schema = list(keys(Config))
    assert len(schema) > 200
    for key in schema:
        place, last = tuple("one" if part == ANY else part for part in key[:-1]), str(key[-1])
        for at in range(1, len(last) - 1 if len(last) > 4 else 0):
            spoilt = last[:at] + last[at + 1 :]
            assert (*place, spoilt) in schema or nearest((*place, spoilt), schema) == (*place, last), spoilt


# Ten times ten times … of a list: a line of text, and more memory than there is.
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 10)}]\n" for below, name in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]\n", "expected at most 100000 values, 40 deep; found more"),
        (LAUGHS, "expected at most 100000 values"),
        ("seeds: " + "[" * 1000, "nested too deep"),
        ("tier: a\x00b\n", "not valid YAML (character 0x0000"),
        ("? [a]\n: 1\n", "line 1: not valid YAML (a key that is no text)"),
        ("tier: 2024-13-45\n", "line 1: not valid YAML (month must be in 1..12)"),
        ("tier: !!binary aGk=\n", "tier: expected text, a number, a list or a section"),
        ("training: {1: 2}\n", "training.1: expected text as a key"),
        ('"a\\nb": 1\n', "'a\\nb': unknown key"),
    ],
)
def test_what_yaml_can_hold_and_no_config_is(text: str, message: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", text)
    line = refusal(mine)
    assert line.startswith(f"{mine}: ") and message in line, line


# What a shell, Snakemake's patterns or a file system would take for something else.
BAD = ["a b", "a'b", "$(id)", "../x", "a;b", "a\nb", "{a}", "a*", "-x", "", "x" * 400]
TRAIN, TASK = {"file": "x.jsonl"}, {"type": "sts", "group": "sts", "test": "x.csv"}


def of_files(train: dict, tasks: dict) -> dict:
    """Settings of one's own files."""
    return {"data": {"source": "files", "files": {"train": train, "tasks": tasks}}}


@pytest.mark.parametrize("name", BAD)
def test_names_that_shells_and_folders_take_amiss_are_refused(name: str, tmp_path: Path) -> None:
    places = [
        {"tier": name},
        {"methods": {name: {}}},
        {"variants": {name: {"method": "bge"}}},
        {"teachers": {f"teacher-{name}": {}}},
        {"models": {"others": {name: {}}}},
        {"sweeps": {"bge": {"schedule": ["linear", name]}}},
        {"tuning": {"grids": {"bge": {"schedule": [name]}}}},
        of_files({name: TRAIN}, {"t": TASK}),
        of_files({"t": TRAIN}, {name: TASK}),
        of_files({"t": TRAIN}, {"t": {"mteb": name, "type": "sts", "group": "sts"}}),
        of_files({"t": TRAIN}, {"t": {"mteb": "STSB", **TASK, "test": name}}),
    ]
    if name != "../x":  # results may lie anywhere
        places.append({"results": name if len(name) < 400 else name * 2})
    for place in places:
        mine = write(tmp_path / "mine.yaml", yaml.safe_dump(place, allow_unicode=True))
        assert refusal(MINI, mine).isprintable(), place

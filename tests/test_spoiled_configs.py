"""Whatever a config holds, it is planned or refused in one line that names file and key. `campaigns/spoil.py` tries thousands."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from spoiled_configs import FILES, jobs, outcome, plan, spoiled
from test_config import MINI, refusal, write

from d2llm.config.load import load, read
from d2llm.config.schema import Config
from d2llm.config.validation import ANY, keys, nearest
from d2llm.run.errors import ConfigError
from d2llm.run.stages import STAGES


@settings(
    max_examples=2000 if "CI" in os.environ else 80,  # 2,000 take two minutes
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(made=spoiled())
def test_a_spoiled_config_is_planned_or_refused_in_one_line(
    made: tuple[list[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcome(*made, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_unspoiled_configs_are_planned(file: Path, tmp_path: Path) -> None:
    # Models of one's own are elsewhere.
    away = {"models": {name: {"source": f"org/{name}"} for name in ("teacher", "decoder", "encoder")}}
    values = read(file) | (away if file.stem in ("local", "laptop") else {})
    mine = write(tmp_path / "mine.yaml", dump_plain(values))
    config = load([MINI, mine] if file.stem == "study" else [mine])
    assert plan(config) > 20
    assert {stage for stage, _ in jobs(config)} <= set(STAGES)


def test_every_misspelt_key_of_the_schema_is_told_the_right_one() -> None:
    """One letter gone: the key that was meant is found, within sections by name as well."""
    schema = list(keys(Config))
    assert len(schema) > 200
    for key in schema:
        place, last = tuple("one" if part == ANY else part for part in key[:-1]), str(key[-1])
        for at in range(1, len(last) - 1 if len(last) > 4 else 0):
            spoilt = last[:at] + last[at + 1 :]
            assert (*place, spoilt) in schema or nearest((*place, spoilt), schema) == (*place, last), spoilt


def test_the_key_that_tells_a_section_s_kind_is_named_when_it_is_misspelt(tmp_path: Path) -> None:
    text = "models: {teacher: {sorce: ./x, revision: abc, dtype: bfloat16}}"
    assert "models.teacher.sorce: unknown key (found './x'); nearest valid key: models.teacher.source" in refusal(
        write(tmp_path / "a.yaml", text)
    )


def dump_plain(values: dict) -> str:
    return yaml.safe_dump(values, allow_unicode=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [*a]\n", "expected at most 100000 values, 40 deep; found more"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
            "expected at most 100000 values",
        ),
        ("seeds: " + "[" * 3000, "nested too deep"),
        ("tier: a\x00b\n", "not valid YAML (character 0x0000"),
        ("? [a]\n: 1\n", "line 1: not valid YAML (a key that is no text)"),
        ("tier: 2024-13-45\n", "line 1: not valid YAML (month must be in 1..12)"),
        ("tier: !!binary aGk=\n", "tier: expected text, a number, a list or a section"),
        ("threads: " + "1" * 5000 + "\n", "line 1: not valid YAML (Exceeds the limit"),
        ("training: {1: 2}\n", "training.1: expected text as a key"),
        ('"a\\nb": 1\n', "'a\\nb': unknown key"),
        ("tier: " + "x" * 300 + "\n", "tier: expected text of the form"),
        ("models: {encoder: {revision: abc}}\n", "models.encoder.revision: unknown key (found 'abc'); a valid key of another kind"),
        ("training: {xyz: 1}\n", "training.xyz: unknown key (found 1); valid keys here: steps, steps_of,"),
        ("models: {decoder: null}\n", "models.decoder: expected a section of keys and values"),
    ],
)  # fmt: skip
def test_what_yaml_can_hold_and_no_config_is(text: str, told: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", text)
    line = refusal(mine)
    assert line.startswith(f"{mine}: ") and told in line, line


# What a shell, Snakemake's patterns or a file system would take for something else.
BAD = ["a b", "a'b", 'a"b', "$(id)", "`id`", "../x", "a;b", "a|b", "a\nb", "{a}", "a*", "-x", "", "x" * 400]


@pytest.mark.parametrize("name", BAD)
def test_names_that_shells_and_folders_take_amiss_are_refused(name: str) -> None:
    places = [
        {"tier": name},
        {"methods": {name: {}}},
        {"variants": {name: {"method": "bge"}}},
        {"teachers": {f"teacher-{name}": {}}},
        {"models": {"others": {name: {}}}},
        {"sweeps": {"bge": {"schedule": ["linear", name]}}},
        {"tuning": {"grids": {"bge": {"schedule": [name]}}}},
        {"data": {"source": "files", "files": {"train": {name: {"file": "x.jsonl"}}, "tasks": {"t": {"type": "sts", "group": "sts", "test": "x.csv"}}}}},
        {"data": {"source": "files", "files": {"train": {"t": {"file": "x.jsonl"}}, "tasks": {name: {"type": "sts", "group": "sts", "test": "x.csv"}}}}},
        {"data": {"source": "files", "files": {"train": {"t": {"file": "x.jsonl"}}, "tasks": {"t": {"mteb": name, "type": "sts", "group": "sts"}}}}},
        {"data": {"source": "files", "files": {"train": {"t": {"file": "x.jsonl"}}, "tasks": {"t": {"mteb": "STSB", "test": name, "type": "sts", "group": "sts"}}}}},
    ]  # fmt: skip
    if name != "../x":  # results may lie anywhere
        places.append({"results": name if len(name) < 400 else name * 2})
    for place in places:
        # Not through the command line's reading of text.
        with pytest.raises(ConfigError) as error:
            load_values(place)
        assert str(error.value).isprintable(), place


def load_values(values: dict) -> Config:
    """A config of values laid over the mini tier's, as a file would be."""
    with tempfile.TemporaryDirectory() as folder:
        return load([MINI, write(Path(folder) / "mine.yaml", dump_plain(values))])

"""A config is typed throughout, and what does not fit is told in one line: file, key, found, expected, nearest key."""

import subprocess
import sys
from pathlib import Path

import pytest

from d2llm.config.load import dump, load, read, typed
from d2llm.run.errors import ConfigError

MINI = Path(__file__).parent.parent / "config" / "mini.yaml"


def refusal(*files: Path, overrides: dict | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(files, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_resolved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load([MINI])
    assert load([write(tmp_path / "resolved.yaml", dump(config))]) == config


def leaves(values: object, prefix: str = "") -> set[str]:
    if not isinstance(values, dict) or not values:
        return {prefix}
    return {leaf for name, inner in values.items() for leaf in leaves(inner, f"{prefix}.{name}")}


def test_mini_spells_out_every_key_of_the_schema(tmp_path: Path) -> None:
    written = read(MINI)
    known = read(write(tmp_path / "resolved.yaml", dump(load([MINI]))))
    for section in set(known) - {"methods", "variants", "sweeps"}:
        # The prompts' words stand in d2llm/teacher/prompts.py.
        asked = {leaf for leaf in leaves(known[section]) if not leaf.endswith((".template", ".yes", ".no"))}
        # Of the sources the one it uses; config/local.yaml shows the other.
        asked = {leaf for leaf in asked if section != "data" or not leaf.startswith(".files.")}
        assert leaves(written[section]) == asked, section


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "teacher: {lerning_rate: 0.1}",
            "teacher.lerning_rate: unknown key (found 0.1); nearest valid key: teacher.lea",
        ),
        (
            "symmetric_order: {}",
            "symmetric_order: unknown key (found {}); nearest valid key: evaluation.symmetric_order",
        ),
        (
            "models: {teacher: {sorce: ./x}}",
            "models.teacher.sorce: unknown key (found './x'); nearest valid key: models",
        ),
        (
            "models: {encoder: {revision: abc}}",
            "models.encoder.revision: unknown key (found 'abc'); a valid key of ano",
        ),
        ("training: {xyz: 1}", "training.xyz: unknown key (found 1); valid keys here: steps, steps_of,"),
        (
            "data: {files: {tasks: {t: {type: sts, group: sts, sentence1: s}}}}",
            "data.files.tasks.t.sentence1: unknown key (found 's'); it is called query now",
        ),
        ("threads: '2'", "threads: expected a valid integer; found '2' (text)"),
        ("threads: true", "threads: expected a valid integer; found True (true/false)"),
        ("threads: 0", "threads: expected greater than or equal to 1; found 0 (an integer)"),
        ("teacher: 3", "teacher: expected a section of keys and values; found 3 (an integer)"),
        ("models: {decoder: null}", "models.decoder: expected a section of keys and values"),
        ("seeds: [1, x]", "seeds.1: expected a valid integer; found 'x' (text)"),
        ("methods: {bgee: {}}", "methods.bgee: unknown method 'bgee'"),
        (
            "methods: {bge: {learnin_rate: 1.0}}",
            "methods.bge.learnin_rate: unknown key (found 1.0); nearest valid key:",
        ),
        ("methods: {bge: {temperature: hot}}", "methods.bge.temperature: expected a valid number; found 'hot' (text)"),
        ("training: {steps_of: {simcse: 20}}", "training.steps_of.simcse: expected one of d2llm, bge"),
        ("statistics: {subject: simcse}", "statistics.subject: expected one of d2llm, bge"),
        ("variants: {hot: {method: bgee}}", "variants.hot.method: expected one of d2llm, bge"),
        ("variants: {hot: {method: bge, settings: {temprature: 1}}}", "variants.hot.settings.temprature: unknown key"),
        (
            "methods: {bge: {hard_negatives: null, negatives: {stratified: true}}}",
            "methods.bge.negatives.stratified: chooses some of the 4 mined negatives (negatives.per_query); set "
            "hard_negatives to a number from 2 to 3; found null, all of them",
        ),
        ("teacher: {scores: s.csv}", "teacher: expected scale with scores: logit, or probability of yes"),
        (
            "{references: [bm25], teacher: {scores: s.csv, scale: logit}}",
            "methods.d2llm: gamma above 0 imitates pair features, and the teacher is a file without any (s.csv); set",
        ),
        (
            "{references: [teacher], teacher: {scores: s.csv, scale: logit}}",
            "references: teacher: its scores are those of a file (teacher.scores)",
        ),
        ("variants: {base: {method: bge}}", "variants.base: this name is taken"),
    ],
)
def test_what_does_not_fit_is_told_by_file_key_and_way_out(text: str, message: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", text)
    line = refusal(MINI, mine)
    assert line.startswith(f"{mine}: {message}"), line


def test_origin_is_the_layer_that_set_the_key(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "threads: 2")
    assert refusal(MINI, mine, overrides={"seeds": "x"}).startswith("command line: seeds: ")
    bad = write(tmp_path / "bad.yaml", "tier: [mini]")
    assert refusal(MINI, bad, mine).startswith(f"{bad}: tier: ")


def test_layers_merge_key_by_key_and_integers_do_for_numbers(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "teacher: {learning_rate: 1}\nmethods: {bge: {learning_rate: 1e-4}}")
    config, plain = load([MINI, mine]), load([MINI])
    assert config.teacher.learning_rate == 1.0
    assert config.methods.keys() == plain.methods.keys()
    assert config.recipe("bge").learning_rate == 1e-4  # YAML 1.1 would read text
    assert config.data == plain.data


def test_unreadable_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").endswith("none.yaml: no such config file")
    assert "line 3: not valid YAML" in refusal(write(tmp_path / "a.yaml", "a: 1\nb: [\n"))
    assert "expected keys and values" in refusal(write(tmp_path / "a.yaml", "- 1"))
    assert "line 3: not valid YAML (key 'tier' twice)" in refusal(
        write(tmp_path / "a.yaml", "tier: a\nseeds: [1]\ntier: b")
    )


def test_the_subject_is_one_of_the_methods_or_away() -> None:
    config = load([], {"methods": {"sgpt": {}, "bge": {}}, "training": {"steps": 30, "steps_of": {"bge": 20}}})
    assert config.statistics.subject == "d2llm"  # away: nothing is compared
    assert [config.training.updates(name) for name in config.methods] == [30, 20]


def test_what_reads_configs_plans_jobs_and_renders_imports_no_torch() -> None:
    names = "config.catalogue methods.registry run.jobs run.provenance cli.main reporting.page.report"
    code = f"import sys, d2llm.reporting.layout.tables, {', '.join(f'd2llm.{name}' for name in names.split())}; "
    code += "sys.exit(str({'torch', 'transformers', 'mteb'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_text_of_the_command_line_stays_as_it_is() -> None:
    template = "读#P和#H。\n#P：{a}\n#H：{b}\n回答："  # YAML alone would read "回答：" of it
    values = typed({"t": template, "n": "7", "q": '"7"', "s": "{steps: 7, name: a}", "e": "", "h": "#1"})
    assert values == {"t": template, "n": 7, "q": "7", "s": {"steps": 7, "name": "a"}, "e": None, "h": "#1"}

"""README and docs hold: links and anchors resolve, files and config keys exist, commands parse, error lines are the code's."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from test_workflow import fresh, snakemake  # noqa: F401 - fresh is a fixture

from d2llm.cli import main as cli
from d2llm.config import docs as config_docs
from d2llm.config.recipes import Recipe
from d2llm.config.registry import names
from d2llm.config.schema import Config
from d2llm.methods.registry import method

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")])
# What a page makes before it uses it, or asks its reader for.
MADE = re.compile(r"mymethod|margin_loss|figure_spread|<|\*|\{|…|NAME|FOLDER")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M)


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


# ---------------------------------------------------------------------------------------------------------------- links
@cache
def anchors(page: Path) -> set[str]:
    """The names a page's headings have on GitHub: lower case, no punctuation, hyphens for blanks."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("&lt;", "<").replace("&gt;", ">").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        while slug in found:
            slug += "-1"
        found.add(slug)
    return found


def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: no such heading; {there.name} has {sorted(anchors(there))}"


def test_files_named_exist(page: Path) -> None:
    known = (
        r"(?:d2llm|tests|config|docs|workflow|baselines|benchmarks|notebooks|profiles|results/reference)/[\w./-]*[\w/]"
    )
    for name in re.findall(rf"`({known})`", prose(page)):
        assert MADE.search(name) or (ROOT / name).exists(), name


# ----------------------------------------------------------------------------------------------------------- config keys
@cache
def keys() -> set[str]:
    """Every dotted key of the schema, `<name>` for names of the user's, and of every recipe."""
    found = set(Config.model_fields)
    for section, places in config_docs.places().items():
        for place in places:
            plain = re.sub(r" \(\w+\)", "", place)
            found |= {plain} | {f"{plain}.{name}" for name in section.model_fields}
    for name in [*names(), "<name>"]:
        recipe = method(name).Recipe if name != "<name>" else Recipe
        found.add(f"methods.{name}")
        for key, field in recipe.model_fields.items():
            found.add(f"methods.{name}.{key}")
            found |= {f"methods.{name}.{inner}.{part}" for inner, section in config_docs.inner(field.annotation, key) for part in section.model_fields}  # fmt: skip
    return found


def known_key(key: str) -> bool:
    """Whether a key is of the schema; any word may stand where a name of the user's does, `*` for any key."""
    for known in keys():
        pattern = re.escape(known).replace(re.escape("<name>"), r"[\w<>-]+")
        if re.fullmatch(pattern, key) or re.fullmatch(re.escape(key).replace(r"\*", r"[\w<>]+"), known):
            return True
    return key.split(".")[:2] == ["tuning", "grids"] or key.startswith(("sweeps.", "teachers."))


def test_config_keys_named_exist(page: Path) -> None:
    roots = "|".join(sorted({name for name in Config.model_fields if name not in ("results", "tier")}))
    for quoted in re.findall(r"`([^`\n]+)`", prose(page)):
        key = quoted.split(":")[0]
        if re.fullmatch(rf"(?:{roots})(?:\.[\w<>*-]+)+", key) and not re.search(r"\.(parquet|md|json|csv|smk|py|yaml)$", key):  # fmt: skip
            # `tuning` is a section of the config and of every recipe.
            assert known_key(key) or known_key(f"methods.any.{key}"), key


def test_the_check_of_keys_can_fail() -> None:
    assert known_key("training.steps") and known_key("data.files.train.mine.part") and known_key("methods.bge.tuning.r")
    assert not known_key("training.step") and not known_key("methods.bge.tuning.rank") and not known_key("data.world.x")


# -------------------------------------------------------------------------------------------------------------- commands
def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell block and every command quoted in a line."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```sh\n(.*?)^```", text(page), re.S | re.M)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`((?:d2llm|python -m|snakemake|make|\.ci/run) [^`\n]+)`", prose(page))
        for line in lines:
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command and not command.startswith("#"):
                found.append((page.name, command))
    return found


@cache
def targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))


@cache
def rules() -> set[str]:
    """Rules of the workflow."""
    files = [ROOT / "Snakefile", *ROOT.glob("workflow/rules/*.smk")]
    return {name for file in files for name in re.findall(r"^(?:use )?rule (\w+)", text(file), re.M)}


@cache
def command_names() -> set[str]:
    """All subcommands."""
    return {name for action in cli.parser()._actions for name in getattr(action, "choices", None) or ()}


def check_d2llm(words: list[str]) -> None:
    if len(words) < 2:  # named in a sentence, not called
        assert not words or words[0] in command_names() or words[0] in ("STAGE", "COMMAND", "X"), words[0]
        return
    cli.parser().parse_args(words)
    given = [word for word in words if word.startswith("config/") and not MADE.search(word)]
    assert all((ROOT / word).exists() for word in given), given


def check_snakemake(words: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    options = get_argument_parser().parse_args(words)
    given = [*(options.configfile or ()), *(options.profile or ())]
    for file in (str(name) for one in given for name in (one if isinstance(one, list) else [one])):
        assert MADE.search(file) or re.fullmatch(r"(my|mine)\.yaml", file) or (ROOT / file).exists(), file
    for target in options.targets or ():
        assert target in rules() or target.startswith("results/"), target


def check_make(words: list[str]) -> None:
    assert all(word in targets() or re.match(r"[A-Z_]+=", word) for word in words), words


def check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests/"):
            assert MADE.search(word) or (ROOT / word.split("::")[0]).exists(), word


def checked(command: str) -> bool:
    """Check a command by what it calls, up to a pipe or the like; False for what is not the project's own."""
    try:
        words = shlex.split(command.replace("<address of PyTorch's CPU wheel index>", "ADDRESS"))
    except ValueError:  # the rest of a text over several lines
        return False
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    words = list(itertools.takewhile(lambda word: word not in ("|", "&&", ";", ">", "<<", "2>&1"), words))
    if not words:
        return False
    if words[0] == "d2llm" or words[:3] == ["python", "-m", "d2llm.cli"]:
        check_d2llm(words[1:] if words[0] == "d2llm" else words[3:])
    elif words[0] == "snakemake":
        check_snakemake(words[1:])
    elif words[0] == "make":
        check_make(words[1:])
    elif words[:3] == ["python", "-m", "pytest"]:
        check_pytest(words[3:])
    elif words[0] == ".ci/run":
        assert (ROOT / ".ci" / "run").exists()
    else:
        return False
    return True


@pytest.mark.parametrize(("page_name", "command"), sorted(set(commands())))
def test_commands_parse(page_name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        checked(command)
    except SystemExit:
        pytest.fail(f"{page_name}: `{command}`: {capsys.readouterr().err.strip().splitlines()[-1]}")


def test_the_check_of_commands_can_fail() -> None:
    assert len(commands()) > 50
    for wrong in ("d2llm train --config a.yaml", "d2llm no-such --config a.yaml", "snakemake --no-such"):
        with pytest.raises(SystemExit):
            checked(wrong)
    for wrong in ("make no-such", "snakemake no_such_rule", "snakemake --configfile config/no.yaml", "python -m pytest tests/no.py", "d2llm nosuch"):  # fmt: skip
        with pytest.raises(AssertionError):
            checked(wrong)


@pytest.mark.slow
def test_a_target_behind_configfile_ends_in_the_line_that_the_page_explains(fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "scores.csv").write_text("method,value\nbge,1\n")
    done = snakemake(fresh, "--dry-run", "--configfile", "config/tiny.yaml", str(tmp_path / "scores.csv"))
    said = re.search(r"WorkflowError:\n(.*)", done.stdout + done.stderr)
    assert said and f"WorkflowError: {said[1]}" in text(ROOT / "docs" / "troubleshooting.md")
    assert snakemake(fresh, "tables", "--dry-run", "--configfile", "config/tiny.yaml").returncode == 0


@pytest.mark.slow
def test_commands_that_change_settings_plan_what_they_say(fresh: Path) -> None:  # noqa: F811
    """The README's ways to change a setting, as dry runs: on the command line, and by a file laid over a tier's."""
    said = [command for name, command in commands() if name == "README.md" and "-C results=trial training=" in command]
    (fresh / "mine.yaml").write_text(yaml.safe_dump({"tier": "mine", "training": {"steps": 24}}))
    third = next(command for _, command in commands() if "--configfile config/mini.yaml mine.yaml" in command and command.startswith("snakemake"))  # fmt: skip
    for command, folder in ((said[0], "trial/mini"), (third, "results/mine")):
        done = snakemake(fresh, "--dry-run", *shlex.split(command)[3:])
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{folder}/runs/d2llm/base/seed1" in done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------------ error lines
@cache
def templates() -> list[re.Pattern[str]]:
    """Every text of the code that could be part of an error line: f-strings with anything in their places, whole strings."""
    found = []
    for file in [*ROOT.glob("d2llm/**/*.py"), *ROOT.glob("baselines/*.py"), ROOT / "workflow/rules/common.smk"]:
        source = text(file)
        if file.suffix == ".smk":
            strings = re.findall(r'sys\.exit\((f".*")\)', source)
            nodes = [ast.parse(string, mode="eval").body for string in strings]
        else:
            nodes = list(ast.walk(ast.parse(source)))
        for node in nodes:
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values] if isinstance(node, ast.JoinedStr) else [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []  # fmt: skip
            literal = "".join(part for part in parts if part)
            if len(literal.strip()) >= 15:
                found.append(re.compile("".join(".*" if part is None else re.escape(part) for part in parts), re.S))
    return found


def lines() -> list[str]:
    return re.findall(r"^```text\nerror: (.*?)\n```", text(ROOT / "docs" / "troubleshooting.md"), re.S | re.M)


@pytest.mark.parametrize("line", lines())
def test_error_lines_are_the_codes(line: str) -> None:
    assert "\n" not in line and any(template.search(f"error: {line}") for template in templates()), line


def test_the_check_of_error_lines_can_fail() -> None:
    assert len(lines()) > 20
    assert not any(template.search("my.jsonl: no such column as 'x' here; it has a, b") for template in templates())


def test_the_first_lines_are_what_a_wrong_config_gives(tmp_path: Path) -> None:
    from d2llm.config.load import load
    from d2llm.run.errors import ConfigError

    wrong = ["teacher: {lerning_rate: 0.1}", "training: {steps: '400'}", "methods: {sgptt: {}}"]
    for content, line in zip(wrong, lines()[:3], strict=True):
        (tmp_path / "mine.yaml").write_text(content)
        with pytest.raises(ConfigError) as error:
            load([ROOT / "config" / "mini.yaml", tmp_path / "mine.yaml"])
        # "…" stands for more of a list: a method is known as soon as its file is there.
        said = re.escape(line).replace("…", ".*")
        assert re.fullmatch(said, str(error.value).replace(f"{tmp_path}/", "")), line

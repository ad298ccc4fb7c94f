"""README and docs hold: links, files and config keys they name exist, commands parse."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from d2llm.cli import main as cli
from d2llm.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# What a page makes before it uses it, or asks its reader for.
MADE = re.compile(r"mymethod|margin|distance|spread|length\.py|<|\*|\{|…|NAME|FOLDER|^my\.yaml$|^mine\.yaml$")
KEYS = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
SECTIONS = sorted(set(Config.model_fields) - {"results", "tier"})
NAMED = ("methods", "teachers", "others", "variants", "sweeps", "grids")
FILES = ("parquet", "md", "json", "csv", "smk", "py", "yaml")
FOLDERS = "d2llm|tests|config|docs|workflow|baselines|benchmarks|notebooks|profiles|results/reference"


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M)


# -------------------------------------------------------------------------------------------- links, files, config keys
@cache
def anchors(page: Path) -> set[str]:
    """The names a page's headings have on GitHub: lower case, no punctuation, hyphens for blanks."""
    slugs: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("&lt;", "<").replace("&gt;", ">").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        while slug in slugs:
            slug += "-1"
        slugs.add(slug)
    return slugs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if not target.startswith("http"):
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(place), f"{target}: no such heading"
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*[\w/])`", prose(page)):
        assert MADE.search(name) or (ROOT / name).exists(), name
    for key in re.findall(rf"`((?:{'|'.join(SECTIONS)})(?:\.[\w-]+)+)[:`]", prose(page)):
        last = key.rpartition(".")[2]
        # A row of the page of all keys, a heading of it, or a name of the user's own.
        assert f"| `{last}` |" in KEYS or f".{last}\n" in KEYS or key.split(".")[-2] in NAMED or last in FILES, key


def test_map_and_site_have_every_page() -> None:
    """docs/README.md and the navigation of mkdocs.yml, each page once, under the same headings."""
    there = sorted(page.name for page in ROOT.glob("docs/*.md"))
    headings, nav = re.findall(r"^## (.+)$", text(ROOT / "docs" / "README.md"), re.M), text(ROOT / "mkdocs.yml")
    assert sorted(re.findall(r"^ +- (\S+\.md)$", nav, re.M)) == there
    parts = re.split(r"^## .+$", text(ROOT / "docs" / "README.md"), flags=re.M)[1:]
    of_map = [
        (name, page)
        for name, part in zip(headings, parts, strict=True)
        for page in re.findall(r"^\| \[[^]]+\]\((\S+)\)", part, re.M)
    ]
    of_nav, heading = [], ""
    for line in nav.split("nav:\n")[-1].splitlines()[1:]:
        heading = line.strip("- :") if line.endswith(":") else heading
        of_nav += [] if line.endswith(":") else [(heading, line.strip("- "))]
    assert of_map == of_nav


# ------------------------------------------------------------------------------------------------------------- commands
def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell block and every command quoted in a line."""
    listed = []
    for page in PAGES:
        blocks = re.findall(r"^```sh\n(.*?)^```", text(page), re.S | re.M)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`((?:d2llm|python -m|snakemake|make|\.ci/run) [^`\n]+)`", prose(page))
        listed += [(page.name, re.sub(r"(^|\s+)#.*$", "", line).strip()) for line in lines]
    return [(page, command) for page, command in listed if command]


@cache
def rules() -> set[str]:
    """Rules of the workflow."""
    files = [ROOT / "Snakefile", *ROOT.glob("workflow/rules/*.smk")]
    return {name for file in files for name in re.findall(r"^(?:use )?rule (\w+)", text(file), re.M)}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))


def words_of(command: str) -> list[str]:
    """Its words up to a pipe or the like, without what is set for it; ValueError for the rest of a longer text."""
    words = itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(command))
    return list(itertools.takewhile(lambda word: word not in ("|", "&&", "&", ";", ">", "<<", "2>&1"), words))


def is_there(file: str) -> bool:
    return bool(MADE.search(file)) or (ROOT / file).exists()


def check_d2llm(words: list[str]) -> None:
    if len(words) < 2:  # named in a sentence, not called
        choices = {name for action in cli.parser()._actions for name in getattr(action, "choices", None) or ()}
        assert not words or words[0] in choices | {"STAGE", "COMMAND", "X"}, words[0]
        return
    cli.parser().parse_args(words)
    assert all(is_there(word) for word in words if word.startswith("config/")), words


def check_snakemake(words: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    options = get_argument_parser().parse_args(words)
    for given in [*(options.configfile or ()), *(options.profile or ())]:
        assert all(is_there(str(file)) for file in (given if isinstance(given, list) else [given])), given
    for target in options.targets or ():
        assert target in rules() or target.startswith("results/"), target


def checked(command: str) -> bool:
    """Check a command by what it calls; False for what is not the project's own."""
    try:
        words = words_of(command.replace("<address of PyTorch's CPU wheel index>", "ADDRESS"))
    except ValueError:
        return False
    if words[:1] == ["d2llm"] or words[:3] == ["python", "-m", "d2llm.cli"]:
        check_d2llm(words[1:] if words[0] == "d2llm" else words[3:])
    elif words[:1] == ["snakemake"]:
        check_snakemake(words[1:])
    elif words[:1] == ["make"]:
        assert all(word in make_targets() or re.match(r"[A-Z_]+=", word) for word in words[1:]), words
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all(is_there(word.split("::")[0]) for word in words if word.startswith("tests/")), words
    else:
        return words[:1] == [".ci/run"]
    return True


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_commands_parse(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        checked(command)
    except SystemExit:
        pytest.fail(f"{page}: `{command}`: {capsys.readouterr().err.strip().splitlines()[-1]}")


def test_the_check_of_commands_can_fail() -> None:
    for wrong in ("d2llm train --config a.yaml", "d2llm nosuch", "make no-such", "snakemake no_such_rule"):
        with pytest.raises((SystemExit, AssertionError)):
            checked(wrong)


# ---------------------------------------------------------------------------------------------------------- error lines
def test_error_lines_are_the_codes() -> None:
    """Each is a text of the code, with anything in the places of an f-string."""
    lines = re.findall(r"^```text\nerror: (.*?)\n```", text(ROOT / "docs" / "troubleshooting.md"), re.S | re.M)
    sources = [text(file) for file in [*ROOT.glob("d2llm/**/*.py"), *ROOT.glob("baselines/*.py")]]
    sources += re.findall(r'sys\.exit\((f".*")\)', text(ROOT / "workflow/rules/common.smk"))
    patterns = []
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        parts = [getattr(part, "value", None) for part in (node.values if isinstance(node, ast.JoinedStr) else [node])]
        if len("".join(part for part in parts if isinstance(part, str)).strip()) >= 15:
            pattern = "".join(re.escape(part) if isinstance(part, str) else ".*" for part in parts)
            patterns.append(re.compile(pattern, re.S))
    wrong = [line for line in lines if not any(pattern.search(f"error: {line}") for pattern in patterns)]
    assert len(lines) > 20 and not wrong

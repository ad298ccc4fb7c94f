"""What a stranger's config, data or files could do.

No code runs that they bring, no shell reads them, no path leads out, no page believes them.
"""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_up_run import extras, make

from d2llm.config.load import load, loader
from d2llm.reporting.page import report
from d2llm.run.artifacts import read_json, write_frame, write_json
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for part in ("d2llm", "baselines", "benchmarks", "tests") for path in (ROOT / part).rglob("*.py"))
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
COMMON = ROOT / "workflow" / "rules" / "common.smk"

# Loads what it has itself exported a moment before, whose classes are this package's.
OWN_EXPORT = "tests/test_searching.py"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.jit.load"}
CALLS |= {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}


def dangers(text: str) -> list[str]:
    """What in a module's text would run or unpack something of someone else's."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            lines += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            if (
                name in CALLS
                or name.rpartition(".")[2] in {"read_pickle", "to_pickle"}
                or (name == "torch.load" and given.get("weights_only") != "True")
                or (name == "yaml.load" and given.get("Loader") not in ("loader()", "yaml.SafeLoader"))
                or given.get("shell", "False") != "False"
                or given.get("allow_pickle", "False") != "False"
                or given.get("trust_remote_code") == "True"
            ):
                lines.append(f"{node.lineno}: {name}({', '.join(given)})")
    return lines


def test_no_module_runs_or_unpacks_what_others_wrote() -> None:
    lines = {str(file.relative_to(ROOT)): dangers(file.read_text(encoding="utf-8")) for file in SOURCES}
    assert len(lines) > 100
    own = lines.pop(OWN_EXPORT)
    assert own and all("SentenceTransformer(trust_remote_code" in line for line in own)
    assert not {file: wrong for file, wrong in lines.items() if wrong}


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from dill import loads", "eval('1')", "torch.load('x')", "os.system('ls')"),
        *("torch.load('x', weights_only=False)", "yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)"),
        *("subprocess.run('ls', shell=True)", "pd.read_pickle('x')", "np.load('x', allow_pickle=True)"),
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_each_danger_is_seen(text: str) -> None:
    assert dangers(text) and issubclass(loader(), yaml.SafeLoader)


def test_rules_run_no_python_of_their_own_and_quote_what_the_shell_reads() -> None:
    """Every rule's command is made by `command` of common.smk, whose paths are quoted.

    What is not: wildcards and the config's path, whose letters the schema chooses (`test_spoiled_configs`).
    """
    for file in RULES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s+(run|script|notebook|wrapper):", text, re.M), file
        assert not re.search(r"\b(eval|exec|os\.system|os\.popen|shell)\(|shell=True|import pickle", text), file
        shells, values = (
            len(re.findall(words, text)) for words in (r"\n    shell:\n", r"\n    shell:\n        command\(")
        )
        assert shells == values, f"{file.name}: a rule with a command of its own"
    [body] = re.findall(r"^def command\(.*?(?=^def )", COMMON.read_text(encoding="utf-8"), re.M | re.S)
    fields = re.findall(
        r"\{\{([^{}]*)\}\}", body.replace("{name}", "NAME")
    )  # of the command; single braces are Python's
    assert set(fields) == {"wildcards.NAME", "params.config", "log:q", "input:q"}


@pytest.mark.parametrize("path", ["{x}.jsonl", "a}.csv", "-rf.csv", "a\nb.csv", "a\x07.csv", ""])
def test_paths_that_a_command_or_snakemake_would_take_amiss_are_refused(path: str, tmp_path: Path) -> None:
    files = {"train": {"t": {"file": path}}, "tasks": {"s": {"type": "sts", "group": "sts", "test": "x.csv"}}}
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"methods": {"bge": {}}, "data": {"source": "files", "files": files}}))
    with pytest.raises(ConfigError, match=r"data\.files\.train\.t\.file: expected text of"):
        load([mine])


def test_what_is_fetched_stays_below_downloads() -> None:
    """Names of downloads are made of names that others chose."""
    table = {"repo": "../..", "revision": "../../../x", "file": "../../etc/passwd"}
    files = {"train": {"t": {"file": table}}, "tasks": {"s": {"mteb": "STSB", "type": "sts", "group": "sts"}}}
    settings = {"methods": {"bge": {}}, "training": {"dev_every": 0}, "data": {"source": "files", "files": files}}
    models = {name: {"source": f"org/{name}"} for name in ("teacher", "encoder")}
    config = load([], settings | {"models": models})
    paths = Paths.of(config)
    for name in config.data.files.downloads():
        assert re.fullmatch(r"[\w.-]+", name) and name not in (".", "..")
        assert paths.download(name).resolve().parent == paths.downloads.resolve()


# ------------------------------------------------------------------------------------------------------------ the page
HOSTILE = "</script></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}<!--"


class Tags(HTMLParser):
    """The tags of a page in order, with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *sorted(name for name, _ in attrs)))


def page(folder: Path, word: str) -> str:
    """The page of a run whose data say `word` wherever texts of data sets are shown."""
    config = make(folder)
    extras(config)
    paths = Paths.of(config)
    scores = pd.read_parquet(paths.scores)
    scores["task_title"] = scores["task_title"].where(scores["task"] != "nli_b", word)
    scores["phenomenon"] = scores["phenomenon"].where(scores["phenomenon"] == "all", word)
    write_frame(paths.scores, scores)
    scores.to_csv(paths.scores_csv, index=False)
    card = read_json(paths.card_json)
    card["training"][0] |= {"dataset": word, "examples": [{"query": word, "positive": word}]}
    write_json(paths.card_json, card)
    report.run(config)
    return paths.report.read_text(encoding="utf-8")


def test_the_page_believes_no_text_of_a_data_set(tmp_path: Path) -> None:
    meek, hostile = page(tmp_path / "meek", "word"), page(tmp_path / "hostile", HOSTILE)
    assert "alert(1)" in hostile and "49" not in re.findall(r"\d+", hostile.partition("alert(1)")[2][:60])
    assert Tags(meek).tags == Tags(hostile).tags

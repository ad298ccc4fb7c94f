"""Every command of README and docs, run in a clone that holds a finished run: the suite's own for real, Snakemake's as
dry runs, `make`'s as plans.

`test_pipeline` calls it on the run it has made; `test_docs` checks the same commands one by one without running any.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml
from test_docs import checked, commands, rules, words_of
from test_extending import carry_out

ROOT = Path(__file__).resolve().parent.parent
# A form to fill in, not a command.
FORM = re.compile(r"<|…|\b(NAME|FOLDER|FILE|STAGE|COMMAND|REFERENCE RUN)\b|compare A B")
# What is not run here, and where it is or why it cannot be.
ELSEWHERE = {
    ".ci/run": "runs this very test",
    "pip install snakemake-executor-plugin-slurm": "changes the environment",
    "pre-commit install": "changes the clone's git",
    "d2llm plan --config config/mini.yaml --detect 0.02": "needs a run of several seeds; tests/test_statistics.py",
    "d2llm plan --config config/paper.yaml": "reads sizes on the hub; tests/test_plan.py has them",
    "snakemake --profile profiles/slurm --configfile config/paper.yaml": "needs that executor; tests/test_profiles.py",
    "snakemake --report run.html": "tests/test_workflow.py: of a run that counts as made",
    "d2llm why --config results/mini/config.yaml": "needs the clone's git history; tests/test_why.py",
    "d2llm config-docs --to docs/configuration.md": "tests/test_config_docs.py: the page is what it writes",
    "d2llm config-docs --of commands --to docs/commands.md": "likewise",
    "python -m d2llm.cli adopt --config results/mini/config.yaml --to config/mini.yaml": "needs trials that have run",
    "python -m pytest tests/test_mymethod.py": "tests/test_extending.py",
    "python -m pytest tests/test_margin.py": "tests/test_extending.py",
}
# What has to be there before others, in this order; all else follows as it is listed.
FIRST = ("d2llm new-baseline mymethod", "d2llm encode", "d2llm index", "d2llm search")


def to_run() -> list[str]:
    """Every command of the pages, once; forms, what runs elsewhere and parts of longer texts left out."""
    chosen = dict.fromkeys(
        command for _, command in commands() if not FORM.search(command) and command not in ELSEWHERE
    )
    whole = [command for command in chosen if command.count('"') % 2 == 0 and words_of(command)]
    return sorted(whole, key=lambda command: [not command.startswith(start) for start in FIRST])


def prepare(clone: Path, run: Path) -> None:
    """What the pages take for granted: a finished run by the names they use, its reference, files to read, a config."""
    for name in ("trial/mini", "results/one", "results/other"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).symlink_to(run.resolve())
    for name in ("docs", "tools"):
        shutil.copytree(ROOT / name, clone / name, dirs_exist_ok=True)
    for name in ("Makefile", "pyproject.toml", *(file.name for file in ROOT.glob("requirements*.lock"))):
        shutil.copy(ROOT / name, clone / name)
    (clone / "tests").mkdir(exist_ok=True)
    # In the language of the run's models. More queries than a test of reading needs: the teacher's development groups
    # are a twentieth of them.
    texts = pd.read_parquet(run / "data/pretraining.parquet")
    rows = []
    for text in texts.itertuples():
        rows += [(text.text, text.paraphrase, "yes"), (text.text, text.distractor, "no")]
    for split, part in (("train", rows[80:]), ("dev", rows[:40]), ("test", rows[40:80])):
        lines = (json.dumps(dict(zip(("sentence1", "sentence2", "label"), row, strict=True))) + "\n" for row in part)
        (clone / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    for name, base in (("model", "decoder"), ("encoder", "encoder")):
        shutil.copytree(run / "models" / base, clone / name)
    (clone / "mine.yaml").write_text(yaml.safe_dump({"training": {"steps": 24}}), encoding="utf-8")
    (clone / "queries.txt").write_text("谁修好了机器？\n", encoding="utf-8")
    corpus = '{"text": "工人修好了机器。"}\n{"text": "老师没有修好机器。"}\n' * 3
    (clone / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    keep = ["keep", "--config", "results/mini/config.yaml", "--to", "results/reference/mini"]
    call(clone, [sys.executable, "-m", "d2llm.cli", *keep])


def call(clone: Path, command: list[str], given: str = "") -> str:
    """What a command says; AssertionError where it fails."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(clone), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=clone, env=environment, input=given, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def real(command: str) -> list[str] | None:
    """The command as it is run here; None for one that only names what test_docs knows: a subcommand, rules."""
    tool, *words = words_of(command.replace("python -m d2llm.cli", "d2llm"))
    if tool == "snakemake":
        # With one core and as a dry run, whatever is said of either: what is asked for twice is then planned once.
        words = shlex.split(re.sub(r"--(cores \S+|dry-run)", "", shlex.join(words)))
        planned = [sys.executable, "-m", tool, *words, "--dry-run", "--cores", "1"]
        return None if set(words) <= rules() else planned
    if tool == "make":
        return ["make", "--dry-run", *words]
    return ["d2llm", *words] if len(words) > 1 or words == ["doctor"] else None


# A line of standard input a command; one process, which imports torch once.
EACH = """
import json, sys
from d2llm.cli.main import main
for line in sys.stdin:
    assert main(json.loads(line)) == 0, line
"""


def run_all(clone: Path, run: Path) -> None:
    """Run them all. `run` is the folder of a finished run of the tiny settings, results/mini of the clone."""
    gone = set(ELSEWHERE) - {command for _, command in commands()}
    assert not gone, f"no page has them any more: {gone}"
    prepare(clone, run)
    chosen = to_run()
    assert all(map(checked, chosen)), "neither run nor listed with a reason"
    first, *others = dict.fromkeys(tuple(words) for command in chosen if (words := real(command)))
    assert first[:2] == ("d2llm", "new-baseline")
    call(clone, [sys.executable, "-m", "d2llm.cli", *first[1:]])
    carry_out(clone)
    ours = "".join(json.dumps(words) + "\n" for tool, *words in others if tool == "d2llm")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(call, clone, [sys.executable, "-c", EACH], ours)]
        waiting += [pool.submit(call, clone, list(words)) for words in others if words[0] != "d2llm"]
        for one in waiting:
            one.result()

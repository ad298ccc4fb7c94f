"""The workflow schedules what is stale and nothing else. Dry runs on copies of the repository; no stage is run.

A finished run is imitated by empty outputs that `snakemake --touch` records as made by the present code and settings.
Which module or key makes which job stale is `test_staleness`'s; here it is that Snakemake sees it, and what follows.
"""

import fcntl
import html
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from d2llm.config.catalogue import entries
from d2llm.config.load import load
from d2llm.reporting import captions
from d2llm.reporting.context import context
from d2llm.run.stages import STAGES

ROOT = Path(__file__).parent.parent
MINI = ROOT / "config" / "mini.yaml"
PARTS = ("Snakefile", "workflow", "config", "profiles", "d2llm", "baselines", "notebooks", "environment.yml")
TABLES, FIGURES = entries("table"), entries("figure")
ALL_FIGURES, ALL_TABLES = ["figure"] * len(FIGURES), ["table"] * len(TABLES)
# Made of collected scores.
SCORED = [name for name, figure in FIGURES.items() if set(figure.reads) - {"runtime"}]
RENDERED = ["comparison", "ablations", "examples", *ALL_TABLES, *["figure"] * len(SCORED), "report", "notebook"]
# Made of the settings alone.
DRAWN = ["figure"] * sum(not figure.reads for figure in FIGURES.values())
# Made again where a model is another.
MEASURED = ["runtime", *["figure"] * sum(figure.reads == ("runtime",) for figure in FIGURES.values())]
# What is no more than it is called, for Snakemake's own report to show.
EMPTY = {".svg": '<svg xmlns="http://www.w3.org/2000/svg"/>', ".html": "<!DOCTYPE html><title>.</title>"}
BASELINES = ("bge", "retromae", "llara", "sgpt", "udever")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a copy of the repository."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def dry_run(folder: Path, *arguments: str) -> str:
    """What Snakemake says of the jobs that it would start."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def counted(text: str) -> Counter[str]:
    """The jobs of a dry run, as `rule` or `rule(method)`."""
    jobs: Counter[str] = Counter()
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", text)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)[1]
        method = re.search(r"wildcards: .*?method=(\w+)", block)
        jobs[f"{rule}({method[1]})" if method else rule] += 1
    return jobs


def scheduled(folder: Path, *arguments: str) -> Counter[str]:
    """The same of a folder."""
    return counted(dry_run(folder, *arguments))


def refused(folder: Path, *arguments: str) -> str:
    """The one line with which Snakemake gives up before any job."""
    done = snakemake(folder, *arguments)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "Job stats" not in text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which nothing was run. Not to be changed."""
    folder = tmp_path_factory.mktemp("fresh") / "repository"
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part)  # with what Python has compiled
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy2(source, folder / part)
    return folder


@pytest.fixture(scope="module")
def finished(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which everything counts as made. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "repository"
    shutil.copytree(fresh, folder)
    summary = snakemake(folder, "--summary").stdout.splitlines()
    outputs = [line.split("\t")[0] for line in summary if line.startswith("results/")]
    for output in outputs:
        path = folder / output
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(EMPTY.get(path.suffix, ""))
        else:
            path.mkdir(parents=True, exist_ok=True)
    done = snakemake(folder, "--touch", "--forceall")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "repository"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


# ------------------------------------------------------------------------------------------------ the text of the rules
def test_each_stage_is_a_rule_of_its_name() -> None:
    """And takes of its declaration all that `common.smk` derives; heirs differ in wildcards and priority alone."""
    rules, heirs = {}, {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"\n(?=rule |use rule )", file.read_text(encoding="utf-8"))[1:]:
            if match := re.match(r"rule (\w+):", block):
                rules[match[1]] = block
            elif match := re.match(r"use rule (\w+) as (\w+) with:", block):
                heirs[match[2]] = (match[1], block)
    assert set(rules) == set(STAGES)
    for name, block in rules.items():
        written = rf'\*shown\("{name}",' if name in ("table", "figure") else rf'writes\("{name}"\)'
        for part in (rf'input:\n        reads\("{name}"\)', written, rf'params:\n        \*\*job\("{name}"\)'):
            assert re.search(part, block), f"{name}: {part}"
        for part in ("log_of", "resources", "command"):
            assert re.findall(rf'\b{part}\("(\w+)"\)', block) == [name], f"{name}: {part}"
    for name, (parent, block) in heirs.items():
        assert parent in rules and name.startswith(f"{parent}_")
        assert set(re.findall(r"^    (\w+):", block, re.M)) == {"wildcard_constraints", "priority"}, name


# ------------------------------------------------------------------------------------------------ where nothing was run
@pytest.mark.slow
def test_everything_is_scheduled_at_first(fresh: Path) -> None:
    text = dry_run(fresh)
    expected = Counter(
        ["texts", "data", "base", "base_teacher", "base_encoder", "negatives", "teacher", "teacher_scores"]
        # The method, twelve points of sweeps (three more are it itself), and the one variant that is none of them.
        + ["train(d2llm)", "evaluate(d2llm)"] * (1 + 12 + 1)
        + [f"pretext({name})" for name in ("bge", "retromae", "llara")]
        + [f"train_{name}({name})" for name in BASELINES]
        + [f"evaluate({name})" for name in (*BASELINES, "bm25")]
        + ["evaluate_teacher(teacher)", "collect", *RENDERED, *DRAWN, *MEASURED, "all"]
    )
    assert counted(text) == expected
    # Run times are measured with nothing beside: that job asks for every core, and computes with the config's threads.
    jobs = re.findall(r"^rule (\w+):\n((?:    .*\n)+)", text, re.M)
    assert len(jobs) > 20 and {rule for rule, lines in jobs if "    threads: 2\n" in lines} == {"runtime"}
    assert not (fresh / "results").exists()


@pytest.mark.slow
def test_baselines_and_bm25_do_not_wait_for_the_teacher(fresh: Path) -> None:
    trained = [f"results/mini/runs/{name}/base/seed1/summary.json" for name in BASELINES]
    jobs = scheduled(fresh, *trained, "results/mini/evaluations/bm25/base/seed1/scores.parquet")
    assert "evaluate(bm25)" in jobs and not {"teacher", "teacher_scores", "base_teacher"} & set(jobs)


@pytest.mark.slow
def test_wrong_config_is_refused_before_any_job(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("teacher: {lerning_rate: 0.1}")
    line = refused(fresh, "--configfile", str(tmp_path / "mine.yaml"))
    assert line.endswith("teacher.lerning_rate: unknown key (found 0.1); nearest valid key: teacher.learning_rate")
    assert "mine.yaml" in line


@pytest.mark.slow
def test_a_file_with_a_tier_stands_alone(fresh: Path, tmp_path: Path) -> None:
    """One without is laid over mini, as in the tests of a finished run."""
    (tmp_path / "mine.yaml").write_text("tier: own\nmethods: {bge: {}}\nreferences: [bm25]")
    jobs = scheduled(fresh, "--configfile", str(tmp_path / "mine.yaml"))
    own = {"train_bge(bge)", "evaluate(bge)", "evaluate(bm25)"}
    assert {job for job in jobs if job.startswith(("train", "evaluate"))} == own


@pytest.mark.slow
def test_a_misspelt_figure_is_refused_before_anything_runs(fresh: Path) -> None:
    """By Snakemake itself: no rule makes it. A job that finds out would come after hours."""
    done = snakemake(fresh, "--dry-run", "results/mini/figures/leeds.svg")
    assert done.returncode == 1 and "MissingRuleException" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_that_the_system_kills_is_told_in_a_line(fresh: Path, tmp_path: Path) -> None:
    """It cannot say anything itself."""
    clone = Path(shutil.copytree(fresh, tmp_path / "repository"))
    (clone / "d2llm" / "cli" / "__main__.py").write_text("import os\nos.kill(os.getpid(), 9)\n", encoding="utf-8")
    done = snakemake(clone, "results/mini/data/pretraining.parquet")
    message = "error: a job was killed (SIGKILL), as happens when memory runs out; run fewer at once"
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.slow
def test_a_method_without_a_stanza_is_refused(fresh: Path, tmp_path: Path) -> None:
    """With one it is planned (`test_new_baseline`)."""
    clone = Path(shutil.copytree(fresh, tmp_path / "repository"))
    text = (clone / "baselines" / "sgpt.py").read_text(encoding="utf-8")
    (clone / "baselines" / "toy.py").write_text(text.replace('name = "sgpt"', 'name = "toy"'), encoding="utf-8")
    edit(clone / "config" / "mini.yaml", "\nmethods:\n", "\nmethods:\n  toy: {}\n")
    assert refused(clone) == "error: method 'toy' has no rule train_toy; add its stanza to workflow/rules/baselines.smk"


# ---------------------------------------------------------------------------------------------------- of a finished run
@pytest.mark.slow
def test_what_changes_no_number_reruns_nothing(copy: Path) -> None:
    """Comments; times, where contents are the same; versions as they are pinned, not installed."""
    for file in ("d2llm/methods/losses.py", "d2llm/run/jobs.py", "baselines/bge.py"):
        append(copy / file, "\n# a comment\n")
    append(copy / "d2llm/config/schema.py", "\nNEW = 1\n")
    for name in ("data/train.parquet", "pairs/pairs.parquet", "scores.parquet", "comparisons.csv"):
        (copy / "results" / "mini" / name).touch()
    (copy / "requirements.lock").write_text("torch==0\n")
    (copy / "environment.yml").write_text("name: other\n")
    assert not scheduled(copy)


@pytest.mark.slow
def test_an_edited_baseline_reruns_itself_alone(copy: Path) -> None:
    append(copy / "baselines" / "bge.py", "\nNEW = 1\n")
    again = ["pretext(bge)", "train_bge(bge)", "evaluate(bge)", "collect", *RENDERED, *MEASURED, "all"]
    assert scheduled(copy) == Counter(again)


@pytest.mark.slow
def test_another_version_of_a_package_reruns_what_computes_with_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of that name on the path is the one that is installed."""
    about = copy / "site" / "matplotlib-9.9.9.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: matplotlib\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(copy / "site"), prepend=os.pathsep)
    assert set(scheduled(copy)) == {"figure", "report", "all"}


@pytest.mark.slow
def test_a_changed_setting_reruns_what_reads_it_and_a_variant_adds_its_run(copy: Path) -> None:
    text = "methods: {sgpt: {learning_rate: 0.5}}\nvariants: {hot: {method: bge, settings: {temperature: 1}}}"
    (copy / "mine.yaml").write_text(text)
    own = [f"{job}({name})" for name in ("sgpt", "bge") for job in (f"train_{name}", "evaluate")]
    wanted = Counter([*own, "collect", *RENDERED, *DRAWN, *MEASURED, "all"])
    assert scheduled(copy, "--configfile", "mine.yaml") == wanted


@pytest.mark.slow
def test_a_missing_artifact_is_made_again_when_it_is_needed(copy: Path) -> None:
    shutil.rmtree(copy / "results/mini/runs/bge/base/seed1/model")
    (copy / "results/mini/evaluations/bge/base/seed1/scores.parquet").unlink()
    assert not scheduled(copy)  # they were collected
    (copy / "results/mini/scores.parquet").unlink()
    jobs = scheduled(copy)
    assert {"train_bge(bge)", "evaluate(bge)", "collect"} <= set(jobs)
    assert not {"train_sgpt(sgpt)", "data"} & set(jobs)


@pytest.mark.slow
def test_what_is_rendered_needs_the_collected_scores_alone(copy: Path) -> None:
    results = copy / "results" / "mini"
    for name in ("models", "pairs", "teacher", "runs", "evaluations", "tables", "figures"):
        shutil.rmtree(results / name)
    # Of the data its card alone, which Table 5 shows.
    for path in [*(results / "data").iterdir(), results / "report.html", results / "results.ipynb"]:
        if path.name != "card.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    targets = ("tables", "figures", "report", "notebook")
    assert scheduled(copy, *targets) == Counter([*ALL_TABLES, *ALL_FIGURES, *targets])


@pytest.mark.slow
def test_what_pages_and_figures_are_made_with_renders_them_alone(copy: Path) -> None:
    append(copy / "d2llm/reporting/page/templates/report.css", "p { color: black }\n")
    edit(copy / "notebooks" / "results.ipynb", "Results of a run", "Results of one run")
    assert scheduled(copy) == Counter(["report", "notebook", "all"])
    append(copy / "d2llm/reporting/drawing/suite.mplstyle", "axes.labelpad: 3\n")
    assert scheduled(copy) == Counter([*ALL_FIGURES, "report", "notebook", "all"])


@pytest.mark.slow
def test_a_tuning_record_is_shown_but_never_brought_up_to_date(copy: Path) -> None:
    trials = copy / "results" / "mini" / "tuning" / "trials.csv"
    trials.parent.mkdir(exist_ok=True)
    trials.write_text("method,setting\n")
    assert scheduled(copy) == Counter(["report", "all"])


@pytest.mark.slow
def test_snakemakes_own_report_has_captions(copy: Path) -> None:
    done = snakemake(copy, "--report", "out.html")
    assert done.returncode == 0, done.stdout + done.stderr
    text = html.unescape((copy / "out.html").read_text(encoding="utf-8"))
    about = context(load([MINI]))
    shown = [captions.caption(kind, name, about) for kind in ("table", "figure") for name in entries(kind)]
    for caption in (*shown, captions.REPORT):
        assert re.split("[:'…]", caption.text)[0] in text, caption.title
        assert caption.title.split("'")[0] in text or caption is captions.REPORT
    assert "mailto:" not in text
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"?https?:", text)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "results" / "mini" / "tables")
    with (copy / "results" / "mini" / ".running").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = snakemake(copy)
    message = "error: another run is working in results/mini; wait for it, or choose another: -C results=FOLDER"
    assert done.returncode != 0 and message in (done.stdout + done.stderr).splitlines()
    assert not (copy / "results" / "mini" / "tables").exists()

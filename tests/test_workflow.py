"""The workflow schedules what is stale and nothing else. Dry runs on copies of the repository; no stage is run.

A finished run is imitated by empty outputs that `snakemake --touch` records as made by the present code and settings.
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
from d2llm.reporting.catalogue import FIGURES

from d2llm.reporting import captions, catalogue
from d2llm.reporting.layout.tables import TABLES

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "workflow", "config", "profiles", "d2llm", "baselines", "notebooks", "environment.yml")
# Made of collected scores.
SCORED = [name for name, files in catalogue.FIGURES.items() if set(files) - {"runtime"}]
RENDERED = [
    "comparison",
    "ablations",
    "examples",
    *["table"] * len(TABLES),
    *["figure"] * len(SCORED),
    "html_report",
    "executed_notebook",
]
# Made of the settings alone.
DRAWN = ["figure"] * sum(not files for files in catalogue.FIGURES.values())
# Made again where a model is another.
MEASURED = ["runtime", *["figure"] * sum(files == ("runtime",) for files in catalogue.FIGURES.values())]
BASELINES = ("bge", "retromae", "llara", "sgpt", "udever")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a copy of the repository."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def scheduled(folder: Path, *arguments: str) -> Counter[str]:
    """Jobs a dry run would start, as `rule` or `rule(method)`."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    jobs: Counter[str] = Counter()
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", text)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)[1]
        method = re.search(r"wildcards: .*?method=(\w+)", block)
        jobs[f"{rule}({method[1]})" if method else rule] += 1
    return jobs


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
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
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
            path.touch()
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


def test_the_catalogue_names_what_there_is() -> None:
    assert set(catalogue.TABLES) == set(TABLES)
    modules = {path.stem.removeprefix("figure_") for path in (ROOT / "d2llm" / "reporting").glob("figure_*.py")}
    assert set(catalogue.FIGURES) == modules


def test_everything_is_scheduled_at_first(fresh: Path) -> None:
    expected = Counter(
        ["texts", "data", "base", "base_teacher", "base_encoder", "negatives", "teacher", "teacher_scores"]
        # The method, twelve points of sweeps (three more are the method itself), and the one variant that is none of them.
        + ["train(d2llm)", "evaluate(d2llm)"] * (1 + 12 + 1)
        + [f"pretext({name})" for name in ("bge", "retromae", "llara")]
        + [f"train_{name}({name})" for name in BASELINES]
        + [f"evaluate({name})" for name in (*BASELINES, "bm25")]
        + ["evaluate_teacher(teacher)", "collect", *RENDERED, *DRAWN, *MEASURED, "all"]
    )
    assert scheduled(fresh) == expected


def test_baselines_do_not_wait_for_the_teacher(fresh: Path) -> None:
    baselines = [f"results/mini/runs/{name}/base/seed1/summary.json" for name in BASELINES]
    assert not {"teacher", "teacher_scores", "base_teacher"} & set(scheduled(fresh, *baselines))
    assert "teacher_scores" in scheduled(fresh, "results/mini/runs/d2llm/base/seed1/summary.json")
    assert scheduled(fresh, "results/mini/evaluations/bm25/base/seed1/scores.parquet") == Counter(
        ["texts", "data", "evaluate(bm25)"]
    )


def test_a_dry_run_leaves_no_results(fresh: Path) -> None:
    scheduled(fresh)
    assert not (fresh / "results").exists()


def test_every_table_has_a_target(fresh: Path) -> None:
    assert scheduled(fresh, *(f"results/mini/tables/{name}.md" for name in TABLES))["table"] == len(TABLES)
    assert scheduled(fresh, "tables")["table"] == len(TABLES)


def test_wrong_config_is_refused_before_any_job(fresh: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("teacher: {lerning_rate: 0.1}")
    line = refused(fresh, "--configfile", str(mine))
    assert line.endswith("teacher.lerning_rate: unknown key (found 0.1); nearest valid key: teacher.learning_rate")
    assert "mine.yaml" in line
    line = refused(fresh, "--config", "threads=many")
    assert line == "error: command line: threads: expected a valid integer; found 'many' (text)"
    mine.write_text("methods: {bgee: {}}")
    assert "methods.bgee: unknown method 'bgee'" in refused(fresh, "--configfile", str(mine))


@pytest.mark.slow
def test_a_file_with_a_tier_stands_alone_and_one_without_is_laid_over_mini(fresh: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("tier: own\nmethods: {bge: {}}\nreferences: [bm25]")
    jobs = scheduled(fresh, "--configfile", str(mine))
    assert {job for job in jobs if job.startswith(("train", "evaluate"))} == {
        "train_bge(bge)",
        "evaluate(bge)",
        "evaluate(bm25)",
    }
    mine.write_text("seeds: [1, 2]")
    assert scheduled(fresh, "--configfile", str(mine))["train_bge(bge)"] == 2


@pytest.mark.slow
def test_a_second_call_has_nothing_to_do(finished: Path) -> None:
    done = snakemake(finished)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_comment_or_docstring_reruns_nothing(copy: Path) -> None:
    for file in (
        "d2llm/methods/d2llm/losses.py",
        "d2llm/methods/base.py",
        "baselines/bge.py",
        "d2llm/config/schema.py",
        "d2llm/models/pooling.py",
    ):
        path = copy / file
        path.write_text(path.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    assert not scheduled(copy)


@pytest.mark.slow
def test_an_edited_baseline_reruns_itself_alone(copy: Path) -> None:
    path = copy / "baselines" / "bge.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nNEW = 1\n", encoding="utf-8")
    again = ["pretext(bge)", "train_bge(bge)", "evaluate(bge)", "collect", *RENDERED, *MEASURED, "all"]
    assert scheduled(copy) == Counter(again)


@pytest.mark.slow
def test_an_edited_loss_of_d2llm_reruns_its_own_trainings_alone(copy: Path) -> None:
    edit(copy / "d2llm" / "losses.py", "return unit @ unit", "return 1.0 * unit @ unit")
    jobs = scheduled(copy)
    assert jobs == Counter(["train(d2llm)", "evaluate(d2llm)"] * 14 + ["collect", *RENDERED, *MEASURED, "all"])


@pytest.mark.slow
def test_what_is_touched_or_pinned_otherwise_reruns_nothing(copy: Path) -> None:
    """Snakemake compares contents where times differ, and versions as they are installed."""
    for name in ("data/train.parquet", "pairs/pairs.parquet", "scores.parquet", "comparisons.csv"):
        (copy / "results" / "mini" / name).touch()
    (copy / "requirements.lock").write_text("torch==0\n")
    (copy / "environment.yml").write_text("name: other\n")
    assert not scheduled(copy)


@pytest.mark.slow
def test_another_version_of_a_package_reruns_what_computes_with_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of that name on the path is the one that is installed; which jobs a package is behind, `test_staleness` tells."""
    about = copy / "site" / "matplotlib-9.9.9.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: matplotlib\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(copy / "site"), prepend=os.pathsep)
    assert set(scheduled(copy)) == {"figure", "html_report", "all"}


@pytest.mark.slow
def test_a_changed_setting_reruns_what_reads_it(copy: Path) -> None:
    def changed(text: str) -> set[str]:
        (copy / "mine.yaml").write_text(text)
        return set(scheduled(copy, "--configfile", "mine.yaml"))

    end = {"collect", *RENDERED, "all"}
    # Only times depend on it.
    timed = {"runtime", "figure", "html_report", "all"}
    assert changed("threads: 2") == changed("runtime: {repeats: 7}") == timed
    assert changed("methods: {sgpt: {learning_rate: 0.5}}") == {"train_sgpt(sgpt)", "evaluate(sgpt)", "runtime"} | end
    everything = {f"evaluate({name})" for name in ("d2llm", *BASELINES, "bm25")} | {"evaluate_teacher(teacher)"}
    assert changed("evaluation: {keep: 50}") == everything | end


@pytest.mark.slow
def test_a_variant_or_a_seed_adds_its_own_run(copy: Path) -> None:
    (copy / "mine.yaml").write_text("variants: {hot: {method: bge, settings: {temperature: 1}}}")
    expected = Counter(["train_bge(bge)", "evaluate(bge)", "collect", *RENDERED, "all"])
    assert scheduled(copy, "--configfile", "mine.yaml") == expected


@pytest.mark.slow
def test_a_missing_artifact_is_made_again_when_it_is_needed(copy: Path) -> None:
    shutil.rmtree(copy / "results/mini/runs/bge/base/seed1/model")
    assert not scheduled(copy)  # its scores are there
    (copy / "results/mini/evaluations/bge/base/seed1/scores.parquet").unlink()
    assert not scheduled(copy)  # they were collected
    (copy / "results/mini/scores.parquet").unlink()
    jobs = scheduled(copy)
    assert {"train_bge(bge)", "evaluate(bge)", "collect"} <= set(jobs)
    assert not {"train_sgpt(sgpt)", "data"} & set(jobs)


@pytest.mark.slow
def test_a_seventh_method_is_one_file_one_stanza_one_line(copy: Path) -> None:
    (copy / "baselines" / "toy.py").write_text(
        '"""A toy: SGPT under another name."""\n\n'
        "from baselines.sgpt import SGPT\n\n\n"
        'class Toy(SGPT):\n    name = "toy"\n    title = "Toy"\n\n\nMETHOD = Toy()\n'
    )
    with (copy / "workflow" / "rules" / "baselines.smk").open("a") as stanzas:
        stanzas.write('\n\nuse rule train as train_toy with:\n    wildcard_constraints:\n        method="toy",\n')
    edit(copy / "config" / "mini.yaml", "\nmethods:\n", "\nmethods:\n  toy: {}\n")
    assert scheduled(copy) == Counter(
        ["train_toy(toy)", "evaluate(toy)", "collect", *RENDERED, *DRAWN, *MEASURED, "all"]
    )


@pytest.mark.slow
def test_a_method_without_a_rule_is_refused(copy: Path) -> None:
    shutil.copy(copy / "baselines" / "bge.py", copy / "baselines" / "toy.py")
    edit(copy / "baselines" / "toy.py", 'name = "bge"', 'name = "toy"')
    edit(copy / "config" / "mini.yaml", "\nmethods:\n", "\nmethods:\n  toy: {}\n")
    line = "error: method 'toy' has no rule train_toy; add its stanza to workflow/rules/baselines.smk"
    assert refused(copy) == line


@pytest.mark.slow
def test_tables_need_the_collected_scores_alone(copy: Path) -> None:
    for name in ("models", "pairs", "teacher", "runs", "evaluations", "tables", "figures"):
        shutil.rmtree(copy / "results" / "mini" / name)
    # Of the data its card alone, which Table 5 shows.
    for path in (copy / "results" / "mini" / "data").iterdir():
        if path.name != "card.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert scheduled(copy, "tables") == Counter(["table"] * len(TABLES) + ["tables"])
    assert scheduled(copy, "figures") == Counter(["figure"] * len(FIGURES) + ["figures"])
    for page in ("report.html", "results.ipynb"):
        (copy / "results" / "mini" / page).unlink()
    expected = Counter([*["table"] * len(TABLES), *["figure"] * len(FIGURES), "html_report", "report"])
    assert scheduled(copy, "report") == expected
    assert scheduled(copy, "notebook") == Counter(["executed_notebook", "notebook"])


@pytest.mark.slow
def test_an_edited_template_or_notebook_renders_its_own_page_again(copy: Path) -> None:
    with (copy / "d2llm" / "reporting" / "templates" / "report.css").open("a") as sheet:
        sheet.write("p { color: black }\n")
    assert scheduled(copy) == Counter(["html_report", "all"])
    edit(copy / "notebooks" / "results.ipynb", "Results of a run", "Results of one run")
    assert scheduled(copy) == Counter(["html_report", "executed_notebook", "all"])


@pytest.mark.slow
def test_what_the_page_tells_is_among_its_inputs(finished: Path) -> None:
    done = snakemake(finished, "--dry-run", "--forcerun", "html_report")
    [named] = re.findall(r"rule html_report:\n    input: (.*)", done.stdout + done.stderr)
    inputs = {name.strip().removeprefix("results/mini/") for name in named.split(",")}
    collected = {"about.json", "runs.csv", "scores.csv", "comparisons.csv", "examples.json"}
    records = {
        f"{name}.provenance.json" for name in ("runtime.csv", "ablations.csv", "tables/nli.csv", "figures/main.svg")
    }
    assert collected | records <= inputs
    # And nothing that would need a model, or what models are made of.
    assert not [name for name in inputs if re.match("(models|runs|data|teacher|pairs|evaluations)/", name)]


@pytest.mark.slow
def test_a_tuning_record_is_shown_but_never_brought_up_to_date(copy: Path) -> None:
    trials = copy / "results" / "mini" / "tuning" / "trials.csv"
    trials.parent.mkdir(exist_ok=True)
    trials.write_text("method,setting\n")
    assert scheduled(copy) == Counter(["html_report", "all"])


@pytest.mark.slow
def test_a_misspelt_figure_or_table_is_refused_before_anything_runs(copy: Path) -> None:
    """By Snakemake itself: no rule makes it. A job that finds out would come after hours."""
    for file in ("figures/leeds.svg", "tables/nil.csv"):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", f"results/mini/{file}"],
            cwd=copy, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 1 and "MissingRuleException" in said and file in said, said


@pytest.mark.slow
def test_a_job_that_the_system_kills_is_told_in_a_line(fresh: Path, tmp_path: Path) -> None:
    """It cannot say anything itself; one that fails in another way has said what it is, and nothing is added."""
    copied = Path(shutil.copytree(fresh, tmp_path / "repository"))
    file = "results/mini/data/pretraining.parquet"
    for last, told in (("os.kill(os.getpid(), 9)", True), ("os._exit(1)", False)):
        (copied / "d2llm" / "cli.py").write_text(f"import os\n{last}\n", encoding="utf-8")
        done = snakemake(copied, file)
        assert done.returncode == 1
        assert ("error: a job was killed (SIGKILL), as happens when memory runs out; run fewer at once" in done.stderr) == told  # fmt: skip


@pytest.mark.slow
def test_snakemakes_own_report_has_captions(copy: Path) -> None:
    for figure in FIGURES:
        (copy / f"results/mini/figures/{figure}.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    for table in TABLES:
        (copy / f"results/mini/tables/{table}.html").write_text("<table></table>")
    (copy / "results/mini/report.html").write_text("<!DOCTYPE html><title>.</title>")
    assert snakemake(copy, "--touch", "--forceall").returncode == 0
    done = snakemake(copy, "--report", "out.html")
    assert done.returncode == 0, done.stdout + done.stderr
    text = html.unescape((copy / "out.html").read_text(encoding="utf-8"))
    said = [captions.caption("table", name, "D2LLM") for name in TABLES]
    said += [*(captions.caption("figure", name, "D2LLM") for name in FIGURES), captions.REPORT]
    for caption in said:
        assert re.split("[:'…]", caption.text)[0] in text, caption.title
        assert caption.title.split("'")[0] in text or caption is captions.REPORT
    assert "mailto:" not in text
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"?https?:", text)


@pytest.mark.slow
def test_a_restyled_figure_renders_itself_alone(copy: Path) -> None:
    edit(copy / "d2llm" / "reporting" / "figure_leads.py", "markersize=4", "markersize=5")
    assert scheduled(copy, "figures") == Counter(["figure", "figures"])
    assert not scheduled(copy, "results/mini/figures/main.svg")
    with (copy / "d2llm" / "reporting" / "suite.mplstyle").open("a") as sheet:
        sheet.write("axes.labelpad: 3\n")
    assert scheduled(copy, "figures") == Counter(["figure"] * len(FIGURES) + ["figures"])
    assert "table" not in scheduled(copy)


def test_run_times_are_measured_with_nothing_beside(fresh: Path) -> None:
    """The job asks for every core Snakemake has, while it computes with the config's threads."""
    done = snakemake(fresh, "--dry-run")
    jobs = re.findall(r"^rule (\w+):\n((?:    .*\n)+)", done.stdout + done.stderr, re.M)
    assert len(jobs) > 20
    assert {rule for rule, told in jobs if "    threads: 2\n" in told} == {"runtime"}


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "results" / "mini" / "tables")
    with (copy / "results" / "mini" / ".running").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = snakemake(copy)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: another run is working in results/mini; wait for it, or choose another: -C results=FOLDER"
    ]
    assert not (copy / "results" / "mini" / "tables").exists()


@pytest.mark.slow
def test_workflow_is_linted(fresh: Path) -> None:
    done = snakemake(fresh, "--lint")
    assert done.returncode == 0, done.stdout + done.stderr

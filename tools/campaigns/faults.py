"""Faults of files, disk, memory and hub on a finished tiny run, by hand: `python tools/campaigns/faults.py FOLDER
[WORD]`.

Every kind of artifact is truncated and has one bit flipped; the job that reads it is then asked for. Disk, memory and
hub are made to fail. Of each it is told whether the fault is named in one line, whether finished work is kept, and
whether doing what the line says and calling `snakemake` again ends with the scores of the undisturbed run. Prints a
Markdown table; WORD, a regular expression, picks cases by name. Needs `unshare` and mounts for the disk's faults.
"""

from __future__ import annotations

from clone import ROOT, copy_repository  # isort: split

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hub
import hub_sets
import psutil
import yaml
from tiny_run import tiny_settings

RUN = "results/tiny"
# (artifact, what reads it and is asked for again)
ARTIFACTS = [
    ("data/train.parquet", "pairs/pairs.parquet"),
    ("data/pool.parquet", "pairs/pairs.parquet"),
    ("data/pretraining.parquet", "data/train.parquet"),
    ("data/teacher_train.parquet", "teacher/provenance.json"),
    ("data/teacher_dev.parquet", "teacher/provenance.json"),
    ("data/card.json", "scores.csv"),
    ("data/leaks.json", "scores.csv"),
    ("pairs/report.json", "scores.csv"),
    ("teacher/report.json", "scores.csv"),
    ("data/tasks/ir_claim/test/corpus.parquet", "evaluations/bm25/base/seed1/scores.parquet"),
    ("data/tasks/sts_graded/task.json", "evaluations/bm25/base/seed1/scores.parquet"),
    ("models/encoder/model.safetensors", "pairs/pairs.parquet"),
    ("models/encoder/tokenizer.json", "pairs/pairs.parquet"),
    ("models/encoder/provenance.json", "pairs/pairs.parquet"),
    ("models/pretext/bge/base/model.safetensors", "runs/bge/base/seed1/summary.json"),
    ("models/pretext/bge/base/summary.json", "runs/bge/base/seed1/summary.json"),
    ("pairs/pairs.parquet", "teacher/scores/0-of-1.parquet"),
    ("teacher/model/model.safetensors", "teacher/scores/0-of-1.parquet"),
    ("teacher/scores/0-of-1.parquet", "runs/d2llm/base/seed1/summary.json"),
    ("runs/d2llm/base/seed1/model/student.safetensors", "evaluations/d2llm/base/seed1/scores.parquet"),
    ("runs/d2llm/base/seed1/model/student.json", "evaluations/d2llm/base/seed1/scores.parquet"),
    ("runs/d2llm/base/seed1/log.jsonl", "scores.csv"),
    ("runs/d2llm/base/seed1/summary.json", "scores.csv"),
    ("runs/d2llm/base/seed1/provenance.json", "scores.csv"),
    ("evaluations/d2llm/base/seed1/predictions.parquet", "scores.csv"),
    ("evaluations/bm25/base/seed1/scores.parquet", "scores.csv"),
    ("predictions.parquet", "comparisons.csv"),
    ("scores.parquet", "tables/nli.md"),
    ("scores.csv", "results.ipynb"),
    ("comparisons.csv", "figures/leads.svg"),
    ("ablations.csv", "tables/ablation.md"),
    ("runs.csv", "tables/settings.md"),
    ("curves.parquet", "figures/losses.svg"),
    ("about.json", "report.html"),
    ("examples.json", "report.html"),
    ("runtime.csv", "figures/runtime.svg"),
    ("tables/nli.html", "report.html"),
    ("figures/main.svg", "report.html"),
    ("config.yaml", "tables/nli.md"),
    # Read by nobody: `snakemake verify` tells.
    ("figures/main.png", "verify"),
    ("tables/nli.csv", "verify"),
    ("report.html", "verify"),
]


@dataclass
class Told:
    """A row of the table."""

    case: str
    message: str
    kept: str
    mended: str

    def row(self) -> str:
        message = self.message.replace(str(ROOT), "").replace("|", "\\|")
        return f"| {self.case} | {message} | {self.kept} | {self.mended} |"


def snakemake(
    folder: Path, *arguments: str, prefix: tuple[str, ...] = (), files: tuple[str, ...] = ("tiny.yaml",), **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder on one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **extra}
    command = [*prefix, sys.executable, "-m", "snakemake", "--cores", "1", *arguments, "--configfile", *files]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=900
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that tell a person what is wrong, each once."""
    text = done.stdout + done.stderr
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if re.match(r"\s*error: ", line))
    return ["Traceback"] * ("Traceback" in text) + list(lines)


def finished(folder: Path) -> Path:
    """A copy of the repository with a finished tiny run, made once."""
    base = folder / "base"
    if not (base / "done").exists():
        shutil.rmtree(base, ignore_errors=True)
        copy_repository(base)
        settings = tiny_settings(Path("results"))
        settings["methods"] = {name: settings["methods"][name] for name in ("d2llm", "bge")}
        (base / "tiny.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
        done = snakemake(base)
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.copytree(
            base / RUN,
            base / "results" / "reference" / "tiny",
            ignore=shutil.ignore_patterns("models", "*.safetensors"),
        )
        (base / "done").touch()
    return base


def copied(base: Path, folder: Path) -> Path:
    """A finished run to spoil, with its times."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    return folder


def times(folder: Path) -> dict[str, int]:
    """When each file of the run was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in (folder / RUN).rglob("*") if p.is_file()}


def same(base: Path, copy: Path, target: str) -> bool:
    """Whether what was asked for is what the undisturbed run has; pages and times differ by nature."""
    if not (copy / RUN / target).exists():
        return False
    if target.endswith((".json", ".html", ".ipynb")) or "runtime" in target:
        return True
    return (base / RUN / target).read_bytes() == (copy / RUN / target).read_bytes()


def harmed(base: Path, copy: Path, artifact: str, target: str, how: str) -> Told:
    """Damage an artifact, ask for what is made of it, do what the line says, ask again."""
    copied(base, copy)
    file = copy / RUN / artifact
    stamp, content = file.stat(), file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) * 2 // 3])
    else:  # one bit, two thirds in
        at = len(content) * 2 // 3
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a disk would, unseen
    goal = target
    if target != "verify":
        (copy / RUN / target).unlink()
        goal = f"{RUN}/{target}"
    before = times(copy)
    done = snakemake(copy, goal)
    lines = errors(done)
    if target == "verify":
        text = done.stdout + done.stderr
        lines += [line.strip() for line in text.splitlines() if line.startswith("Not what their jobs wrote")][:1]
    after = times(copy)
    # What the failing job itself makes goes with it: its folder, or files beside each other at the top.
    own = (copy / RUN / target).parent
    gone = [copy / name for name in before if name not in after and "/logs/" not in name]
    lost = [path for path in gone if path.parent != own and (own == copy / RUN or own not in path.parents)]
    kept = "yes" if not lost else f"LOST {len(lost)}: {lost[0].relative_to(copy)}"
    if done.returncode == 0:
        right = "made good by the run" if same(base, copy, target) else "NOT NOTICED"
        return Told(f"{artifact}, {how}", right, kept, "–")
    message = "; ".join(lines) or "NO LINE"
    remove = re.search(r"error: (\S+): .*?remove (\S+?),? and run", message)
    names = [remove[1 if remove[2] == "it" else 2]] if remove else []
    if target == "verify":
        names = [f"{RUN}/{artifact}"]
        goal = "all"
    for name in names:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    again = snakemake(copy, goal)
    good = again.returncode == 0 and (target == "verify" or same(base, copy, target))
    mended = "yes" if good else "NO: " + "; ".join(errors(again))[:200]
    return Told(f"{artifact}, {how}", message, kept, mended)


TRAINED = "runs/d2llm/base/seed1/summary.json"
FULL = (
    "cp -a results saved; mount -t tmpfs -o size=60m tmpfs results; cp -a saved/. results/; rm -r saved;"
    " dd if=/dev/zero of=results/fill bs=4k 2>/dev/null"
)
JOB = "$PYTHON -m d2llm.cli train --method d2llm --seed 1 --config results/tiny/config.yaml"
# (fault, shell commands that bring it about, the last one the call that meets it)
MACHINE = [
    ("results folder read-only", "mount --bind results results; mount -o remount,ro,bind results; $RUN"),
    ("disk full before the first job", f"rm {RUN}/config.yaml; {FULL}; $RUN"),
    ("disk with 60 kB left", f"{FULL}; truncate -s -60K results/fill; $RUN"),
    ("files limited to 64 kB (RLIMIT_FSIZE)", "ulimit -f 64; $RUN"),
    ("memory of a job limited to 900 MB (RLIMIT_AS)", f"ulimit -v 900000; {JOB}"),
    ("memory of a job limited to 1.5 GB (RLIMIT_AS)", f"ulimit -v 1500000; {JOB}"),
]


def machine(base: Path, copy: Path, name: str, script: str) -> Told:
    """Ask for a training while disk or memory fail, and again when they do not."""
    copied(base, copy)
    shutil.rmtree(copy / RUN / "runs" / "d2llm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment["RUN"] = f"{sys.executable} -m snakemake {RUN}/{TRAINED} --cores 1 --configfile tiny.yaml"
    other = copy / RUN / "runs/bge/base/seed1/summary.json"
    stamp = other.stat().st_mtime_ns
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    message = "no failure" if done.returncode == 0 else "; ".join(errors(done)) or f"NO LINE: {done.stderr[-300:]!r}"
    kept = "yes" if other.exists() and other.stat().st_mtime_ns == stamp else "LOST"
    mend = snakemake(copy, f"{RUN}/{TRAINED}")
    model = "runs/d2llm/base/seed1/model/student.safetensors"
    good = mend.returncode == 0 and same(base, copy, model)
    return Told(name, message, kept, "yes" if good else "NO: " + "; ".join(errors(mend))[:200])


HUB = {
    "tier": "tiny",
    "methods": {"bge": {}},
    "references": ["bm25"],
    "training": {"dev_every": 0},
    "data": {
        "source": "files",
        "files": {
            "train": {
                "bq": {
                    "file": {
                        "repo": "C-MTEB/BQ",
                        "revision": "e3dda5e115e487b39ec7e618c0c6a29137052a55",
                        "split": "train",
                    },
                    "query": "sentence1",
                    "passage": "sentence2",
                    "label": "score",
                    "yes": [1],
                    "no": [0],
                }
            },
            "tasks": {"atec": {"mteb": "ATEC", "type": "sts", "group": "sts", "dev": "validation", "test": "test"}},
            "teacher_dev": 0.3,
        },
    },
}
BQ = f"{RUN}/downloads/c-mteb--bq--train--e3dda5e115e4"


def hubs(base: Path, copy: Path) -> Iterator[tuple[str, object]]:
    """The hub away, slow, failing, cutting, damaging; a kill while it sends; a finished download damaged."""
    sets = copy.parent / "hub"
    if not sets.exists():
        hub_sets.write_sets(sets, 24)

    def fresh() -> dict[str, str]:
        copied(base, copy)
        shutil.rmtree(copy / RUN)
        shutil.rmtree(copy.parent / "home", ignore_errors=True)
        (copy / "hub.yaml").write_text(yaml.safe_dump(HUB))
        os.environ.pop("HF_HUB_OFFLINE", None)
        return {"HF_HOME": str(copy.parent / "home")}

    def fetch(address: str, home: dict[str, str], goal: str = BQ) -> subprocess.CompletedProcess[str]:
        return snakemake(copy, goal, files=("hub.yaml",), HF_ENDPOINT=address, **home)

    def rows() -> int:
        import pandas as pd

        return len(pd.read_parquet(copy / BQ / "table.parquet"))

    def away() -> Told:
        home = fresh()
        done = fetch("http://127.0.0.1:9", home)
        with hub.serving(sets) as (address, _):
            again = fetch(address, home)
        return Told(
            "hub away", "; ".join(errors(done)), "yes", "yes" if again.returncode == 0 and rows() == 24 else "NO"
        )

    def troubled(name: str, **trouble: object) -> Told:
        home = fresh()
        began = time.perf_counter()
        with hub.serving(sets, **trouble) as (address, _):
            done = fetch(address, home)
        good = done.returncode == 0 and rows() == 24
        return Told(
            name,
            f"waited out in {time.perf_counter() - began:.0f} s" if good else "; ".join(errors(done)),
            "yes",
            "–" if good else "NO",
        )

    def killed() -> Told:
        home = fresh()
        environment = {**os.environ, **home, "OMP_NUM_THREADS": "1"}
        with hub.serving(sets, delay=1.0) as (address, _):
            command = [sys.executable, "-m", "snakemake", "--cores", "1", BQ, "--configfile", "hub.yaml"]
            process = subprocess.Popen(
                command,
                cwd=copy,
                env=environment | {"HF_ENDPOINT": address},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            limit = time.monotonic() + 120
            while (
                not list((copy.parent / "home").rglob("*.incomplete"))
                and time.monotonic() < limit
                and process.poll() is None
            ):
                time.sleep(0.1)
            caught = bool(list((copy.parent / "home").rglob("*.incomplete")))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        half = (copy / BQ).exists()
        with hub.serving(sets) as (address, _):
            again = fetch(address, home)
        left = [path.name for path in (copy / RUN / "downloads").iterdir() if path.name.startswith(".")]
        message = (
            f"killed while a file came: {caught}; half a data set under its name: {half}; "
            f"scratch left after the second call: {len(left)}"
        )
        return Told(
            "killed in the middle of a download",
            message,
            "yes",
            "yes" if again.returncode == 0 and rows() == 24 else "NO",
        )

    def harmed_download() -> Told:
        home = fresh()
        with hub.serving(sets) as (address, _):
            assert fetch(address, home, f"{RUN}/data/pretraining.parquet").returncode == 0
            file = copy / BQ / "table.parquet"
            content, stamp = file.read_bytes(), file.stat()
            at = len(content) // 3
            file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            (copy / RUN / "data/pretraining.parquet").unlink()
            done = fetch(address, home, f"{RUN}/data/pretraining.parquet")
            message = "; ".join(errors(done)) or "NOT NOTICED"
            remove = re.search(r"remove (\S+) and run", message)
            if remove:
                shutil.rmtree(copy / remove[1])
            again = fetch(address, home, f"{RUN}/data/pretraining.parquet")
        return Told(
            "finished download, one bit flipped",
            message,
            "yes",
            "yes" if again.returncode == 0 else "NO: " + "; ".join(errors(again)),
        )

    yield "hub away", away
    yield "hub busy and cutting", lambda: troubled("hub answers 503 once and cuts every file once", failures=1, cuts=1)
    yield "hub slow", lambda: troubled("hub slow (each file in 16 pieces, half a second apart)", delay=0.5)
    yield "hub kill", killed
    yield "hub download flipped", harmed_download


def begun(copy: Path) -> subprocess.Popen[str]:
    """A run that makes the training of D2LLM again, in a process group of its own, as soon as the training's job is
    there.
    """
    shutil.rmtree(copy / RUN / "runs" / "d2llm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    main = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", f"{RUN}/{TRAINED}", "--configfile", "tiny.yaml"],
        cwd=copy, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not trainings(main.pid) and main.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert trainings(main.pid), "the training did not start"
    time.sleep(2.5)  # into its work: the lock is held
    return main


def trainings(pid: int) -> list[psutil.Process]:
    """Training jobs among the descendants of a process."""
    try:
        below = psutil.Process(pid).children(recursive=True)
        return [job for job in below if "train" in job.cmdline() and Path(job.cmdline()[0]).name.startswith("python")]
    except psutil.Error:
        return []


def moved(copy: Path, seconds: float) -> None:
    """What a clock that is set looks like to files: all that is there was written so much later (or earlier)."""
    for path in (copy / RUN).rglob("*"):
        if path.is_file():
            stamp = path.stat()
            os.utime(path, (stamp.st_atime + seconds, stamp.st_mtime + seconds))


def together(base: Path, copy: Path) -> Iterator[tuple[str, object]]:
    """The clock set while a job works; two runs in one folder; an orphan still at work when its run is called again."""
    model = "runs/d2llm/base/seed1/model/student.safetensors"
    # Of finished work: a record says when it was made, so one that was made again is another.
    others = ("runs/bge/base/seed1", "models/decoder", "teacher", "evaluations/bge/base/seed1")

    def told(name: str, message: str, good: bool) -> Told:
        records = [f"{RUN}/{other}/provenance.json" for other in others]
        kept = all(
            (copy / path).exists() and (copy / path).read_bytes() == (base / path).read_bytes() for path in records
        )
        return Told(name, message, "yes" if kept else "LOST", "yes" if good and same(base, copy, model) else "NO")

    def nothing(goal: str) -> bool:
        done = snakemake(copy, goal)
        return done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr

    def clock(name: str, seconds: float) -> Told:
        copied(base, copy)
        run = begun(copy)
        moved(copy, seconds)
        text, _ = run.communicate(timeout=600)
        message = "the run ends" if run.returncode == 0 else "; ".join(re.findall(r"error: .*", text)) or "NO LINE"
        logs = [log.read_text() for log in (copy / RUN / "logs").rglob("*.log")]
        lines = [line for log in logs for line in log.splitlines() if "of the future" in line]
        message += "".join(f"; its log: {line}" for line in dict.fromkeys(lines))
        return told(name, message, run.returncode == 0 and nothing(f"{RUN}/{TRAINED}"))

    def two() -> Told:
        copied(base, copy)
        run = begun(copy)
        job = trainings(run.pid)[0]
        job.suspend()  # or it may have ended before the second run looks
        second = snakemake(copy, f"{RUN}/{TRAINED}")
        job.resume()
        run.communicate(timeout=600)
        return told(
            "two runs at once",
            "; ".join(errors(second)) if second.returncode else "NOT NOTICED",
            run.returncode == 0 and nothing(f"{RUN}/{TRAINED}"),
        )

    def orphan() -> Told:
        copied(base, copy)
        run = begun(copy)
        ghost = trainings(run.pid)[0]
        run.kill()
        run.wait()  # its pipe stays open as long as the orphan does
        ghost.suspend()  # as slow as need be
        threading.Timer(15, ghost.resume).start()
        alive = ghost.is_running()
        again = snakemake(copy, f"{RUN}/{TRAINED}")
        logs = [log.read_text() for log in (copy / RUN / "logs").rglob("*.log")]
        waited = [line for log in logs for line in log.splitlines() if "another process" in line]
        message = f"orphan at work when called again: {alive}; the job's log: {waited[0] if waited else 'NO LINE'}"
        return told("an orphan still at work", message, again.returncode == 0 and not ghost.is_running())

    yield "clock set back", lambda: clock("clock set back by an hour while a training works", 3600)
    yield "clock set forward", lambda: clock("clock set forward by an hour while a training works", -3600)
    yield "two runs at once", two
    yield "orphan at work", orphan


ROWS = [{"query": f"query {i}", "passage": f"passage {i // 2}", "label": i % 2} for i in range(40)]
FILES = {
    "tier": "tiny",
    "methods": {"bge": {}},
    "references": ["bm25"],
    "training": {"dev_every": 0},
    "data": {
        "source": "files",
        "files": {
            "train": {
                "mine": {
                    "file": "mine.jsonl",
                    "query": "query",
                    "passage": "passage",
                    "label": "label",
                    "yes": [1],
                    "no": [0],
                }
            },
            "tasks": {
                "pairs": {
                    "type": "pair_classification",
                    "group": "nli",
                    "query": "query",
                    "passage": "passage",
                    "dev": "dev.jsonl",
                    "test": "test.jsonl",
                    "yes": [1],
                }
            },
            "teacher_dev": 0.3,
        },
    },
}
# (what is wrong, the line of the 7th row)
LINES = [
    ("a label that is neither yes nor no", '{"query": "a", "passage": "b", "label": 7}'),
    ("a column missing", '{"query": "a", "label": 1}'),
    ("a text that is a number", '{"query": 5, "passage": "b", "label": 1}'),
    ("an empty text", '{"query": "", "passage": "b", "label": 1}'),
    ("a label that is NaN", '{"query": "a", "passage": "b", "label": NaN}'),
    ("a line that is no JSON", '{"query": "a", "passage'),
]


def rows(base: Path, copy: Path, name: str, line: str) -> Told:
    """Train on a file of one's own with one wrong row; then with the row mended."""
    copied(base, copy)
    stamp = (copy / RUN / "runs/bge/base/seed1/summary.json").stat().st_mtime_ns
    texts = [json.dumps(row) for row in ROWS]
    for file in ("mine", "dev", "test"):
        mine = [text.replace("query ", f"{file} ") for text in texts]
        (copy / f"{file}.jsonl").write_text("\n".join(mine[:6] + [line] * (file == "mine") + mine[6:]) + "\n")
    (copy / "own.yaml").write_text(yaml.safe_dump(FILES))
    goal = f"{RUN}/data/train.parquet"
    done = snakemake(copy, goal, files=("own.yaml",))
    message = "; ".join(errors(done)) or "NOT NOTICED"
    kept = (copy / RUN / "runs/bge/base/seed1/summary.json").stat().st_mtime_ns == stamp
    (copy / "mine.jsonl").write_text("\n".join(texts) + "\n")
    again = snakemake(copy, goal, files=("own.yaml",))
    good = again.returncode == 0 and "mine.jsonl: line 7" in message
    return Told(
        f"own data: {name}",
        message,
        "yes" if kept else "LOST",
        "yes" if good else "NO: " + "; ".join(errors(again))[:200],
    )


def main(folder: Path, word: str) -> int:
    base, copy, wrong = finished(folder), folder / "copy", 0
    cases = [
        (f"{artifact} {how}", lambda a=artifact, t=target, h=how: harmed(base, copy, a, t, h))
        for artifact, target in ARTIFACTS
        for how in ("flip", "cut")
    ]
    cases += [(name, lambda n=name, s=script: machine(base, copy, n, s)) for name, script in MACHINE]
    cases += together(base, copy)
    cases += [(f"row: {name}", lambda n=name, x=line: rows(base, copy, n, x)) for name, line in LINES]
    cases += hubs(base, copy)
    print("| fault | what is said | finished work kept | mended by doing so and `snakemake` |\n|---|---|---|---|")
    for name, case in cases:
        if not re.search(word, name):
            continue
        began = time.perf_counter()
        told = case()
        bad = any(sign in told.row() for sign in ("NO", "Traceback", "LOST"))
        wrong += bad
        print(told.row(), f"<!-- {time.perf_counter() - began:.0f} s{' WRONG' if bad else ''} -->", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""))

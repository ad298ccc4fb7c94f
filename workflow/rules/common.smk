"""What the rules share: the validated config, the paths, and the functions that say what a job needs. Holds no rule."""

import fcntl
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

# Jobs run `python -m d2llm.cli`: let that be this interpreter and this repository's code, installed or not.
for variable, folder in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", Path(workflow.basedir))):
    others = [part for part in os.environ.get(variable, "").split(os.pathsep) if part and part != str(folder)]
    os.environ[variable] = os.pathsep.join([str(folder), *others])
sys.path.insert(0, workflow.basedir)

from d2llm import checkpoints, stages
from d2llm import config as schema
from d2llm.artifacts import write_text
from d2llm.errors import ConfigError, fault
from d2llm.methods import method as find_method
from d2llm.methods import names as method_names
from d2llm.paths import PROVENANCE, Paths, beside
from d2llm.provenance import content_digest
from d2llm.reporting import captions
from d2llm.reporting.catalogue import BESIDES, FIGURES, TABLES
from d2llm.reporting.context import context
from d2llm.signals import pass_on

# On a cluster every job has a Snakemake of its own. A scheduler may tell that alone to end, and Snakemake only waits for its job:
# let a training hear of it, and keep a checkpoint.
if not workflow.is_main_process:
    pass_on()


def resources_by_rule(given):
    """What a profile's `set-resources` gives, with what it gives `train` for the rules that are it for other methods.

    Snakemake overwrites resources by a rule's name, which `use rule train as …` does not hand on, so a baseline that a profile does not know of would get
    no GPU. What a profile says of such a rule itself goes first.
    """
    found = dict(given)
    for name in method_names() if "train" in given else ():
        found[f"train_{name}"] = given["train"].copy()
        found[f"train_{name}"].update(given.get(f"train_{name}", {}))
    return found


# Before the first rule, as Snakemake reads them once.
workflow.resource_settings.overwrite_resources = resources_by_rule(workflow.resource_settings.overwrite_resources)


# ----------------------------------------------------------------------------------------------------------- faults
def killed(logs):
    """The line for jobs that were killed, as the system does when memory runs out; such a job says nothing itself. Empty without any."""
    said = "".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in logs)
    count = len(re.findall(r"non-zero exit status 137|died with <Signals.SIGKILL", said))
    jobs = "a job was" if count == 1 else f"{count} jobs were"
    return (
        f"error: {jobs} killed (SIGKILL), as happens when memory runs out; run fewer at once (--cores 1), or lower training.texts_at_once, "
        "evaluation.batch_size or teacher.batch_tokens (`d2llm plan` estimates what a job takes); finished work is kept\n"
        if count
        else ""
    )


# ---------------------------------------------------------------------------------------------------------- config
def resolve():
    """The files of --configfile laid over config/mini.yaml, then -C. A first file that names a tier stands alone."""
    files = [Path(os.path.relpath(file)) for file in workflow.overwrite_configfiles]
    if not files or "tier" not in schema.read(files[0]):
        files.insert(0, Path(os.path.relpath(workflow.basedir)) / "config" / "mini.yaml")
    return schema.load(files, workflow.config_settings.config)


def check_checkpoints(config):
    """Refuse a base model that is not where the config says; its own job might come after hours of others."""
    for name in config.models.names():
        model = config.models.of(name)
        if hasattr(model, "source") and model.origin != "hub":
            checkpoints.located(model, f"models.{name}.source")


try:
    CONFIG = resolve()
    check_checkpoints(CONFIG)
except ConfigError as error:
    sys.exit(f"error: {error}")  # one line; an exception would come wrapped in this file's name
PATHS = Paths.of(CONFIG)
ENVIRONMENT = "../../environment.yml"
REPORTING = Path(os.path.relpath(workflow.basedir)) / "d2llm" / "reporting"
STYLE_SHEET = str(REPORTING / "suite.mplstyle")
TEMPLATES = sorted(str(path) for path in (REPORTING / "templates").iterdir())
NOTEBOOK = os.path.relpath(Path(workflow.basedir) / "notebooks" / "results.ipynb")
SEARCH_NOTEBOOK = os.path.relpath(Path(workflow.basedir) / "notebooks" / "search.ipynb")


wildcard_constraints:
    variant=r"[a-z0-9][a-z0-9_.=+-]*",
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    teacher=r"teacher(-[a-z0-9_]+)?",


def guard():
    """Refuse a second run in one results folder, and write the config that this run's jobs read.

    The main process alone holds the lock, while jobs run: unlike Snakemake's own it ends with the process, even a killed one.
    What stands in the file names this run, so that a job can tell whether the run that started it is still there.
    """
    global GUARD
    try:
        PATHS.root.mkdir(parents=True, exist_ok=True)
        GUARD = PATHS.guard.open("a")
    except OSError as error:
        sys.exit(f"error: {PATHS.root}: cannot be written ({error.strerror}); choose another: -C results=FOLDER")
    for wait in (0.1, 0.1, 0):
        try:
            fcntl.flock(GUARD, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(wait)  # a job that looks whether a run is there holds it for a moment
    else:
        sys.exit(f"error: another run is working in {PATHS.root}; wait for it, or choose another: -C results=FOLDER")
    text = schema.dump(CONFIG).encode()
    try:
        GUARD.truncate(0)
        GUARD.write(uuid.uuid4().hex)
        GUARD.flush()
        if not PATHS.config.exists() or PATHS.config.read_bytes() != text:
            write_text(PATHS.config, text.decode())
    except OSError as error:
        sys.exit(f"error: {fault(error) or error}")


def preflight():
    """Refuse what a model at hand cannot do, before any model is made or trained by this run. In a process of its own, which takes its memory along.

    What ends otherwise than by refusing is no reason to stop: the jobs ask again.
    """
    asking = ("base", "teacher", "pretext", "train")
    if any(job.rule.name.startswith(asking) for job in workflow.dag.needrun_jobs()):
        command = [sys.executable, "-m", "d2llm.cli", "check-config", "--models", "--config", str(PATHS.config)]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        if subprocess.run(command, env=os.environ | quiet, stdout=subprocess.DEVNULL).returncode == 2:
            sys.exit(2)


onstart:
    guard()
    preflight()


# ------------------------------------------------------------------------------------------- what makes a job stale
def settings_of(stage):
    """For `params`: the leaf settings a job of this stage reads, as one line."""
    return lambda wildcards: stages.settings_line(CONFIG, stage, **dict(wildcards.items()))


def code_of(stage):
    """For `params`: digest of the code a job of this stage runs; Snakemake itself does not see imported modules."""
    return lambda wildcards: stages.code(stage, **dict(wildcards.items()))


def versions_of(stage):
    """For `params`: versions of the packages that code computes with, as one line."""
    return lambda wildcards: stages.versions_line(stage, **dict(wildcards.items()))


# -------------------------------------------------------------------------------------------------- what a job needs
def files():
    """What a source of files reads: one's own files, and what is fetched. Refuses a file that is not there; Snakemake would not say which key names it."""
    if CONFIG.data.source != "files":
        return []
    own = CONFIG.data.files.paths()
    for key, path in own.items():
        if not Path(path).is_file():
            sys.exit(f"error: data.files.{'.'.join(key)}: no such file: {path} (seen from {Path.cwd()})")
    return sorted(set(own.values())) + [PATHS.download(name) for name in CONFIG.data.files.downloads()]


def base_inputs(wildcards):
    """Unlabelled text, and the model that this one grows from; nothing for a checkpoint that exists."""
    model = CONFIG.models.of(wildcards.model)
    if hasattr(model, "source"):
        return []
    return [PATHS.pretraining] + ([PATHS.base(model.grown_from)] if model.grown_from else [])


def base_priority(usual, *names):
    """That of the jobs of these base models. What exists comes before anything is trained: a hub's model can be looked at only then."""
    return 96 if names and all(hasattr(CONFIG.models.of(name), "source") for name in names) else usual


def vector_shards():
    """Vectors of the texts, where jobs of their own make them."""
    shards = CONFIG.negatives.shards
    return [PATHS.vectors(shard, shards) for shard in range(shards)] if shards > 1 else []


def training_inputs(wildcards):
    """Training pairs, a base model, and dev sets to watch it by; the teacher's scores only for a method that imitates one."""
    method, variant = find_method(wildcards.method), wildcards.variant
    recipe, owner = CONFIG.recipe(method.name, variant), CONFIG.pretext_of(method.name, variant)
    inputs = [PATHS.pairs, PATHS.pretext(method.name, owner) if owner else PATHS.base(method.base(recipe))]
    inputs += [PATHS.tasks] if CONFIG.training.dev_every else []
    return inputs + (teacher_scores(recipe.teacher) if method.uses_teacher else [])


def pretext_inputs(wildcards):
    """Unlabelled text and a base model."""
    method = find_method(wildcards.method)
    return [PATHS.pretraining, PATHS.base(method.base(CONFIG.recipe(method.name, wildcards.variant)))]


def evaluation_inputs(wildcards):
    """The evaluation sets, and what is evaluated. The teacher re-ranks candidates of BM25 and of the encoder."""
    if wildcards.method == "bm25":
        return [PATHS.tasks]
    if wildcards.method == "teacher":
        return [PATHS.tasks, PATHS.teacher_model, PATHS.base("encoder")]
    return [PATHS.tasks, PATHS.run(wildcards.method, wildcards.variant, wildcards.seed) / "model"]


def launcher():
    """What starts a training: Python, or torchrun for several processes."""
    count = CONFIG.training.processes
    return "python" if count == 1 else f"python -m torch.distributed.run --standalone --nproc_per_node {count}"


def teacher_scores(teacher):
    """All shards of a teacher's scores."""
    shards = CONFIG.teacher.shards
    return [PATHS.teacher_scores(shard, shards, teacher) for shard in range(shards)]


def evaluated(file):
    """One file of every evaluation."""
    return [PATHS.evaluation(*run) / file for run in CONFIG.evaluations()]


def trained(file):
    """One file of every training."""
    return [PATHS.run(*run) / file for run in CONFIG.runs()]


def tried(place, file):
    """For `input`: one file of every trial. Refuses a method without a grid before hours of trials of the others."""

    def files(wildcards):
        try:
            return [place(*trial.run) / file for trial in CONFIG.tuning_trials()]
        except ConfigError as error:
            sys.exit(f"error: {error}")

    return files


def told_with_scores():
    """What the page tells of how scores came about, as far as a job names it: the card and leaks, the negatives, the teachers' records."""
    runs = [run for run in CONFIG.runs() if find_method(run.method).uses_teacher]
    teachers = [CONFIG.recipe(run.method, run.variant).teacher for run in runs]
    teachers += ["teacher"] if "teacher" in CONFIG.references else []
    reports = [PATHS.card_json, PATHS.leaks] + ([PATHS.negatives_report] if CONFIG.runs() else [])
    # Beside a teacher's record lies its report, which is nobody's output (teacher.smk).
    return reports + [PATHS.teacher(teacher) / PROVENANCE for teacher in dict.fromkeys(teachers)]


def rendered_from(catalogue, *more):
    """The collected files a table or figure is made of."""
    checkpoints = any(hasattr(CONFIG.models.of(name), "source") for name in CONFIG.models.names())

    def files(wildcards):
        besides = BESIDES.get(wildcards.name, ()) if checkpoints and catalogue is FIGURES else ()
        return [getattr(PATHS, name) for name in (*catalogue.get(wildcards.name, ("scores",)), *besides)] + list(more)

    return files


def every_table():
    """All tables, in all formats."""
    return [PATHS.table(name, ext) for name in TABLES for ext in ("csv", "md", "tex", "html")]


def every_figure():
    """All figures, in all formats. That of leads only where the subject is compared with something."""
    names = [name for name in FIGURES if name != "leads" or {CONFIG.statistics.subject} < set(CONFIG.methods)]
    return [PATHS.figure(name, ext) for name in names for ext in ("pdf", "svg", "png")]


def rendered_records():
    """The records of all that is made of the collected files, and of these themselves."""
    made = [PATHS.scores, PATHS.comparisons, PATHS.ablations, PATHS.runtime, PATHS.examples]
    made += [path for path in every_table() + every_figure() if path.suffix in (".csv", ".svg")]
    return [beside(path) for path in made]


def tuning_record():
    """For `params`: digest of a tuning record that is there. As an input it would have `all` bring the tuning up to date."""
    return content_digest(PATHS.trials) if PATHS.trials.exists() else "none"


# ------------------------------------------------------------------------------------------------ Snakemake's own report
SUBJECT = context(CONFIG).subject
# Read by the captions in workflow/report/.
config["captions"] = {
    kind: {name: captions.rst(captions.caption(kind, name, SUBJECT).text) for name in known}
    for kind, known in (("table", captions.TABLES), ("figure", captions.FIGURES))
}
config["captions"]["report"] = {"report": captions.rst(captions.REPORT.text)}


def section_of(kind):
    """For `category`: the section of a table or figure."""
    return lambda wildcards: captions.SECTIONS[captions.caption(kind, wildcards.name, SUBJECT).section][0]


def title_of(kind):
    """For `labels`: what a table or figure is called."""
    return lambda wildcards: {"kind": kind, "title": captions.caption(kind, wildcards.name, SUBJECT).title}


def require_training_rules():
    """Refuse a method of the config that no rule trains; Snakemake would only say that files are missing."""
    for method in CONFIG.methods:
        name = "train" if method == "d2llm" else f"train_{method}"
        if not workflow.is_rule(name):
            sys.exit(f"error: method {method!r} has no rule {name}; add its stanza to workflow/rules/baselines.smk")

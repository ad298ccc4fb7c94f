"""What the rules share: the validated config, the paths, and how a stage's declaration (d2llm/run/stages.py)
becomes a rule. Holds no rule.
"""

import fcntl
import gc
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
# By default garbage is looked for after every 700 new objects; here nearly all stay. A plan takes an eighth less time so.
gc.set_threshold(50_000, 20, 100)

from d2llm.cli.plan.requests import Requests
from d2llm.config.catalogue import entries
from d2llm.config.load import dump, load, read
from d2llm.config.registry import modules
from d2llm.models.base import pretrained
from d2llm.reporting import captions
from d2llm.reporting.context import context
from d2llm.run import jobs, stages
from d2llm.run.artifacts import write_text
from d2llm.run.errors import ConfigError, fault
from d2llm.run.paths import Paths
from d2llm.run.provenance import content_digest
from d2llm.run.signals import pass_on
from d2llm.run.stages import STAGES

# On a cluster every job has a Snakemake of its own. A scheduler may tell that alone to end, and Snakemake only waits
# for its job:
# let a training hear of it, and keep a checkpoint.
if not workflow.is_main_process:
    pass_on()


# ----------------------------------------------------------------------------------------------------------- faults
def killed(logs):
    """The line for jobs that were killed, as the system does when memory runs out; such a job says nothing
    itself. Empty without any.
    """
    text = "".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in logs)
    count = len(re.findall(r"non-zero exit status 137|died with <Signals.SIGKILL", text))
    jobs = "a job was" if count == 1 else f"{count} jobs were"
    return (
        f"error: {jobs} killed (SIGKILL), as happens when memory runs out; run fewer at once (--cores 1), or lower "
        "training.texts_at_once, "
        "evaluation.batch_size or teacher.batch_tokens (`d2llm plan` estimates what a job takes); finished work is "
        "kept\n"
        if count
        else ""
    )


def refusing(function, *arguments, **keywords):
    """What a function gives; a ConfigError ends the run in one line, where an exception would come wrapped in
    a rule's name.
    """
    try:
        return function(*arguments, **keywords)
    except ConfigError as error:
        sys.exit(f"error: {error}")


# ---------------------------------------------------------------------------------------------------------- config
def resolve():
    """The files of --configfile laid over config/mini.yaml, then -C. A first file that names a tier stands alone."""
    files = [Path(os.path.relpath(file)) for file in workflow.overwrite_configfiles]
    if not files or "tier" not in read(files[0]):
        files.insert(0, Path(os.path.relpath(workflow.basedir)) / "config" / "mini.yaml")
    return load(files, workflow.config_settings.config)


def check_checkpoints(config):
    """Refuse a base model that is not where the config says; its own job might come after hours of others."""
    for name in config.models.names():
        model = config.models.of(name)
        if hasattr(model, "source") and model.origin != "hub":
            pretrained.located(model, f"models.{name}.source")
    for row in config.published().values():
        if row.checkpoint().origin != "hub":
            pretrained.located(row.checkpoint(), f"references: {row.model}", weights=False)


CONFIG = refusing(resolve)
refusing(check_checkpoints, CONFIG)
PATHS = Paths.of(CONFIG)
refusing(stages.files, CONFIG, PATHS)
ENVIRONMENT = "../../environment.yml"


wildcard_constraints:
    variant=r"[a-z0-9][a-z0-9_.=+-]*",
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    teacher=r"teacher(-[a-z0-9_]+)?",


def guard():
    """Refuse a second run in one results folder, and write the config that this run's jobs read.

    The main process alone holds the lock, while jobs run: unlike Snakemake's own it ends with the process, even a
    killed one.
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
    text = dump(CONFIG).encode()
    try:
        GUARD.truncate(0)
        GUARD.write(uuid.uuid4().hex)
        GUARD.flush()
        if not PATHS.config.exists() or PATHS.config.read_bytes() != text:
            write_text(PATHS.config, text.decode())
    except OSError as error:
        sys.exit(f"error: {fault(error) or error}")


def preflight():
    """Refuse what a model at hand cannot do, before any model is made or trained by this run. In a process of its own,
    which takes its memory along.

    What ends otherwise than by refusing is no reason to stop: the jobs ask again.
    """
    asking = ("base", "published", "teacher", "pretext", "train")
    if any(job.rule.name.startswith(asking) for job in workflow.dag.needrun_jobs()):
        command = [sys.executable, "-m", "d2llm.cli", "check-config", "--models", "--config", str(PATHS.config)]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        if subprocess.run(command, env=os.environ | quiet, stdout=subprocess.DEVNULL).returncode == 2:
            sys.exit(2)


onstart:
    guard()
    preflight()
    say_start()


# ----------------------------------------------------------------------------------------------------- rules of stages
def reads(stage):
    """For `input`: what a job of the stage reads."""
    return lambda wildcards: list(map(str, refusing(STAGES[stage].reads, CONFIG, PATHS, **dict(wildcards.items()))))


def writes(stage):
    """For `output`: what a job of the stage writes, folders marked as such."""
    paths = STAGES[stage].writes(PATHS, **{name: f"{{{name}}}" for name in STAGES[stage].arguments})
    return [path if path.suffix else directory(path) for path in paths]


def log_of(stage):
    """For `log`: where a job of the stage logs."""
    parts = {"seed": "seed{seed}", "shard": "{shard}-of-{shards}"}
    names = [parts.get(name, f"{{{name}}}") for name in STAGES[stage].arguments if name != "shards"]
    return PATHS.logs(*([] if stage == "teacher" else [stage]), *names)


def job(stage):
    """For `params`: the config's file, and what makes a job stale. Snakemake compares it with the last run's,
    and does not see imported modules itself.
    """

    def of(function):
        return lambda wildcards: function(CONFIG, stage, **dict(wildcards.items()))

    return {
        "config": str(PATHS.config),
        "settings": of(jobs.settings_line),
        "code": of(jobs.code),
        "versions": of(jobs.versions_line),
    }


def command(stage):
    """For `shell`: the stage on the command line."""
    arguments = "".join(f" --{name} {{wildcards.{name}}}" for name in STAGES[stage].arguments)
    call = f"{launcher(stage)} -m d2llm.cli {stage.replace('_', '-')}{arguments}"
    return f"{call} --config {{params.config}} --log {{log:q}} --inputs {{input:q}}"


def launcher(stage):
    """What starts a job: Python, or torchrun for a training by several processes."""
    count = CONFIG.training.processes
    shared = stage == "train" and count > 1
    return f"python -m torch.distributed.run --standalone --nproc_per_node {count}" if shared else "python"


REQUESTS = Requests(CONFIG)


def resources(stage):
    """For `resources`: what `d2llm plan` reckons a job takes, times the attempt, under what a profile's `set-resources`
    gives the stage's rule. Rules that inherit from it (`use rule train as …`) thus do so from the profile as well, which
    names `train` alone; `evaluate_shard` does from what it gives `evaluate`. A GPU is asked for where the config's
    `device` is one, nowhere else.
    """

    def asked(name):
        def value(wildcards, attempt):
            amount = refusing(REQUESTS.of, stage, **dict(wildcards.items())).get(name)
            return amount if amount is None or name == "gpu" else amount * attempt

        return value

    given = workflow.resource_settings.overwrite_resources.get(stage.removesuffix("_shard"), {})
    names = REQUESTS.names(stage)
    return {name: asked(name) for name in names} | {
        name: getattr(value, "value", value) for name, value in given.items()
    }


def base_priority(usual, *names):
    """That of the jobs of these base models. What exists comes before anything is trained: a hub's model can
    be looked at only then.
    """
    return 96 if names and all(hasattr(CONFIG.models.of(name), "source") for name in names) else usual


def tuning_record():
    """For `params`: digest of a tuning record that is there. As an input it would have `all` bring the tuning
    up to date.
    """
    return content_digest(PATHS.trials) if PATHS.trials.exists() else "none"


# ----------------------------------------------------------------------------------------------- Snakemake's own report
CONTEXT = context(CONFIG)
# Read by the captions in workflow/report/.
config["captions"] = {
    kind: {name: captions.rst(captions.caption(kind, name, CONTEXT).text) for name in entries(kind)}
    for kind in ("table", "figure")
}
config["captions"]["report"] = {"report": captions.rst(captions.REPORT.text)}


def shown(kind, ext):
    """For `output`: the files of a table or figure, the one of this ending in Snakemake's report, under its title."""
    caption = lambda wildcards: captions.caption(kind, wildcards.name, CONTEXT)
    about = {
        "caption": f"../report/{kind}.rst",
        "category": lambda wildcards: captions.SECTIONS[caption(wildcards).section][0],
        "labels": lambda wildcards: {"kind": kind, "title": caption(wildcards).title},
    }
    return [report(path, **about) if path.suffix == f".{ext}" else path for path in writes(kind)]


def require_training_rules():
    """Refuse a method of the config that no rule trains; Snakemake would only say that files are missing."""
    for method in CONFIG.methods:
        name = "train" if modules()[method].startswith("d2llm.") else f"train_{method}"
        if not workflow.is_rule(name):
            sys.exit(f"error: method {method!r} has no rule {name}; add its stanza to workflow/rules/baselines.smk")

"""`d2llm STAGE --config FILE …`: runs one stage of the suite, by hand or as a job of the workflow; commands for people
are in `d2llm.cli.upkeep`.

Prepares the process (threads, seeds, log, quiet libraries), runs the stage, and writes its provenance last. A wrong
config or a damaged file ends in one line `error: …` and exit code 2; any other exception keeps its traceback.
"""

import argparse
import datetime
import fcntl
import gc
import importlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from d2llm.cli import gpus
from d2llm.cli import student as commands_of_use
from d2llm.cli.upkeep import COMMANDS
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.models.base import remote
from d2llm.run import home, jobs
from d2llm.run.artifacts import in_future, settle_times, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.code import COMPUTING
from d2llm.run.errors import D2LLMError, fault
from d2llm.run.logs import configure, escape, get_logger
from d2llm.run.paths import Paths
from d2llm.run.provenance import checked_inputs, environment, output_digests, peak_memory_mb, sealed, versions
from d2llm.run.signals import Signals
from d2llm.run.stages import STAGES, Stage
from d2llm.version import __version__

ARGUMENTS: dict[str, dict[str, Any]] = {
    "model": {"help": "teacher, decoder, encoder or one of models.others"},
    "teacher": {"default": "teacher", "help": "a teacher of the config (default: the main one)"},
    "row": {"help": "a published model among the references"},
    "shard": {"type": int, "help": "which part of the work, from 0"},
    "shards": {"type": int, "help": "into how many parts it is cut"},
    "method": {"help": "a method of the config"},
    "variant": {"default": "base", "help": "a variant of the config (default: base, the method itself)"},
    "seed": {"type": int, "help": "a seed of the config"},
    "download": {"help": "a data set of the hub, by its name in results/<tier>/downloads"},
    "name": {"help": "which table or figure"},
}


# For `gc.set_threshold`. What imports make, a million objects, stays; by default every 700 more have garbage looked for
# (a tenth of a short job).
COLLECT = (50_000, 20, 100)
TOP = """\
`snakemake --cores all` runs the stages that are out of date, in order; `d2llm STAGE` runs one by hand.
`d2llm COMMAND --help` tells arguments and an example of each."""


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand a stage, those that use a trained student, and those of upkeep."""
    top = argparse.ArgumentParser(
        prog="d2llm",
        description="The D2LLM benchmark suite.",
        epilog=TOP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"d2llm {__version__}")
    top.set_defaults(parser=top)  # which the page of all commands is made of
    commands = top.add_subparsers(dest="stage", required=True, metavar="COMMAND")
    for name, entry in COMMANDS.items():
        command = subcommand(commands, name, entry.help, entry.example)
        if entry.config != "none":
            add_config(command, required=entry.config == "needed")
            add_values(command)
        for argument, options in entry.arguments.items():
            command.add_argument(argument, **options)
        command.set_defaults(call=entry.run)
    commands_of_use.add_parsers(commands)
    for key, stage in STAGES.items():
        name = key.replace("_", "-")
        given = [f"--{argument} {value}" for argument, value in stage.example.items()]
        example = " ".join([f"d2llm {name} --config results/mini/config.yaml", *given])
        record = stage.record(
            Paths(Path("results/TIER")), **{argument: argument.upper() for argument in stage.arguments}
        )
        command = subcommand(commands, name, f"stage: {stage.help}", example, f"Its record, written last: {record}")
        add_config(command, required=True)
        command.set_defaults(stage=key)
        command.add_argument("--log", metavar="FILE", help="write log lines there")
        command.add_argument("--inputs", nargs="*", default=[], metavar="PATH", help="name these in the provenance")
        for argument in stage.arguments:
            options = ARGUMENTS[argument]
            command.add_argument(
                f"--{argument}", required="default" not in options, metavar=argument.upper(), **options
            )
    return top


def subcommand(commands: Any, name: str, help_line: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """A parser whose help ends in an example."""
    text = "\n".join(line for line in (more, f"example:\n  {example}") if line)
    return commands.add_parser(
        name, help=help_line, description=help_line, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_values(command: argparse.ArgumentParser) -> None:
    """-C, as of snakemake."""
    given: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "KEY=VALUE", "help": "values laid over the files"}
    command.add_argument("-C", dest="values", type=assigned, **given)


def assigned(text: str) -> tuple[str, str]:
    """KEY=VALUE as a pair. Raises argparse's error for another text."""
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE; found {text!r}")
    return key, value


def add_config(command: argparse.ArgumentParser, required: bool) -> None:
    """--config, one file or several."""
    command.add_argument(
        "--config", required=required, nargs="+", metavar="FILE", help="config files; later ones win, key by key"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    escape()
    options = parser().parse_args(argv)
    gc.set_threshold(*COLLECT)
    try:
        if hasattr(options, "call"):
            home.settle()
            return options.call(options)
        configure(options.log)
        arguments = {name: getattr(options, name) for name in STAGES[options.stage].arguments}
        run_stage(load(options.config), options.stage, arguments, options.inputs)
        return 0
    except D2LLMError as error:
        return report(error, getattr(options, "log", None))
    except Exception as error:
        line = fault(error)
        if line is not None:
            return report(line, getattr(options, "log", None))
        get_logger("cli").exception("this is a bug in the suite, or a fault of the machine")
        raise


def report(error: D2LLMError | str, log: str | None) -> int:
    """One line for the user, and the same in the log, where there is room for it."""
    print(f"error: {error}", file=sys.stderr)
    if log is not None:
        with suppress(OSError), Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"error: {error}\n")
    return 2


def run_stage(config: Config, stage: str, arguments: dict[str, Any], inputs: list[str]) -> None:
    """Run one stage in this process and write its provenance beside what it made."""
    jobs.check_arguments(config, stage, arguments)
    entry, paths = STAGES[stage], Paths.of(config)
    seed = arguments.get("seed", config.seeds[0])
    quieten_libraries(config, paths, stage)
    # Held until this process ends.
    gpu = gpus.claim() if entry.torch else None  # noqa: F841
    fix_randomness(config.threads, seed, entry.torch)
    remote.allow(config.remote_code)
    if entry.torch:
        from d2llm.models import precision

        precision.settle(config.gpu.half, config.gpu.tf32, config.cpu.half)
    job = " ".join([stage, *(f"{name}={value}" for name, value in arguments.items())])
    get_logger("cli").info(job)
    # Without inputs named, nothing would tell whether a checkpoint is of the same ones.
    minutes = config.training.checkpoint_minutes if inputs else None
    state = paths.state(job.replace(" ", "."))
    if int(os.environ.get("RANK", "0")):  # of the processes that share a training, the first one keeps the records
        execute(entry, config, arguments, Resume(state, None, minutes))
        return
    workflow = running_workflow(paths.guard)
    with job_lock(paths.locks / job.replace(" ", ".")):
        resume = recorded_run(config, stage, arguments, inputs, state, minutes)
        if any(in_future(Path(path)) for path in inputs):
            get_logger("cli").warning(
                "the clock has been set back; %d files of the future got the present time", settle_times(paths.root)
            )
        # What a job made whose workflow has ended meanwhile, the next one makes again: from the last checkpoint, in
        # seconds.
        if workflow and running_workflow(paths.guard) == workflow:
            resume.remove()


def recorded_run(
    config: Config, stage: str, arguments: dict[str, Any], inputs: list[str], state: Path, minutes: float | None
) -> Resume:
    """Do a stage's work, from the checkpoint in `state` where there is one of this very job, and write its record."""
    entry, paths = STAGES[stage], Paths.of(config)
    record = {
        "stage": stage,
        **arguments,
        "settings": jobs.settings(config, stage, **arguments),
        "code": jobs.code(config, stage, **arguments),
        "inputs": checked_inputs(inputs),
        "process_seed": arguments.get("seed", config.seeds[0]),
        "version": __version__,
        "threads": config.threads,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    clock = time.monotonic()
    same = {key: record[key] for key in ("settings", "code", "inputs", "threads")}
    resume = Resume(state, same | {"versions": versions(COMPUTING)}, minutes)
    execute(entry, config, arguments, resume)
    record["seconds"] = round(resume.before + time.monotonic() - clock, 2)
    record["peak_memory_mb"] = peak_memory_mb()
    if resume.resumed:
        record["resumed"] = resume.resumed  # after how many updates of each loop
    place = entry.record(paths, **arguments)
    record["outputs"] = output_digests(place, jobs.outputs(stage, paths, **arguments))
    write_json(place, sealed(record | environment()))
    get_logger("cli").info(f"done in {record['seconds']} s, at most {record['peak_memory_mb']:.0f} MB")
    return resume


def execute(entry: Stage, config: Config, arguments: dict[str, Any], resume: Resume) -> None:
    """Call the stage's function, then what accepts its outputs. While it trains, a signal that ends this process has it
    keep a checkpoint first.
    """
    with Signals() as resume.signals:
        given = {"resume": resume} if entry.resumes else {}
        function(entry.function)(config, **arguments, **given)
    if entry.accept is not None and resume.job is not None:
        function(entry.accept)(config, **arguments)


def function(name: str) -> Callable[..., Any]:
    """What "module:name" stands for."""
    module, _, member = name.partition(":")
    return getattr(importlib.import_module(module), member)


@contextmanager
def job_lock(lock: Path) -> Iterator[None]:
    """Wait until no other process does the same job.

    A workflow that is killed leaves its jobs behind: started again, it would run each beside its own ghost.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_logger("cli").warning("another process is doing this job; waiting for it to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def running_workflow(guard: Path) -> str:
    """What names the run of the workflow that is working in this results folder (workflow/rules/common.smk); empty
    where none is.
    """
    if not guard.exists():
        return ""
    with guard.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return stream.read()
    return ""


def quieten_libraries(config: Config, paths: Paths, stage: str) -> None:
    """Keep libraries from chatting, from the network where nothing of it is needed, and from caches of other runs."""
    home.settle(paths.cache)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # mteb's shared cache would hand back the scores of an older model of the same name.
    os.environ["MTEB_CACHE"] = str((paths.cache / "mteb").resolve())
    if config.offline or not STAGES[stage].fetches:
        os.environ["HF_HUB_OFFLINE"] = "1"


def fix_randomness(threads: int, seed: int, use_torch: bool) -> None:
    """Fix what results could depend on: the number of threads, the seeds, the choice of kernels."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    random.seed(seed)
    import numpy

    numpy.random.seed(seed)  # noqa: NPY002 - libraries draw from this global state
    if use_torch:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        # What use_deterministic_algorithms(True) does, without the import of the compiler it configures besides (1.3 s
        # a job).
        torch.set_deterministic_debug_mode("error")
        # Nor is fresh memory written before it is used, which finds faults in kernels and takes a tenth of a training.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property

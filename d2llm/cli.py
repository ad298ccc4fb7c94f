"""`d2llm STAGE --config FILE …`: runs one stage of the suite, by hand or as a job of the workflow.

Prepares the process (threads, seeds, log, quiet libraries), runs the stage, and writes its provenance last. A wrong
config or a damaged file ends in one line `error: …` and exit code 2; any other exception keeps its traceback.
"""

import argparse
import datetime
import fcntl
import importlib
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from d2llm import __version__, stages
from d2llm.artifacts import write_json
from d2llm.config import Config, dump, load
from d2llm.errors import D2LLMError, fault
from d2llm.logs import configure, get_logger
from d2llm.models import remote
from d2llm.paths import Paths
from d2llm.provenance import checked_inputs, environment, output_digests, peak_memory_mb

HELP = {
    "download": "fetch one data set of the hub",
    "texts": "make the unlabelled text for the base models",
    "data": "make the training pairs, the evaluation sets and the data card",
    "base": "make or fetch a base model",
    "vectors": "embed a share of the texts that dense negatives are found among",
    "negatives": "mine hard negatives",
    "teacher": "tune the teacher as a prompted yes/no cross-encoder",
    "teacher-scores": "store the teacher's judgement of the training pairs",
    "pretext": "pre-train a method's base model as its recipe says",
    "train": "train a method",
    "evaluate": "score a run, or a reference row, on every task",
    "evaluate-dev": "score a run on the development splits",
    "tune": "compare all trials of all methods on the development splits",
    "collect": "bring all scores into one table",
    "comparison": "compare D2LLM with every baseline, by paired bootstrap",
    "runtime": "time embedding, scoring and searching of every method",
    "ablations": "compare D2LLM with each of its variants, by paired bootstrap",
    "table": "render a table",
    "figure": "render a figure",
    "report": "make the page that shows the whole run",
    "notebook": "execute notebooks/results.ipynb on a run's scores",
    "plan": "estimate what a config needs: memory, hours, disk",
    "check-config": "validate config files and print them resolved",
    "adopt": "write the settings that `tune` chose into a tier's file",
    "keep": "copy the small files of a finished run to a folder, as results/reference/<tier> holds them",
    "verify": "compare a run's scores with a reference run's; exit code 1 where they differ by more than is tolerated",
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "model": {"help": "teacher, decoder, encoder or one of models.others"},
    "teacher": {"default": "teacher", "help": "a teacher of the config (default: the main one)"},
    "shard": {"type": int, "help": "which part of the work, from 0"},
    "shards": {"type": int, "help": "into how many parts it is cut"},
    "method": {"help": "a method of the config"},
    "variant": {"default": "base", "help": "a variant of the config (default: base, the method itself)"},
    "seed": {"type": int, "help": "a seed of the config"},
    "download": {"help": "a data set of the hub, by its name in results/<tier>/downloads"},
    "name": {"help": "which table or figure"},
}


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a stage."""
    top = argparse.ArgumentParser(prog="d2llm", description="Run one stage of the D2LLM benchmark suite.")
    top.add_argument("--version", action="version", version=f"d2llm {__version__}")
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, help_line in HELP.items():
        command = commands.add_parser(name, help=help_line, description=help_line)
        command.add_argument("--config", required=True, nargs="+", metavar="FILE", help="later files win, key by key")
        if name == "plan":
            command.add_argument("--device", default="h100", help="h100, a100, l40s, rtx4090 or cpu (default: h100)")
            command.add_argument("--queries", type=int, default=50_000, metavar="N", help="assumed of a training set without a sample (default: 50000)")  # fmt: skip
        if name == "keep":
            command.add_argument("--to", required=True, metavar="FOLDER", help="replaced whole")
        if name == "adopt":
            command.add_argument("--to", required=True, metavar="FILE", help="the tier's file; its comments stay")
        if name == "verify":
            command.add_argument("--against", required=True, metavar="FOLDER", help="e.g. results/reference/mini")
            command.add_argument("--exact", type=float, default=1e-6, metavar="X", help="for rows without training")
            command.add_argument("--tolerance", type=float, default=0.02, metavar="X", help="for trained rows")
        if name not in stages.STAGES:
            continue
        command.add_argument("--log", metavar="FILE", help="write log lines there")
        command.add_argument("--inputs", nargs="*", default=[], metavar="PATH", help="name these in the provenance")
        for argument in stages.STAGES[name].arguments:
            options = ARGUMENTS[argument]
            command.add_argument(f"--{argument}", required="default" not in options, **options)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.stage == "check-config":
            sys.stdout.write(dump(load(options.config)))
            return 0
        if options.stage == "plan":
            from d2llm.plan import run as plan

            print(plan(load(options.config), options.device, options.queries))
            return 0
        if options.stage == "adopt":
            from d2llm.tuning import adopt_file

            print(f"{options.to}: {adopt_file(load(options.config), Path(options.to))}")
            return 0
        if options.stage == "keep":
            from d2llm.reporting.reference import keep

            kept = keep(load(options.config), Path(options.to))
            print(f"{len(kept)} files in {options.to}")
            return 0
        if options.stage == "verify":
            from d2llm.reporting.verification import verify

            found = verify(load(options.config), Path(options.against), options.exact, options.tolerance)
            print(found.text())
            return 0 if found.passed else 1
        configure(options.log)
        arguments = {name: getattr(options, name) for name in stages.STAGES[options.stage].arguments}
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
    stages.check_arguments(config, stage, arguments)
    entry = stages.STAGES[stage]
    paths = Paths.of(config)
    seed = arguments.get("seed", config.seeds[0])
    quiet(config, paths, stage)
    prepare(config.threads, seed, entry.torch)
    remote.allow(config.remote_code)
    logger = get_logger("cli")
    job = " ".join([stage, *(f"{name}={value}" for name, value in arguments.items())])
    logger.info(job)
    if int(os.environ.get("RANK", "0")):  # of the processes that share a training, the first one keeps the records
        module, _, function = entry.function.partition(":")
        getattr(importlib.import_module(module), function)(config, **arguments)
        return
    with alone(paths.locks / job.replace(" ", ".")):
        record = {
            "stage": stage,
            **arguments,
            "settings": stages.settings(config, stage, **arguments),
            "code": stages.code(stage, **arguments),
            "inputs": checked_inputs(inputs),
            "process_seed": seed,
            "version": __version__,
            "threads": config.threads,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        clock = time.monotonic()
        module, _, function = entry.function.partition(":")
        getattr(importlib.import_module(module), function)(config, **arguments)
        record["seconds"] = round(time.monotonic() - clock, 2)
        record["peak_memory_mb"] = peak_memory_mb()
        place = entry.provenance(paths, **arguments)
        record["outputs"] = output_digests(place, stages.outputs(stage, paths, **arguments))
        write_json(place, record | environment())
    logger.info(f"done in {record['seconds']} s, at most {record['peak_memory_mb']:.0f} MB")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
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


def quiet(config: Config, paths: Paths, stage: str) -> None:
    """Keep libraries from chatting, from the network where nothing of it is needed, and from caches of other runs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # mteb's shared cache would hand back the scores of an older model of the same name.
    os.environ["MTEB_CACHE"] = str((paths.cache / "mteb").resolve())
    if config.offline or stage not in ("base", "download"):  # what fetches
        os.environ["HF_HUB_OFFLINE"] = "1"


def prepare(threads: int, seed: int, use_torch: bool) -> None:
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
        # What use_deterministic_algorithms(True) does, without the import of the compiler it configures besides (1.3 s a job).
        torch.set_deterministic_debug_mode("error")


if __name__ == "__main__":
    sys.exit(main())

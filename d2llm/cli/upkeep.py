"""The commands of `d2llm` for those who run the suite, none of them a stage: each with its help, its arguments, an
example, and what it does.

They are for people: none makes an artifact of a run, none leaves provenance. Each returns the exit code.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from d2llm.config.load import dump, load
from d2llm.config.schema import Config
from d2llm.run.logs import utf_8


@dataclass(frozen=True)
class Command:
    """`config` says whether it takes --config; `arguments` are argparse's, by flag or name."""

    help: str
    example: str
    run: Callable[[Namespace], int]
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: Literal["needed", "optional", "none"] = "needed"


def configured(options: Namespace) -> Config:
    """The config of --config, with the values of -C laid over it."""
    return load(options.config, dict(options.values))


def check_config(options: Namespace) -> int:
    """Print the resolved settings; refuse, where that is asked for, what base models cannot do."""
    config = configured(options)
    if options.models:
        from d2llm.cli import preflight

        preflight.raise_first(preflight.package_problems(config))
        preflight.raise_first(preflight.model_problems(config, texts=preflight.sample_texts(config)))
    resolved = dump(config)
    utf_8()
    sys.stdout.write(resolved)
    return 0


def plan(options: Namespace) -> int:
    """Print the estimate."""
    from d2llm.cli.plan import run
    from d2llm.cli.plan.detect import run as detect

    if options.detect is not None:
        print(detect(configured(options), options.detect))
        return 0
    print(run(configured(options), options.device, options.queries))
    return 0


def why(options: Namespace) -> int:
    """Print which files make jobs stale."""
    from d2llm.cli.why import run

    print(run(configured(options)))
    return 0


def adopt(options: Namespace) -> int:
    """Write the settings chosen."""
    from d2llm.analysis.hyperparameters import adopt_file

    print(f"{options.to}: {adopt_file(configured(options), Path(options.to))}")
    return 0


def keep(options: Namespace) -> int:
    """Copy a run's small files."""
    from d2llm.reporting.reference import keep as copy

    files = copy(configured(options), Path(options.to), options.texts)
    print(f"{len(files)} files in {options.to}")
    return 0


def verify(options: Namespace) -> int:
    """Print what differs; 1 where it is too much."""
    from d2llm.reporting.verify import verify as check

    verdict = check(configured(options), Path(options.against), options.exact, options.tolerance)
    print(verdict.text())
    return 0 if verdict.passed else 1


def certify(options: Namespace) -> int:
    """Print which files differ; 1 where any does."""
    from d2llm.reporting.certify import certify as check

    certificate = check(Path(options.reference), Path(options.run), Path(options.log) if options.log else None)
    print(certificate.text())
    return 0 if certificate.passed else 1


def doctor(options: Namespace) -> int:
    """Print every finding; 1 where one is an error."""
    from d2llm.cli.doctor import examine

    findings = examine(options.config or (), dict(options.values))
    for finding in findings:
        print(finding)
    return int(any(finding.level == "error" for finding in findings))


def compare(options: Namespace) -> int:
    """Print the comparison, or write it as CSV."""
    from d2llm.reporting.compare import side, text, two_runs
    from d2llm.run.artifacts import atomic

    rows = two_runs(
        side(Path(options.a)),
        side(Path(options.b)),
        variants=options.variants,
        resamples=options.resamples,
        level=options.level,
        equivalent=options.equivalent,
    )
    if options.csv:
        with atomic(options.csv) as temporary:
            rows.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
    print(text(rows, (options.a, options.b), options.level, options.equivalent))
    return 0


def new_baseline(options: Namespace) -> int:
    """Write the files of one more baseline."""
    from d2llm.cli.new_baseline import new_baseline as write

    print(write(options.name, options.title, options.kind))
    return 0


def config_docs(options: Namespace) -> int:
    """Print the page of all keys, or of all commands, or write it."""
    from d2llm.cli.commands_page import page as commands
    from d2llm.config.docs import page as keys
    from d2llm.run.artifacts import write_text

    text = commands(options.parser) if options.of == "commands" else keys()
    if options.to:
        write_text(options.to, text)
    else:
        utf_8()
        sys.stdout.write(text)
    return 0


COMMANDS: dict[str, Command] = {
    "doctor": Command(
        "check this machine, and a config where one is given; exit code 1 where something is missing",
        "d2llm doctor --config config/mini.yaml",
        doctor,
        config="optional",
    ),
    "check-config": Command(
        "validate config files and print them resolved",
        "d2llm check-config --config config/mini.yaml mine.yaml",
        check_config,
        {
            "--models": {
                "action": "store_true",
                "help": "also ask base models at hand for what teacher and methods ask of them, as the workflow does "
                "at its start",
            }
        },
    ),
    "plan": Command(
        "estimate what a config needs: memory, hours, disk",
        "d2llm plan --config config/paper.yaml --device a100",
        plan,
        {
            "--device": {"help": "device to reckon with: h100, a100, l40s, rtx4090 or cpu (default: the config's)"},
            "--queries": {
                "type": int,
                "default": 50_000,
                "metavar": "N",
                "help": "queries assumed of a training set without a sample (default: 50000)",
            },
            "--detect": {
                "type": float,
                "metavar": "X",
                "help": "say how many trainings or examples it takes to see a difference of X instead, by the run that is there",
            },
        },
    ),
    "why": Command(
        "say which source files differ since a run's jobs ran, where Snakemake only says that their code does",
        "d2llm why --config results/mini/config.yaml",
        why,
    ),
    "compare": Command(
        "compare two runs task by task, by paired bootstrap",
        "d2llm compare results/mini trial/mini --csv difference.csv",
        compare,
        {
            "a": {"metavar": "A", "help": "a results folder, or its scores.csv"},
            "b": {
                "metavar": "B",
                "help": "another; differences are B − A, intervals need predictions.parquet beside both scores.csv",
            },
            "--csv": {"metavar": "FILE", "help": "file for the rows, in full precision"},
            "--variants": {"action": "store_true", "help": "compare variants and points of sweeps too"},
            "--resamples": {
                "type": int,
                "default": 20000,
                "metavar": "N",
                "help": "least number of resamples (default: 20000)",
            },
            "--level": {"type": float, "default": 0.95, "metavar": "X", "help": "level of confidence (default: 0.95)"},
            "--equivalent": {
                "type": float,
                "default": 0.01,
                "metavar": "X",
                "help": "size below which a difference does not matter (default: 0.01)",
            },
        },
        config="none",
    ),
    "verify": Command(
        "compare a run's scores with a reference run's; exit code 1 where they differ by more than is tolerated",
        "d2llm verify --config results/mini/config.yaml --against results/reference/mini",
        verify,
        {
            "--against": {
                "required": True,
                "metavar": "FOLDER",
                "help": "folder of the reference run, e.g. results/reference/mini",
            },
            "--exact": {
                "type": float,
                "default": 1e-6,
                "metavar": "X",
                "help": "tolerance for rows without training (default: 1e-6)",
            },
            "--tolerance": {
                "type": float,
                "default": 0.02,
                "metavar": "X",
                "help": "tolerance for trained rows (default: 0.02)",
            },
        },
    ),
    "certify": Command(
        "compare a run made again with the first one file by file, and name the first stage whose bytes differ; exit "
        "code 1 where any do",
        "d2llm certify results/reference/mini results/mini --log reproductions.jsonl",
        certify,
        {
            "reference": {"metavar": "REFERENCE", "help": "a results folder, or one that `d2llm keep` made"},
            "run": {"metavar": "RUN", "help": "the folder of the run made again"},
            "--log": {"metavar": "FILE", "help": "a log of reproductions (JSONL), which gets a line"},
        },
        config="none",
    ),
    "new-baseline": Command(
        "write what one more baseline needs, from templates: its file, rule, config and test (docs/extending.md)",
        "d2llm new-baseline mymethod --title MyMethod --kind encoder",
        new_baseline,
        {
            "name": {"metavar": "NAME", "help": "name of the file and in configs: lower case, e.g. mymethod"},
            "--title": {"help": "name in tables (default: NAME)"},
            "--kind": {
                "choices": ["decoder", "encoder"],
                "default": "decoder",
                "help": "kind of its base model (default: decoder)",
            },
        },
        config="none",
    ),
    "adopt": Command(
        "write the settings that `tune` chose into a tier's file",
        "d2llm adopt --config results/mini/config.yaml --to config/mini.yaml",
        adopt,
        {"--to": {"required": True, "metavar": "FILE", "help": "the tier's file; its comments stay"}},
    ),
    "config-docs": Command(
        "print every config key with its type, default and meaning, or every command; or write the page",
        "d2llm config-docs --to docs/configuration.md",
        config_docs,
        {
            "--of": {"choices": ["keys", "commands"], "default": "keys", "help": "which page (default: keys)"},
            "--to": {"metavar": "FILE", "help": "file to write (default: standard output)"},
        },
        config="none",
    ),
    "keep": Command(
        "copy the small files of a finished run to a folder, as results/reference/<tier> holds them",
        "d2llm keep --config results/mini/config.yaml --to results/reference/mini",
        keep,
        {
            "--to": {
                "required": True,
                "metavar": "FOLDER",
                "help": "folder of the copy; one that is there is replaced whole",
            },
            "--texts": {
                "action": "store_true",
                "help": "keep texts of files too (examples, cards), where you may publish them; without it none is kept",
            },
        },
    ),
}

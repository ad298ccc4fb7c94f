"""`d2llm doctor`: whether this machine can run the suite, and a config where one is given; what is amiss, with what
mends it.

Looks and measures nothing: no model is loaded, nothing written; of data, the files a config names are read. The hub is
asked for only where a config needs it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from d2llm.config.load import load
from d2llm.config.sections import PretrainedSettings
from d2llm.run import home
from d2llm.run.code import ROOT
from d2llm.run.errors import D2LLMError, DataError
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.data.build import Made

Level = Literal["ok", "warning", "error"]
GIGA = 1e9
# Of the mini tier: a job takes 4 GB at most, two of them run beside each other; a finished run of the full study takes
# 0.3 GB.
JOB, COMFORT, DISK = 4 * GIGA, 8 * GIGA, 2 * GIGA
SECONDS = 5.0  # to wait for the hub


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, unless it is ok, what mends it."""

    level: Level
    subject: str
    state: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.subject:12} {self.state}" + (f"; {self.fix}" if self.fix else "")


def examine(files: Sequence[str | Path] = (), overrides: Mapping[str, Any] | None = None) -> list[Finding]:
    """Every finding about the machine, and about the config of these files with `overrides` laid over them."""
    findings = [*python(), *packages(), *workflow(), *caches(), *cores(), *memory(), *gpu(), *fonts()]
    if not files:
        return [*findings, *disk(Path("results"), DISK, "the mini tier with its environment")]
    try:
        config = load(files, overrides)
    except D2LLMError as error:
        return [*findings, Finding("error", "config", str(error), "correct the file")]
    summary = f"tier {config.tier}, {len(config.methods)} methods, {len(config.runs())} trainings"
    return [*findings, Finding("ok", "config", summary), *of_config(config)]


# --------------------------------------------------------------------------------------------------------- the software
def python() -> Iterator[Finding]:
    """Which Python this is; one that is too old does not get so far."""
    yield Finding("ok", "python", f"{platform.python_version()} in {sys.prefix}")


def requirements() -> list[str]:
    """What the project asks for directly: in a clone as requirements.lock pins it, elsewhere the ranges of the
    package's metadata.
    """
    from packaging.requirements import Requirement

    project = ROOT / "pyproject.toml"
    if not project.is_file():
        return [line for line in importlib.metadata.requires("d2llm") or [] if "extra ==" not in line]
    about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    direct = {Requirement(line).name for line in about["dependencies"] + about["optional-dependencies"]["suite"]}
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#") and Requirement(line).name in direct]


def packages(
    wanted: Callable[[], list[str]] = requirements, version: Callable[[str], str] = importlib.metadata.version
) -> Iterator[Finding]:
    """Whether installed versions are those asked for. A build's own part (+cpu, +cu128) may differ."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    asked = [Requirement(line) for line in wanted()]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate()]
    good = 0
    for one in asked:
        try:
            installed = version(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "error",
                "packages",
                f"{one.name} is not installed",
                f"pip install '{one.name}{one.specifier}', or `make setup`",
            )
            continue
        asked_for = SpecifierSet(re.sub(r"\+[\w.]+", "", str(one.specifier)), prereleases=True)
        if not asked_for.contains(Version(installed).public):
            yield Finding(
                "warning",
                "packages",
                f"{one.name} {installed}, asked for is {one.specifier}",
                "results may differ from the reference; `make setup` installs the versions it was made with",
            )
        else:
            good += 1
    yield Finding("ok", "packages", f"{good} of {len(asked)} as asked for")


def workflow() -> Iterator[Finding]:
    """Whether this interpreter's `snakemake` can be called by its name."""
    called = shutil.which("snakemake")
    if called is None:
        fix = f"use {Path(sys.executable).parent}/snakemake, or activate the environment"
        yield Finding("warning", "snakemake", "not on PATH", fix)
    elif Path(called).parent.resolve() != Path(sys.executable).parent.resolve():
        fix = f"call {Path(sys.executable).parent}/snakemake"
        yield Finding("warning", "snakemake", f"{called} is of another environment than this Python", fix)
    else:
        yield Finding("ok", "snakemake", called)


def caches() -> Iterator[Finding]:
    """Whether the libraries' caches can be written; nothing where they can."""
    for folder in home.left:
        fix = "the suite keeps them in results/<tier>/cache; for Snakemake itself: "
        fix += "export XDG_CACHE_HOME=$PWD/results/cache"
        yield Finding("warning", "home", f"caches cannot be written ({folder})", fix)


def fonts() -> Iterator[Finding]:
    """Whether some font of the machine has Chinese."""
    import logging

    from d2llm.reporting.drawing.fonts import families

    logger = logging.getLogger("d2llm.reporting.drawing.fonts")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what is said here
    try:
        family = families("中文问答")
    finally:
        logger.setLevel(level)
    if family is None:
        fix = "install one (Debian: apt-get install fonts-wqy-microhei); figures show English instead"
        yield Finding("warning", "fonts", "none has Chinese characters", fix)
    else:
        yield Finding("ok", "fonts", f"Chinese in {family[-1]}")


# ---------------------------------------------------------------------------------------------------------- the machine
def cores() -> Iterator[Finding]:
    """How many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 2:
        yield Finding("warning", "cores", "one", "times in the README are of two; everything runs, one job at a time")
    else:
        yield Finding("ok", "cores", str(count))


def memory_bytes(
    proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup/memory.max")
) -> tuple[float, float] | None:
    """(total, free) memory of the machine, or what its container is limited to; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in proc.read_text(encoding="utf-8").splitlines())
        total, free = (float(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = float(group.read_text(encoding="utf-8"))  # "max" is no number
    except (OSError, ValueError):
        limit = total
    return min(total, limit), min(free, limit)


def memory(measured: tuple[float, float] | None | Literal["look"] = "look") -> Iterator[Finding]:
    """Whether the mini tier's jobs fit into memory."""
    measured = memory_bytes() if measured == "look" else measured
    if measured is None:
        yield Finding("warning", "memory", "this system does not tell", "a job of the mini tier takes 4 GB at most")
        return
    total, free = measured
    amount = f"{total / GIGA:.1f} GB, {free / GIGA:.1f} free"
    if total < JOB:
        yield Finding("error", "memory", amount, "a job of the mini tier takes up to 4 GB; use a larger machine")
    elif free < JOB or total < COMFORT:
        fix = "8 GB are asked for; end other programs, or run one job at a time: snakemake --cores 1"
        yield Finding("warning", "memory", amount, fix)
    else:
        yield Finding("ok", "memory", amount)


def disk(
    folder: Path, needed: float, of: str, other: str = "choose another folder: -C results=FOLDER"
) -> Iterator[Finding]:
    """Whether a folder, there or not, can be written and has room for so many bytes."""
    place = standing(folder)
    if not os.access(place, os.W_OK):
        yield Finding("error", "disk", f"{place} cannot be written", other)
        return
    free = shutil.disk_usage(place).free
    amount = f"{free / GIGA:.1f} GB free for {folder}, {of} takes about {max(needed, 0.05 * GIGA) / GIGA:.1f}"
    if free < needed:
        yield Finding("error", "disk", amount, f"make room, or {other}")
    elif free < 2 * needed:
        yield Finding("warning", "disk", amount, "the estimate is rough; make room")
    else:
        yield Finding("ok", "disk", amount)


def standing(folder: Path) -> Path:
    """The nearest folder above that is there already, or the folder itself."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def device(folder: Path) -> int:
    """The number of the disk that a folder lies on or will."""
    return standing(folder).stat().st_dev


def gpus() -> list[tuple[str, float]]:
    """(name, bytes) of every GPU torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    every = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [(one.name, float(one.total_memory)) for one in every]


def gpu() -> Iterator[Finding]:
    """The GPUs there are; the mini tier needs none."""
    devices = gpus()
    if devices:
        yield Finding("ok", "gpu", ", ".join(f"{name} ({size / GIGA:.0f} GB)" for name, size in devices))
    elif Path("/proc/driver/nvidia").exists():
        fix = "install a build of torch with CUDA (README, Real models, GPUs, clusters)"
        yield Finding("warning", "gpu", "there is one that this torch cannot use", fix)
    else:
        yield Finding("ok", "gpu", "none; the mini and laptop tiers need none")


# ----------------------------------------------------------------------------------------------------------- the config
def of_config(config: Config) -> Iterator[Finding]:
    """Whether the files, models, packages and sizes of a config fit this machine."""
    yield from files(config)
    texts: list[str] = []
    read = list(rows(config, texts))
    data: Made | None = None
    if not any(one.level == "error" for one in read):
        try:
            data = own(config)
        except DataError as error:  # of the sets together
            read.append(Finding("error", "files", str(error)))
    yield from read
    models = list(checkpoints(config))
    yield from models
    yield from extras(config)
    hub_here, coming = False, Coming()
    if not config.offline:
        answers = list(hub("; nothing of models and data sets there is asked, no sizes are estimated"))
        yield from answers
        hub_here = all(one.level == "ok" for one in answers)
    if hub_here:
        asked_hub, coming = sent(config)
        models += asked_hub
        yield from asked_hub
    if not any(one.level == "error" for one in models):  # else that is what is to be mended first
        asked_of = list(asked(config, hub_here, texts))
        models += asked_of
        yield from asked_of
    from_hub = any(getattr(config.models.of(name), "origin", "") == "hub" for name in config.models.names())
    if not any(one.level == "error" for one in [*read, *models]) and (hub_here or not from_hub):
        yield from sizes(config, data, coming=coming)


class Coming(NamedTuple):
    """Bytes that the hub will send: all, and those of data, which are kept in the results folder as well."""

    all: int = 0
    data: int = 0


def sent(config: Config) -> tuple[list[Finding], Coming]:
    """What the hub lacks of what the config needs, and how much it will send; whether there is room for it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from d2llm.cli.fetches import ask

    answer = ask(config)
    coming = Coming(answer.models + answer.data, answer.data)
    findings = [Finding("error", "hub", problem) for problem in answer.problems]
    if not findings:
        amount = f"has all of it: {answer.models / GIGA:.1f} GB of models and {answer.data / GIGA:.1f} of data to come"
        findings.append(Finding("ok", "hub", amount))
    other = "set HF_HOME to a folder on a larger disk"
    return [*findings, *disk(Path(HF_HUB_CACHE), coming.all, "what the hub sends", other)], coming


def files(config: Config) -> Iterator[Finding]:
    """Whether the user's own files are there."""
    if config.data.source != "files":
        return
    keys: dict[str, list[str]] = {}
    for key, path in config.data.files.paths().items():
        keys.setdefault(path, []).append("data.files." + ".".join(key))
    missing = [path for path in keys if not Path(path).is_file()]
    for path in missing:
        fix = f"put it there or correct {', '.join(keys[path])} (seen from {Path.cwd()})"
        yield Finding("error", "files", f"no such file: {path}", fix)
    if keys and not missing:
        yield Finding("ok", "files", f"all {len(keys)} are there")
    if config.data.files.downloads():
        yield Finding("ok", "files", f"{len(config.data.files.downloads())} sets will come from the hub")


def rows(config: Config, sample: list[str] | None = None) -> Iterator[Finding]:
    """What the data stage would refuse in a set of the user's own files: read always, as they may have changed since
    that stage ran.

    One finding a set at most; sets that lack a file, or have tables of the hub, are not read. What only shows in all
    sets together is left to `own`. Some of the texts are added to `sample`.
    """
    if config.data.source != "files":
        return
    from d2llm.cli import demands
    from d2llm.config.data import HubTable
    from d2llm.data import build

    settings = config.data.files
    local = build.local_files(config)
    findings, readable = [], 0
    for (part, name), one in settings.sets().items():
        tables = list(one.tables().values())
        if not tables or not all(
            not isinstance(table, HubTable) and Path(settings.located(table)).is_file() for table in tables
        ):
            continue
        alone = local.model_copy(update={"train": {}, "tasks": {}, part: {name: getattr(local, part)[name]}})
        try:
            if part == "train":
                pairs, _, _ = build.judged_pairs(alone, config.training.pack)
                if sample is not None:
                    sample += demands.sample_of(pairs["passage"].drop_duplicates())
            else:
                build.files_tasks(alone)
            readable += 1
        except DataError as error:
            findings.append(Finding("error", "files", str(error)))
    yield from dict.fromkeys(findings)  # a corpus that several sets share is wrong once
    if readable:
        yield Finding("ok", "files", f"the rows of {readable} of {len(settings.sets())} sets can be used")


def checkpoints(config: Config) -> Iterator[Finding]:
    """Whether base models that are not on the hub are where the config says."""
    from d2llm.models.base.pretrained import located

    for name in config.models.names():
        model = config.models.of(name)
        if not isinstance(model, PretrainedSettings) or model.origin == "hub":
            continue
        try:
            folder, file = located(model, f"models.{name}.source")
            yield Finding("ok", "models", f"{name}: {folder / file if file else folder}")
        except D2LLMError as error:
            yield Finding("error", "models", str(error))


def extras(config: Config) -> Iterator[Finding]:
    """Packages that only some configs need."""
    sources = [getattr(config.models.of(name), "source", "") for name in config.models.names()]
    needed = [("gguf", any(source.endswith(".gguf") for source in sources), "pip install gguf (extra `gguf`)")]
    needed.append(("bitsandbytes", config.teacher.quantization != "none", "pip install bitsandbytes, on a GPU"))
    for package, wanted, fix in needed:
        if wanted and importlib.util.find_spec(package) is None:
            yield Finding("error", "packages", f"{package} is not installed, which this config needs", fix)
    on_gpu = [
        key
        for key, value in (
            ("training.precision float16", config.training.precision == "float16"),
            ("teacher.quantization", config.teacher.quantization != "none"),
        )
        if value
    ]
    if on_gpu and not gpus():
        yield Finding("error", "gpu", f"none, and {' and '.join(on_gpu)} need one", "change the key, or the machine")


def hub(otherwise: str = "") -> Iterator[Finding]:
    """Whether the hub answers; `otherwise`: what is left undone where it does not."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        state = f"HF_HUB_OFFLINE is set, and this config needs the hub{otherwise}"
        yield Finding("error", "hub", state, "unset HF_HUB_OFFLINE")
        return
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=SECONDS):
            pass
    except urllib.error.HTTPError:  # it answers
        pass
    except (OSError, ValueError) as error:
        fix = "check network and proxy, or name a mirror in HF_ENDPOINT"
        yield Finding("error", "hub", f"{constants.ENDPOINT} cannot be reached ({error}){otherwise}", fix)
        return
    yield Finding("ok", "hub", f"{constants.ENDPOINT} answers")


def asked(config: Config, reachable: bool, texts: Sequence[str]) -> Iterator[Finding]:
    """What stages would refuse of the base models, in hours; of the hub's, their small files are fetched where it is in
    reach.
    """
    from d2llm.cli import preflight

    for _, text in preflight.package_problems(config):
        yield Finding("error", "packages", text)
    problems = list(preflight.model_problems(config, reachable, texts or preflight.sample_texts(config)))
    for level, text in problems:
        if not text.endswith(preflight.AWAY):  # which is said of the hub, once
            yield Finding("error" if level == "error" else "warning", "models", text)
    if not problems:
        yield Finding("ok", "models", f"{', '.join(config.bases())} can do what is asked of them")


def own(config: Config) -> Made | None:
    """What the data stage makes of one's own files where all are there; None for other data. Raises DataError as later
    stages would.
    """
    from d2llm.cli import preflight
    from d2llm.data import build

    settings = config.data.files
    if config.data.source != "files" or settings.downloads() or not all(map(os.path.isfile, settings.paths().values())):
        return None
    data = build.from_files(config)
    with tempfile.TemporaryDirectory() as folder:
        try:
            build.write_tasks(Path(folder), data)
            preflight.check_data(config, Path(folder))
        except D2LLMError as error:
            raise DataError(str(error).replace(folder, str(Paths.of(config).tasks))) from None
    return data


def sizes(
    config: Config,
    data: Made | None = None,
    measured: tuple[float, float] | None | Literal["look"] = "look",
    coming: Coming | None = None,
) -> Iterator[Finding]:
    """Whether the estimated memory of each job, and the disk of all, are there (`d2llm plan`, which is rough); `data`:
    by `own`, `coming`: by `sent`.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    from d2llm.cli.plan import plan, smaller

    try:
        planned = plan(config, "cpu", data=data)
    except (D2LLMError, OSError) as error:
        yield Finding("error", "sizes", f"cannot be estimated: {error}")
        return
    most = max(planned["costs"], key=lambda cost: cost.memory)
    estimate = f"the largest job ({most.stage}) takes about {most.memory / GIGA:.1f} GB"
    devices = gpus()
    room = min(size for _, size in devices) if devices else None
    if room is None:
        look = memory_bytes() if measured == "look" else measured
        room = look[0] if look else None
    place = "its GPU" if devices else "this machine"
    if room is not None and most.memory > room:
        fix = f"see {smaller(most.stage)}, or take a larger machine"
        yield Finding("error", "sizes", f"{estimate}, {place} has {room / GIGA:.1f}", fix)
    else:
        yield Finding("ok", "sizes", estimate)
    needed = sum(planned["disk"].values())
    root, coming = Paths.of(config).root, coming or Coming()
    beside = coming.all if device(root) == device(Path(HF_HUB_CACHE)) else 0  # the hub's cache on the same disk
    yield from disk(root, 1.2 * needed + coming.data + beside, f"tier {config.tier} with its downloads")

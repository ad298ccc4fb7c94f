"""Writes requirements.hashes.lock: the pins of requirements.lock, each with the SHA-256 of every file of its release.

    make hashes          (python tools/hash_lock.py [pip's options, e.g. --extra-index-url ADDRESS])

pip itself asks for the lists of files, so its configuration holds: indexes, folders of wheels (find-links), certificates, credentials.
A list's own digests are taken; a file on this disk is read. Nothing is downloaded. Exits with 1 and one line where a pin has no file,
a file is listed without a digest, or two indexes disagree about one. Uses pip's inner parts, as no command of it tells digests.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pip._internal.commands import create_command
from pip._internal.index.collector import parse_links
from pip._internal.models.link import Link
from pip._vendor.packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from pip._vendor.packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
LOCK, HASHED = ROOT / "requirements.lock", ROOT / "requirements.hashes.lock"
PIN = re.compile(r"([\w.-]+)==([\w.+!]+)( ; .+)?")
HEAD = """\
# requirements.lock with the SHA-256 of every file of each release: `make setup HASHED=1`, or `pip install --require-hashes -r`.
# Made by `make hashes`, which has to be run again after every change of requirements.lock. Holds wherever that one does, but of
# the builds that are not on the main index it knows these files alone:
"""


def pins(text: str) -> list[tuple[str, str, str]]:
    """(name, version, rest of the line) of every pin. Raises ValueError for any other line."""
    entries = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            if match is None:
                raise ValueError(f"requirements.lock: {line!r}: expected name==version; pin it")
            entries.append((match[1], match[2], match[3] or ""))
    return entries


def is_of(file: str, name: str, version: str) -> bool:
    """Whether a file is a wheel or a source archive of this very version, local part included."""
    try:
        known = parse_wheel_filename(file)[:2] if file.endswith(".whl") else parse_sdist_filename(file)
    except (ValueError, InvalidVersion):  # an installer of old, or a name that no tool of today writes
        return False
    return known == (canonicalize_name(name), Version(version))


def listed(finder: Any, name: str) -> Iterator[tuple[str, str | None]]:
    """(file, SHA-256 if told) of all files of a project, in the indexes and folders that pip looks into."""
    scope = finder.search_scope
    for place in scope.find_links:
        folder = Path(Link(place).file_path if place.startswith("file:") else place)
        if folder.is_dir():
            yield from ((file.name, digest(file)) for file in folder.iterdir() if is_named(file.name, name))
    pages = [place for place in scope.find_links if "://" in place and not place.startswith("file:")]
    for address in [*scope.get_index_urls_locations(name), *pages]:
        page = finder._link_collector.fetch_response(Link(address))
        for link in parse_links(page) if page is not None else ():
            told = link.hash if link.hash_name == "sha256" else None
            yield link.filename, told or (digest(Path(link.file_path)) if link.is_file else None)


def is_named(file: str, name: str) -> bool:
    """Whether a file's name begins with the project's, so that no other needs to be read."""
    return canonicalize_name(file).startswith(canonicalize_name(name) + "-")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(files: Iterator[tuple[str, str | None]], name: str, version: str) -> dict[str, str]:
    """File to SHA-256, of one version. Raises ValueError where there is none, or not one of a file."""
    digests: dict[str, str] = {}
    for file, told in files:
        if not is_of(file, name, version):
            continue
        if told is None:
            raise ValueError(f"{file}: listed without a SHA-256; use an index that tells it")
        if digests.setdefault(file, told) != told:
            raise ValueError(f"{file}: two indexes list different bytes; give pip the true one alone")
    if not digests:
        raise ValueError(f"requirements.lock: {name}=={version}: no file where pip looks; correct the pin, or name the index to pip")  # fmt: skip
    return digests


def written(digests: dict[tuple[str, str, str], dict[str, str]]) -> str:
    """The text of the file: pins in the order of the lock, digests sorted."""
    local = sorted(file for (_, version, _), files in digests.items() if "+" in version for file in files)
    lines = [f"#   {file}" for file in local]
    for (name, version, rest), files in digests.items():
        lines.append(" \\\n    ".join([f"{name}=={version}{rest}", *(f"--hash=sha256:{one}" for one in sorted(set(files.values())))]))  # fmt: skip
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    command = create_command("install")
    options, _ = command.parse_args(sys.argv[1:])
    with command.main_context():
        finder = command._build_package_finder(options, command.get_default_session(options))
        try:
            wanted = pins(LOCK.read_text(encoding="utf-8"))
            digests = {pin: hashes(listed(finder, pin[0]), pin[0], pin[1]) for pin in wanted}
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    HASHED.write_text(written(digests), encoding="utf-8")
    print(f"{HASHED.name}: {len(digests)} pins, {sum(map(len, digests.values()))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())

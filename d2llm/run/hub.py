"""The Hugging Face hub as the pipeline meets it: what it has is asked before anything is fetched, what it fails to give
is asked for again, what came is checked, what is not there is named.

Only the rules that fetch (`base`, `download`) and `d2llm doctor` come here; every other stage runs with the hub
switched off.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from d2llm.run.errors import ArtifactError, ConfigError, first_line
from d2llm.run.home import writable
from d2llm.run.logs import get_logger

T = TypeVar("T")

# A hub that fails in one way is asked again after so many seconds each time; where somebody waits for the answer, less
# patiently.
WAITS = (2.0, 10.0, 30.0, 60.0)
SHORT = (1.0, 5.0)


# Of files, by their names, the bytes.
Sizes = Mapping[str, int]


class Repository(NamedTuple):
    """A repository of the hub at a revision; `kind`: model or dataset."""

    name: str
    kind: str
    revision: str | None

    def __str__(self) -> str:
        kind = "data set " if self.kind == "dataset" else ""
        return f"{kind}{self.name}" + (f" at {self.revision}" if self.revision else "")


class DamagedError(OSError):
    """A file that is not what the hub says it is."""


def patiently(fetch: Callable[[], T], what: str, where: str, waits: Sequence[float] | None = None) -> T:
    """What `fetch` returns. Failures of hub and network are waited for; a download that broke off goes on where it
    stopped.

    `what` names the thing, `where` the key that asks for it, `waits` the seconds before each new try (WAITS; none where
    somebody sits and waits). Raises ConfigError for what the hub does not have, ArtifactError when it stays away.
    """
    waits = WAITS if waits is None else waits
    tried: dict[str, int] = {}
    while True:
        try:
            return fetch()
        except Exception as error:  # the libraries wrap a hub's failure in errors of many kinds
            refuse_lasting(error, what, where)
            # One failure after another, of one file after another, is progress; the same again and again is not.
            times = tried[first_line(error)] = tried.get(first_line(error), 0) + 1
            if times > len(waits):
                raise ArtifactError(
                    f"{where}: {what} cannot be fetched ({first_line(error)}); what has come is kept; "
                    "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and run again"
                ) from error
            wait = waits[times - 1]
            get_logger(__name__).warning("%s: %s; again in %d s", what, first_line(error), wait)
            time.sleep(wait)


def refuse_lasting(error: Exception, what: str, where: str) -> None:
    """Raise ConfigError for a failure that no waiting mends and the user can, the error itself for any other that does
    not pass.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        access = "accept them there, then log in (hf auth login) or set HF_TOKEN, and run again"
        raise ConfigError(f"{where}: {what} is gated: its page on the hub asks for terms; {access}") from error
    if isinstance(error, RevisionNotFoundError):
        raise ConfigError(f"{where}: the hub has no {what}: no such revision, or it is gone; take another") from error
    if isinstance(error, RepositoryNotFoundError):
        private = "check its name; a private one needs a login (hf auth login) or HF_TOKEN"
        raise ConfigError(f"{where}: the hub has no {what}; {private}") from error
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        raise ConfigError(f"{where}: {what} has no such file ({first_line(error)})") from error
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        raise ConfigError(f"{where}: the hub refuses the login for {what}; correct HF_TOKEN or log in again") from error
    if not passing(error):
        raise error
    check_cache()


# What takes of a repository's files those that are needed, or raises ConfigError where it has them not.
Choose = Callable[[dict[str, int]], Sizes]


def fetch(repository: Repository, choose: Choose, where: str, waits: Sequence[float] | None = None) -> Path:
    """The folder in the cache of the chosen files of a repository, for which there is room, checked against the hub's
    digests. Raises as `patiently`.
    """
    from huggingface_hub import snapshot_download

    name, kind, revision = repository

    def once() -> Path:
        sizes = needed(repository, choose)
        check_room(repository, sizes, where)
        patterns = [glob.escape(file) for file in sizes]
        folder = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
        check(name, kind)
        return Path(folder)

    return patiently(once, str(repository), where, waits)


def ask(repository: Repository, choose: Choose, where: str) -> int:
    """Bytes of the chosen files that the hub has to send yet. Raises as `patiently`."""
    return to_come(repository, patiently(lambda: needed(repository, choose), str(repository), where, SHORT))


def needed(repository: Repository, choose: Choose) -> Sizes:
    """What `choose` takes of a repository's files, {name: bytes}, and the hub would give. Nothing is asked where all of
    it lies in the cache and the revision is a commit, which stays what it is.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    name, kind, revision = repository
    try:
        cached = {file.path: file.size for file in get_cached_repo_tree(name, repo_type=kind, revision=revision)}
    except CachedRepoTreeNotFoundError:
        cached = {}
    if cached and re.fullmatch("[0-9a-f]{40}", revision or "") and not to_come(repository, sizes := choose(cached)):
        return sizes
    try:
        there = listed(repository)
    except Exception as error:
        refused = 400 <= getattr(getattr(error, "response", None), "status_code", 500) < 500
        if refused or not cached or not passing(error):
            raise
        there = cached
    return choose(there)


def listed(repository: Repository) -> dict[str, int]:
    """{name: bytes} of all files of a repository, by the hub."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, kind, revision = repository
    try:
        about: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:  # what lies in the cache, whoever brought it, is all there is
        folder = Path(
            snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[])
        )
        files = (file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    there = {file.rfilename: file.size or 0 for file in about.siblings or ()}
    if about.gated and there:  # anybody may see what there is, not everybody have it: a file's head tells
        hf_hub_download(name, max(there, key=there.__getitem__), repo_type=kind, revision=revision, dry_run=True)
    return there


def to_come(repository: Repository, sizes: Sizes) -> int:
    """Bytes of some files of a repository that are not in the cache yet."""
    from huggingface_hub import try_to_load_from_cache

    def here(file: str) -> bool:
        name, kind, revision = repository
        return isinstance(try_to_load_from_cache(name, file, revision=revision, repo_type=kind), str)

    return sum(size for file, size in sizes.items() if not here(file))


def check_cache() -> None:
    """Raise ConfigError where the hub's cache cannot be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if not writable(HF_HUB_CACHE):
        raise ConfigError(
            f"HF_HOME: the hub's cache {HF_HUB_CACHE} cannot be written; set HF_HOME to a folder that can"
        )


def check_room(repository: Repository, sizes: Sizes, where: str) -> None:
    """Raise ConfigError where the disk of the hub's cache has no room for what is to come."""
    from huggingface_hub.constants import HF_HUB_CACHE

    coming = to_come(repository, sizes)
    if coming:
        check_cache()
    place = Path(HF_HUB_CACHE).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if coming > free:
        raise ConfigError(
            f"{where}: {repository} takes {coming / 1e9:.1f} GB, {free / 1e9:.1f} are free for the hub's cache "
            f"{HF_HUB_CACHE}; make room, or set HF_HOME to a folder on a larger disk"
        )


def passing(error: BaseException) -> bool:
    """Whether an error is one of network, hub or disk, itself or what it was raised from."""
    from huggingface_hub.errors import HfHubHTTPError

    seen: BaseException | None = error
    while seen is not None:
        # The HTTP client is the hub library's own choice: known by its name.
        if isinstance(seen, OSError | HfHubHTTPError) or type(seen).__module__.partition(".")[0].startswith("httpx"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check(repo: str, kind: str) -> None:
    """Compare the cached files of a repository (kind `model` or `dataset`) with the digests the hub gave for them.

    Their names in the cache are these digests: SHA-256 of large files, git's SHA-1 of small ones. A damaged one is
    removed. Raises DamagedError.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind) / "blobs"
    for blob in sorted(blobs.glob("*")):
        digest = digest_of(blob, len(blob.name))
        if digest is not None and digest != blob.name:
            blob.unlink()
            raise DamagedError(f"{repo}: a file came damaged ({blob.name[:12]}… has digest {digest[:12]}…)")


def digest_of(file: Path, length: int) -> str | None:
    """A file's SHA-256 (64 characters) or git SHA-1 (40); None for a name of another length, which is no digest."""
    if length == 64:
        digest = hashlib.sha256()
    elif length == 40:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    else:
        return None
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()

"""The Hugging Face hub as the pipeline meets it: what it fails to give is asked for again, what came is checked, what
is not there is named.

Only the rules that fetch (`base`, `download`) come here; every other stage runs with the hub switched off.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from d2llm.run.errors import ArtifactError, ConfigError, first_line
from d2llm.run.home import writable
from d2llm.run.logs import get_logger

T = TypeVar("T")

# A hub that fails in one way is asked again after so many seconds each time.
WAITS = (2.0, 10.0, 30.0, 60.0)


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
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        agreement = f"{where}: {what} asks for an agreement; accept it on its page and log in (hf auth login)"
        raise ConfigError(agreement) from error
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        raise ConfigError(f"{where}: the hub has no {what}; check name and revision") from error
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        raise ConfigError(f"{where}: {what} has no such file ({first_line(error)})") from error
    if not passing(error):
        raise error
    if not writable(HF_HUB_CACHE):
        raise ConfigError(
            f"HF_HOME: the hub's cache {HF_HUB_CACHE} cannot be written; set HF_HOME to a folder that can"
        ) from error


def files(repo: str, kind: str, revision: str | None) -> dict[str, int]:
    """{name: bytes} of a repository (kind `model` or `dataset`). Of a commit that has been fetched from nothing is
    asked, as it stays what it is; of a branch the cache answers where the hub does not.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled

    try:
        cached = {file.path: file.size for file in get_cached_repo_tree(repo, repo_type=kind, revision=revision)}
    except CachedRepoTreeNotFoundError:
        cached = {}
    if cached and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return cached
    try:
        about: Any = HfApi().repo_info(repo, repo_type=kind, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:  # what lies in the cache, whoever brought it, is all there is
        folder = Path(
            snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[])
        )
        return {
            file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()
        }
    except Exception as error:
        if cached and passing(error):
            return cached
        raise
    return {file.rfilename: file.size or 0 for file in about.siblings or ()}


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

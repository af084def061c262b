"""
Send a folder to the Hub in one commit, and check what arrived.

An error is retried if a retry can help (a cut connection, 409, 429, 5xx). Any other error becomes a [`HubError`] of
one line.
"""

import fnmatch
import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

# `HTTPError` is the base class of all errors of the client's HTTP library, which changed with its major version.
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled


logger = logging.getLogger(__name__)

MAIN = constants.DEFAULT_REVISION
_WAITS = (2.0, 5.0)  # seconds before the second and third attempt; the client has retried most requests itself
_LONGEST_WAIT = 60.0  # of a `Retry-After`; a longer one is reported
_ADVICE = {
    401: "Check the id (`user/name`); log in with `hf auth login`, or set HF_TOKEN to a token with the rights for it.",
    403: "The token may not do that. Take one with the rights for it (to write, if this was a push), or another id.",
    404: "Check the id (`user/name`) and the revision: they must exist, and the token must see them.",
    409: "Somebody else is changing the repository. Try again.",
    429: "The Hub asks to slow down. Try again later; what is there already is not sent or fetched again.",
}

Result = TypeVar("Result")


class HubError(RuntimeError):
    """A transfer failed. The message says in one line what failed and what to do."""


class Uploaded(NamedTuple):
    """A finished push: full id of the repository, commit, and web address."""

    repo_id: str
    commit: str
    url: str


def create_repository(
    repo_id: str, repo_type: str = "model", private: bool | None = None, token: str | None = None
) -> str:
    """
    Create a repository if it does not exist.

    Args:
        repo_id (`str`): `user/name`, or `name` for a repository of the token's owner.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Whether a new repository is private; by default it is public, unless its
            organisation has another default.
        token (`str`, *optional*): Access token; the stored one by default.

    Returns:
        `str`: The full id of the repository.

    Raises:
        [`HubError`]: If the Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    made = _patiently(
        lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True),
        f"{repo_id!r} could not be created or opened on the Hub",
    )
    return made.repo_id


def upload(
    folder: str | Path,
    repo_id: str,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload with tokforget",
    owned: Sequence[str] = (),
    mark: str | None = None,
) -> Uploaded:
    """
    Send every file of a folder in one commit, then compare the files on the Hub with those that were sent.

    Args:
        folder (`str` or `Path`): Folder to send, with all its files.
        repo_id (`str`), repo_type (`str`), private (`bool`, *optional*), token (`str`, *optional*): See
            [`create_repository`].
        revision (`str`, *optional*): Branch, created if it does not exist; `main` by default.
        message (`str`): Commit message.
        owned (`Sequence[str]`): Patterns of file names. A file of the repository that matches and is not in the folder
            is left from an earlier push, and is removed in the same commit.
        mark (`str`, *optional*): The file that identifies an earlier push. If the repository lacks it, nothing is
            removed, because its files belong to somebody else.

    Returns:
        [`Uploaded`]: Id, commit and address.

    Raises:
        [`HubError`]: If it is not certain that every file arrived.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise HubError(f"`revision` {revision} is a commit; a push needs a branch.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    repo_id = create_repository(repo_id, repo_type, private, token)
    api = HfApi(token=token)

    def commit():
        if revision not in (None, MAIN):
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        there = [
            item.path for item in api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
        ]
        ours = [path for path in there if any(fnmatch.fnmatchcase(path, pattern) for pattern in owned)]
        stale = [path for path in ours if mark in there and path not in files]
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
        # Not `upload_folder`, which may divide a push into several commits.
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision)

    def check(commit_id: str) -> list[str]:
        names, arrived = list(files), {}
        for at in range(0, len(names), 500):
            found = api.get_paths_info(repo_id, names[at : at + 500], revision=commit_id, repo_type=repo_type)
            arrived |= {item.path: item for item in found}
        return [name for name, path in files.items() if name not in arrived or not _same(path, arrived[name])]

    done = _patiently(commit, f"The push to {repo_id!r} failed and is not known to have arrived")
    wrong = _patiently(lambda: check(done.oid), f"What was sent to {repo_id!r} could not be checked")
    if wrong:
        raise HubError(
            f"The push to {repo_id!r} is not whole: commit {done.oid} lacks {len(wrong)} of {len(files)} files or holds "
            f"others, the first is {wrong[0]!r}. Run the same command again."
        )
    return Uploaded(repo_id, done.oid, done.commit_url)


def _same(path: Path, remote) -> bool:
    """Whether a file on the Hub has the size and the hash of a local file."""
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id  # git's hash


# -- what goes wrong ---------------------------------------------------------------------------------------------------
def _patiently(call: Callable[[], Result], what: str) -> Result:
    """The result of `call`, retried where that can help. Raises [`HubError`], whose message begins with `what`."""
    for wait in (*_WAITS, None):
        try:
            return call()
        except (HTTPError, OfflineModeIsEnabled, ValueError, RuntimeError) as raised:
            # The upload of a large file wraps the error that caused the failure.
            wrapped = isinstance(raised, RuntimeError) and isinstance(raised.__cause__, HTTPError)
            error = raised.__cause__ if wrapped else raised
            asked = _seconds_until_retry(error)
            if wait is None or asked is None or asked > _LONGEST_WAIT:
                raise HubError(f"{what}: {explain(error)}") from error
            logger.warning("%s: %s Trying again in %g s.", what, explain(error), max(wait, asked))
            time.sleep(max(wait, asked))
    raise AssertionError("unreachable")


def _seconds_until_retry(error: Exception) -> float | None:
    """Seconds that the Hub asks to wait before a retry, 0 if it names none; `None` if a retry cannot help."""
    if not isinstance(error, HTTPError) or isinstance(error, OfflineModeIsEnabled):
        return None
    if not isinstance(error, HfHubHTTPError):
        return 0.0  # the connection failed
    status = error.response.status_code
    if status not in (409, 429) and status < 500:
        return None
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


OFFLINE = (
    "It was never downloaded here, and HF_HUB_OFFLINE is set. Unset that variable, or pass a folder that is there."
)


def explain(error: Exception) -> str:
    """An error of the Hub's client in one line: what came, and what to do."""
    if constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError):  # which would speak of the connection
        return OFFLINE
    if not isinstance(error, HfHubHTTPError):
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    response = error.response
    said = error.server_message or response.reason_phrase
    asked = response.headers.get("Retry-After")
    return " ".join(
        [
            f"{response.status_code} {' '.join(said.split())[:200].rstrip('.')}.",
            *([f"It asks to wait {asked} s."] if asked else []),
            _ADVICE.get(response.status_code, ""),
        ]
    ).strip()

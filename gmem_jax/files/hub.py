"""Files on the Hugging Face Hub, for paths of weights, banks and statistics.

hf://OWNER/NAME[@REVISION][/FILE] names a repository, or a file or folder in it.
The extra `hub` brings them into its cache: files that are there are not fetched
again, one that was cut off goes on, and HF_HUB_OFFLINE=1 asks nobody. It also
takes files there.
"""

import contextlib
import fnmatch
import glob
import hashlib
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gmem_jax.files import shown

SCHEME = "hf://"
_FORM = re.compile(
  r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?"
)


class Address(NamedTuple):
  """What an address of the hub names.

  Attributes:
    repo: OWNER/NAME.
    revision: A branch, a tag or a commit; None for the main branch.
    file: A file or folder of the repository; "" for all of it.
  """

  repo: str
  revision: str | None
  file: str


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address of the hub."""
  return os.fspath(path).startswith(SCHEME)


def parse(text: str) -> Address:
  """Reads an address.

  Raises:
    ValueError: If it is not of the form.
  """
  match = _FORM.fullmatch(text.rstrip("/"))
  parts = match and (match["file"] or "").split("/")
  if not match or not parts or ".." in parts:
    raise ValueError(f"{text}: hf://OWNER/NAME[@REVISION][/FILE] is expected")
  return Address(match["repo"], match["revision"], match["file"] or "")


def local(path: str | os.PathLike) -> pathlib.Path:
  """The path on this machine, absolute; fetches what is on the hub.

  Raises:
    ModuleNotFoundError: If the extra `hub` is needed, and not installed.
    ValueError: If it is not there, nobody may read it, the hub is out of reach,
      or what came is not what was promised.
  """
  if not is_remote(path):
    return pathlib.Path(path).absolute()
  text = os.fspath(path)
  address = parse(text)
  with _asking(text) as asked:
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(
      repo_id=address.repo, repo_type="model"
    )
    blobs = pathlib.Path(constants.HF_HUB_CACHE, folder, "blobs")
    before = {blob.name for blob in blobs.glob("*")}
    snapshot = asked.snapshot_download(
      address.repo,
      revision=address.revision,
      allow_patterns=_patterns(address.file),
    )
  _check((b for b in blobs.glob("*") if b.name not in before), text)
  found = pathlib.Path(snapshot, address.file)
  if not found.exists():
    # Also where the hub is out of reach, and the cache has other files of it.
    held = shown.some(sorted(_ask_about(text)[0])) or "no file"
    raise ValueError(
      f"{text}: {address.repo} has no {address.file!r}, but {held}"
    )
  return found


def _patterns(file: str) -> list[str] | None:
  """What to fetch for a file, a folder, or an index of weights in shards."""
  if not file:
    return None
  name = glob.escape(file)
  stem, suffix = os.path.splitext(name.removesuffix(".index.json"))
  shards = [f"{stem}-*{suffix}"] if name.endswith(".index.json") else []
  return [name, f"{name}/*", *shards]


def library(text: str) -> Any:
  """huggingface_hub, for an address.

  Raises:
    ModuleNotFoundError: If it is not installed; names the extra.
  """
  try:
    import huggingface_hub
  except ModuleNotFoundError:
    raise ModuleNotFoundError(
      f"{text} needs huggingface_hub: pip install 'gmem_jax[hub]'"
    ) from None
  return huggingface_hub


class Published(NamedTuple):
  """A file on the hub, before it is fetched.

  Attributes:
    address: Its own, without patterns.
    size: In bytes.
    licence: That of its repository; "" if it names none.
    page: Of the repository, for people.
  """

  address: str
  size: int
  licence: str
  page: str


def find(text: str) -> Published:
  """Looks for the file that an address names; * stands for any letters.

  Raises:
    ModuleNotFoundError, ValueError: As `local`; or several files fit.
  """
  repo, revision, pattern = parse(text)
  files, licence, page = _ask_about(text)
  fitting = fnmatch.filter(files, pattern)
  if len(fitting) != 1:
    found = shown.some(sorted(fitting or files)) or "none"
    raise ValueError(f"{text}: one file is expected, {repo} has {found}")
  branch = f"@{revision}" if revision else ""
  (name,) = fitting
  return Published(f"{SCHEME}{repo}{branch}/{name}", files[name], licence, page)


def _ask_about(text: str) -> tuple[dict[str, int], str, str]:
  """Of an address's repository: (sizes of its files by name, licence, page)."""
  repo, revision, _ = parse(text)
  with _asking(text) as asked:
    about = asked.HfApi().model_info(
      repo, revision=revision, files_metadata=True
    )
    page = f"{asked.constants.ENDPOINT}/{repo}"
  files = {file.rfilename: file.size or 0 for file in about.siblings or ()}
  licence = about.card_data.license if about.card_data else None
  return files, str(licence or ""), page


def upload(
  text: str,
  files: Mapping[str, pathlib.Path | bytes],
  message: str,
  *,
  private: bool,
) -> str:
  """Takes files to the hub in one commit; makes the repository if need be.

  Below the folders that they bring, what an earlier commit left there goes: an
  old checkpoint beside the new one might be newer by its number.

  Args:
    text: Address of the repository, or of a folder in it.
    files: Path below the address -> file, or content.
    message: Of the commit.
    private: Whether a new repository is for its owner only.

  Returns:
    The page of the commit.

  Raises:
    ModuleNotFoundError: If the extra `hub` is not installed.
    ValueError: If nobody is logged in, may not write there, or the hub is out
      of reach.
  """
  check_destination(text)
  repo, _, folder = parse(text)
  new = {f"{folder}/{name}".lstrip("/"): x for name, x in files.items()}
  with _asking(text) as asked:
    interface = asked.HfApi()
    interface.create_repo(repo, private=private, exist_ok=True)
    held = interface.list_repo_files(repo)
    operations = [asked.CommitOperationAdd(*each) for each in new.items()]
    operations += map(asked.CommitOperationDelete, _stale(held, new, folder))
    done = interface.create_commit(repo, operations, commit_message=message)
  return str(done.commit_url)


def check_destination(text: str, *, log_in: bool = True) -> None:
  """Checks whether files may be taken to an address, as far as can be told.

  Raises:
    ModuleNotFoundError: If the extra `hub` is not installed.
    ValueError: If it is of another form, or of a revision; or nobody is logged
      in, which matters with `log_in`.
  """
  revision = parse(text).revision
  if revision:
    raise ValueError(
      f"{text}: files go to the main branch, without @{revision}"
    )
  if log_in and not library(text).get_token():
    raise ValueError(f"{text}: nobody is logged in{_LOG_IN}")


def _stale(held: Iterable[str], new: Collection[str], folder: str) -> list[str]:
  """Files in the folders of new ones that are none of them."""
  depth = len(pathlib.PurePosixPath(folder).parts)
  heads = {
    parts[: depth + 1]
    for parts in (pathlib.PurePosixPath(name).parts for name in new)
    if len(parts) > depth + 1
  }
  return [
    name
    for name in held
    if name not in new
    and pathlib.PurePosixPath(name).parts[: depth + 1] in heads
  ]


_LOG_IN = "; `hf auth login`, or the variable HF_TOKEN, says who you are"


@contextlib.contextmanager
def _asking(text: str) -> Iterator[Any]:
  """Gives the library; its errors become a line about an address."""
  found = library(text)
  try:
    yield found
  # The library's errors, and those of whatever it asks the network with, have
  # no class in common; each is about this address.
  except Exception as error:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = _LOG_IN if status in (401, 403) else ""
    raise ValueError(f"{text}: {reason}{hint}") from None


def _check(blobs: Iterable[pathlib.Path], text: str) -> None:
  """Checks new files of the cache, which are named after their digests.

  Large files are, by SHA-256; small ones are named after git's. All are checked
  before one is refused: next time, those that stayed are not new.
  """
  wrong = []
  for blob in blobs:
    if len(blob.name) != 64:
      continue
    with blob.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
      blob.unlink()
      wrong.append((digest, blob.name))
  for digest, promised in wrong:
    raise ValueError(
      f"{text}: a file came with SHA-256 {digest[:12]}…, the hub promised"
      f" {promised[:12]}…; {len(wrong)} removed from the cache"
    )

"""Files on the Hugging Face Hub, wherever a path to weights or a bank is taken.

hf://OWNER/NAME[@REVISION][/FILE] names a repository, or a file or folder in it.
The extra `hub` brings them into its cache: files that are there are not fetched
again, one that was cut off goes on, and HF_HUB_OFFLINE=1 asks nobody.
"""

import hashlib
import os
import pathlib
import re
from typing import NamedTuple

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
  try:
    import huggingface_hub
    from huggingface_hub import constants, file_download
  except ModuleNotFoundError:
    raise ModuleNotFoundError(
      f"{text} needs huggingface_hub: pip install 'gmem_jax[hub]'"
    ) from None
  cache = pathlib.Path(
    constants.HF_HUB_CACHE,
    file_download.repo_folder_name(repo_id=address.repo, repo_type="model"),
  )
  before = {blob.name for blob in (cache / "blobs").glob("*")}
  patterns = [address.file, f"{address.file}/*"] if address.file else None
  try:
    folder = huggingface_hub.snapshot_download(
      address.repo, revision=address.revision, allow_patterns=patterns
    )
  # The library's errors, and those of whatever it asks the network with, have
  # no class in common; each is about this address.
  except Exception as error:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) or type(error).__name__
    raise ValueError(f"{text}: {reason}") from None
  for blob in (cache / "blobs").glob("*"):
    if blob.name not in before:
      _check(blob, text)
  found = pathlib.Path(folder, address.file)
  if not found.exists():
    raise ValueError(f"{text}: {address.repo} has no {address.file!r}")
  return found


def _check(blob: pathlib.Path, text: str) -> None:
  """Checks a new file of the cache, which is named after its digest.

  Large files are, by SHA-256; small ones are named after git's.
  """
  if len(blob.name) != 64:
    return
  with blob.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != blob.name:
    blob.unlink()
    raise ValueError(
      f"{text}: a file came with SHA-256 {digest[:12]}…, the hub promised"
      f" {blob.name[:12]}…; it was removed from the cache"
    )

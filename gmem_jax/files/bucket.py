"""Directories in buckets of Google Cloud Storage: gs://BUCKET/PATH.

The extra `gcs` reads and writes there. A bucket has objects in place of files:
each is written whole or not at all and then seen by everybody, but a directory
cannot be renamed into its place. So of a directory that is written in one go,
the object by which readers know it is written last.

The variables STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL name another
server than Google's.
"""

import asyncio
import concurrent.futures
import contextlib
import fnmatch
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import tqdm
from etils import epath

_log = logging.getLogger(__name__)
# It raises what it logs, and logs a stack of each.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

SCHEME = "gs://"
# Requests at a time, of one process.
THREADS = 8
# By which readers know converted weights, and run's trees.
_LAST = ("metadata/", "_CHECKPOINT_METADATA", "commit_success.txt")
# What the libraries say of a server that is out of reach or does not answer,
# each in its own way, after they have tried again for about a minute.
_LOST = re.compile(
  r"UNAVAILABLE|DEADLINE_EXCEEDED|Cannot connect|Connection (reset|refused)"
  r"|Server disconnected|[Tt]imed? ?out|CURL error"
)
# Status of a server that is to be asked again.
_BUSY = (408, 429, 500, 502, 503, 504)


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is of a bucket."""
  return os.fspath(path).startswith(SCHEME)


def require(text: str) -> None:
  """Checks that buckets can be read, and that a path names one.

  Raises:
    ModuleNotFoundError: If the extra `gcs` is not installed.
    ValueError: If there is no name of a bucket.
  """
  if importlib.util.find_spec("gcsfs") is None:
    raise ModuleNotFoundError(
      f"{text} needs gcsfs: pip install 'gmem_jax[gcs]'"
    )
  if not re.match(r"gs://[^/]+", text):
    raise ValueError(f"{text}: {SCHEME}BUCKET/PATH is expected")
  # Else it asks of each path what kind of bucket it is in, and of those where
  # nobody may ask that, it warns.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  from fsspec import config

  # What other processes write has to be seen: nothing is remembered.
  for name in ("gs", "gcs"):
    config.conf.setdefault(name, {})["use_listings_cache"] = False


def user_cache() -> pathlib.Path:
  """Where this user's programs may keep what they can make or fetch again."""
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "gmem_jax"


def is_lost(error: BaseException) -> bool:
  """Whether an error says that the server is out of reach, or overloaded."""
  if isinstance(error, asyncio.TimeoutError | ConnectionError):
    return True
  library = _library(error)
  if library == "aiohttp" or (
    library == "gcsfs" and getattr(error, "code", 0) in _BUSY
  ):
    return True
  return "gs://" in str(error) and bool(_LOST.search(str(error)))


def is_of_library(error: BaseException) -> bool:
  """Whether gcsfs, or what it asks the network with, raised an error."""
  return _library(error) in ("gcsfs", "aiohttp")


def _library(error: BaseException) -> str:
  return type(error).__module__.partition(".")[0]


def files(text: str) -> Iterator[tuple[pathlib.PurePath, int]]:
  """All objects below a directory: (path below it, bytes)."""
  for name, about in _find(text).items():
    yield pathlib.PurePath(name), about["size"]


def local(text: str, skip: Sequence[str] = ()) -> pathlib.Path:
  """Copies an object, or all of a directory, to this machine.

  The copy lies in the user's cache, under a digest of what is in the bucket: it
  is fetched again only when that has changed, and a copy that was cut off goes
  on.

  Args:
    text: The path.
    skip: Patterns of names below a directory that are left out.

  Raises:
    ModuleNotFoundError: If the extra `gcs` is not installed.
    ValueError: If there is nothing, or it cannot be read.
  """
  found = {
    name: about
    for name, about in _find(text).items()
    if not any(fnmatch.fnmatch(name, pattern) for pattern in skip)
  }
  if not found:
    raise ValueError(f"{text}: there is nothing in the bucket")
  seen = [[n, a["size"], str(a.get("generation"))] for n, a in found.items()]
  digest = hashlib.sha256(str([text, sorted(seen)]).encode()).hexdigest()[:16]
  where = pathlib.PurePosixPath(text.removeprefix(SCHEME).rstrip("/"))
  target = user_cache() / "buckets" / digest / where.name
  missing = {
    name: about["size"]
    for name, about in found.items()
    if not (target / name).exists()
  }
  _fetch(text, missing, target, sum(a["size"] for a in found.values()))
  return target


def _find(text: str) -> dict[str, dict[str, Any]]:
  """What is known of objects, by path below `text`; "" is `text` itself."""
  with _named(text) as system:
    root = text.removeprefix(SCHEME).rstrip("/")
    found = system.find(root, detail=True)
  return {
    name.removeprefix(root).lstrip("/"): about
    for name, about in found.items()
    # Some programs write empty objects to stand for directories.
    if not name.endswith("/")
  }


def _fetch(
  text: str, missing: dict[str, int], target: pathlib.Path, total: int
) -> None:
  """Copies objects below a path to this machine, each whole or not at all."""
  if not missing:
    return
  left = sum(missing.values())
  _log.info("%s: fetching %s bytes", text, f"{left:,}")
  bar = tqdm.tqdm(
    initial=total - left,
    total=total,
    desc="fetch",
    unit="B",
    unit_scale=True,
    disable=None,  # Off a terminal.
  )

  def get(name: str) -> int:
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
      system.get_file(f"{text.rstrip('/')}/{name}".rstrip("/"), str(beside))
      if beside.stat().st_size != missing[name]:
        raise ValueError(f"{name or text} was cut off on the way")
      beside.replace(path)
    finally:
      beside.unlink(missing_ok=True)
    return missing[name]

  with (
    _named(text) as system,
    concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
  ):
    for size in pool.map(get, missing):
      bar.update(size)
  bar.close()


@contextlib.contextmanager
def uploading(path: epath.Path) -> Iterator[pathlib.Path]:
  """Gives a path of this machine; what is there in the end goes to the bucket.

  After an error nothing does. A file replaces the object of its name at once.
  """
  with tempfile.TemporaryDirectory(prefix="gmem_jax_") as folder:
    temporary = pathlib.Path(folder, path.name)
    yield temporary
    copy = put_all if temporary.is_dir() else put
    copy(temporary, path)


def put(file: pathlib.Path, path: epath.Path) -> None:
  """Copies a file into a bucket, where it replaces the object at once."""
  with _named(os.fspath(path)) as system:
    system.put_file(str(file), os.fspath(path))


def put_all(directory: pathlib.Path, path: epath.Path) -> None:
  """Copies a directory into a bucket, at last what readers know it by."""
  every = (file for file in directory.rglob("*") if file.is_file())
  names = [file.relative_to(directory).as_posix() for file in every]
  last = [name for name in names if name.startswith(_LAST)]
  with (
    _named(os.fspath(path)) as system,
    concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
  ):

    def copy(name: str) -> None:
      system.put_file(str(directory / name), os.fspath(path / name))

    list(pool.map(copy, sorted(set(names) - set(last))))
    list(pool.map(copy, last))


@contextlib.contextmanager
def _named(text: str) -> Iterator[Any]:
  """Gives the file system of buckets; its errors begin with a path.

  Raises:
    ModuleNotFoundError: If the extra `gcs` is not installed.
    ConnectionError: If the server is out of reach.
    OSError: If the bucket is not there, or nobody may do this.
  """
  require(text)
  import fsspec

  try:
    yield fsspec.filesystem("gcs", finalize_on_close=True)
  except ModuleNotFoundError:
    raise
  # The library's errors have no class in common; each is about this path.
  except Exception as error:
    reason = describe(error)
    kind = ConnectionError if is_lost(error) else OSError
    raise kind(f"{text}: {reason}") from None


def describe(error: BaseException) -> str:
  """What the libraries' errors of a bucket say, in one line."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  reason = lines[0] if lines else type(error).__name__
  if isinstance(error, FileNotFoundError):
    reason = f"it is not there ({reason})"
  elif is_lost(error):
    reason = f"the bucket is out of reach ({reason})"
  status = getattr(error, "code", None)
  if status in (401, 403) or "credentials" in reason or "Anonymous" in reason:
    reason += "; `gcloud auth application-default login` says who you are"
  return reason

"""One job at a time in a directory.

The file `.lock` in it says who works there. Whether it still does, the kernel
knows: the lock is flock's, which ends with its process, however that ended, so
that a killed job can be started again at once. Across the machines that share a
disk, flock may mean nothing (Cloud Storage FUSE, some mounts of NFS and Lustre)
or outlive its machine (NFS). There the file's time of change counts: the holder
touches it every few seconds, and it is free once nobody has for a minute. It is
watched for so long, as the clocks of two machines may differ.

Libraries for lock files have the first half alone.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from gmem_jax.parallel import object_lock, processes

_log = logging.getLogger(__name__)

NAME = ".lock"
# Seconds between signs of life of whoever holds a lock.
BEAT = 10.0
# Seconds without one after which a process on another machine is gone: less
# than it takes to replace a machine, more than a slow disk holds up a beat.
SILENCE = 60.0
# What a lock tells people, and what tells machines apart: a container has a
# host's name of its own, and perhaps a file system, and a start of the machine
# ends all its processes.
_SHOWN, _MACHINE = ("pid", "host", "since"), ("host", "boot")
# The exit status of a process that has lost its lock: it is not to start again.
TAKEN_OVER = 2


@contextlib.contextmanager
def held(directory: pathlib.Path | epath.Path, key: str) -> Iterator[None]:
  """Keeps other jobs out of a directory.

  Process 0 does so for its whole job. The directory is created if need be, and
  removed again if nothing was written there. `key` is what named it.

  Raises:
    ValueError: If another job works there; says which, and how to take over.
    OSError: If the directory cannot be written.
  """
  if processes.index():
    yield
    return
  if not isinstance(directory, pathlib.Path):
    path = directory / NAME
    with object_lock.held(path, _describe_self(), _rules(path, key)):
      yield
    return
  new = not directory.exists()
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise NotADirectoryError(
      f"{key}={directory}: a file is there, not a directory"
    ) from None
  path, mine = directory / NAME, _describe_self()
  file = _acquire(path, mine, key)
  done = threading.Event()
  beating = threading.Thread(
    target=_beat, args=(path, mine, done), daemon=True, name="lock"
  )
  beating.start()
  try:
    yield
  finally:
    done.set()
    beating.join()
    if _read(path) == mine:
      path.unlink(missing_ok=True)
    os.close(file)
    if new:
      with contextlib.suppress(OSError):  # It is not empty.
        directory.rmdir()


def _acquire(path: pathlib.Path, mine: dict[str, Any], key: str) -> int:
  """Takes the lock; returns the file that holds it while it is open."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      if _take(file, path, mine, key):
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)


def _take(
  file: int, path: pathlib.Path, mine: dict[str, Any], key: str
) -> bool:
  """Tries to take the lock; false if the file has changed meanwhile."""
  locked, owner = _flock(file), _read(path)
  ours = owner is not None and all(owner[key] == mine[key] for key in _MACHINE)
  if owner is None or (ours and locked is not None):
    alive = locked is False
  else:
    _log.info("%s: is %s gone? Waiting for a sign of life", path, _name(owner))
    alive = _is_touched(path)
  if alive:
    raise _refusal(path, key, _name(owner))
  if not _is_at(file, path):
    return False
  if locked is False:  # Of a machine that is gone: another file is not locked.
    path.unlink(missing_ok=True)
    return False
  try:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(mine).encode(), 0)
    os.fsync(file)
  except OSError as error:  # A full disk: these calls do not name their file.
    raise OSError(error.errno, error.strerror, str(path)) from None
  return _is_at(file, path)


def _refusal(
  path: pathlib.Path | epath.Path, key: str, name: str
) -> ValueError:
  """The error of a job that comes second."""
  return ValueError(
    f"{key}={path.parent}: {name} works there, so this job ends, and no"
    " launcher starts it again. End the other, or take another directory."
    f" If it is out of reach, remove {path}: it ends itself within"
    f" {BEAT:g} s, without saving"
  )


def _rules(path: epath.Path, key: str) -> object_lock.Rules:
  """For the lock of a directory in a bucket."""
  return object_lock.Rules(
    beat=BEAT,
    silence=SILENCE,
    name=_name,
    machine=_MACHINE,
    refuse=lambda name: _refusal(path, key, name),
    lose=lambda owner: _lose(path, owner),
  )


def _lose(
  path: pathlib.Path | epath.Path, owner: dict[str, Any] | None
) -> None:
  """Ends a process whose lock is no longer its own."""
  what = "it was removed" if owner is None else f"{_name(owner)} took over"
  processes.fail(f"{path}: {what}, so this job ends", TAKEN_OVER)
  os._exit(TAKEN_OVER)


def _flock(file: int) -> bool | None:
  """Locks a file; false if another process has, None without such locks."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    denied = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False if denied else None
  return True


def _is_touched(path: pathlib.Path) -> bool:
  """Whether somebody gives a sign of life within `SILENCE`."""
  first, deadline = _time_of(path), time.monotonic() + SILENCE
  while time.monotonic() < deadline:
    time.sleep(SILENCE / 60)
    now = _time_of(path)
    if now != first:
      return now is not None
  return False


def _time_of(path: pathlib.Path) -> int | None:
  """A file's time of change; None if it is gone."""
  try:
    # Opened, since NFS asks its server anew only then.
    with path.open("rb") as file:
      return os.fstat(file.fileno()).st_mtime_ns
  except FileNotFoundError:
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is the one that has the name."""
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False


def _beat(
  path: pathlib.Path, mine: dict[str, Any], done: threading.Event
) -> None:
  """Gives signs of life; ends the process if the lock is no longer its own."""
  while not done.wait(BEAT):
    with contextlib.suppress(OSError):  # The next one may reach the disk.
      owner = _read(path)
      if owner == mine:
        os.utime(path)
        continue
      _lose(path, owner)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Who holds a lock; None if the file is gone, or was cut off by a crash."""
  try:
    owner = json.loads(path.read_text())
    return owner if {*_SHOWN, *_MACHINE} <= owner.keys() else None
  except (FileNotFoundError, ValueError, AttributeError):
    return None


def _name(owner: dict[str, Any] | None) -> str:
  if owner is None or not owner.keys() >= {*_SHOWN}:
    return "another process"
  pid, host, since = (owner[key] for key in _SHOWN)
  return f"process {pid} on {host}, since {since},"


def _describe_self() -> dict[str, Any]:
  """Who we are, for people and for other machines."""
  now = datetime.datetime.now().astimezone()
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": now.isoformat(" ", "seconds"),
    "boot": _boot(),
  }


def _boot() -> str:
  """Names this start of the machine, where the system does."""
  try:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:  # Not Linux.
    return ""

"""One job at a time in a directory of a bucket; see `lock`.

The server makes an object only where there is none, so that of two jobs one is
the first. Nobody ends it with its process, as the kernel does with a lock of a
file: the holder writes it anew every few seconds, and it is free once nobody
has for a minute, or if it names a process of this machine that is gone. A job
that finds the object to be another's ends itself.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

_log = logging.getLogger(__name__)


class Rules(NamedTuple):
  """What both kinds of locks have in common.

  Attributes:
    beat: Seconds between signs of life.
    silence: Seconds without one after which a process counts as gone.
    name: What people call an owner, {} if it is unknown.
    machine: Keys of an owner that tell machines apart.
    refuse: The error for a job that comes second, of the owner's name.
    lose: Ends the process, whose lock has another owner (None: it is gone).
  """

  beat: float
  silence: float
  name: Callable[[dict[str, Any] | None], str]
  machine: tuple[str, ...]
  refuse: Callable[[str], ValueError]
  lose: Callable[[dict[str, Any] | None], None]


@contextlib.contextmanager
def held(
  path: epath.Path, mine: dict[str, Any], rules: Rules
) -> Iterator[None]:
  """Holds the object of a path; `mine` says who does.

  Raises:
    ValueError: If another job does.
  """
  while not _create(path, _text(mine, 0)):
    _wait_until_free(path, mine, rules)
    path.unlink(missing_ok=True)
  done = threading.Event()
  beating = threading.Thread(
    target=_beat, args=(path, mine, rules, done), daemon=True, name="lock"
  )
  beating.start()
  try:
    yield
  finally:
    done.set()
    beating.join()
    # Without a server the object stays, and is free in a minute.
    with contextlib.suppress(Exception):
      if _owner(_read(path)) == mine:
        path.unlink(missing_ok=True)


def _create(path: epath.Path, text: str) -> bool:
  """Writes an object unless there is one.

  Raises:
    FileNotFoundError: If there is no such bucket.
  """
  import fsspec

  system, name = fsspec.core.url_to_fs(os.fspath(path))
  try:
    system.pipe_file(name, text.encode(), mode="create")
  except FileExistsError:
    return False
  except FileNotFoundError:  # Its message is a request's address.
    raise FileNotFoundError(
      f"{path.parent}: there is no such bucket, or it cannot be seen"
    ) from None
  return True


def _wait_until_free(
  path: epath.Path, mine: dict[str, Any], rules: Rules
) -> None:
  """Returns once the owner counts as gone.

  Raises:
    ValueError: If it gives a sign of life.
  """
  first = _read(path)
  owner = _owner(first)
  if first is None or _is_dead(owner, mine, rules.machine):
    return
  _log.info(
    "%s: is %s gone? Waiting for a sign of life", path, rules.name(owner)
  )
  deadline = time.monotonic() + rules.silence
  while time.monotonic() < deadline:
    time.sleep(rules.silence / 30)
    now = _read(path)
    if now is None:
      return
    if now != first:
      raise rules.refuse(rules.name(_owner(now)))


def _is_dead(
  owner: dict[str, Any] | None, mine: dict[str, Any], machine: tuple[str, ...]
) -> bool:
  """Whether an owner is a process of this machine that is gone."""
  if owner is None or any(owner.get(key) != mine[key] for key in machine):
    return False
  if owner["pid"] == mine["pid"]:
    return False
  try:
    os.kill(owner["pid"], 0)
  except ProcessLookupError:
    return True
  except (OSError, TypeError):
    return False
  return False


def _beat(
  path: epath.Path, mine: dict[str, Any], rules: Rules, done: threading.Event
) -> None:
  """Gives signs of life; ends the process if the lock is no longer its own."""
  count = 0
  while not done.wait(rules.beat):
    # A server that is out of reach loses nothing yet: the next one may get
    # there, and what the job itself writes will fail.
    with contextlib.suppress(Exception):
      owner = _owner(_read(path))
      if owner == mine:
        count += 1
        path.write_text(_text(mine, count))
        continue
      rules.lose(owner)


def _text(mine: dict[str, Any], count: int) -> str:
  return json.dumps({**mine, "beat": count})


def _read(path: epath.Path) -> str | None:
  """The object's content; None if there is none."""
  try:
    return path.read_text()
  except FileNotFoundError:
    return None


def _owner(text: str | None) -> dict[str, Any] | None:
  """Who wrote an object; None if it is gone, or somebody else's."""
  try:
    owner = json.loads(text or "")
    return {key: value for key, value in owner.items() if key != "beat"}
  except (ValueError, AttributeError):
    return None

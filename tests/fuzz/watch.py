"""A process that reads one case after the other, and watches what that does.

It answers a line of standard input, the number of a case, by two lines of JSON:
once the file is made, and once it was read. What takes too long is for the
parent to end.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import traceback
from typing import Any

from tests.fuzz import hostile, mutate, originals, readers

# Of memory, besides twice the file.
MEMORY = 1_000_000_000
# What ends a case before it ends the machine.
_ADDRESSES = 12 << 30
# Of Python's audit events, those of running or reaching something.
_RUNS = (
  "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
  "subprocess.Popen", "pty.spawn", "pickle.find_class", "socket.connect",
  "webbrowser.open", "ctypes.dlopen", "code.__new__",
)  # fmt: skip
# Those of changing a file, whose path is their first argument.
_CHANGES = (
  "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
  "os.truncate", "os.chmod", "os.chown", "shutil.rmtree", "shutil.move",
)  # fmt: skip


class Forbidden(BaseException):
  """Raised into what a file makes a reader do."""


class _Auditor:
  """Notes what a case does that no reading does."""

  def __init__(self):
    self.scratch: str | None = None
    self.seen: list[str] = []

  def __call__(self, event: str, args: tuple[Any, ...]) -> None:
    if self.scratch is None:
      return
    if event == "open":
      path, mode, flags = args
      writes = any(c in (mode or "") for c in "wax+") or (
        (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      )
      if writes and isinstance(path, (str, bytes)):
        self._changes(event, os.fsdecode(path))
    elif event in _CHANGES:
      if isinstance(args[0], (str, bytes, os.PathLike)):
        self._changes(event, os.fsdecode(args[0]))
    elif event in _RUNS or (event == "exec" and not _is_of_a_module(args[0])):
      self._note(f"{event} {args!r:.200}")

  def _changes(self, event: str, path: str) -> None:
    if path == os.devnull:
      return
    if not os.path.realpath(path).startswith(str(self.scratch)):
      self._note(f"{event} {path}")

  def _note(self, what: str) -> None:
    self.seen.append(what)
    raise Forbidden(what)


def _is_of_a_module(code: Any) -> bool:
  """Whether code is of a file of an installed package, imported late."""
  return code.co_filename.startswith("<frozen") or os.path.exists(
    code.co_filename
  )


@dataclasses.dataclass(frozen=True)
class Case:
  """A file made to be read; see `make`."""

  kind: str
  name: str
  path: pathlib.Path


@functools.cache
def _made(root: pathlib.Path, kind: str, name: str) -> pathlib.Path:
  """A hostile file, made when it is first needed."""
  path = root / f"hostile-{os.getpid()}" / kind / name
  path.parent.mkdir(parents=True, exist_ok=True)
  hostile.CASES[kind][name](path)
  return path


def make(
  root: pathlib.Path, scratch: pathlib.Path, seed: int, number: int
) -> tuple[Case, random.Random]:
  """Makes a case in an empty scratch directory, from its number alone."""
  rng = random.Random(f"{seed}/{number}")
  kind = rng.choice(list(originals.MAKERS))
  made = hostile.CASES.get(kind, {})
  # Images made by hand are large.
  if made and rng.random() < (0.04 if kind == "image" else 0.15):
    name = rng.choice(sorted(made))
    path = scratch / "case" / hostile.FILES[kind]
    path.parent.mkdir()
    shutil.copyfile(_made(root, kind, name), path)
    return Case(kind, name, path), rng
  original = rng.choice(originals.listed(root, kind))
  path = scratch / "case" / original.name
  if original.is_dir():
    shutil.copytree(original, path)
  else:
    path.parent.mkdir()
    shutil.copyfile(original, path)
  for _ in range(rng.choice((1, 1, 1, 2))):
    mutate.mutate(rng, path)
  return Case(kind, f"of {original.name}", path), rng


def _size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all in a directory."""
  files = path.rglob("*") if path.is_dir() else (path,)
  return sum(p.stat().st_size for p in files if p.is_file())


def _memory(key: str) -> int:
  """A number of /proc/self/status, in bytes."""
  text = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(text.split(f"{key}:")[1].split()[0])


@contextlib.contextmanager
def _limited():
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + _ADDRESSES, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(
  auditor: _Auditor, case: Case, scratch: pathlib.Path, rng: random.Random
) -> dict[str, Any]:
  """Reads a case; returns what happened, and "fault" if that must not be."""
  work = scratch / "work"
  work.mkdir()
  size, fault, ending = _size(case.path), "", "fault"
  # What the case before has freed is given back, or this one would not be seen
  # to take it.
  ctypes.CDLL(None).malloc_trim(0)
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
  before = _memory("VmRSS")
  auditor.seen.clear()
  try:
    with _limited():
      auditor.scratch = str(scratch)
      ending = readers.read(case.kind, case.path, work, rng)
  except BaseException:  # A fault, whatever it is.
    fault = traceback.format_exc(limit=-12)
  finally:
    auditor.scratch = None
  taken = _memory("VmHWM") - before
  if auditor.seen:
    fault = f"it ran or changed something: {auditor.seen[0]}\n{fault}"
  elif not fault and taken > 2 * size + MEMORY:
    fault = f"{taken:,} bytes of memory for a file of {size:,}"
  return {"ending": ending, "memory": taken, "fault": fault}


def main() -> None:
  """Reads originals once, then cases as their numbers come."""
  root, scratch = (pathlib.Path(a).resolve() for a in sys.argv[1:3])
  seed = int(sys.argv[3])
  # Libraries write to the streams of the process; the answers are apart.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  auditor = _Auditor()
  sys.addaudithook(auditor)

  def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)

  say({"warm": warm(root, scratch)})
  for line in sys.stdin:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    case, rng = make(root, scratch, seed, int(line))
    say({"kind": case.kind, "name": case.name})  # From now on time counts.
    say(run(auditor, case, scratch, rng))


def warm(root: pathlib.Path, scratch: pathlib.Path) -> int:
  """Reads every original with every reader: what is imported late is then."""
  count = 0
  for kind, functions in readers.READERS.items():
    for original in originals.listed(root, kind):
      for function in functions:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with contextlib.suppress(*readers.CLEAN):
          function(original, scratch)
          count += 1
  return count


if __name__ == "__main__":
  main()

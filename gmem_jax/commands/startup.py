"""What a process does before its work: pages, ~, compilation, TPUs, the log.

Nothing here imports JAX at its top: `restart` has to come before anything slow.
"""

import glob
import logging
import os
import pathlib
import sys
from collections.abc import Collection

from gmem_jax.files import paths

# XLA's CPU backend allocates the memory of every call from the system and frees
# it afterwards, and so does the code that makes batches; the kernel then clears
# each page again at its first touch. For a training step of 1.4 GiB that is
# 330,000 page faults with pages of 4 kB and a thousand with pages of 2 MB (see
# RESULTS.md of the benches). glibc asks for large pages only if this variable
# said so when the process started.
NAME = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"
# Ours, in case something removes the variable: a restart must not loop.
RESTARTED = "GMEM_JAX_RESTARTED"
# Where Linux says whether programs may ask: "always [madvise] never".
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Where Linux shows the chips of a TPU VM: those of v2 to v4, those since.
TPU_CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def may_help() -> bool:
  """Whether transparent huge pages are opt-in and not yet requested."""
  if NAME in os.environ or RESTARTED in os.environ:
    return False
  try:
    return "[madvise]" in SWITCH.read_text()
  except OSError:  # Not Linux, or a container that hides it.
    return False


def _is_debugged() -> bool:
  """Whether a debugger watches this process; it would lose it by exec."""
  monitoring = getattr(sys, "monitoring", None)  # From Python 3.12 on.
  watched = monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID)
  return bool(watched) or sys.gettrace() is not None


def restart() -> None:
  """Starts the same command again in the same process, with large pages.

  Call it first in a module that is started with `python -m`: what was done
  before is done again. Returns if large pages would not help, if the variable
  is set (to "" by those who want none), or under a debugger.
  """
  if may_help() and sys.executable and not _is_debugged():
    command = [sys.executable, *sys.orig_argv[1:]]
    added = {NAME: SETTING, RESTARTED: "1"}
    os.execve(sys.executable, command, os.environ | added)


def expand_home(argument: str, names: Collection[str]) -> str:
  """Expands the ~ of --workdir=~/run and of --interpolate=3,~/b.png.

  No shell does, since the word begins with the flag's name. `names` are the
  flags that are paths; other arguments are returned as they are.
  """
  name, equals, value = argument.partition("=")
  if name.lstrip("-") not in names:
    return argument
  return name + equals + ",".join(map(os.path.expanduser, value.split(",")))


def skip_libtpu() -> None:
  """Keeps JAX from loading libtpu on a machine that has no TPU.

  libtpu is also what compiles for TPUs elsewhere (the extra `tpu-aot`). JAX
  loads it wherever it is installed, and without a TPU it prints five lines of
  errors before every command. Call it before JAX first looks for devices.
  """
  # Whoever names a platform, or a TPU in the environment, wants to be heard.
  # JAX sets TPU_SKIP_MDS_QUERY itself where it finds no chip, and importing JAX
  # imports libtpu, which sets its own path.
  path = "TPU_LIBRARY_PATH"
  library = getattr(sys.modules.get("libtpu"), "get_library_path", None)
  own = library is not None and os.environ.get(path) == library()
  ours = {"TPU_SKIP_MDS_QUERY"} | ({path} if own else set())
  asked = [
    name
    for name in os.environ
    if name in ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT")
    or (name.startswith("TPU_") and name not in ours)
  ]
  if not asked and not any(map(glob.glob, TPU_CHIPS)):
    if own:
      del os.environ[path]
    # Python's way to say that a module cannot be imported. JAX knows no
    # setting for "all platforms but this".
    sys.modules["libtpu"] = None  # type: ignore


def cache_directory(key: str, workdir: paths.Path | None) -> paths.Path | None:
  """The directory of `config.compile_cache`, or None to keep nothing.

  Args:
    key: The config's value; a relative path lies in the run's directory.
    workdir: None where a command has no run, or writes nothing into it.
  """
  if not key:
    return None
  if paths.is_remote(key):
    return paths.of(key)
  path = pathlib.Path(key)
  if path.is_absolute():
    return path
  return None if workdir is None else workdir / path


def keep_compiled(directory: paths.Path | None) -> None:
  """Keeps what JAX compiles on disk, so that a second start loads it.

  JAX's persistent cache: its keys hold program, versions, flags and devices,
  so that one directory serves any of them.

  Args:
    directory: Created if needed; None to keep nothing. JAX runs what it finds
      there: only those who may run code as this user should have write access.
  """
  import jax

  # The environment's JAX_COMPILATION_CACHE_DIR wins.
  if directory is None or jax.config.jax_compilation_cache_dir:  # pyright: ignore
    return
  jax.config.update("jax_compilation_cache_dir", str(directory))
  # A start compiles many small programs, which together take seconds; JAX keeps
  # only those that take one.
  # In a bucket that is right, as each is a request or two.
  is_here = isinstance(directory, pathlib.Path)
  if is_here and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def log_to_stderr() -> None:
  """Our log lines, and only the warnings of the libraries'."""
  from absl import logging as absl_logging

  absl_logging.set_verbosity(absl_logging.WARNING)
  handler = logging.StreamHandler()
  handler.setFormatter(
    logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
  )
  logger = logging.getLogger("gmem_jax")
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def quieten(process: int) -> None:
  """Leaves the log to process 0; the others say only what is wrong."""
  if process:
    logger = logging.getLogger("gmem_jax")
    logger.setLevel(logging.WARNING)
    logger.handlers[0].setFormatter(
      logging.Formatter(
        f"%(asctime)s  process {process}: %(message)s", "%H:%M:%S"
      )
    )

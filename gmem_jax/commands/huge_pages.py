"""Host memory in pages of 2 MB instead of 4 kB.

XLA's CPU backend takes the memory of every call from the system and gives it
back afterwards, and so does whoever makes batches on the host: the kernel
clears each page again each time it is touched first. For a training step of 1.4
GiB that is 330,000 interruptions in small pages, and a thousand in large ones;
RESULTS.md of the benches has what it costs. glibc asks for large pages where an
environment variable said so when the process started, and at no other time.
"""

import os
import pathlib
import sys

NAME = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"
# Set by us, in case something takes the variable away.
RESTARTED = "GMEM_JAX_RESTARTED"
# Where Linux says whether programs may ask: "always [madvise] never".
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def may_help() -> bool:
  """Whether the system gives large pages to who asks, and nobody did yet."""
  if NAME in os.environ or RESTARTED in os.environ:
    return False
  try:
    return "[madvise]" in SWITCH.read_text()
  except OSError:  # Not Linux, or a container that hides it.
    return False


def _is_debugged() -> bool:
  """Whether a debugger watches this process."""
  monitoring = getattr(sys, "monitoring", None)  # Python 3.12.
  watched = monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID)
  return bool(watched) or sys.gettrace() is not None


def restart() -> None:
  """Starts the same command again in the same process, with large pages.

  Only for a module that was started with `python -m`, and there first: what was
  done before is done again. Returns where that would not help, where the
  variable is set (to "" by who wants none), or under a debugger, which would
  lose its process.
  """
  if may_help() and sys.executable and not _is_debugged():
    command = [sys.executable, *sys.orig_argv[1:]]
    added = {NAME: SETTING, RESTARTED: "1"}
    os.execve(sys.executable, command, os.environ | added)

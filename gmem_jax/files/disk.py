"""Errors of a disk that is full: one line with the path."""

import contextlib
import errno
import logging
import os
import pathlib
import re
from collections.abc import Iterator

from absl import logging as absl_logging

# Besides a full disk, a quota and the limit of a file's size. Python names no
# file in such an error, as it comes of writing to an open one.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where tensorstore and safetensors have the system's number in their errors.
_NUMBER = re.compile(r"os[ _]error(?:_code=')? ?(\d+)")
# numpy's, of an array that did not fit.
_CUT = re.compile(r"\d+ requested and \d+ written")


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
  """Names the path in the error of a full disk, whatever library wrote there.

  Raises:
    OSError: In the place of such an error; others pass.
  """
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno in FULL:
      raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    if _CUT.match(str(error)):
      # Mostly for the same reason; it does not say.
      number = errno.ENOSPC
      raise OSError(number, f"cannot be written: {error}", str(path)) from None
    raise
  except Exception as error:  # Each library has a type of its own.
    found = _NUMBER.search(str(error))
    number = int(found[1]) if found else 0
    if number not in FULL:
      raise
    raise OSError(number, os.strerror(number), os.fspath(path)) from None


def is_full(error: BaseException) -> bool:
  """Whether the system said that a disk is full, or a quota used up."""
  return isinstance(error, OSError) and error.errno in FULL


def _is_new(record: logging.LogRecord) -> bool:
  """Whether a log line tells what nobody raises."""
  raised = record.exc_info or str(record.msg).startswith("Failed to")
  return not (raised and "orbax" in pathlib.Path(record.pathname).parts)


# Orbax also raises what it logs, with a stack for each of its threads.
absl_logging.get_absl_logger().addFilter(_is_new)

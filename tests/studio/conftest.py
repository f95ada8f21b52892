"""A studio in a process of its own, and visitors in a headless browser."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from tests import layout, tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Stands for umap-learn, which compiles for a minute.
_UMAP = """
class UMAP:
  def __init__(self, **settings):
    assert settings["metric"] == "cosine"

  def fit_transform(self, features):
    return features[:, :2]
"""
# Until a page is told to be wrong, in milliseconds; programs compile meanwhile,
# and others may use the machine.
PATIENCE = 180_000


class Server(NamedTuple):
  """A running studio."""

  url: str
  workdir: pathlib.Path
  temporary: pathlib.Path


@contextlib.contextmanager
def serving(workdir, temporary, *flags):
  """Starts a studio on a free port; ends it as Ctrl-C does."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  temporary.mkdir()
  doubles = temporary.with_name("doubles")
  doubles.mkdir(exist_ok=True)
  (doubles / "umap.py").write_text(_UMAP)
  environment = {
    **os.environ,
    "TMPDIR": str(temporary),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{doubles}:{os.environ.get('PYTHONPATH', '')}",
  }
  command = [
    sys.executable, "-m", "gmem_jax.studio", f"--workdir={workdir}",
    f"--port={port}", *flags,
  ]  # fmt: skip
  with (
    open(temporary.with_suffix(".log"), "w+") as log,
    subprocess.Popen(
      command, stdout=log, stderr=log, env=environment, cwd=layout.ROOT
    ) as process,
  ):
    try:
      deadline = time.monotonic() + 120
      while f"http://127.0.0.1:{port}" not in read(log):
        assert process.poll() is None, read(log)
        assert time.monotonic() < deadline, read(log)
        time.sleep(0.1)
      yield Server(f"http://127.0.0.1:{port}/", workdir, temporary)
      process.send_signal(signal.SIGINT)
      process.wait(60)
      said = read(log)
      # Gradio prints a stack where it refuses a path that is no upload, or a
      # value that its page would not have sent.
      refused = said.count("InvalidPathError: Cannot move /etc/passwd")
      refused += said.count("gradio.exceptions.Error: 'Value 999 is greater")
      assert said.count("Traceback") == refused, said
      # Of what the image reader refuses, Pillow need not warn.
      assert "DecompressionBombWarning" not in said, said
    finally:
      process.kill()


def read(log) -> str:
  log.seek(0)
  return log.read()


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "digits"
  tiny.save_run(path)
  return path


@pytest.fixture(scope="session")
def server(workdir, tmp_path_factory):
  temporary = tmp_path_factory.mktemp("studio") / "temporary"
  with serving(workdir, temporary) as running:
    yield running


@pytest.fixture(scope="session")
def browser():
  if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine")
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    # Chromium's own sandbox needs rights that root in a container lacks.
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield browser
    browser.close()


@pytest.fixture
def visit(browser):
  """Opens pages, each of another visitor; watches what they ask and say."""
  contexts, strangers, faults = [], [], []

  def open_page(url, **settings):
    context = browser.new_context(**settings)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: strangers.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
      "console",
      lambda said: faults.append(said.text) if said.type == "error" else None,
    )
    page.goto(url)
    # Until then the controls do not have the values of the address.
    page.wait_for_function("window.gmemReady")
    return page

  yield open_page
  for context in contexts:
    context.close()
  own = re.compile(r"(http://127\.0\.0\.1:\d+/|data:|blob:)")
  assert not [url for url in strangers if not own.match(url)]
  assert not faults

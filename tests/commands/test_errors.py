"""Every command refuses bad input in the same way."""

import json
import os
import subprocess
import sys

import pytest

from gmem_jax.files import errors
from tests import tiny


def raises(error):
  def work():
    raise error

  return work


@pytest.mark.parametrize(
  "error", [ValueError("wrong"), OSError("gone"), ModuleNotFoundError("extra")]
)
def test_bad_input_is_one_line(error, capsys):
  assert errors.run(raises(error)) == 2
  assert capsys.readouterr().err == f"gmem_jax: {error}\n"


def test_a_message_has_an_end(capsys):
  """Whatever a library, or a name out of a file, makes of it."""
  assert errors.run(raises(ValueError("name " + "x" * 100_000))) == 2
  text = capsys.readouterr().err
  assert text.startswith("gmem_jax: name xxx")
  assert text.endswith("xxx ...\n")
  assert len(text) < 4100


def test_errors_of_the_system_begin_with_the_file(capsys):
  assert errors.run(lambda: os.listdir("/gone")) == 2
  error = capsys.readouterr().err
  assert error == "gmem_jax: /gone: No such file or directory\n"


def test_what_an_error_says_drives_no_terminal():
  assert errors.describe(ValueError("\x1b[2J")) == "\\x1b[2J"


def test_a_fault_of_ours_keeps_its_traceback():
  with pytest.raises(KeyError):
    errors.run(raises(KeyError("ours")))


def test_text_from_a_file_drives_no_terminal(capsys):
  errors.say("name \x1b[2J\r\nnext")
  assert capsys.readouterr().out == "name \\x1b[2J\\r\nnext\n"


# Starts each command in a child of a process that has imported all that they
# need, but is no command itself. Case -> its status and output.
COMMANDS = """
import contextlib, json, os, runpy, sys, tempfile, traceback
import gmem_jax.evaluate.build, gmem_jax.convert.transformer
from gmem_jax.commands import (
  bank, compile, evaluate, prepare, sample, startup, train
)

def start(module, *arguments):
  sys.argv = [module, *arguments]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
  except SystemExit as end:
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1

found = {}
for case, words in json.load(sys.stdin).items():
  with tempfile.TemporaryFile("w+") as output:
    child = os.fork()
    if not child:
      os.dup2(output.fileno(), 1)
      os.dup2(output.fileno(), 2)
      status = start(*words)
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output.seek(0)
    found[case] = status, output.read()
print(json.dumps(found))
"""

DIGITS = "main --config=configs/digits.py"
RUN = f"{DIGITS} --workdir=TMP/run"
EMOJI = "main --config=configs/emoji.py --mode=prepare"

# A command line, and a part of what it says. TMP/file is a file.
REFUSED = {
  # Flags of main.
  f"{RUN} --stepz=3": "Unknown command line flag 'stepz'",
  f"{RUN} --mode=eat": "--mode=eat: value should be one of",
  f"{RUN} train": "unknown argument(s) ['train']",
  f"{RUN} --image=x.png": "--image belongs to --mode=sample",
  f"{RUN} --bank=b": "--bank belongs to --mode=sample",
  f"{RUN} --processes=0": "--processes=0: 0 is not a positive integer",
  f"{RUN} --config.train.stepz=3": "did you mean --config.train.steps?",
  f"{RUN} --config.train.steps=x": "--config.train.steps=x: an integer is ex",
  "main --workdir=TMP/run": "--config is needed",
  "main --config=gone.py --workdir=TMP/run": "gone.py: there is no such file",
  "main --config=configs/xl_in1k.py:odd --workdir=TMP/run": "option 'odd'",
  "main --config= --workdir=TMP/run": "--config=: a file is needed",
  # The run's directory.
  DIGITS: "--workdir is needed",
  f"{DIGITS} --workdir=": "--workdir is empty",
  f"{DIGITS} --workdir=TMP/file": "file is a file, not a directory",
  f"{DIGITS} --workdir=TMP/file/run": "file is a file, not a directory",
  f"{DIGITS} --workdir=s3://bucket/run": "a directory is needed, of",
  # Values of the config.
  f"{RUN} --config.seed=-1": "config.seed=-1: must lie in [0, 4,294,967,296)",
  f"{RUN} --config.seed=4294967296": "config.seed=4294967296: must lie in",
  f"{RUN} --mode=sample --config.sample.seed=-1": "config.sample.seed=-1",
  f"{RUN} --config.model.depth=-3": "config.model.depth=-3: must be positive",
  f"{RUN} --config.model.family=unet": "config.model.family='unet'",
  f"{RUN} --config.model.heads=0": "config.model.heads=0: must be positive",
  f"{RUN} --config.eval.every=-50": "config.eval.every=-50: must not be neg",
  f"{RUN} --config.train.batch_size=0": "config.train.batch_size=0",
  f"{RUN} --config.data.source=none --config.data.holdout=0": "source='none'",
  # Modes of main.
  f"{RUN} --mode=sample": "no run was trained there",
  f"{RUN} --mode=sample --image=": "--image is empty",
  f"{RUN} --mode=sample --bank=": "--bank is empty",
  f"{RUN} --mode=sample --interpolate=3,": "--interpolate is empty",
  f"{RUN} --mode=sample --interpolate=3": "two are needed",
  f"{RUN} --mode=sample --config.sample.network=gone": "gone",
  f"{RUN} --mode=evaluate": "no run was trained there",
  f"{RUN} --mode=evaluate --config.eval.images=gone": "gone does not exist",
  f"{DIGITS} --mode=prepare": "there is nothing to prepare",
  f"{EMOJI} --config.data.path=TMP/gone": "TMP/gone: No such file",
  f"{DIGITS} --mode=compile": "--topology is needed",
  f"{DIGITS} --mode=compile --topology=": "--topology='': must be v4:XxYxZ",
  f"{DIGITS} --mode=compile --topology=v9:2x2": "--topology='v9:2x2': must be",
  f"{DIGITS} --mode=compile --topology=h100:0": "--topology='h100:0': must be",
  f"{DIGITS} --mode=compile --topology=v5e:0x4": "--topology='v5e:0x4': must",
  # The other programs.
  "bank": "required: COMMAND; see python -m gmem_jax.bank --help",
  "bank eat": "invalid choice: 'eat'",
  "bank info": "required: BANK; see python -m gmem_jax.bank info --help",
  "bank info TMP/run --x": "unrecognized arguments: --x",
  "bank info TMP/gone": "TMP/gone: there is no such bank",
  "bank info TMP/file": "TMP/file is not a bank",
  "bank search TMP/gone --row x": "--row: invalid int value: 'x'",
  "bank interpolate a TMP/b 1 2 --seed=-1": "--seed: '-1' is no integer in [0",
  "bank build . TMP/b --config=gone.py": "gone.py: there is no such file",
  "evaluate eat": "invalid choice: 'eat'",
  "evaluate score TMP/gone": "--inception='weights/inception'",
  "evaluate score TMP/gone --count=x": "--count: invalid int value: 'x'",
  "evaluate score TMP/gone --x": "unrecognized arguments: --x",
  "evaluate stats TMP/gone": "required: OUT.npz",
  "convert": "required: SRC",
  "convert TMP/gone TMP/out": "TMP/gone: No such file or directory",
  "convert TMP/gone": "OUT is missing",
  "convert TMP/file TMP/out": "TMP/file: not a PyTorch file",
  "convert TMP/file TMP/out --format=x": "--format: invalid choice: 'x'",
  "convert TMP/file TMP/out --model=x": "--model x: expected NAME=N",
  "bench": "is no benchmark; usage: python -m gmem_jax.bench {",
  "bench eat": "'eat' is no benchmark",
  "bench train --x": "unrecognized arguments: --x; see python -m gmem_jax.ben",
  "bench train --config=gone.py": "gone.py: there is no such file",
  "bench sample --change=x": "--change='x': KEY=VALUE is expected",
  "bench lookup --rows=x": "--rows: invalid int value: 'x'",
  "data.emoji": "required: pictures; see python -m gmem_jax.data.emoji --help",
  "data.emoji TMP/p --side=3": "--side=3: must be at least 8",
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
  """(status, output) of each; none of them has left a file."""
  work = tmp_path_factory.mktemp("refused")
  (work / "file").write_text("precious")
  lines = {
    case: f"gmem_jax.{case}".replace("TMP", str(work)).split()
    for case in REFUSED
  }
  done = subprocess.run(
    [sys.executable, "-W", "ignore::DeprecationWarning", "-c", COMMANDS],
    input=json.dumps(lines),
    # Already started anew, with large pages.
    env=os.environ | {"GMEM_JAX_RESTARTED": "1"},
    cwd=tiny.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    timeout=600,
    check=True,
  )
  assert [path.name for path in work.iterdir()] == ["file"]
  assert (work / "file").read_text() == "precious"
  return {
    case: (status, output.replace(str(work), "TMP"))
    for case, (status, output) in json.loads(done.stdout).items()
  }


@pytest.mark.process
@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses_in_one_line_with_status_2(refused, case):
  status, output = refused[case]
  # What it says of the work before it.
  *before, line = output.splitlines()
  assert status == 2, output
  assert REFUSED[case] in line
  assert line.startswith("gmem_jax: ")
  assert all(text[2:3] == ":" for text in before), output

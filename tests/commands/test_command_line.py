"""What the command line says of help, wrong flags and wrong keys."""

import os
import subprocess
import sys

import pytest

from tests import tiny

pytestmark = pytest.mark.process
CONFIG = "--config=configs/digits.py"


def start(*arguments):
  """Starts the program; importing JAX is forbidden, so that it answers fast."""
  code = (
    "import sys; sys.modules['jax'] = None; from gmem_jax import main;"
    " main.run()"
  )
  return subprocess.run(
    [sys.executable, "-c", code, *arguments],
    cwd=tiny.ROOT,
    env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help_is_short_and_succeeds(flag):
  done = start(CONFIG, flag)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith("Train, sample and compare")
  assert "--config=configs/digits.py --workdir=runs/digits" in done.stdout
  flags = done.stdout[done.stdout.index("\nFlags:") :]
  for name in ("config", "workdir", "mode", "stopped_status"):
    assert f"\n  --{name} " in flags
  # Those of absl, of which there are 20 more.
  assert "--verbosity " not in flags
  assert len(done.stdout.splitlines()) < 100


def test_all_flags_can_be_listed():
  done = start("--helpfull")
  assert done.returncode == 0
  assert "--verbosity" in done.stdout


def test_without_arguments_help_is_an_error():
  done = start()
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("Train, sample and compare")


WRONG = {
  "--config.train.stepz=3":
    "--config.train.stepz: there is no such key; did you mean"
    " --config.train.steps?",
  "--config.steps=3":
    "--config.steps: there is no such key; did you mean --config.prior.steps"
    " or --config.sampler.steps or --config.train.steps?",
  "--config.model.learning_rate=1":
    "--config.model.learning_rate: there is no such key; did you mean"
    " --config.optim.learning_rate or --config.prior.learning_rate?",
  "--noconfig.model.swigluu":
    "--config.model.swigluu: there is no such key; did you mean"
    " --config.model.swiglu?",
  "--config.zzz=1":
    "--config.zzz: there is no such key; gmem_jax/config/sections.py has all"
    " keys",
  "--config.train.steps=abc":
    "--config.train.steps=abc: an integer is expected, such as 500",
  "--config.train.steps=1.5":
    "--config.train.steps=1.5: an integer is expected, such as 500",
  "--config.optim.eps=small":
    "--config.optim.eps=small: a number is expected, such as 1e-08",
  "--config.loss.cosine=maybe":
    "--config.loss.cosine=maybe: true or false is expected, such as False",
  # Its default is None, which has no type of its own.
  "--config.loss.train_eps=x":
    "--config.loss.train_eps=x: a number is expected",
  "--config.retrieval=3":
    "--config.retrieval=3: set its keys: dropout, exclude_own, neighbours",
  "--mode=eat":
    "flag --mode=eat: value should be one of"
    " <train|sample|evaluate|prepare|prior|compile>; see --help",
  "--wrkdir=a":
    "Unknown command line flag 'wrkdir'. Did you mean: workdir ?; see --help",
}  # fmt: skip


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_flag_is_one_line_that_helps(flag):
  done = start(CONFIG, flag)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == f"gmem_jax: {WRONG[flag]}\n"


def test_a_key_needs_a_recipe():
  done = start("--config.train.steps=3")
  assert done.returncode == 2
  assert done.stderr == (
    "gmem_jax: --config is needed for --config.train.steps; see --help\n"
  )


def test_a_key_without_a_default_can_be_set():
  code = (
    "import sys; from gmem_jax import main; from absl import flags;"
    " flags.FLAGS(sys.argv); print(main._resolve().loss.train_eps)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, CONFIG, "--config.loss.train_eps=0.25"],
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.stdout == "0.25\n", done.stderr

"""The command line, as real processes: bad input, kills, continuation."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gmem_jax import main
from gmem_jax.files import errors
from gmem_jax.parallel import sharding, watch
from gmem_jax.train import checkpoint, metrics, setup
from tests import kill_training, tiny

pytestmark = [
  pytest.mark.process,
  # The resource tracker of a killed process's pool is not ours to close.
  pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def environment():
  """The processes share the compilation cache of the tests."""
  return dict(os.environ)


def command(workdir, *extra, **changes):
  return [
    sys.executable,
    "-m",
    "gmem_jax.main",
    f"--config={tiny.ROOT}/configs/digits.py",
    f"--workdir={workdir}",
    *tiny.flags(**changes),
    *extra,
  ]


@pytest.fixture(scope="module")
def run(environment):
  def run(workdir, *extra, **changes):
    return subprocess.run(
      command(workdir, *extra, **changes),
      env=environment,
      cwd=tiny.ROOT,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  return run


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
  """The directory of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  result = run(workdir)
  assert result.returncode == 0, result.stderr
  return workdir


def final_state(workdir: pathlib.Path):
  config = tiny.make_config()
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.load_memory(workdir / "memory", mesh)
  with jax.numpy_dtype_promotion("standard"):
    shapes = jax.eval_shape(setup.make_init(config, memory))
  target = sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints", config.checkpoint
  )
  state, _ = checkpoints.restore(target)
  checkpoints.close()
  return jax.device_get(state)


def losses(workdir: pathlib.Path) -> dict[int, float]:
  return {
    r["step"]: r["train/loss"]
    for r in metrics.read_jsonl(workdir / "metrics.jsonl")
    if "train/loss" in r
  }


def pictures(workdir: pathlib.Path, run) -> dict[str, bytes]:
  result = run(workdir, "--mode=sample", sample__count=6, sample__batch_size=4)
  assert result.returncode == 0, result.stderr
  found = sorted((workdir / "images").rglob("*.png"))
  return {str(f.relative_to(workdir)): f.read_bytes() for f in found}


def assert_same_run(workdir, reference, run):
  ours, theirs = final_state(workdir), final_state(reference)
  assert int(ours.step) == tiny.CHANGES["train.steps"]
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert losses(workdir) == losses(reference)
  expected = pictures(reference, run)
  assert len(expected) == 7  # six images and their grid
  assert pictures(workdir, run) == expected


def test_run_leaves_its_files(uninterrupted):
  names = {p.name for p in uninterrupted.iterdir()}
  assert {
    "checkpoints", "config.json", "memory", "metrics.jsonl", "samples",
    "tensorboard",
  } <= names  # fmt: skip
  found = losses(uninterrupted)
  assert list(found) == list(range(8, 168, 8))
  assert found[160] < found[8]
  assert len(list((uninterrupted / "samples").glob("bank_*.png"))) == 2


def test_killed_runs_end_as_if_nothing_had_happened(
  uninterrupted, run, tmp_path
):
  """Six SIGKILLs at random moments, also while a checkpoint is written."""
  done = kill_training.kill_often(
    command, tmp_path, steps=tiny.CHANGES["train.steps"], kills=6, seed=0
  )
  assert done.counts == {"any": 2, "training": 2, "saving": 2}
  assert not done.problems
  for workdir in done.workdirs:
    assert not kill_training.differences(workdir, uninterrupted)
    assert losses(workdir) == losses(uninterrupted)
  assert_same_run(done.workdirs[-1], uninterrupted, run)


def test_sigterm_saves_and_says_so(uninterrupted, environment, run, tmp_path):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    command(workdir, "--stopped_status=75", checkpoint__every=1000),
    env=environment,
    cwd=tiny.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  while process.poll() is None and not losses(workdir):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 75, stderr
  assert "stopped by SIGTERM at step" in stderr
  (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert 0 < saved < 160
  result = run(workdir)
  assert result.returncode == 0, result.stderr
  assert f"continuing from step {saved}" in result.stderr
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(workdir),
    final_state(uninterrupted),
  )


def test_a_run_outlives_its_terminal_and_a_second_one_and_ctrl_c_saves_it(
  environment, run, tmp_path
):
  workdir = tmp_path / "run"
  endless = {"train__steps": 100_000, "optim__decay_steps": 0}
  process = subprocess.Popen(
    ["nohup", *command(workdir, checkpoint__every=1000, **endless)],
    env=environment,
    cwd=tiny.ROOT,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )

  def train_on():
    steps = len(losses(workdir))
    while process.poll() is None and len(losses(workdir)) == steps:
      time.sleep(0.01)

  train_on()
  process.send_signal(signal.SIGHUP)
  train_on()
  second = run(workdir, checkpoint__every=1000, **endless)
  assert second.returncode == 2
  assert f"process {process.pid} on" in second.stderr
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 0, stderr
  assert "Traceback" not in stderr
  (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert f"stopped by SIGINT at step {saved}; the state is saved" in stderr


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
  uninterrupted, environment, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted, workdir)
  *before, last = kill_training.saved_steps(workdir)
  assert before
  shutil.rmtree(workdir / "checkpoints" / str(last))
  # No file of more than 200 kB; the state has more.
  limited = [
    "bash",
    "-c",
    'ulimit -f 200 && exec "$@"',
    "bash",
    *command(workdir),
  ]
  result = subprocess.run(
    limited, env=environment, cwd=tiny.ROOT, capture_output=True, text=True,
    check=False, timeout=300,
  )  # fmt: skip
  assert result.returncode == 3  # A launcher tries again.
  message = result.stderr.splitlines()[-1]
  assert message.endswith(f"{workdir}/checkpoints: File too large")
  assert "Traceback" not in result.stderr
  assert kill_training.saved_steps(workdir) == before


@pytest.mark.slow  # tests/sample/test_published.py has it, too
def test_sampling_continues_and_does_not_depend_on_the_batch(
  uninterrupted, run
):
  first = pictures(uninterrupted, run)
  images = [n for n in first if "grid" not in n]
  (uninterrupted / images[2]).unlink()
  result = run(
    uninterrupted, "--mode=sample", sample__count=6, sample__batch_size=1
  )
  assert "1 images made, 6 in" in result.stdout
  assert pictures(uninterrupted, run) == first
  other = run(uninterrupted, "--mode=sample", sample__count=6, sample__seed=1)
  assert other.returncode == 0
  assert len(list((uninterrupted / "images").iterdir())) == 2


def files_of(directory: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  """Everything below a directory: when it was written, and its contents."""
  return {
    str(path.relative_to(directory)): (
      path.stat().st_mtime_ns,
      path.read_bytes() if path.is_file() else b"",
    )
    for path in [directory, *directory.rglob("*")]
  }


def test_samples_that_go_elsewhere_leave_the_run_as_it_is(
  uninterrupted, tmp_path
):
  """So a read-only run can be sampled; permissions do not bind root."""
  output, before = tmp_path / "out", files_of(uninterrupted)
  extra = "--mode=sample", f"--config.sample.output={output}"
  result = subprocess.run(
    command(uninterrupted, *extra, sample__count=2, sampler__steps=2),
    # By default, compiled programs are kept in the run.
    env={k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k},
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  record = json.loads((output / "sample.json").read_text())
  assert record["sampler"]["steps"] == 2
  assert files_of(uninterrupted) == before
  config = json.loads((uninterrupted / "config.json").read_text())
  assert config["sampler"]["steps"] == tiny.CHANGES["sampler.steps"]


def test_nan_stops_and_names_the_step(run, tmp_path):
  result = run(tmp_path / "run", optim__learning_rate=1e30)
  assert result.returncode == 2
  (line,) = [x for x in result.stderr.splitlines() if x.startswith("gmem_jax:")]
  assert "a metric of step" in line
  assert "Traceback" not in result.stderr


@pytest.mark.slow  # tests/train/test_loop.py has it, in process
def test_nan_keeps_the_last_good_checkpoint(uninterrupted, run, tmp_path):
  """The run goes on at a rate that blows it up."""
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted, workdir)
  result = run(
    workdir,
    optim__learning_rate=1e30,
    optim__decay_steps=1000,
    train__steps=200,
    train__allow_changes=True,
  )
  assert result.returncode == 2
  assert "a metric of step 16" in result.stderr
  assert int(final_state(workdir).step) == 160


# As processes of their own; tests/commands/test_errors.py has the others.
BAD_INPUT = {
  "before JAX is loaded": (
    ["--config.model.dpeth=3"],
    "did you mean --config.model.depth?",
  ),
  "before the data are": (["--config.mesh.fsdp=3"], "mesh.fsdp=3"),
  "large batch": (
    ["--config.train.batch_size=4096"],
    "train.batch_size=4096",
  ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line(case, run, tmp_path):
  extra, expected = BAD_INPUT[case]
  result = run(tmp_path / "run", *extra)
  # Launchers start a command again on any other status but 0.
  assert result.returncode == 2
  assert "Traceback" not in result.stderr
  (message,) = [
    line for line in result.stderr.splitlines() if line.startswith("gmem_jax: ")
  ]
  assert expected in message
  assert not (tmp_path / "run" / "checkpoints").exists() or (
    case == "large batch"
  )


def test_workdir_of_another_config(uninterrupted, run):
  result = run(uninterrupted, model__depth=1, model__projector_depth=1)
  assert result.returncode == 2
  assert "config.model.depth: 2 there, 1 now" in result.stderr
  assert "Traceback" not in result.stderr


def test_a_full_disk_is_no_bad_input(capsys):
  """Room may come, so launchers start the job again."""
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a")
  assert main._status(full) == watch.AGAIN
  missing = FileNotFoundError(errno.ENOENT, "No such file", "/runs/b")
  assert main._status(missing) == errors.BAD_INPUT
  assert capsys.readouterr().err == (
    "gmem_jax: /runs/a: No space left on device\n"
    "gmem_jax: /runs/b: No such file\n"
  )

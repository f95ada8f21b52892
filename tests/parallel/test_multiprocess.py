"""Real processes of one job: equal to one process, stopped, killed, refused."""

import shutil
import signal
import time

import jax
import numpy as np
import pytest

from gmem_jax.parallel import sharding, watch
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  loop,
  metrics,
  setup,
)
from tests import job as job_lib, kill_training, tiny

pytestmark = [
  pytest.mark.process,
  pytest.mark.usefixtures("standard_promotion"),
  # The resource tracker of a killed process's pool is not ours to close.
  pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Runs that are to be interrupted never end by themselves.
ENDLESS = 100_000
SETTINGS = {
  "eval__every": 0,
  "checkpoint__keep_latest": 3,
  "optim__decay_steps": ENDLESS,
}


@pytest.fixture(scope="module")
def dataset():
  return dataset_lib.load(tiny.make_config())


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
  outputs = tmp_path_factory.mktemp("outputs")

  def launch(workdirs, *extra, **changes):
    return job_lib.Job(
      workdirs, *extra, outputs=outputs, **{**SETTINGS, **changes}
    )

  return launch


def train_here(dataset, workdir, steps):
  """Trains, or continues, on one device of this process."""
  config = tiny.make_config(**SETTINGS, train__steps=steps)
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.make_memory(config, dataset, mesh)
  workdir.mkdir(exist_ok=True)
  run = tiny.make_run(config, workdir, mesh, dataset, memory, None)
  return jax.device_get(loop.train(run))


def state_of(workdir):
  """The newest state that a run saved."""
  config = tiny.make_config(**SETTINGS)
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.load_memory(workdir / "memory", mesh)
  shapes = jax.eval_shape(setup.make_init(config, memory))
  target = sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))
  with checkpoint.opened(
    workdir / "checkpoints", config.checkpoint
  ) as checkpoints:
    return jax.device_get(checkpoints.restore(target)[0])


def losses(workdir):
  return {
    r["step"]: r["train/loss"]
    for r in metrics.read_jsonl(workdir / "metrics.jsonl")
    if "train/loss" in r
  }


def saved(workdir):
  """Steps that have a whole checkpoint."""
  found = (workdir / "checkpoints").glob("*")
  return sorted(int(p.name) for p in found if p.name.isdigit())


def wait_for_step(job, workdir, step):
  """Waits until a checkpoint at or after a step is whole."""
  deadline = time.monotonic() + 400
  while max(saved(workdir), default=0) < step:
    assert time.monotonic() < deadline, job.output(0)
    assert all(p.poll() is None for p in job.processes), job.output(0)
    time.sleep(0.02)


def without_key_bias(params):
  """Attention does not depend on it: its gradient is rounding, scaled up."""
  attention = params["blocks"]["attn"]
  bias = np.array(attention["qkv"]["bias"])
  width = bias.shape[-1] // 3
  bias[..., width : 2 * width] = 0
  qkv = attention["qkv"] | {"bias": bias}
  return params | {
    "blocks": params["blocks"] | {"attn": attention | {"qkv": qkv}}
  }


def assert_close(ours, theirs):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4),
    without_key_bias(ours.params),
    without_key_bias(theirs.params),
  )
  assert int(ours.step) == int(theirs.step)


def assert_same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def two(launch, tmp_path_factory):
  """The directory of a run of two processes that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("two") / "run"
  job = launch([workdir] * 2, train__steps=48, mesh__fsdp=2)
  assert job.wait() == [0, 0], job.output(0)
  return workdir


def test_two_processes_equal_one(two, dataset, tmp_path):
  state = train_here(dataset, tmp_path / "one", 48)
  assert_close(state_of(two), state)
  found, expected = losses(two), losses(tmp_path / "one")
  assert list(found) == list(expected) == list(range(8, 56, 8))
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), rtol=2e-5
  )
  records = metrics.read_jsonl(two / "metrics.jsonl")
  assert len([r for r in records if "eval/frechet" in r]) == 1  # by process 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_digits_config_on_several_processes(count, tmp_path):
  """The config as it is, for 100 steps, against one process."""
  states, found = {}, {}
  for n in (1, count):
    job = job_lib.Job(
      tmp_path / str(n),
      count=n,
      outputs=tmp_path / "outputs",
      full=True,
      train__steps=100,
      report__unconditional=False,
    )
    assert job.wait(1200) == [0] * n, job.output(0)
    states[n] = kill_training.newest_state(tmp_path / str(n))
    found[n] = losses(tmp_path / str(n))
  assert list(found[1]) == list(found[count]) == [50, 100]
  for step in found[1]:
    assert found[count][step] == pytest.approx(found[1][step], rel=1e-4)
  for name, array in states[1].items():
    if "params" in name:
      np.testing.assert_allclose(
        states[count][name], array, rtol=0, atol=1e-3, err_msg=name
      )


def test_a_killed_process_ends_all_and_the_run_continues_exactly(
  two, launch, tmp_path
):
  workdir = tmp_path / "run"
  for victim, step in ((1, 8), (0, 24)):
    job = launch([workdir] * 2, train__steps=ENDLESS, mesh__fsdp=2)
    wait_for_step(job, workdir, step)
    job.processes[victim].kill()
    began = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - began < 30
    other = 1 - victim
    assert codes[victim] == -signal.SIGKILL
    if victim == 0 and codes[other] == -signal.SIGABRT:
      # Process 0 keeps what the watch reads: jax may be first to abort.
      assert "Either the leader task was preempted" in job.output(other)
    else:
      assert codes[other] == watch.AGAIN, job.output(other)
      (line,) = job.messages()[other]
      assert line.startswith(f"gmem_jax: process {victim} is gone")
    # Let it end where the undisturbed run did.
    for late in (s for s in saved(workdir) if s > step):
      shutil.rmtree(workdir / "checkpoints" / str(late))
  job = launch([workdir] * 2, train__steps=48, mesh__fsdp=2)
  assert job.wait() == [0, 0], job.output(0)
  assert "continuing from step 24" in job.output(0)
  assert_same(state_of(workdir), state_of(two))
  assert losses(workdir) == losses(two)


@pytest.mark.slow
def test_sigterm_saves_on_all_and_other_numbers_of_processes_continue(
  launch, dataset, tmp_path
):
  workdir = tmp_path / "four"
  job = launch(
    [workdir] * 4,
    train__steps=ENDLESS,
    train__log_every=ENDLESS,
    checkpoint__every=ENDLESS,
    mesh__data=2,
    mesh__fsdp=2,
  )
  deadline = time.monotonic() + 400
  while "new run" not in job.output(0):
    assert time.monotonic() < deadline, job.output(0)
    time.sleep(0.1)
  time.sleep(2)
  job.processes[2].send_signal(signal.SIGTERM)
  assert job.wait() == [0, 0, 0, 0], job.output(0)
  (step,) = saved(workdir)
  assert f"stopped by SIGTERM at step {step}; the state is saved" in (
    job.output(0)
  )
  assert all("Traceback" not in job.output(i) for i in range(4))

  # To restore is to find the digests that four processes wrote, on the mesh of
  # two and of one: the state is the same, bit for bit.
  end = step // 8 * 8 + 16
  shutil.copytree(workdir, tmp_path / "two")
  resumed = launch([tmp_path / "two"] * 2, train__steps=end)
  expected = train_here(dataset, tmp_path / "one", end)
  assert resumed.wait() == [0, 0], resumed.output(0)
  assert f"continuing from step {step}" in resumed.output(0)
  assert_close(state_of(tmp_path / "two"), expected)
  assert_close(train_here(dataset, workdir, end), expected)


def images(workdir):
  (directory,) = (workdir / "images").iterdir()
  return {p.name: p.read_bytes() for p in directory.glob("*.png")}


def test_sampling_is_shared_out(two, launch, tmp_path):
  alone, shared = tmp_path / "alone", tmp_path / "shared"
  for workdir, count in ((alone, 1), (shared, 2)):
    shutil.copytree(two, workdir)
    job = launch(
      [workdir] * count, "--mode=sample", sample__count=6, sample__batch_size=4
    )
    assert job.wait() == [0] * count, job.output(0)
    printed = [job.output(i).count("6 images made") for i in range(count)]
    assert printed == [1, 0][:count]  # by process 0
  assert len(images(alone)) == 7  # six images and their grid
  assert images(alone) == images(shared)


def refused(job, expected, status=2):
  assert job.wait() == [status] * len(job.processes), job.output(0)
  for i, lines in enumerate(job.messages()):
    assert len(lines) == 1, job.output(i)
    assert expected in lines[0]
    assert "Traceback" not in job.output(i)


def test_a_process_that_never_joins_is_named(launch, tmp_path):
  job = launch([tmp_path / "run"], "--join_seconds=3", "--processes=2")
  refused(job, "process(es) 1 of 2 did not join within 3 s; present: 0")


@pytest.mark.slow  # it waits for a slow file system, in vain
def test_a_directory_that_is_not_shared(launch, tmp_path):
  job = launch([tmp_path / "a", tmp_path / "b"], "--join_seconds=60")
  refused(
    job,
    "must be shared by all processes, but process(es) 1 do not see what process"
    " 0 writes",
  )


WRONG = {
  "mesh": ({"mesh__fsdp": 3}, "mesh.fsdp=3"),
  "batch": ({"train__batch_size": 15}, "config.train.batch_size=15"),
  "accumulation": (
    {"train__accumulation": 16},
    "config.train.accumulation=16",
  ),
}


@pytest.mark.parametrize(
  "case",
  [
    "mesh",
    *(
      pytest.param(c, marks=pytest.mark.slow) for c in ("batch", "accumulation")
    ),
  ],
)
def test_what_does_not_fit_is_one_line_on_every_process(case, launch, tmp_path):
  changes, expected = WRONG[case]
  refused(launch([tmp_path / "run"] * 2, **changes), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("place", "expected"),
  [
    ("s3://no-such-bucket/run", "of this machine or of a bucket"),
    ("{}/file/run", "file"),
  ],
)
def test_a_directory_that_cannot_be_written(place, expected, launch, tmp_path):
  (tmp_path / "file").write_text("not a directory")
  refused(launch([place.format(tmp_path)] * 2), expected)

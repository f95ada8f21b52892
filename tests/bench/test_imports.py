"""Benches and kernels run without the packages of data and of logs."""

import os
import pkgutil
import subprocess
import sys

from gmem_jax import bench

ABSENT = ("clu", "array_record", "grain", "tensorboardX", "tensorflow_datasets")
_IMPORT = """
import importlib, sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {absent!r}:
      raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
for name in {names!r}:
  importlib.import_module(name)
"""


def test_benches_and_kernels_need_no_packages_of_data_and_logs():
  names = [
    f"gmem_jax.bench.{module.name}"
    for module in pkgutil.iter_modules(bench.__path__)
    if not module.name.startswith(("__", "_torch"))
  ]
  assert "gmem_jax.bench.train" in names
  names += ["gmem_jax.bank.lookup", "gmem_jax.train.loop"]
  code = _IMPORT.format(absent=ABSENT, names=names)
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr

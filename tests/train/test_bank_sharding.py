"""Training with the bank's rows split over four devices."""

import jax
import numpy as np
import pytest

from gmem_jax.train import dataset as dataset_lib
from tests import tiny
from tests.train import test_step as steps


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_training_is_the_same_wherever_the_rows_lie(
  storage, tmp_path, standard_promotion
):
  dataset = dataset_lib.load(tiny.make_config())
  found = []
  for placement in ("replicated", "sharded"):
    config = tiny.make_config(
      bank__storage=storage, bank__placement=placement, mesh__fsdp=2
    )
    run = steps.make_run(config, dataset, jax.devices(), tmp_path)
    # 1,437 rows do not divide by 4.
    assert run.memory.bank.padding == (3 if placement == "sharded" else 0)
    assert run.memory.bank.storage == storage
    state, losses = steps.take_steps(run, dataset, 1)
    found.append((jax.device_get(state.params), losses))
  for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(ours, theirs)

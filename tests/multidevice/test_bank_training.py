"""A training step with the bank's rows split over four devices."""

import jax
import numpy as np
import pytest

from gmem_jax import assemble, sharding, train
from tests import tiny
from tests.test_train_step import host_batch


@pytest.mark.multidevice
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_training_is_the_same_wherever_the_rows_lie(storage, tmp_path):
  found = []
  for placement in ("replicated", "sharded"):
    config = tiny.make_config(
      bank__storage=storage, bank__placement=placement, mesh__fsdp=2
    )
    dataset = assemble.load_dataset(config)
    mesh = sharding.make_mesh(config.mesh)
    memory = assemble.make_memory(config, dataset, mesh)
    # 1,437 rows do not divide by 4.
    assert memory.bank.padding == (3 if placement == "sharded" else 0)
    assert memory.bank.storage == storage
    run = train.Run(config, tmp_path, mesh, dataset, memory, None)
    init = assemble.make_init(config, memory)
    shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
    state = jax.jit(init, out_shardings=shardings)()
    where = sharding.batch_sharding(mesh, steps_axis=True)
    batch = sharding.to_global(host_batch(run), where)
    step = train.compile_step(run, shardings)
    found.append(jax.device_get(step(state, batch, memory.bank)))
  for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(ours, theirs)

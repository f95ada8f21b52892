import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from gmem_jax.aot import chips, flops


def count(f, *shapes, devices=1):
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return flops.count(jax.make_jaxpr(f)(*arguments), devices)


def test_products_and_convolutions():
  assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  batched = count(
    lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (2, 3, 5), (2, 7, 5)
  )
  assert batched == 2 * 2 * 3 * 5 * 7

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  shapes = (2, 8, 8, 4), (3, 3, 4, 6)
  assert count(conv, *shapes) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)


def test_loops_branches_and_calls():
  product = 2 * 4**3

  def scanned(x, w):
    return jax.lax.scan(lambda c, k: (c @ k, None), x, w)[0]

  assert count(scanned, (4, 4), (9, 4, 4)) == 9 * product
  assert count(jax.jit(scanned), (4, 4), (9, 4, 4)) == 9 * product

  def branched(x):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

  assert count(branched, (4, 4)) == 2 * product


def test_rematerialisation_counts_what_runs_again():
  # Two products forwards; backwards two for each, and with remat the first of
  # the chain once more (the second one's result is not needed).
  def loss(x, w, v):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ v))

  shapes = (4, 4), (4, 4), (4, 4)
  product = 2 * 4**3
  plain = count(jax.grad(loss, argnums=(0, 1, 2)), *shapes)
  again = count(jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2)), *shapes)
  assert plain == 6 * product
  assert again == 8 * product


@pytest.mark.multidevice
def test_shard_map_counts_for_all_devices():
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  f = jax.shard_map(
    lambda x, w: x @ w,
    mesh=mesh,
    in_specs=(P("d"), P()),
    out_specs=P("d"),
  )
  assert count(f, (8, 4), (4, 4), devices=4) == 2 * 8 * 4 * 4


def test_roofline_is_the_worst_limit():
  chip = chips.Chip("c", flops=100.0, memory=1, bandwidth=10.0, link=2.0,
                    between=0.5, source="")  # fmt: skip
  found = chips.roofline(chip, flops=300.0, memory=20.0, sent=8.0)
  assert (found.compute, found.memory, found.network) == (3.0, 2.0, 4.0)
  assert (found.seconds, found.limit) == (4.0, "network")
  found = chips.roofline(chip, flops=0.0, memory=0.0, sent=8.0, between=3.0)
  assert (found.network, found.between) == (4.0, 6.0)
  assert (found.seconds, found.limit) == (6.0, "between slices")
  found = chips.roofline(chip, flops=0.0, memory=20.0, sent=2.0, waiting=6.0)
  assert (found.network, found.waiting) == (1.0, 3.0)
  # What the chip waits for is added to the worst of what can overlap.
  assert (found.seconds, found.limit) == (5.0, "network")
  unknown = dataclasses.replace(chip, between=None)
  found = chips.roofline(unknown, flops=0.0, memory=0.0, sent=8.0, between=3.0)
  assert (found.between, found.limit) == (0.0, "network")

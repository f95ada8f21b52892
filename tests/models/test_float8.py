import importlib.util

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gmem_jax.aot import topology
from gmem_jax.models import dit, float8

FORMATS = [float8.FORWARD, float8.BACKWARD]
SIZE = dict(
  channels=4, patch=1, width=32, depth=2, heads=2, snippet_dim=8, token_dim=0
)
NETWORKS = {
  "sit": dit.SiT(**SIZE),
  "lightning_dit": dit.LightningDiT(
    **SIZE, swiglu=True, rope=True, rms_norm=True
  ),
}
CONTRACT = (((1,), (0,)), ((), ()))


def draw(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def oracle(x, dtype):
  """Every power of two is tried; the smallest that fits is the scale."""
  x = np.asarray(x, np.float64)
  top = float(ml_dtypes.finfo(dtype).max)
  # Half is lost where the largest magnitude is a power of two times the top.
  scale = next(2.0**e for e in range(-80, 80) if np.abs(x).max() < top * 2.0**e)
  return (x / scale).astype(np.float32).astype(dtype).astype(float) * scale


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 448.0, 1e9])
def test_rounding_keeps_what_the_format_holds(dtype, size):
  x = draw(64, 48) * np.float32(size)
  rounded = np.asarray(float8.round_to(x, dtype), float)
  np.testing.assert_array_equal(rounded, oracle(x, dtype))
  half_a_step = 2.0 ** -(ml_dtypes.finfo(dtype).nmant + 1)
  x = np.asarray(x)
  kept = np.abs(x) > np.abs(x).max() / 1000
  assert (abs(rounded - x) <= abs(x) * half_a_step)[kept].all()
  # Nothing is lost the second time, and powers of two change nothing.
  for again, wanted in ((rounded, rounded), (x * 8, rounded * 8)):
    found = float8.round_to(jnp.asarray(again, jnp.float32), dtype)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_hides_no_fault(dtype):
  zeros = float8.round_to(jnp.zeros((3, 4)), dtype)
  np.testing.assert_array_equal(zeros, np.zeros((3, 4)))
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    found = float8.round_to(jnp.array([1.0, bad, 1000.0]), dtype)
    assert not np.isfinite(found[1])
  tiny = float8.round_to(jnp.full(3, 1e-42), dtype)
  assert np.isfinite(tiny).all()


def test_products_and_their_gradients_are_of_rounded_operands():
  x, w, g = draw(16, 24), draw(24, 8, seed=1), draw(16, 8, seed=2)
  y, pull = jax.vjp(
    lambda x, w: float8.dot_general(x, w, CONTRACT, precision="highest"), x, w
  )
  x8, w8 = (oracle(a, float8.FORWARD) for a in (x, w))
  g8 = oracle(g, float8.BACKWARD)
  for found, wanted in zip(
    (y, *pull(g)), (x8 @ w8, g8 @ w8.T, x8.T @ g8), strict=True
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scan", [False, True])
def test_a_network_is_nearly_the_same(name, scan):
  plain = NETWORKS[name].clone(scan_layers=scan)
  eight = plain.clone(float8=True)
  inputs = draw(2, 4, 4, 4), jnp.array([0.3, 0.8]), draw(2, 8)
  params = jax.jit(plain.init)(jax.random.key(0), *inputs)
  noise = iter(range(1000))
  params = jax.tree.map(
    lambda p: p + 0.1 * draw(*p.shape, seed=next(noise)), params
  )
  same = jax.eval_shape(eight.init, jax.random.key(0), *inputs)
  assert jax.tree.structure(same) == jax.tree.structure(params)

  def run(network):
    def loss(params):
      return jnp.mean(network.apply(params, *inputs) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    leaves = [jnp.ravel(g) for g in jax.tree.leaves(grads)]
    return value, jnp.concatenate(leaves)

  (loss, grads), (loss8, grads8) = run(plain), run(eight)
  assert loss != loss8
  np.testing.assert_allclose(loss8, loss, rtol=0.1)
  cosine = grads @ grads8 / jnp.linalg.norm(grads) / jnp.linalg.norm(grads8)
  assert 0.95 < cosine < 0.99999


@pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None,
  reason="nothing here compiles for NVIDIA GPUs",
)
def test_all_three_products_are_of_8_bits_on_an_h100():
  machine = topology.describe("h100:1")

  def loss(x, w):
    y = float8.dot_general(x, w, CONTRACT)
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  mesh = jax.sharding.Mesh(machine.devices, ("data",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arguments = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole)
    for shape in ((256, 1152), (1152, 3456))
  ]
  lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments)
  text = lowered.compile(compiler_options=machine.options).as_text()
  assert text.count('custom_call_target="__cublas$lt$matmul$f8"') == 3
  assert '"__cublas$lt$matmul"' not in text

"""Attention's gradient and its rotation, beside plain formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models import attention, blocks, layers

HEADS, WIDTH, GRID = 3, 8, 4


def normal(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(
    dtype
  )


def heads(seed, dtype=jnp.float32):
  return normal(seed, 2, GRID**2, HEADS, WIDTH, dtype=dtype)


def plain(q, k, v):
  """Attention whose gradient JAX derives, in float32."""
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / WIDTH**0.5
  return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), v)


@pytest.mark.parametrize(
  ("dtype", "bound"), [("float32", 2e-6), ("bfloat16", 2e-2)]
)
def test_value_and_gradients(dtype, bound):
  q, k, v, dy = (heads(i, dtype) for i in range(4))
  y, backward = jax.vjp(lambda *x: attention.attend(*x, "xla"), q, k, v)
  expected, derived = jax.vjp(plain, q, k, v)
  pairs = [(y, expected)]
  pairs += zip(backward(dy), derived(dy.astype(jnp.float32)), strict=True)
  for ours, theirs in pairs:
    assert ours.dtype == dtype
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    assert np.abs(ours - theirs).max() <= bound * np.abs(theirs).max()


def test_the_gradient_keeps_no_weights():
  q, k, v = (heads(i, "bfloat16") for i in range(3))
  _, backward = jax.vjp(lambda *x: attention.attend(*x, "xla"), q, k, v)
  kept = jax.tree.leaves(backward)
  assert sum(x.nbytes for x in kept) == 4 * q.nbytes
  # Neither is it float32 that is multiplied, forward or back.
  text = jax.jit(lambda dy: backward(dy)).lower(v).as_text()
  products = re.findall(r"dot_general.* : \((.*)\) ->", text)
  assert len(products) == 5
  assert not any("f32" in operands for operands in products)
  # Computed again, not kept over from the forward pass by the compiler.
  assert "optimization_barrier" in text


def test_rotation_is_that_of_adjacent_pairs():
  """Published kernels have the channels of a pair adjacent."""
  d = HEADS * WIDTH
  rope = attention.rope_tables(GRID, WIDTH)
  block = attention.Attention(HEADS, True, False, "xla", "float32")
  x = normal(0, 2, GRID**2, d)
  params = block.init(jax.random.key(1), x, None)["params"]
  leaves, structure = jax.tree.flatten(params)
  params = structure.unflatten(
    [leaf + normal(i, *leaf.shape) / 4 for i, leaf in enumerate(leaves)]
  )
  halves = attention.pairs_to_halves(params, HEADS)
  ours = block.apply({"params": halves}, x, rope)

  qkv, proj = (jax.tree.map(np.asarray, params[n]) for n in ("qkv", "proj"))
  together = np.asarray(x) @ qkv["kernel"] + qkv["bias"]
  q, k, v = (
    np.asarray(y).reshape(2, GRID**2, HEADS, WIDTH)
    for y in np.split(together, 3, axis=-1)
  )
  norm = layers.Norm(rms=False, affine=True, epsilon=1e-5)
  turn = rope[0] + 1j * rope[1]

  def rotated(y, name):
    y = np.array(norm.apply({"params": params[name]}, jnp.asarray(y)))
    turned = y.view(np.complex64) * turn[None, :, None, :]
    return turned.astype(np.complex64).view(np.float32)

  y = plain(*map(jnp.asarray, (rotated(q, "q_norm"), rotated(k, "k_norm"), v)))
  expected = np.asarray(y).reshape(2, GRID**2, d) @ proj["kernel"]
  np.testing.assert_allclose(ours, expected + proj["bias"], atol=2e-5)


def test_ready_parameters_are_made_once():
  style = blocks.Style(rope=True)
  block = blocks.Block(HEADS, style, "xla", "bfloat16", parent=None)
  stack = blocks.init_stack(block, 2, HEADS * WIDTH)(jax.random.key(0))
  stack = blocks.cast_kernels(stack, "bfloat16")
  ready = blocks.ready(stack, block, unroll=True)
  assert blocks.ready(ready, block, unroll=True) is ready
  first, _ = ready.layers
  dtypes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype.name
    for path, leaf in jax.tree_util.tree_leaves_with_path(first)
  }
  assert dtypes["attn/qkv/kernel"] == dtypes["mlp/fc1/bias"] == "bfloat16"
  order = attention.pairs_to_halves(stack["attn"], HEADS)["qkv"]["kernel"]
  np.testing.assert_array_equal(first["attn"]["qkv"]["kernel"], order[0])

"""Attention, norms and position tables against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models import attention, layers


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_attention_is_a_softmax_average():
  q, k, v = (_normal(i, 2, 5, 3, 4) for i in range(3))
  with jax.default_matmul_precision("highest"):
    actual = attention.attend(q, k, v, "xla")
  for b in range(2):
    for h in range(3):
      logits = np.array(q[b, :, h]) @ np.array(k[b, :, h]).T / 2  # sqrt(4)
      weights = np.exp(logits)
      weights /= weights.sum(-1, keepdims=True)
      expected = weights @ np.array(v[b, :, h])
      np.testing.assert_allclose(actual[b, :, h], expected, atol=2e-6)


def test_attention_in_bfloat16_has_a_float32_softmax():
  """Large logits that differ by less than bfloat16 can tell apart."""
  q = jnp.full((1, 2, 1, 8), 16.0, jnp.bfloat16)
  k = jnp.full((1, 2, 1, 8), 16.0, jnp.bfloat16)
  k = k.at[0, 1, 0, 0].set(16.125)  # Logits 724.1 and 724.8.
  v = jnp.zeros((1, 2, 1, 8), jnp.bfloat16).at[0, 1].set(1.0)
  actual = attention.attend(q, k, v, "xla").astype(jnp.float32)
  gap = 16 * 0.125 / 8**0.5
  np.testing.assert_allclose(actual, 1 / (1 + np.exp(-gap)), rtol=5e-3)


@pytest.mark.parametrize(
  ("backend", "dtype", "head_width", "fused"),
  [
    ("gpu", "bfloat16", 16, True),
    ("gpu", "float16", 72, True),
    ("gpu", "float32", 16, False),
    ("gpu", "bfloat16", 12, False),
    ("cpu", "bfloat16", 16, False),
    ("tpu", "bfloat16", 16, False),
  ],
)
def test_auto_takes_cudnn_only_where_it_fits(
  monkeypatch, backend, dtype, head_width, fused
):
  calls = []

  def cudnn(q, k, v):
    calls.append(q.dtype)
    return attention.attend(q, k, v, "xla")

  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(attention, "_cudnn", cudnn)
  q = _normal(0, 1, 4, 2, head_width).astype(dtype)
  out = attention.attend(q, q, q, "auto")
  assert bool(calls) == fused
  assert out.dtype == q.dtype


def test_auto_falls_back_where_there_is_no_cudnn(monkeypatch):
  def cudnn(q, k, v):
    raise RuntimeError("cuDNN is not detected.")

  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(attention, "_cudnn", cudnn)
  q = _normal(0, 1, 4, 2, 8).astype(jnp.bfloat16)
  expected = attention.attend(q, q, q, "xla")
  np.testing.assert_array_equal(attention.attend(q, q, q, "auto"), expected)
  with pytest.raises(RuntimeError, match="not detected"):
    attention.attend(q, q, q, "cudnn")


def test_cudnn_asked_for_in_vain_is_an_error():
  q = _normal(0, 1, 4, 2, 8)
  with pytest.raises(ValueError, match="cudnn': needs dtype bfloat16"):
    attention.attend(q, q, q, "cudnn")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_agrees_with_xla():
  q, k, v = (_normal(i, 2, 64, 4, 72).astype(jnp.bfloat16) for i in range(3))

  def loss(implementation):
    def f(q, k, v):
      out = attention.attend(q, k, v, implementation).astype(jnp.float32)
      return jnp.sum(jnp.sin(out))

    return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v)

  for a, b in zip(
    jax.tree.leaves(loss("auto")), jax.tree.leaves(loss("xla")), strict=True
  ):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(a - b).max() <= 2e-2 * np.abs(b).max()


@pytest.mark.parametrize("rms", [False, True])
def test_norms(rms):
  x = 3 + 2 * _normal(0, 4, 5, 6)
  norm = layers.Norm(rms=rms, affine=True, epsilon=1e-3)
  variables = norm.init(jax.random.key(0), x)
  params = {
    name: a + _normal(i + 1, *a.shape)
    for i, (name, a) in enumerate(sorted(variables["params"].items()))
  }
  assert set(params) == ({"scale"} if rms else {"scale", "bias"})
  y = np.asarray(x, np.float64)
  if not rms:
    y = y - y.mean(-1, keepdims=True)
  y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3)
  y = y * np.asarray(params["scale"])
  y = y if rms else y + np.asarray(params["bias"])
  np.testing.assert_allclose(norm.apply({"params": params}, x), y, atol=2e-6)
  plain = layers.Norm(rms=rms, affine=False)
  assert not plain.init(jax.random.key(0), x)
  assert plain.apply({}, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_layer_norm_of_a_large_mean_is_accurate():
  """The variance is not a difference of large squares."""
  x = 1000 + _normal(0, 1, 64)
  norm = layers.Norm(rms=False, affine=False)
  exact = np.asarray(x, np.float64)
  exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
  np.testing.assert_allclose(norm.apply({}, x), exact, atol=2e-4)


def test_rotation_depends_on_relative_position_only():
  """<R(p) q, R(p') k> is a function of p - p', in rows and in columns."""
  grid, width = 4, 8
  cos, sin = attention.rope_tables(grid, width)
  one = jnp.ones((1, grid * grid, 1, 1))
  q, k = one * _normal(0, 1, 1, 1, width), one * _normal(1, 1, 1, 1, width)
  q, k = attention.rotate(q, cos, sin), attention.rotate(k, cos, sin)
  scores = jnp.einsum("bnhd,bmhd->nm", q, k)
  scores = scores.reshape(grid, grid, grid, grid)  # row, column of q and k.
  by_offset = {}
  for r, c, s, d in np.ndindex(scores.shape):
    by_offset.setdefault((r - s, c - d), []).append(float(scores[r, c, s, d]))
  assert len(by_offset) == 49
  for values in by_offset.values():
    np.testing.assert_allclose(values, values[0], atol=1e-5)
  assert abs(by_offset[1, 0][0] - by_offset[0, 1][0]) > 1e-2
  np.testing.assert_allclose(
    jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q[0, 0, 0]), rtol=1e-6
  )


def test_position_table_encodes_columns_first():
  table = layers.sincos_positions(3, 8)[0].reshape(3, 3, 8)
  assert (table[0, :, :4] == table[2, :, :4]).all()
  assert (table[:, 0, 4:] == table[:, 2, 4:]).all()
  np.testing.assert_allclose(table[1, 2, :2], np.sin([2, 0.02]), rtol=1e-6)
  np.testing.assert_allclose(table[1, 2, 6:], np.cos([1, 0.01]), rtol=1e-6)


def test_patches_and_images_are_inverse():
  x = _normal(0, 2, 6, 6, 3)
  embed = layers.PatchEmbed(patch=2, width=12, dtype="float32")
  eye = {"linear": {"kernel": jnp.eye(12), "bias": jnp.zeros(12)}}
  tokens = embed.apply({"params": eye}, x)
  np.testing.assert_array_equal(layers.unpatchify(tokens, 2), x)
  np.testing.assert_array_equal(tokens[0, 1, :3], x[0, 0, 2])
  np.testing.assert_array_equal(tokens[0, 1, 3:6], x[0, 0, 3])


def test_dropout_keeps_the_mean():
  x = jnp.ones((400, 500))
  y = layers.dropout(x, 0.4, jax.random.key(0))
  np.testing.assert_allclose(np.unique(y), [0, 1 / 0.6], rtol=1e-6)
  assert abs(float(y.mean()) - 1) < 0.01
  assert layers.dropout(x, 0.4, None) is x
  assert layers.dropout(x, 0.0, jax.random.key(0)) is x

"""Self-attention of the blocks, by XLA or by cuDNN.

Letters: `b` batch, `n` tokens, `d` width, `heads hd` heads and their width,
`f` half of hd.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gmem_jax.models import layers

IMPLEMENTATIONS = ("xla", "cudnn", "auto")
_HALF_PRECISION = ("bfloat16", "float16")

Heads = Float[Array, "b n heads hd"]
# Cosines and sines of the rotation of q and k.
Rope = tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n f"]]

_BASE = 10000.0

_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def _xla(q: Heads, k: Heads, v: Heads) -> Heads:
  # Not jax.nn's, which strict dtype promotion refuses in bfloat16.
  logits = jnp.einsum(
    "bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1)
  return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v)


def cudnn_obstacle(dtype: DTypeLike, head_width: int) -> str | None:
  """Why cuDNN's fused attention cannot take such heads; None if it can."""
  name = jnp.dtype(dtype).name
  if name not in _HALF_PRECISION:
    return f"needs dtype {' or '.join(_HALF_PRECISION)}, not {name}"
  if head_width % 8:
    return f"needs a head width that is a multiple of 8, not {head_width}"
  return None


def _cudnn_here(q: Heads) -> bool:
  """Whether this process compiles for a GPU whose cuDNN takes such heads."""
  if jax.default_backend() != "gpu" or cudnn_obstacle(q.dtype, q.shape[-1]):
    return False
  try:
    jax.eval_shape(_cudnn, q, q, q)
  except RuntimeError:  # No cuDNN (as on ROCm), or not for these shapes.
    return False
  return True


def attend(q: Heads, k: Heads, v: Heads, implementation: str) -> Heads:
  """softmax(q k^T / sqrt(hd)) v, the softmax in float32.

  Args:
    q: queries.
    k: keys.
    v: values; all three in the dtype of the matrix products.
    implementation: "xla"; "cudnn", which raises where it cannot run; or "auto":
      cuDNN if the default backend is a CUDA GPU and dtype and hd allow it, so
      that float32 is always XLA's. The choice is made while tracing: compiling
      for a GPU from a machine without one needs an explicit "cudnn".

  Returns:
    The attended values.

  Raises:
    ValueError: cuDNN was asked for and cannot take this dtype or head width.

  Source: Vaswani et al. (2017), arXiv 1706.03762.
  """
  if implementation == "auto":
    implementation = "cudnn" if _cudnn_here(q) else "xla"
  if implementation == "xla":
    return _xla(q, k, v)
  if obstacle := cudnn_obstacle(q.dtype, q.shape[-1]):
    raise ValueError(f"model.attention='cudnn' {obstacle}")
  return _cudnn(q, k, v)


def rope_tables(grid: int, head_width: int) -> Rope:
  """Cosine and sine of the rotary angles of a square grid.

  Args:
    grid: tokens along each side; n = grid^2, row after row.
    head_width: channels of one head, a multiple of 4; f is half of it.

  Returns:
    (cos, sin), one angle for each adjacent pair of channels: those of the row,
    then those of the column, position * 10000^(-j/f) for j = 0, 2, ...

  Source: Su et al. (2021), arXiv 2104.09864; two-dimensional as in EVA-02.
  """
  half = head_width // 2
  w = _BASE ** (-np.arange(0, half, 2, dtype=np.float64) / half)
  row, col = np.divmod(np.arange(grid * grid), grid)
  angles = np.concatenate([p[:, None] * w[None, :] for p in (row, col)], 1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
  x: Float[Array, "b n heads hd"],
  cos: Float[np.ndarray, "n f"],
  sin: Float[np.ndarray, "n f"],
) -> Float[Array, "b n heads hd"]:
  """Rotates adjacent pairs of channels by the angles of `rope_tables`.

  Args:
    x: queries or keys, float32.
    cos: cosines, f = hd / 2.
    sin: sines.

  Returns:
    (a cos - b sin, b cos + a sin) for each pair (a, b), interleaved as in x.

  Source: Su et al. (2021), arXiv 2104.09864.
  """
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  a, b = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, 2), -1, 0)
  pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return pairs.reshape(x.shape)


class Attention(nn.Module):
  """Multi-head self-attention with optional norm and rotation of q and k.

  Attributes:
    heads: number of heads; it divides d.
    qk_norm: normalise each head of q and k, before the rotation.
    rms_norm: the kind of that norm (RMSNorm, or LayerNorm with scale and bias).
    implementation: see `attend`.
    dtype: of the matrix products.
    float8: of the two with weights; see `layers.dense`.
  """

  heads: int
  qk_norm: bool
  rms_norm: bool
  implementation: str
  dtype: DTypeLike
  float8: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], rope: Rope | None
  ) -> Float[Array, "b n d"]:
    """Lets the tokens attend to each other.

    Args:
      x: tokens.
      rope: cosines and sines of the rotation, or None for no rotation.

    Returns:
      Tokens in `dtype`.
    """
    b, n, d = x.shape
    linear = functools.partial(
      layers.dense, dtype=self.dtype, float8=self.float8
    )
    qkv = linear(3 * d, name="qkv")(x)
    shape = (b, n, self.heads, d // self.heads)
    q, k, v = (y.reshape(shape) for y in jnp.split(qkv, 3, axis=-1))
    if self.qk_norm:
      epsilon = 1e-6 if self.rms_norm else 1e-5
      norm = functools.partial(
        layers.Norm, self.rms_norm, affine=True, epsilon=epsilon
      )
      q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
    if rope is not None:
      q, k = (rotate(y.astype(jnp.float32), *rope) for y in (q, k))
    y = attend(q.astype(v.dtype), k.astype(v.dtype), v, self.implementation)
    return linear(d, name="proj")(y.reshape(b, n, d))

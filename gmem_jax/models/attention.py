"""Self-attention of the blocks, by XLA or by cuDNN, and its rotary positions.

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
  # Tracing checks cuDNN's version and the shapes, and compiles nothing.
  try:
    jax.eval_shape(_cudnn, q, q, q)
  except RuntimeError:  # No cuDNN (as on ROCm), or not for these shapes.
    return False
  return True


def attend(q: Heads, k: Heads, v: Heads, implementation: str) -> Heads:
  """softmax(q k^T / sqrt(hd)) v, the softmax in float32.

  Args:
    q: Queries, like k and v in the dtype of the matmuls.
    k: Rotated like the queries, where there are positions.
    v: Not rotated.
    implementation: "xla"; "cudnn", which raises where it cannot run; or "auto":
      cuDNN if the default backend is a CUDA GPU and dtype and hd allow it.

  Raises:
    ValueError: If cuDNN was asked for and cannot take this dtype or head width.

  Source: Vaswani et al. (2017), arXiv 1706.03762.
  """
  if implementation == "auto":
    # Chosen while tracing: to compile for a GPU from a machine without one, ask
    # for "cudnn". Never for float32, which cuDNN's kernels do not take.
    implementation = "cudnn" if _cudnn_here(q) else "xla"
  if implementation == "xla":
    return _xla(q, k, v)
  if obstacle := cudnn_obstacle(q.dtype, q.shape[-1]):
    raise ValueError(f"config.model.attention='cudnn': {obstacle}")
  return _cudnn(q, k, v)


def rope_tables(grid: int, head_width: int) -> Rope:
  """Cosine and sine of the rotary angles of a square grid.

  Args:
    grid: Tokens along each side; n = grid^2, row by row.
    head_width: Channels of one head, a multiple of 4; f is half of it.

  Returns:
    (cos, sin), one angle for each adjacent pair of channels: those of the row,
    then those of the column, position * 10000^(-j/f) for j = 0, 2, ...

  Source: Su et al. (2021), arXiv 2104.09864; two-dimensional as in EVA-02.
  """
  half = head_width // 2
  w = layers.BASE ** (-np.arange(0, half, 2, dtype=np.float64) / half)
  row, col = np.divmod(np.arange(grid * grid), grid)
  # Rows first, as published; `layers.sincos_positions` has columns first.
  angles = np.concatenate([p[:, None] * w[None, :] for p in (row, col)], 1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
  x: Float[Array, "b n heads hd"],
  cos: Float[np.ndarray, "n f"],
  sin: Float[np.ndarray, "n f"],
) -> Float[Array, "b n heads hd"]:
  """Rotates adjacent pairs of channels by the angles of `rope_tables`.

  Each pair (a, b) becomes (a cos - b sin, b cos + a sin), in its place in x.

  Source: Su et al. (2021), arXiv 2104.09864.
  """
  # Pairs are adjacent, not half a head apart as in GPT-NeoX: that order would
  # need the published kernels of q and k permuted.
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  a, b = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, 2), -1, 0)
  pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return pairs.reshape(x.shape)


class Attention(nn.Module):
  """Multi-head self-attention with optional norm and rotation of q and k.

  Attributes:
    heads: Number of heads; divides d.
    qk_norm: Normalise each head of q and k, before the rotation.
    rms_norm: That norm is RMSNorm, not LayerNorm with scale and bias.
    implementation: See `attend`.
    float8: 8-bit matmuls with the two kernels; see `layers.dense`.
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
    """Lets the tokens attend to each other; returns them in `dtype`."""
    b, n, d = x.shape
    linear = functools.partial(
      layers.dense, dtype=self.dtype, float8=self.float8
    )
    qkv = linear(3 * d, name="qkv")(x)
    shape = (b, n, self.heads, d // self.heads)
    q, k, v = (y.reshape(shape) for y in jnp.split(qkv, 3, axis=-1))
    if self.qk_norm:
      # LayerNorm here has PyTorch's default epsilon, not that of the blocks.
      epsilon = 1e-6 if self.rms_norm else 1e-5
      norm = functools.partial(
        layers.Norm, self.rms_norm, affine=True, epsilon=epsilon
      )
      q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
    if rope is not None:
      # In float32: bfloat16 would round the angles' cosines to 8 bits.
      q, k = (rotate(y.astype(jnp.float32), *rope) for y in (q, k))
    y = attend(q.astype(v.dtype), k.astype(v.dtype), v, self.implementation)
    return linear(d, name="proj")(y.reshape(b, n, d))

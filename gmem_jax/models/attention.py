"""Self-attention of the blocks, by XLA or by cuDNN, and its rotary positions.

Letters: `b` batch, `n` tokens, `d` width, `heads hd` heads and their width,
`f` half of hd.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from gmem_jax.models import layers

IMPLEMENTATIONS = ("xla", "cudnn", "auto")
_HALF_PRECISION = ("bfloat16", "float16")

Heads = Float[Array, "b n heads hd"]
ByHead = Float[Array, "b heads n hd"]
# Cosines and sines of the rotation of q and k.
Rope = tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n f"]]

_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


@jax.custom_vjp
def _xla(q: Heads, k: Heads, v: Heads) -> Heads:
  """The attention by plain matmuls; keeps no array of [n m] for its gradient.

  Derived by JAX the gradient would keep two, one of them float32, and multiply
  float32: a block of XL would keep 1,198 MB for 128 images instead of 464.

  Source: Dao et al. (2022), arXiv 2205.14135, has these equations.
  """
  return _forward(q, k, v)[0]


def _weights(q: ByHead, k: ByHead) -> Float[Array, "b heads n m"]:
  # Not jax.nn's, which strict dtype promotion refuses in bfloat16.
  logits = jnp.einsum(
    "bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32
  )
  return jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1)


def _forward(q: Heads, k: Heads, v: Heads) -> tuple[Heads, Any]:
  """What is returned, and what the gradient needs."""
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  y = jnp.einsum("bhnm,bhmd->bhnd", _weights(q, k).astype(v.dtype), v)
  y = jnp.swapaxes(y, 1, 2)
  return y, (q, k, v, y)


def _backward(kept: Any, dy: Heads) -> tuple[Heads, Heads, Heads]:
  """Gradients of q, k and v; products in their dtype, sums in float32."""
  q, k, v, y = kept
  # Else XLA would keep the forward pass's weights, seeing them computed again.
  q, k = jax.lax.optimization_barrier((q, k))
  weights = _weights(q, k)
  # The softmax's gradient subtracts its mean under the weights.
  products = dy.astype(jnp.float32) * y.astype(jnp.float32)
  mean = jnp.swapaxes(jnp.sum(products, axis=-1, keepdims=True), 1, 2)
  dy = jnp.swapaxes(dy, 1, 2)
  dv = jnp.einsum("bhnm,bhnd->bhmd", weights.astype(v.dtype), dy)
  dweights = jnp.einsum(
    "bhnd,bhmd->bhnm", dy, v, preferred_element_type=jnp.float32
  )
  dlogits = weights * (dweights - mean) / math.sqrt(q.shape[-1])
  dlogits = dlogits.astype(q.dtype)
  dq = jnp.einsum("bhnm,bhmd->bhnd", dlogits, k)
  dk = jnp.einsum("bhnm,bhnd->bhmd", dlogits, q)
  return jnp.swapaxes(dq, 1, 2), jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2)


_xla.defvjp(_forward, _backward)


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
  """Rotates pairs of channels by the angles of `rope_tables`.

  Each pair (a, b) becomes (a cos - b sin, b cos + a sin), computed in float32
  and returned in x's dtype. Channel i of a head is paired with i + f;
  `pairs_to_halves` brings parameters into that order.

  Source: Su et al. (2021), arXiv 2104.09864.
  """
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  # In bfloat16 the cosines of the angles would be rounded to 8 bits.
  halves = x.reshape(*x.shape[:-1], 2, -1).astype(jnp.float32)
  signed = np.stack([-sin, sin], axis=-2)
  y = halves * cos[..., None, :] + halves[..., ::-1, :] * signed
  return y.reshape(x.shape).astype(x.dtype)


def pairs_to_halves(params: PyTree, heads: int) -> PyTree:
  """Orders the channels of q and k as `rotate` wants them.

  In checkpoints, as in the published files, the two channels of a pair are
  adjacent. Half a head apart, they can be read and written whole: adjacent
  ones cost two more passes over q and k in each block. Both orders give the
  same scores, up to rounding, and the work is one pass over the parameters.

  Args:
    params: Of one `Attention`, or of several with leading axes.
    heads: Of that `Attention`.
  """

  def reorder(x, heads):
    pairs = x.reshape(*x.shape[:-1], heads, -1, 2)
    return jnp.swapaxes(pairs, -1, -2).reshape(x.shape)

  def reorder_qk(x):
    qk, v = jnp.split(x, (2 * x.shape[-1] // 3,), axis=-1)
    return jnp.concatenate([reorder(qk, 2 * heads), v], axis=-1)

  out = {**params, "qkv": jax.tree.map(reorder_qk, params["qkv"])}
  for name in {"q_norm", "k_norm"} & params.keys():
    out[name] = jax.tree.map(lambda x: reorder(x, 1), params[name])
  return out


class Attention(nn.Module):
  """Multi-head self-attention with optional norm and rotation of q and k.

  To rotate, it takes parameters from `pairs_to_halves`.

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
    qkv = layers.whole_gradient(linear(3 * d, name="qkv")(x))
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
      q, k = rotate(q, *rope), rotate(k, *rope)
    y = attend(q.astype(v.dtype), k.astype(v.dtype), v, self.implementation)
    return linear(d, name="proj")(y.reshape(b, n, d))

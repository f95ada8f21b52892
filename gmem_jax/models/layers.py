"""Layers and tables that SiT and LightningDiT share.

Parameters are float32. Each layer multiplies matrices in its `dtype`; norms,
modulation and the embeddings of time and snippet are always float32.

Letters: `b` batch, `h w c` latent, `n` tokens, `d` width, `p` patch.
"""

import functools
import math
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from gmem_jax.models import float8 as float8_lib

# Bound sqrt(6 / (in + out)) on each kernel as stored. The published code draws
# qkv, w12 and the modulations as one matrix each, so their kernels are fused
# here too: split ones would be up to 1.7 times larger.
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros

# The slowest sinusoids of positions and of time have periods near 2 pi BASE.
BASE = 10000.0
# Of the products that are always float32. They are small, and every block
# depends on them; accelerators would round their operands to TF32 or bfloat16.
EXACT = jax.lax.Precision.HIGHEST
# Half the width of the timestep features.
_TIME_FREQUENCIES = 128


def dense(
  width: int,
  dtype: DTypeLike,
  name: str,
  zero_init: bool = False,
  float8: bool = False,
  precision: jax.lax.Precision | None = None,
) -> nn.Dense:
  """Makes a linear layer with bias, Xavier-uniform or zero at the start.

  With `float8` its matmul takes 8-bit operands, see `float8.dot_general`.
  """
  return nn.Dense(
    width,
    dtype=dtype,
    precision=precision,
    kernel_init=zeros if zero_init else xavier,
    dot_general=float8_lib.dot_general if float8 else None,
    name=name,
  )


@jax.custom_vjp
def whole_gradient(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """The identity; its gradient is computed once, not in each of its uses."""
  return x


whole_gradient.defvjp(
  lambda x: (x, None), lambda _, g: (jax.lax.optimization_barrier(g),)
)


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed and returned in float32.

  Attributes:
    rms: Divide by the root mean square; do not centre.
    affine: Learn a scale and, with LayerNorm, a bias.
    epsilon: Added to the mean square.

  Source: Zhang and Sennrich (2019), arXiv 1910.07467; Ba et al. (2016).
  """

  rms: bool
  affine: bool
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Normalises each vector."""
    x = x.astype(jnp.float32)
    if not self.rms:
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    y = x * jax.lax.rsqrt(
      jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon
    )
    # Ranks are matched by hand everywhere: the tests forbid rank promotion.
    shape = (1,) * (x.ndim - 1) + (-1,)
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
      y = y * scale.reshape(shape)
    if self.affine and not self.rms:
      y = y + self.param("bias", zeros, x.shape[-1:]).reshape(shape)
    return y


def modulate(
  x: Float[Array, "b n d"],
  shift: Float[Array, "b 1 d"] | None,
  scale: Float[Array, "b 1 d"],
) -> Float[Array, "b n d"]:
  """Returns x * (1 + scale) + shift in float32; no shift if it is None."""
  y = x.astype(jnp.float32) * (1 + scale.astype(jnp.float32))
  return y if shift is None else y + shift.astype(jnp.float32)


def timestep_features(t: Float[Array, " b"]) -> Float[Array, "b 256"]:
  """Sinusoids of the timestep t in [0, 1].

  Returns:
    cos(t w_i) for i = 0..127, then sin(t w_i), with w_i = 10000^(-i/128).

  Source: Peebles and Xie (2023), arXiv 2212.09748, as used by SiT.
  """
  # Unlike DiT, the published networks do not scale t by 1000, so all but the
  # first few sinusoids vary slowly over [0, 1]. Scaling would need new weights.
  i = np.arange(_TIME_FREQUENCIES, dtype=np.float32)
  w = np.exp(-math.log(BASE) * i / np.float32(_TIME_FREQUENCIES))
  angles = t.astype(jnp.float32)[:, None] * w.astype(np.float32)[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbed(nn.Module):
  """Embeds the timestep: sinusoids, then a two-layer MLP, in float32."""

  width: int

  @nn.compact
  def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
    """Embeds t in [0, 1]."""
    # The one MLP that the published code does not draw with Xavier's bound.
    linear = functools.partial(
      nn.Dense,
      self.width,
      kernel_init=nn.initializers.normal(0.02),
      precision=EXACT,
    )
    x = linear(name="fc1")(timestep_features(t))
    return linear(name="fc2")(nn.silu(x))


class PatchEmbed(nn.Module):
  """Cuts the latent into patches, p on a side, and maps each to a token."""

  patch: int
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Returns the tokens row by row, n = (h / p) (w / p)."""
    # A matmul rather than a strided convolution: the same numbers, and Xavier's
    # bound applies to the flattened kernel, as in the published code.
    p = self.patch
    x = einops.rearrange(x, "b (i p) (j q) c -> b (i j) (p q c)", p=p, q=p)
    return dense(self.width, self.dtype, name="linear")(x)


def unpatchify(
  tokens: Float[Array, "b n o"], patch: int
) -> Float[Array, "b h w c"]:
  """Arranges the patches of a square grid, channel fastest, as an image."""
  grid = round(tokens.shape[1] ** 0.5)
  return einops.rearrange(
    tokens, "b (i j) (p q c) -> b (i p) (j q) c", i=grid, p=patch, q=patch
  )


def sincos_positions(grid: int, width: int) -> Float[np.ndarray, "1 n d"]:
  """Fixed two-dimensional position table of a square grid.

  Args:
    grid: Tokens along each side; n = grid^2, row by row.
    width: d, a multiple of 4.

  Returns:
    [sin(col w), cos(col w), sin(row w), cos(row w)], w_i = 10000^(-i/(d/4)).

  Source: Peebles and Xie (2023), arXiv 2212.09748.
  """
  w = BASE ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
  row, col = np.divmod(np.arange(grid * grid), grid)
  # Columns first, as published; the rotary tables have rows first.
  angles = [p[:, None] * w[None, :] for p in (col, row)]
  table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
  return table[None].astype(np.float32)


class GeluMlp(nn.Module):
  """Two-layer MLP, hidden width 4 d, with tanh-approximated GELU."""

  dtype: DTypeLike
  float8: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Applies the MLP to each token."""
    linear = functools.partial(dense, dtype=self.dtype, float8=self.float8)
    y = linear(4 * x.shape[-1], name="fc1")(x)
    y = nn.gelu(y, approximate=True)
    return linear(x.shape[-1], name="fc2")(y)


class SwiGlu(nn.Module):
  """Gated MLP silu(a) * b, hidden width floor(8 d / 3).

  Source: Shazeer (2020), arXiv 2002.05202.
  """

  dtype: DTypeLike
  float8: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Applies the MLP to each token."""
    linear = functools.partial(dense, dtype=self.dtype, float8=self.float8)
    width = x.shape[-1]
    # Two thirds of GeluMlp's hidden width: three matrices, as many parameters.
    y = whole_gradient(linear(2 * (8 * width // 3), name="w12")(x))
    a, b = jnp.split(y, 2, axis=-1)
    return linear(width, name="w3")(nn.silu(a) * b)


class Projector(nn.Module):
  """Maps tokens to the space, `width` wide, of an image encoder's (REPA).

  Source: Yu et al. (2024), arXiv 2410.06940.
  """

  hidden: int
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n z"]:
    """Projects each token."""
    x = nn.silu(dense(self.hidden, self.dtype, name="fc1")(x))
    x = nn.silu(dense(self.hidden, self.dtype, name="fc2")(x))
    return dense(self.width, self.dtype, name="fc3")(x)


def project(
  x: Float[Array, "b n d"],
  widths: Sequence[int],
  hidden: int,
  dtype: DTypeLike,
) -> tuple[Float[Array, "b n _"], ...]:
  """Projects tokens to each of some widths, in float32.

  Called inside a compact method, which then has the projectors "projector",
  "projector_1", ….
  """
  names = ("projector", *(f"projector_{i}" for i in range(1, len(widths))))
  return tuple(
    Projector(hidden, width, dtype, name=name)(x).astype(jnp.float32)
    for name, width in zip(names, widths, strict=True)
  )


class FinalLayer(nn.Module):
  """Norm, modulation and the linear map from tokens to patches.

  Attributes:
    width: Values per token, patch * patch * channels.
    rms_norm: RMSNorm with a scale instead of LayerNorm without.
    zero_init: Start the modulation and the linear map at zero.
  """

  width: int
  rms_norm: bool
  zero_init: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], cond: Float[Array, "b d"]
  ) -> Float[Array, "b n o"]:
    """Maps each token to a patch; `cond` is SiLU of the condition."""
    zero, d = self.zero_init, x.shape[-1]
    # Always with a shift, also where the blocks have none: so it was published.
    mod = dense(2 * d, self.dtype, "modulation", zero)(cond)
    shift, scale = jnp.split(mod[:, None, :], 2, axis=-1)
    y = Norm(self.rms_norm, affine=self.rms_norm, name="norm")(x)
    y = modulate(y, shift, scale)
    return dense(self.width, self.dtype, "linear", zero)(y)


def keep_mask(
  key: Key[Array, "..."], rate: float, shape: tuple[int, ...]
) -> Bool[Array, "..."]:
  """Draws which elements a dropout keeps; one key, or one per example."""
  if key.ndim:
    return jax.vmap(lambda k: keep_mask(k, rate, shape[1:]))(key)
  return jax.random.bernoulli(key, 1.0 - rate, shape)


def keep(
  x: Float[Array, "*s"], mask: Bool[Array, "*s"], rate: float
) -> Float[Array, "*s"]:
  """Inverted dropout for a given mask: x / (1 - rate) where True, else 0."""
  return jnp.where(mask, x / (1.0 - rate), jnp.zeros_like(x))


def dropout(
  x: Float[Array, "*s"], rate: float, key: Key[Array, "..."] | None
) -> Float[Array, "*s"]:
  """Drops single elements at random; without a key returns x itself."""
  # Not nn.Dropout: under its one key an example's mask depends on the batch.
  if key is None or rate == 0.0:
    return x
  return keep(x, keep_mask(key, rate, x.shape), rate)

"""The parts of the autoencoders: residual blocks, levels, encoder, decoder.

A level works at one resolution and is numbered from the image inwards: level
0 has the image's resolution, each further level half of the one before.

Every module has these two fields:
  num_groups: Groups of every group norm; divides all widths.
  dtype: Of convolutions and projections; parameters and norms are float32.

Letters: `b` batch, `h w` height and width, `c` channels.

Source: Esser et al., arXiv 2012.09841.
"""

import math
from typing import Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def _group_norm(
  x: Float[Array, "b *s c"], num_groups: int, name: str
) -> Float[Array, "b *s c"]:
  """Group norm with statistics and result in float32."""
  # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large.
  norm = nn.GroupNorm(
    num_groups, epsilon=1e-6, use_fast_variance=False, name=name
  )
  return norm(x.astype(jnp.float32))


def _output(
  x: Float[Array, "b _ _ _"], module: "VAEEncoder | VAEDecoder"
) -> Float[Array, "b _ _ _"]:
  """The last layers of both halves."""
  x = nn.swish(_group_norm(x, module.num_groups, "norm_out"))
  out = module.out_channels
  return nn.Conv(out, (3, 3), dtype=module.dtype, name="conv_out")(x)


class ResBlock(nn.Module):
  """Two rounds of group norm, swish and 3x3 convolution, plus a shortcut.

  Attributes:
    width: Channels of the result; where they differ from the input's, the
      shortcut is a 1x1 convolution.
  """

  width: int
  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w _"]:
    """Applies the block; keeps h and w."""
    y = x
    for i in (1, 2):
      y = nn.swish(_group_norm(y, self.num_groups, f"norm_{i}"))
      y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"conv_{i}")(y)
    if x.shape[-1] != self.width:
      x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="shortcut")(x)
    return x + y


class AttnBlock(nn.Module):
  """Single-head self-attention over all positions, softmax in float32."""

  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies the block."""
    _, h, w, c = x.shape
    tokens = einops.rearrange(x, "b h w c -> b (h w) c")
    normed = _group_norm(tokens, self.num_groups, "norm")
    q, k, v = (
      nn.Dense(c, dtype=self.dtype, name=name)(normed) for name in "qkv"
    )
    logits = jnp.einsum(
      "bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32
    )
    weights = nn.softmax(logits / math.sqrt(c)).astype(v.dtype)
    y = jnp.einsum("bqk,bkc->bqc", weights, v)
    tokens += nn.Dense(c, dtype=self.dtype, name="out")(y)
    return einops.rearrange(tokens, "b (h w) c -> b h w c", h=h, w=w)


class Level(nn.Module):
  """All blocks of one resolution, then a change of resolution.

  Attributes:
    num_blocks: Number of ResBlocks.
    attention: Whether attention follows each of them.
    resample: "down" halves height and width at the end, "up" doubles them.
  """

  width: int
  num_blocks: int
  attention: bool
  resample: Literal["down", "up"] | None
  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
    """Applies the level."""
    for i in range(self.num_blocks):
      name = f"block_{i}"
      x = ResBlock(self.width, self.num_groups, self.dtype, name=name)(x)
      if self.attention:
        x = AttnBlock(self.num_groups, self.dtype, name=f"attn_{i}")(x)
    if self.resample == "down":
      # Zeros below and to the right only, as published. On every side they
      # would move the image by a pixel of this level.
      return nn.Conv(
        self.width,
        (3, 3),
        strides=2,
        padding=((0, 1), (0, 1)),
        dtype=self.dtype,
        name="downsample",
      )(x)
    if self.resample == "up":
      x = einops.repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)
      return nn.Conv(self.width, (3, 3), dtype=self.dtype, name="upsample")(x)
    return x


class Middle(nn.Module):
  """ResBlock, attention, ResBlock at the lowest resolution."""

  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies the three blocks."""
    width = x.shape[-1]
    x = ResBlock(width, self.num_groups, self.dtype, name="block_0")(x)
    x = AttnBlock(self.num_groups, self.dtype, name="attn")(x)
    return ResBlock(width, self.num_groups, self.dtype, name="block_1")(x)


class VAEEncoder(nn.Module):
  """Image -> feature map at the lowest resolution.

  Attributes:
    ch: Channels of the first convolution.
    widths: Channels of each level, level 0 first.
    num_blocks: ResBlocks per level.
    attention_levels: Levels with attention.
  """

  out_channels: int
  ch: int
  widths: tuple[int, ...]
  num_blocks: int
  attention_levels: tuple[int, ...]
  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
    """Applies the encoder; each level but the last halves h and w."""
    x = nn.Conv(self.ch, (3, 3), dtype=self.dtype, name="conv_in")(x)
    for i, width in enumerate(self.widths):
      x = Level(
        width,
        self.num_blocks,
        attention=i in self.attention_levels,
        resample="down" if i < len(self.widths) - 1 else None,
        num_groups=self.num_groups,
        dtype=self.dtype,
        name=f"down_{i}",
      )(x)
    x = Middle(self.num_groups, self.dtype, name="mid")(x)
    return _output(x, self)


class VAEDecoder(nn.Module):
  """Latent -> image; the mirror of `VAEEncoder`, with the same attributes."""

  out_channels: int
  widths: tuple[int, ...]
  num_blocks: int
  attention_levels: tuple[int, ...]
  num_groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
    """Applies the decoder; each level but level 0 doubles h and w."""
    x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="conv_in")(x)
    x = Middle(self.num_groups, self.dtype, name="mid")(x)
    for i, width in reversed(tuple(enumerate(self.widths))):
      x = Level(
        width,
        self.num_blocks,
        attention=i in self.attention_levels,
        resample="up" if i > 0 else None,
        num_groups=self.num_groups,
        dtype=self.dtype,
        name=f"up_{i}",
      )(x)
    return _output(x, self)

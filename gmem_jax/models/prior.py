"""The prior's network: a residual MLP that generates memory snippets.

A vector has no neighbours to attend to, so each block is two linear layers
whose input is shifted and scaled, and whose output is gated, by the time and
the group.

Letters: `b` batch, `d` snippet width.

Source: Li et al., "Return of unconditional generation" (RCG, arXiv 2312.03701):
representations come from a diffusion on a residual MLP. Modulation and gate are
those of DiT (arXiv 2212.09748), zero at the start.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gmem_jax.models import layers

# Always float32, as accelerators multiply it: the network is small.
_dense = functools.partial(layers.dense, dtype=jnp.float32)


def _modulated(
  x: Float[Array, "b d"],
  shift: Float[Array, "b d"],
  scale: Float[Array, "b d"],
) -> Float[Array, "b d"]:
  return layers.Norm(rms=False, affine=False)(x) * (1 + scale) + shift


class PriorBlock(nn.Module):
  """A residual block: two linear layers, modulated and gated."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b d"], condition: Float[Array, "b d"]
  ) -> Float[Array, "b d"]:
    """Adds to the residual stream; `condition` is SiLU of the condition."""
    width = x.shape[-1]
    made = _dense(3 * width, name="modulation", zero_init=True)(condition)
    shift, scale, gate = jnp.split(made, 3, axis=-1)
    y = _dense(2 * width, name="fc1")(_modulated(x, shift, scale))
    return x + gate * _dense(width, name="fc2")(nn.silu(y))


class PriorNetwork(nn.Module):
  """Maps noisy snippets and times to predictions of the snippets.

  Attributes:
    width: Of the residual stream.
    depth: Number of residual blocks.
    groups: Number of groups that it can be conditioned on; 0 for none.
  """

  width: int
  depth: int
  groups: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b d"],
    t: Float[Array, " b"],
    group: Int[Array, " b"],
  ) -> Float[Array, "b d"]:
    """Predicts in float32; at the start, zero.

    Args:
      x: Points on the path.
      t: Times in [0, 1].
      group: Numbers of groups, `groups` for none; unused without groups.
    """
    condition = layers.TimestepEmbed(self.width, name="time")(t)
    if self.groups:
      # The number after the last gives zeros.
      one_hot = jax.nn.one_hot(group, self.groups)
      condition = condition + _dense(self.width, name="group")(one_hot)
    condition = nn.silu(condition)
    h = _dense(self.width, name="input")(x)
    for i in range(self.depth):
      h = PriorBlock(name=f"block_{i}")(h, condition)
    made = _dense(2 * self.width, name="modulation", zero_init=True)(condition)
    shift, scale = jnp.split(made, 2, axis=-1)
    h = _modulated(h, shift, scale)
    return _dense(x.shape[-1], name="output", zero_init=True)(h)

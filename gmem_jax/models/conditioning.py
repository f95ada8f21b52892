"""What a network is conditioned on, and cross-attention to neighbours.

With conditioning "cross" or "adaln+cross" the tokens attend to k snippets that
a lookup found in the bank, each with its score. A snippet of zeros is an absent
one: no attention goes to it, and where all are absent the layer adds nothing.
So zeros are the null memory of guidance here too, and dropping a neighbour
means putting zeros in its place; neither needs a mask.

Letters: `b` batch, `n` tokens, `d` width, `k` neighbours, `s` snippet width.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from gmem_jax.models import layers

KINDS = ("none", "adaln", "cross", "adaln+cross")


def uses_adaln(kind: str) -> bool:
  """Whether a network of that conditioning takes a snippet."""
  return "adaln" in kind.split("+")


def uses_cross(kind: str) -> bool:
  """Whether a network of that conditioning takes neighbours."""
  return "cross" in kind.split("+")


def check(
  kind: str,
  snippet: Float[Array, "b _"] | None,
  neighbours: Float[Array, "b k _"] | None,
  width: int,
) -> None:
  """Checks that the vectors are those that the conditioning takes.

  Raises:
    ValueError: If one is missing, too much, or not `width` wide.
  """
  for name, vectors, needed in (
    ("snippet", snippet, uses_adaln(kind)),
    ("neighbour", neighbours, uses_cross(kind)),
  ):
    if (vectors is not None) != needed:
      need = f"needs a {name}" if needed else f"takes no {name}"
      raise ValueError(f"config.model.conditioning={kind!r}: {need}")
    if vectors is not None and vectors.shape[-1] != width:
      raise ValueError(
        f"a {name} has {vectors.shape[-1]} elements, the network is built for"
        f" {width}"
      )


@flax.struct.dataclass
class Neighbours:
  """The result of a lookup.

  Attributes:
    snippets: Unit vectors; zeros for an absent neighbour.
    scores: Cosine of each with what was looked up, in [-1, 1], float32.
  """

  snippets: Float[Array, "b k s"]
  scores: Float[Array, "b k"]


@flax.struct.dataclass
class MemoryTokens:
  """Neighbours as the blocks read them, projected once per network.

  Attributes:
    tokens: One for each neighbour.
    scores: See `Neighbours`.
    present: False for an absent neighbour.
  """

  tokens: Float[Array, "b k d"]
  scores: Float[Array, "b k"]
  present: Bool[Array, "b k"]


class CrossAttention(nn.Module):
  """Lets the tokens attend to the memory.

  For head h, token i and neighbour j, the attention before the softmax is

    q_i . k_j / sqrt(hd) + score_scale_h score_j,

  with a learned score_scale that starts at 1, so a better match counts more
  even before anything is learned of its content. The softmax has one more
  entry, with logit 0 and value 0, so a token can also attend to nothing.

  Source: Blattmann et al. (2022), arXiv 2204.11824; the scores are ours.
  """

  heads: int
  rms_norm: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], memory: MemoryTokens
  ) -> Float[Array, "b n d"]:
    """Returns what to add to the tokens, in `dtype`; softmax in float32."""
    b, n, d = x.shape
    k, heads, dtype = memory.tokens.shape[1], self.heads, self.dtype
    y = layers.Norm(self.rms_norm, affine=self.rms_norm, name="norm")(x)
    q = layers.dense(d, dtype, "q")(y.astype(dtype))
    key, value = jnp.split(
      layers.dense(2 * d, dtype, "kv")(memory.tokens), 2, axis=-1
    )
    q = q.reshape(b, n, heads, d // heads)
    key, value = (y.reshape(b, k, heads, d // heads) for y in (key, value))
    logits = jnp.einsum(
      "bnhd,bkhd->bhnk", q, key, preferred_element_type=jnp.float32
    ) / math.sqrt(d // heads)
    scale = self.param("score_scale", nn.initializers.ones, (heads,))
    logits += scale[None, :, None, None] * memory.scores[:, None, None, :]
    # The entry for nothing also keeps the softmax finite where all are absent.
    logits = jnp.where(memory.present[:, None, None, :], logits, -jnp.inf)
    nothing = jnp.zeros_like(logits[..., :1])
    weights = jax.nn.softmax(jnp.concatenate([nothing, logits], -1), axis=-1)
    weights = weights[..., 1:].astype(dtype)
    y = jnp.einsum("bhnk,bkhd->bnhd", weights, value).reshape(b, n, d)
    # Starts at zero and has no bias: a fresh layer adds exactly nothing, so
    # converted weights go on unchanged, and neither does one without
    # neighbours, however long it was trained.
    return nn.Dense(
      d, use_bias=False, dtype=dtype, kernel_init=layers.zeros, name="proj"
    )(y)

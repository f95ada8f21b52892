"""The transformer block, and the loop over the depth.

Whatever the options, the parameters of all blocks are one tree whose arrays
have a leading layer axis: checkpoints, converter and sharding rules know one
layout only.

Letters: `b` batch, `n` tokens, `d` width, `l` layers, `g` those that read the
memory.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, PyTree

from gmem_jax.models import attention, conditioning, layers

REMAT = ("none", "dots", "full")

Rope = attention.Rope
Tokens = Float[Array, "b n d"]
Stack = PyTree[Float[Array, "l ..."]]
CrossStack = PyTree[Float[Array, "g ..."]]
# Returns its argument, with a word on which devices hold it.
Constrain = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Style:
  """What distinguishes the families of transformers.

  Attributes:
    swiglu: gated perceptron instead of one with GELU.
    rope: rotate queries and keys by their position.
    rms_norm: RMSNorm with a scale instead of LayerNorm without.
    qk_norm: normalise queries and keys.
    shift: modulate by a shift too, not only by scale and gate.
    zero_init: start modulations and output at zero.
  """

  swiglu: bool = False
  rope: bool = False
  rms_norm: bool = False
  qk_norm: bool = False
  shift: bool = True
  zero_init: bool = False


class Block(nn.Module):
  """Pre-norm attention and perceptron, both modulated by the condition.

  Attributes:
    heads: attention heads.
    style: the family's switches.
    attention: see `attention.attend`.
    dtype: of the matrix products and of the residual stream.
    float8: of the products of self-attention and perceptron with weights; see
      `layers.dense`.

  Source: Peebles and Xie (2023), arXiv 2212.09748 (adaLN); Yao et al. (2025),
  arXiv 2501.01423 (LightningDiT).
  """

  heads: int
  style: Style
  attention: str
  dtype: DTypeLike
  float8: bool = False

  @nn.compact
  def __call__(
    self,
    x: Tokens,
    cond: Float[Array, "b d"],
    rope: Rope | None,
    memory: conditioning.MemoryTokens | None = None,
  ) -> Tokens:
    """Adds attention and perceptron to the tokens.

    Args:
      x: tokens.
      cond: SiLU of the condition, the same for all blocks.
      rope: tables of `attention.rope_tables`, or None.
      memory: what the tokens read between the two, or None.

    Returns:
      The new tokens.
    """
    s, d, dtype = self.style, x.shape[-1], self.dtype
    count = 6 if s.shift else 4
    mod = layers.dense(count * d, dtype, "modulation", s.zero_init)(cond)
    parts = jnp.split(mod[:, None, :], count, axis=-1)
    if s.shift:
      shift1, scale1, gate1, shift2, scale2, gate2 = parts
    else:
      (scale1, gate1, scale2, gate2), shift1, shift2 = parts, None, None

    norm = functools.partial(layers.Norm, s.rms_norm, affine=s.rms_norm)
    attend = attention.Attention(
      self.heads,
      s.qk_norm,
      s.rms_norm,
      self.attention,
      dtype,
      self.float8,
      name="attn",
    )
    mlp_cls = layers.SwiGlu if s.swiglu else layers.GeluMlp
    mlp = mlp_cls(dtype, self.float8, name="mlp")
    y = layers.modulate(norm(name="norm1")(x), shift1, scale1).astype(dtype)
    x = x + gate1 * attend(y, rope)
    if memory is not None:
      read = conditioning.CrossAttention(
        self.heads, s.rms_norm, dtype, name="cross"
      )
      x = x + read(x, memory)
    y = layers.modulate(norm(name="norm2")(x), shift2, scale2).astype(dtype)
    return x + gate2 * mlp(y)


def init_stack(block: Block, depth: int, width: int) -> Callable[..., Stack]:
  """An initialiser for the stacked parameters of all blocks.

  Args:
    block: the block, without a parent.
    depth: l.
    width: d.

  Returns:
    Function of a key to the parameters; each layer is drawn from its own key.
  """
  x = jnp.zeros((1, 1, width), block.dtype)
  cond = jnp.zeros((1, width), jnp.float32)
  return _init_layers(depth, lambda key: block.init(key, x, cond, None))


def init_cross(block: Block, count: int, width: int) -> Callable[..., Stack]:
  """An initialiser for the stacked parameters of the cross-attentions.

  They are no part of the blocks' stack, as not every block need have one, and
  a network that gains them keeps its blocks as they are.

  Args:
    block: the block, without a parent.
    count: g.
    width: d.

  Returns:
    Function of a key to the parameters, as of `init_stack`.
  """
  x = jnp.zeros((1, 1, width), block.dtype)
  memory = conditioning.MemoryTokens(
    x, jnp.zeros((1, 1)), jnp.ones((1, 1), jnp.bool_)
  )
  read = conditioning.CrossAttention(
    block.heads, block.style.rms_norm, block.dtype, parent=None
  )
  return _init_layers(count, lambda key: read.init(key, x, memory))


def _init_layers(
  count: int, init_layer: Callable[[Key[Array, ""]], PyTree]
) -> Callable[..., Stack]:
  def init(key: Key[Array, ""]) -> Stack:
    keys = jax.random.split(key, count)
    return jax.vmap(lambda key: init_layer(key)["params"])(keys)

  return init


def unstack(stack: Stack) -> list[PyTree]:
  """The parameters of each layer.

  One split for each array: its gradient is one concatenation, where that of l
  slices is a sum of l arrays as large as the stack.
  """
  leaves, treedef = jax.tree.flatten(stack)
  rows = [jax.lax.split(a, (1,) * a.shape[0], axis=0) for a in leaves]
  return [
    treedef.unflatten([a.reshape(a.shape[1:]) for a in layer])
    for layer in zip(*rows, strict=True)
  ]


def _checkpointed(f: Callable, remat: str, in_scan: bool) -> Callable:
  if remat == "none":
    return f
  policies = jax.checkpoint_policies
  policy = {
    "dots": policies.dots_with_no_batch_dims_saveable,
    "full": policies.nothing_saveable,
  }[remat]
  # A scan cannot be optimised across its steps, so needs no guard against it.
  return jax.checkpoint(f, policy=policy, prevent_cse=not in_scan)


def run_stack(
  block: Block,
  stack: Stack,
  x: Tokens,
  cond: Float[Array, "b d"],
  rope: Rope | None,
  *,
  tap: int,
  scan: bool,
  remat: str,
  constrain: Constrain | None = None,
  cross: CrossStack | None = None,
  memory: conditioning.MemoryTokens | None = None,
) -> tuple[Tokens, Tokens]:
  """Runs all blocks, one after the other.

  Args:
    block: the block, without a parent.
    stack: parameters of all blocks.
    x: tokens before the first block.
    cond: see `Block`.
    rope: see `Block`.
    tap: number of blocks after which the tokens are wanted too; 0 for none.
    scan: one compiled body for all layers (fast to compile) instead of one
      each (half the memory of activations: nothing is stacked).
    remat: activations kept for the backward pass: "none" recomputes nothing;
      "dots" keeps the products with weights; "full" keeps only the tokens
      between blocks.
    constrain: applied to the tokens after each block. Without it a compiler
      that sees a kernel split over devices may split the tokens' width, and sum
      partial products over devices, rather than gather the kernel.
    cross: parameters of the cross-attentions, or None; g divides l, and the
      first of every l / g blocks reads the memory.
    memory: see `Block`; None without `cross`.

  Returns:
    (tokens after the last block, tokens after block `tap`, or x if that is 0).
  """

  def apply(params, read, x):
    if read is None:
      x = block.apply({"params": params}, x, cond, rope)
    else:
      params = {**params, "cross": read}
      x = block.apply({"params": params}, x, cond, rope, memory)
    return x if constrain is None else constrain(cast(Array, x))

  step = _checkpointed(apply, remat, in_scan=scan)
  if not scan:
    step = jax.jit(step)  # Traced once for all blocks; XLA inlines the calls.
  depth = jax.tree.leaves(stack)[0].shape[0]
  groups = depth if cross is None else jax.tree.leaves(cross)[0].shape[0]
  each = depth // groups

  def run_group(first, layers, read, carry):
    x, tapped = carry
    for i, params in enumerate(layers):
      x = step(params, read if i == 0 else None, x)
      # A select, not two scans: splitting the stack would copy all parameters.
      tapped = _if(first + i == tap, x, tapped) if tap else tapped
    return x, tapped

  carry = x, x
  if not scan:
    layers = unstack(stack)
    reads = [None] * groups if cross is None else unstack(cross)
    for i, read in enumerate(reads):
      of_group = layers[i * each : (i + 1) * each]
      carry = run_group(i * each + 1, of_group, read, carry)
    return carry

  def body(carry, group):
    first, layers, read = group
    return run_group(first, unstack(layers), read, carry), None

  firsts = jnp.arange(1, depth + 1, each)
  stack = jax.tree.map(lambda a: a.reshape(groups, each, *a.shape[1:]), stack)
  carry, _ = jax.lax.scan(body, carry, (firsts, stack, cross))
  return carry


def _if(condition: bool | Bool[Array, ""], x: Tokens, other: Tokens) -> Tokens:
  """One of two, at trace time if the condition is known then."""
  if isinstance(condition, bool):
    return x if condition else other
  return jnp.where(condition, x, other)

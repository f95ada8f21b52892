"""The transformer block, and the two ways to run all of them.

Whatever the options, the parameters of all blocks are one tree whose arrays
have a leading layer axis: checkpoints, converter and sharding rules know one
layout only. `ready` makes of it what the blocks take.

Letters: `b` batch, `n` tokens, `d` width, `l` layers, `g` cross-attentions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from gmem_jax.models import attention, conditioning, layers

REMAT = ("none", "dots", "full")

Rope = attention.Rope
Tokens = Float[Array, "b n d"]
Stack = PyTree[Float[Array, "l ..."]]
CrossStack = PyTree[Float[Array, "g ..."]]
# A sharding constraint on activations; the identity in value.
Constrain = Callable[[Array], Array]
# (a block's parameters, its cross-attention's or None, tokens) -> tokens.
Step = Callable[[PyTree, PyTree | None, Tokens], Tokens]


@flax.struct.dataclass
class Ready:
  """Parameters of all blocks, or of all cross-attentions, as blocks take them.

  Attributes:
    layers: Of each in a tuple; or one tree to scan over, a `Stack`.
  """

  layers: Any


@dataclasses.dataclass(frozen=True)
class Style:
  """What distinguishes the families of transformers.

  Attributes:
    swiglu: Gated MLP instead of one with GELU.
    rope: Rotate queries and keys by their position.
    rms_norm: RMSNorm with a scale instead of LayerNorm without.
    qk_norm: Normalise queries and keys.
    shift: Modulate by a shift too, not only by scale and gate.
    zero_init: Start modulations and output at zero.
  """

  swiglu: bool = False
  rope: bool = False
  rms_norm: bool = False
  qk_norm: bool = False
  shift: bool = True
  zero_init: bool = False


class Block(nn.Module):
  """Pre-norm attention and MLP, both modulated by the condition.

  Attributes:
    attention: See `attention.attend`.
    dtype: Of the matmuls.
    float8: 8-bit matmuls in self-attention and MLP; see `layers.dense`.

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
    """Adds attention and MLP to the tokens.

    Args:
      x: Tokens, the residual stream; of any dtype, which it keeps.
      cond: SiLU of the condition, the same for all blocks.
      rope: Tables of `attention.rope_tables`.
      memory: Neighbours to attend to between self-attention and MLP.
    """
    s, d, dtype = self.style, x.shape[-1], self.dtype
    count = 6 if s.shift else 4
    # Never in 8 bits: 0.2 % of XL/1's work, and all tokens feel its error.
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
    x = x + (gate1 * attend(y, rope)).astype(x.dtype)
    if memory is not None:
      # Without a gate: its output projection starts at zero, which is enough.
      read = conditioning.CrossAttention(
        self.heads, s.rms_norm, dtype, name="cross"
      )
      x = x + read(x, memory).astype(x.dtype)
    y = layers.modulate(norm(name="norm2")(x), shift2, scale2).astype(dtype)
    return x + (gate2 * mlp(y)).astype(x.dtype)


def init_stack(block: Block, depth: int, width: int) -> Callable[..., Stack]:
  """Makes an initialiser for the stacked parameters of all blocks."""
  x = jnp.zeros((1, 1, width), block.dtype)
  cond = jnp.zeros((1, width), jnp.float32)
  return _init_layers(depth, lambda key: block.init(key, x, cond, None))


def init_cross(block: Block, count: int, width: int) -> Callable[..., Stack]:
  """Makes an initialiser for the stacked parameters of all cross-attentions."""
  # A stack of their own: not every block need have one, and a network that
  # gains them keeps the blocks of its checkpoint as they are.
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
  """Makes a function of a key, which draws each layer from its own key."""

  def init(key: Key[Array, ""]) -> Stack:
    keys = jax.random.split(key, count)
    return jax.vmap(lambda key: init_layer(key)["params"])(keys)

  return init


def ready(stack: Stack | Ready, block: Block, *, unroll: bool) -> Ready:
  """Makes of a stack what the blocks take, unless it was made before.

  Args:
    stack: As checkpoints have them.
    block: Its channels of q and k are ordered if it rotates them; see
      `attention.pairs_to_halves`.
    unroll: Give each layer's on its own.
  """
  if isinstance(stack, Ready):
    return stack
  if block.style.rope and "attn" in stack:
    attn = attention.pairs_to_halves(stack["attn"], block.heads)
    stack = {**stack, "attn": attn}
  return Ready(tuple(unstack(stack)) if unroll else stack)


def cast_kernels(params: PyTree, dtype: DTypeLike) -> PyTree:
  """Casts what a linear layer would cast at each call: kernel and bias."""
  if not isinstance(params, Mapping):
    return params
  if "kernel" in params:
    return {name: x.astype(dtype) for name, x in params.items()}
  return {name: cast_kernels(part, dtype) for name, part in params.items()}


def make_step(
  block: Block,
  cond: Float[Array, "b d"],
  rope: Rope | None,
  memory: conditioning.MemoryTokens | None,
  constrain: Constrain | None,
) -> Step:
  """Makes the function that runs one block, on any slice of the stack.

  Args:
    block: Without a parent, so that `apply` takes the parameters it is given.
    cond: See `Block`, like `rope` and `memory`.
    rope: None for no rotation.
    memory: Used where parameters of a cross-attention are given.
    constrain: Applied to the tokens after the block.
  """

  def step(params, cross, x):
    if cross is not None:
      params = {**params, "cross": cross}
    read = None if cross is None else memory
    x = cast(Array, block.apply({"params": params}, x, cond, rope, read))
    # Without it XLA, seeing a kernel split over devices, may split the tokens'
    # width and sum partial products over devices, rather than gather the
    # kernel: five times the temporaries on v5e (bench/RESULTS.md).
    return x if constrain is None else constrain(x)

  return step


def run_unrolled(
  step: Step,
  layers: tuple[PyTree, ...],
  cross: tuple[PyTree, ...] | None,
  x: Tokens,
  *,
  intermediate: int,
  remat: str,
) -> tuple[Tokens, Tokens]:
  """Runs all blocks, each with code of its own.

  Slower to compile than `run_scanned`, but faster to run, with half the memory
  for activations, as nothing is stacked.

  Args:
    step: See `make_step`.
    layers: Parameters of the l blocks.
    cross: Parameters of the g cross-attentions, or None; g divides l, and the
      first of every l / g blocks has one.
    x: Tokens before the first block.
    intermediate: Number of blocks after which the tokens are returned too.
    remat: Activations kept for the backward pass: "none" recomputes nothing;
      "dots" keeps the matmuls with weights; "full" keeps only the tokens
      between blocks.

  Returns:
    (tokens after the last block, tokens after block `intermediate`, or x if
    that is 0).
  """
  # Traced once for all blocks (28 of them took 2.9 s, one takes 0.7 s); XLA
  # inlines the calls, so the program and its memory are the same.
  step = jax.jit(_checkpointed(step, remat, prevent_cse=True))
  reads: list[PyTree | None] = [None] * len(layers)
  if cross is not None:
    reads[:: len(layers) // len(cross)] = cross
  tokens = x
  for i, (params, read) in enumerate(zip(layers, reads, strict=True), 1):
    x = step(params, read, x)
    tokens = x if i == intermediate else tokens
  return x, tokens


def run_scanned(
  step: Step,
  stack: Stack,
  cross: CrossStack | None,
  x: Tokens,
  *,
  intermediate: int,
  remat: str,
) -> tuple[Tokens, Tokens]:
  """Runs all blocks by one compiled body; see `run_unrolled`.

  With cross-attention the body is the l / g blocks of which the first has one.
  """
  # XLA does not optimise across the steps of a scan, so nothing has to keep it
  # from merging the recomputation with the forward pass.
  step = _checkpointed(step, remat, prevent_cse=False)
  depth = jax.tree.leaves(stack)[0].shape[0]
  groups = depth if cross is None else jax.tree.leaves(cross)[0].shape[0]
  size = depth // groups

  def body(carry, group):
    x, tokens = carry
    first, params, read = group
    for i, layer in enumerate(unstack(params)):
      x = step(layer, read if i == 0 else None, x)
      # A select, not two scans: splitting the stack would copy all parameters.
      if intermediate:
        tokens = jnp.where(first + i == intermediate, x, tokens)
    return (x, tokens), None

  firsts = jnp.arange(1, depth + 1, size)
  stack = jax.tree.map(lambda a: a.reshape(groups, size, *a.shape[1:]), stack)
  carry, _ = jax.lax.scan(body, (x, x), (firsts, stack, cross))
  return carry


def unstack(stack: Stack) -> list[PyTree]:
  """The parameters of each layer."""
  # One split for each array: its gradient is one concatenation, where that of l
  # slices is a sum of l arrays as large as the stack.
  leaves, treedef = jax.tree.flatten(stack)
  rows = [jax.lax.split(a, (1,) * a.shape[0], axis=0) for a in leaves]
  return [
    treedef.unflatten([a.reshape(a.shape[1:]) for a in layer])
    for layer in zip(*rows, strict=True)
  ]


def _checkpointed(step: Step, remat: str, prevent_cse: bool) -> Step:
  if remat == "none":
    return step
  policies = jax.checkpoint_policies
  policy = {
    "dots": policies.dots_with_no_batch_dims_saveable,
    "full": policies.nothing_saveable,
  }[remat]
  return jax.checkpoint(step, policy=policy, prevent_cse=prevent_cse)

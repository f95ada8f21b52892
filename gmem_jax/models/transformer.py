"""The latent flow transformer that both published families are.

`sit.SiT` and `lightning_dit.LightningDiT` add what is particular to each.

Letters: `b` batch, `h w c` latent, `n` tokens, `d` width, `s` snippet width,
`z` width of the image encoder's tokens, `k` neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gmem_jax.models import attention, blocks, conditioning, layers

# Aliases, as the network has attributes named like these modules.
Latent = Float[Array, "b h w c"]
Snippet = Float[Array, "*b s"]
Neighbours = conditioning.Neighbours
MemoryTokens = conditioning.MemoryTokens
Projected = Float[Array, "b n _"] | tuple[Float[Array, "b n _"], ...]


class FlowTransformer(nn.Module):
  """Predicts the velocity of the flow from a noisy latent and a snippet.

  Attributes:
    channels: c.
    patch: Side of a patch, in latent pixels.
    width: d, a multiple of 4 and of `heads`.
    conditioning: See `config.networks.ModelConfig`.
    cross_every: One in so many blocks has a cross-attention, beginning with the
      first; divides `depth`.
    snippet_dim: s.
    snippet_dropout: Rate, in [0, 1), of the dropout of single elements.
    projector_depth: Number of blocks before the projector.
    projector_width: Hidden width of the projector.
    token_dim: z; 0 for no projector; a tuple for several, as published files
      may have, which read the same block.
    learn_sigma: Double the output channels and ignore the second half.
    dtype: Of the matmuls. Parameters, norms, softmax, embeddings and the output
      are float32.
    residual_dtype: Of the tokens between blocks, the residual stream.
    float8: See `blocks.Block`.
    scan_layers: `blocks.run_scanned` instead of `blocks.run_unrolled`.
    remat: See `blocks.run_unrolled`.
    attention: See `attention.attend`.
    constrain: Sharding constraint on the activations, see
      `sharding.place_batch`. None leaves it to the compiler.

  Source: arXiv 2412.08781; Ma et al. (2024), arXiv 2401.08740 (SiT); Yao et al.
  (2025), arXiv 2501.01423 (LightningDiT).
  """

  channels: int
  patch: int
  width: int
  depth: int
  heads: int
  conditioning: str = "adaln"
  cross_every: int = 1
  snippet_dim: int = 768
  snippet_dropout: float = 0.0
  projector_depth: int = 1
  projector_width: int = 2048
  token_dim: int | Sequence[int] = 768
  # A layout inherited from diffusion models, whose networks also predict the
  # noise's variance; some published weights have it.
  learn_sigma: bool = False
  dtype: DTypeLike = "float32"
  residual_dtype: DTypeLike = "float32"
  float8: bool = False
  scan_layers: bool = False
  remat: str = "none"
  attention: str = "auto"
  # Not Flax's `with_logical_constraint`, which silently returns its input
  # unchanged under `with mesh:`.
  constrain: blocks.Constrain | None = None

  @property
  def token_dims(self) -> tuple[int, ...]:
    """The width z of each projector."""
    dims = self.token_dim
    return (dims,) * (dims > 0) if isinstance(dims, int) else tuple(dims)

  @property
  def style(self) -> blocks.Style:
    """The switches of the family."""
    raise NotImplementedError

  def embed_snippet(
    self, snippet: Snippet, dropout_key: Key[Array, "..."] | None, name: str
  ) -> Float[Array, "*b d"]:
    """Dropout and a linear layer of that name; called inside `__call__`."""
    raise NotImplementedError

  def __post_init__(self):
    """Checks the attributes."""
    # Converted weights have them in JSON, as a list, which has no hash.
    if not isinstance(self.token_dim, int):
      self.token_dim = self.token_dims
    super().__post_init__()
    for name, allowed in (
      ("conditioning", conditioning.KINDS),
      ("remat", blocks.REMAT),
      ("attention", attention.IMPLEMENTATIONS),
    ):
      if getattr(self, name) not in allowed:
        self._refuse(name, f"must be one of {', '.join(allowed)}")
    for name in ("patch", "width", "depth", "heads"):
      if getattr(self, name) < 1:
        self._refuse(name, "must be positive")
    if self.cross_every < 1 or self.depth % self.cross_every:
      self._refuse(
        "cross_every", f"must divide config.model.depth={self.depth}"
      )
    # Four parts of the position table: sine and cosine, of row and column.
    if self.width % 4 or self.width % self.heads:
      self._refuse(
        "width",
        f"must be a multiple of 4 and of config.model.heads={self.heads}",
      )
    # And of the rotary table: pairs of channels, of row and column.
    if self.style.rope and self.width // self.heads % 4:
      self._refuse(
        "heads",
        "config.model.rope=True needs config.model.width / heads to be a"
        f" multiple of 4, not {self.width // self.heads}",
      )
    if not 0 <= self.snippet_dropout < 1:
      self._refuse("snippet_dropout", "must lie in [0, 1)")
    if self.token_dims and not 1 <= self.projector_depth <= self.depth:
      self._refuse(
        "projector_depth", f"must lie in 1..config.model.depth={self.depth}"
      )
    if self.attention == "cudnn":
      obstacle = attention.cudnn_obstacle(self.dtype, self.width // self.heads)
      if obstacle:
        self._refuse("attention", obstacle)

  def _refuse(self, name: str, why: str) -> None:
    raise ValueError(f"config.model.{name}={getattr(self, name)!r}: {why}")

  @nn.compact
  def __call__(
    self,
    x: Latent,
    t: Float[Array, " b"],
    snippet: Float[Array, "b s"] | None,
    neighbours: Neighbours | None = None,
    *,
    dropout_key: Key[Array, "..."] | None = None,
    project: bool = False,
  ) -> Latent | tuple[Latent, Projected]:
    """Predicts the velocity at x and t.

    Args:
      x: Noisy latent; h = w, a multiple of `patch`, the same as at
        initialisation.
      t: Time in [0, 1].
      snippet: Rows of the memory bank, L2-normalised by the caller; zeros are
        the null condition of guidance. None without "adaln".
      neighbours: What the bank holds near the snippet; zeros are the null
        condition. None without "cross".
      dropout_key: Key of the dropout of single elements of snippet and
        neighbours, or one per example; None for no dropout.
      project: Also return the projected tokens, for the loss of training.

    Returns:
      The velocity; with `project` also the projected tokens, one for each
      patch; both in float32. Where `token_dim` is a tuple, there are as many
      arrays of tokens.

    Raises:
      ValueError: If the shapes do not fit the network, or the snippet or the
        projector is missing.
    """
    self._check_inputs(x, snippet, neighbours, project)
    grid = x.shape[1] // self.patch
    tokens = layers.PatchEmbed(
      self.patch, self.width, self.dtype, name="patch_embed"
    )(x)
    tokens = tokens.astype(self.residual_dtype)
    tokens = tokens + self._positions(grid).astype(tokens.dtype)
    cond = layers.TimestepEmbed(self.width, name="time_embed")(t)
    if snippet is not None:
      cond = cond + self.embed_snippet(snippet, dropout_key, "snippet_embed")
    cond = nn.silu(cond)  # Every block and the final layer begin with it.
    memory = None
    if neighbours is not None:
      memory = self._memory(neighbours, dropout_key)
    if self.constrain is not None:
      tokens, cond = self.constrain(tokens), self.constrain(cond)

    # Initialisation creates the projector's parameters with or without
    # `project`, so that the tree of parameters is the same.
    has_projector = project or (self.is_initializing() and self.token_dims)
    tokens, intermediate = self._run_blocks(
      tokens, cond, memory, grid, self.projector_depth if has_projector else 0
    )
    out = (2 if self.learn_sigma else 1) * self.channels
    patches = layers.FinalLayer(
      self.patch**2 * out,
      self.style.rms_norm,
      self.style.zero_init,
      self.dtype,
      name="final",
    )(tokens, cond)
    image = layers.unpatchify(patches, self.patch)[..., : self.channels]
    velocity = image.astype(jnp.float32)
    if not has_projector:
      return velocity
    projected = layers.project(
      intermediate, self.token_dims, self.projector_width, self.dtype
    )
    if not project:
      return velocity
    one = isinstance(self.token_dim, int)
    return velocity, projected[0] if one else projected

  def cast(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Casts kernels to the dtype of the matmuls, as each call would."""
    kept = ("time_embed", "snippet_embed", "memory_embed")  # Always float32.
    return {
      n: part if n in kept else blocks.cast_kernels(part, self.dtype)
      for n, part in params.items()
    }

  def ready(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for many calls: what each would do to them is done once.

    A loop that calls the network then neither cuts nor casts them in its body.
    """
    done, unroll = self.cast(params), not self.scan_layers
    for name in {"blocks", "cross"} & params.keys():
      done[name] = blocks.ready(done[name], self.block(), unroll=unroll)
    return done

  def block(self) -> blocks.Block:
    """One block, without parameters: they are slices of params['blocks']."""
    return blocks.Block(
      self.heads,
      self.style,
      self.attention,
      self.dtype,
      self.float8,
      parent=None,
    )

  def rope_tables(self, grid: int) -> blocks.Rope | None:
    """Tables of the rotation for grid^2 tokens, if the family has one."""
    if not self.style.rope:
      return None
    return attention.rope_tables(grid, self.width // self.heads)

  def _memory(
    self, neighbours: Neighbours, dropout_key: Key[Array, "..."] | None
  ) -> MemoryTokens:
    """Projects the neighbours, once for all blocks."""
    if dropout_key is not None:  # The snippet's dropout uses the key itself.
      dropout_key = jnp.vectorize(lambda k: jax.random.fold_in(k, 1))(
        dropout_key
      )
    snippets = neighbours.snippets
    tokens = self.embed_snippet(snippets, dropout_key, "memory_embed")
    norm = layers.Norm(self.style.rms_norm, affine=True, name="memory_norm")
    return MemoryTokens(
      tokens=norm(tokens).astype(self.dtype),
      scores=neighbours.scores,
      present=jnp.any(snippets != 0, axis=-1),
    )

  def _run_blocks(
    self,
    x: blocks.Tokens,
    cond: Float[Array, "b d"],
    memory: MemoryTokens | None,
    grid: int,
    intermediate: int,
  ) -> tuple[blocks.Tokens, blocks.Tokens]:
    block, depth, width = self.block(), self.depth, self.width
    layers = self._ready("blocks", blocks.init_stack(block, depth, width))
    cross = None
    if memory is not None:
      count = depth // self.cross_every
      cross = self._ready("cross", blocks.init_cross(block, count, width))
    rope = self.rope_tables(grid)
    step = blocks.make_step(block, cond, rope, memory, self.constrain)
    run = blocks.run_scanned if self.scan_layers else blocks.run_unrolled
    return run(
      step, layers, cross, x, intermediate=intermediate, remat=self.remat
    )

  def _ready(self, name: str, init: Callable[..., Any]) -> Any:
    given = self.get_variable("params", name)
    # Flax would compare the shapes of parameters that `ready` has arranged.
    stack = given if isinstance(given, blocks.Ready) else self.param(name, init)
    unroll = not self.scan_layers
    return blocks.ready(stack, self.block(), unroll=unroll).layers

  def _positions(self, grid: int) -> Float[Array, "1 n d"]:
    """The position table: in the checkpoint, but never trained."""
    if self.has_variable("params", "pos_embed"):
      tokens = self.get_variable("params", "pos_embed").shape[1]
      if tokens != grid**2:
        side = round(tokens**0.5) * self.patch
        raise ValueError(
          f"the latent is {grid * self.patch} pixels wide, but these"
          f" parameters are for {side} (config.encoder.image_size over the"
          " tokenizer's downsampling)"
        )
    # A parameter, though fixed, as the published files have it as one.
    table = layers.sincos_positions(grid, self.width)
    return jax.lax.stop_gradient(
      self.param("pos_embed", lambda _: jnp.asarray(table))
    )

  def _check_inputs(
    self,
    x: Latent,
    snippet: Float[Array, "b s"] | None,
    neighbours: Neighbours | None,
    project: bool,
  ) -> None:
    _, h, w, c = x.shape
    if c != self.channels:
      raise ValueError(
        f"the latent has {c} channels, the network is built for {self.channels}"
      )
    if h != w or h % self.patch:
      raise ValueError(
        f"the latent is {h}x{w}; it must be square and a multiple of"
        f" config.model.patch={self.patch}"
      )
    conditioning.check(
      self.conditioning,
      snippet,
      None if neighbours is None else neighbours.snippets,
      self.snippet_dim,
    )
    if project and not self.token_dims:
      raise ValueError(
        "project=True needs a network with a projector: token_dim=0 must be the"
        " width of the image encoder's tokens"
      )

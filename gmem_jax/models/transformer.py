"""The latent flow transformer that both published families are.

`sit.SiT` and `lightning_dit.LightningDiT` say what is particular to each.

Letters: `b` batch, `h w c` latent, `n` tokens, `d` width, `s` snippet width,
`z` width of the image encoder's tokens, `k` neighbours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gmem_jax.models import attention, blocks, conditioning, layers

Latent = Float[Array, "b h w c"]
Snippet = Float[Array, "*b s"]
Neighbours = conditioning.Neighbours
MemoryTokens = conditioning.MemoryTokens


CONDITIONING = ("none", "adaln", "cross", "adaln+cross")


def uses_adaln(conditioning: str) -> bool:
  """Whether the network takes a snippet."""
  return "adaln" in conditioning.split("+")


def uses_cross(conditioning: str) -> bool:
  """Whether the network takes neighbours."""
  return "cross" in conditioning.split("+")


class FlowTransformer(nn.Module):
  """Predicts the velocity of the flow from a noisy latent and a snippet.

  Attributes:
    channels: c of the latent.
    patch: side of a patch, in latent pixels.
    width: d, a multiple of 4 and of `heads`.
    depth: number of blocks.
    heads: attention heads.
    conditioning: "adaln": the snippet joins the timestep's embedding; "cross":
      blocks attend to the snippet's neighbours in the bank; "adaln+cross":
      both; "none": neither.
    cross_every: the first of so many blocks attends to the neighbours; it
      divides `depth`.
    snippet_dim: s.
    snippet_dropout: rate, in [0, 1), of the dropout of single elements.
    projector_depth: block after which the projector takes its tokens.
    projector_width: hidden width of the projector.
    token_dim: z; 0 for no projector.
    learn_sigma: the output layer has 2 c channels, of which the last c are
      ignored (a layout inherited from diffusion models).
    dtype: of the matrix products and of the tokens between blocks. Parameters,
      norms, softmax, embeddings and the output are float32.
    float8: see `blocks.Block`.
    scan_layers: see `blocks.run_stack`.
    remat: see `blocks.run_stack`.
    attention: "xla", "cudnn" or "auto"; see `attention.attend`.
    constrain: says where activations live, an identity in value; see
      `sharding.place_batch`. None leaves that to the compiler.
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
  token_dim: int = 768
  learn_sigma: bool = False
  dtype: DTypeLike = "float32"
  float8: bool = False
  scan_layers: bool = False
  remat: str = "none"
  attention: str = "auto"
  constrain: blocks.Constrain | None = None

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
    """Checks the attributes; see the class."""
    super().__post_init__()
    _one_of("conditioning", self.conditioning, CONDITIONING)
    _one_of("remat", self.remat, blocks.REMAT)
    _one_of("attention", self.attention, attention.IMPLEMENTATIONS)
    for name in ("channels", "patch", "width", "depth", "heads", "snippet_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name}={getattr(self, name)} must be positive")
    if self.cross_every < 1 or self.depth % self.cross_every:
      raise ValueError(
        f"model.cross_every={self.cross_every} must divide model.depth="
        f"{self.depth}"
      )
    if self.width % 4 or self.width % self.heads:
      raise ValueError(
        f"model.width={self.width} must be a multiple of 4 and of "
        f"model.heads={self.heads}"
      )
    if self.style.rope and self.width // self.heads % 4:
      raise ValueError(
        f"model.rope=True needs a head width (model.width / model.heads) that "
        f"is a multiple of 4, not {self.width // self.heads}"
      )
    if not 0 <= self.snippet_dropout < 1:
      raise ValueError(
        f"model.snippet_dropout={self.snippet_dropout} must lie in [0, 1)"
      )
    if self.token_dim and not 1 <= self.projector_depth <= self.depth:
      raise ValueError(
        f"model.projector_depth={self.projector_depth} must lie in 1.."
        f"model.depth={self.depth} (or set model.token_dim=0: no projector)"
      )
    if self.attention == "cudnn":
      obstacle = attention.cudnn_obstacle(self.dtype, self.width // self.heads)
      if obstacle:
        raise ValueError(f"model.attention='cudnn' {obstacle}")

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
  ) -> Latent | tuple[Latent, Float[Array, "b n z"]]:
    """Predicts the velocity at x and t.

    Args:
      x: noisy latent; h = w, a multiple of `patch`, the same as at
        initialisation.
      t: time in [0, 1].
      snippet: rows of the memory bank, L2-normalised by the caller; zeros are
        the null condition of guidance. None if the conditioning is without
        "adaln".
      neighbours: what the bank holds near the snippet; zeros are the null
        condition. None if the conditioning is without "cross".
      dropout_key: key of the dropout of single elements of snippet and
        neighbours, or one for each example; None for no dropout.
      project: also return the projected tokens (training).

    Returns:
      The velocity in float32; with `project` also the projected tokens, in
      float32, one for each patch.

    Raises:
      ValueError: the shapes do not fit the network, or the snippet or the
        projector is missing.

    Source: arXiv 2412.08781; Ma et al. (2024), arXiv 2401.08740 (SiT); Yao et
    al. (2025), arXiv 2501.01423 (LightningDiT).
    """
    self._check_inputs(x, snippet, neighbours, project)
    grid = x.shape[1] // self.patch
    tokens = layers.PatchEmbed(
      self.patch, self.width, self.dtype, name="patch_embed"
    )(x)
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

    # The projector's parameters exist also if the first call does not need it.
    project_here = project or (self.is_initializing() and self.token_dim > 0)
    tap = self.projector_depth if project_here else 0
    tokens, tapped = self._blocks(tokens, cond, memory, grid, tap)
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
    if not project_here:
      return velocity
    projected = layers.Projector(
      self.projector_width, self.token_dim, self.dtype, name="projector"
    )(tapped).astype(jnp.float32)
    return (velocity, projected) if project else velocity

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
    self,
    neighbours: Neighbours,
    dropout_key: Key[Array, "..."] | None,
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

  def _blocks(
    self,
    x: blocks.Tokens,
    cond: Float[Array, "b d"],
    memory: MemoryTokens | None,
    grid: int,
    tap: int,
  ) -> tuple[blocks.Tokens, blocks.Tokens]:
    block, depth, width = self.block(), self.depth, self.width
    stack = self.param("blocks", blocks.init_stack(block, depth, width))
    cross = None
    if memory is not None:
      count = depth // self.cross_every
      cross = self.param("cross", blocks.init_cross(block, count, width))
    return blocks.run_stack(
      block,
      stack,
      x,
      cond,
      self.rope_tables(grid),
      tap=tap,
      scan=self.scan_layers,
      remat=self.remat,
      cross=cross,
      memory=memory,
      constrain=self.constrain,
    )

  def _positions(self, grid: int) -> Float[Array, "1 n d"]:
    """The position table: in the checkpoint, but never trained."""
    if self.has_variable("params", "pos_embed"):
      tokens = self.get_variable("params", "pos_embed").shape[1]
      if tokens != grid**2:
        side = round(tokens**0.5) * self.patch
        raise ValueError(
          f"the latent is {grid * self.patch} pixels wide, but these "
          f"parameters are for {side} (encoder.image_size over the tokenizer's "
          "downsampling)"
        )
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
        f"the latent has {c} channels, model.channels is {self.channels}"
      )
    if h != w or h % self.patch:
      raise ValueError(
        f"the latent is {h}x{w}; it must be square and a "
        f"multiple of model.patch={self.patch}"
      )
    found = None if neighbours is None else neighbours.snippets
    for vectors, name, wanted in (
      (snippet, "snippet", uses_adaln(self.conditioning)),
      (found, "neighbour", uses_cross(self.conditioning)),
    ):
      if (vectors is not None) != wanted:
        raise ValueError(
          f"model.conditioning={self.conditioning!r} "
          + (f"needs a {name}" if wanted else f"takes no {name}")
        )
      if vectors is not None and vectors.shape[-1] != self.snippet_dim:
        raise ValueError(
          f"a {name} has {vectors.shape[-1]} elements, model.snippet_dim is "
          f"{self.snippet_dim}"
        )
    if project and not self.token_dim:
      raise ValueError(
        "project=True needs a projector: model.token_dim=0 must be the width "
        "of the image encoder's tokens"
      )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise ValueError(
      f"model.{name}={value!r} is not one of {', '.join(allowed)}"
    )

"""The latent flow transformer that both published families are.

`sit.SiT` and `lightning_dit.LightningDiT` say what is particular to each.

Letters: `b` batch, `h w c` latent, `n` tokens, `d` width, `s` snippet width,
`z` width of the image encoder's tokens.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gmem_jax.models import attention, blocks, embeddings, layers

CONDITIONING = ("adaln", "none")

Latent = Float[Array, "b h w c"]
Snippet = Float[Array, "b s"]


class FlowTransformer(nn.Module):
  """Predicts the velocity of the flow from a noisy latent and a snippet.

  Attributes:
    channels: c of the latent.
    patch: side of a patch, in latent pixels.
    width: d, a multiple of 4 and of `heads`.
    depth: number of blocks.
    heads: attention heads.
    conditioning: "adaln": the snippet joins the timestep's embedding;
      "none": no snippet.
    snippet_dim: s.
    snippet_dropout: rate, in [0, 1), of the dropout of single elements.
    projector_depth: block after which the projector takes its tokens.
    projector_width: hidden width of the projector.
    token_dim: z; 0 for no projector.
    learn_sigma: the output layer has 2 c channels, of which the last c are
      ignored (a layout inherited from diffusion models).
    dtype: of the matrix products and of the tokens between blocks. Parameters,
      norms, softmax, embeddings and the output are float32.
    scan_layers: see `blocks.run_stack`.
    remat: see `blocks.run_stack`.
    attention: "xla", "cudnn" or "auto"; see `attention.attend`.
    place: says where activations live, an identity in value; see
      `sharding.place_batch`. None leaves that to the compiler.
  """

  channels: int
  patch: int
  width: int
  depth: int
  heads: int
  conditioning: str = "adaln"
  snippet_dim: int = 768
  snippet_dropout: float = 0.0
  projector_depth: int = 1
  projector_width: int = 2048
  token_dim: int = 768
  learn_sigma: bool = False
  dtype: DTypeLike = "float32"
  scan_layers: bool = False
  remat: str = "none"
  attention: str = "auto"
  place: blocks.Place | None = None

  @property
  def style(self) -> blocks.Style:
    """The switches of the family."""
    raise NotImplementedError

  def embed_snippet(
    self, snippet: Snippet, dropout_key: Key[Array, "..."] | None
  ) -> Float[Array, "b d"]:
    """The snippet's part of the condition; called inside `__call__`."""
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
    snippet: Snippet | None,
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
        the null condition of guidance. None with conditioning "none".
      dropout_key: key of the snippet's dropout, or one for each example; None
        for no dropout.
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
    self._check_inputs(x, snippet, project)
    grid = x.shape[1] // self.patch
    tokens = layers.PatchEmbed(
      self.patch, self.width, self.dtype, name="patch_embed"
    )(x)
    tokens = tokens + self._positions(grid).astype(tokens.dtype)
    cond = layers.TimestepEmbed(self.width, name="time_embed")(t)
    if snippet is not None:
      cond = cond + self.embed_snippet(snippet, dropout_key)
    cond = nn.silu(cond)  # Every block and the final layer begin with it.
    if self.place is not None:
      tokens, cond = self.place(tokens), self.place(cond)

    # The projector's parameters exist also if the first call does not need it.
    project_here = project or (self.is_initializing() and self.token_dim > 0)
    tap = self.projector_depth if project_here else 0
    tokens, tapped = self._blocks(tokens, cond, grid, tap)
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
      self.heads, self.style, self.attention, self.dtype, parent=None
    )

  def rope_tables(self, grid: int) -> embeddings.Rope | None:
    """Tables of the rotation for grid^2 tokens, if the family has one."""
    if not self.style.rope:
      return None
    return embeddings.rope_tables(grid, self.width // self.heads)

  def _blocks(
    self,
    x: blocks.Tokens,
    cond: Float[Array, "b d"],
    grid: int,
    tap: int,
  ) -> tuple[blocks.Tokens, blocks.Tokens]:
    block = self.block()
    return blocks.run_stack(
      block,
      self.param("blocks", blocks.init_stack(block, self.depth, self.width)),
      x,
      cond,
      self.rope_tables(grid),
      tap=tap,
      scan=self.scan_layers,
      remat=self.remat,
      place=self.place,
    )

  def _positions(self, grid: int) -> Float[Array, "1 n d"]:
    """The position table: in the checkpoint, but never trained."""
    if self.has_variable("params", "pos_embed"):
      tokens = self.get_variable("params", "pos_embed").shape[1]
      if tokens != grid**2:
        side = round(tokens**0.5) * self.patch
        raise ValueError(
          f"the latent is {grid * self.patch} pixels wide, but these "
          f"parameters are for {side} (data.image_size over the tokenizer's "
          "downsampling)"
        )
    table = embeddings.sincos_positions(grid, self.width)
    return jax.lax.stop_gradient(
      self.param("pos_embed", lambda _: jnp.asarray(table))
    )

  def _check_inputs(
    self, x: Latent, snippet: Snippet | None, project: bool
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
    if (snippet is None) != (self.conditioning == "none"):
      raise ValueError(
        f"model.conditioning={self.conditioning!r} "
        + ("needs a snippet" if snippet is None else "takes no snippet")
      )
    if snippet is not None and snippet.shape[-1] != self.snippet_dim:
      raise ValueError(
        f"the snippet has {snippet.shape[-1]} elements, model.snippet_dim is "
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

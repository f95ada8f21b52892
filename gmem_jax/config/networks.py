"""The config's sections of networks and of the memory bank."""

import dataclasses
from typing import Literal

from gmem_jax.config import checks

Storage = Literal["float32", "bfloat16", "int8"]
Placement = Literal["auto", "replicated", "sharded"]


@dataclasses.dataclass(frozen=True)
class BankConfig:
  """The memory bank on the devices.

  Attributes:
    storage: Type of the rows: "float32", "bfloat16" (half the memory) or "int8"
      (a quarter) with a scale for each row.
    placement: "replicated": every device holds all rows; "sharded": the rows
      are split over all devices; "auto": sharded where a bank would take more
      than an eighth of a device's memory, else replicated.
  """

  storage: Storage
  placement: Placement


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The frozen networks. Weights are what `python -m gmem_jax.convert` wrote.

  Attributes:
    tokenizer: "identity": latents are pixels; or a published autoencoder.
    tokenizer_weights: Its weights; unused by "identity".
    latent_stats: Statistics that the latents of `sample.network` are normalised
      with; "" for the tokenizer's own scale, if it has one. A run keeps those
      of its data.
    features: "random_conv": fixed random convolutions, 768 wide; "dinov2".
    features_weights: Its weights; unused by "random_conv".
    image_size: Side of the images that features are made of, in pixels.
  """

  tokenizer: Literal["identity", "va_vae", "mar_vae", "sd_vae"]
  tokenizer_weights: str
  latent_stats: str
  features: Literal["random_conv", "dinov2"]
  features_weights: str
  image_size: int

  def __post_init__(self):
    checks.positive("encoder", self, "image_size")
    if self.features == "dinov2" and self.image_size < 256:
      raise ValueError(
        f"config.encoder.image_size={self.image_size}: must be at least 256"
        " with config.encoder.features='dinov2'"
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network; what the data decides (channels, snippet width) is not here.

  Attributes:
    family: "sit" (first release) or "lightning_dit" (current release).
    width: Width of the residual stream.
    depth: Number of blocks.
    heads: Attention heads.
    patch: Side of a patch, in latent pixels.
    conditioning: "adaln": the memory snippet joins the timestep embedding;
      "cross": blocks attend to the snippet's neighbours in the bank; see
      `retrieval`; "adaln+cross": both; "none": the network has no memory.
    cross_every: The first of so many blocks attends to the neighbours; it
      divides `depth`.
    snippet_dropout: Rate of the dropout on the condition while training.
    projector_depth: Block after which the projection loss's projector sits.
    projector_width: Its hidden width.
    swiglu: lightning_dit: SwiGLU instead of GELU.
    rope: lightning_dit: rotary embedding of queries and keys.
    rms_norm: lightning_dit: RMSNorm instead of LayerNorm.
    qk_norm: lightning_dit: norm of queries and keys.
    shift: lightning_dit: whether the blocks' modulations also shift.
    learn_sigma: Twice the output channels, the second half unused.
    dtype: Of the matrix products; parameters stay float32.
    float8: Train with operands of 8 bits in the products of self-attention
      and perceptron with their weights: for NVIDIA GPUs from Hopper on, with
      dtype bfloat16. Samples are made without, so that none depends on those
      beside it.
    scan_layers: One compiled block for all layers: compiles faster; unrolled
      runs faster and needs less memory.
    remat: What the backward pass computes again: "none", all but the matrix
      products ("dots"), or everything ("full").
    attention: "xla", "cudnn" (needs an NVIDIA GPU), or "auto".
  """

  family: Literal["sit", "lightning_dit"]
  width: int
  depth: int
  heads: int
  patch: int
  conditioning: Literal["adaln", "cross", "adaln+cross", "none"]
  cross_every: int
  snippet_dropout: float
  projector_depth: int
  projector_width: int
  swiglu: bool
  rope: bool
  rms_norm: bool
  qk_norm: bool
  shift: bool
  learn_sigma: bool
  dtype: Literal["float32", "bfloat16"]
  float8: bool
  scan_layers: bool
  remat: Literal["none", "dots", "full"]
  attention: Literal["auto", "xla", "cudnn"]

  def __post_init__(self):
    if self.float8 and self.dtype != "bfloat16":
      raise ValueError(
        f"config.model.dtype={self.dtype!r}: must be 'bfloat16' with"
        " config.model.float8=True"
      )


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """What the cross-attention attends to; unused without.

  Attributes:
    neighbours: Snippets that it attends to.
    exclude_own: Whether they are others only. Otherwise the first is the very
      snippet that was looked up, also if it is not in the bank.
    dropout: Rate at which a neighbour is left out in training.
  """

  neighbours: int
  exclude_own: bool
  dropout: float

  def __post_init__(self):
    checks.positive("retrieval", self, "neighbours")
    checks.fraction("retrieval", self, "dropout")

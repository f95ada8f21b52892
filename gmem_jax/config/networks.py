"""The config's sections of networks and of the memory bank."""

import dataclasses
from typing import Literal

from gmem_jax.config import checks

# Named here, below the bank that implements them, so that the config can be
# checked without importing the bank.
Storage = Literal["float32", "bfloat16", "int8"]
Placement = Literal["auto", "replicated", "sharded"]


@dataclasses.dataclass(frozen=True)
class BankConfig:
  """The memory bank on the devices.

  Attributes:
    storage: Type of the rows: "float32", "bfloat16" (half the memory) or
      "int8" (a quarter) with a scale for each row.
    placement: "replicated": every device holds all rows; "sharded": rows are
      split over all devices; "auto": sharded if the bank would take more than
      an eighth of a device's memory, else replicated.
  """

  storage: Storage
  placement: Placement


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The frozen networks; weights come from `python -m gmem_jax.convert`.

  Attributes:
    tokenizer: "identity" (latents are pixels), "patch_pca" (the directions in
      which patches of the run's own images vary most), or a published
      autoencoder.
    tokenizer_weights: Unused by "identity"; --mode=prepare fits "patch_pca" and
      writes it there.
    tokenizer_patch: Side in pixels of a patch of "patch_pca".
    tokenizer_channels: Latent channels of "patch_pca".
    latent_stats: Statistics that normalise the latents of `sample.network`; ""
      for the tokenizer's own scale, if it has one. A run uses its data's.
    features: "random_conv" (fixed random convolutions, 768 wide), "dinov2", or
      "efficientnet_lite0" (trained on ImageNet, 1280 wide).
    features_weights: Unused by "random_conv".
    snippet_weights: Where --mode=prepare writes projections of the feature and
      of the layout of the encoder's tokens, which it fits to the run's images,
      and which are the snippet then; "" for the feature itself.
    snippet_width: Width of such a snippet.
    image_size: Side in pixels of the images that features are computed from.
  """

  tokenizer: Literal["identity", "patch_pca", "va_vae", "mar_vae", "sd_vae"]
  tokenizer_weights: checks.FilePath
  tokenizer_patch: int
  tokenizer_channels: int
  latent_stats: checks.FilePath
  features: Literal["random_conv", "dinov2", "efficientnet_lite0"]
  features_weights: checks.FilePath
  snippet_weights: checks.FilePath
  snippet_width: int
  image_size: int

  def __post_init__(self):
    checks.positive("encoder", self, "image_size", "snippet_width")
    checks.positive("encoder", self, "tokenizer_patch", "tokenizer_channels")
    if self.snippet_weights and self.features == "random_conv":
      raise ValueError(
        f"config.encoder.snippet_weights={self.snippet_weights!r}: must be ''"
        " with config.encoder.features='random_conv', whose features say"
        " nothing of what images show"
      )
    if self.tokenizer == "patch_pca":
      self._check_patches()
    # GMem resizes every 256 pixels to 224: below 256, nothing is left.
    if self.features == "dinov2" and self.image_size < 256:
      raise ValueError(
        f"config.encoder.image_size={self.image_size}: must be at least 256"
        " with config.encoder.features='dinov2'"
      )

  def _check_patches(self) -> None:
    if not self.tokenizer_weights:
      raise ValueError(
        "config.encoder.tokenizer_weights is empty: it must say where"
        " --mode=prepare writes the tokenizer that it fits"
      )
    if self.image_size % self.tokenizer_patch:
      raise ValueError(
        f"config.encoder.image_size={self.image_size}: must be a multiple of"
        f" config.encoder.tokenizer_patch={self.tokenizer_patch}"
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network, except for what the data decides (channels, snippet width).

  Attributes:
    family: "sit" (first release) or "lightning_dit" (current release).
    width: Of the residual stream.
    depth: Number of blocks.
    heads: Attention heads.
    patch: Side of a patch in latent pixels.
    conditioning: "adaln": the memory snippet joins the timestep embedding;
      "cross": blocks attend to the snippet's neighbours in the bank; see
      `retrieval`; "adaln+cross": both; "none": the network has no memory.
    cross_every: Every n-th block attends to the neighbours, from the first on;
      it divides `depth`.
    snippet_dropout: Dropout rate of the condition in training.
    projector_depth: Block whose output the projection loss's projector reads.
    projector_width: Hidden width of the projector.
    swiglu: SwiGLU instead of GELU (lightning_dit).
    rope: Rotary embedding of queries and keys (lightning_dit).
    rms_norm: RMSNorm instead of LayerNorm (lightning_dit).
    qk_norm: Normalise queries and keys (lightning_dit).
    shift: Whether the blocks' modulations also shift (lightning_dit).
    learn_sigma: Twice the output channels; the second half is unused.
    dtype: Of the matmuls; parameters stay float32.
    residual_dtype: Of the tokens between blocks. "float32" as under PyTorch's
      autocast, with which the published networks were trained; "bfloat16" takes
      less memory, and triples the error of an XL's velocity in bfloat16.
    float8: Train with 8-bit operands in the matmuls of self-attention and MLP
      with their weights: for NVIDIA GPUs from Hopper on, with dtype bfloat16.
      Sampling does not use it, so that no image depends on its batch.
    scan_layers: One compiled block for all layers compiles faster; unrolled,
      they run faster and need less memory.
    remat: What the backward pass recomputes: "none", all but the matmuls
      ("dots"), or everything ("full").
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
  residual_dtype: Literal["float32", "bfloat16"]
  float8: bool
  scan_layers: bool
  remat: Literal["none", "dots", "full"]
  attention: Literal["auto", "xla", "cudnn"]

  def __post_init__(self):
    checks.positive("model", self, "width", "depth", "heads", "patch")
    checks.positive("model", self, "cross_every", "projector_depth")
    checks.positive("model", self, "projector_width")
    checks.fraction("model", self, "snippet_dropout")
    if self.dtype == "float32" != self.residual_dtype:
      raise ValueError(
        f"config.model.residual_dtype={self.residual_dtype!r}: must be"
        " 'float32' with config.model.dtype='float32'"
      )
    # The 8-bit kernels of NVIDIA GPUs give bfloat16 results.
    if self.float8 and self.dtype != "bfloat16":
      raise ValueError(
        f"config.model.dtype={self.dtype!r}: must be 'bfloat16' with"
        " config.model.float8=True"
      )


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """What cross-attention attends to; unused without it.

  Attributes:
    neighbours: Snippets that it attends to.
    exclude_own: Leave out the snippet that is looked up. Otherwise it is the
      first neighbour, even if it is not in the bank.
    dropout: Rate at which single neighbours are dropped in training.
  """

  neighbours: int
  exclude_own: bool
  dropout: float

  def __post_init__(self):
    checks.positive("retrieval", self, "neighbours")
    checks.fraction("retrieval", self, "dropout")

"""From the config's model section to a network."""

import dataclasses
from typing import Literal

from gmem_jax.models import lightning_dit, sit, transformer


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


FAMILIES = {"sit": sit.SiT, "lightning_dit": lightning_dit.LightningDiT}


def build(
  config: ModelConfig, *, channels: int, snippet_dim: int, token_dim: int
) -> transformer.FlowTransformer:
  """Builds the network.

  Args:
    config: Its settings.
    channels: Channels of the latent.
    snippet_dim: Width of the memory snippet.
    token_dim: Width of the projection targets; 0 for no projector.

  Returns:
    The Linen module.

  Raises:
    ValueError: On settings that contradict each other, naming the key.
  """
  cls = FAMILIES[config.family]
  known = {f.name for f in dataclasses.fields(cls)}
  settings = dataclasses.asdict(config)
  del settings["family"]
  return cls(
    channels=channels,
    snippet_dim=snippet_dim,
    token_dim=token_dim,
    **{name: value for name, value in settings.items() if name in known},
  )

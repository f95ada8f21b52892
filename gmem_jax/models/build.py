"""Builds the network that the config's model section describes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gmem_jax.config import networks
from gmem_jax.files import atomic
from gmem_jax.models import lightning_dit, sit, transformer

FAMILIES = {"sit": sit.SiT, "lightning_dit": lightning_dit.LightningDiT}
# Settings of how a network is run or trained: converted weights fit any.
UNCHECKED = (
  "snippet_dropout", "dtype", "float8", "scan_layers", "remat", "attention",
)  # fmt: skip


def build(
  config: networks.ModelConfig,
  *,
  channels: int,
  snippet_dim: int,
  token_dim: int,
) -> transformer.FlowTransformer:
  """Builds the network; see `transformer.FlowTransformer` for the three widths.

  Raises:
    ValueError: On settings that contradict each other, naming the key.
  """
  cls = FAMILIES[config.family]
  # One section serves both families: SiT has no field for LightningDiT's five
  # switches, which it ignores.
  known = {f.name for f in dataclasses.fields(cls)}
  settings = dataclasses.asdict(config)
  del settings["family"]
  return cls(
    channels=channels,
    snippet_dim=snippet_dim,
    token_dim=token_dim,
    **{name: value for name, value in settings.items() if name in known},
  )


def differing_keys(
  config: networks.ModelConfig,
  stored: dict[str, Any],
  ignored: Sequence[str] = (),
) -> str:
  """Lists the keys in which converted weights differ, a line for each or "".

  Args:
    config: The model section.
    stored: The model of the converted weights; may have more and fewer keys.
    ignored: Keys that may differ.
  """
  ours = dataclasses.asdict(config)
  common = [key for key in ours if key in stored]
  return "\n".join(
    atomic.differences(
      {key: stored[key] for key in common},
      {key: ours[key] for key in common},
      prefix="config.model.",
      ignored=(*UNCHECKED, *ignored),
    )
  )

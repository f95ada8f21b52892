"""From the config's model section to a network."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gmem_jax.config import networks
from gmem_jax.models import lightning_dit, sit, transformer

FAMILIES = {"sit": sit.SiT, "lightning_dit": lightning_dit.LightningDiT}


def build(
  config: networks.ModelConfig,
  *,
  channels: int,
  snippet_dim: int,
  token_dim: int,
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


# What converted weights know of a network besides what they are: these say how
# it is run or trained.
UNCHECKED = (
  "snippet_dropout", "dtype", "float8", "scan_layers", "remat", "attention",
)  # fmt: skip


def differing_keys(
  config: networks.ModelConfig,
  theirs: dict[str, Any],
  ignored: Sequence[str] = (),
) -> str:
  """Keys of the model in which converted weights differ from the config.

  Args:
    config: The config's section.
    theirs: The model of the converted weights.
    ignored: Keys that may differ.

  Returns:
    A line for each; "" if there are none.
  """
  ours = dataclasses.asdict(config)
  return "\n".join(
    f"  config.model.{key}: {theirs[key]!r} there, {ours[key]!r} in the config"
    for key in ours
    if key in theirs
    and key not in (*UNCHECKED, *ignored)
    and theirs[key] != ours[key]
  )

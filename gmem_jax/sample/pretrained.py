"""Converted weights to the parts of a run, each checked against the config."""

import dataclasses
from typing import Any

import numpy as np

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.files import weights
from gmem_jax.models import build, transformer


@dataclasses.dataclass(frozen=True)
class Bank:
  """A bank on the host.

  Attributes:
    rows: float32 [m, d].
    frequencies: How often each row occurred [m], or None.
    info: Where it comes from; JSON.
  """

  rows: np.ndarray
  frequencies: np.ndarray | None
  info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
  """A converted network.

  Attributes:
    model: The network, without its projector.
    params: Its parameters, likewise.
    latent_shape: h, w, c.
    first_release: Whether it is of the first release.
    bank: The bank that came with it, or None.
    info: Where it comes from; JSON.
  """

  model: transformer.FlowTransformer
  params: dict[str, Any]
  latent_shape: tuple[int, int, int]
  first_release: bool
  bank: Bank | None
  info: dict[str, Any]


def load_network(config: sections.Config) -> Network:
  """Reads `sample.network`.

  Args:
    config: The run; its model must be the one that was converted.

  Raises:
    ValueError: If it is not; lists the keys that differ.
  """
  path = config.sample.network
  params, metadata = weights.load_configured(
    "sample.network", path, ("lightning_dit", "sit")
  )
  theirs = metadata["model"]
  if differing := build.differing_keys(config.model, theirs):
    if theirs["conditioning"] != config.model.conditioning:
      differing += (
        "\nTo give it the config's conditioning, train on from it:"
        f" --mode=train --config.train.init_from={path}"
      )
    raise ValueError(
      f"config.sample.network={path!r} holds another network than"
      f" config.model:\n{differing}"
    )
  params.pop("projector", None)  # Of training alone.
  side, channels = theirs["grid"] * theirs["patch"], theirs["channels"]
  model = build.build(
    config.model,
    channels=channels,
    snippet_dim=theirs["snippet_dim"],
    token_dim=0,
  )
  bank = None
  if "bank" in metadata["trees"]:
    tree, _ = weights.load_configured(
      "sample.network", path, (metadata["kind"],), "bank"
    )
    bank = _bank(tree, metadata)
  return Network(
    model,
    params,
    (side, side, channels),
    first_release=metadata["kind"] == "sit",
    bank=bank,
    info=weights.origin(metadata),
  )


def load_bank(config: sections.Config) -> Bank:
  """Reads `sample.bank`.

  Args:
    config: The run.
  """
  path = config.sample.bank
  tree, metadata = weights.load_configured(
    "sample.bank", path, bank_files.KINDS, "bank"
  )
  ours = load_encoders.features_name(config)
  if ours is not None and "info" in metadata:
    info = bank_lib.BankInfo(**metadata["info"])
    bank_lib.check_encoder(info, ours, f"config.sample.bank={path!r}")
  return _bank(tree, metadata)


def _bank(tree: dict[str, Any], metadata: dict[str, Any]) -> Bank:
  rows = bank_lib.decode(bank_files.from_tree(tree))
  return Bank(rows, tree.pop("counts", None), weights.origin(metadata))

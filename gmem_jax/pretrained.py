"""Converted weights to the parts of a run, each checked against the config."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmem_jax import bank_store, weights
from gmem_jax.bank import bank as bank_lib, storage
from gmem_jax.config import Config
from gmem_jax.encoders import (
  dinov2,
  identity,
  protocols,
  random_conv,
  vae,
)
from gmem_jax.models import build, transformer

# What converted weights know of a network besides what they are: these say how
# it is run or trained.
UNCHECKED = (
  "snippet_dropout", "dtype", "scan_layers", "remat", "attention",
)  # fmt: skip


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


def read(
  key: str, path: str, kinds: Sequence[str], tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads converted weights.

  Args:
    key: The config key that names them.
    path: The key's value.
    kinds: What they may be.
    tree: Which of their trees.

  Returns:
    (tree, metadata).

  Raises:
    ValueError: Naming the key: there is nothing, or something else.
  """
  if not path:
    raise ValueError(
      f"config.{key} is empty: it must name a {' or '.join(kinds)} that"
      " `python -m gmem_jax.convert` wrote"
    )
  try:
    metadata = weights.read_metadata(path)
    if metadata["kind"] not in kinds:
      raise ValueError(
        f"it is a {metadata['kind']}, not a {' or '.join(kinds)}"
      )
    return weights.load_converted(path, tree)
  except (ValueError, OSError) as error:
    raise ValueError(f"config.{key}={path!r}: {error}") from None


def origin(metadata: dict[str, Any]) -> dict[str, Any]:
  """What identifies converted weights in a record of samples.

  Args:
    metadata: Of the converted weights.
  """
  source = metadata["source"]
  return {
    "title": metadata["title"],
    "file": source["file"],
    "sha256": source["sha256"],
    "weights": metadata["weights"],
    "step": metadata["step"],
  }


def load_network(config: Config) -> Network:
  """Reads `sample.network`.

  Args:
    config: The run; its model must be the one that was converted.

  Raises:
    ValueError: If it is not; lists the keys that differ.
  """
  path = config.sample.network
  params, metadata = read("sample.network", path, ("lightning_dit", "sit"))
  theirs, ours = metadata["model"], dataclasses.asdict(config.model)
  differing = [
    f"  config.model.{key}: {theirs[key]!r} there, {ours[key]!r} in the config"
    for key in ours
    if key in theirs and key not in UNCHECKED and theirs[key] != ours[key]
  ]
  if differing:
    raise ValueError(
      f"config.sample.network={path!r} holds another network than"
      " config.model:\n" + "\n".join(differing)
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
    tree, _ = read("sample.network", path, (metadata["kind"],), "bank")
    bank = _bank(tree, metadata)
  return Network(
    model,
    params,
    (side, side, channels),
    first_release=metadata["kind"] == "sit",
    bank=bank,
    info=origin(metadata),
  )


def load_bank(config: Config) -> Bank:
  """Reads `sample.bank`.

  Args:
    config: The run.
  """
  path = config.sample.bank
  tree, metadata = read("sample.bank", path, bank_store.KINDS, "bank")
  ours = features_name(config)
  if ours is not None and "info" in metadata:
    info = bank_lib.BankInfo(**metadata["info"])
    bank_lib.check_encoder(info, ours, f"config.sample.bank={path!r}")
  return _bank(tree, metadata)


def _bank(tree: dict[str, Any], metadata: dict[str, Any]) -> Bank:
  rows = storage.decode(bank_store.from_tree(tree))
  return Bank(rows, tree.pop("counts", None), origin(metadata))


def load_tokenizer(config: Config) -> protocols.Tokenizer:
  """The tokenizer, with its weights if it has any.

  Args:
    config: The run.

  Raises:
    ValueError: If the weights are of another tokenizer; names what differs.
  """
  name = config.encoder.tokenizer
  if name == "identity":
    return identity.IdentityTokenizer()
  path, key = config.encoder.tokenizer_weights, "encoder.tokenizer_weights"
  params, metadata = read(key, path, ("vae",))
  network = vae.AutoencoderKL(**hashable(metadata["model"]))
  for field in ("ch_mult", "encoder_attention", "decoder_attention"):
    theirs = getattr(network, field)
    ours = getattr(vae.VARIANTS[name], field)
    if theirs != ours:
      raise ValueError(
        f"config.{key}={path!r} is not of config.encoder.tokenizer={name!r}:"
        f" its {field} is {theirs}, not {ours}"
      )
  return vae.Tokenizer(name=name, network=network, params=params)


def load_decoder(config: Config) -> protocols.Tokenizer:
  """The tokenizer that samples are decoded with, in `sample.decode_dtype`.

  Args:
    config: The run.

  Raises:
    ValueError: See `load_tokenizer`.
  """
  return decoder(load_tokenizer(config), config.sample.decode_dtype)


def decoder(tokenizer: protocols.Tokenizer, dtype: str) -> protocols.Tokenizer:
  """A tokenizer whose products are of another type; its weights stay.

  Args:
    tokenizer: The tokenizer; one without a network is left as it is.
    dtype: "float32" or "bfloat16".
  """
  if not isinstance(tokenizer, vae.Tokenizer):
    return tokenizer
  network = tokenizer.network.clone(dtype=dtype)
  return dataclasses.replace(tokenizer, network=network)


def tokenizer_info(config: Config) -> dict[str, Any]:
  """What identifies the tokenizer in a record of samples.

  Args:
    config: The run.
  """
  info: dict[str, Any] = {"name": config.encoder.tokenizer}
  if config.encoder.tokenizer == "identity":
    return info
  return info | origin(weights.read_metadata(config.encoder.tokenizer_weights))


def hashable(model: dict[str, Any]) -> dict[str, Any]:
  """A network's settings from JSON: lists as tuples.

  Args:
    model: The settings; what no tensor tells is None, and left at its default.
  """
  return {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in model.items()
    if value is not None
  }


def load_stats(
  config: Config, tokenizer: protocols.Tokenizer, channels: int
) -> protocols.LatentStats:
  """Reads `encoder.latent_stats`, or takes the tokenizer's own scale.

  Args:
    config: The run.
    tokenizer: Its tokenizer.
    channels: Channels of the network's latents.

  Raises:
    ValueError: If the latents have other channels, or there are no statistics.
  """
  own = getattr(getattr(tokenizer, "network", None), "latent_channels", None)
  if own not in (None, channels):
    raise ValueError(
      f"config.encoder.tokenizer_weights={config.encoder.tokenizer_weights!r}:"
      f" it decodes latents of {own} channels, the network makes {channels}"
    )
  path, key = config.encoder.latent_stats, "encoder.latent_stats"
  if path:
    tree, _ = read(key, path, ("latent_stats",), "stats")
    mean, std = (np.asarray(tree[n], np.float32) for n in ("mean", "std"))
  else:
    scale = 1.0
    if isinstance(tokenizer, vae.Tokenizer):
      scale = tokenizer.network.latent_scale
      if scale == 1:
        raise ValueError(
          f"config.{key} is empty, and config.encoder.tokenizer="
          f"{tokenizer.name!r} has no scale of its own: convert the"
          " latents_stats.pt of its release"
        )
    mean = np.zeros(channels, np.float32)
    std = np.full(channels, 1 / scale, np.float32)
  if mean.shape != (channels,):
    raise ValueError(
      f"config.{key}={path!r} is of {mean.size} channels, the latents have"
      f" {channels}"
    )
  return protocols.LatentStats(mean=jnp.asarray(mean), std=jnp.asarray(std))


def load_features(config: Config, channels: int) -> protocols.FeatureEncoder:
  """The feature encoder, with its weights if it has any.

  Args:
    config: The run.
    channels: Channels of the images.
  """
  if config.encoder.features == "random_conv":
    return random_conv.RandomConvEncoder(config.seed, channels)
  path = config.encoder.features_weights
  params, metadata = read("encoder.features_weights", path, ("dinov2",))
  network = dinov2.DINOv2(**hashable(metadata["model"]))
  return dinov2.Encoder(_dinov2_name(metadata), network, params)


def features_name(config: Config) -> str | None:
  """The name of the feature encoder, without loading it.

  Args:
    config: The run.

  Returns:
    As `FeatureEncoder.name`; None if its weights are not on this machine.
  """
  if config.encoder.features == "random_conv":
    return random_conv.name(config.seed)
  path = config.encoder.features_weights
  if not path or not pathlib.Path(path).exists():
    return None
  return _dinov2_name(weights.read_metadata(path))


def _dinov2_name(metadata: dict[str, Any]) -> str:
  return f"dinov2(sha256={metadata['source']['sha256'][:12]})"

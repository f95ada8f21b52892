"""Tokenizer and feature encoder of a run, of converted weights."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import weights
from gmem_jax.models.encoders import dinov2, protocols, random_conv, vae


def load_tokenizer(config: sections.Config) -> protocols.Tokenizer:
  """The tokenizer, with its weights if it has any.

  Args:
    config: The run.

  Raises:
    ValueError: If the weights are of another tokenizer; names what differs.
  """
  name = config.encoder.tokenizer
  if name == "identity":
    return protocols.IdentityTokenizer()
  path, key = config.encoder.tokenizer_weights, "encoder.tokenizer_weights"
  params, metadata = weights.load_configured(key, path, ("vae",))
  tokenizer = vae_tokenizer(name, params, metadata)
  for field in ("ch_mult", "encoder_attention", "decoder_attention"):
    theirs = getattr(tokenizer.network, field)
    ours = getattr(vae.VARIANTS[name], field)
    if theirs != ours:
      raise ValueError(
        f"config.{key}={path!r} is not of config.encoder.tokenizer={name!r}:"
        f" its {field} is {theirs}, not {ours}"
      )
  return tokenizer


def vae_tokenizer(
  name: str, params: Any, metadata: dict[str, Any]
) -> vae.VAETokenizer:
  """The tokenizer of a converted autoencoder."""
  network = vae.AutoencoderKL(**hashable(metadata["model"]))
  return vae.VAETokenizer(name=name, network=network, params=params)


def load_decoder(config: sections.Config) -> protocols.Tokenizer:
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
  if not isinstance(tokenizer, vae.VAETokenizer):
    return tokenizer
  network = tokenizer.network.clone(dtype=dtype)
  return dataclasses.replace(tokenizer, network=network)


def tokenizer_info(config: sections.Config) -> dict[str, Any]:
  """What identifies the tokenizer in a record of samples.

  Args:
    config: The run.
  """
  info: dict[str, Any] = {"name": config.encoder.tokenizer}
  if config.encoder.tokenizer == "identity":
    return info
  return info | weights.origin(
    weights.read_metadata(config.encoder.tokenizer_weights)
  )


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
  config: sections.Config, tokenizer: protocols.Tokenizer, channels: int
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
    tree, _ = weights.load_configured(key, path, ("latent_stats",), "stats")
    mean, std = (np.asarray(tree[n], np.float32) for n in ("mean", "std"))
  else:
    scale = 1.0
    if isinstance(tokenizer, vae.VAETokenizer):
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


def load_features(
  config: sections.Config, channels: int
) -> protocols.FeatureEncoder:
  """The feature encoder, with its weights if it has any.

  Args:
    config: The run.
    channels: Channels of the images.
  """
  if config.encoder.features == "random_conv":
    return random_conv.make(config.seed, channels)
  path = config.encoder.features_weights
  params, metadata = weights.load_configured(
    "encoder.features_weights", path, ("dinov2",)
  )
  network = dinov2.DINOv2(**hashable(metadata["model"]))
  return dinov2.DINOv2Encoder(_dinov2_name(metadata), network, params)


def features_name(config: sections.Config) -> str | None:
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

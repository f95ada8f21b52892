"""The one loader of encoders: from converted weights to networks that run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import paths, weights
from gmem_jax.models.encoders import (
  dinov2,
  efficientnet,
  layout_pca,
  patch_pca,
  protocols,
  random_conv,
  vae,
)


def load_tokenizer(config: sections.Config) -> protocols.Tokenizer:
  """Loads a run's tokenizer, with its weights if it has any.

  Raises:
    ValueError: If the weights are of another tokenizer; names what differs.
  """
  name = config.encoder.tokenizer
  if name == "identity":
    return protocols.IdentityTokenizer()
  path, key = config.encoder.tokenizer_weights, "encoder.tokenizer_weights"
  if name == "patch_pca":
    loaded = _load_fitted("tokenizer", config)
  else:
    loaded = weights.load_configured(key, path, (tokenizer_kind(name),))
  tokenizer = make_tokenizer(name, *loaded)
  if isinstance(tokenizer, patch_pca.PatchPCATokenizer):
    _check_patches(config, tokenizer)
    return tokenizer
  # These tell the variants apart. Sizes may differ: a small network of the same
  # layout can stand in for the published one.
  for field in ("ch_mult", "encoder_attention", "decoder_attention"):
    stored = getattr(tokenizer.network, field)
    expected = getattr(vae.VARIANTS[name], field)
    if stored != expected:
      raise ValueError(
        f"config.{key}={path!r} is not of config.encoder.tokenizer={name!r}:"
        f" its {field} is {stored}, not {expected}"
      )
  return tokenizer


def _check_patches(
  config: sections.Config, tokenizer: patch_pca.PatchPCATokenizer
) -> None:
  """Checks that a fitted tokenizer is the one that the config describes."""
  stored = tokenizer.patch, tokenizer.basis.shape[1]
  given = config.encoder.tokenizer_patch, config.encoder.tokenizer_channels
  if stored != given:
    raise ValueError(
      f"config.encoder.tokenizer_weights={config.encoder.tokenizer_weights!r}"
      " was fitted with config.encoder.tokenizer_patch={} and"
      " config.encoder.tokenizer_channels={}, not {} and {}: name another"
      " path".format(*stored, *given)
    )


def tokenizer_kind(name: str) -> str:
  """The kind of weights that a tokenizer of the config has."""
  return "patch_pca" if name == "patch_pca" else "vae"


def make_tokenizer(
  name: str, params: Any, metadata: dict[str, Any]
) -> vae.VAETokenizer | patch_pca.PatchPCATokenizer:
  """Makes a tokenizer of its weights; `name` is the config's."""
  if name == "patch_pca":
    patch = metadata["model"]["patch"]
    mean, basis = jnp.asarray(params["mean"]), jnp.asarray(params["basis"])
    return patch_pca.PatchPCATokenizer(name, patch, mean, basis)
  network = vae.AutoencoderKL(**hashable(metadata["model"]))
  return vae.VAETokenizer(name=name, network=network, params=params)


def load_decoder(config: sections.Config) -> protocols.Tokenizer:
  """Loads the tokenizer that decodes samples, in `sample.decode_dtype`.

  Raises:
    ValueError: See `load_tokenizer`.
  """
  return decoder(load_tokenizer(config), config.sample.decode_dtype)


def decoder(tokenizer: protocols.Tokenizer, dtype: str) -> protocols.Tokenizer:
  """A tokenizer with matmuls in "float32" or "bfloat16"; its weights stay.

  One without a network is returned as it is.
  """
  if not isinstance(tokenizer, vae.VAETokenizer):
    return tokenizer
  network = tokenizer.network.clone(dtype=dtype)
  return dataclasses.replace(tokenizer, network=network)


def tokenizer_info(config: sections.Config) -> dict[str, Any]:
  """What identifies a run's tokenizer in a record of samples."""
  info: dict[str, Any] = {"name": config.encoder.tokenizer}
  if config.encoder.tokenizer == "identity":
    return info
  return info | weights.origin(
    weights.read_metadata(config.encoder.tokenizer_weights)
  )


def hashable(model: dict[str, Any]) -> dict[str, Any]:
  """A network's settings from JSON: lists as tuples, without None.

  Flax modules are hashed where they are static arguments of jit. A setting that
  no tensor tells is None, and is left at its default.
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

  `channels` are those of the network's latents.

  Raises:
    ValueError: If the latents have other channels, or there are no statistics.
  """
  own = getattr(getattr(tokenizer, "network", None), "latent_channels", None)
  if isinstance(tokenizer, patch_pca.PatchPCATokenizer):
    own = tokenizer.basis.shape[1]
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
      # SD-VAE was published with a scale; VA-VAE with a file of statistics.
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
  """Loads what makes a run's snippets of images of so many channels.

  Raises:
    ValueError: If the weights are of another network or were fitted otherwise,
      or the images have no colours, which the trained networks read.
  """
  encoder = load_features_alone(config, channels)
  if not config.encoder.snippet_weights:
    return encoder
  params, metadata = _load_fitted("snippet", config)
  fitted = layout_pca.Projections(**jax.tree.map(jnp.asarray, dict(params)))
  name = _snippet_name(encoder.name, metadata)
  snippets = layout_pca.LayoutEncoder(name, encoder, fitted)
  path, made_of = config.encoder.snippet_weights, metadata["model"]["encoder"]
  for key, stored, given in (
    ("features", made_of, encoder.name),
    ("snippet_width", snippets.width, config.encoder.snippet_width),
  ):
    if stored != given:
      raise ValueError(
        f"config.encoder.snippet_weights={path!r} was fitted with"
        f" config.encoder.{key}={stored}, not {given}: name another path"
      )
  return snippets


def load_features_alone(
  config: sections.Config, channels: int
) -> protocols.FeatureEncoder:
  """Loads a run's feature encoder, without the projections of its snippets.

  Raises:
    ValueError: See `load_features`.
  """
  kind = config.encoder.features
  if kind == "random_conv":
    # Random weights are a function of the seed: there is nothing to read.
    return random_conv.make(config.seed, channels)
  if channels != 3:
    raise ValueError(
      f"config.encoder.features={kind!r} takes colour images; these have"
      f" {channels} channel(s)"
    )
  path = config.encoder.features_weights
  params, metadata = weights.load_configured(
    "encoder.features_weights", path, (kind,)
  )
  name = _network_name(kind, metadata)
  if kind == "efficientnet_lite0":
    return efficientnet.EfficientNetEncoder(name, params)
  network = dinov2.DINOv2(**hashable(metadata["model"]))
  return dinov2.DINOv2Encoder(name, network, params)


def features_name(config: sections.Config) -> str | None:
  """The name of what makes a run's snippets, without loading it.

  Returns:
    As `FeatureEncoder.name`; None if its weights are not on this machine.
  """
  kind = config.encoder.features
  if kind == "random_conv":
    return random_conv.name(config.seed)
  path, fitted = (
    config.encoder.features_weights,
    config.encoder.snippet_weights,
  )
  if not paths.exists(path) or (fitted and not paths.exists(fitted)):
    return None
  name = _network_name(kind, weights.read_metadata(path))
  if not fitted:
    return name
  return _snippet_name(name, weights.read_metadata(fitted))


def _network_name(kind: str, metadata: dict[str, Any]) -> str:
  # A digest, since banks must not mix features of different weights.
  made_of = f"sha256={metadata['source']['sha256'][:12]}"
  if grid := metadata["model"].get("position_grid"):
    made_of += f", position_grid={grid}"
  return f"{kind}({made_of})"


def _snippet_name(encoder: str, metadata: dict[str, Any]) -> str:
  return f"{encoder}+{_network_name('layout_pca', metadata)}"


def _load_fitted(
  part: str, config: sections.Config
) -> tuple[Any, dict[str, Any]]:
  """Loads what `--mode=prepare` fits: the "tokenizer", or the "snippet"."""
  key = f"encoder.{part}_weights"
  path = getattr(config.encoder, f"{part}_weights")
  if not paths.exists(path):
    raise ValueError(
      f"config.{key}={path!r} does not exist: --mode=prepare with the same"
      f" config fits the {part} and writes it there"
    )
  kind = "patch_pca" if part == "tokenizer" else "layout_pca"
  return weights.load_configured(key, path, (kind,))

"""What a recognised file is exactly: its network, read off names and shapes.

No file has the configuration of its network in a reliable form. Most of it
follows from the shapes. What does not (the number of heads, ..) comes from the
published network of that width, or from the user. The file must then have the
names and shapes of that network, all of them and no others.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gmem_jax.convert import manifest, rules, transformer
from gmem_jax.convert.detect import Contents
from gmem_jax.convert.manifest import Identity, Shapes
from gmem_jax.convert.names import (
  dinov2 as dinov2_names,
  efficientnet as efficientnet_names,
  inception as inception_names,
  tables,
  vae as vae_names,
)
from gmem_jax.files import shown
from gmem_jax.models.encoders import dinov2, efficientnet, inception, vae

# What --model takes, in the reference's words and in ours.
SETTINGS = {
  "num_heads": "heads",
  "heads": "heads",
  "encoder_depth": "projector_depth",
  "projector_depth": "projector_depth",
  "num_groups": "num_groups",
  "position_grid": "position_grid",
}
_ACCEPTED = {
  "lightning_dit": ("num_heads", "encoder_depth"),
  "sit": ("num_heads", "encoder_depth"),
  "vae": ("num_groups",),
  "dinov2": ("num_heads", "position_grid"),
}
# Width of DINOv2 -> (size, depth, heads).
_DINOV2_SIZES = {384: ("S", 12, 6), 768: ("B", 12, 12), 1024: ("L", 24, 16)}
_VAE_TITLES = {
  "va_vae": "VA-VAE f16d32",
  "mar_vae": "MAR-VAE f16d16",
  "sd_vae": "SD-VAE (Stable Diffusion's autoencoder)",
}


def identify(contents: Contents, settings: Mapping[str, int]) -> Identity:
  """Finds the network of a file and checks all names and shapes against it.

  `settings` is what no file tells; its keys are values of SETTINGS.

  Raises:
    NamesError: Names that are missing, unexpected or misshapen.
    ValueError: Settings that are needed, contradict the file, or do not apply.
  """
  accepted = _ACCEPTED.get(contents.kind, ())
  for name in settings:
    if name not in {SETTINGS[a] for a in accepted}:
      raise ValueError(
        f"--model {name} does not apply to this file ({contents.kind}), which"
        f" takes {' and '.join(accepted) or 'no settings'}"
      )
  return _IDENTIFIERS[contents.kind](contents, settings)


def _compare(
  title: str,
  tensors: Mapping[str, np.ndarray],
  parameters: Shapes,
  buffers: Shapes | None = None,
) -> None:
  problems = manifest.compare(tensors, parameters, buffers or {})
  rules.refuse(f"not a complete {title}", problems)


def _autoencoder(contents: Contents, settings: Mapping[str, int]) -> Identity:
  table = vae_names.table(contents.tensors)
  dropped = [rule.torch_pattern for rule in table if rule.transform == "drop"]
  tensors = {
    name: tensor
    for name, tensor in contents.tensors.items()
    if not any(pattern.fullmatch(name) for pattern in dropped)
  }
  shapes = manifest.shapes_of(tensors)
  network = vae_names.network(shapes)
  groups = _groups(network, settings)
  side = network.downsampling
  parameters = manifest.expected(
    # The parameters have the same shapes for any number of groups.
    dataclasses.replace(network, num_groups=1),
    [(1, side, side, 3)],
    table,
    shapes,
  )
  title, notes = f"autoencoder (width {network.ch})", []
  # The scale of the latents is in no file: it comes with the published name.
  for name, variant in vae.VARIANTS.items():
    scaled = dataclasses.replace(network, latent_scale=variant.latent_scale)
    if scaled == variant:
      title, network = _VAE_TITLES[name], variant
  _compare(title, tensors, parameters)
  if table != vae_names.LDM:
    notes.append(
      "in the layout of diffusers' AutoencoderKL, as SD-VAE and the E2E-VAEs of"
      " REPA-E are published"
    )
  if title in (_VAE_TITLES["va_vae"], _VAE_TITLES["sd_vae"]):
    notes.append(
      "an E2E-VAE (REPA-E) has the same names and shapes, but its latents need"
      " statistics of their own (encoder.latent_stats)"
    )
  if groups is None:
    notes.append(
      "the number of groups of its norms is in no tensor, and 32 does not"
      f" divide {network.ch} channels: give it with --model num_groups=N, or"
      " to the network when you load this"
    )
  if len(tensors) < len(contents.tensors):
    notes.append(
      f"left out {len(contents.tensors) - len(tensors)} tensors that are no"
      " part of the autoencoder (loss, foundation model, linear_proj)"
    )
  model = {
    "latent_channels": network.latent_channels,
    "ch": network.ch,
    "ch_mult": list(network.ch_mult),
    "num_res_blocks": network.num_res_blocks,
    "encoder_attention": list(network.encoder_attention),
    "decoder_attention": list(network.decoder_attention),
    "num_groups": groups,
    "latent_scale": network.latent_scale,
  }
  return Identity(title, table, model, tuple(notes))


def _groups(
  network: vae.AutoencoderKL, settings: Mapping[str, int]
) -> int | None:
  """Groups of the norms, which leave no trace in the parameters."""
  widths = [network.ch * m for m in network.ch_mult]
  groups = settings.get("num_groups", network.num_groups)
  if all(width % groups == 0 for width in widths):
    return groups
  if "num_groups" in settings:
    raise ValueError(
      f"--model num_groups={groups} does not divide the widths {widths}"
    )
  return None


def _dinov2(contents: Contents, settings: Mapping[str, int]) -> Identity:
  shapes, title = manifest.shapes_of(contents.tensors), "DINOv2"
  (_, places, width), (*_, patch), (hidden, _) = manifest.deciding(
    title,
    shapes,
    {
      "pos_embed": 3,
      "patch_embed.proj.weight": 4,
      "blocks.0.mlp.fc1.weight": 2,
    },
  )
  depth = manifest.count(shapes, "blocks", limit=len(shapes))
  size, published_depth, heads = _DINOV2_SIZES.get(width, ("", 0, None))
  heads = settings.get("heads") or heads
  if heads is None:
    raise ValueError(
      "the number of attention heads is in no tensor of this file, and width"
      f" {width} is not a published one ({', '.join(map(str, _DINOV2_SIZES))}):"
      " give it with --model num_heads=N"
    )
  model: dict[str, Any] = {
    "width": width,
    "depth": depth,
    "heads": heads,
    "patch": patch,
    "hidden": hidden,
    # One place is the class token's.
    "table": math.isqrt(places - 1),
  }
  if "position_grid" in settings:
    model["position_grid"] = settings["position_grid"]
  if depth == published_depth:
    title += f" ViT-{size}/{patch}"
  else:
    title += f" (width {width}, depth {depth}, heads {heads})"
  table, side = dinov2_names.RULES, dinov2.IMAGE_UNIT
  parameters = manifest.expected(
    dinov2.DINOv2(**model), [(1, side, side, 3)], table, shapes
  )
  _compare(title, contents.tensors, parameters, {"mask_token": (1, width)})
  return Identity(title, table, model)


def _inception(contents: Contents, settings: Mapping[str, int]) -> Identity:
  table, title = inception_names.RULES, "FID's InceptionV3"
  network = inception.InceptionV3()
  parameters = manifest.expected(network, [(1, 299, 299, 3)], table, {})
  _compare(title, contents.tensors, parameters, _counters(parameters))
  return Identity(title, table)


def _efficientnet(contents: Contents, settings: Mapping[str, int]) -> Identity:
  table, title = efficientnet_names.RULES, "EfficientNet-Lite0"
  network = efficientnet.EfficientNetLite0()
  parameters = manifest.expected(network, [(1, 224, 224, 3)], table, {})
  _compare(title, contents.tensors, parameters, _counters(parameters))
  return Identity(title, table)


def _counters(parameters: Shapes) -> Shapes:
  """Counters of training steps, integers beside each running mean."""
  return {
    name.replace("running_mean", "num_batches_tracked"): ()
    for name in parameters
    if name.endswith("running_mean")
  }


def _bank(contents: Contents, settings: Mapping[str, int]) -> Identity:
  rows, width = contents.tensors["rows"].shape
  return Identity(f"memory bank, {rows} rows of {width}", tables.BANK)


def _low_rank_bank(contents: Contents, settings: Mapping[str, int]) -> Identity:
  title, shapes = "low-rank memory bank", manifest.shapes_of(contents.tensors)
  (rows, rank), (width, _) = manifest.deciding(title, shapes, {"C": 2, "M": 2})
  parameters = {
    "C": (rows, rank), "M": (width, rank), "S": (rank,), "mean": (width,)
  }  # fmt: skip
  problems = manifest.compare(contents.tensors, parameters, {})
  # The file repeats two of its sizes as numbers.
  for name, right in (("latent_dim", rank), ("feature_dim", width)):
    if name in contents.config and contents.config[name] != right:
      problems.append(
        f"{name}: {shown.value(contents.config[name])}, expected {right}"
      )
  rules.refuse(f"not a complete {title}", problems)
  title += f", {rows} rows of {width}, rank {rank}"
  return Identity(title, tables.LOW_RANK_BANK)


def _latent_stats(contents: Contents, settings: Mapping[str, int]) -> Identity:
  title, shapes = "latent statistics", manifest.shapes_of(contents.tensors)
  ((_, channels, *_),) = manifest.deciding(title, shapes, {"mean": 4})
  shape = (1, channels, 1, 1)
  _compare(title, contents.tensors, {"mean": shape, "std": shape})
  return Identity(f"{title} of {channels} channels", tables.LATENT_STATS)


def _fid_stats(contents: Contents, settings: Mapping[str, int]) -> Identity:
  title, shapes = (
    "FID reference statistics",
    manifest.shapes_of(contents.tensors),
  )
  parameters: dict[str, tuple[int, ...]] = {}
  # Of the pooled and of the spatial features; either may be alone.
  for suffix in ("", "_s"):
    mean, covariance = f"mu{suffix}", f"sigma{suffix}"
    if shapes.keys() & {mean, covariance}:
      ((width,),) = manifest.deciding(title, shapes, {mean: 1})
      parameters |= {mean: (width,), covariance: (width, width)}
  _compare(title, contents.tensors, parameters)
  return Identity(title, tables.FID_STATS)


_IDENTIFIERS: dict[str, Callable[[Contents, Mapping[str, int]], Identity]] = {
  "lightning_dit": transformer.identify,
  "sit": transformer.identify,
  "vae": _autoencoder,
  "dinov2": _dinov2,
  "efficientnet_lite0": _efficientnet,
  "inception": _inception,
  "bank": _bank,
  "low_rank_bank": _low_rank_bank,
  "latent_stats": _latent_stats,
  "fid_stats": _fid_stats,
}

"""What a recognised file is exactly: its network, read off names and shapes.

The configuration of a network is in no file as such. Most of it can be read off
the shapes; what cannot (the number of heads, ..) comes from the published
network of that width, or from the user. The file must then have the names and
shapes of that network, all of them and no others.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gmem_jax.convert import manifest, rules, transformer
from gmem_jax.convert.detect import Found
from gmem_jax.convert.manifest import Identity, Shapes
from gmem_jax.convert.names import (
  dinov2 as dinov2_names,
  inception as inception_names,
  tables,
  vae as vae_names,
)
from gmem_jax.models.encoders import dinov2, inception, vae

# What --model takes, in the reference's words and in ours.
SETTINGS = {
  "num_heads": "heads",
  "heads": "heads",
  "encoder_depth": "projector_depth",
  "projector_depth": "projector_depth",
  "num_groups": "num_groups",
}
_ACCEPTED = {
  "lightning_dit": ("num_heads", "encoder_depth"),
  "sit": ("num_heads", "encoder_depth"),
  "vae": ("num_groups",),
  "dinov2": ("num_heads",),
}
# ViT-S, B and L of DINOv2.
_DINOV2_HEADS = {384: 6, 768: 12, 1024: 16}
_VAE_TITLES = {
  "va_vae": "VA-VAE f16d32",
  "mar_vae": "MAR-VAE f16d16",
  "sd_vae": "SD-VAE (Stable Diffusion's autoencoder)",
}


def identify(found: Found, settings: Mapping[str, int]) -> Identity:
  """Finds the network of a file and checks all names and shapes against it.

  Args:
    found: what the file holds.
    settings: what no file tells; the keys are values of SETTINGS.

  Returns:
    What it is.

  Raises:
    NamesError: names that are missing, unexpected or misshapen.
    ValueError: settings that are needed, contradict the file, or do not apply.
  """
  accepted = _ACCEPTED.get(found.kind, ())
  for name in settings:
    if name not in {SETTINGS[a] for a in accepted}:
      raise ValueError(
        f"--model {name} does not apply to this file ({found.kind}), which "
        f"takes {' and '.join(accepted) or 'no settings'}"
      )
  return _IDENTIFIERS[found.kind](found, settings)


def _shapes(found: Found) -> Shapes:
  return {name: tensor.shape for name, tensor in found.tensors.items()}


def _check(title: str, problems: Sequence[str]) -> None:
  if problems:
    raise rules.NamesError(f"not a complete {title}", problems)


def _autoencoder(found: Found, settings: Mapping[str, int]) -> Identity:
  table = vae_names.table(found.tensors)
  dropped = [rule.torch_pattern for rule in table if rule.transform == "drop"]
  tensors = {
    name: tensor
    for name, tensor in found.tensors.items()
    if not any(pattern.fullmatch(name) for pattern in dropped)
  }
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  network = vae_names.network(manifest.flax_shapes(table, _twinned(shapes)))
  groups = _groups(network, settings)
  side = network.downsampling
  wanted = manifest.expected(
    # The parameters have the same shapes for any number of groups.
    dataclasses.replace(network, num_groups=1),
    [(1, side, side, 3)],
    table,
    shapes,
  )
  title, notes = f"autoencoder (width {network.ch})", []
  for name, variant in vae.VARIANTS.items():
    scaled = dataclasses.replace(network, latent_scale=variant.latent_scale)
    if scaled == variant:
      title, network = _VAE_TITLES[name], variant
  _check(title, manifest.compare(tensors, wanted, {}))
  if groups is None:
    notes.append(
      "the number of groups of its norms is in no tensor, and 32 does not "
      f"divide {network.ch} channels: give it with --model num_groups=N, or "
      "to the network when you load this"
    )
  if len(tensors) < len(found.tensors):
    notes.append(
      f"left out {len(found.tensors) - len(tensors)} tensors that are no part "
      "of the autoencoder (loss, foundation model, linear_proj)"
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


def _twinned(shapes: Shapes) -> Shapes:
  """Adds the bias of every weight, so that a missing one tells no less."""
  biases = {
    name.removesuffix("weight") + "bias": shape[:1]
    for name, shape in shapes.items()
    if name.endswith(".weight") and shape
  }
  return {**biases, **shapes}


def _dinov2(found: Found, settings: Mapping[str, int]) -> Identity:
  shapes = _shapes(found)
  vote = manifest.vote
  places = (("cls_token", -1), ("pos_embed", -1), ("norm.weight", 0))
  width = vote(shapes, (*places, ("patch_embed.proj.bias", 0))) or 768
  heads = settings.get("heads") or _DINOV2_HEADS.get(width)
  if heads is None:
    raise ValueError(
      "the number of attention heads is in no tensor of this file, and width "
      f"{width} is not a published one ({', '.join(map(str, _DINOV2_HEADS))}): "
      "give it with --model num_heads=N"
    )
  hidden = (
    ("blocks.0.mlp.fc1.bias", 0),
    ("blocks.0.mlp.fc1.weight", 0),
    ("blocks.0.mlp.fc2.weight", 1),
  )
  kernel = shapes.get("patch_embed.proj.weight", ())
  model: dict[str, Any] = {
    "width": width,
    "depth": manifest.depth(shapes, limit=len(shapes)),
    "heads": heads,
    "patch": kernel[-1] if len(kernel) == 4 else 14,
    "hidden": vote(shapes, hidden) or 4 * width,
    "table": math.isqrt((vote(shapes, (("pos_embed", 1),)) or 1370) - 1),
  }
  table = dinov2_names.RULES
  side = dinov2.IMAGE_UNIT
  wanted = manifest.expected(
    dinov2.DINOv2(**model), [(1, side, side, 3)], table, shapes
  )
  title = "DINOv2"
  size = {384: "S", 768: "B", 1024: "L"}.get(width)
  if size and model["depth"] == {"S": 12, "B": 12, "L": 24}[size]:
    title += f" ViT-{size}/{model['patch']}"
  else:
    title += f" (width {width}, depth {model['depth']}, heads {heads})"
  buffers = {"mask_token": (1, width)}
  _check(title, manifest.compare(found.tensors, wanted, buffers))
  return Identity(title, table, model)


def _inception(found: Found, settings: Mapping[str, int]) -> Identity:
  del settings
  table, title = inception_names.RULES, "FID's InceptionV3"
  network = inception.InceptionV3()
  wanted = manifest.expected(network, [(1, 299, 299, 3)], table, {})
  counters: Shapes = {
    name.replace("running_mean", "num_batches_tracked"): ()
    for name in wanted
    if name.endswith("running_mean")
  }
  _check(title, manifest.compare(found.tensors, wanted, counters))
  return Identity(title, table)


def _bank(found: Found, settings: Mapping[str, int]) -> Identity:
  del settings
  rows, width = found.tensors["rows"].shape
  return Identity(f"memory bank, {rows} rows of {width}", tables.BANK)


def _low_rank_bank(found: Found, settings: Mapping[str, int]) -> Identity:
  del settings
  title = "low-rank memory bank"
  vote, shapes = manifest.vote, _shapes(found)
  # The two numbers vote as if they were shapes.
  numbers = {k: v for k, v in found.config.items() if isinstance(v, int)}
  shapes |= {name: (number,) for name, number in numbers.items()}
  ranks = (("C", 1), ("M", 1), ("S", 0), ("latent_dim", 0))
  rank = vote(shapes, ranks) or 0
  width = vote(shapes, (("M", 0), ("mean", 0), ("feature_dim", 0))) or 0
  rows = vote(shapes, (("C", 0),)) or 0
  wanted = {"C": (rows, rank), "M": (width, rank), "S": (rank,)}
  problems = manifest.compare(found.tensors, {**wanted, "mean": (width,)}, {})
  for name, right in (("latent_dim", rank), ("feature_dim", width)):
    if name in found.config and found.config[name] != right:
      problems.append(f"{name}: {found.config[name]!r}, expected {right}")
  _check(title, problems)
  title += f", {rows} rows of {width}, rank {rank}"
  return Identity(title, tables.LOW_RANK_BANK)


def _latent_stats(found: Found, settings: Mapping[str, int]) -> Identity:
  del settings
  title = "latent statistics"
  channels = manifest.vote(_shapes(found), (("mean", 1), ("std", 1))) or 0
  shape = (1, channels, 1, 1)
  wanted = {"mean": shape, "std": shape}
  _check(title, manifest.compare(found.tensors, wanted, {}))
  return Identity(f"{title} of {channels} channels", tables.LATENT_STATS)


def _fid_stats(found: Found, settings: Mapping[str, int]) -> Identity:
  del settings
  title, wanted = "FID reference statistics", {}
  for suffix in ("", "_s"):
    if f"mu{suffix}" in found.tensors or f"sigma{suffix}" in found.tensors:
      places = ((f"mu{suffix}", 0), (f"sigma{suffix}", 0))
      width = manifest.vote(_shapes(found), places) or 0
      wanted[f"mu{suffix}"] = (width,)
      wanted[f"sigma{suffix}"] = (width, width)
  _check(title, manifest.compare(found.tensors, wanted, {}))
  return Identity(title, tables.FID_STATS)


_IDENTIFIERS: dict[str, Callable[[Found, Mapping[str, int]], Identity]] = {
  "lightning_dit": transformer.identify,
  "sit": transformer.identify,
  "vae": _autoencoder,
  "dinov2": _dinov2,
  "inception": _inception,
  "bank": _bank,
  "low_rank_bank": _low_rank_bank,
  "latent_stats": _latent_stats,
  "fid_stats": _fid_stats,
}

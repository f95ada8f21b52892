r"""Names of the autoencoders: two PyTorch layouts onto one Flax tree.

  LDM        encoder.down.0.block.1.conv2, decoder.up.4.attn.0.proj_out,
             encoder.mid.block_1: VA-VAE, MAR-VAE and others trained with the
             original code. up.N is numbered by resolution, 0 the
             image's.
  diffusers  encoder.down_blocks.0.resnets.1.conv2, decoder.up_blocks.0: its
             AutoencoderKL, as SD-VAE and the E2E-VAEs of REPA-E are published.
             up_blocks.N is numbered in the order of computation, and the
             projections of attention are linear layers under either of two
             generations of names.

The Flax tree counts everything from 0 and numbers levels by resolution:
encoder/down_0/block_1/conv_2, decoder/up_4/attn_0/out, encoder/mid/block_0.
"""

import re
from collections.abc import Iterable, Mapping

from gmem_jax.convert import manifest, rules
from gmem_jax.convert.rules import layer, norm, Rule
from gmem_jax.models.encoders import vae

_PART = r"(?P<part>encoder|decoder)"
# Generations of attention in diffusers: names of q, k, v and the output.
ATTENTION = ("to_q", "to_k", "to_v", r"to_out\.0")
OLD_ATTENTION = ("query", "key", "value", "proj_attn")


def _block(torch: str, flax: str, shortcut: str) -> tuple[Rule, ...]:
  return (
    *norm(rf"{torch}\.norm(?P<k>[12])", f"{flax}/norm_{{k}}"),
    *layer(rf"{torch}\.conv(?P<k>[12])", f"{flax}/conv_{{k}}", "conv"),
    *layer(rf"{torch}\.{shortcut}", f"{flax}/shortcut", "conv"),
  )


def _attention(
  torch: str, flax: str, norm_name: str, names: Iterable[str], transform: str
) -> tuple[Rule, ...]:
  layers = (
    layer(rf"{torch}\.{name}", f"{flax}/{ours}", transform)
    for name, ours in zip(names, ("q", "k", "v", "out"), strict=True)
  )
  return (*norm(rf"{torch}\.{norm_name}", f"{flax}/norm"), *sum(layers, ()))


def _ends(norm_out: str) -> tuple[Rule, ...]:
  """What surrounds the levels; both layouts name it almost alike."""
  return (
    *layer(rf"{_PART}\.conv_(?P<end>in|out)", "{part}/conv_{end}", "conv"),
    *norm(rf"{_PART}\.{norm_out}", "{part}/norm_out"),
    *layer(r"(?P<name>quant_conv|post_quant_conv)", "{name}", "conv"),
  )


def _ldm_attention(torch: str, flax: str) -> tuple[Rule, ...]:
  names = ("q", "k", "v", "proj_out")
  return _attention(torch, flax, "norm", names, "conv_1x1")


_LDM_LEVEL = rf"{_PART}\.(?P<way>down|up)\.(?P<i>\d+)"
_LEVEL = "{part}/{way}_{i}"

LDM: tuple[Rule, ...] = (
  *_ends("norm_out"),
  *_block(
    rf"{_LDM_LEVEL}\.block\.(?P<j>\d+)", f"{_LEVEL}/block_{{j}}", "nin_shortcut"
  ),
  *_ldm_attention(rf"{_LDM_LEVEL}\.attn\.(?P<j>\d+)", f"{_LEVEL}/attn_{{j}}"),
  *layer(
    rf"{_LDM_LEVEL}\.(?P<resample>downsample|upsample)\.conv",
    f"{_LEVEL}/{{resample}}",
    "conv",
  ),
  *_block(rf"{_PART}\.mid\.block_1", "{part}/mid/block_0", "nin_shortcut"),
  *_ldm_attention(rf"{_PART}\.mid\.attn_1", "{part}/mid/attn"),
  *_block(rf"{_PART}\.mid\.block_2", "{part}/mid/block_1", "nin_shortcut"),
  # What the training of VA-VAE leaves in its checkpoint: perceptual loss and
  # discriminator, the vision model it aligned to, the projection onto it.
  Rule(r"loss\..+", "", "drop"),
  Rule(r"foundation_model\..+", "", "drop"),
  Rule(r"linear_proj\..+", "", "drop"),
)


def _diffusers_attention(
  torch: str, flax: str, names: Iterable[str]
) -> tuple[Rule, ...]:
  return _attention(torch, flax, "group_norm", names, "linear")


def _diffusers_level(
  torch: str, flax: str, attention: Iterable[str]
) -> tuple[Rule, ...]:
  return (
    *_diffusers_attention(
      rf"{torch}\.attentions\.(?P<j>\d+)", f"{flax}/attn_{{j}}", attention
    ),
    *_block(
      rf"{torch}\.resnets\.(?P<j>\d+)", f"{flax}/block_{{j}}", "conv_shortcut"
    ),
    *layer(
      rf"{torch}\.(?P<way>down|up)samplers\.0\.conv",
      f"{flax}/{{way}}sample",
      "conv",
    ),
  )


def diffusers(
  levels: int = 4, attention: Iterable[str] = ATTENTION
) -> tuple[Rule, ...]:
  """The table of diffusers' AutoencoderKL.

  Args:
    levels: Number of resolutions, on which the numbers of up_blocks depend.
    attention: Names of the projections, ATTENTION or OLD_ATTENTION.
  """
  ups = (
    _diffusers_level(
      rf"decoder\.up_blocks\.{levels - 1 - i}", f"decoder/up_{i}", attention
    )
    for i in range(levels)
  )
  mid = rf"{_PART}\.mid_block"
  return (
    *_ends("conv_norm_out"),
    *_diffusers_level(
      r"encoder\.down_blocks\.(?P<i>\d+)", "encoder/down_{i}", attention
    ),
    *sum(ups, ()),
    *_block(
      rf"{mid}\.resnets\.(?P<j>\d+)", "{part}/mid/block_{j}", "conv_shortcut"
    ),
    *_diffusers_attention(
      rf"{mid}\.attentions\.0", "{part}/mid/attn", attention
    ),
  )


def table(names: Iterable[str]) -> tuple[Rule, ...]:
  """The table that fits the PyTorch names of a state dict.

  Raises:
    ValueError: If they are of no known autoencoder.
  """
  names = list(names)
  if any(n.startswith("encoder.down.") for n in names):
    return LDM
  if any(n.startswith("encoder.down_blocks.") for n in names):
    ups = (re.match(r"decoder\.up_blocks\.(\d+)\.", n) for n in names)
    levels = len({m[1] for m in ups if m})
    old = any(".attentions.0.query." in n for n in names)
    return diffusers(levels, OLD_ATTENTION if old else ATTENTION)
  raise ValueError(
    "not an autoencoder: there is neither encoder.down.* (VA-VAE, MAR-VAE) nor"
    f" encoder.down_blocks.* (diffusers) among its {len(names)} names"
  )


def network(
  shapes: Mapping[str, tuple[int, ...]], num_groups: int = 32
) -> vae.AutoencoderKL:
  """The network that a state dict is of, read off its names and shapes.

  Args:
    shapes: PyTorch name -> shape, without names of the training.
    num_groups: Groups of the group norms, which leave no trace in parameters.

  Raises:
    NamesError: A name that tells a width is missing or misshapen.
    ValueError: The names are of no known autoencoder.
  """
  if not any("quant_conv." in name for name in shapes):
    raise ValueError(
      "an autoencoder without quant_conv and post_quant_conv, as those of FLUX"
      " and Stable Diffusion 3 and the E2E-VAEs made of them: not one that"
      " gmem_jax has"
    )
  # Read in Flax paths, which both layouts share.
  names = table(shapes)
  paths = rules.plan(names, shapes)[0]

  def levels(pattern: str) -> tuple[int, ...]:
    matches = (re.match(pattern, path) for path in paths)
    return tuple(sorted({int(m[1]) for m in matches if m}))

  def width(layer: str, unit: int = 1) -> int:
    name = rules.torch_name(names, f"{layer}/kernel")
    ((size, *_),) = manifest.deciding("autoencoder", shapes, {name: 4})
    if size % unit:
      problem = f"{name}: {size} outputs, expected a multiple of {unit}"
      raise rules.NamesError("autoencoder", [problem])
    return size // unit

  ch = width("encoder/conv_in")
  return vae.AutoencoderKL(
    latent_channels=width("post_quant_conv"),
    ch=ch,
    ch_mult=tuple(
      width(f"encoder/down_{i}/block_0/conv_1", ch)
      for i in range(1 + max(levels(r"encoder/down_(\d+)/"), default=0))
    ),
    num_res_blocks=len(levels(r"encoder/down_0/block_(\d+)/")),
    encoder_attention=levels(r"encoder/down_(\d+)/attn_"),
    decoder_attention=levels(r"decoder/up_(\d+)/attn_"),
    num_groups=num_groups,
  )

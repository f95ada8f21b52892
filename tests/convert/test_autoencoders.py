"""Autoencoders in both layouts, and those that are none of ours."""

import dataclasses
import json

import numpy as np
import pytest

from gmem_jax.convert import (
  detect,
  identify,
  manifest,
  read,
  rules,
  torch_export,
)
from gmem_jax.convert.names import vae
from gmem_jax.files import weights
from gmem_jax.models.encoders import vae as vae_net
from tests.convert import helpers
from tests.convert.test_identify import hollow, MANIFESTS, source

# The published numbers of blocks and levels, narrow enough to be converted.
NARROW = dataclasses.replace(vae_net.VARIANTS["va_vae"], ch=8, num_groups=4)


def _shapes(network, table):
  side = network.downsampling
  return manifest.expected(network, [(1, side, side, 3)], table, {})


@pytest.mark.parametrize(
  "table",
  [
    vae.diffusers(4, vae.ATTENTION),
    vae.diffusers(4, vae.OLD_ATTENTION),
    # As REPA-E names it in its own code.
    vae.LDM,
  ],
  ids=["diffusers", "old_diffusers", "ldm"],
)
def test_sd_vae_under_all_its_names(table):
  variant = vae_net.VARIANTS["sd_vae"]
  found = detect.detect(source(hollow(_shapes(variant, table)), "safetensors"))
  identity = identify.identify(found, {})
  assert identity.title.startswith("SD-VAE")
  assert identity.model["latent_scale"] == 0.18215
  assert identity.parameters(found.tensors) == 83_653_863
  layout = any("diffusers' AutoencoderKL" in note for note in identity.notes)
  assert layout == (table != vae.LDM)
  assert any("an E2E-VAE" in note for note in identity.notes)


def test_va_vae_in_the_layout_of_diffusers():
  """As the E2E-VAEs are published, with attention in the lowest level."""
  table = vae.diffusers(5)
  shapes = _shapes(vae_net.VARIANTS["va_vae"], table)
  assert shapes["encoder.down_blocks.4.attentions.1.to_q.weight"] == (512, 512)
  assert shapes["decoder.up_blocks.0.attentions.2.to_out.0.bias"] == (512,)
  found = detect.detect(source(hollow(shapes), "safetensors"))
  identity = identify.identify(found, {})
  assert identity.title == "VA-VAE f16d32"
  assert any("E2E-VAE" in note for note in identity.notes)
  described = json.loads((MANIFESTS / "vavae_f16d32.json").read_text())
  total = sum(int(np.prod(k["shape"])) for k in described["keys"].values())
  assert identity.parameters(found.tensors) == total


def test_both_layouts_become_the_same_network(tmp_path):
  rng = np.random.default_rng(0)
  first = {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in _shapes(NARROW, vae.LDM).items()
  }
  params = rules.to_flax(vae.LDM, first)
  second = rules.to_torch(vae.diffusers(5), params)
  assert first.keys() & second.keys()
  assert first.keys() - second.keys()
  trees = []
  for name, tensors in (("ldm", first), ("diffusers", second)):
    path, out = tmp_path / f"{name}.pth", tmp_path / name
    torch_export.save(tensors, path)
    options = ["--format=safetensors", "--model", "num_groups=4"]
    code, _, err = helpers.run(path, out, *options)
    assert code == 0, err
    trees.append(weights.load_converted(out))
    assert helpers.run(out, tmp_path / "back.pth", "--to-torch")[0] == 0
    back = read.open_source(tmp_path / "back.pth").value
    helpers.assert_same(
      back, {n: np.ascontiguousarray(t) for n, t in tensors.items()}
    )
    (tmp_path / "back.pth").unlink()
  helpers.assert_same(trees[1][0], trees[0][0])
  helpers.assert_same(trees[0][0], params)
  assert trees[0][1]["model"] == trees[1][1]["model"]


@pytest.mark.parametrize("table", [vae.LDM, vae.diffusers(5)])
def test_an_autoencoder_without_quant_conv_is_named(table):
  shapes = _shapes(vae_net.VARIANTS["va_vae"], table)
  shapes = {n: s for n, s in shapes.items() if "quant_conv" not in n}
  found = detect.detect(source(hollow(shapes)))
  with pytest.raises(ValueError, match="those of FLUX and Stable Diffusion 3"):
    identify.identify(found, {})


_TENSOR = np.ones((1, 1, 8), np.float32)
RAE = {
  "encoder.embeddings.cls_token": _TENSOR,
  "encoder.embeddings.register_tokens": _TENSOR,
  "encoder.embeddings.patch_embeddings.projection.weight": _TENSOR,
  "decoder.decoder_pos_embed": _TENSOR,
  "decoder.trainable_cls_token": _TENSOR,
  "decoder.decoder_pred.weight": _TENSOR,
}


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (RAE, "a representation autoencoder .RAE, diffusers' AutoencoderRAE"),
    (
      {"latents_scale": _TENSOR, "latents_bias": _TENSOR},
      "statistics of an E2E-VAE .*'mean': latents_bias",
    ),
  ],
)
def test_others_are_named(value, message):
  with pytest.raises(read.WrongFile, match=message):
    detect.detect(source(value))

"""Tiny published files, converted from the command line, and their configs."""

import importlib.util
import os
import pathlib
from typing import Any

import numpy as np

from gmem_jax.config import resolve, sections
from gmem_jax.convert import torch_export
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from tests import recipe, tiny
from tests.convert import helpers

# Small enough for a test; the rest is the published config.
CHANGES = {
  "sampler.steps": 3,
  "sample.count": 6,
  "sample.batch_size": 3,
  "sample.device_batch": 4,
  "sample.grid": 4,
}


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
  """Fake devices, and a compilation cache that the processes share.

  XLA splits long sums on a CPU by its number of threads, which is at least the
  number of devices: NPROC gives every process the same.
  """
  return os.environ | {
    "NPROC": "4",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{os.environ['PYTHONPATH']}",
  }


def convert(source: pathlib.Path, out: pathlib.Path, *extra: str) -> None:
  """Runs the converter; tests/convert/test_cli.py does as a process."""
  status, _, error = helpers.run(source, out, *helpers.settings(source), *extra)
  assert status == 0, error


def make_tokenizer(source: pathlib.Path, channels: int, out: pathlib.Path):
  """The golden autoencoder with the latent channels of another network."""
  state_dict = dict(torch_file.load(source)["state_dict"])
  for name, axes in {
    "encoder.conv_out.weight": {0: 2},
    "encoder.conv_out.bias": {0: 2},
    "quant_conv.weight": {0: 2, 1: 2},
    "quant_conv.bias": {0: 2},
    "post_quant_conv.weight": {0: 1, 1: 1},
    "post_quant_conv.bias": {0: 1},
    "decoder.conv_in.weight": {1: 1},
  }.items():
    shape = list(state_dict[name].shape)
    for axis, factor in axes.items():
      shape[axis] = factor * channels
    state_dict[name] = recipe.recipe_tensor(0, name, shape)
  torch_export.save({"state_dict": state_dict}, out)


def make_features(out: pathlib.Path) -> None:
  """One block of DINOv2 ViT-B/14."""
  shapes = {
    name: shape
    for name, shape in recipe.manifest_shapes("dinov2_vitb14").items()
    if not name.startswith("blocks.") or name.startswith("blocks.0.")
  }
  torch_export.save(recipe.recipe_state_dict(0, shapes), out)


def convert_all(golden: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """Converts all that the configs name; returns the directory."""
  convert(golden / "lightningdit_b_train.pth", out / "network")
  convert(golden / "sit_tiny.pth", out / "sit")
  convert(golden / "bank_full.pth", out / "bank")
  convert(golden / "dinov2_tiny.pth", out / "narrow_dinov2")
  channels = weights.read_metadata(out / "network")["model"]["channels"]
  name = "vavae_tiny.pt"
  make_tokenizer(golden / name, channels, out / name)
  convert(out / name, out / "tokenizer", *helpers.settings(golden / name))
  random = np.random.RandomState(0)
  stats = {
    "mean": 0.1 * random.standard_normal((1, channels, 1, 1)),
    "std": np.exp(0.1 * random.standard_normal((1, channels, 1, 1))),
  }
  stats = {key: value.astype(np.float32) for key, value in stats.items()}
  torch_export.save(stats, out / "latents_stats.pt")
  convert(out / "latents_stats.pt", out / "stats")
  make_features(out / "dinov2.pth")
  convert(out / "dinov2.pth", out / "dinov2")
  return out


def changes(
  converted: pathlib.Path, network: str = "network", **extra: Any
) -> dict[str, Any]:
  """Dotted key -> value that makes a published config a tiny one."""
  found = CHANGES | {
    "sample.network": str(converted / network),
    "encoder.tokenizer_weights": str(converted / "tokenizer"),
    "encoder.features_weights": str(converted / "dinov2"),
  }
  if network == "network":
    found["sample.bank"] = str(converted / "bank")
    found["encoder.latent_stats"] = str(converted / "stats")
  model = weights.read_metadata(converted / network)["model"]
  for key in (
    "width", "depth", "heads", "patch", "projector_depth", "projector_width",
  ):  # fmt: skip
    found[f"model.{key}"] = model[key]
  return found | {k.replace("__", "."): v for k, v in extra.items()}


def make_config(
  name: str, values: dict[str, Any], option: str = ""
) -> sections.Config:
  """A published config with changes."""
  spec = importlib.util.spec_from_file_location(
    name, tiny.ROOT / "configs" / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  tree = module.get_config(*([option] if option else []))
  tree.update_from_flattened_dict(values)
  return resolve.resolve(tree)

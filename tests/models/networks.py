"""Networks, weights and numbers of the golden files."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.convert import rules, torch_export
from gmem_jax.convert.names import dit
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models import dit as dit_lib, transformer

# Golden file: its weights, and the path to the state dict inside.
WEIGHTS = {
  "lightningdit_a": ("lightningdit_a.pth",),
  "lightningdit_b_ema": ("lightningdit_b_train.pth", "ema"),
  "lightningdit_b_model": ("lightningdit_b_train.pth", "model"),
  "lightningdit_c": ("lightningdit_c.pth",),
  "lightningdit_d": ("lightningdit_d.pth",),
  "sit_tiny": ("sit_tiny.pth", "network"),
}
# Of the maximum of each array. Reached: 1e-6 in the small networks, 3e-6 in
# the full-size ones, which is what float32 rounding alone makes of them.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Golden:
  """A golden file with its network.

  Attributes:
    name: the file's.
    data: the arrays.
    network: built from the file's configuration.
    params: converted weights.
    state_dict: the weights as they were.
  """

  name: str
  data: dict[str, np.ndarray]
  network: transformer.FlowTransformer
  params: dict[str, Any]
  state_dict: dict[str, np.ndarray]

  def inputs(self) -> tuple[jax.Array, ...]:
    return inputs(self.data)


def from_config(config: dict[str, Any]) -> transformer.FlowTransformer:
  """The network that a golden file's configuration describes."""
  common: dict[str, Any] = {
    "channels": config["in_channels"],
    "patch": config["patch_size"],
    "width": config["hidden_size"],
    "depth": config["depth"],
    "heads": config["num_heads"],
    "snippet_dim": config["condition_dim"],
    "projector_depth": config["encoder_depth"],
    "projector_width": config["projector_dim"],
  }
  if "z_dims" in config:
    assert not config["qk_norm"]
    assert config["mlp_ratio"] == 4
    dims = tuple(config["z_dims"])
    return dit_lib.SiT(token_dim=dims if dims[1:] else dims[0], **common)
  return dit_lib.LightningDiT(
    token_dim=config["z_dim"],
    snippet_dropout=config["dropout_prob"],
    swiglu=config["use_swiglu"],
    rope=config["use_rope"],
    rms_norm=config["use_rmsnorm"],
    qk_norm=config["use_qknorm"],
    shift=not config["wo_shift"],
    learn_sigma=config["learn_sigma"],
    **common,
  )


def load_state_dict(
  golden_dir: pathlib.Path, file: str, *path: str
) -> dict[str, np.ndarray]:
  value = torch_file.load(golden_dir / file)
  for key in path:
    value = value[key]
  return {name.removeprefix("module."): array for name, array in value.items()}


def to_flax(
  network: transformer.FlowTransformer, state_dict: dict[str, np.ndarray]
) -> dict[str, Any]:
  params = rules.to_flax(dit.table(network), state_dict)
  return jax.tree.map(jnp.asarray, params)


def load(golden_dir: pathlib.Path, name: str) -> Golden:
  with np.load(golden_dir / f"{name}.npz", allow_pickle=False) as file:
    data = dict(file)
  network = from_config(json.loads(str(data["config"])))
  state_dict = load_state_dict(golden_dir, *WEIGHTS[name])
  params = to_flax(network, state_dict)
  return Golden(name, data, network, params, state_dict)


def add_projector(golden_dir: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the golden SiT with one projector more, and its numbers.

  The new projector differs from the first in its last layer, by a linear map of
  what that gives: so its numbers follow from the published ones.
  """
  with np.load(golden_dir / "sit_tiny.npz", allow_pickle=False) as file:
    data = dict(file)
  release = torch_file.load(golden_dir / "sit_tiny.pth")
  state_dict, config = {**release["network"]}, json.loads(str(data["config"]))
  count, width = len(config["z_dims"]), config["z_dims"][0]
  random = np.random.default_rng(count)
  mix = random.standard_normal((width // 2 + count, width)) / width**0.5
  for layer in (0, 2, 4):
    for leaf in ("weight", "bias"):
      first = state_dict[f"projectors.0.{layer}.{leaf}"]
      added = (mix @ first).astype(np.float32) if layer == 4 else first
      state_dict[f"projectors.{count}.{layer}.{leaf}"] = added
  data[f"z{count}"] = (data["z0"] @ mix.T).astype(np.float32)
  config["z_dims"].append(len(mix))
  data["config"] = np.array(json.dumps(config))
  np.savez(out / "sit_tiny.npz", **data)
  torch_export.save({**release, "network": state_dict}, out / "sit_tiny.pth")


def inputs(data: dict[str, np.ndarray]) -> tuple[jax.Array, ...]:
  """x, t and the snippet."""
  return tuple(jnp.asarray(a) for a in (nhwc(data["x"]), data["t"], data["c"]))


def nhwc(x: np.ndarray) -> np.ndarray:
  return np.moveaxis(x, 1, -1)


def nchw(x: Any) -> np.ndarray:
  return np.moveaxis(np.asarray(x), -1, 1)


def grid(network: transformer.FlowTransformer, x: jax.Array) -> int:
  return x.shape[1] // network.patch


def every(name: str, prefix: str) -> int | None:
  """K of a key '{prefix}_every{K}', None if it is another key."""
  match = re.fullmatch(rf"{prefix}_every(\d+)", name)
  return int(match[1]) if match else None


def assert_close(
  actual: Any, expected: np.ndarray, name: str, tolerance: float = TOLERANCE
) -> None:
  actual = np.asarray(actual)
  assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
  error = np.abs(actual.astype(np.float64) - expected).max()
  error /= np.abs(expected).max()
  print(f"{name}: {error:.1e} of the maximum")
  assert error <= tolerance, f"{name}: {error:.1e} > {tolerance:.0e}"

"""Weights that are not stored: drawn from a seed, a key and a shape.

The golden files called `*_recipe_*`, and `inception.npz`, hold inputs and
outputs of networks whose weights anyone can draw again: every tensor depends on
an integer seed, on its PyTorch name and on its PyTorch shape alone. The draw
uses numpy's `RandomState`, whose stream is frozen, so the weights are the same
on every machine. golden/README.md defines the rules.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MANIFESTS = (
  pathlib.Path(__file__).resolve().parents[1] / "third_party" / "manifests"
)


def recipe_tensor(
  seed: int, key: str, shape: Sequence[int], gain: float = 1.0
) -> np.ndarray:
  """The tensor called `key`, in PyTorch's layout (Linear weight [out, in])."""
  shape = tuple(int(size) for size in shape)
  if key.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
  random = np.random.RandomState(int.from_bytes(digest[:4], "big"))
  normal = random.standard_normal(math.prod(shape)).reshape(shape)
  if key.endswith("running_var"):
    value = np.exp(0.2 * normal)
  elif "pos_embed" in key or "token" in key:
    value = 0.3 * normal
  elif len(shape) >= 2:
    value = gain * normal / math.sqrt(math.prod(shape[1:]))
  elif key.endswith(("weight", "gamma")):
    value = 1 + 0.1 * normal
  else:
    value = 0.05 * normal
  return value.astype(np.float32)


def recipe_state_dict(
  seed: int,
  shapes: Mapping[str, Sequence[int]],
  gain: float = 1.0,
  skip: Callable[[str], bool] = lambda key: False,
) -> dict[str, np.ndarray]:
  """A whole state dict.

  Args:
    seed: the file's `recipe_seed`.
    shapes: PyTorch shapes by name, from `manifest_shapes` or `listed_shapes`.
    gain: factor of the matrices; the file's `recipe_gain` where it has one.
    skip: true for names that the recipe leaves out, because the network keeps
      its own table there (LightningDiT and SiT: `pos_embed`, `feat_rope.*`).

  Returns:
    Arrays by PyTorch name, in the order of `shapes`.
  """
  return {
    key: recipe_tensor(seed, key, shape, gain)
    for key, shape in shapes.items()
    if not skip(key)
  }


def manifest_shapes(name: str) -> dict[str, tuple[int, ...]]:
  """Shapes of a published checkpoint: third_party/manifests/{name}.json."""
  keys = json.loads((MANIFESTS / f"{name}.json").read_text())["keys"]
  return {key: tuple(entry["shape"]) for key, entry in keys.items()}


def listed_shapes(keys: np.ndarray) -> dict[str, tuple[int, ...]]:
  """Shapes of a golden file's `keys` array, a JSON text {name: shape}."""
  return {key: tuple(shape) for key, shape in json.loads(str(keys)).items()}

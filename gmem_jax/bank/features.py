"""Features in files: to become rows of a bank, or to be looked up in one.

Shapes: n features, d feature width.
"""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from gmem_jax.bank import bank as bank_lib
from gmem_jax.files import numpy_files, safetensors_file, shown

# Names of features in files that hold several arrays.
FEATURES = ("features", "rows", "cls_tokens")


def read(path: str, width: int) -> Float32[np.ndarray, "n d"]:
  """Reads features that are to become rows, or to be looked up.

  Args:
    path: .npy; or .npz or .safetensors with one array, or one of `FEATURES`.
    width: Width that the features must have.

  Raises:
    ValueError: If there are none, or one is zero or not finite.
  """
  try:
    array = _read_array(pathlib.Path(path))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: cannot be read as features: {error}") from None
  if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim not in (1, 2):
    raise ValueError(
      f"{path}: {array.dtype} of shape {array.shape} is no table of features"
    )
  rows = np.atleast_2d(array).astype(np.float32)
  bank_lib.check_features(rows, path)
  if rows.shape[1] != width:
    raise ValueError(
      f"{path}: features of width {rows.shape[1]} do not fit a bank of width"
      f" {width}"
    )
  return rows


def _read_array(path: pathlib.Path) -> np.ndarray:
  if path.suffix == ".npy":
    return numpy_files.read_npy(path)
  if path.suffix == ".npz":
    with numpy_files.opened(path) as npz:
      return npz.read(_features_name(npz.names))
  if path.suffix == ".safetensors":
    tensors = safetensors_file.SafetensorsFile(path).tensors
    return tensors[_features_name(list(tensors))]
  raise ValueError("features are read from .npy, .npz and .safetensors")


def _features_name(names: Sequence[str]) -> str:
  known = [name for name in FEATURES if name in names]
  if known or len(names) == 1:
    return (known or list(names))[0]
  held = shown.value(sorted(names))
  raise ValueError(f"it holds {held}, and none of {FEATURES}")

"""The frozen networks whose features are compared.

Shapes: b images, H W ch pixels, f feature width.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.data import load_encoders
from gmem_jax.files import weights
from gmem_jax.models.encoders import dinov2, inception, protocols

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_HELP = {
  "inception": "FID, sFID, Inception Score, precision and recall need the"
  " Inception network of 2015. Download https://github.com/mseitzer/pytorch-fid"
  f"/releases/download/fid_weights/{INCEPTION_FILE} and convert it: python -m"
  f" gmem_jax.convert {INCEPTION_FILE} weights/inception",
  "dinov2": "The Fréchet distance in DINOv2 features needs the network."
  " Download dinov2_vitb14_pretrain.pth of facebookresearch/dinov2 and convert"
  " it: python -m gmem_jax.convert dinov2_vitb14_pretrain.pth weights/dinov2",
}


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """A network that describes images.

  Attributes:
    name: "inception", "dinov2" or "classifier".
    info: What identifies it, weights and preprocessing: features under another
      `info` are not comparable. JSON.
    widths: Width of each feature.
    apply: (params, uint8 [b H W ch]) -> feature -> [b f]; pure.
  """

  name: str
  info: dict[str, Any]
  widths: dict[str, int]
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


def load(
  names: Collection[str],
  options: dict[str, tuple[str, str]],
  preprocessing: str,
) -> list[FeatureNetwork]:
  """Loads those of "inception" and "dinov2" that are named.

  Args:
    names: Others are ignored.
    options: Network -> (the flag or config key that names its converted
      weights, its value).
    preprocessing: For Inception: one of `inception.PREPROCESSING`, or
      "published", which is that of pytorch-fid.

  Raises:
    ValueError: If weights are missing, or of another network; says where to
      get them.
  """
  networks = []
  if "inception" in names:
    params, metadata = _read("inception", *options["inception"])
    kind = "pytorch_fid" if preprocessing == "published" else preprocessing
    sha256 = metadata["source"]["sha256"]
    networks.append(inception_network(params, kind, sha256))
  if "dinov2" in names:
    networks.append(_dinov2_network(*_read("dinov2", *options["dinov2"])))
  return networks


def inception_network(
  params: Any, preprocessing: str, sha256: str
) -> FeatureNetwork:
  """The network of FID: "pool" [b 2048], "spatial" [b 2023], "logits" [b 1008].

  `preprocessing` is one of `inception.PREPROCESSING`.
  """
  model = inception.InceptionV3(preprocessing)

  def apply(params, pixels):
    outputs = model.apply({"params": params}, _to_rgb(pixels))
    assert isinstance(outputs, inception.Activations)
    return {
      "pool": outputs.features,
      "spatial": outputs.spatial.reshape(len(pixels), -1),
      # Without the bias, as the ADM suite's Inception Score takes them.
      "logits": outputs.logits - params["fc"]["bias"][None],
    }

  spatial = inception.SPATIAL_CHANNELS * 17 * 17
  return FeatureNetwork(
    "inception",
    {"name": "inception", "sha256": sha256, "preprocessing": preprocessing},
    {"pool": 2048, "spatial": spatial, "logits": 1008},
    params,
    apply,
  )


def _dinov2_network(params: Any, metadata: dict[str, Any]) -> FeatureNetwork:
  """The class token of DINOv2, as in the memory bank."""
  network = dinov2.DINOv2(**load_encoders.hashable(metadata["model"]))

  def apply(params, pixels):
    pixels = protocols.to_float(_to_rgb(pixels))
    outputs: Any = network.apply({"params": params}, pixels)
    return {"dinov2": outputs[0]}

  sha256 = metadata["source"]["sha256"]
  return FeatureNetwork(
    "dinov2",
    {"name": "dinov2", "sha256": sha256, "preprocessing": "gmem"},
    {"dinov2": network.width},
    params,
    apply,
  )


def train_classifier(
  pixels: np.ndarray, labels: np.ndarray, seed: int, source: str
) -> FeatureNetwork:
  """Trains a small classifier on real images; its hidden layer is a feature.

  For images so small that the Inception network would see nothing. The feature
  is "classifier" [b 64]; `source` names the images.

  Raises:
    ModuleNotFoundError: If scikit-learn is not installed.
  """
  from sklearn import exceptions, neural_network

  model = neural_network.MLPClassifier((64,), max_iter=50, random_state=seed)
  shape = pixels.shape[1:]
  flat = pixels.reshape(len(pixels), -1).astype(np.float64) / 255
  with warnings.catch_warnings():
    # Fifty passes give good features; the loss need not converge.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    model.fit(flat, labels)
  params = {"kernel": model.coefs_[0], "bias": model.intercepts_[0]}

  def apply(params, pixels):
    if pixels.shape[1:] != shape:
      given, own = (" x ".join(map(str, s)) for s in (pixels.shape[1:], shape))
      raise ValueError(
        f"images of {given} pixels, and the classifier of 'frechet' was trained"
        f" on {source}, of {own}"
      )
    flat = pixels.reshape(len(pixels), -1).astype(jnp.float32) / 255
    highest = jax.lax.Precision.HIGHEST
    hidden = jnp.matmul(flat, params["kernel"], precision=highest)
    return {"classifier": jax.nn.relu(hidden + params["bias"][None])}

  return FeatureNetwork(
    "classifier",
    {"name": "classifier", "images": source, "seed": seed},
    {"classifier": 64},
    jax.tree.map(lambda x: np.asarray(x, np.float32), params),
    apply,
  )


def _to_rgb(pixels: jax.Array) -> jax.Array:
  """Grey images as RGB."""
  return jnp.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _read(kind: str, option: str, path: str) -> tuple[Any, dict[str, Any]]:
  """(parameters, metadata) of converted weights."""
  if not path:
    raise ValueError(f"{option} is empty. {_HELP[kind]}")
  try:
    return weights.load_kind(path, (kind,))
  except (ValueError, OSError) as error:
    raise ValueError(f"{option}={path!r}: {error}. {_HELP[kind]}") from None

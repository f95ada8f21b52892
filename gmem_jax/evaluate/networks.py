"""The frozen networks whose features are compared.

Shapes: b images, H W ch pixels, f feature width.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.files import weights
from gmem_jax.models.encoders import dinov2, inception, protocols

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_HELP = (
  "FID, sFID, Inception Score, precision and recall need the Inception network"
  " of 2015. Download https://github.com/mseitzer/pytorch-fid/releases/download"
  f"/fid_weights/{INCEPTION_FILE} and convert it: python -m gmem_jax.convert"
  f" {INCEPTION_FILE} weights/inception"
)
_DINOV2_HELP = (
  "The Fréchet distance in DINOv2 features needs the network. Download"
  " dinov2_vitb14_pretrain.pth of facebookresearch/dinov2 and convert it:"
  " python -m gmem_jax.convert dinov2_vitb14_pretrain.pth weights/dinov2"
)


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that describes images.

  Attributes:
    name: "inception", "dinov2" or "classifier".
    info: What identifies it, weights and preprocessing: features under another
      `info` are not comparable. JSON.
    widths: Width of each feature.
    params: Its parameters.
    apply: (params, uint8 [b H W ch]) -> feature -> [b f]; pure.
  """

  name: str
  info: dict[str, Any]
  widths: dict[str, int]
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


def load_inception(key: str, path: str, preprocessing: str) -> Network:
  """The network of FID.

  Args:
    key: The flag or config key that names its weights.
    path: Its converted weights.
    preprocessing: One of `inception.PREPROCESSING`.

  Returns:
    The network, with the features "pool" [b 2048], "spatial" [b 2023] and
    "logits" [b 1008], these without the bias, as the Inception Score of the
    ADM suite takes them.

  Raises:
    ValueError: If there are no such weights; says where to get them.
  """
  params, metadata = _read(key, path, "inception", _INCEPTION_HELP)
  return inception_network(params, preprocessing, metadata["source"]["sha256"])


def inception_network(params: Any, preprocessing: str, sha256: str) -> Network:
  """The network of FID from its parameters; see `load_inception`.

  Args:
    params: Parameters of `inception.InceptionV3`.
    preprocessing: One of `inception.PREPROCESSING`.
    sha256: Identifies the parameters.
  """
  model = inception.InceptionV3(preprocessing)

  def apply(params, pixels):
    found = model.apply({"params": params}, _to_rgb(pixels))
    assert isinstance(found, inception.Activations)
    return {
      "pool": found.features,
      "spatial": found.spatial.reshape(len(pixels), -1),
      "logits": found.logits - params["fc"]["bias"][None],
    }

  spatial = inception.SPATIAL_CHANNELS * 17 * 17
  return Network(
    "inception",
    {"name": "inception", "sha256": sha256, "preprocessing": preprocessing},
    {"pool": 2048, "spatial": spatial, "logits": 1008},
    params,
    apply,
  )


def load_dinov2(key: str, path: str) -> Network:
  """DINOv2 as GMem feeds it: the network that made the memory bank.

  Args:
    key: The flag or config key that names its weights.
    path: Its converted weights.

  Returns:
    The network, with the feature "dinov2": the class token.

  Raises:
    ValueError: If there are no such weights; says where to get them.
  """
  params, metadata = _read(key, path, "dinov2", _DINOV2_HELP)
  model = metadata["model"].items()
  network = dinov2.DINOv2(**{k: v for k, v in model if v is not None})

  def apply(params, pixels):
    pixels = protocols.to_float(_to_rgb(pixels))
    found: Any = network.apply({"params": params}, pixels)
    return {"dinov2": found[0]}

  sha256 = metadata["source"]["sha256"]
  return Network(
    "dinov2",
    {"name": "dinov2", "sha256": sha256, "preprocessing": "gmem"},
    {"dinov2": network.width},
    params,
    apply,
  )


def train_classifier(
  pixels: np.ndarray, labels: np.ndarray, seed: int, source: str
) -> Network:
  """Trains a small classifier on real images; its hidden layer is a feature.

  For images so small that the Inception network would see nothing.

  Args:
    pixels: uint8 [n H W ch].
    labels: [n].
    seed: Seed of the classifier.
    source: Names the images.

  Returns:
    The network, with the feature "classifier" [b 64].

  Raises:
    ModuleNotFoundError: If scikit-learn is not installed.
  """
  from sklearn import exceptions, neural_network

  model = neural_network.MLPClassifier((64,), max_iter=50, random_state=seed)
  flat = pixels.reshape(len(pixels), -1).astype(np.float64) / 255
  with warnings.catch_warnings():
    # Its features are wanted, not the last bit of its loss.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    model.fit(flat, labels)
  params = {"kernel": model.coefs_[0], "bias": model.intercepts_[0]}

  def apply(params, pixels):
    flat = pixels.reshape(len(pixels), -1).astype(jnp.float32) / 255
    highest = jax.lax.Precision.HIGHEST
    hidden = jnp.matmul(flat, params["kernel"], precision=highest)
    return {"classifier": jax.nn.relu(hidden + params["bias"][None])}

  return Network(
    "classifier",
    {"name": "classifier", "images": source, "seed": seed},
    {"classifier": 64},
    jax.tree.map(lambda x: np.asarray(x, np.float32), params),
    apply,
  )


def _to_rgb(pixels: jax.Array) -> jax.Array:
  """Grey images as RGB."""
  return jnp.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _read(
  key: str, path: str, kind: str, help_text: str
) -> tuple[Any, dict[str, Any]]:
  if not path:
    raise ValueError(f"{key} is empty. {help_text}")
  try:
    found = weights.read_metadata(path)["kind"]
    if found != kind:
      raise ValueError(f"it is a {found}, not a {kind}")
    return weights.load_converted(path)
  except (ValueError, OSError) as error:
    raise ValueError(f"{key}={path!r}: {error}. {help_text}") from None

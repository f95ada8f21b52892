"""A few photographs, and frozen networks of the published layout, but small.

The photographs are crops of those that scikit-learn brings along. The networks
have the layout of VA-VAE and DINOv2 at a fraction of their size, with RANDOM
weights: good to take every step of the way from images to samples.
"""

import importlib.resources
import io
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmem_jax import rngs
from gmem_jax.config import recipe, resolve, sections
from gmem_jax.data import decode_image
from gmem_jax.files import weights
from gmem_jax.models.encoders import dinov2, vae

PHOTOS = ("china.jpg", "flower.jpg")
# Each photograph is cut at its corners, to this share of its short side.
SHARE = 0.75

VAE = vae.AutoencoderKL(
  latent_channels=4,
  ch=16,
  ch_mult=(1, 1, 2, 2, 4),
  num_res_blocks=1,
  encoder_attention=(4,),
  decoder_attention=(4,),
  num_groups=16,
)
DINOV2 = dinov2.DINOv2(width=64, depth=2, heads=2)

# What makes the recipe of GMem-B one for these networks.
CHANGES = {
  "data.shard_size": 8,
  "data.device_batch": 4,
  "encoder.latent_stats": "",
  "model.width": 64,
  "model.depth": 2,
  "model.heads": 2,
  "model.projector_depth": 2,
  "model.projector_width": 128,
  "model.dtype": "float32",
  "retrieval.neighbours": 4,
  "train.steps": 40,
  "train.batch_size": 8,
  "train.ema_decay": 0.9,
  "train.log_every": 10,
  "checkpoint.every": 20,
  "sampler.steps": 9,
  "sample.count": 8,
  "sample.batch_size": 8,
  "sample.device_batch": 8,
  "sample.grid": 8,
  "sample.per_row": 4,
  "eval.count": 8,
  "eval.grid": 8,
  "eval.device_batch": 8,
  "eval.scores": (),
  "eval.reference": "",
}


def make_config(changes: dict[str, object]) -> sections.Config:
  """The recipe, shrunk; `changes` are of dotted keys."""
  tree = recipe.load("b_in1k:train,folder")
  tree.update_from_flattened_dict(CHANGES | changes)
  return resolve.resolve(tree)


def write_photos(directory: pathlib.Path) -> int:
  """Writes the crops, one folder a photograph, and counts them."""
  for file in PHOTOS:
    package = importlib.resources.files("sklearn.datasets.images")
    photo = decode_image.read(io.BytesIO((package / file).read_bytes())).pixels
    folder = directory / pathlib.Path(file).stem
    folder.mkdir(parents=True)
    height, width = photo.shape[:2]
    side = int(SHARE * min(width, height))
    corners = [(y, x) for y in (0, height - side) for x in (0, width - side)]
    for i, (y, x) in enumerate(corners):
      crop = Image.fromarray(photo[y : y + side, x : x + side])
      crop.save(folder / f"{i}.jpg", quality=95)
  return 4 * len(PHOTOS)


def write_networks(directory: pathlib.Path, seed: int) -> None:
  """Writes `vae` and `dinov2` with random weights, as the converter would.

  Raises:
    FileExistsError: If the directory has them already.
  """
  images, key = jnp.zeros((1, 256, 256, 3)), rngs.key(seed, "init")
  # Of DINOv2's own training: nothing reads it, but PyTorch's class has it.
  mask = {"mask_token": np.zeros((1, DINOV2.width), np.float32)}
  for name, network, buffers in (
    ("vae", VAE, {}),
    ("dinov2", DINOV2, {"buffers": mask}),
  ):
    shapes = jax.eval_shape(network.init, key, images)["params"]
    # numpy's, so that the weights are the same on every device.
    random = np.random.default_rng(seed)
    params = jax.tree.map_with_path(
      lambda path, leaf, random=random: _draw(random, path[-1].key, leaf.shape),
      shapes,
    )
    weights.save_converted(
      directory / name,
      {"params": params, **buffers},
      {
        "kind": name,
        "title": f"random weights in the layout of {name}",
        "model": _settings(network),
        "weights": "random",
        "step": 0,
        "source": {"file": "", "sha256": f"random-{seed}"},
      },
    )


def _draw(
  random: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Values of a size that keeps activations in range."""
  if name in ("bias", "scale"):
    return np.full(shape, float(name == "scale"), np.float32)
  # Embeddings and tokens (pos_embed, cls_token) are small; kernels keep the
  # variance of their inputs.
  width = 0.02 if "_" in name else math.prod(shape[:-1]) ** -0.5
  return (width * random.standard_normal(shape)).astype(np.float32)


def _settings(network: nn.Module) -> dict[str, object]:
  """The fields of a network that its weights decide."""
  # `parent` and `name` are Flax's, `dtype` is the user's choice.
  skipped = ("parent", "name", "dtype")
  keys = [key for key in network.__dataclass_fields__ if key not in skipped]
  return {key: getattr(network, key) for key in keys}

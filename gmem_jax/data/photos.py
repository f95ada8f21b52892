r"""A small folder of photographs, and stand-ins for the frozen networks.

  python -m gmem_jax.data.photos data/photos weights/random

The photographs are crops of those that scikit-learn and scikit-image bring
along. The networks have the layout of VA-VAE and DINOv2 at a fraction of their
size, with RANDOM weights: good to see every step of the way from images to
samples on a laptop without a download, useless for anything else.
"""

import argparse
import importlib.resources
import importlib.util
import io
import math
import pathlib
import sys
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmem_jax import rngs
from gmem_jax.data import decode_image
from gmem_jax.files import errors, weights
from gmem_jax.models.encoders import dinov2, vae

# Package -> files in it.
PHOTOS = {
  "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
  "skimage.data": (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg",
    "motorcycle_left.png", "rocket.jpg",
  ),
}  # fmt: skip
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


def write_photos(directory: pathlib.Path) -> int:
  """Writes the crops, one folder a photograph, and counts them.

  Raises:
    ModuleNotFoundError: If neither package is installed.
  """
  count = 0
  for package, files in PHOTOS.items():
    if importlib.util.find_spec(package.split(".")[0]) is None:
      continue
    for file in files:
      contents = (importlib.resources.files(package) / file).read_bytes()
      photo = decode_image.read(io.BytesIO(contents)).pixels
      folder = directory / pathlib.Path(file).stem
      folder.mkdir(parents=True, exist_ok=True)
      height, width = photo.shape[:2]
      side = int(SHARE * min(width, height))
      corners = [(y, x) for y in (0, height - side) for x in (0, width - side)]
      for i, (y, x) in enumerate(corners):
        crop = Image.fromarray(photo[y : y + side, x : x + side])
        crop.save(folder / f"{i}.jpg", quality=95)
      count += len(corners)
  if not count:
    raise ModuleNotFoundError(
      "the photographs are those of scikit-learn and scikit-image:"
      " pip install 'gmem_jax[demo]'"
    )
  return count


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


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns its exit status."""
  parser = errors.Parser(
    prog="python -m gmem_jax.data.photos",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  def path(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser()

  parser.add_argument("photos", type=path, help="the folder to make")
  parser.add_argument("weights", type=path, help="where the networks go")
  parser.add_argument(
    "--seed", type=errors.seed, default=0, help="of the weights"
  )
  given = parser.parse_args(argv)
  return errors.run(lambda: _write(given.photos, given.weights, given.seed))


def _write(photos: pathlib.Path, directory: pathlib.Path, seed: int) -> None:
  """Writes the photographs and the networks, and says so."""
  count = write_photos(photos)
  write_networks(directory, seed)
  print(f"{count} photographs in {photos}; RANDOM, untrained networks in")
  print(f"{directory}: samples made with them are no pictures.")
  print(
    "Next: python -m gmem_jax.main --config=configs/photos.py --mode=prepare"
  )


if __name__ == "__main__":
  # Networks are only asked for their shapes: no accelerator is needed.
  jax.config.update("jax_platforms", "cpu")
  sys.exit(main())

"""Valid files, tiny, of every kind that the package reads."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import PIL.Image
import safetensors.numpy

from gmem_jax.bank import (
  bank as bank_lib,
  files as bank_files,
  images as images_lib,
  storage,
)
from gmem_jax.convert import torch_export
from gmem_jax.files import weights
from gmem_jax.models.encoders import protocols
from gmem_jax.train import checkpoint, setup
from tests import tiny
from tests.data import prepared, test_upstream
from tests.files.torch_reader import test_torch_legacy

SIZE, WIDTH = 12, 8
_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def _random(*shape: int) -> np.ndarray:
  random = np.random.default_rng(0)
  return random.standard_normal(shape).astype(np.float32)


def _stored(form: Literal["float32", "int8", "rank"]) -> bank_files.Stored:
  rows = _random(SIZE, WIDTH)
  bank = (
    storage.low_rank(rows, 3) if form == "rank" else storage.encode(rows, form)
  )
  info = bank_lib.make_info(bank, encoder="e(1)", source="s", crop="c")
  names = tuple(f"{i}.png" for i in range(SIZE))
  return bank_files.Stored(bank, info, images_lib.SourceImages("/x", names))


def _torch(root: pathlib.Path) -> None:
  norms = {"mean": _random(4), "std": np.abs(_random(4)) + 1}
  low_rank = {"C": _random(SIZE, 3), "M": _random(WIDTH, 3), "S": _random(3)}
  for name, value in {
    "bank": _random(SIZE, WIDTH),
    "stats": norms,
    "low_rank": low_rank | {"mean": _random(WIDTH), "latent_dim": 3},
    "bfloat16": _random(SIZE, WIDTH).astype(ml_dtypes.bfloat16),
    "float8": {"a": _random(2).astype(ml_dtypes.float8_e4m3fn)},
    "trainer": {
      "ema": norms, "model": norms, "config": {"a": [1, (2.5, None)]}
    },
    "lightning": {"state_dict": norms, "global_step": 3},
  }.items():  # fmt: skip
    torch_export.save(value, root / f"{name}.pth")
  test_torch_legacy.write(root / "old.pth", test_torch_legacy.VALUE)
  (root / "old.zip").unlink()
  for name in ("dinov2_tiny.pth", "lightningdit_d.pth"):
    (root / name).write_bytes((_GOLDEN / name).read_bytes())


def _safetensors(root: pathlib.Path) -> None:
  features = _random(3, WIDTH)
  safetensors.numpy.save_file({"features": features}, root / "f.safetensors")
  narrow = features.astype(ml_dtypes.float8_e4m3fn)
  entry = {"dtype": "F8_E4M3", "shape": narrow.shape, "data_offsets": [0, 24]}
  text = json.dumps({"rows": entry}).encode()
  (root / "float8.safetensors").write_bytes(
    len(text).to_bytes(8, "little") + text + narrow.tobytes()
  )
  test_upstream.make_shard(root / "latents_rank00_shard000.safetensors")
  for form in ("float32", "int8"):
    with tempfile.TemporaryDirectory() as folder:
      bank_files.write(f"{folder}/bank", _stored(form))
      tree, metadata = weights.load_converted(f"{folder}/bank", "bank")
    path = root / f"{form}.safetensors"
    weights.save_converted(path, {"bank": tree}, metadata, "safetensors")


def _numpy(root: pathlib.Path) -> None:
  matrix = np.eye(16) * 1.1
  arrays = {"mu": np.arange(16.0), "sigma": matrix}
  np.savez(root / "statistics.npz", **arrays)
  np.savez_compressed(root / "packed.npz", **arrays)
  meta = {
    "version": 1, "networks": {}, "count": 9, "shape": [6, 6, 3], "source": {}
  }  # fmt: skip
  np.savez(root / "ours.npz", **arrays, meta=np.array(json.dumps(meta)))
  np.savez(root / "images.npz", arr_0=np.zeros((4, 6, 6, 3), np.uint8))
  np.savez(root / "features.npz", features=_random(3, WIDTH))
  np.save(root / "features.npy", _random(3, WIDTH))


def _banks(root: pathlib.Path) -> None:
  for form in ("float32", "int8", "rank"):
    bank_files.write(root / form, _stored(form))


def _prepared(root: pathlib.Path) -> None:
  names = tuple(f"{i}.png" for i in range(prepared.SCHEMA.images))
  files = images_lib.SourceImages("/x", names)
  prepared.write(root / "bf16", files)
  prepared.write(root / "pixels", tokens="pixels")


def _runs(root: pathlib.Path) -> None:
  config = tiny.make_config()
  run = root / "run"
  stored = _stored("float32")
  memory = setup.RunMemory(
    bank=bank_lib.MemoryBank(jnp.asarray(_random(SIZE, WIDTH))),
    info=stored.info,
    stats=protocols.LatentStats(jnp.zeros(4), jnp.ones(4)),
    latent_shape=(2, 2, 4),
    token_dim=0,
  )
  setup.save_memory(run / "memory", memory)
  tree = {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}
  with checkpoint.opened(run / "checkpoints", config.checkpoint) as kept:
    state = {"step": jnp.int32(8), "params": tree, "ema": tree}
    kept.save(8, state, {"train_seconds": 1.0})
  (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
  lines = [json.dumps({"step": i, "train/loss": 1.0}) for i in range(3)]
  (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _images(root: pathlib.Path) -> None:
  random = np.random.default_rng(0)
  image = PIL.Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
  deep = random.integers(0, 65536, (24, 32)).astype(np.uint16)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  image.save(root / "rgb.png")
  PIL.Image.fromarray(deep).save(root / "deep.png")
  image.convert("P").save(root / "palette.png", transparency=3)
  image.save(root / "plain.jpg", exif=exif)
  image.save(root / "progressive.jpg", progressive=True)
  image.convert("CMYK").save(root / "cmyk.jpg")
  image.save(root / "lossy.webp")
  image.convert("RGBA").save(root / "whole.webp", lossless=True)
  frames = [image, image.rotate(90)]
  image.save(root / "animated.gif", save_all=True, append_images=frames)
  image.save(root / "animated.png", save_all=True, append_images=frames)
  image.save(root / "x.bmp")


def _json(root: pathlib.Path) -> None:
  names = {"a": "x-1.safetensors", "b": "x-2.safetensors"}
  for name, file in names.items():
    safetensors.numpy.save_file({name: _random(2)}, root / file)
  index = {"metadata": {"total_size": 16}, "weight_map": names}
  (root / "x.index.json").write_text(json.dumps(index))


MAKERS: dict[str, Callable[[pathlib.Path], None]] = {
  "torch": _torch,
  "safetensors": _safetensors,
  "numpy": _numpy,
  "bank": _banks,
  "prepared": _prepared,
  "run": _runs,
  "image": _images,
  "json": _json,
}


def make(root: pathlib.Path) -> None:
  """Writes the originals: a folder for each kind."""
  for kind, maker in MAKERS.items():
    (root / kind).mkdir(parents=True)
    maker(root / kind)


@functools.cache
def listed(root: pathlib.Path, kind: str) -> tuple[pathlib.Path, ...]:
  """The originals of a kind: files, or directories that are one thing."""
  return tuple(sorted((root / kind).iterdir()))

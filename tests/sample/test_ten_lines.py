"""The first lines of a notebook: on a run, on converted weights, on the hub."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.data import write_images
from tests import published, tiny
from tests.files import hub_server

pytestmark = [pytest.mark.golden, pytest.mark.process]

# PATH, CHANGES, CONFIG, PICTURE and BANK are of the place.
LINES = """
import gmem_jax
generator = gmem_jax.load(PATH, *CHANGES, config=CONFIG)
images = generator.sample(rows=[3, 7], per_row=4, seed=0)
images.pixels; images.save("out"); images
like = generator.sample(images=[PICTURE])
given = generator.sample(snippets=generator.features([3, PICTURE]))
nearest = generator.nearest(PICTURE, k=8)
between = generator.interpolate(3, PICTURE, points=6)
other = generator.with_bank(BANK).sample(rows=[1])
"""
PARTS = ("images", "like", "given", "between", "other")
# The same in a process of its own.
PROGRAM = f"""
import json, sys
import numpy as np
globals().update(json.loads(sys.argv[1]))
{LINES}
for bad in REFUSED:
  try:
    gmem_jax.load(bad)
  except ValueError as error:
    print(error)
found = {{name: globals()[name].pixels for name in {PARTS}}}
np.savez("found.npz", rows=nearest.rows, **found)
"""


def follow(place: dict, tmp_path, monkeypatch) -> dict[str, np.ndarray]:
  """Types the lines; returns what they show."""
  monkeypatch.chdir(tmp_path)
  names = dict(place)
  exec(LINES, names)
  check(names)
  found = {name: names[name].pixels for name in PARTS}
  return found | {"rows": names["nearest"].rows}


def check(names: dict) -> None:
  """What the lines promise."""
  images, nearest = names["images"], names["nearest"]
  assert len(images.pixels) == 8
  assert images.pixels.dtype == np.uint8
  for number, pixels in enumerate(images.pixels):
    saved = write_images.read_png(pathlib.Path(f"out/{number:06d}.png"))
    np.testing.assert_array_equal(saved.reshape(pixels.shape), pixels)
  assert images._repr_png_().startswith(b"\x89PNG")
  assert len(names["between"].pixels) == 6
  assert len(nearest.rows) == len(nearest.scores) == len(nearest.images) == 8
  assert (np.diff(nearest.scores) <= 0).all()
  # The way begins at the row, up to rounding.
  first, row = names["between"].pixels[0], images.pixels[0]
  assert np.abs(first.astype(int) - row).max() <= 1
  assert names["other"].info["bank"] != images.info["bank"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  path = tmp_path_factory.mktemp("pictures") / "dog.jpg"
  small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
  Image.fromarray(small).resize((360, 270)).save(path)
  return str(path)


def test_on_a_run(tmp_path, monkeypatch):
  run = tiny.save_run(tmp_path / "run")
  other = other_bank(tmp_path / "other", 768)
  picture = tmp_path / "five.png"
  write_images.save_png(picture, np.full((8, 8, 1), 90, np.uint8))
  place = {"PATH": run, "CHANGES": [], "CONFIG": None}
  place |= {"PICTURE": str(picture), "BANK": other}
  follow(place, tmp_path, monkeypatch)


def other_bank(path, width: int) -> str:
  """A bank of another origin."""
  rows = np.random.default_rng(1).standard_normal((20, width))
  bank = bank_lib.MemoryBank(rows.astype(np.float32))
  info = bank_lib.make_info(bank, encoder="", source="test")
  bank_files.write(path, bank_files.Stored(bank, info))
  return str(path)


@pytest.mark.slow
def test_on_converted_weights_and_the_same_over_the_hub(
  golden_dir, picture, tmp_path, monkeypatch
):
  pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
  there = published.convert_all(golden_dir, tmp_path / "weights")
  other_bank(there / "other", 768)
  values = published.changes(there)
  del values["sample.network"]
  # A call of few images costs as much as a full one.
  values |= {
    "sample.batch_size": 4,
    "sample.device_batch": 4,
    "sampler.steps": 3,
  }

  def place(where: str) -> dict:
    changed = [f"{k}={v}".replace(str(there), where) for k, v in values.items()]
    return {
      "PATH": f"{where}/network", "CHANGES": changed, "CONFIG": "b_in1k:ode",
      "PICTURE": picture, "BANK": f"{where}/other",
      "REFUSED": [f"{where}/{name}" for name in ("dinov2.pth", "gone", "bank")],
    }  # fmt: skip

  expected = follow(place(str(there)), tmp_path, monkeypatch)
  away = tmp_path / "away"
  away.mkdir()
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    handler.repos["owner/weights"] = hub_server.files_of(there)
    done = subprocess.run(
      [sys.executable, "-c", PROGRAM, json.dumps(place("hf://owner/weights"))],
      env=os.environ | environment | {
        "PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{os.environ['PYTHONPATH']}",
        "JAX_NUM_CPU_DEVICES": "4",
      },
      cwd=away, capture_output=True, text=True, check=False,
    )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  for name, why in (
    ("dinov2.pth", "is neither the directory of a run nor converted weights"),
    ("gone", "owner/weights has no 'gone'"),
    ("bank", "it is a bank, not a lightning_dit or sit"),
  ):
    begin = f"path=hf://owner/weights/{name}: {why}"
    assert any(line.startswith(begin) for line in lines), done.stdout
  with np.load(away / "found.npz") as found:
    for name, value in expected.items():
      np.testing.assert_array_equal(found[name], value, err_msg=name)

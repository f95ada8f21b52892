"""Images held out: single ones and whole groups, of every source."""

import json

import numpy as np
import pytest
from PIL import Image

from gmem_jax.bank import files as bank_files
from gmem_jax.commands import prepare
from gmem_jax.data import holdout, sources, store
from gmem_jax.train import dataset
from tests import tiny

SIZE = 8
KINDS = ("animal-bird", "animal-cat", "food")


@pytest.fixture(scope="module")
def digits():
  return sources.digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Twelve pictures in three folders, and one outside of them."""
  root = tmp_path_factory.mktemp("pictures")
  random = np.random.default_rng(0)
  names = [f"{kind}/{i}.png" for kind in KINDS for i in range(4)]
  for name in [*names, "loose.png"]:
    (root / name).parent.mkdir(exist_ok=True)
    pixels = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(root / name)
  return root


def test_digits_are_split_and_none_is_lost(digits):
  kept, held = holdout.split(digits, 360, (), seed=0)
  assert (len(kept), len(held)) == (1437, 360)
  assert (kept.name, held.name) == ("digits/train", "digits/held-out")
  together = np.concatenate([kept.pixels, held.pixels]).reshape(1797, -1)
  original = digits.pixels.reshape(1797, -1)
  assert sorted(map(bytes, together)) == sorted(map(bytes, original))
  again, _ = holdout.split(digits, 360, (), seed=0)
  np.testing.assert_array_equal(kept.pixels, again.pixels)
  other, _ = holdout.split(digits, 360, (), seed=1)
  assert (kept.pixels != other.pixels).any()


def test_the_published_digits_run_keeps_its_images(digits):
  """Another draw would make its samples, and all pages, other ones."""
  _, held = holdout.split(digits, 360, (), seed=0)
  positions = [
    int(np.flatnonzero((digits.pixels == image).all(axis=(1, 2, 3)))[0])
    for image in held.pixels[:4]
  ]
  assert positions == [7, 10, 17, 20]


def test_groups_of_digits(digits):
  kept, held = holdout.split(digits, 10, ("7", "[89]"), seed=0)
  assert set(kept.labels) == set(range(7))
  assert len(held) == 10 + int((digits.labels >= 7).sum())
  assert (held.labels < 7).sum() == 10


def test_groups_of_folders(folder):
  source = sources.Folder(folder, SIZE)
  kept, held = holdout.split(source, 1, ("animal-*",), seed=0)
  assert sorted(kept.names + held.names) == sorted(source.names)
  assert {name.split("/")[0] for name in kept.names} <= {"food", "loose.png"}
  assert (len(kept), len(held)) == (4, 9)
  # A label means the same in both parts.
  assert kept.classes == held.classes == list(KINDS)
  assert held.read(0).label == 0
  assert kept.read(len(kept) - 1).label == 2
  assert kept.info()["sha256_of_paths"] != held.info()["sha256_of_paths"]
  assert len(source) == 13


@pytest.mark.parametrize(
  ("count", "groups", "told"),
  [
    (-1, (), r"data\.holdout=-1"),
    (1797, (), r"data\.holdout=1797.*1797 images of digits"),
    (0, ("cats",), r"data\.holdout_groups=.*'cats' fits no class.*'0', '1'"),
    (0, ("*",), r"data\.holdout=0.*0 images of digits outside of"),
  ],
)
def test_what_cannot_be_held_out_is_named(digits, count, groups, told):
  with pytest.raises(ValueError, match=told):
    holdout.split(digits, count, groups, seed=0)


def test_folders_are_prepared_in_two_parts(folder, tmp_path, capsys):
  changes = {
    "data__source": "folder",
    "data__path": str(folder),
    "data__prepared": str(tmp_path / "prepared"),
    "data__holdout": 2,
    "data__holdout_groups": ("animal-cat",),
    "data__tokens": "pixels",
    "encoder__image_size": SIZE,
  }
  config = tiny.make_config(**changes)
  prepare.prepare_mode(config)
  heldout = tmp_path / "prepared" / "heldout"
  assert f"--bank={heldout}" in capsys.readouterr().out
  kept = dataset.load(config).train
  held = store.open_store(heldout)
  assert (kept.bank.size, held.images) == (7, 6)
  names = [
    json.loads((part / "bank" / "images.json").read_text())["names"]
    for part in (tmp_path / "prepared", heldout)
  ]
  assert not set(names[0]) & set(names[1])
  assert {f"animal-cat/{i}.png" for i in range(4)} < set(names[1])
  # What --bank takes.
  assert bank_files.read(heldout).info.size == 6
  # Images in no shard of the part that is trained on.
  rows = {bytes(row) for row in np.asarray(kept.bank.rows)}
  assert not rows & {bytes(row) for row in np.asarray(held.bank_rows())}
  other = tiny.make_config(**changes | {"data__holdout": 3})
  with pytest.raises(ValueError, match=r"config\.data\.holdout: 2 .*3"):
    dataset.load(other)
  with pytest.raises(ValueError, match="holds other data"):
    prepare.prepare_mode(other)

"""--mode=sample on a run of the digits."""

import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from gmem_jax.bank import files as bank_files
from gmem_jax.commands import sample as sample_command
from gmem_jax.data import holdout, sources, write_images
from gmem_jax.parallel import lock, sharding
from gmem_jax.sample import host_bank, sheet, source as source_lib
from tests import tiny
from tests.data import prepared

CHANGES = {"sampler__steps": 2, "sample__count": 3, "sample__batch_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run at step 8 with random parameters."""
  workdir = tmp_path_factory.mktemp("run")
  return tiny.save_run(workdir)


@pytest.fixture
def workdir(run, tmp_path):
  """A copy to sample into."""
  return shutil.copytree(run, tmp_path / "run")


@pytest.fixture
def sample(workdir, capsys):
  """Samples with some changes; returns the directory and what was printed."""

  def sample(images=(), pairs=(), **changes) -> tuple[pathlib.Path, str]:
    config = tiny.make_config(**CHANGES | changes)
    sample_command.sample_mode(config, workdir, images, pairs)
    out = capsys.readouterr().out
    name = out.splitlines()[0].split(" in ")[1].split(";")[0]
    return pathlib.Path(name), out

  return sample


def digits() -> np.ndarray:
  """Image i is that of the bank's row i."""
  return holdout.split(sources.digits(), 360, (), 0)[0].pixels


@pytest.fixture
def files(tmp_path):
  """Two images of one name, one of them turned."""
  for folder, image in (("a", digits()[5]), ("b", digits()[6])):
    (tmp_path / folder).mkdir()
    write_images.save_png(tmp_path / folder / "0.png", image)
  return str(tmp_path / "a" / "0.png"), str(tmp_path / "b" / "0.png")


def test_every_command_has_a_directory_which_it_finds_again(
  sample, files, workdir
):
  commands = [
    {},
    {"sample__rows": (975, 3), "sample__per_row": 2},
    {"sampler__steps": 3},
    {"sampler__guidance__scale": 1.5},
    {"images": files[:1]},
    {"images": files[1:]},
    {"pairs": [("3", "7")], "sample__points": 2},
    {"pairs": [("3", "7"), ("5", files[0])], "sample__points": 2},
  ]
  made = [sample(**command)[0] for command in commands]
  assert len(set(made)) == len(commands)
  assert [path.name.rpartition("_")[0] for path in made] == [
    "step_0000008_ema_ode_euler_2_seed_0",
    "step_0000008_ema_ode_euler_2_seed_0_rows_975_3",
    "step_0000008_ema_ode_euler_3_seed_0",
    "step_0000008_ema_ode_euler_2_guidance_1.5_seed_0",
    "step_0000008_ema_ode_euler_2_seed_0_image_0",
    "step_0000008_ema_ode_euler_2_seed_0_image_0",
    "step_0000008_ema_ode_euler_2_seed_0_spherical_row_3_to_row_7",
    "step_0000008_ema_ode_euler_2_seed_0_spherical_row_3_to_row_7_and_1_more",
  ]
  for command, path in zip(commands, made, strict=True):
    again, out = sample(**command)
    assert again == path
    assert out.startswith("0 images made")
  # More of the same are added to those that are there.
  more, out = sample(sample__count=4)
  assert more == made[0]
  assert out.startswith("1 images made, 4 in")
  assert len(list((workdir / "images").iterdir())) == len(commands)


def test_two_jobs_do_not_write_the_same_images(sample):
  directory, _ = sample()
  match = f"sample.output={directory}: process .* works there"
  with lock.held(directory, "held"), pytest.raises(ValueError, match=match):
    sample()
  assert sample()[1].startswith("0 images made")
  assert not (directory / lock.NAME).exists()


def test_a_directory_from_before_the_digest_is_continued(sample, workdir):
  path, _ = sample()
  old = path.rename(workdir / "images" / "step_0000008_ema_seed_0")
  again, out = sample()
  assert again == old
  assert out.startswith("0 images made")
  assert sample(sampler__steps=3)[0] not in (path, old)


def test_a_directory_from_before_later_settings_is_continued(sample, workdir):
  path, _ = sample()
  record = json.loads((path / "sample.json").read_text())
  assert record["precision"] == "high"
  assert record.pop("made_on") == [{"backend": "cpu", "device": "cpu"}]
  for name, value in write_images.LATER.items():
    assert record.pop(name) == value
  text = json.dumps(record, sort_keys=True)
  (path / "sample.json").write_text(text)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  old = path.rename(path.with_name(f"{path.name.rpartition('_')[0]}_{digest}"))
  again, out = sample()
  assert again == old
  assert out.startswith("0 images made")
  assert sample(sample__precision="highest")[0] != old


def test_folders_of_images_and_several_pairs(sample, files, tmp_path):
  Image.new("L", (20, 30)).save(tmp_path / "a" / "1.jpg")
  directory, _ = sample(images=[str(tmp_path / "a"), files[1]])
  found = json.loads((directory / "sample.json").read_text())
  names = [memory["image"] for memory in found["memories"]]
  assert names == ["0.png", "1.jpg", "0.png"]
  assert len(list(directory.glob("0*.png"))) == 3
  # A pair depends on nothing but its ends: neither does its first image.
  settings = {"sample__points": 2, "sample__interpolation": "mask"}
  both, _ = sample(pairs=[("3", "7"), ("5", files[0])], **settings)
  one, _ = sample(pairs=[("3", "7")], **settings)
  assert len(list(both.glob("0*.png"))) == 4
  for name in ("000000.png", "000001.png"):
    assert (both / name).read_bytes() == (one / name).read_bytes()
  with pytest.raises(ValueError, match=r"--image=.*a/no: there is no such im"):
    sample(images=[str(tmp_path / "a" / "no")])


def test_a_photograph_stored_on_its_side_is_turned(sample, tmp_path):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  upright = tmp_path / "upright.png"
  write_images.save_png(upright, digits()[5].repeat(8, 0).repeat(8, 1))
  with Image.open(upright) as image:
    stored = image.transpose(Image.Transpose.ROTATE_90)
  stored.save(tmp_path / "phone.png", exif=exif)
  stored.save(tmp_path / "side.png")
  made = [
    (sample(images=[str(tmp_path / name)])[0] / "000000.png").read_bytes()
    for name in ("upright.png", "phone.png", "side.png")
  ]
  assert made[0] == made[1] != made[2]


def pictures(directory: pathlib.Path, *columns: int) -> list[np.ndarray]:
  """The parts of a labelled sheet, of so many columns each.

  Each is [rows columns 8 8 1], every pixel once.
  """
  grid = write_images.read_png(directory / "grid.png")
  width = grid.shape[1] - write_images.LABEL_WIDTH
  assert (grid[:, : write_images.LABEL_WIDTH] < 128).any()
  gaps = (len(columns) - 1) * sheet.GAP + 2 * len(columns)
  step = (width - gaps) // sum(columns)
  start, parts = write_images.LABEL_WIDTH, []
  for count in columns:
    part = grid[2:, start + 2 : start + 2 + count * step]
    part = part.reshape(-1, step, count, step, 1).swapaxes(1, 2)
    parts.append(part[:, :, : -2 : (step - 2) // 8, : -2 : (step - 2) // 8])
    start += count * step + 2 + sheet.GAP
  return parts


def samples(directory: pathlib.Path) -> np.ndarray:
  """All samples of a directory."""
  paths = sorted(directory.glob("0*.png"))
  return np.stack([write_images.read_png(path) for path in paths])


def test_the_sheet_shows_given_rows_before_their_samples(sample):
  directory, _ = sample(sample__rows=(975, 3), sample__per_row=2)
  memories, made = pictures(directory, 1, 2)
  np.testing.assert_array_equal(memories[:, 0], digits()[[975, 3]])
  np.testing.assert_array_equal(np.concatenate(made), samples(directory))


def test_the_sheet_shows_given_files_before_their_samples(sample, files):
  directory, _ = sample(images=files)
  memories, made = pictures(directory, 1, 1)
  np.testing.assert_array_equal(memories[:, 0], digits()[[5, 6]])
  np.testing.assert_array_equal(made[:, 0], samples(directory))


def test_the_sheet_goes_from_one_memory_to_the_other(sample, files):
  directory, _ = sample(
    pairs=[("3", "7"), ("5", files[1])], sample__points=3, sample__per_row=2
  )
  first, made, last = pictures(directory, 1, 3, 1)
  np.testing.assert_array_equal(first[:, 0], digits()[[3, 3, 5, 5]])
  np.testing.assert_array_equal(last[:, 0], digits()[[7, 7, 6, 6]])
  expected = samples(directory).reshape(2, 3, 2, 8, 8, 1).swapaxes(1, 2)
  np.testing.assert_array_equal(made.reshape(expected.shape), expected)


def test_the_sheet_shows_drawn_rows_beside_their_samples(sample):
  directory, _ = sample()
  grid = write_images.read_png(directory / "grid.png")
  # Three pairs of pictures that touch, in one row.
  scale = (grid.shape[0] - 4) // 8
  pairs = [
    grid[2:-2, 2 + i * (16 * scale + 2) :][::scale, : 16 * scale : scale]
    for i in range(3)
  ]
  for pair, sampled in zip(pairs, samples(directory), strict=True):
    np.testing.assert_array_equal(pair[:, 8:], sampled)
    assert (digits() == pair[:, :8]).all(axis=(1, 2, 3)).any()


def test_a_bank_without_images_has_a_sheet_of_samples_alone(
  sample, run, tmp_path
):
  stored = bank_files.read(run)
  bank = bank_files.Stored(stored.bank, stored.info)
  bank_files.write(tmp_path / "bank", bank)
  directory, _ = sample(
    sample__bank=str(tmp_path / "bank"), sample__rows=(975, 3)
  )
  (made,) = pictures(directory, 1)
  np.testing.assert_array_equal(made[:, 0], samples(directory))


@pytest.mark.parametrize("path", ["", "memory"])
def test_a_run_names_its_bank(sample, run, path):
  """The same images as from the run's own bank, in another directory."""
  own, _ = sample(sample__rows=(975, 3))
  named, _ = sample(sample__rows=(975, 3), sample__bank=str(run / path))
  assert named != own
  np.testing.assert_array_equal(samples(named), samples(own))
  shown = [write_images.read_png(path / "grid.png") for path in (own, named)]
  np.testing.assert_array_equal(*shown)


def test_prepared_data_name_a_bank(tmp_path):
  path, encoder = tmp_path / "prepared", {"name": "random_conv(seed=0)"}
  prepared.write(path, features=encoder, tokens="pixels")
  rows = bank_files.read(path).bank.rows
  for name in (path, path / "bank"):
    bank = host_bank.load(tiny.make_config(sample__bank=str(name)))
    np.testing.assert_array_equal(bank.rows, rows)
    assert bank.info == {"digest": bank_files.read_info(path / "bank").digest}
    assert bank.picture(3)(16).shape == (16, 16, 3)
  with pytest.raises(ValueError, match=r"sample\.bank='.*random_conv\(seed=0"):
    host_bank.load(tiny.make_config(sample__bank=str(path), seed=1))


def test_what_is_no_bank_is_refused_with_its_key(sample, tmp_path):
  for path, message in (
    (tmp_path, "is not a bank: expected output of `python -m gmem_jax.bank`"),
    (tmp_path / "gone", "there is no such bank"),
  ):
    match = rf"config\.sample\.bank='{path}': .*{message}"
    with pytest.raises(ValueError, match=match):
      sample(sample__bank=str(path))


def test_the_end_says_what_was_written_and_what_is_next(sample, files):
  _, out = sample(sample__format="both")
  _, there, after = out.splitlines()
  assert there.startswith("There: 000000.png to 000002.png, samples_3.npz (")
  assert "grid.png" in there
  assert "sample.json" in there
  assert "--config.sample.count" in after
  assert "--mode=evaluate" in after
  _, out = sample(images=files[:1], sample__grid=0)
  _, there, after = out.splitlines()
  assert there.startswith("There: 000000.png, sample.json")
  assert "per_row" in after
  assert "evaluate" not in after


def live_banks() -> int:
  """How many arrays on devices have the shape of the digits' bank."""
  return sum(array.shape == (1437, 768) for array in jax.live_arrays())


def test_a_bank_stays_on_the_host_unless_the_network_attends_to_it(run):
  config = tiny.make_config()
  mesh = sharding.make_mesh(config.mesh)
  before = live_banks()
  source = source_lib.load(config, run, mesh)
  assert type(source.bank.rows) is np.ndarray
  assert source.bank.rows.shape == (1437, 768)
  assert source.weights.bank is None
  assert live_banks() == before

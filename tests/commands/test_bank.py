"""python -m gmem_jax.bank, from images to neighbours."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from gmem_jax.bank import bank as bank_lib, files as bank_files, storage
from gmem_jax.commands import bank as bank_command
from gmem_jax.data import encode_files, write_images
from gmem_jax.files import weights
from gmem_jax.sample import host_bank
from tests import tiny

CONFIG = f"--config={tiny.ROOT}/configs/digits.py"
COUNT = 12


@pytest.fixture
def run(capsys):
  def run(*arguments, code=0):
    found = bank_command.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code == 0 else err

  return run


def _save(path, seed):
  path.parent.mkdir(exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
  Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A folder of images, one broken, and its bank."""
  work = tmp_path_factory.mktemp("banks")
  folder = work / "photos"
  folder.mkdir()
  for i in range(COUNT):
    _save(folder / f"{i % 3}" / f"{i:02d}.png", i)
  (folder / "1" / "broken.png").write_bytes(b"no image")
  assert (
    bank_command.main(["build", str(folder), str(work / "bank"), CONFIG]) == 0
  )
  return work


def test_build_names_rows_and_skips_what_is_broken(work, run):
  stored = bank_files.read(work / "bank")
  assert stored.bank.size == COUNT
  assert stored.images.names[:5] == (
    "0/00.png", "0/03.png", "0/06.png", "0/09.png", "1/01.png",
  )  # fmt: skip
  assert stored.info.encoder == "random_conv(seed=0)"
  assert stored.info.crop == "center_crop(8)"
  assert not list(work.glob(".*partial"))
  text = run("info", work / "bank")
  assert stored.info.made_on == "cpu, cpu"
  for part in ("12 of width 768", "12 named", stored.info.digest, "cpu, cpu"):
    assert part in text


def test_a_killed_build_continues(work, run, monkeypatch, capsys):
  monkeypatch.setattr(encode_files, "BLOCK", 5)
  seen, call = [], encode_files.FileEncoder.__call__

  def spy(self, files, progress=None):
    seen.append(len(files))
    if len(seen) == 2:
      raise KeyboardInterrupt
    return call(self, files, progress)

  monkeypatch.setattr(encode_files.FileEncoder, "__call__", spy)
  arguments = ["build", str(work / "photos"), str(work / "again"), CONFIG]
  with pytest.raises(KeyboardInterrupt):
    bank_command.main(arguments)
  capsys.readouterr()
  assert bank_command.main(arguments) == 0
  err = capsys.readouterr().err
  # The block that was whole is not encoded again.
  assert seen == [5, 5, 5, 3]
  assert "broken.png: no image" in err
  assert "skipped 1 of 13 files" in err
  ours, theirs = (bank_files.read(work / n) for n in ("again", "bank"))
  np.testing.assert_array_equal(ours.bank.rows, theirs.bank.rows)
  assert (ours.info, ours.images) == (theirs.info, theirs.images)
  assert not list(work.glob(".*partial"))


def test_search_finds_rows_images_and_features(work, run):
  rows = bank_files.read(work / "bank").bank.rows
  cosine = rows @ rows.T
  order = np.argsort(-cosine[7])[:3]
  text = run("search", work / "bank", "--row", 7, "-k", 3)
  lines = text.splitlines()
  assert lines[0] == "row 7:"
  # The last line says what to do next.
  found = [line.split()[2:4] for line in lines[1:-1]]
  assert found == [["row", str(i)] for i in order]
  assert float(lines[2].split()[1]) == pytest.approx(
    cosine[7, order[1]], abs=2e-6
  )
  image = work / "photos" / "2" / "05.png"
  text = run("search", work / "bank", "--image", image, "-k", 1, CONFIG)
  assert "2/05.png" in text
  np.save(work / "q.npy", 3 * rows[[2, 9]])
  np.savez(work / "q.npz", features=rows[[2, 9]], other=rows)
  for name in ("q.npy", "q.npz"):
    text = run("search", work / "bank", "--features", work / name, "-k", 1)
    assert [line.split()[3] for line in text.splitlines()[1::2]] == ["2", "9"]


def test_the_sheet_shows_query_and_neighbours(work, run, tmp_path):
  sheet = tmp_path / "sheet.png"
  run("search", work / "bank", "--row", 0, 4, "-k", 2, "--sheet", sheet)
  picture = write_images.read_png(sheet)
  assert picture.shape == (204, write_images.LABEL_WIDTH + 304, 3)
  shown = picture[4:100, write_images.LABEL_WIDTH :]
  # The nearest row to a row is the row itself.
  np.testing.assert_array_equal(shown[:, 4:100], shown[:, 104:200])
  assert shown[:, 4:100].std() > 1
  text = run(
    "search", work / "bank", "--row", 0, "-k", 2,
    "--sheet", tmp_path / "moved.png", "--images", tmp_path,
  )  # fmt: skip
  assert "3 images missing" in text
  run("search", work / "bank", "--row", 0, "--sheet", sheet, "-k", 2, code=2)


def test_the_end_says_what_was_written_and_how_to_look_at_it(
  work, run, tmp_path
):
  out = tmp_path / "out"
  text = run("remove", work / "bank", out, "--row", 0)
  *_, wrote, following = text.splitlines()
  assert wrote.startswith(f"Wrote {out}: 11 rows of 768, float32, sha256 ")
  command = following.removeprefix("Next: ").partition(";")[0]
  assert command == f"python -m gmem_jax.bank info {out}"
  assert str(out) in run(*command.split()[3:])
  assert f"--mode=sample --bank={out}" in following
  search = "search", work / "bank", "--row", 0
  assert "Next: --sheet=OUT.png" in run(*search)
  sheet = tmp_path / "sheet.png"
  assert run(*search, "--sheet", sheet).endswith(f"Wrote {sheet}\n")


def test_folders_above_a_result_are_made(work, run, tmp_path):
  bank, deep = work / "bank", tmp_path / "a" / "b"
  run("search", bank, "--row", 0, "--sheet", deep / "1" / "sheet.png", "-k", 2)
  assert (deep / "1" / "sheet.png").exists()
  run("remove", bank, deep / "2" / "bank", "--row", 0)
  assert bank_files.read(deep / "2" / "bank").bank.size == COUNT - 1
  run("build", work / "photos", deep / "3" / "bank", CONFIG)
  assert [path.name for path in (deep / "3").iterdir()] == ["bank"]


def test_append_images_and_features(work, run, tmp_path):
  _save(tmp_path / "new" / "a.png", 100)
  run(
    "append", work / "bank", tmp_path / "a", "--image", tmp_path / "new", CONFIG
  )
  stored = bank_files.read(tmp_path / "a")
  assert stored.images.path(COUNT) == tmp_path / "new" / "a.png"
  assert stored.info.parent == bank_files.read(work / "bank").info.digest
  np.save(tmp_path / "f.npy", stored.bank.rows[COUNT])
  run("append", work / "bank", tmp_path / "b", "--features", tmp_path / "f.npy")
  again = bank_files.read(tmp_path / "b")
  np.testing.assert_array_equal(again.bank.rows, stored.bank.rows)


def test_a_photograph_stored_on_its_side_is_turned(work, run, tmp_path):
  image = work / "photos" / "2" / "05.png"
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  with Image.open(image) as upright:
    stored = upright.transpose(Image.Transpose.ROTATE_90)
  stored.save(tmp_path / "phone.png", exif=exif)
  sheet = tmp_path / "sheet.png"
  text = run(
    "search", work / "bank", "--image", tmp_path / "phone.png", "-k", 1, CONFIG,
    "--sheet", sheet,
  )  # fmt: skip
  assert "+1.000000  row 9  2/05.png" in text
  shown = write_images.read_png(sheet)[4:100, write_images.LABEL_WIDTH :]
  np.testing.assert_array_equal(shown[:, 4:100], shown[:, 104:200])
  run(
    "append", work / "bank", tmp_path / "more",
    "--image", tmp_path / "phone.png", CONFIG,
  )  # fmt: skip
  rows = bank_files.read(tmp_path / "more").bank.rows
  np.testing.assert_array_equal(rows[COUNT], rows[9])


def test_edits_from_the_command_line(work, run, tmp_path):
  old = bank_files.read(work / "bank")
  text = run(
    "interpolate", work / "bank", tmp_path / "i", 3, 8,
    "--points", 3, "--method", "linear",
  )  # fmt: skip
  assert "rows 12 to 14 are new" in text
  rows = bank_files.read(tmp_path / "i").bank.rows
  np.testing.assert_allclose(
    rows[12], 0.75 * rows[3] + 0.25 * rows[8], atol=1e-6
  )
  run("interpolate", work / "bank", tmp_path / "m", 3, 8, "--method", "mask")
  run("remove", work / "bank", tmp_path / "r", "--row", 0, 5)
  assert bank_files.read(tmp_path / "r").images.names[0] == old.images.names[1]
  double = tmp_path / "double"
  run("append", work / "bank", double, "--features", _rows_file(old, tmp_path))
  assert "12 repetitions" in run("dedup", double, tmp_path / "once")
  once = bank_files.read(tmp_path / "once")
  np.testing.assert_array_equal(once.bank.rows, old.bank.rows)
  assert "12 repetitions" in run(
    "dedup", double, tmp_path / "apart", "--threshold", 0.9999
  )


def _rows_file(stored, tmp_path):
  np.save(tmp_path / "rows.npy", stored.bank.rows)
  return tmp_path / "rows.npy"


@pytest.mark.parametrize("how", ["--storage=int8", "--rank=4"])
def test_compress_measures_what_is_lost(work, run, tmp_path, how):
  text = run("compress", work / "bank", tmp_path / "small", how)
  old, new = (bank_files.read(p) for p in (work / "bank", tmp_path / "small"))
  a, b = bank_lib.decode(old.bank), bank_lib.decode(new.bank)
  lost = np.linalg.norm(a - b) / np.linalg.norm(a)
  assert f"lost {lost:.3%}" in text
  assert new.images == old.images


REFUSED = {
  "another encoder": (
    ["append", "BANK", "OUT", "--image", "IMAGE", "CONFIG", "other"],
    "made by random_conv(seed=0)",
  ),
  "no config": (["search", "BANK", "--image", "IMAGE"], "needs --config"),
  "no image": (["search", "BANK", "--image", "x", "CONFIG"], "x: there is no"),
  "row outside": (["search", "BANK", "--row", "12"], "--row: rows [12]"),
  "k too large": (["search", "BANK", "--row", "1", "-k", "13"], "-k 13"),
  "k zero": (["search", "BANK", "--row", "1", "-k", "0"], "-k 0"),
  "wide": (["append", "BANK", "OUT", "--features", "WIDE"], "width 4"),
  "NaN": (["append", "BANK", "OUT", "--features", "NAN"], "rows [1] are not"),
  "zero": (["search", "BANK", "--features", "ZERO"], "rows [2] are zero"),
  "no features": (["search", "BANK", "--features", "IMAGE"], ".npy, .npz"),
  "garbage": (["search", "BANK", "--features", "GARBAGE"], "cannot be read"),
  "exists": (["remove", "BANK", "BANK", "--row", "1"], "already exists"),
  "below a file": (["remove", "BANK", "FILE/a/b", "--row", "1"], "is a file"),
  "no bank": (["info", "OUT"], "no such bank"),
  "rank": (["compress", "BANK", "OUT", "--rank", "12"], "rank=12"),
  "no config file": (
    ["build", "FOLDER", "OUT", "--config=x.py"],
    "--config=x.py: there is no such file",
  ),
  "no images": (["build", "EMPTY", "OUT", "CONFIG"], "no image there"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line_and_writes_nothing(work, run, tmp_path, case):
  arguments, message = REFUSED[case]
  places = {
    "BANK": work / "bank",
    "OUT": tmp_path / "out",
    "FILE/a/b": work / "photos" / "0" / "00.png" / "a" / "b",
    "IMAGE": work / "photos" / "0" / "00.png",
    "FOLDER": work / "photos",
    "EMPTY": tmp_path,
    "CONFIG": CONFIG,
  }
  rows = np.ones((3, 768), np.float32)
  for name, array in (
    ("WIDE", rows[:, :4]),
    ("NAN", np.where(np.arange(3)[:, None] == 1, np.nan, rows)),
    ("ZERO", np.where(np.arange(3)[:, None] == 2, 0, rows)),
  ):
    if name in arguments:
      places[name] = tmp_path / f"{name}.npy"
      np.save(places[name], array)
  if "GARBAGE" in arguments:
    places["GARBAGE"] = tmp_path / "garbage.npy"
    places["GARBAGE"].write_bytes(b"\x93NUMPY garbage")
  if "other" in arguments:
    arguments = [a for a in arguments if a != "other"]
    text = (tiny.ROOT / "configs" / "digits.py").read_text()
    other = tmp_path / "other.py"
    other.write_text(text.replace("c.seed = 0", "c.seed = 1"))
    places["CONFIG"] = f"--config={other}"
  before = sorted(tmp_path.iterdir())
  err = run(*(places.get(a, a) for a in arguments), code=2)
  assert message in err
  assert err.startswith("gmem_jax: ")
  assert len(err.splitlines()) == 1
  assert sorted(tmp_path.iterdir()) == before


def test_help_has_examples(capsys):
  for command in (
    "info", "build", "search", "append", "interpolate", "remove", "compress",
    "dedup",
  ):  # fmt: skip
    with pytest.raises(SystemExit) as stop:
      bank_command.main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"  python -m gmem_jax.bank {command} " in out


def test_edited_banks_are_what_sampling_reads(work, run, tmp_path):
  """The converter's format: `--config.sample.bank` takes them."""

  run("compress", work / "bank", tmp_path / "int8", "--storage=int8")
  config = tiny.make_config(sample__bank=str(tmp_path / "int8"))
  found = host_bank.load(config)
  old = bank_files.read(work / "bank")
  assert storage.error(old.bank.rows, found.rows).worst_cosine > 0.999
  stored = bank_files.read(tmp_path / "int8")
  assert found.info["sha256"] == bank_lib.digest(stored.bank)
  assert weights.read_metadata(tmp_path / "int8")["kind"] == "int8_bank"
  other = tiny.make_config(sample__bank=str(tmp_path / "int8"), seed=1)
  with pytest.raises(ValueError, match=r"config\.sample\.bank=.*made by"):
    host_bank.load(other)


def test_paths_may_begin_at_home(work, run, monkeypatch):
  monkeypatch.setenv("HOME", str(work))
  # As a script, or the = before it, keeps the shell from expanding it.
  config = work / "own.py"
  config.write_text((tiny.ROOT / "configs" / "digits.py").read_text())
  text = run(
    "search", "~/bank", "--image=~/photos/0/00.png", "--config=~/own.py", "-k1",
    "--sheet=~/sheet.png",
  )  # fmt: skip
  assert "0/00.png" in text
  assert (work / "sheet.png").exists()

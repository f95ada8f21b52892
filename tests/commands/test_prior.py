"""--mode=prior, and images from what it trained, on a run of digits."""

import functools
import shutil

import jax
import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.commands import prior, push, sample
from gmem_jax.evaluate import scores
from gmem_jax.files import atomic
from gmem_jax.parallel import sharding
from gmem_jax.sample import generator as generator_lib
from gmem_jax.train import prior_rows
from tests import tiny
from tests.train import test_prior

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = {
  "prior__width": 16,
  "prior__depth": 1,
  "prior__steps": 8,
  "prior__batch_size": 16,
  "prior__points": 3,
}
DRAWN = {"sample__draw": "prior", "sample__count": 12, **SMALL}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tiny.save_run(tmp_path_factory.mktemp("runs") / "digits")
  with jax.numpy_dtype_promotion("standard"):
    prior.prior_mode(tiny.make_config(**SMALL), path)
  return path


def load(workdir, **changes):
  return generator_lib.from_config(tiny.make_config(**DRAWN | changes), workdir)


def pixels(generator, **arguments):
  return generator.sample(12, **arguments).pixels


def test_images_are_made_without_a_bank(workdir, capsys, monkeypatch):
  prior.prior_mode(tiny.make_config(**SMALL), workdir)
  assert "on 1,437 rows, 10 groups" in capsys.readouterr().out

  def refuse(*_, **__):
    raise AssertionError("the bank was read")

  monkeypatch.setattr(bank_lib, "decode", refuse)
  monkeypatch.setattr(bank_files, "read", refuse)
  sample.sample_mode(tiny.make_config(**DRAWN), workdir)
  assert "12 images made" in capsys.readouterr().out
  (directory,) = (workdir / "images").glob("*_prior_*")
  record = atomic.read_json(directory / "sample.json")
  assert record["draw"] == "prior"
  assert "bank" not in record
  # 12 of a call of 32, and the same in a call of all.
  assert load(workdir).source.bank is None
  images = load(workdir, sample__count=40).sample(40).pixels
  np.testing.assert_array_equal(images[:12], pixels(load(workdir)))


def test_an_image_depends_on_no_device_count_and_on_seed_and_group(
  workdir, monkeypatch
):
  generator = load(workdir)
  images = pixels(generator)
  assert generator.mesh.size == 4
  alone = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
  with monkeypatch.context() as patch:
    patch.setattr(sharding, "make_mesh", alone)
    np.testing.assert_array_equal(images, pixels(load(workdir)))
  assert not np.array_equal(images, pixels(generator, seed=5))
  # The snippets, as a network that was hardly trained may not heed them.
  one, other = (
    load(workdir, sample__group=group).plan().features(np.arange(12))[0]
    for group in ("3", "8")
  )
  assert not np.array_equal(one, other)
  # The first image of each memory is that of one image each.
  pairs = load(workdir).plan().features(np.arange(12))[0]
  twice = load(workdir, sample__per_row=2).plan().features(np.arange(12))[0]
  np.testing.assert_array_equal(twice[::2], pairs[:6])
  np.testing.assert_array_equal(twice[1::2], pairs[:6])


def test_python_finds_the_prior_too(workdir):
  changes = [f"{k.replace('__', '.')}={v}" for k, v in SMALL.items()]
  generator = gmem_jax.load(workdir, "sample.draw=prior", *changes)
  np.testing.assert_array_equal(pixels(generator), pixels(load(workdir)))
  # Of one that has its bank, by its setting alone; its rows stay there.
  banked = gmem_jax.load(workdir, *changes)
  assert banked.source.bank is not None
  drawn = banked.with_config("sample.draw=prior")
  np.testing.assert_array_equal(pixels(drawn), pixels(generator))
  with pytest.raises(ValueError, match=r"bank is empty.*'prior' reads none"):
    generator.nearest(3)


def test_samples_of_a_prior_can_be_scored(workdir, monkeypatch):
  from gmem_jax.commands import evaluate

  seen = []
  call = scores.Evaluator.__call__
  monkeypatch.setattr(
    scores.Evaluator,
    "__call__",
    lambda self, source, *rest: (
      seen.append(source.read(np.arange(4))) or call(self, source, *rest)
    ),
  )
  config = tiny.make_config(**DRAWN | {"sample__count": 72})
  evaluate.evaluate_mode(config, workdir)
  np.testing.assert_array_equal(seen[0], pixels(load(workdir))[:4])
  assert list((workdir / "evaluations").glob("*prior*.json"))


def test_what_is_pushed_has_the_prior(workdir):
  names = push._cargo(workdir).files
  assert f"prior/{prior_rows.RECORD}/_CHECKPOINT_METADATA" in names
  assert any(name.startswith("prior/checkpoints/8/") for name in names)
  assert not any("prior/metrics" in name for name in names)


def copied(workdir, tmp_path):
  return shutil.copytree(workdir, tmp_path / "run")


def test_a_prior_that_does_not_fit_is_refused(workdir, tmp_path):
  run = copied(workdir, tmp_path)
  shutil.rmtree(run / "prior")
  with pytest.raises(
    ValueError, match=r"no prior was trained in .*--mode=prio"
  ):
    load(run).plan()
  other = tmp_path / "other"
  test_prior.make_run(other)
  from gmem_jax.train import loop

  loop.train(test_prior.make_run(other))
  shutil.copytree(other / "prior", run / "prior")
  with pytest.raises(
    ValueError, match="memories 8 wide, the network takes 768"
  ):
    load(run).plan()


def test_a_group_that_is_not_there_is_refused(workdir):
  with pytest.raises(ValueError, match="group='x': the prior has no such grou"):
    load(workdir, sample__group="x").plan()


@pytest.mark.parametrize(
  ("images", "pairs", "flag"),
  [(["a.png"], [], "--image"), ([], [["1", "2"]], "--interpolate")],
)
def test_given_memories_and_drawn_ones_exclude_each_other(
  workdir, images, pairs, flag
):
  with pytest.raises(ValueError, match=f"{flag} names the memories"):
    sample.sample_mode(tiny.make_config(**DRAWN), workdir, images, pairs)


def test_a_bank_that_cannot_be_learned_is_refused(workdir, tmp_path):
  with pytest.raises(ValueError, match="no run was trained there, and neither"):
    prior.prior_mode(tiny.make_config(**SMALL), tmp_path / "new")
  rows = test_prior.make_rows()
  stored = test_prior.stored(rows)
  rows[5, 3] = np.nan  # After it was described, as a fault of a disk.
  bank_files.write(tmp_path / "nan", stored)
  config = tiny.make_config(sample__bank=str(tmp_path / "nan"), **SMALL)
  with pytest.raises(ValueError, match=r"nan: .*rows \[5\] are not finite"):
    prior.prior_mode(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()

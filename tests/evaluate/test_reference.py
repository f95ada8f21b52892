"""References: files of ours, of ADM, of pytorch-fid; what does not fit."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.evaluate import (
  frechet,
  reference,
  scores,
  sources,
  statistics,
)
from gmem_jax.files import weights
from tests.convert import helpers
from tests.evaluate import fakes

SHAPE = (6, 6, 3)
ALL = ("fid", "sfid", "precision_recall", "kid", "mind")


@pytest.fixture(scope="module")
def extractor():
  return fakes.make_extractor(16)


@pytest.fixture(scope="module")
def measured(extractor):
  pixels = fakes.images(1)
  source = sources.Arrays({"of": "test"}, 200, SHAPE, lambda n: pixels[n])
  return reference.measure_statistics(
    source,
    extractor,
    {"pool", "spatial"},
    {"pool"},
    None,
    "reference",
    count=50,
  )


def open_reference(path, extractor, names=ALL, **options):
  evaluator = scores.Evaluator(names, extractor)
  return reference.against(evaluator, path, SHAPE, None, **options).reference


def assert_same(found, expected, rows=True):
  for name in ("pool", "spatial"):
    a, b = found.gaussians[name], expected.gaussians[name]
    assert frechet.frechet_distance(a, b) < 1e-9
  if rows:
    np.testing.assert_allclose(
      found.rows["pool"], expected.rows["pool"], rtol=1e-5, atol=1e-6
    )


def adm(path, measured, images=None, spatial=True, **more):
  """A file in the layout of the ADM suite."""
  arrays = {}
  for name, suffix in (("pool", ""), ("spatial", "_s")):
    if spatial or not suffix:
      arrays[f"mu{suffix}"] = measured.gaussians[name].mean
      arrays[f"sigma{suffix}"] = measured.gaussians[name].cov
  if images is not None:
    arrays["arr_0"] = images
  np.savez(path, **{**arrays, **more})
  return path


def test_our_file_gives_back_what_was_measured(tmp_path, extractor, measured):
  path = tmp_path / "stats.npz"
  statistics.save(path, measured)
  found = open_reference(path, extractor)
  assert_same(found, measured)
  assert (found.count, found.shape) == (200, SHAPE)
  assert found.info["of"] == {"of": "test"}
  with np.load(path) as arrays:  # as the ADM suite would read it
    assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files)


def test_images_are_measured(tmp_path, extractor, measured):
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(1))
  found = open_reference(tmp_path / "x.npz", extractor)
  assert_same(found, measured, rows=False)
  assert len(found.rows["pool"]) == 200


def test_adm_statistics_come_first_and_images_give_the_rest(
  tmp_path, extractor, measured
):
  """As in the suite: mu and sigma of the file, precision of its images."""
  path = adm(tmp_path / "adm.npz", measured, fakes.images(2, 40))
  found = open_reference(path, extractor)
  assert_same(found, measured, rows=False)
  assert len(found.rows["pool"]) == 40
  assert found.info["measured_on"]["images"] == 40


def test_adm_statistics_without_images(tmp_path, extractor, measured):
  path = adm(tmp_path / "adm.npz", measured)
  assert_same(open_reference(path, extractor, ALL[:2]), measured, rows=False)
  with pytest.raises(ValueError, match=r"no pool statistics and no images"):
    open_reference(path, extractor)


def test_converted_statistics(tmp_path, extractor, measured):
  pool, spatial = (measured.gaussians[n] for n in ("pool", "spatial"))
  tree = {"mu": pool.mean, "sigma": pool.cov}
  tree |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
  metadata = helpers.metadata("fid_stats")
  weights.save_converted(tmp_path / "s", {"stats": tree}, metadata)
  found = open_reference(tmp_path / "s", extractor, ALL[:2])
  assert_same(found, measured, rows=False)


def test_statistics_of_another_network_are_refused(tmp_path, measured):
  statistics.save(tmp_path / "ours.npz", measured)
  other = fakes.make_extractor(sha256="other")
  with pytest.raises(ValueError, match=r"another inception .*'fake' there"):
    open_reference(tmp_path / "ours.npz", other)
  other = fakes.make_extractor(preprocessing="pytorch_fid")
  with pytest.raises(ValueError, match="preprocessing: 'adm' there"):
    open_reference(tmp_path / "ours.npz", other)
  with pytest.raises(ValueError, match="preprocessing: 'adm' there"):
    open_reference(tmp_path / "ours.npz", other, published=True)


def test_published_mixture_is_named(tmp_path, extractor, measured):
  """pytorch-fid's features against ADM's statistics: only if asked for."""
  adm_path = adm(tmp_path / "adm.npz", measured)
  bare = adm(tmp_path / "bare.npz", measured, spatial=False)
  other = fakes.make_extractor(preprocessing="pytorch_fid")
  with pytest.raises(ValueError, match="preprocessing: 'adm' there"):
    open_reference(adm_path, other, ("fid",))
  found = open_reference(adm_path, other, ("fid",), published=True)
  assert "pool" in found.gaussians
  open_reference(bare, other, ("fid",))
  with pytest.raises(ValueError, match="preprocessing: 'pytorch_fid' there"):
    open_reference(bare, extractor, ("fid",))


def test_images_of_another_size_are_refused(tmp_path, extractor, measured):
  statistics.save(tmp_path / "ours.npz", measured)
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(1, 40, 8))
  for name in ("ours.npz", "x.npz"):
    with pytest.raises(ValueError, match=r"pixels, ours have 7 x 7"):
      reference.against(
        scores.Evaluator(ALL, extractor), tmp_path / name, (7, 7, 3), None
      )


def of_two_networks(path, measured):
  """A file of ours that also has a Gaussian of another network."""
  gaussians = {"pool": measured.gaussians["pool"]}
  networks = dict(measured.networks)
  networks["dinov2"] = {"name": "dinov2", "sha256": "other"}
  gaussians["dinov2"] = frechet.Gaussian(np.zeros(3), np.eye(3))
  stored = dataclasses.replace(measured, gaussians=gaussians, networks=networks)
  statistics.save(path, stored)
  return path


def test_only_the_stored_parts_that_are_used_must_fit(
  tmp_path, extractor, measured
):
  """Gaussians or rows that no score reads may be of any network."""
  path = of_two_networks(tmp_path / "x.npz", measured)
  found = open_reference(path, extractor, ("fid", "precision_recall"))
  assert len(found.rows["pool"]) == 50
  # Another Inception made what is stored, and nothing of it is used.
  other = fakes.make_extractor(sha256="other")
  found = open_reference(path, other, ("inception_score",))
  assert found.networks == measured.networks | {
    "dinov2": {"name": "dinov2", "sha256": "other"}
  }
  with pytest.raises(ValueError, match="another inception"):
    open_reference(path, other, ("precision_recall",))


def test_a_missing_part_is_measured_beside_a_stored_one_of_another_network(
  tmp_path, measured
):
  """ADM's Gaussians do not fit our network; its images serve for the rows."""
  path = adm(tmp_path / "adm.npz", measured, fakes.images(2, 40))
  other = fakes.make_extractor(preprocessing="pytorch_fid")
  found = open_reference(path, other, ("precision_recall",))
  assert len(found.rows["pool"]) == 40
  with pytest.raises(ValueError, match="preprocessing: 'adm' there"):
    open_reference(path, other, ("fid", "precision_recall"))


def test_statistics_of_another_width_are_refused(tmp_path, extractor):
  np.savez(
    tmp_path / "x.npz",
    mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(5), sigma_s=np.eye(5),
  )  # fmt: skip
  with pytest.raises(ValueError, match="3 wide, ours 12"):
    open_reference(tmp_path / "x.npz", extractor, ("fid",))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"sigma": np.eye(3)}, "do not fit each other"),
    ({"mu": np.full(12, np.nan)}, "not finite"),
    ({"meta": np.array("{")}, "meta is damaged"),
    ({"meta": np.array("{}")}, "meta is damaged"),
    (
      {"meta": np.array(json.dumps(
        {"version": 0, "shape": [], "networks": {}, "count": 1, "source": {}}
      ))},
      "is of version 0",
    ),
    ({"mu": np.array([{}], object)}, "not plain values"),
  ],
)  # fmt: skip
def test_damaged_statistics_are_refused(
  tmp_path, extractor, measured, change, match
):
  path = adm(tmp_path / "x.npz", measured, **change)
  with pytest.raises(ValueError, match=match):
    open_reference(path, extractor, ("fid",))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_statistics_of_few_bits_work_or_say_why(
  tmp_path, extractor, measured, dtype
):
  gaussian = measured.gaussians["pool"]
  narrow = [
    array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for array in (gaussian.mean, gaussian.cov)
  ]
  path = adm(tmp_path / "x.npz", measured, mu=narrow[0], sigma=narrow[1])
  if dtype == "bfloat16":
    with pytest.raises(ValueError, match=r"'mu' is of a type .* as float32"):
      open_reference(path, extractor, ("fid",))
    return
  found = open_reference(path, extractor, ("fid",)).gaussians["pool"]
  assert found.mean.dtype == found.cov.dtype == np.float64
  np.testing.assert_allclose(found.mean, gaussian.mean, rtol=1e-3)
  np.testing.assert_allclose(found.cov, gaussian.cov, rtol=1e-3, atol=1e-6)


def test_what_is_no_reference_is_refused(tmp_path, extractor):
  np.savez(tmp_path / "x.npz", something=np.zeros(3))
  with pytest.raises(ValueError, match="something; statistics have mu"):
    open_reference(tmp_path / "x.npz", extractor)
  with pytest.raises(ValueError, match="does not exist"):
    open_reference(tmp_path / "gone.npz", extractor)


def test_a_reference_of_few_images_is_refused(tmp_path, extractor):
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(1, 12))
  with pytest.raises(ValueError, match=r"reference x.npz: 12 images are too"):
    open_reference(tmp_path / "x.npz", extractor)


def test_scores_against_a_file(tmp_path, extractor, measured):
  statistics.save(tmp_path / "stats.npz", measured)
  pixels = fakes.images(2)
  source = sources.Arrays({}, 200, SHAPE, lambda n: pixels[n])
  evaluator = scores.Evaluator(ALL, extractor)
  path = tmp_path / "stats.npz"
  found = reference.against(evaluator, path, SHAPE, None)(source, 200)
  expected = scores.Evaluator(ALL, extractor, measured)(source, 200)
  assert found == pytest.approx(expected, rel=1e-9)

"""Independent implementations: pytorch-fid and torch-fidelity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from gmem_jax.convert import rules
from gmem_jax.convert.names import inception as names
from gmem_jax.evaluate import (
  features as extractor_lib,
  frechet,
  inception_score,
  kernel_distance,
  networks,
  precision_recall,
  reference,
  scores,
  sliced_distance,
  sources,
)
from gmem_jax.parallel import sharding
from tests import recipe
from tests.evaluate import fakes, no_torchvision

pytestmark = [
  pytest.mark.torch,
  pytest.mark.filterwarnings("ignore"),  # of the oracles' own libraries
]
torch = pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
with no_torchvision.installed():
  fidelity = pytest.importorskip(
    "torch_fidelity", reason="needs torch-fidelity, without dependencies"
  )
  fid_score = pytest.importorskip(
    "pytorch_fid.fid_score", reason="needs pytorch-fid, without dependencies"
  )

TOLERANCE = 1e-3


def mesh():
  return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))


def features(seed, n, width, shift=0.0):
  rng = np.random.default_rng(seed)
  mix = np.random.default_rng(9).normal(size=(width, width)) / np.sqrt(width)
  return (rng.normal(size=(n, width)) @ mix + shift).astype(np.float32)


def assert_close(name, ours, theirs, tolerance=TOLERANCE):
  error = abs(ours - theirs) / abs(theirs)
  print(f"{name}: ours {ours:.7g}, theirs {theirs:.7g}, differ by {error:.1e}")
  assert error <= tolerance


def test_distance_is_that_of_both():
  from torch_fidelity import metric_fid

  one, two = features(0, 400, 64), features(1, 300, 64, 0.2)
  ours = frechet.frechet_distance(
    fakes.fit_gaussian(one), fakes.fit_gaussian(two)
  )
  a, b = (
    {"mu": x.mean(0, dtype=float), "sigma": np.cov(x.T.astype(float))}
    for x in (one, two)
  )
  theirs = fid_score.calculate_frechet_distance(*a.values(), *b.values())
  assert_close("pytorch-fid", ours, float(theirs), 1e-6)
  theirs = metric_fid.fid_statistics_to_metric(a, b, verbose=False)
  key = metric_fid.KEY_METRIC_FID
  assert_close("torch-fidelity", ours, theirs[key], 1e-6)


def test_inception_score_is_that_of_torch_fidelity():
  from torch_fidelity import metric_isc

  logits = features(0, 500, 20) * 4
  theirs = metric_isc.isc_features_to_metric(
    torch.from_numpy(logits), splits=10, shuffle=False
  )
  ours = inception_score.InceptionScore(20, split=50)
  ours.add(logits)
  key = metric_isc.KEY_METRIC_ISC_MEAN
  assert_close("inception score", ours.score(), theirs[key], 1e-9)


def test_kernel_distance_is_that_of_torch_fidelity():
  from torch_fidelity import metric_kid

  samples, real = features(0, 203, 64, 0.3), features(1, 203, 64)
  theirs = metric_kid.kid_features_to_metric(
    torch.from_numpy(samples),
    torch.from_numpy(real),
    kid_subsets=1,  # all of them
    kid_subset_size=203,
    verbose=False,
  )
  ours, _ = kernel_distance.kernel_distance(samples, real, mesh())
  assert_close("KID", ours, theirs[metric_kid.KEY_METRIC_KID_MEAN], 1e-5)


@pytest.mark.parametrize("sizes", [(203, 203), (120, 120)])
def test_sliced_distance_is_that_of_pot(sizes):
  """torch-fidelity's own MIND is in no release yet (0.4.0)."""
  ot = pytest.importorskip("ot", reason="needs POT (extra 'oracle')")
  samples, real = features(0, sizes[0], 64, 0.3), features(1, sizes[1], 64)
  directions = sliced_distance._directions(64, 1)
  root = ot.sliced_wasserstein_distance(
    samples.astype(float), real.astype(float), p=2,
    projections=directions.T.astype(float),
  )  # fmt: skip
  ours, _ = sliced_distance.sliced_distance(samples, real, mesh())
  assert_close("MIND", ours, 3 * 64 * float(root) ** 2, 1e-6)


def test_precision_and_recall_are_those_of_torch_fidelity():
  from torch_fidelity import metric_prc

  samples, real = features(0, 300, 8, 0.3), features(1, 400, 8)
  theirs = metric_prc.calculate_precision_recall_full(
    torch.from_numpy(samples), torch.from_numpy(real)
  )
  ours = precision_recall.precision_recall(real, samples, mesh())
  for name, a, b in zip(("precision", "recall"), ours, theirs, strict=True):
    assert 0.2 < b < 1
    assert_close(name, a, b)


@pytest.fixture(scope="module")
def state_dict():
  shapes = recipe.manifest_shapes("inception_fid")
  return recipe.recipe_state_dict(5, shapes, 2**0.5)


@pytest.fixture(scope="module")
def oracle(state_dict, tmp_path_factory):
  """Images uint8 [n H W 3] -> features of torch-fidelity's network."""
  from torch_fidelity import feature_extractor_inceptionv3 as module

  path = tmp_path_factory.mktemp("weights") / "inception.pth"
  tensors = {k: torch.from_numpy(v.copy()) for k, v in state_dict.items()}
  torch.save(tensors, path)
  network = module.FeatureExtractorInceptionV3(
    "oracle", ["2048", "logits_unbiased"], str(path)
  )
  spatial = []
  network.Mixed_6d.branch1x1.register_forward_hook(
    lambda module, inputs, output: spatial.append(output[:, :7])
  )

  def apply(pixels):
    spatial.clear()
    batches = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).split(8)
    with torch.no_grad():
      pool, logits = zip(*[network(b) for b in batches], strict=True)
    rows = torch.cat(spatial).permute(0, 2, 3, 1).flatten(1)
    return {
      "pool": torch.cat(pool).numpy(),
      "logits": torch.cat(logits).numpy(),
      "spatial": rows.numpy(),
    }

  return apply


def sqrtm_distance(a, b):
  """The definition, by scipy's matrix square root."""
  mean_a, mean_b = a.mean(0, dtype=float), b.mean(0, dtype=float)
  cov_a, cov_b = np.cov(a.T.astype(float)), np.cov(b.T.astype(float))
  root = scipy.linalg.sqrtm(cov_a @ cov_b)
  squared = ((mean_a - mean_b) ** 2).sum()
  return squared + np.trace(cov_a + cov_b - 2 * np.real(root))


@pytest.mark.slow
def test_all_scores_of_the_real_network(state_dict, oracle, monkeypatch):
  """Features and scores of the ADM suite on the same images and weights.

  Few images, so FID and sFID are of singular covariances: harder for the
  square root than what is measured in earnest, where the number of images
  would be refused. The check is switched off here.
  """
  monkeypatch.setattr(
    "gmem_jax.evaluate.scores.check_images", lambda *args: None
  )
  real, samples = fakes.images(1, 24, 64), fakes.images(2, 20, 64)
  theirs_real, theirs = oracle(real), oracle(samples)
  params = rules.to_flax(names.RULES, state_dict)
  network = networks.inception_network(
    jax.tree.map(jnp.asarray, params), "adm", "recipe"
  )
  one = sharding.make_mesh(
    sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  extractor = extractor_lib.Extractor([network], one, 4)

  def source(pixels):
    return sources.Arrays(
      {}, len(pixels), pixels.shape[1:], lambda n: pixels[n]
    )

  found = extractor.start(
    np.arange(4), *extractor.load(np.arange(4), source(samples))
  )()
  for name, value in found.items():
    error = np.abs(value - theirs[name][:4]).max() / np.abs(theirs[name]).max()
    print(f"{name}: {error:.1e} of the maximum")
    assert error <= 1e-4
  statistics = reference.measure_statistics(
    source(real), extractor, {"pool", "spatial"}, {"pool"}, None, "real"
  )
  wanted = ("fid", "sfid", "inception_score", "precision_recall")
  evaluator = scores.Evaluator(wanted, extractor, statistics)
  ours = evaluator(source(samples), len(samples))
  assert_close(
    "fid", ours["fid"], sqrtm_distance(theirs["pool"], theirs_real["pool"])
  )
  assert_close(
    "sfid",
    ours["sfid"],
    sqrtm_distance(theirs["spatial"], theirs_real["spatial"]),
  )
  from torch_fidelity import metric_isc, metric_prc

  expected = metric_isc.isc_features_to_metric(
    torch.from_numpy(theirs["logits"]), splits=1, shuffle=False
  )
  assert_close(
    "inception score",
    ours["inception_score"],
    expected[metric_isc.KEY_METRIC_ISC_MEAN],
  )
  expected = metric_prc.calculate_precision_recall_full(
    torch.from_numpy(theirs["pool"]), torch.from_numpy(theirs_real["pool"])
  )
  print("precision, recall:", ours["precision"], ours["recall"], expected)
  assert (ours["precision"], ours["recall"]) == pytest.approx(expected, 1e-6)

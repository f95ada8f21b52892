"""Resampling: agreement with PyTorch and with numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models.encoders import resize

METHODS = (
  resize.bicubic,
  resize.bicubic_antialias,
  resize.bilinear,
  resize.bilinear_corner,
)
# Shrinking, growing, both at once, one pixel, no change.
SIZES = (
  ((37, 37), (16, 16)),
  ((64, 48), (299, 299)),
  ((13, 7), (29, 3)),
  ((3, 1), (7, 4)),
  ((5, 9), (5, 9)),
)


def _images(size: tuple[int, int], seed: int = 0) -> jnp.ndarray:
  shape = (2, *size, 3)
  return jnp.asarray(
    np.random.default_rng(seed).standard_normal(shape), jnp.float32
  )


def _row(values: list[float], method, width: int) -> np.ndarray:
  """Resamples one row of pixels."""
  image = jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)
  return np.asarray(method(image, (1, width))).ravel()


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_constant_image_stays_constant(method, source, target):
  image = jnp.full((1, *source, 2), 0.7, jnp.float32)
  np.testing.assert_allclose(method(image, target), 0.7, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_own_size_changes_nothing(method):
  images = _images((6, 11))
  np.testing.assert_array_equal(method(images, (6, 11)), images)


@pytest.mark.parametrize("method", METHODS)
def test_axes_are_independent(method):
  """Transposing the image transposes the result."""
  images = _images((12, 17))
  straight = method(images, (5, 23))
  turned = method(images.swapaxes(1, 2), (23, 5)).swapaxes(1, 2)
  np.testing.assert_allclose(straight, turned, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_batch_members_do_not_meet(method):
  images = _images((9, 9))
  both = method(images, (4, 13))
  for i in range(2):
    np.testing.assert_allclose(
      both[i], method(images[i : i + 1], (4, 13))[0], atol=1e-6
    )


def test_bilinear_by_hand():
  np.testing.assert_allclose(
    _row([0, 1], resize.bilinear, 4), [0, 0.25, 0.75, 1], atol=1e-7
  )
  np.testing.assert_allclose(
    _row([0, 1], resize.bilinear_corner, 4), [0, 0.5, 1, 1], atol=1e-7
  )


def test_bicubic_by_hand():
  """Halving reads at t = 1/2, where the taps weigh (-3, 19, 19, -3) / 32."""
  values = [3.0, 1.0, -2.0, 5.0, 4.0, -1.0]
  padded = [values[0], *values, values[-1]]
  expected = [
    np.dot(padded[i : i + 4], [-3, 19, 19, -3]) / 32 for i in (0, 2, 4)
  ]
  np.testing.assert_allclose(
    _row(values, resize.bicubic, 3), expected, rtol=1e-6
  )


def test_antialias_averages_what_interpolation_skips():
  """Alternating pixels average out; interpolating every fourth one does not."""
  values = [1.0, -1.0] * 12
  values[::3] = [1.0] * 8
  mean = np.mean(values)
  filtered = _row(values, resize.bicubic_antialias, 2)
  sampled = _row(values, resize.bicubic, 2)
  assert np.abs(filtered - mean).max() < 0.1
  assert np.abs(sampled - mean).max() > 0.3


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_corner_against_loops(source, target):
  images = np.asarray(_images(source), np.float64)
  (h, w), (h2, w2) = source, target
  expected = np.zeros((2, h2, w2, 3))
  for i in range(h2):
    for j in range(w2):
      y, x = i * h / h2, j * w / w2
      y0, x0 = int(y), int(x)
      y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
      top = images[:, y0, x0] * (1 - (x - x0)) + images[:, y0, x1] * (x - x0)
      low = images[:, y1, x0] * (1 - (x - x0)) + images[:, y1, x1] * (x - x0)
      expected[:, i, j] = top * (1 - (y - y0)) + low * (y - y0)
  ours = resize.bilinear_corner(_images(source), target)
  np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_empty_size_is_refused(method):
  with pytest.raises(ValueError, match="both sides must be positive"):
    method(_images((4, 4)), (0, 4))


@pytest.mark.torch
@pytest.mark.parametrize(
  ("source", "target"), [*SIZES, ((256, 256), (224, 224))]
)
@pytest.mark.parametrize(
  ("method", "options"),
  [
    (resize.bicubic, {"mode": "bicubic"}),
    (resize.bicubic_antialias, {"mode": "bicubic", "antialias": True}),
    (resize.bilinear, {"mode": "bilinear"}),
  ],
)
def test_equals_torch(method, options, source, target):
  """In float64: torch's float32 coordinates alone cost it up to 4e-5."""
  torch = pytest.importorskip("torch", reason='needs the extra "oracle"')
  images = _images(source)
  nchw = torch.from_numpy(np.array(images, np.float64)).permute(0, 3, 1, 2)
  theirs = torch.nn.functional.interpolate(
    nchw, size=target, align_corners=False, **options
  )
  theirs = theirs.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(
    method(images, target), theirs, atol=1e-6 * np.abs(theirs).max()
  )


@pytest.mark.torch
@pytest.mark.parametrize(("source", "target"), [(16, 32), (16, 48), (37, 16)])
def test_an_offset_equals_torch(source, target):
  """As DINOv2 asks for it: by a factor, which is not the sizes' ratio."""
  torch = pytest.importorskip("torch", reason='needs the extra "oracle"')
  images = _images((source, source))
  nchw = torch.from_numpy(np.array(images, np.float64)).permute(0, 3, 1, 2)
  factor = (target + 0.1) / source
  theirs = torch.nn.functional.interpolate(
    nchw, scale_factor=(factor, factor), mode="bicubic"
  )
  theirs = theirs.permute(0, 2, 3, 1).numpy()
  ours = resize.bicubic_offset(images, (target, target), 0.1)
  np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
  plain = np.asarray(resize.bicubic(images, (target, target)))
  assert np.abs(plain - theirs).max() > 1e-3

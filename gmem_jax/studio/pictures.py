"""Images for the page: enlarged or shrunk, and as HTML.

Shapes: h w pixels, 3 channels, or 1 for grey images.
"""

import base64
import html
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Images of fewer pixels a side are enlarged with hard edges.
SMALL = 64


def rgb(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
  """Grey or RGB to RGB."""
  return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def thumbnail(
  pixels: UInt8[np.ndarray, "h w c"], side: int
) -> UInt8[np.ndarray, "H W 3"]:
  """An image of about `side` pixels: each pixel repeated, or shrunk."""
  height, width = pixels.shape[:2]
  scale = side // max(height, width)
  if scale > 1:
    return np.ascontiguousarray(rgb(pixels).repeat(scale, 0).repeat(scale, 1))
  image = Image.fromarray(np.ascontiguousarray(rgb(pixels)))
  image.thumbnail((side, side))
  return np.asarray(image)


def url(pixels: UInt8[np.ndarray, "h w c"], *, quick: bool = False) -> str:
  """A data URL: PNG, or JPEG of images that are soon replaced."""
  grey = pixels.shape[2] == 1
  file, kind = io.BytesIO(), "png"
  image = Image.fromarray(
    np.ascontiguousarray(pixels[..., 0] if grey else pixels)
  )
  if quick and min(image.size) > SMALL:
    kind = "jpeg"
    image.save(file, "JPEG", quality=75)
  else:
    image.save(file, "PNG")
  text = base64.b64encode(file.getvalue()).decode()
  return f"data:image/{kind};base64,{text}"


def tag(
  pixels: UInt8[np.ndarray, "h w c"] | None, alt: str, *, quick: bool = False
) -> str:
  """An <img>, or a place for one that is not known."""
  if pixels is None:
    return '<div class="gm-none">no image known</div>'
  small = ' class="gm-small"' if max(pixels.shape[:2]) <= SMALL else ""
  source = url(pixels, quick=quick)
  return f'<img src="{source}" alt="{html.escape(alt)}"{small}>'


def figure(
  pixels: UInt8[np.ndarray, "h w c"] | None,
  alt: str,
  caption: str = "",
  *,
  kind: str = "gm-card",
  below: str = "",
  quick: bool = False,
) -> str:
  """An image with its caption; `below` is HTML."""
  text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
  return (
    f'<figure class="{kind}">{tag(pixels, alt, quick=quick)}{text}{below}'
    "</figure>"
  )


def facts(values: dict[str, str]) -> str:
  """A list of names and values."""
  return (
    '<dl class="gm-facts">'
    + "".join(
      f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
      for name, value in values.items()
    )
    + "</dl>"
  )


def bar(done: float, text: str) -> str:
  """A progress bar; `done` is in [0, 1]."""
  return (
    f'<div class="gm-bar" role="status"><progress max="1" value="{done:.3f}"'
    f' aria-label="progress"></progress><span>{html.escape(text)}</span></div>'
  )


def error(text: str) -> str:
  """A message about what does not fit."""
  return f'<p class="gm-error" role="alert">{html.escape(text)}</p>'


def hint(text: str, *, live: bool = False) -> str:
  """A remark; a live one is read out when it changes."""
  role = ' role="status"' if live else ""
  return f'<p class="gm-hint"{role}>{html.escape(text)}</p>'

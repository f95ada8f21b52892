"""Images made by hand: small files that ask for gigabytes.

Each function writes one to the path that it is given.
"""

import functools
import pathlib
import struct
import zlib
from collections.abc import Callable

import PIL.Image


@functools.cache
def zeros(megabytes: int) -> tuple[bytes, int, int]:
  """(deflated zeros, their checksum, their Adler sum); of a few kilobytes."""
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
  crc = 0
  for _ in range(megabytes):
    crc = zlib.crc32(bytes(1 << 20), crc)
  # Of zeros: the first sum stays 1, the second counts the bytes.
  adler = ((megabytes << 20) % 65521) << 16 | 1
  return block * megabytes + b"\x03\x00", crc, adler


def _png(
  path: pathlib.Path, side: int, kind: int, depth: int, data: bytes,
  *more: tuple[bytes, bytes], interlaced: int = 0, height: int = 0,
) -> None:  # fmt: skip
  """A square PNG of a colour type and depth, around packed data."""
  size = struct.pack(
    ">2I5B", side, height or side, depth, kind, 0, 0, interlaced
  )
  chunks = [(b"IHDR", size), *more, (b"IDAT", data), (b"IEND", b"")]
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + b"".join(
      struct.pack(">I", len(content)) + name + content
      + struct.pack(">I", zlib.crc32(name + content))
      for name, content in chunks
    )
  )  # fmt: skip


def _plain_png(
  path: pathlib.Path, side: int, kind: int, depth: int, **more: int
) -> None:
  """One of zeros, as large as it says."""
  bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
  megabytes = -(-(side * bits // 8 + 1) * side // (1 << 20))
  packed, _, adler = zeros(megabytes)
  extra = [(b"PLTE", bytes(768))] if kind == 3 else []
  data = b"\x78\x9c" + packed + struct.pack(">I", adler)
  _png(path, side, kind, depth, data, *extra, **more)


def _text_png(path: pathlib.Path) -> None:
  """One with a compressed text of half a gigabyte."""
  packed, _, adler = zeros(512)
  text = b"a\0\0\x78\x9c" + packed + struct.pack(">I", adler)
  data = zlib.compress(bytes(10 * 31))
  _png(path, 10, 2, 8, data, (b"zTXt", text))


def _saved(path: pathlib.Path, mode: str, side: int, kind: str, **how) -> None:
  PIL.Image.new(mode, (side, side)).save(path, kind, **how)


def _cut_jpeg(path: pathlib.Path) -> None:
  _saved(path, "RGB", 4000, "JPEG", progressive=True)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])


def _markers(path: pathlib.Path) -> None:
  """A JPEG that ends in a million markers, each the possible end."""
  _saved(path, "RGB", 16, "JPEG")
  path.write_bytes(path.read_bytes()[:-2] + b"\xff\xc4" * 1_000_000)


def _frames(path: pathlib.Path) -> None:
  frames = [PIL.Image.new("P", (64, 64), k % 256) for k in range(500)]
  frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def _wide_gif(path: pathlib.Path) -> None:
  _saved(path, "P", 8, "GIF")
  data = bytearray(path.read_bytes())
  data[6:10] = b"\xff\xff\xff\xff"
  path.write_bytes(bytes(data))


def _tall_bmp(path: pathlib.Path) -> None:
  _saved(path, "P", 8, "BMP")
  data = bytearray(path.read_bytes())
  data[18:26] = struct.pack("<2i", 10_000, 10_000)
  data[30:34] = struct.pack("<I", 1)  # Run lengths.
  path.write_bytes(bytes(data))


# Name -> what writes it.
CASES: dict[str, Callable[[pathlib.Path], object]] = {
  "grey": lambda path: _plain_png(path, 13_300, 0, 8),
  "one bit": lambda path: _plain_png(path, 13_300, 0, 1),
  "deep grey": lambda path: _plain_png(path, 9_400, 0, 16),
  "colour": lambda path: _plain_png(path, 9_400, 2, 8),
  "deep colour": lambda path: _plain_png(path, 13_300, 2, 16),
  "transparent": lambda path: _plain_png(path, 13_300, 6, 8),
  "palette": lambda path: _plain_png(path, 13_300, 3, 8),
  "interlaced": lambda path: _plain_png(path, 7_000, 6, 8, interlaced=1),
  "enormous": lambda path: _png(path, 2**31 - 1, 2, 8, b""),
  "a line": lambda path: _png(path, 170_000_000, 0, 8, b"", height=1),
  "a text": _text_png,
  "a cut JPEG": _cut_jpeg,
  "markers": _markers,
  "frames": _frames,
  "a wide GIF": _wide_gif,
  "a tall BMP": _tall_bmp,
  "CMYK": lambda path: _saved(path, "CMYK", 6_600, "JPEG", progressive=True),
  "WebP": lambda path: _saved(path, "RGB", 6_600, "WEBP", lossless=True,
                              quality=0, method=0),
}  # fmt: skip

"""Image files as arrays of one shape. Axes: N example, H W C image."""

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
from etils import epath

from kdjax.errors import UserError

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's mode for each number of channels
_GREY = ('1', 'L', 'LA')
_COLOUR = ('P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')


def files(folder: epath.Path, nested: bool = False) -> list[epath.Path]:
  """The image files of a folder, known by their suffixes, sorted. Hidden files are left out."""
  visible = [path for path in folder.iterdir() if not path.name.startswith('.')]
  found = [path for path in visible if path.suffix.lower() in SUFFIXES]
  if nested:
    found += [f for path in visible if path.is_dir() for f in files(path, nested)]
  return sorted(found)


def shape(file: epath.Path) -> tuple[int, int, int]:
  """(H, W, C) from the header of a file. C is 1 for a grey image and 3 for any other.

  Raises:
    UserError: the file is not an image, or has more than 8 bits a channel.
  """
  image = _open(file, str(file))
  return image.height, image.width, 1 if image.mode in _GREY else 3


def decode(
  item: bytes | epath.Path | np.ndarray,
  shape: tuple[int, int, int],
  place: str,
  resize: bool = True,
  to_grey: bool = True,
  special: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
) -> np.ndarray:
  """An image (the content of a file, a file, or an HWC array) as uint8 of the given shape.

  A grey image becomes a colour image with three equal channels where the shape asks for it.

  Args:
    place: the place of the image, with which errors begin.
    resize: whether the shorter side may be scaled (bilinear, antialiased), and the longer one cropped at both
      ends.
    to_grey: whether a colour image may become grey (as in ITU-R 601).
    special: changes the image before it is resized.

  Raises:
    UserError: the image cannot be decoded, or needs a change that is not allowed.
  """
  height, width, channels = shape
  image = _open(item, place)
  try:
    image.load()
  except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
    raise UserError(f'{place}: cannot be decoded as an image ({error})') from error
  if channels == 1 and image.mode in _COLOUR and not to_grey:
    raise UserError(
      f'{place}: is in colour, and the first image is grey. Make all images colour, or all grey'
    )
  if image.mode != MODES[channels]:
    image = image.convert(MODES[channels])
  if special is not None:
    image = special(image)
  if image.size != (width, height):
    if not resize:
      raise UserError(
        f'{place}: has {image.height}x{image.width} pixels, the first image {height}x{width}. Set '
        'dataset.image_size to resize and crop all to one size'
      )
    image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(shape)


def transposed(image: PIL.Image.Image) -> PIL.Image.Image:
  """The image with rows and columns exchanged."""
  return image.transpose(PIL.Image.Transpose.TRANSPOSE)


def _open(item: bytes | epath.Path | np.ndarray, place: str) -> PIL.Image.Image:
  if isinstance(item, np.ndarray):
    return PIL.Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item)
  try:
    image = PIL.Image.open(io.BytesIO(item if isinstance(item, bytes) else item.read_bytes()))
  except (OSError, SyntaxError, ValueError) as error:
    raise UserError(f'{place}: cannot be decoded as an image ({error})') from error
  if image.mode not in _GREY + _COLOUR:
    raise UserError(f'{place}: has the pixel format {image.mode}. Needed: at most 8 bits a channel')
  return image

"""Images of every kind become uint8 arrays of one shape, or an error that says which cannot."""

import io

import numpy as np
import PIL.Image
import pytest
from etils import epath
from tiny_data import encoded, random_images

from kdjax.data import images
from kdjax.errors import UserError


def saved(image: PIL.Image.Image, kind='PNG'):
  content = io.BytesIO()
  image.save(content, kind)
  return content.getvalue()


@pytest.mark.parametrize('shape', [(4, 6, 3), (5, 3, 1), (3, 3, 4)])
def test_a_png_is_decoded_as_it_is(tmp_path, shape):
  (image,) = random_images(1, *shape)
  file = epath.Path(tmp_path / 'image.png')
  file.write_bytes(encoded(image))
  for item in (encoded(image), file, image):
    found = images.decode(item, shape, 'here', resize=False, to_grey=False)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image)


def test_the_longer_side_is_cropped_at_both_ends_and_a_small_image_is_enlarged():
  (wide,) = random_images(1, 4, 8, 3)
  np.testing.assert_array_equal(images.decode(wide, (4, 4, 3), 'here'), wide[:, 2:6])
  tall = wide.transpose(1, 0, 2)
  np.testing.assert_array_equal(images.decode(tall, (4, 4, 3), 'here'), tall[2:6])
  found = images.decode(np.full((2, 5, 3), 77, np.uint8), (9, 9, 3), 'here')
  np.testing.assert_array_equal(found, np.full((9, 9, 3), 77))


def test_scaling_is_bilinear_and_antialiased():
  line = np.zeros((8, 8, 1), np.uint8)
  line[:, 3] = 240
  # Half the size: source pixels 0.5 and 1.5 from the middle of a new one weigh 3/8 and 1/8.
  expected = np.tile(np.array([0, 90, 30, 0], np.uint8)[:, None], (4, 1, 1))
  np.testing.assert_array_equal(images.decode(line, (4, 4, 1), 'here'), expected)
  stripes = np.zeros((64, 64, 1), np.uint8)
  stripes[::2] = 255
  # At the border one stripe more of one kind weighs in.
  inner = images.decode(stripes, (16, 16, 1), 'here')[1:-1]
  assert np.abs(inner.astype(float) - 127.5).max() <= 1


def test_grey_becomes_colour_and_colour_grey():
  (grey,) = random_images(1, 4, 6, 1)
  np.testing.assert_array_equal(
    images.decode(grey, (4, 6, 3), 'here', resize=False, to_grey=False), np.repeat(grey, 3, -1)
  )
  colours = np.eye(3, dtype=np.uint8)[None] * 255  # a red, a green and a blue pixel
  found = images.decode(colours, (1, 3, 1), 'here', resize=False)
  np.testing.assert_array_equal(found, [[[76], [150], [29]]])  # 0.299, 0.587, 0.114 of 255


def test_other_pixel_formats_become_rgb():
  for mode, kind in (('P', 'PNG'), ('RGBA', 'PNG'), ('CMYK', 'TIFF')):
    content = saved(PIL.Image.new('RGB', (4, 6), (255, 0, 255)).convert(mode), kind)
    found = images.decode(content, (6, 4, 3), 'here')
    np.testing.assert_array_equal(found, np.tile(np.array([255, 0, 255]), (6, 4, 1)))


def test_transposed_swaps_height_and_width_before_resizing():
  (image,) = random_images(1, 4, 6, 1)
  found = images.decode(image, (6, 4, 1), 'here', resize=False, special=images.transposed)
  np.testing.assert_array_equal(found, image.transpose(1, 0, 2))


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'no image', 'cannot be decoded'),
    (b'', 'cannot be decoded'),
    (encoded(random_images(1, 32, 32, 3)[0])[:-800], 'cannot be decoded'),
    (encoded(random_images(1, 64, 64, 3)[0], 'JPEG')[:-800], 'cannot be decoded'),
    (saved(PIL.Image.new('I;16', (2, 2))), 'pixel format I;16'),
  ],
  ids=['text', 'empty', 'cut png', 'cut jpeg', '16 bits'],
)
def test_an_image_that_cannot_be_decoded_is_named(content, problem):
  with pytest.raises(UserError, match=f'^/data/cat/1.png: .*{problem}'):
    images.decode(content, (32, 32, 3), '/data/cat/1.png')


def test_a_change_that_is_not_allowed_is_named():
  (image,) = random_images(1, 4, 6, 3)
  with pytest.raises(UserError, match=r'^1\.png: has 4x6 pixels.* 4x4\. Set dataset\.image_size'):
    images.decode(image, (4, 4, 3), '1.png', resize=False)
  with pytest.raises(UserError, match=r'^1\.png: is in colour'):
    images.decode(image, (4, 6, 1), '1.png', to_grey=False)


def test_the_shape_is_that_of_the_file(tmp_path):
  place = epath.Path(tmp_path / 'image.png')
  for mode, channels in (('L', 1), ('1', 1), ('LA', 1), ('RGB', 3), ('P', 3), ('RGBA', 3)):
    place.write_bytes(saved(PIL.Image.new(mode, (5, 7))))
    assert images.shape(place) == (7, 5, channels)

"""Data sets: `describe` tells shapes and sizes without reading inputs, `load` reads the splits.

The examples of a split have a fixed order, and an example's index is its position there.
"""

from kdjax.data.arrays import content
from kdjax.data.load import EXTRA, describe, extra_size, forget, load, load_extra
from kdjax.data.splits import (
  SAMPLED,
  Description,
  Split,
  balanced_order,
  checksum,
  part,
  part_size,
  split_sizes,
)

__all__ = [
  'EXTRA',
  'SAMPLED',
  'Description',
  'Split',
  'balanced_order',
  'checksum',
  'content',
  'describe',
  'extra_size',
  'forget',
  'load',
  'load_extra',
  'part',
  'part_size',
  'split_sizes',
]

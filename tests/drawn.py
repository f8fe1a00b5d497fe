"""Checks of the figure, the table and the caption of a part of the analysis."""

from analysis.part import Arrays, Part


def check(part: Part, arrays: Arrays) -> None:
  """All axes are labelled, all rows have as many cells, no cell is NaN, and the caption is a sentence."""
  figure = part.draw(arrays)
  figure.canvas.draw()
  assert all(axes.get_xlabel() or axes.get_ylabel() or axes.images for axes in figure.axes)
  rows = part.table(arrays)
  assert len({len(row) for row in rows}) == 1
  assert not any('nan' in cell for row in rows for cell in row)
  assert part.caption(arrays).endswith('.')

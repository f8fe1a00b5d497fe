"""The parts of the analysis, in the order in which they run and appear in the report."""

from ..part import Part
from . import barriers, basins, curvature, decomposition, lambdas, maps, planes, trajectory

PARTS: dict[str, Part] = {
  part.name: part
  for module in (decomposition, planes, barriers, curvature, trajectory, maps, basins, lambdas)
  for part in module.PARTS
}

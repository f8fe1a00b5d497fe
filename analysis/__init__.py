"""Analyses of loss landscapes and trajectories: why does a student fail to match its teacher?

The package reads the workdir of a kdjax run; kdjax does not depend on it. `python -m analysis DIR` runs
`parts` on a student. The other modules are functions of (loss, parameters) that do not depend on how the
parameters were trained.
"""

"""Why does a student fail to match its teacher? Analyses of loss landscapes and trajectories.

It reads what a run of kdjax left, and kdjax knows nothing of it. `python -m analysis DIR` runs `parts`
on a student; everything else is functions of (loss, parameters) that know nothing of how the
parameters were trained.
"""

"""The stages of an experiment, one file each, and the pipeline that runs them in order."""

"""The stages of an experiment, in files of their own, and the pipeline that runs them in their order."""

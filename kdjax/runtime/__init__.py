"""Files, hosts, progress on the terminal, and XLA's flags. Nothing here knows an experiment."""

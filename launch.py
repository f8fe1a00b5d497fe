"""Runs the stages of an experiment.

    python launch.py --config=configs/digits_resnet.py --config.student.temperature=1

`python launch.py --help` lists the flags and the experiments; kdjax/cli.py implements them.
"""

import signal

if __name__ == '__main__':
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C shows no traceback of an import
  from kdjax import cli

  signal.signal(signal.SIGINT, signal.default_int_handler)
  cli.run()

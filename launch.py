"""Runs the stages of an experiment.

    python launch.py --config=configs/digits_resnet.py --config.student.temperature=1

`python launch.py --help` lists the flags and the experiments; kdjax/cli.py implements them.
"""

from kdjax import cli

if __name__ == '__main__':
  cli.run()

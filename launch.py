"""Runs the stages of an experiment.

    python launch.py --config=configs/digits_resnet.py --config.student.temperature=1

`python launch.py --help` lists the flags and the experiments; kdjax/interface/ implements them.
"""

from kdjax.interface import command_line

if __name__ == '__main__':
  command_line.run()

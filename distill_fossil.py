"""Distil a small Fossil recommender from a large one, by its lists or scores.

python distill_fossil.py --dataset ml-100k --d 20
"""

from distillation import distill
from fossil import Fossil
from utils import run_command

DESCRIPTION = "Distil a small Fossil recommender from a large one, by its lists or scores."


def main(argv=None):
    """Do what the command line ``argv`` (default: this process's) asks for; the exit status."""
    return distill(Fossil, "distill_fossil.py", DESCRIPTION, d=20, teacher_d=50, argv=argv)


if __name__ == "__main__":
    run_command(main)

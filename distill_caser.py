"""Distil a small Caser recommender from a large one, by its lists or scores.

python distill_caser.py --dataset ml-100k --d 20
"""

from caser import Caser
from distillation import distill
from utils import run_command

DESCRIPTION = "Distil a small Caser recommender from a large one, by its lists or scores."


def main(argv=None):
    """Do what the command line ``argv`` (default: this process's) asks for; the exit status."""
    return distill(Caser, "distill_caser.py", DESCRIPTION, d=50, teacher_d=100, argv=argv)


if __name__ == "__main__":
    run_command(main)

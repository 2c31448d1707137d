"""Train a Caser recommender: the teacher, or a student without one.

python train_caser.py --dataset ml-100k --d 100
"""

from caser import Caser
from recommender import train
from utils import run_command

DESCRIPTION = "Train a Caser recommender: the teacher, or a student without one."


def main(argv=None):
    """Do what the command line ``argv`` (default: this process's) asks for; the exit status."""
    return train(Caser, "train_caser.py", DESCRIPTION, d=100, argv=argv)


if __name__ == "__main__":
    run_command(main)

"""Train a Fossil recommender: the teacher, or a student without one.

python train_fossil.py --dataset ml-100k --d 50
"""

from fossil import Fossil
from recommender import train
from utils import run_command

DESCRIPTION = "Train a Fossil recommender: the teacher, or a student without one."


def main(argv=None):
    """Do what the command line ``argv`` (default: this process's) asks for; the exit status."""
    return train(Fossil, "train_fossil.py", DESCRIPTION, d=50, argv=argv)


if __name__ == "__main__":
    run_command(main)

"""Two processes, started by torchrun, at one run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import test_golden
import torch
from conftest import ROOT, STUDENT, assert_same_weights, records

import evaluation
from caser import Caser
from distillation import teacher_lists
from evaluation import evaluate_ranking
from recommender import Recommender
from support.data_set import read_interactions
from support.torchrun import join, launched, one_run, sum_over_processes
from utils import UserError, run_command

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*words):
    """Start two processes of a script."""
    folders = map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "method"))
    return subprocess.Popen([*TORCHRUN, "--", *map(str, words)], text=True, cwd=ROOT,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


class Watched(Recommender):
    """Keeps which instances each step has, and the negatives that it draws for them."""

    def draw_negatives(self, rows, users):
        negatives = super().draw_negatives(rows, users)
        self.steps = [*getattr(self, "steps", []), (rows.tolist(), negatives.tolist())]
        return negatives


def trained_and_ranked():
    """A dict of arrays and lists: a small model's steps, weights, metrics and lists."""
    train = test_golden.training_data(5, 1)
    test, _ = read_interactions(test_golden.GOLDEN / "test.txt", train.user_map, train.item_map)
    # Of 26 instances the second batch has one.
    model = Watched(partial(Caser, d=4, drop=0.0), n_iter=1, batch_size=25)
    model.prepare(train)
    torch.manual_seed(0)
    start = Caser(train.num_users, train.num_items, d=4)
    found = {f"lists.{exclude}": teacher_lists(start, train, 3, exclude).tolist()
             for exclude in ("target", "observed")}  # fmt: skip
    found |= {
        name: values.tolist() for name, values in evaluate_ranking(start, train, test).items()
    }
    model.fit(train)
    return found, model.steps, model.records[0]["loss"]


@one_run
def work():
    """What each of the processes does."""
    number, _ = launched()
    join("cpu")
    evaluation.BLOCK = 60  # scores at once: three blocks of users for two processes
    Path(sys.argv[1], f"{number}.json").write_text(json.dumps(trained_and_ranked()))
    print("told by one")
    test_golden.test_training_steps(test_golden.GOLDEN / "teacher_steps.npz")
    test_golden.test_distillation_steps(test_golden.GOLDEN / "distill_steps.npz")
    if number == 1:
        raise UserError("the second can't go on")
    sum_over_processes(torch.zeros(1))  # to which the second does not come
    return 0


def test_two_processes_do_what_one_does(tmp_path):
    process = torchrun(__file__, tmp_path)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 1
    assert out.count("told by one") == 1
    lines = [line for line in err.splitlines() if ": error: " in line]
    assert lines == [f"{Path(__file__).name}: error: the second can't go on"]
    assert "exitcode  : 2" in err[err.index(lines[0]) :]  # torchrun's report follows
    found, steps, loss = trained_and_ranked()
    both = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1)]
    assert both[0][0] == both[1][0] == found
    assert both[0][2] == both[1][2] == pytest.approx(loss, rel=0.2)  # of other negatives
    (first, last), (second,) = both[0][1], both[1][1]  # of one instance the second has no share
    assert first[0] + second[0] == steps[0][0]
    assert last[0] == steps[1][0]
    assert first[1] == steps[0][1][: len(first[1])]
    assert second[1] != steps[0][1][len(first[1]) :]
    assert second[1] != first[1][: len(second[1])]


def test_a_killed_run_of_two_processes_goes_on_to_the_bit(taught, toy, tmp_path):
    flags = [*toy.flags, *STUDENT, "--batch_size", 64, "--n_iter", 12, "--eval_every", 4]
    flags += ["--teacher_model_path", taught.teacher, "--output_dir"]
    whole = torchrun("distill_caser.py", *flags, tmp_path / "whole")
    out, err = whole.communicate(timeout=150)
    assert whole.returncode == 0, err
    assert out.count("Epoch 12 ") == out.count("Teacher (d=6)") == out.count("saved the") == 1

    killed = torchrun("distill_caser.py", *flags, tmp_path / "killed")
    names = [f"toy-caser-dim=4-rd{ending}" for ending in (".pth.tar", ".jsonl")]
    model, log = (tmp_path / "killed" / name for name in names)
    last = random.randint(1, 8)
    while not log.exists() or len(records(log)) <= last:
        assert killed.poll() is None
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(killed.pid)], capture_output=True, text=True)
    for pid in (killed.pid, *map(int, children.stdout.split())):
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    assert len(records(log)) < 13

    resumed = torchrun("distill_caser.py", "--checkpoint", model)
    out, err = resumed.communicate(timeout=150)
    assert resumed.returncode == 0, err
    assert_same_weights(model, tmp_path / "whole" / names[0])
    assert records(log)[0]["processes"] == 2


if __name__ == "__main__":
    run_command(work)

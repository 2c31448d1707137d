"""docs/own_network.md: its files, put beside the project's, train, distil and recommend."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, records, write_rows
from torch.testing import assert_close

import recommend
import recommender
from support.checkpoint import read_checkpoint
from support.data_set import DataSet

BLOCK = re.compile(r"^`(\w+\.py)`[^\n]*:\n\n```(python|diff)\n(.+?)^```", re.MULTILINE | re.DOTALL)
TEACHER, STUDENT = "ring-gru-dim=16", "ring-gru-dim=8-rd"
RING = 30  # users walk round a ring of so many items: the last of a window tells the next
FLAGS = ["--L", "3", "--drop", ".1", "--n_iter", "40", "--learning_rate", ".01",
         "--batch_size", "64", "--device", "cpu", "--output_dir", "out"]  # fmt: skip
ONE_BY_ONE = """
import json, runpy, sys
for sys.argv in json.load(sys.stdin):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    print(end="\\f\\n")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project's code with what the document adds, and data to learn from."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "support", folder / "support")
    text = (ROOT / "docs" / "own_network.md").read_text("utf-8")
    for name, kind, code in BLOCK.findall(text):
        if kind == "diff":
            code = patched((folder / name).read_text("utf-8"), code)
        else:
            assert not (folder / name).exists()
        (folder / name).write_text(code, "utf-8")
    walks = (np.random.default_rng(0).integers(0, RING, (60, 1)) + np.arange(15)) % RING
    rows = [(f"u{user}", f"i{item}") for user, walk in enumerate(walks) for item in walk]
    last = [row for place, row in enumerate(rows) if place % 15 == 14]
    write_rows(folder / "ring" / "test" / "train.txt", [row for row in rows if row not in last])
    write_rows(folder / "ring" / "test" / "test.txt", last)
    return folder


def patched(text, diff):
    """``text`` with its lines after a - replaced by those after a +, each hunk found exactly once;
    an empty line parts hunks."""
    for hunk in diff.strip("\n").split("\n\n"):
        lines = hunk.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in signs)
                    for signs in (" -", " +"))  # fmt: skip
        assert text.count(old) == 1, hunk
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def printed(project):
    """What each of four commands prints, which train, distil, evaluate and recommend in out/. They
    share a process, since starting one takes longer than what they do."""
    both = ["--train_root", "ring/test/train.txt", "--test_root", "ring/test/test.txt", *FLAGS]
    commands = [
        ["train_gru.py", *both, "--d", "16"],
        ["distill_gru.py", *both, "--d", "8", "--teacher_model_dim", "16", "--K", "5"],
        ["distill_gru.py", "--evaluate", "--checkpoint", f"out/{STUDENT}.pth.tar"],
        ["recommend.py", "--checkpoint", f"out/{STUDENT}.pth.tar", "--sequence", "i7,i8,i9",
         "--users", "new", "--top", "3"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE], input=json.dumps(commands), cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\f\n")


@pytest.fixture(scope="module")
def network(project):
    """The document's class."""
    spec = importlib.util.spec_from_file_location("gru", project / "gru.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GRU


def test_the_document_s_network_learns_is_distilled_and_recommends(project, printed):
    training, distilling, evaluation, recommendation, _ = printed
    lists = "ring-gru-teacher-dim=16-top=5"
    made = [f"{name}{end}" for name in (TEACHER, STUDENT) for end in (".pth.tar", ".jsonl")]
    names = {path.name for path in (project / "out").iterdir() if path.suffix != ".lock"}
    assert names == {*made, f"{lists}.npy", f"{lists}.npy.json"}
    maps = [records(project / "out" / f"{name}.jsonl")[-1]["map"] for name in (TEACHER, STUDENT)]
    assert min(maps) > 0.8  # a random ranking of the 16 items that a user has not had: .21
    assert f"map={maps[0]:.4f}," in training
    assert f"Teacher (d=16)\tmap={maps[0]:.4f}," in distilling
    assert f"Evaluation\tmap={maps[1]:.4f}," in evaluation
    header, *rows = (line.split("\t") for line in recommendation.splitlines())
    assert header == ["user", "item", "rank", "score"]
    assert [(user, rank) for user, _, rank, _ in rows] == [("new", str(n)) for n in (1, 2, 3)]
    assert "i10" in {item for _, item, _, _ in rows}


def test_padding_is_not_read_and_every_weight_learns(network):
    torch.manual_seed(0)
    net = network(1, 11, L=4, d=6).eval()
    short, users = torch.tensor([[3, 5], [7, 2]]), torch.zeros(2, dtype=torch.int64)
    x = net.represent(short, users)
    assert_close(net.represent(torch.tensor([[0, 0, 3, 5], [7, 0, 2, 0]]), users), x)
    assert net.represent(torch.zeros(2, 4, dtype=torch.int64), users).isfinite().all()
    scores = net.score(x, torch.arange(11).expand(2, -1))
    assert_close(net.score_all(short, users), scores)
    scores.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_users_that_a_network_without_users_does_not_know(
    project, printed, network, monkeypatch, tmp_path
):
    path = project / "out" / f"{TEACHER}.pth.tar"
    networks = (*recommender.NETWORKS, network)
    monkeypatch.setattr(recommend, "NETWORKS", networks)
    model = recommend.TrainedModel(path)
    histories = [["i6", "i7", "i8"]] * 2
    known, unknown = model.recommend(histories, ["u3", None], top=RING, include_seen=True)
    assert known == unknown
    rows = [("new" if item < 9 else "other", f"i{item}") for item in range(12)]
    train = write_rows(tmp_path / "new" / "train.txt", rows)
    test = write_rows(tmp_path / "new" / "test.txt", [("new", "i9")])
    data = DataSet.load("new", train, test, L=3, T=1)
    checkpoint = read_checkpoint(path, networks)
    net, notes = data.network(checkpoint, allow_other_data=True)
    assert "has 60 users and 30 items" in notes[-1]
    with torch.no_grad():
        scores = net.eval().score_all(*data.train.test_sequences.inputs("cpu"))[0]
    for item, number in data.train.item_map.items():
        assert scores[number].item() == pytest.approx(dict(known)[item], abs=1e-5)

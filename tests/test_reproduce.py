import ast
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import study
import table_rows
import torch
from checkpoint import fingerprint_weights, read_checkpoint
from conftest import tree, write_rows

import distill_caser
import reproduce_tables
import train_caser
from utils import pick_device

SCRIPTS = {"train_caser.py": train_caser.main, "distill_caser.py": distill_caser.main}


@pytest.fixture
def reproduce(tmp_path, monkeypatch, command):
    """reproduce_tables over a toy data set, its commands called in this process and counted."""
    rng = np.random.default_rng(0)
    parts = {"validation/train": [], "validation/test": [], "test/train": [], "test/test": []}
    for user in range(10):
        items = [(user, item) for item in rng.permutation(25)[:12]]
        parts["validation/train"] += items[:8]
        parts["validation/test"] += items[8:9]
        parts["test/train"] += items[:9]
        parts["test/test"] += items[9:]
    for name, rows in parts.items():
        write_rows(tmp_path / "datasets" / "toy" / f"{name}.txt", rows)
    monkeypatch.chdir(tmp_path)
    settings = {"teacher": (6, 4), "student": (4, 4), "flags": ("--L", "5", "--batch_size", "16")}
    monkeypatch.setitem(table_rows.SETTINGS, "toy", settings)
    ran = []

    def run(words, stdout, descriptors):
        ran.append(words[2:])
        return SCRIPTS[words[1].name](list(map(str, words[2:])))

    monkeypatch.setattr(study, "run_to_its_end", run)

    def call(*flags):
        del ran[:]
        status, out, err = command(
            reproduce_tables.main, "--dataset", "toy", "--eval_every", 2, *flags
        )
        return status, out, err, list(ran)

    return call


def test_table_2_from_nothing_then_nothing_is_run_again(reproduce, tmp_path):
    last_only = ("--eval_every", 4)
    status, out, err, ran = reproduce(*last_only)
    assert (status, err) == (0, [])
    assert "| toy | 10 | 25 | 120 |" in reproduce("--table", "1", *last_only)[1]
    # Searches for T, S and RD, and the three rows themselves. The search of T goes on for as many
    # epochs as it chooses, so it teaches the search of RD.
    search = json.loads(
        (tmp_path / "results/toy/caser-t-validation-search-seed=1234/finished.json").read_text()
    )
    assert search["seconds"] > 0
    assert len(ran) == 6
    assert "| Caser-RD |" in out
    assert "Wilcoxon" in out
    status, again, _, ran = reproduce(*last_only)
    assert (status, ran) == (0, [])
    assert again.splitlines()[-8:] == out.splitlines()[-8:]
    status, report, _, ran = reproduce("--report", *last_only)
    assert (status, ran) == (0, [])
    for number in ("Table 1", "Table 3", "Table 4", "Readings"):
        assert number in report
    assert "not run" in report


class Finished:
    """A run without files: a seed's metrics and each user's average precision."""

    def __init__(self, seed, values, average_precision=None):
        self.seed = seed
        self.values = values
        self.average_precision = average_precision

    def result(self):
        return dict(zip(table_rows.METRICS, self.values, strict=True))

    def epochs(self):
        return 30

    def setting(self):
        return "cpu with torch 2"


def test_the_numbers_of_a_report(monkeypatch):
    """Each under its head, in means and deviations, and tests the right way round."""
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    second = [0.3, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]
    better = {1234: np.array([0.5, 0.7, 0.6, 0.2]), 1: np.array([0.5, 0.9, 0.9, 0.2])}
    worse = {1234: np.array([0.4, 0.4, 0.2, 0.3]), 2: np.array([1.0, 1, 1, 1]),
             1: np.array([0.4, 0.6, 0.4, 0.3])}  # fmt: skip
    runs = {
        "caser-rd": [Finished(1234, first, better[1234]), Finished(1, second, better[1])],
        "caser-s": [Finished(seed, first, values) for seed, values in worse.items()],
        "uniform": [],
    }
    monkeypatch.setattr(reproduce_tables, "average_precision", lambda run: run.average_precision)
    done = SimpleNamespace(dataset="toy", finals=lambda row: runs[row.name])
    lines = reproduce_tables.results(done, ["uniform", "caser-rd"], ["caser-s", "caser-rd"])
    assert lines[0] == "|  | epochs | seeds | P@3 | P@5 | P@10 | nDCG@3 | nDCG@5 | nDCG@10 | MAP |"
    assert lines[2] == "| w = 1/K |  | 0 |" + " not run |" * 7
    assert lines[3] == (
        "| Caser-RD | 30 | 2 | 0.2000 ± 0.1414 | 0.2000 ± 0.0000 | 0.3000 ± 0.0000"
        " | 0.4000 ± 0.0000 | 0.5000 ± 0.0000 | 0.6000 ± 0.0000 | 0.8000 ± 0.1414 |"
    )
    assert "Test split, all items ranked" in lines[5]
    assert lines[6:-1] == [
        "Trained on cpu with torch 2.",
        "MAP of Caser-RD by seed: 1234: 0.7000, 1: 0.9000.",
    ]
    assert "against Caser-S" in lines[-1]
    assert "averaged over 2 seed(s)" in lines[-1]
    assert "mean difference +0.1875, better for 75%, worse for 25%, p = " in lines[-1]
    assert "by seed +0.1750, +0.2000, paired t-test" in lines[-1]


def test_the_p_values_of_a_report(monkeypatch):
    """Against the textbook: all sign patterns of the ranks; Student's t of the differences."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 9))
    difference = (first - second).mean(0)
    ranks = np.abs(difference).argsort().argsort() + 1
    sums = [ranks @ signs for signs in itertools.product((0, 1), repeat=9)]
    observed = ranks @ (difference > 0)
    tail = min(np.mean(np.less_equal(sums, observed)), np.mean(np.greater_equal(sums, observed)))
    by_seed = (first - second).mean(1)
    t = by_seed.mean() / (by_seed.std(ddof=1) / 3**0.5)
    p = 1 - abs(t) / (2 + t**2) ** 0.5  # two-sided, two degrees of freedom
    runs = {
        "caser-rd": [Finished(seed, (), values) for seed, values in enumerate(first)],
        "caser-s": [Finished(seed, (), values) for seed, values in enumerate(second)],
    }
    monkeypatch.setattr(reproduce_tables, "average_precision", lambda run: run.average_precision)
    done = SimpleNamespace(finals=lambda row: runs[row.name])
    rows = [table_rows.ROWS[name] for name in runs]
    (line,) = reproduce_tables.paired_test(done, *rows)
    assert f"p = {min(1, 2 * tail):.2g};" in line
    assert f"p = {p:.2g}." in line
    for run, alike in zip(runs["caser-s"], runs["caser-rd"], strict=True):
        run.average_precision = alike.average_precision - 0.1 - 0.01 * np.arange(9)
    (line,) = reproduce_tables.paired_test(done, *rows)
    assert line.endswith("by seed +0.1400, +0.1400, +0.1400.")  # no t-test: nothing varies


def test_epochs_come_from_the_validation_split_and_test_is_read_once(reproduce, tmp_path):
    _, out, _, ran = reproduce("--row", "caser-s")
    assert "### Caser-S, toy" in out
    assert "Test split, all items ranked" in out
    device = pick_device("auto").type
    assert re.search(rf"Trained on {device} \(\d+ thread\(s\)\) with python 3", out)
    search, final = ran
    assert "validation" in search
    assert "test" in final
    folder = tmp_path / "results" / "toy"
    lines = (
        folder / "caser-s-validation-search-seed=1234/toy-validation-caser-dim=4.jsonl"
    ).read_text()
    scored = [r for r in map(json.loads, lines.splitlines()) if "map" in r]
    best = max(scored, key=lambda record: record["map"])["epoch"]
    assert final[final.index("--n_iter") + 1] == str(best)
    lines = (folder / "caser-s-test-seed=1234/toy-caser-dim=4.jsonl").read_text().splitlines()
    assert sum("map" in json.loads(line) for line in lines) == 1


def test_all_seeds_are_reported_and_the_place_does_not_matter(reproduce, tmp_path):
    reproduce("--row", "caser-s", "--seeds", 2)
    for flags in ([], ["--table", "2"]):
        out = reproduce("--report", *flags)[1]
        assert "| Caser-S | 4 | 2 |" in out or "| Caser-S | 2 | 2 |" in out
        assert ("### Table 4" in out) == (not flags)
        assert out.count("MAP of Caser-S by seed: 1234: ") == 1
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    flags = ["--row", "caser-s", "--seeds", 2, "--results_dir", tmp_path / "elsewhere"]
    assert reproduce(*flags)[3] == []
    (tmp_path / "elsewhere/toy/caser-s-test-seed=1/finished.json").unlink()
    assert [words[0] for words in reproduce(*flags)[3]] == ["--checkpoint"]


def test_looking_prepares_nothing(reproduce, tmp_path, command):
    before = tree(tmp_path)
    for flags, wanted in ((["--dry_run"], 0), (["--report"], 2)):
        status, _, err = command(reproduce_tables.main, "--dataset", "ml-100k", *flags)
        assert (status, len(err)) == (wanted, wanted // 2)
    assert tree(tmp_path) == before


def test_stopping_asks_the_run_to_stop(tmp_path):
    """It was once killed, and what it had not saved was lost."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    child = f"""import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: [pathlib.Path({str(saved)!r}).touch(), sys.exit()])
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)"""

    def stop(*_):
        if ready.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.exit(143)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(SystemExit):
            study.run_to_its_end([sys.executable, "-c", child], None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert saved.exists()


def test_dry_run_lists_commands_and_runs_nothing(reproduce, tmp_path):
    status, out, _, ran = reproduce("--dry_run", "--table", "4", "--seeds", 2)
    assert (status, ran) == (0, [])
    assert "--weights uniform" in out
    assert "--n_iter '<chosen>'" in out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("change", ["code", "data", "flags"])
def test_a_stale_result_is_not_reported(reproduce, tmp_path, monkeypatch, change):
    reproduce("--row", "caser-s")
    assert reproduce("--row", "caser-s")[3] == []
    if change == "code":
        monkeypatch.setattr(study, "code_version", lambda: "another")
    elif change == "data":
        path = tmp_path / "datasets" / "toy" / "test" / "train.txt"
        path.write_text(path.read_text() + "0 1 1\n")
    else:
        settings = table_rows.SETTINGS["toy"] | {"flags": ("--batch_size", "8")}
        monkeypatch.setitem(table_rows.SETTINGS, "toy", settings)
    before = tree(tmp_path)
    report = reproduce("--report")[1]
    line = next(line for line in report.splitlines() if line.startswith("| Caser-S |"))
    assert line.count("not run") == 7
    assert tree(tmp_path) == before
    _, out, _, ran = reproduce("--row", "caser-s")
    assert len(ran) == 2
    assert "kept as caser-s-test-seed=1234.old1" in out
    after = tree(tmp_path)
    assert set(before.values()) <= set(after.values())  # nothing is lost


def test_a_student_of_another_teacher_is_not_reported(reproduce, tmp_path):
    """Flags, code and data may agree and the weights not: another number of threads, say."""
    reproduce("--row", "caser-rd")
    teacher = tmp_path / "results/toy/caser-t-test-seed=1234"
    shutil.rmtree(teacher)
    assert "not run" in reproduce("--report", "--row", "caser-rd")[1]
    assert len(reproduce("--row", "caser-rd")[3]) == 1  # the same teacher comes back
    assert "not run" not in reproduce("--report", "--row", "caser-rd")[1]
    path = teacher / "toy-caser-dim=6.pth.tar"
    another = torch.load(path)
    another["state_dict"]["b2.weight"] += 1
    torch.save(another, path)
    status, _, err, ran = reproduce("--row", "uniform")
    assert (status, len(ran), len(err)) == (2, 1, 1)  # but for its search
    assert f"{path.relative_to(tmp_path)}: damaged, or not what the run of" in err[0]
    done = json.loads((teacher / "finished.json").read_text())
    weights = fingerprint_weights(read_checkpoint(path))
    (teacher / "finished.json").write_text(json.dumps(done | {"weights": weights}))
    assert "not run" in reproduce("--report", "--row", "caser-rd")[1]
    _, out, _, ran = reproduce("--row", "caser-rd")
    assert len(ran) == 1
    assert "kept as caser-rd-test-seed=1234.old1" in out


@pytest.mark.parametrize("change", ["code", "data", "search"])
def test_a_change_while_a_run_goes_on_is_no_result(reproduce, tmp_path, monkeypatch, change):
    train = train_caser.main
    searched = tmp_path / "results/toy/caser-s-validation-search-seed=1234/finished.json"

    def change_meanwhile(words):
        status = train(words)
        if change == "code":
            monkeypatch.setattr(study, "code_version", lambda: "another")
        elif change == "data":
            path = tmp_path / "datasets" / "toy" / "validation" / "train.txt"
            path.write_text(path.read_text() + "0 1 1\n")
        else:
            searched.unlink(missing_ok=True)  # as a study of another --eval_every sets it aside
        return status

    monkeypatch.setitem(SCRIPTS, "train_caser.py", change_meanwhile)
    status, _, err, ran = reproduce("--row", "caser-s")
    assert (status, len(err), len(ran)) == (2, 1, 1 + (change == "search"))
    assert re.search(rf"{change}\b.* changed", err[0])
    assert not list((tmp_path / "results").rglob("finished.json"))


def test_a_run_that_was_continued_by_hand_is_no_result(reproduce, tmp_path, command):
    """Its records and its checkpoint are of more epochs than the report says."""
    reproduce("--row", "caser-s")
    path = tmp_path / "results/toy/caser-s-test-seed=1234/toy-caser-dim=4.pth.tar"
    more = ["--checkpoint", path.relative_to(tmp_path), "--n_iter", 9]
    assert command(train_caser.main, *more)[0] == 0
    status, _, err, _ = reproduce("--report", "--row", "caser-s")
    assert (status, len(err)) == (2, 1)
    assert "toy-caser-dim=4.jsonl: damaged, or not what the run of" in err[0]
    path.with_name("finished.json").unlink()  # as where it was interrupted
    status, _, err, _ = reproduce("--row", "caser-s")
    assert (status, len(err)) == (2, 1)
    assert "toy-caser-dim=4.pth.tar: damaged, or not what the run of" in err[0]
    assert f"delete {path.parent.relative_to(tmp_path)} to run it again" in err[0]


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_damaged_checkpoint_is_one_line_with_advice(reproduce, tmp_path, fault):
    reproduce("--row", "caser-rd")
    path = tmp_path / "results/toy/caser-t-test-seed=1234/toy-caser-dim=6.pth.tar"
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    for flags in (["--report", "--table", "3"], ["--row", "uniform"]):
        status, _, err, _ = reproduce(*flags)
        assert (status, len(err)) == (2, 1)
        assert err[0].endswith(f"delete {path.parent.relative_to(tmp_path)} to run it again")


def test_two_studies_at_once_wait_for_each_other(reproduce, tmp_path, monkeypatch):
    """And the second does not do again what the first has done."""
    reproduce("--row", "caser-s")
    folder = tmp_path / "results" / "toy"
    name = "caser-s-test-seed=1234"
    done = folder / name / "finished.json"
    done.rename(tmp_path / "done")
    child = f"""import fcntl, os, time
lock = open({str(folder / f".{name}.lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(0.5)
os.rename({str(tmp_path / "done")!r}, {str(done)!r})"""
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err, ran) == (0, [], [])
    assert f"{name}: another process is at it" in out


def test_a_run_keeps_its_lock_when_its_study_is_killed(tmp_path):
    with study.locked(tmp_path / "lock", "it") as descriptors:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                                 pass_fds=descriptors)  # fmt: skip
    waiting = f"import study; study.locked({str(tmp_path / 'lock')!r}, 'it').__enter__()"
    with subprocess.Popen([sys.executable, "-c", waiting], cwd=study.ROOT,
                          stdout=subprocess.PIPE) as other:  # fmt: skip
        assert b"it: another process is at it" in other.stdout.readline()
        assert other.poll() is None
        child.communicate(b"\n")
        assert other.wait() == 0


def test_a_run_that_is_killed_is_one_line(reproduce, monkeypatch):
    monkeypatch.setattr(study, "run_to_its_end", lambda *arguments: -signal.SIGKILL)
    status, _, err, _ = reproduce("--row", "caser-s")
    assert (status, len(err)) == (2, 1)
    assert "caser-s-validation-search-seed=1234: killed by signal 9" in err[0]


def test_a_resumed_run_counts_for_the_epochs_that_it_did(reproduce, tmp_path, monkeypatch):
    """For the time left, which was guessed far too short."""
    reproduce("--row", "caser-s")
    (tmp_path / "results/toy/caser-s-test-seed=1234/finished.json").unlink()
    trained = []
    execute = study.Run.execute
    monkeypatch.setattr(study.Run, "execute", lambda run: trained.append(execute(run)))
    reproduce("--row", "caser-s", "--seeds", 2)
    assert trained[0] == 0
    assert trained[1] > 0


def test_the_papers_numbers_stand_beside_the_papers_data_only(monkeypatch):
    monkeypatch.setattr(reproduce_tables, "counts", lambda data: data.made_of)
    for made_of, told in ((reproduce_tables.PAPERS_GOWALLA, True), ({"users": 1}, False)):
        of_gowalla = SimpleNamespace(dataset="gowalla", made_of=made_of, finals=lambda row: [])
        lines = reproduce_tables.table_of_metrics(of_gowalla, ["caser-t"])
        assert any("Caser-T (paper) |  |  | 0.1408" in line for line in lines) == told


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "{}\n",
        lambda text: '{"map": 1}\n',
        lambda text: '{"epoch": 1}\n{"epo',
        lambda text: "[1]\n",
        lambda text: "[" * 10**5,
        lambda text: text.replace('"precision@3"', '"precision"'),
        lambda text: text.replace('"map": ', '"map": 1, "mop": '),
        lambda text: text.replace('"threads"', '"thread"'),
        lambda text: re.sub(r'"versions": {[^}]*}', '"versions": []', text),
        lambda text: text.replace('"epoch": 1,', '"epoch": 2,'),
    ],
)
def test_damaged_records_of_a_finished_run_are_one_line(reproduce, tmp_path, damage):
    reproduce("--row", "caser-s")
    path = tmp_path / "results/toy/caser-s-test-seed=1234/toy-caser-dim=4.jsonl"
    path.write_text(damage(path.read_text()))
    status, _, err, _ = reproduce("--report")
    assert (status, len(err)) == (2, 1)
    assert str(path.relative_to(tmp_path)) in err[0]
    for content in ("[]", "[" * 10**5):
        path.with_name("finished.json").write_text(content)
        assert reproduce("--report")[0] == 0


def test_lists_that_cannot_be_filled_are_refused_before_a_teacher_is_trained(reproduce, tmp_path):
    status, _, err, ran = reproduce("--figure", "K")
    assert (status, len(err), ran) == (2, 1, [])
    assert "caser-rd-K=50-validation-search-seed=1234 can't be run: --K 50" in err[0]


def test_an_interrupted_run_is_resumed(reproduce, tmp_path, monkeypatch):
    reproduce("--row", "caser-s")
    folder = tmp_path / "results" / "toy" / "caser-s-test-seed=1234"
    (folder / "finished.json").unlink()
    _, _, _, ran = reproduce("--row", "caser-s")
    assert [words[0] for words in ran] == ["--checkpoint"]


def test_comments_and_docstrings_are_no_change_of_code(tmp_path, monkeypatch):
    for name in study.SOURCES:
        (tmp_path / f"{name}.py").write_text(
            '"""One."""\n\n\ndef f():\n    """Two."""\n    return 1\n'
        )
    monkeypatch.setattr(study, "ROOT", tmp_path)
    first = study.code_version()
    (tmp_path / "caser.py").write_text(
        '"""Other."""\ndef f():  # why\n    """Text."""\n    return 1\n'
    )
    assert study.code_version() == first
    (tmp_path / "caser.py").write_text('"""Other."""\ndef f():\n    """Text."""\n    return 2\n')
    second = study.code_version()
    assert second != first
    (tmp_path / "caser.py").write_text("def f(\n")  # half edited
    assert study.code_version() not in (first, second)


def test_every_module_of_the_training_scripts_counts_as_code():
    """But recommend.py, which no training or evaluation calls."""
    found, left = set(), ["distill_caser"]
    while left:
        name = left.pop()
        if name not in found and (study.ROOT / f"{name}.py").exists():
            found.add(name)
            for node in ast.walk(ast.parse((study.ROOT / f"{name}.py").read_text())):
                if isinstance(node, ast.ImportFrom):
                    left.append(node.module)
                elif isinstance(node, ast.Import):
                    left += [alias.name for alias in node.names]
    assert found - {"recommend"} == set(study.SOURCES)


def test_figures_are_drawn_with_their_data(reproduce, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    reproduce()
    status, _, err, ran = reproduce("--figure", "epochs")
    assert (status, err, ran) == (0, [], [])
    folder = tmp_path / "results" / "toy" / "figures"
    rows = (folder / "epochs.csv").read_text().splitlines()
    assert rows[0] == "line,epoch,MAP"
    assert {row.split(",")[0] for row in rows[1:]} == {"Caser-T", "Caser-S", "Caser-RD"}
    assert (folder / "epochs.png").read_bytes().startswith(b"\x89PNG")
    flag, _, names, label = reproduce_tables.FIGURES["K"]
    monkeypatch.setitem(reproduce_tables.FIGURES, "K", (flag, (2, 3), names, label))
    status, _, err, _ = reproduce("--figure", "all", "--report")
    assert (status, len(err)) == (2, 1)
    assert "--figure balance: none of its runs is finished; --figure K: none" in err[0]
    assert (folder / "d.png").exists()
    status, _, _, ran = reproduce("--figure", "K")
    assert (status, len(ran)) == (0, 4)
    assert len((folder / "K.csv").read_text().splitlines()) == 3
    titles = []
    monkeypatch.setattr(reproduce_tables, "draw", lambda *arguments: titles.append(arguments[-1]))
    monkeypatch.setitem(reproduce_tables.FIGURES, "K", (flag, (2,), names, label))
    reproduce("--figure", "K", "--seeds", 2)
    monkeypatch.setitem(reproduce_tables.FIGURES, "K", (flag, (2, 3), names, label))
    reproduce("--figure", "K")
    assert [title.partition("split, ")[2] for title in titles] == [
        "mean of 2 seed(s)", "mean of 1 to 2 seed(s)"
    ]  # fmt: skip


def test_list_and_unknown_names(reproduce):
    status, out, _, _ = reproduce("--list")
    assert status == 0
    for word in ("--table 4", "--row rd-paper", "--figure balance", "--teach_alpha 0.1, 0.25"):
        assert word in out
    for flags in (["--table", "9"], ["--row", "x"], ["--figure", "x"], ["--seeds", 0],
                  ["--list", "--report"], ["--dry_run", "--plot", "x"]):  # fmt: skip
        status, _, err, _ = reproduce(*flags)
        assert (status, len(err)) == (2, 1)


def test_plot_of_runs(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    records = [{"script": "train_caser.py"}, {"epoch": 1, "loss": 2.0},
               {"epoch": 2, "loss": 1.5, "map": 0.1}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:2]))
    status, out, err = command(reproduce_tables.main, "--plot", "a.jsonl", "b.jsonl")
    assert (status, err) == (0, [])
    assert "results/plot.png" in out
    assert (tmp_path / "results" / "plot.csv").read_text().splitlines() == [
        "line,epoch,loss,MAP", "a,1,2.0,", "a,2,1.5,0.1", "b,1,2.0,",
    ]  # fmt: skip
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")
    for name in (b"_a$x^^$.jsonl", b"not-utf-8-\xff.jsonl"):
        odd = tmp_path / os.fsdecode(name)
        odd.write_text('{"epoch": 1, "loss": 2.0}\n')
        assert command(reproduce_tables.main, "--plot", odd)[::2] == (0, [])
    for text, word in (
        ("{}\n", "c.jsonl"),
        ('{"epoch": 1}\n', "line 1"),
        ("\n[", "line 1"),
        ('{"epoch": 1e400, "loss": 1}', "line 1"),
        ('{"epoch": 1e30, "loss": 1}', "line 1"),
        ("[" * 100_000, "line 1"),
    ):
        (tmp_path / "c.jsonl").write_text(text)
        status, _, err = command(reproduce_tables.main, "--plot", "c.jsonl")
        assert (status, len(err)) == (2, 1)
        assert word in err[0]
    status, _, err = command(reproduce_tables.main, "--plot", "nowhere.jsonl")
    assert (status, len(err)) == (2, 1)
    assert "nowhere.jsonl" in err[0]

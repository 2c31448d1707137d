"""reproduce_tables: which runs a table needs, what counts as finished, what a report says of it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, tree, write_rows

import distill_caser
import reproduce_tables
import train_caser
from reproduction import figures, report, rows, runs
from support.checkpoint import records_path
from support.processes import locked, run_to_its_end
from utils import pick_device

SCRIPTS = {ROOT / f"{script.__name__}.py": script.main for script in (train_caser, distill_caser)}
STUDY = Path("results/toy")
STUDENT, TEACHER = STUDY / "caser-s-test-seed=1234", STUDY / "caser-t-test-seed=1234"
SEARCH = STUDY / "caser-s-validation-search-seed=1234"  # the student's
PYTHON = (sys.executable, "-c")


@pytest.fixture
def reproduce(tmp_path, tmp_path_factory, monkeypatch, command):
    """reproduce_tables over a toy data set, its commands called in this process and counted:
    (status, stdout, stderr lines, commands)."""
    rng = np.random.default_rng(0)
    users = [[(user, item) for item in rng.permutation(25)[:12]] for user in range(10)]
    for name, part in (("validation/train", slice(8)), ("validation/test", slice(8, 9)),
                       ("test/train", slice(9)), ("test/test", slice(9, 12))):  # fmt: skip
        path = tmp_path / f"datasets/toy/{name}.txt"
        write_rows(path, [row for of_user in users for row in of_user[part]])
    monkeypatch.chdir(tmp_path)
    settings = {"teacher": (6, 4), "student": (4, 4), "flags": ("--L", "5", "--batch_size", "16")}
    monkeypatch.setitem(rows.SETTINGS, "toy", settings)
    ran = []

    def run(words, stdout, descriptors):
        assert descriptors  # the run's lock
        ran.append(words[2:])
        return SCRIPTS[words[1]](list(map(str, words[2:])))

    monkeypatch.setattr(runs, "run_to_its_end", run)

    def call(*flags):
        ran.clear()
        flags = ("--dataset", "toy", "--eval_every", 2, *flags)
        return *command(reproduce_tables.main, *flags), list(ran)

    def done(row):
        """Do a row, or copy what that left for an earlier test."""
        kept = tmp_path_factory.getbasetemp() / f"done-{row}"
        if not kept.exists():
            assert call("--row", row)[0] == 0
            shutil.copytree("results", kept)
        shutil.copytree(kept, "results", dirs_exist_ok=True)

    call.done = done
    return call


def refusal(status, out, err, ran=()):
    """The one line that a refused command says."""
    assert (status, len(err)) == (2, 1)
    return err[0]


def change_data(split):
    with open(f"datasets/toy/{split}/train.txt", "a") as file:
        file.write("0 1 1\n")


def interrupt(folder):
    """Leave a finished run as one that was stopped in its last epoch."""
    (path,) = folder.glob("*.pth.tar")
    saved = torch.load(path)
    saved["epoch_num"] -= 1
    saved["records"].pop()
    torch.save(saved, path)
    lines = records_path(path).read_text().splitlines(keepends=True)
    records_path(path).write_text("".join(lines[:-1]))


def test_table_2_from_nothing_then_nothing_is_run_again(reproduce):
    last_only = ("--eval_every", 4)
    status, out, err, ran = reproduce(*last_only)
    assert (status, err) == (0, [])
    # Searches for T, S and RD, and the three rows themselves. The search of T goes on for as many
    # epochs as it chooses, so it teaches the search of RD.
    assert len(ran) == 6
    assert re.search(r"(?s)\| Caser-RD \|.*Wilcoxon", out)
    status, again, _, ran = reproduce(*last_only)
    assert (status, ran, again.splitlines()[-8:]) == (0, [], out.splitlines()[-8:])
    assert "| toy | 10 | 25 | 120 |" in reproduce("--table", "1", *last_only)[1]
    status, out, _, ran = reproduce("--report", *last_only)
    assert (status, ran) == (0, [])
    for words in ("Table 1", "Table 3", "Table 4", "Readings", "not run"):
        assert words in out


def test_the_numbers_of_a_report(monkeypatch):
    """Each under its head, in means and deviations, and tests the right way round."""

    def run(seed, last, *precision):
        metrics = [last - 0.6, 0.2, 0.3, 0.4, 0.5, 0.6, last]
        result = dict(zip(rows.METRICS, metrics, strict=True))
        return SimpleNamespace(seed=seed, precision=np.array(precision), result=lambda: result,
                               epochs=lambda: 30, setting=lambda: "cpu with torch 2",
                               commit=report.commit())  # fmt: skip

    monkeypatch.setattr(report, "average_precision", lambda run: run.precision)
    made = {
        "caser-rd": [run(1234, 0.7, 0.5, 0.7, 0.6, 0.2), run(1, 0.9, 0.5, 0.9, 0.9, 0.2)],
        "caser-s": [run(1234, 0, 0.4, 0.4, 0.2, 0.22), run(2, 0, 1, 1, 1, 1),
                    run(1, 0, 0.4, 0.6, 0.4, 0.3)],
        "uniform": [],
    }  # fmt: skip
    study = SimpleNamespace(dataset="toy", finished_runs=lambda row: made[row.name])
    lines = report.results(study, ["uniform", "caser-rd"], ["caser-s", "caser-rd"])
    assert lines[0] == "|  | epochs | seeds | P@3 | P@5 | P@10 | nDCG@3 | nDCG@5 | nDCG@10 | MAP |"
    assert lines[2] == "| w = 1/K |  | 0 |" + " not run |" * 7
    assert lines[3] == (
        "| Caser-RD | 30 | 2 | 0.2000 ± 0.1414 | 0.2000 ± 0.0000 | 0.3000 ± 0.0000"
        " | 0.4000 ± 0.0000 | 0.5000 ± 0.0000 | 0.6000 ± 0.0000 | 0.8000 ± 0.1414 |"
    )
    assert "Test split, all items ranked" in lines[5]
    # By the textbook: the least rank alone is negative, and of the 16 patterns of signs 2 go as far
    # up and 2 as far down; 0.195 and 0.2 are t = 79, one degree of freedom: 2 / pi * arctan(1 / t).
    assert lines[6:] == [
        "Trained on cpu with torch 2.",
        "MAP of Caser-RD by seed: 1234: 0.7000, 1: 0.9000.",
        "Caser-RD against Caser-S, average precision per user averaged over 2 seed(s), Wilcoxon's"
        " signed-rank test over 4 users: mean difference +0.1975, better for 75%, worse for 25%,"
        " p = 0.25; by seed +0.1950, +0.2000, paired t-test over seeds: p = 0.0081.",
    ]
    # Without a t-test where nothing varies between the seeds.
    made["caser-s"] = [run(r.seed, 0, *r.precision - [0.1, 0.2, 0.3, 0]) for r in made["caser-rd"]]
    assert report.results(study, ["caser-rd"], ["caser-s"])[-1].endswith("seed +0.1500, +0.1500.")


def test_the_papers_numbers_stand_beside_the_papers_data_only(monkeypatch):
    monkeypatch.setattr(report, "counts", lambda study: study.made_of)
    for made_of, told in ((report.PAPERS_GOWALLA, True), ({"users": 1}, False)):
        gowalla = SimpleNamespace(dataset="gowalla", made_of=made_of, finished_runs=lambda row: [])
        lines = report.table_of_metrics(gowalla, ["caser-t"])
        assert any("Caser-T (paper) |  |  | 0.1408" in line for line in lines) == told


def test_epochs_come_from_the_validation_split_and_test_is_read_once(reproduce):
    _, out, _, (search, final) = reproduce("--row", "caser-s")
    assert re.search("(?s)### Caser-S, toy\n.*Test split, all items ranked", out)
    device = pick_device("auto").type
    assert re.search(rf"Trained on {device} \(\d+ thread\(s\)\) with python 3", out)
    splits = [words[words.index("--split") + 1] for words in (search, final)]
    assert splits == ["validation", "test"]
    lines = (SEARCH / "toy-validation-caser-dim=4.jsonl").read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if "map" in line]
    best = max(scored, key=lambda line: line["map"])["epoch"]
    assert final[final.index("--n_iter") + 1] == str(best)
    assert int(final[final.index("--eval_every") + 1]) >= 10**6
    lines = (STUDENT / "toy-caser-dim=4.jsonl").read_text().splitlines()
    assert sum("map" in json.loads(line) for line in lines) == 1


def test_all_seeds_are_reported_wherever_they_lie_and_an_interrupted_one_is_resumed(reproduce):
    reproduce("--row", "caser-s", "--seeds", 2)
    for flags in ([], ["--table", "2"]):
        out = reproduce("--report", *flags)[1]
        assert "| Caser-S | 4 | 2 |" in out or "| Caser-S | 2 | 2 |" in out
        assert ("### Table 4" in out) == (not flags)
        assert out.count("MAP of Caser-S by seed: 1234: ") == 1
    Path("results").rename("elsewhere")
    flags = ["--row", "caser-s", "--results_dir", Path("elsewhere").resolve(), "--seeds"]
    assert reproduce(*flags, 2)[3] == []
    interrupt(Path("elsewhere/toy/caser-s-test-seed=1"))
    _, out, _, ran = reproduce(*flags, 4)
    assert [words[0] for words in ran] == ["--checkpoint", "--dataset", "--dataset"]
    assert ["min left" in line for line in re.findall(r"\[\d/3\].*", out)] == [False, True, True]


def test_looking_runs_and_prepares_nothing(reproduce, tmp_path):
    before = tree(tmp_path)
    status, out, _, ran = reproduce("--dry_run", "--table", "4", "--seeds", 2)
    assert (status, ran) == (0, [])
    assert re.search("--n_iter '<chosen>' .*--weights uniform", out)
    assert reproduce("--dry_run", "--dataset", "ml-100k")[::2] == (0, [])
    refusal(*reproduce("--report", "--dataset", "ml-100k"))
    assert not Path("results").exists()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("what", ["data", "flags"])
def test_a_stale_result_is_not_reported(reproduce, tmp_path, monkeypatch, what):
    reproduce.done("caser-s")
    assert reproduce("--row", "caser-s")[3] == []
    if what == "data":
        change_data("test")
    else:
        monkeypatch.setitem(rows.SETTINGS["toy"], "flags", ("--batch_size", "8"))
    before = tree(tmp_path)
    (line,) = re.findall(r"\| Caser-S \|.*", reproduce("--report")[1])
    assert line.count("not run") == 7
    assert tree(tmp_path) == before
    _, out, _, ran = reproduce("--row", "caser-s")
    assert len(ran) == (1 if what == "data" else 2)  # the search is of the validation split
    assert "kept as caser-s-test-seed=1234.old1" in out
    assert set(before.values()) <= set(tree(tmp_path).values())  # nothing is lost


def test_what_another_commit_has_done_is_said_and_done_anew_when_asked(reproduce, monkeypatch):
    reproduce.done("caser-s")
    for module in ("runs.commit", "report.commit"):
        monkeypatch.setattr(f"reproduction.{module}", lambda: "abc")
    status, out, _, ran = reproduce("--row", "caser-s")
    assert (status, ran) == (0, [])
    assert re.search(r"Not of this commit: Caser-S by \w+.*; --again\D+\n\n\|  \| epochs", out)
    monkeypatch.setattr("support.run.commit", lambda: "abc")
    _, out, _, ran = reproduce("--row", "caser-s", "--again")
    assert len(ran) == 2
    assert "kept as caser-s-test-seed=1234.old1" in out
    assert "Not of this commit" not in out
    assert reproduce("--row", "caser-s", "--again")[3] == []


def test_results_of_an_older_version_are_named_and_left_alone(reproduce, tmp_path):
    reproduce.done("caser-s")
    (STUDENT / "begun.json").write_text("{}")
    before = tree(tmp_path)
    for flags in (["--report"], ["--row", "caser-s"]):
        line = refusal(*reproduce(*flags))
        assert f"{STUDENT}: of an older version" in line
        assert "--results_dir" in line
    assert tree(tmp_path) == before


def test_a_search_that_changes_while_a_run_goes_on_leaves_no_result(reproduce, monkeypatch):
    def change_meanwhile(words):
        if "test" in words:  # as a study of another --eval_every sets it aside
            shutil.rmtree(SEARCH)
        return train_caser.main(words)

    monkeypatch.setitem(SCRIPTS, ROOT / "train_caser.py", change_meanwhile)
    *answer, ran = reproduce("--row", "caser-s")
    assert re.search(r"search\b.* changed", refusal(*answer))
    assert len(ran) == 2
    assert "not run" in reproduce("--report", "--row", "caser-s")[1]


def test_a_student_of_another_teacher_is_not_reported(reproduce):
    """Flags and data may agree and the weights not: another number of threads, say."""
    row = ("--row", "caser-rd")
    reproduce.done("caser-rd")
    shutil.rmtree(TEACHER)
    assert "not run" in reproduce("--report", *row)[1]
    assert len(reproduce(*row)[3]) == 1  # the same teacher comes back
    assert "not run" not in reproduce("--report", *row)[1]
    path = TEACHER / "toy-caser-dim=6.pth.tar"
    another = torch.load(path)
    another["state_dict"]["b2.weight"] += 1
    torch.save(another, path)
    assert "not run" in reproduce("--report", *row)[1]
    _, out, _, ran = reproduce(*row)
    assert len(ran) == 1
    assert "kept as caser-rd-test-seed=1234.old1" in out


def test_a_run_of_more_epochs_than_are_wanted_is_no_result(reproduce, command):
    """One that was continued by hand, say."""
    reproduce.done("caser-s")
    path = STUDENT / "toy-caser-dim=4.pth.tar"
    assert command(train_caser.main, "--checkpoint", path, "--n_iter", 9)[0] == 0
    assert "not run" in reproduce("--report", "--row", "caser-s")[1]
    _, out, _, ran = reproduce("--row", "caser-s")
    assert len(ran) == 1
    assert "kept as caser-s-test-seed=1234.old1" in out


def test_a_run_of_fewer_epochs_goes_on_where_it_can(reproduce, monkeypatch):
    """It was asked to resume without being told for how long, and said so for good."""
    reproduce.done("caser-s")
    monkeypatch.setitem(rows.SETTINGS["toy"], "student", (4, 6))
    status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err) == (0, [])
    assert len(ran) >= 1
    assert "not run" not in out
    status, out, _, ran = reproduce("--row", "caser-s", "--eval_every", 3)
    assert (status, "--eval_every" in ran[0]) == (0, True)  # a search that looked elsewhere


@pytest.mark.parametrize("lost", ["pth.tar", "jsonl"])
def test_half_of_what_a_run_leaves_is_no_dead_end(reproduce, lost):
    reproduce.done("caser-s")
    interrupt(STUDENT)
    (STUDENT / f"toy-caser-dim=4.{lost}").unlink()
    status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err, len(ran)) == (0, [], 1)
    assert "not run" not in out


def test_the_same_rows_in_another_order_are_the_same_result(reproduce):
    """Users and items were matched by their numbers: other average precisions, tested as these."""
    reproduce.done("caser-rd")
    reproduce("--row", "caser-s")
    before = reproduce("--report", "--table", "2")[1]
    assert "Wilcoxon" in before
    for split in ("validation", "test"):
        path = Path(f"datasets/toy/{split}/train.txt")
        lines = sorted(path.read_text().splitlines(keepends=True), key=lambda x: -int(x.split()[0]))
        path.write_text("".join(lines))
    assert reproduce("--report", "--table", "2")[1] == before


RECORDS, CHECKPOINT = TEACHER / "toy-caser-dim=6.jsonl", TEACHER / "toy-caser-dim=6.pth.tar"
DAMAGES = [
    (CHECKPOINT, None), (CHECKPOINT, lambda data: data[:500]),
    *((RECORDS, lambda data, new=new: new.encode()) for new in
      ("", "{}\n", '{"map": 1}\n', '{"epoch": 1}\n{"epo', "[1]\n", "[" * 10**5)),
    *((RECORDS, lambda data, old=old, new=new: re.sub(old, new, data.decode()).encode())
      for old, new in (('"precision@3"', '"precision"'), ('"map": ', '"map": 1, "mop": '),
                       ('"threads"', '"thread"'), ('"versions": {[^}]*}', '"versions": []'),
                       ('"epoch": 1,', '"epoch": 2,'))),
]  # fmt: skip


@pytest.mark.parametrize(("path", "damage"), DAMAGES)
def test_a_damaged_file_of_a_finished_run_is_one_line_with_advice(reproduce, path, damage):
    reproduce.done("caser-rd")
    data = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(data))
        assert path.read_bytes() != data
    commands = {RECORDS: ["--report"], CHECKPOINT: ["--report --table 3", "--row uniform"]}
    for flags in commands[path]:
        line = refusal(*reproduce(*flags.split()))
        assert str(path) in line
        assert line.endswith(f"delete {TEACHER} to run it again")


def test_stopping_asks_the_run_to_stop(tmp_path):
    """It was once killed, and what it had not saved was lost."""
    saved = tmp_path / "saved"
    child = f"""import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: [time.sleep(0.3), os.mkdir({str(saved)!r}), sys.exit()])
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)"""
    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143))
    with pytest.raises(SystemExit):
        run_to_its_end([*PYTHON, child], None)
    signal.signal(signal.SIGUSR1, before)
    assert saved.exists()


def test_two_studies_at_once_wait_for_each_other(reproduce, monkeypatch):
    """And the second does not do again what the first has done."""
    reproduce.done("caser-s")
    file = STUDENT / "toy-caser-dim=4.jsonl"
    file.rename("left")
    first = contextlib.ExitStack()
    first.enter_context(locked(STUDY / f".{STUDENT.name}.lock", ""))

    def told(*words, **how):  # the first ends once the second says that it waits
        print(*words, **how)
        Path("left").rename(file)
        first.close()

    monkeypatch.setattr("support.processes.print", told, raising=False)
    status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err, ran) == (0, [], [])
    assert f"{STUDENT.name}: process {os.getpid()} of" in out


def test_a_run_keeps_its_lock_when_its_study_is_killed(tmp_path):
    lock, pipe = str(tmp_path / "lock"), subprocess.PIPE
    killed = f"""import os, subprocess, sys
from support.processes import locked
with locked({lock!r}, "it") as descriptors:
    subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=descriptors)
    os._exit(9)"""
    waiting = f"from support.processes import locked; locked({lock!r}, 'it').__enter__()"
    with subprocess.Popen([*PYTHON, killed], cwd=ROOT, stdin=pipe) as study:
        assert study.wait() == 9
        with subprocess.Popen([*PYTHON, waiting], cwd=ROOT, stdout=pipe) as other:
            assert b" is at it; waiting" in other.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.3)
            study.stdin.write(b"\n")
            study.stdin.flush()
            assert other.wait() == 0


def test_a_run_that_fails_or_can_only_fail_is_one_line(reproduce, monkeypatch):
    *answer, ran = reproduce("--figure", "K")  # before a teacher is trained
    assert "caser-rd-K=50-validation-search-seed=1234 can't be run: --K 50" in refusal(*answer)
    assert ran == []
    monkeypatch.setattr(runs, "run_to_its_end", lambda *arguments: -signal.SIGKILL)
    assert f"{SEARCH.name}: killed by signal 9" in refusal(*reproduce("--row", "caser-s"))


def test_figures_are_drawn_with_their_data(reproduce, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(figures.FIGURES, "K", ("K", (2,), ("caser-rd",), "K"))
    reproduce()
    status, _, err, ran = reproduce("--figure", "epochs")
    assert (status, err, ran) == (0, [], [])
    head, *lines = (STUDY / "figures/epochs.csv").read_text().splitlines()
    assert head == "line,epoch,MAP"
    assert {line.split(",")[0] for line in lines} == {"Caser-T", "Caser-S", "Caser-RD"}
    assert (STUDY / "figures/epochs.png").read_bytes().startswith(b"\x89PNG")
    line = refusal(*reproduce("--figure", "all", "--report"))
    assert "--figure K: none of its runs is finished" in line
    assert (STUDY / "figures/d.png").exists()
    draw, titles = figures.draw, []
    monkeypatch.setattr(figures, "draw", lambda *args: titles.append(args[-1]) or draw(*args))
    reproduce("--figure", "K", "--seeds", 2)
    monkeypatch.setitem(figures.FIGURES, "K", ("K", (2, 3), ("caser-rd",), "K"))
    status, _, _, ran = reproduce("--figure", "K")
    assert (status, len(ran)) == (0, 2)  # the search and the run of K = 3
    assert len((STUDY / "figures/K.csv").read_text().splitlines()) == 3
    ends = [title.partition("split, ")[2] for title in titles]
    assert ends == ["mean of 2 seed(s)", "mean of 1 to 2 seed(s)"]


def test_plot_of_runs(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    first = '{"epoch": 1, "loss": 2.0}\n'
    head = '{"script": "train_caser.py"}\n' + first
    Path("a.jsonl").write_text(head + '{"epoch": 2, "loss": 1.5, "map": 0.1}\n')
    Path("b.jsonl").write_text(head)
    status, out, err = command(reproduce_tables.main, "--plot", "a.jsonl", "b.jsonl")
    assert (status, err) == (0, [])
    assert "results/plot.png" in out
    lines = Path("results/plot.csv").read_text().splitlines()
    assert lines == ["line,epoch,loss,MAP", "a,1,2.0,", "a,2,1.5,0.1", "b,1,2.0,"]
    assert Path("results/plot.png").read_bytes().startswith(b"\x89PNG")
    for odd in map(os.fsdecode, (b"_a$x^^$.jsonl", b"not-utf-8-\xff.jsonl")):
        Path(odd).write_text(first)
        assert command(reproduce_tables.main, "--plot", odd)[::2] == (0, [])
    assert "nowhere.jsonl" in refusal(*command(reproduce_tables.main, "--plot", "nowhere.jsonl"))
    for text in ('{"epoch": 1}\n', "\n[", '{"epoch": 1e400, "loss": 1}', "[" * 100_000,
                 '{"epoch": 1e30, "loss": 1}', f'{{"epoch": 1, "loss": {10**400}}}',
                 "{}\n"):  # fmt: skip
        Path("c.jsonl").write_text(text)
        place = "c.jsonl: no epoch" if text == "{}\n" else "c.jsonl, line 1: "
        assert place in refusal(*command(reproduce_tables.main, "--plot", "c.jsonl"))


def test_list_and_unknown_names(reproduce):
    status, out, _, _ = reproduce("--list")
    assert status == 0
    for words in ("--table 4", "--row rd-paper", "--figure balance", "--teach_alpha 0.1, 0.25"):
        assert words in out
    for flags in ("--table 9", "--row x", "--figure x", "--seeds 0", "--list --report",
                  "--dry_run --plot x"):  # fmt: skip
        refusal(*reproduce(*flags.split()))

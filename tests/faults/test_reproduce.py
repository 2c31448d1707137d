"""reproduce_tables: which runs a table needs, what counts as finished, what a report says of it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, tree, write_rows

import baselines
import distill_caser
import distill_fossil
import reproduce_tables
import train_caser
import train_fossil
from reproduction import execution, figures, rows
from reproduction.published import Numbers
from support.checkpoint import records_path
from support.processes import Busy, locked, stopped_together
from utils import pick_device

SCRIPTS = {
    f"{script.__name__}.py": script.main
    for script in (train_caser, distill_caser, train_fossil, distill_fossil, baselines)
}
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
    flags = ("--L", "5", "--batch_size", "16")
    settings = {("caser", "teacher"): rows.Setting(6, 4, flags),
                ("caser", "student"): rows.Setting(4, 4, flags)}  # fmt: skip
    monkeypatch.setitem(rows.SETTINGS, "toy", settings)
    ran = []

    def start(words, log, lock, environment):
        assert lock
        ran.append(words[1:])
        status = SCRIPTS[words[0]](list(map(str, words[1:])))
        return SimpleNamespace(poll=lambda: status, returncode=status)

    monkeypatch.setattr(execution, "start", start)
    monkeypatch.setattr(execution, "LOOK_SECONDS", 0)

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
    # POP and ItemCF twice; searches for T, S and RD, and the three rows themselves. The search of T
    # goes on for as many epochs as it chooses, so it teaches the search of RD.
    assert len(ran) == 9
    assert re.search(r"\| POP \| - \| - \| \.\d{4} \|", out)
    assert re.search(r"(?s)\| Caser-RD \|.*\| Caser-RD against Caser-S \| 1 \|", out)
    status, again, _, ran = reproduce(*last_only)
    assert (status, ran, again.splitlines()[-8:]) == (0, [], out.splitlines()[-8:])
    assert "| toy | 10 | 25 | 120 |" in reproduce("--table", "1", *last_only)[1]
    status, out, _, ran = reproduce("--report", *last_only)
    assert (status, ran) == (0, [])
    for words in ("Table 1", "Table 3", "Table 4", "readings", "Not run", "not measured"):
        assert words in out


def test_every_row_of_table_2_is_run_by_its_script_and_taught_by_its_teacher(reproduce):
    small = {(network.name, size): rows.Setting(d, 2, ("--batch_size", "16", *flags))
             for network, flags in ((rows.Caser, ()), (rows.Fossil, ("--history_alpha", "0.8")),
                                    (rows.BPR, ("--l2", "0")))
             for size, d in (("teacher", 6), ("student", 4))}  # fmt: skip
    rows.SETTINGS["toy"] |= small
    status, out, err, _ = reproduce("--table", "2")
    assert (status, err) == (0, [])
    assert "Not run" not in out
    for title in (rows.ROWS[name].title for name in rows.TABLES["2"]):
        assert re.search(rf"\| {re.escape(title)} \| [12-] \| [1-] \| \.\d{{4}} ", out)
    crossed = STUDY / "fossil-rd-from-caser-test-seed=1234/toy-fossil-dim=4-rd-from-caser.jsonl"
    identity = json.loads(crossed.read_text().partition("\n")[0])
    assert "caser" in str(identity["lists"]["teacher_run"])
    assert "| Fossil-RD, taught by Caser-T against Fossil-S | 1 |" in out
    assert reproduce("--table", "2")[3] == []
    assert reproduce("--table", "3")[3] == []
    out = reproduce("--table", "3", "--report")[1]
    for title in ("Caser-RD", "Fossil-RD"):
        line = rf"\| {title} \| [\d,]+ \| \d\d\.\d% \| 0\.0 \| 0\.\d\d\d \| 0\.\d\d\d \|"
        assert re.search(line, out)


def test_a_grid_searches_each_flag_around_what_was_chosen(reproduce, monkeypatch):
    flags = ("--batch_size", "16", "--history_alpha", "0.5")
    rows.SETTINGS["toy"]["fossil", "teacher"] = rows.Setting(3, 2, flags)
    monkeypatch.setitem(rows.GRIDS, "fossil-t", {"history_alpha": (0, 0.5, 1), "d": (2, 3)})
    status, out, err, ran = reproduce("--grid", "fossil-t", "--eval_every", 1)
    assert (status, err, len(ran)) == (0, [], 4)
    assert all("validation" in words for words in ran)
    best = r"\.\d{4} \([12]\)"
    alpha, d = rf"0: {best}, \*\*0\.5: {best}\*\*, 1: {best}", rf"2: {best}, \*\*3: {best}\*\*"
    assert re.search(rf"`--history_alpha` \| {alpha} \| 2 \|(?s:.*)`--d` \| {d} \| 2 \|", out)


def test_the_later_losses_have_their_own_factor_on_a_data_set(reproduce, monkeypatch):
    monkeypatch.setitem(rows.CHOSEN_ON, "toy", {"caser-cd": ("--teach_alpha", "0.3")})
    out = reproduce("--grid", "caser-cd", "--dry_run")[1]
    factors = re.findall(r"--teach_alpha (\S+) --distillation cd", out)
    assert factors == ["0.3", "0.01", "0.03", "0.1", "1", "3", "0.3"]
    assert "cd --learning_rate 0.01 --l2 0.0001" in out  # the last: the tuned student's
    out = reproduce("--table", "later", "--dry_run")[1]
    assert "--teach_alpha 0.3 --distillation cd" in out
    assert "--teach_alpha 0.03 --distillation rrd" in out
    status, out, err, _ = reproduce("--row", "caser-cd")
    assert (status, err) == (0, [])
    assert "| Caser-CD |" in out


def test_epochs_come_from_the_validation_split_and_test_is_read_once(reproduce):
    _, out, _, (search, final) = reproduce("--row", "caser-s")
    assert re.search("(?s)### toy: Caser-S\n.*Test split, all items ranked", out)
    device = pick_device("auto").type
    assert re.search(rf"By {device}, \d+ thread\(s\), python 3.*, commit [0-9a-f]+", out)
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
        assert re.search(r"\| Caser-S \| [24] \| 2 \|", out)
        assert ("Table 4" in out) == (not flags)
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
        changed = rows.Setting(4, 4, ("--batch_size", "8"))
        monkeypatch.setitem(rows.SETTINGS["toy"], ("caser", "student"), changed)
    before = tree(tmp_path)
    out = reproduce("--report")[1]
    assert re.search(r"Not run: .*; Caser-S;", out)
    assert "| Caser-S |" not in out
    assert tree(tmp_path) == before
    _, out, _, ran = reproduce("--row", "caser-s")
    assert len(ran) == (1 if what == "data" else 2)  # the search is of the validation split
    assert "kept as caser-s-test-seed=1234.old1" in out
    assert set(before.values()) <= set(tree(tmp_path).values())  # nothing is lost


def test_what_another_commit_has_done_is_said_and_done_anew_when_asked(reproduce, monkeypatch):
    reproduce.done("caser-s")
    monkeypatch.setattr("reproduction.runs.commit", lambda: "abc")
    monkeypatch.setattr("support.run.commit", lambda: "abc")
    status, out, _, ran = reproduce("--row", "caser-s")
    assert (status, ran) == (0, [])
    assert "commit abc" not in out
    _, out, _, ran = reproduce("--row", "caser-s", "--again")
    assert len(ran) == 2
    assert "kept as caser-s-test-seed=1234.old1" in out
    assert "commit abc" in out
    assert reproduce("--row", "caser-s", "--again")[3] == []


def test_a_search_that_changes_while_a_run_goes_on_leaves_no_result(reproduce, monkeypatch):
    def change_meanwhile(words):
        if "test" in words:  # as a study of another --eval_every sets it aside
            shutil.rmtree(SEARCH)
        return train_caser.main(words)

    monkeypatch.setitem(SCRIPTS, "train_caser.py", change_meanwhile)
    *answer, ran = reproduce("--row", "caser-s")
    assert re.search(r"search\b.* changed", refusal(*answer))
    assert len(ran) == 2
    assert "Not run" in reproduce("--report", "--row", "caser-s")[1]


def test_a_student_of_another_teacher_is_not_reported(reproduce):
    """Flags and data may agree and the weights not: another number of threads, say."""
    row = ("--row", "caser-rd")
    reproduce.done("caser-rd")
    shutil.rmtree(TEACHER)
    assert "Not run" in reproduce("--report", *row)[1]
    assert len(reproduce(*row)[3]) == 1  # the same teacher comes back
    assert "Not run" not in reproduce("--report", *row)[1]
    path = TEACHER / "toy-caser-dim=6.pth.tar"
    another = torch.load(path)
    another["state_dict"]["b2.weight"] += 1
    torch.save(another, path)
    assert "Not run" in reproduce("--report", *row)[1]
    _, out, _, ran = reproduce(*row)
    assert len(ran) == 1
    assert "kept as caser-rd-test-seed=1234.old1" in out


def test_a_run_of_more_epochs_than_are_wanted_is_no_result(reproduce, command):
    """One that was continued by hand, say."""
    reproduce.done("caser-s")
    path = STUDENT / "toy-caser-dim=4.pth.tar"
    assert command(train_caser.main, "--checkpoint", path, "--n_iter", 9)[0] == 0
    assert "Not run" in reproduce("--report", "--row", "caser-s")[1]
    _, out, _, ran = reproduce("--row", "caser-s")
    assert len(ran) == 1
    assert "kept as caser-s-test-seed=1234.old1" in out


def test_a_run_of_fewer_epochs_goes_on_where_it_can(reproduce, monkeypatch):
    """It was asked to resume without being told for how long, and said so for good."""
    reproduce.done("caser-s")
    flags = rows.SETTINGS["toy"]["caser", "student"].flags
    monkeypatch.setitem(rows.SETTINGS["toy"], ("caser", "student"), rows.Setting(4, 6, flags))
    status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err) == (0, [])
    assert len(ran) >= 1
    assert "Not run" not in out
    status, out, _, ran = reproduce("--row", "caser-s", "--eval_every", 3)
    assert (status, "--eval_every" in ran[0]) == (0, True)  # a search that looked elsewhere


@pytest.mark.parametrize("lost", ["pth.tar", "jsonl"])
def test_half_of_what_a_run_leaves_is_no_dead_end(reproduce, lost):
    reproduce.done("caser-s")
    interrupt(STUDENT)
    (STUDENT / f"toy-caser-dim=4.{lost}").unlink()
    status, out, err, ran = reproduce("--row", "caser-s")
    assert (status, err, len(ran)) == (0, [], 1)
    assert "Not run" not in out


def test_the_same_rows_in_another_order_are_the_same_result(reproduce):
    """Users and items were matched by their numbers: other average precisions, tested as these."""
    reproduce.done("caser-rd")
    reproduce("--row", "caser-s")
    before = reproduce("--report", "--table", "2")[1]
    assert "Caser-RD against Caser-S" in before
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
    commands = {RECORDS: ["--report"], CHECKPOINT: ["--table 3", "--row uniform"]}
    for flags in commands[path]:
        line = refusal(*reproduce(*flags.split()))
        assert str(path) in line
        assert line.endswith(f"delete {TEACHER} to run it again")


def test_stopping_asks_the_runs_to_stop(tmp_path):
    """They were once killed, and what they had not saved was lost."""
    child = """import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: [time.sleep(0.3), os.mkdir(sys.argv[1]), sys.exit()])
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)"""
    saved = [tmp_path / "first", tmp_path / "second"]
    arrived = []
    before = signal.signal(signal.SIGUSR1, lambda *_: arrived.append(1))

    def stopped():
        with stopped_together() as processes:
            processes += [subprocess.Popen([*PYTHON, child, path]) for path in saved]
            while len(arrived) < 2 and any(process.poll() is None for process in processes):
                time.sleep(0.01)
            sys.exit(143)

    with pytest.raises(SystemExit):
        stopped()
    signal.signal(signal.SIGUSR1, before)
    assert all(path.exists() for path in saved)


def test_jobs_at_once_share_the_threads_and_follow_their_teachers(reproduce, monkeypatch):
    going, most, shares, begun = [], [], set(), []

    def start(words, log, lock, environment):
        """Does the run when it is looked at for the fourth time; until then it goes on."""
        begun.append(" ".join(words))
        going.append(words)
        most.append(len(going))
        shares.add(environment["OMP_NUM_THREADS"])
        looks = iter((None, None, None, 0))

        def poll():
            status = next(looks)
            if status == 0:
                going.remove(words)
                assert SCRIPTS[words[0]](list(map(str, words[1:]))) == 0
            return status

        return SimpleNamespace(poll=poll, returncode=0)

    monkeypatch.setattr(execution, "start", start)
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    status, out, err, _ = reproduce("--seeds", 2, "--jobs", 3)
    assert (status, err, max(most), shares) == (0, [], 3, {"2"})
    assert re.search(r"\| Caser-RD \| [24] \| 2 \|", out)
    assert len(begun) == len(set(begun))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    visible = [execution.environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert visible == ["4", "7", "4"]


def test_only_what_is_not_published_is_missing(reproduce, monkeypatch):
    """The epochs are the published ones then, and a teacher is needed again all the same."""
    lines = [{"data_set": "toy", "split": "test", "row": row, "seed": seed, "epochs": 3}
             for row, seed in (("caser-t", 1234), ("caser-s", 1234), ("caser-rd", 1234),
                               ("caser-t", 1), ("caser-s", 1))]  # fmt: skip
    curves = [{"data_set": "toy", "row": row, "seed": 1234, "epoch": 3}
              for row in ("caser-t", "caser-s", "caser-rd")]  # fmt: skip
    numbers = Numbers.of_lines(results=lines, curves=curves)
    monkeypatch.setattr("reproduction.runs.Numbers.read", lambda *_: numbers)
    status, _, err, ran = reproduce("--missing", "--seeds", 2)
    assert (status, err) == (0, [])
    counted, ran = ran[:3], ran[3:]
    assert [words[words.index("--method") + 1] for words in counted] == ["pop", "itemcf", "itemcf"]
    teacher, student = (" ".join(map(str, words)) for words in ran)
    assert "--seed 1 --n_iter 3 --d 6" in teacher
    assert "--seed 1 --n_iter 3 --d 4" in student
    assert "caser-t-test-seed=1" in student
    assert reproduce("--missing", "--seeds", 1)[3] == []


def test_a_row_can_be_published_without_the_others(reproduce, monkeypatch):
    written = []
    monkeypatch.setattr("reproduction.published.changed_files", lambda *_: [])
    monkeypatch.setattr("reproduction.published.Numbers.read", lambda *_: Numbers.of_lines())
    monkeypatch.setattr("reproduction.published.Numbers.write", lambda new: written.append(new))
    for row in ("caser-s", "caser-t"):
        reproduce.done(row)
    assert reproduce("--publish", "--row", "caser-s")[0] == 0
    assert reproduce("--publish")[0] == 0
    assert [set(numbers.curves["row"]) for numbers in written] == [
        {"caser-s"}, {"caser-s", "caser-t"}
    ]  # fmt: skip


def test_two_studies_at_once_wait_for_each_other(reproduce, monkeypatch):
    """And the second does not do again what the first has done."""
    reproduce.done("caser-s")
    file = STUDENT / "toy-caser-dim=4.jsonl"
    file.rename("left")
    first = contextlib.ExitStack()
    first.enter_context(locked(STUDY / f".{STUDENT.name}.lock", ""))

    def end_of_the_first(seconds):  # the second looks again after some time
        if Path("left").exists():
            Path("left").rename(file)
            first.close()

    monkeypatch.setattr(execution.time, "sleep", end_of_the_first)
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
    with subprocess.Popen([*PYTHON, killed], cwd=ROOT, stdin=pipe) as study:
        assert study.wait() == 9
        with pytest.raises(Busy, match=f"it: process {study.pid} of .* is writing it"):
            locked(lock, "it").__enter__()
        study.stdin.write(b"\n")
        study.stdin.flush()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(Busy), locked(lock, "it"):
                return
        pytest.fail("the lock stays")


def test_a_run_that_fails_or_can_only_fail_is_one_line(reproduce, monkeypatch):
    *answer, ran = reproduce("--figure", "K")  # before a teacher is trained
    assert "caser-rd-K=50-validation-search-seed=1234 can't be run: --K 50" in refusal(*answer)
    assert ran == []
    for status, told in ((-signal.SIGKILL, "killed by signal 9"), (2, "why it failed")):

        def fail(words, log, lock, environment, status=status):
            log.write("train_caser.py: error: why it failed\n")
            log.flush()
            return SimpleNamespace(poll=lambda: status, returncode=status)

        monkeypatch.setattr(execution, "start", fail)
        assert f"{SEARCH.name}: {told}" in refusal(*reproduce("--row", "caser-s"))


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
    (STUDY / "figures/epochs.csv").rename("epochs.csv")
    line = refusal(*reproduce("--figure", "all", "--report"))
    assert (STUDY / "figures/epochs.csv").read_text() == Path("epochs.csv").read_text()
    head, first, last = (STUDY / "figures/later.csv").read_text().splitlines()
    assert (first[:10], first.split(",")[2]) == ("Caser-T,2,", last.split(",")[2])
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
    assert ends == ["mean of 2 seeds", "1 seed"]  # of the seeds that all points have


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

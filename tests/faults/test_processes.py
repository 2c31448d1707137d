"""Commands as processes: killed, stopped, without a terminal; and what all of them rest on."""

import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, SMALL, STUDENT, assert_same_weights, records, train, write_rows

import recommend
import train_caser
from caser import Caser
from distillation import distillation_parser
from recommender import Recommender
from support.checkpoint import records_path
from support.command_line import boolean, training_parser
from utils import Stopped, UserError, atomic_write, require_writable, run_command

sys.path.insert(0, str(ROOT / "datasets"))
import prepare

SLOW = ["--batch_size", 1, "--n_iter", 5]


@pytest.fixture
def start(tmp_path):
    """Start a script in tmp_path; what a test leaves running is killed."""
    started = []

    def call(script, *flags, **environment):
        # More threads than cores would slow down whatever else runs here.
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *map(str, flags)], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, encoding="utf-8",
        )  # fmt: skip
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    """Its standard output, once it has ended well."""
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return out


def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bytes(
    toy, tmp_path, start, taught
):
    teacher = ["--teacher_model_path", taught.teacher]
    run = [*toy.flags, *STUDENT, *SLOW, *teacher]
    assert taught(*SLOW, out="whole")[0] == 0
    path = tmp_path / "checkpoints" / taught.student.name
    for anything_saved in (False, True):
        process = start("distill_caser.py", *run)
        while process.poll() is None and not path.exists():
            time.sleep(0.005)
        time.sleep(random.uniform(0, 4 if anything_saved else 0.1))
        process.kill()
        process.communicate()
        run = ["--checkpoint", path, *teacher]
    finish(start("distill_caser.py", *run))
    assert_same_weights(tmp_path / "whole" / path.name, path)
    assert [row["epoch"] for row in records(records_path(path))[1:]] == [1, 2, 3, 4, 5]


def test_terminated_it_says_how_to_go_on(toy, tmp_path, start, taught):
    assert taught(*SLOW, out="whole")[0] == 0
    flags = [*toy.flags, *STUDENT, *SLOW, "--teacher_model_path", taught.teacher]
    process = start("distill_caser.py", *flags)
    assert any(line.startswith("Epoch 1") for line in process.stdout)
    process.terminate()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "")
    script, *again = shlex.split(out.splitlines()[-1].removeprefix("python "))
    finish(start(script, *again))
    name = taught.student.name
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "checkpoints" / name)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without SIGHUP")
def test_a_closed_terminal_or_pipe_loses_nothing(toy, tmp_path, start):
    flags = [*toy.flags, *SMALL, "--batch_size", 1, "--n_iter", 1000, "--eval_every", 1000]
    for leave, status in ((lambda p: p.send_signal(signal.SIGHUP), 129),
                          (lambda p: p.stdout.close(), 1)):  # fmt: skip
        process = start("train_caser.py", *flags, "--output_dir", status)
        assert any(line.startswith("Epoch 1") for line in process.stdout)
        leave(process)
        assert process.wait(60) == status
        assert process.stderr.read() == ""
        path = tmp_path / str(status) / "toy-caser-dim=6.pth.tar"
        assert torch.load(path, weights_only=True)["epoch_num"] >= 1


def test_a_second_run_that_would_write_one_checkpoint_is_refused(command, toy, tmp_path, start):
    flags = [*toy.flags, *SMALL, "--batch_size", 1, "--n_iter", 1000, "--output_dir", tmp_path]
    process = start("train_caser.py", *flags)
    assert any(line.startswith("Epoch 1") for line in process.stdout)
    status, _, err = command(train_caser.main, *flags)
    assert (status, len(err)) == (2, 1)
    assert f"toy-caser-dim=6.pth.tar: process {process.pid} of" in err[0]
    process.kill()
    process.wait()
    train(command, toy, tmp_path, "--output_dir", tmp_path, "--n_iter", 1)  # a dead one holds none


def test_without_locks_a_run_says_so_and_trains(command, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("support.processes.fcntl", None)
    assert "no locks" in train(command, toy, tmp_path, "--n_iter", 1)


def test_without_standard_error_it_trains_and_rows_alone_are_on_standard_output(toy, tmp_path):
    """As a service has it; notes once came among the rows."""

    def run(script, *words):
        line = shlex.join([sys.executable, *map(str, (ROOT / script, *words))])
        done = subprocess.run(["sh", "-c", f"{line} 2>&-"], capture_output=True, cwd=tmp_path)
        return done.returncode, done.stdout.decode()

    status, out = run("train_caser.py", *toy.flags, *SMALL, "--n_iter", 1)
    assert (status, "saved" in out) == (0, True)
    path = "checkpoints/toy-caser-dim=6.pth.tar"
    status, out = run("recommend.py", "--checkpoint", path, "--sequence", "i1,strange")
    assert status == 0
    assert len({line.count("\t") for line in out.splitlines()}) == 1
    assert run("recommend.py", "--checkpoint", "nowhere") == (2, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without ulimit")
def test_a_full_disk_is_one_line_and_keeps_the_old_file(command, toy, tmp_path):
    """torch makes a RuntimeError of it, 20 lines of traceback once."""
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    before = path.read_bytes()
    words = [sys.executable, ROOT / "train_caser.py", "--checkpoint", path, "--n_iter", 3]
    line = f"ulimit -f {len(before) // 1024}; {shlex.join(map(str, words))}"  # of 512 or 1024 bytes
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert str(path) in done.stderr
    assert path.read_bytes() == before

    def without_a_number():  # as numpy says it
        with atomic_write(tmp_path / "lists.npy"):
            raise OSError("10 requested and 0 written")

    status, _, err = command(without_a_number)
    assert (status, len(err)) == (2, 1)
    assert "lists.npy: could not be written; is the disk full? (10 requested" in err[0]


def test_devices_and_pipes_are_no_outputs(tmp_path):
    """Once a device was replaced by a file, where root ran it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for write in (require_writable, lambda path: atomic_write(path).__enter__()):
            with pytest.raises(UserError, match="pipe: is no regular file"):
                write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


def test_scripts_work_without_docstrings(tmp_path):
    scripts = [*ROOT.glob("*_*.py"), ROOT / "recommend.py", ROOT / "datasets" / "prepare.py"]
    code = """import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(path)["main"](["--help"])
    assert out.getvalue().startswith("usage:"), path"""
    words = [sys.executable, "-OO", "-c", code, *map(str, scripts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(words, check=True, cwd=tmp_path, env=environment)


def test_a_read_only_file_is_refused_and_other_modes_are_kept(command, toy, tmp_path, monkeypatch):
    """For root too: whoever took the write bit away meant it."""
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    path.chmod(0o640)
    train(command, toy, tmp_path, "--n_iter", 1)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o444)
    before = path.read_bytes()
    rows = tmp_path / "rows.tsv"
    rows.touch(0o444)
    monkeypatch.setattr(Recommender, "fit", lambda *_: pytest.fail("trained"))
    for main, *words in (
        (train_caser.main, *toy.flags, *SMALL, "--output_dir", path.parent),
        (recommend.main, "--checkpoint", path, "--sequence", "i1", "--output", rows),
    ):
        status, _, err = command(main, *words)
        assert (status, len(err)) == (2, 1)
        assert "read-only; make it writable" in err[0]
    assert (path.read_bytes(), rows.read_text()) == (before, "")


def test_an_odd_terminal_gets_its_notes_and_no_progress_bar(toy, start):
    toy.test.write_text(toy.test.read_text() + "é i1 1\n")
    flags = [*toy.flags, *SMALL, "--n_iter", 1]
    out = finish(start("train_caser.py", *flags, PYTHONIOENCODING="ascii"))
    assert "\\xe9" in out
    assert "\r" not in out


def test_ids_are_written_as_they_were_in_any_locale(command, toy, tmp_path, start):
    """Standard output had escapes once; a space that divides no columns was stripped."""
    pairs = [(user, item) for user in range(6) for item in range(user, user + 9)]
    write_rows(toy.train, [(f"用户{user}\u00a0", f"é{item}\u3000") for user, item in pairs])
    toy.test.write_text("用户1\u00a0 é1\u3000 1\n")
    train(command, toy, tmp_path, "--n_iter", 1)
    (tmp_path / "who").write_text("用户1\u00a0\n")
    words = ["--checkpoint", tmp_path / "out" / "toy-caser-dim=6.pth.tar", "--top", 1, "--users"]
    out = finish(start("recommend.py", *words, "who", PYTHONIOENCODING="latin-1"))
    user, item, *_ = out.splitlines()[1].split("\t")
    assert user == "用户1\u00a0"
    assert item.endswith("\u3000")
    assert command(recommend.main, *words[:4], "--sequence", "é1\u3000,é2\u3000")[0] == 0
    line = shlex.join([sys.executable, *map(str, (ROOT / "recommend.py", *words, "who"))])
    closed = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, cwd=tmp_path)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_default_data_set_that_cannot_be_fetched_is_one_line(tmp_path, start):
    """The scripts call datasets/prepare.py, whose one line and exit status they hand on."""
    offline = {"PIP_INDEX_URL": "http://localhost:9/", "PIP_NO_INDEX": "1"}
    process = start("train_caser.py", "--n_iter", 1, **offline, PIP_FIND_LINKS=str(tmp_path))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "--source" in err
    assert not list(tmp_path.rglob("*.txt"))


# ----------------------------------------------------------------------------------- flags


def test_help_explains_every_flag(command):
    parsers = [training_parser("x", Caser, 100), distillation_parser("x", Caser, 50),
               recommend.get_args_parser(), prepare.get_args_parser()]  # fmt: skip
    for parser in parsers:
        text = parser.format_help()
        for action in parser._actions:
            assert action.help
            assert all(option in text for option in action.option_strings)
    status, out, _ = command(train_caser.main, "--help")
    assert (status, out.split()[0]) == (0, "usage:")


def test_words_that_mean_true_and_false():
    for words, value in (("1 true Yes T on y", True), ("0 no FALSE f off n", False)):
        assert {boolean(word) for word in words.split()} == {value}


# ----------------------------------------------------------------------- files and signals


def test_a_file_is_replaced_whole_or_not_at_all_and_through_links(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")

    def write(text, error=None):
        with atomic_write(tmp_path / "link", "w") as file:
            file.write(text)
            if error:
                raise error

    with pytest.raises(RuntimeError, match="broken off"):
        write("ne", RuntimeError("broken off"))
    assert (tmp_path / "file").read_text() == "old"
    write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert set(os.listdir(tmp_path)) == {"file", "link"}


def test_what_a_killed_process_left_is_swept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = platform.node()
    swept = f".file.{here}.{dead.pid}.tmp"
    left = {f".file.{here}.{os.getppid()}.tmp", f".file.else.where.{dead.pid}.tmp"}
    for name in (swept, *left):  # of the dead, of a process at work, of another machine
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("new")
    assert set(os.listdir(tmp_path)) == {"file", *left}


def test_the_second_signal_does_what_it_always_does_and_handlers_are_put_back(command):
    # A shell may have started us with Ctrl-C ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop_twice():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return 7

    try:
        assert command(stop_twice)[0] == 7
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_what_a_person_can_mend_is_one_line_and_a_bug_is_not(command):
    def fail(error):
        raise error

    for error in (UserError("a\nb"), OSError(28, "full", "f"), MemoryError(),
                  RuntimeError("can't allocate memory")):  # fmt: skip
        status, _, err = command(partial(fail, error))
        assert (status, len(err)) == (2, 1)
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(partial(fail, RuntimeError("a bug")))

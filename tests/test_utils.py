import io
import os
import pickle
import platform
import signal
import subprocess
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import utils
from utils import (
    ComplementSampler,
    StopRequest,
    UserError,
    atomic_write,
    boolean,
    in_range,
    load_tensors,
    pick_device,
    random_state,
    require_writable,
    set_random_state,
    set_seed,
)

# ---------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(("word", "value"), [("1", True), ("Yes", True), ("T", True), ("on", True),
                                             ("0", False), ("no", False), ("FALSE", False),
                                             ("off", False)])  # fmt: skip
def test_boolean(word, value):
    assert boolean(word) is value


@pytest.mark.parametrize("word", ["", "2", "maybe", "truee", "None"])
def test_boolean_refuses_the_rest(word):
    with pytest.raises(Exception, match="true or false"):
        boolean(word)


@pytest.mark.parametrize(
    ("kind", "interval", "good", "bad"),
    [
        (int, "[1, inf)", ["1", "99999"], ["0", "-1", "1.5", "x", "", "nan"]),
        (float, "[0, 1)", ["0", "0.5", "1e-9"], ["1", "-0.1", "nan", "inf", "x"]),
        (float, "(0, inf)", ["1e-9", "5"], ["0", "-1", "inf", "nan"]),
        (int, "[0, 10]", ["0", "10"], ["11"]),
    ],
)
def test_in_range(kind, interval, good, bad):
    parse = in_range(kind, interval)
    assert [parse(text) for text in good] == [kind(text) for text in good]
    for text in bad:
        with pytest.raises(Exception, match="is not a") as error:
            parse(text)
        assert interval in str(error.value)


def test_a_missing_device_is_one_line():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UserError, match="--device cpu"):
            pick_device("cuda")


# ---------------------------------------------------------------------------------- files


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"old")

    def break_off():
        with atomic_write(path) as file:
            file.write(b"ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        break_off()
    assert path.read_bytes() == b"old"
    with atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_goes_through_links(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_a_killed_process_left_is_swept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = platform.node()
    (tmp_path / f".file.{here}.{dead.pid}.tmp").write_text("half")
    (tmp_path / f".file.{here}.{os.getppid()}.tmp").write_text("another process, at work")
    (tmp_path / f".file.else.where.{dead.pid}.tmp").write_text("of another machine")
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("new")
    left = {f".file.{here}.{os.getppid()}.tmp", f".file.else.where.{dead.pid}.tmp", "file"}
    assert set(os.listdir(tmp_path)) == left


def test_require_writable(tmp_path):
    require_writable(tmp_path / "a" / "b" / "file")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "plain").touch()
    for path in (tmp_path / "plain" / "file", tmp_path / "a"):
        with pytest.raises(UserError, match=r"cannot write|is a folder"):
            require_writable(path)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, legacy):
    path, target = tmp_path / "bad.pth.tar", tmp_path / "made-by-attack"
    torch.save({"state_dict": Hostile(target)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(path)
    path.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(path)
    assert not target.exists()


def test_damaged_checkpoints_are_one_line(tmp_path):
    path = tmp_path / "file"
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(1000)}}, buffer)
    whole = buffer.getvalue()
    for data in (b"", b"x", b"hello\n" * 50, whole[: len(whole) // 2], whole[:-30], whole[100:]):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            load_tensors(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        load_tensors(tmp_path / "missing")
    with pytest.raises(UserError, match="is a folder"):
        load_tensors(tmp_path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.pth.tar"
    entries = {"a/data.pkl": b"x", "a/data/0": b"\0" * 10_000_000}
    zipped(path, entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        load_tensors(path)


def test_a_checkpoint_that_claims_more_than_it_holds(tmp_path):
    """Its pickle says 10^12 floats, its record holds 10."""
    path = tmp_path / "claim.pth.tar"
    buffer = io.BytesIO()
    torch.save(torch.zeros(10), buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    assert b"K\n" in entries[name]  # BININT1 10
    entries[name] = entries[name].replace(b"K\n", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    zipped(path, entries)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(path)


@pytest.mark.parametrize("claim", [10**10, 10**12, 10**15])
def test_an_old_checkpoint_that_claims_more_than_it_holds(tmp_path, claim):
    path = tmp_path / "claim.pth.tar"
    torch.save(torch.zeros(10), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"K\n" in data  # BININT1 10
    path.write_bytes(data.replace(b"K\n", b"\x8a\x07" + claim.to_bytes(7, "little")))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(path)


# ------------------------------------------------------------------------- random numbers


def test_same_seed_same_numbers():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    set_seed(7)
    first = draws()
    set_seed(7)
    assert draws() == first
    state = random_state(torch.device("cpu"))
    after = torch.rand(3)
    torch.rand(100)
    set_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.rand(3), after)


def sampler_for(sets, n):
    matrix = sp.lil_matrix((len(sets), n + 1), dtype=bool)
    for row, elements in enumerate(sets):
        matrix[row, sorted(elements)] = True
    return ComplementSampler(matrix.tocsr(), n, "cpu")


def test_every_outsider_is_drawn_equally_often():
    n = 12
    sets = [set(), {1}, {12}, {1, 12}, {3, 4, 5, 9}, set(range(1, 12)), set(range(2, 13))]
    sampler = sampler_for(sets, n)
    assert sampler.counts.tolist() == [n - len(elements) for elements in sets]
    torch.manual_seed(0)
    draws = 60_000
    items = sampler.draw(torch.arange(len(sets)), draws)
    assert items.shape == (len(sets), draws)
    for row, elements in enumerate(sets):
        outside = sorted(set(range(1, n + 1)) - elements)
        counts = np.bincount(items[row], minlength=n + 1)
        assert np.flatnonzero(counts).tolist() == outside
        expected = draws / len(outside)
        chi2 = ((counts[outside] - expected) ** 2 / expected).sum()
        assert chi2 < len(outside) + 6 * (2 * len(outside)) ** 0.5  # six standard deviations


def test_draws_equal_the_slow_version(monkeypatch):
    rng = np.random.default_rng(0)
    n = 50
    sets = [
        set(rng.choice(np.arange(1, n + 1), size, replace=False)) for size in rng.integers(0, n, 40)
    ]
    sampler = sampler_for(sets, n)
    rows = torch.from_numpy(rng.integers(0, 40, 200))
    torch.manual_seed(3)
    numbers = torch.empty(200, 5, dtype=torch.int64).random_()
    torch.manual_seed(3)
    drawn = sampler.draw(rows, 5)
    for i, row in enumerate(rows.tolist()):
        outside = sorted(set(range(1, n + 1)) - sets[row])
        assert drawn[i].tolist() == [outside[r % len(outside)] for r in numbers[i].tolist()]


# -------------------------------------------------------------------------------- signals


def test_a_signal_becomes_a_request_and_the_second_one_acts():
    # A shell may have started us with Ctrl-C ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            assert stop.signal_number is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal_number == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_run_command_speaks_one_line(capsys):
    def fail():
        raise UserError("first\nsecond")

    with pytest.raises(SystemExit) as stop:
        utils.run_command(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

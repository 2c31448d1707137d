"""The authors' Gowalla by one command, from a web server on this machine that has made-up files."""

import hashlib
import http.server
import os
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, write_rows

import distill_caser
import support.sources
import train_caser
from support.sources import blob_id

sys.path.insert(0, str(ROOT / "datasets"))
import prepare


def blob(data):
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """Serves ``files``, {path: bytes}; ``faults``, {path: what goes wrong}, are had once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fault = server.faults.pop(self.path, None)
            data = server.files.get(self.path)
            server.asked.append((self.path, self.headers.get("Range")))
            if fault == "redirect":
                self.send_response(302)
                self.send_header("Location", f"{server.address}/moved{self.path}")
                self.end_headers()
            elif data is None or fault == "404":
                self.send_error(404)
            else:
                start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
                if fault == "no ranges":
                    start = 0
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                end = len(data) // 2 if fault == "cut" else len(data)
                self.wfile.write(data[start:end])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.address = f"http://127.0.0.1:{server.server_port}"
        server.files, server.faults, server.asked = {}, {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(support.sources, "PAUSE", 0)
        yield server
        server.shutdown()


@pytest.fixture
def authors(server, tmp_path, monkeypatch):
    """A made-up copy of what the authors have: {name: bytes}, on the server twice."""
    rows = [(f"u{u}", f"i{(u * 7 + n) % 30}") for u in range(10) for n in range(20)]
    place = [n for _ in range(10) for n in range(20)]
    files = {}
    for name, low, high in (("validation/train.txt", 0, 14), ("validation/test.txt", 14, 16),
                            ("test/train.txt", 0, 16), ("test/test.txt", 16, 20)):  # fmt: skip
        part = [row for row, n in zip(rows, place, strict=True) if low <= n < high]
        files[name] = write_rows(tmp_path / "theirs" / name, part).read_bytes()
    for base in ("/first", "/second"):
        server.files |= {f"{base}/{name}": data for name, data in files.items()}
    monkeypatch.setattr(prepare, "GOWALLA", [server.address + "/first", server.address + "/second"])
    monkeypatch.setattr(prepare, "GOWALLA_BLOBS", {n: blob(data) for n, data in files.items()})
    monkeypatch.setattr(prepare, "TEACHER", server.address)
    return files


@pytest.fixture
def gowalla(command, tmp_path):
    """Prepare it in tmp_path/datasets: (status, stdout, stderr lines)."""

    def call(*flags):
        folder = tmp_path / "datasets"
        return command(prepare.main, "gowalla", "--output_dir", folder, *flags)

    call.folder = tmp_path / "datasets" / "gowalla"
    return call


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "fault", [None, "404", "cut", "redirect", "no ranges", "another byte", "nothing there"]
)
def test_it_is_downloaded_and_verified_whatever_the_connection_does(
    server, authors, gowalla, fault
):
    name = "/first/test/train.txt"
    if fault == "another byte":
        server.files[name] = server.files[name].replace(b"u3", b"u4", 1)
    elif fault == "nothing there":
        server.files = {path: data for path, data in server.files.items() if "second" in path}
    elif fault:
        server.faults[name] = "cut" if fault == "no ranges" else fault
    if fault == "redirect":
        server.files["/moved" + name] = server.files.pop(name)
    status, out, err = gowalla()
    assert (status, err) == (0, [])
    assert "10 users, 30 items, 200 rows" in out
    assert files_of(gowalla.folder.parent) == {f"gowalla/{n}": d for n, d in authors.items()}
    ranges = [asked for path, asked in server.asked if path == name]
    if fault in ("cut", "no ranges"):  # taken up where it broke
        assert ranges == [None, f"bytes={len(authors['test/train.txt']) // 2}-"]
    status, again, _ = gowalla()
    assert status == 0
    assert "used as they are" in again


def test_what_no_address_has_right_is_named_and_nothing_is_left(server, authors, gowalla):
    for base in ("/first", "/second"):
        server.files[f"{base}/test/test.txt"] = b"u1 i1 1\n"
    status, _, err = gowalla()
    assert (status, len(err)) == (2, 1)
    assert f"{server.address}/first/test/test.txt: its git blob id is" in err[0]
    assert not list(gowalla.folder.parent.iterdir())
    server.files = {}
    status, _, err = gowalla()
    assert (status, len(err)) == (2, 1)
    assert "404" in err[0]
    assert not list(gowalla.folder.parent.iterdir())


def test_a_folder_at_hand_is_verified_the_same_way(authors, gowalla, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "validation" / "test.txt").write_text("u1 i1 1\n")
    status, _, err = gowalla("--source", theirs)
    assert (status, len(err)) == (2, 1)
    assert f"{theirs / 'validation/test.txt'}: not the authors' file" in err[0]
    assert "--unverified" in err[0]
    assert not list(gowalla.folder.parent.iterdir())
    status, out, _ = gowalla("--source", theirs, "--unverified")
    assert status == 0
    assert f"note: {theirs / 'validation/test.txt'}: not the authors' file" in out
    assert files_of(gowalla.folder) == files_of(theirs)
    (theirs / "test" / "train.txt").unlink()
    status, _, err = gowalla("--source", theirs, "--unverified")
    assert (status, len(err)) == (2, 1)


def test_the_authors_teacher_teaches_at_once(
    server, authors, gowalla, command, toy, tmp_path, monkeypatch
):
    theirs = tmp_path / "theirs"
    flags = ["--train_root", theirs / "test/train.txt", "--test_root", theirs / "test/test.txt"]
    words = ["--d", 100, *SMALL[4:], "--n_iter", 1, "--output_dir", tmp_path / "trained"]
    assert command(train_caser.main, *flags, *words)[0] == 0
    (path,) = (tmp_path / "trained").glob("*.pth.tar")
    data = path.read_bytes()
    server.files[f"/{prepare.TEACHER_NAME}"] = data
    monkeypatch.setattr(prepare, "TEACHER_BLOB", blob(data))
    status, out, _ = gowalla("--teacher")
    assert status == 0
    assert "saved the authors' teacher" in out
    monkeypatch.chdir(tmp_path)
    status, out, err = command(distill_caser.main, "--dataset", "gowalla", "--d", 4, "--n_iter", 1)
    assert (status, err) == (0, [])
    assert "Teacher (d=100)" in out
    (tmp_path / "checkpoints" / prepare.TEACHER_NAME).write_bytes(b"mine")
    status, _, err = gowalla("--teacher")
    assert (status, len(err)) == (2, 1)
    assert "not the authors' teacher" in err[0]


@pytest.mark.skipif(
    not os.environ.get("GOWALLA"), reason="GOWALLA names no folder with the authors' files"
)
def test_the_real_files_have_the_ids_that_are_asked_of_them():
    found = [name for name in prepare.GOWALLA_BLOBS if Path(os.environ["GOWALLA"], name).exists()]
    assert found
    for name in found:
        assert blob_id(Path(os.environ["GOWALLA"], name)) == prepare.GOWALLA_BLOBS[name]

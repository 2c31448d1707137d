"""Originals of data sets: opening what is packed, downloading, telling a file by its git blob."""

import bz2
import contextlib
import functools
import gzip
import hashlib
import http.client
import lzma
import os
import re
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from utils import UserError

PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
ZIP = (b"PK\3\4", b"PK\5\6")
TAR, TAR_PLACE = b"ustar", 257
SEPARATOR_LINE = re.compile(rb"(?i)^(?:\xef\xbb\xbf)?sep=(.)\s*$")  # that Excel reads
CHUNK = 1 << 16  # bytes that are read at a time
ATTEMPTS = 4  # of a download whose connection breaks off
PAUSE = 1.0  # seconds before the next one


def open_source(path, members=()):
    """Open a file for reading bytes: as it is, or what is packed in it, which its first bytes tell.

    Of a zip the one of ``members`` that it holds, or its only file. UserError where the path is no
    regular file (a pipe can be read but once), or what is packed is packed again.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is no regular file; save it as one first")
        start = file.read(len(TAR) + TAR_PLACE)
    if is_archive(start):
        raise UserError(f"{path}: is a tar archive; unpack it and name the file in it")
    opened = next((opened for mark, opened in PACKED.items() if start.startswith(mark)), open)
    if start.startswith(ZIP):
        opened = functools.partial(_open_member, members=members)
    if opened is open:
        return open(path, "rb")
    with reported_damage(path), opened(path) as file:
        start = file.read(len(TAR) + TAR_PLACE)
    if start.startswith((*PACKED, *ZIP)) or is_archive(start):
        raise UserError(f"{path}: holds a file that is packed again; unpack that and name it")
    return opened(path)


def is_archive(start):
    """Whether a file that begins so is a tar archive."""
    return start[TAR_PLACE:] == TAR


def _open_member(path, members):
    with reported_damage(path):
        archive = zipfile.ZipFile(path)
        files = [name for name in archive.namelist() if not name.endswith("/")]
        files = [name for name in files if not name.startswith("__MACOSX/")]
        meant = [name for name in members if name in files] or files
        if len(meant) != 1:
            held = ", ".join(meant)[:300] or "no file"
            raise UserError(f"{path}: holds {held}; unpack it and name one of them")
        return archive.open(meant[0])


@contextlib.contextmanager
def reported_damage(path):
    """Turn what reading a damaged packed file raises into a UserError that names ``path``."""
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error})") from None
    except (KeyError, NotImplementedError, RuntimeError) as error:  # a password, say
        raise UserError(f"{path}: {error}") from None


def guessed_delimiter(path):
    """What divides the columns of a file, by its first line: what is there most often of comma,
    tab and semicolon."""
    with open_source(path) as file, reported_damage(path):
        line = next((line for line in file if line.strip()), b"")
    if found := SEPARATOR_LINE.match(line):
        return found[1].decode("utf-8", "replace")
    return max(",\t;", key=lambda mark: line.count(mark.encode()))


def blob_id(path):
    """The id under which git keeps the content of a file: SHA-1 of its size and bytes."""
    digest = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(addresses, path, blob=None):
    """Fetch the first of ``addresses`` that can be had to ``path``, which appears whole.

    A connection that breaks off is taken up where it broke. blob: the git blob id that the file
    must have. UserError, naming each address and what it gave, where none is right.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    failures = []
    for address in addresses:
        try:
            _fetch(address, part)
            found = blob_id(part)
            if blob in (None, found):
                os.replace(part, path)
                return
            failures.append(f"{address}: its git blob id is {found}, not {blob}")
        except (http.client.HTTPException, OSError) as error:
            failures.append(f"{address}: could not be downloaded ({error})")
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
    raise UserError(f"{'; '.join(failures)}; get {path.name} yourself and pass --source")


def _fetch(address, part):
    """Write what is at an address to the file ``part``."""
    part.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        request = urllib.request.Request(address, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as source:
                resumed = source.status == 206  # else the server sends all of it again
                have = have if resumed else 0
                rest = source.headers.get("Content-Length")
                size = None if rest is None else have + int(rest)
                with open(part, "ab" if resumed else "wb") as file, tqdm(
                    total=size, initial=have, desc=address.rsplit("/", 1)[1], unit="B",
                    unit_scale=True, leave=False, disable=None,
                ) as bar:  # fmt: skip
                    while chunk := source.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
                    if size is not None and file.tell() != size:
                        raise ConnectionError(f"{file.tell()} of {size} bytes came")
            return
        except urllib.error.HTTPError:  # the server's own word
            raise
        except (http.client.HTTPException, OSError):
            if attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE)

"""What a run is: told once, in the first line of its records and in its checkpoint."""

import functools
import os
import subprocess
from pathlib import Path

import torch

from support.checkpoint import load_tensors, records_path
from support.torchrun import place
from utils import DAMAGE, UserError, first_free, versions

ROOT = Path(__file__).resolve().parent.parent
COMPARED = ("script", "network", "flags", "data", "lists")  # what makes it this run


def describe_run(script, network, flags, data, lists, device, before=None):
    """The identity of a run, a dict of plain values.

    script, network: the names of both. flags: those that change weights, a dict.
    data: the DataSet. lists: what its teacher's lists were made from, or None. device: where it
    runs. before: the identity with which a resumed run began.
    """
    commits = [(before or {}).get("commit"), commit()]
    resumed = before and commits[0] != commits[1]
    return {
        "script": script,
        "network": network,
        "flags": flags,
        "data": data_fingerprints(data),
        "lists": lists,
        "commit": ", then ".join(map(str, commits)) if resumed else commits[1],
        "versions": versions(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": place()[1],
        "data_set": {"name": data.name} | data.counts,
    }


def version_words(versions):
    """What ``versions`` gives, or an identity holds of it, in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def data_fingerprints(data):
    """What a run's identity holds of a DataSet."""
    return {part: data.identity[part] for part in ("train_rows", "test_rows")}


def same_run(first, second):
    """Whether two identities are of one run, done with whatever commit, versions and device."""
    return all(first.get(part) == second.get(part) for part in COMPARED)


@functools.cache
def commit():
    """The commit of this project's code, with a + where its code is changed; None where git is not
    there, or where this is no git repository of its own."""
    try:
        return _git("rev-parse", "HEAD") + "+" * bool(changed_files("*.py", "requirements.txt"))
    except (OSError, subprocess.CalledProcessError):
        return None


def changed_files(*patterns):
    """The tracked files that differ from the commit, of those that git's patterns name. Raises
    OSError or CalledProcessError where there is no repository of this project's own."""
    if Path(_git("rev-parse", "--show-toplevel")) != ROOT:
        raise FileNotFoundError(f"{ROOT} is no git repository")
    return _git("diff", "HEAD", "--name-only", "--", *patterns).splitlines()


def _git(*words):
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    done.check_returncode()
    return done.stdout.strip()


def keep_other_run(path, run, n_iter):
    """Give the checkpoint at ``path`` and its records a second name, where there is one that is
    not of this run with as many epochs, so that saving does not destroy it."""
    if not path.exists():
        return
    try:
        old = load_tensors(path)
        if same_run(old["run"], run) and old["config"]["n_iter"] == n_iter:
            return
    except (UserError, *DAMAGE):
        pass  # not this project's, or damaged: not to be destroyed either
    stem = str(path).removesuffix(".pth.tar")
    kept = first_free(lambda number: Path(f"{stem}.old{number}.pth.tar"), records_path)
    for name, second in ((path, kept), (records_path(path), records_path(kept))):
        if name.exists():
            try:
                os.link(os.path.realpath(name), second)
            except OSError:  # a file system without links
                os.replace(name, second)
    print(f"note: {path} is of other flags or data; it is kept as {kept}")

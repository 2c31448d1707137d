"""Table 3's measurement: parameters, size, and the time to rank all items for every test user."""

import statistics
import time

import numpy as np
import torch

from evaluation import device_of
from kernels import topk
from reproduction.rows import ROWS
from support.checkpoint import restore_network
from support.run import commit, version_words
from utils import versions

AT_ONCE = (256, 1)  # users ranked together


def measure(study, names):
    """The lines of times.csv of the rows that are finished: medians of 3."""
    lines = []
    for row in (ROWS[name] for name in names):
        data = study.data(row=row)
        users = np.flatnonzero(np.diff(data.test.tocsr().indptr))
        for run in study.finished_runs(row)[:1]:
            net = restore_network(run.trained()).eval()
            for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
                net.to(device)
                for at_once in AT_ONCE:
                    seconds = [ranking_seconds(net, data.train, users, at_once) for _ in range(3)]
                    lines.append({
                        "data_set": study.dataset,
                        "row": row.name,
                        "device": device,
                        "at_once": at_once,
                        "seconds": round(statistics.median(seconds), 3),
                        "parameters": sum(parameter.numel() for parameter in net.parameters()),
                        "megabytes": round(run.checkpoint.stat().st_size / 1e6, 1),
                        "threads": torch.get_num_threads(),
                        "versions": version_words(versions()),
                        "commit": commit(),
                    })  # fmt: skip
    return lines


@torch.inference_mode()
def ranking_seconds(net, train, users, at_once):
    """How long it takes to rank all items for users (n,), ``at_once`` of them together."""
    device = device_of(net)
    inputs = [part[users] for part in train.test_sequences.inputs(device)]
    started = time.perf_counter()
    for first in range(0, len(users), at_once):
        scores = net.score_all(*(part[first : first + at_once] for part in inputs))
        topk(scores, min(10, scores.shape[1]))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started

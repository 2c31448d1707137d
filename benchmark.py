"""Time every phase beside the bare kernels it can't do without; a script, no test.

    python benchmark.py                       a made-up data set of Gowalla's size
    python benchmark.py --train_root F --test_root F
    python benchmark.py --made_up 100000 50000 8000000      only what data of this size costs

Prints a table and one JSON line. A phase's limit is a multiple of what was measured beside it in
the same run; times are medians.
"""

import json
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from caser import Caser
from distillation import METHODS, teacher_lists
from evaluation import best_items, evaluate_ranking, scoring_blocks
from fossil import Fossil
from recommender import Recommender
from support.data_set import DataSet, read_interactions
from support.teacher import METHOD_FLAGS
from utils import Parser, UserError, device_flag, in_range, pick_device, run_command, versions

GOWALLA = (13_149, 14_009, 433_356)  # users, items, train rows of the test split
K, SAMPLES, NEGATIVES, BATCH = 10, 100, 3, 512
# A step of a later method costs at most so many of one of RD's.
LATER = {"rrd": 2.2, "listwise": 1.7, "cd": 1.7}


def made_up(folder, users, items, rows):
    """Write train.txt and test.txt of these sizes, skewed as Gowalla is.

    Popularity falls as a power law and every item occurs; histories are log-normal, at least 12
    rows in train, and a quarter as many in test.
    """
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(0, 0.9, users))
    lengths = 12 + np.floor(lengths / lengths.sum() * (rows - 12 * users)).astype(int)
    lengths[: rows - lengths.sum()] += 1
    popularity = 1 / np.arange(1, items + 1) ** 0.6
    cumulative = np.cumsum(popularity) / popularity.sum()
    for name, counts in (("train", lengths), ("test", -(-lengths // 4))):
        user = np.repeat(np.arange(users), counts)
        item = np.searchsorted(cumulative, rng.random(len(user)))
        item[:items] = rng.permutation(items)[: len(item)]
        np.savetxt(folder / f"{name}.txt", np.stack([user, item, np.ones_like(user)], 1), "%d")
    return folder / "train.txt", folder / "test.txt"


def million_rows(folder):
    """Write a file of a million rows; return its path."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 50_000, 10**6), rng.integers(0, 30_000, 10**6)], 1)
    np.savetxt(folder / "million.txt", np.hstack([rows, np.ones_like(rows[:, :1])]), "%d")
    return folder / "million.txt"


def median_seconds(function, times, device):
    """The median time of ``function()`` over ``times`` runs, after one that does not count."""
    return medians_in_turns({"": function}, times, device)[""]


def medians_in_turns(functions, times, device):
    """The same of several, a dict, in turns: what else the machine does meets all of them alike."""
    seconds = {name: [] for name in functions}
    for _ in range(times + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(some[1:]) for name, some in seconds.items()}


def step(model):
    """A function that does the next training step of a prepared model."""
    model.net.train()
    batches = iter([])

    def run():
        nonlocal batches
        rows = next(batches, None)
        if rows is None:
            batches = iter(
                [part for part in model.epoch_order().split(BATCH) if len(part) == BATCH]
            )
            rows = next(batches)
        model.train_on(rows)

    return run


class LayerByLayer(Caser):
    """Caser written plainly with torch's own layers: the step to compare with."""

    def represent(self, sequences, users, history=None):
        E = self.item_embeddings(sequences)[:, None]
        branches = [self.conv_v(E).flatten(1)]
        for conv in self.conv_h:
            response = self.ac_conv(conv(E).squeeze(3))
            branches.append(F.max_pool1d(response, response.shape[2]).squeeze(2))
        features = F.dropout(torch.cat(branches, 1), self.architecture["drop"], self.training)
        return torch.cat([self.ac_fc(self.fc1(features)), self.user_embeddings(users)], 1)

    def score(self, x, items):
        return torch.baddbmm(self.b2(items), self.W2(items), x[:, :, None]).squeeze(2)


def layer_by_layer(train, device):
    """A Recommender of that network and of an Adam by torch's defaults."""
    model = Recommender(partial(LayerByLayer, d=100), device=device)
    model.prepare(train)
    model.optimizer = torch.optim.Adam(model.net.parameters(), weight_decay=model.l2)
    return model


def bare_products(L, d, nv, nh, device):
    """The matrix products of a step, forward and backward, as a function: banded convolution,
    vertical filters and fc1."""
    width = nh * L * (L + 1) // 2
    E = torch.randn(BATCH, L * d, device=device)
    band, response = (
        torch.randn(width, L * d, device=device),
        torch.randn(BATCH, width, device=device),
    )
    vertical = torch.randn(BATCH, nv, L, device=device)
    mixed = torch.randn(BATCH, nv, d, device=device)
    features = torch.randn(BATCH, nv * d + nh * L, device=device)
    fc1, z = torch.randn(d, features.shape[1], device=device), torch.randn(BATCH, d, device=device)

    def run():
        E @ band.T, response @ band, response.T @ E
        window = E.view(BATCH, L, d)
        vertical @ window, vertical.mT @ mixed, mixed @ window.mT
        features @ fc1.T, z @ fc1, z.T @ features

    return run


def bare_adam(net, device):
    """One fused Adam step over tensors of the network's sizes, gradients ready."""
    tensors = [torch.nn.Parameter(torch.randn_like(value)) for value in net.parameters()]
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    return torch.optim.Adam(tensors, weight_decay=1e-6, fused=True).step


def bare_history(model):
    """The sums of a batch's histories as one would write them, and the gradient of these, as two
    functions."""
    rows = model.instances[torch.randperm(len(model.instances))[:BATCH]]
    history, table = model.history[rows], model.net.P.weight.detach()
    bounds = zip(history.starts.tolist(), history.ends.tolist(), strict=True)
    parts = [history.items[start:end] for start, end in bounds]
    items, lengths = torch.cat(parts), torch.tensor(list(map(len, parts)), device=table.device)
    bags = lengths.cumsum(0) - lengths
    bag = torch.arange(len(parts), device=table.device).repeat_interleave(lengths)
    gradient = torch.randn(len(parts), table.shape[1], device=table.device)
    pattern = torch.sparse_coo_tensor(
        torch.stack([items, bag]), torch.ones_like(items, dtype=torch.float32),
        (len(table), len(parts)), check_invariants=False,
    )  # fmt: skip
    return partial(F.embedding_bag, items, table, bags, mode="sum"), lambda: pattern @ gradient


def bare_scoring(n, net, device):
    """``n`` vectors times all items as one would write it: the size of an evaluation's product or
    of the teacher's lists'. (``Caser.score_all`` takes it the other way round.)"""
    W2 = net.W2.weight.detach()
    x = torch.randn(min(n, 2048), W2.shape[1], device=device)

    def run():
        for part in x.split(256):
            part @ W2.T

    return run, n / len(x)


def pupils_of(teacher, train, device):
    """A prepared student of each method, by its defaults, with lists at random."""
    pupils = {}
    for name, method in METHODS.items():
        width = METHOD_FLAGS["K"].get(name)
        shape = len(train.sequences.user_ids), width
        lists = width and np.random.default_rng(0).integers(1, train.num_items, shape, np.int32)
        options = {"dynamic_start_epoch": 0} if name == "rd" else {}
        pupils[name] = method(partial(Caser, d=50), teacher=teacher, teacher_topk=lists,
                              device=device, **options)  # fmt: skip
        pupils[name].prepare(train)
    return pupils


def measure(data, device, repeat):
    """The rows of the table: (phase, seconds, limit in seconds or None, what the limit is)."""
    steps = 20 * repeat
    timed = partial(median_seconds, device=device)
    train, test = data.train, data.test
    windows = len(train.sequences.user_ids)
    teacher = Recommender(partial(Caser, d=100), device=device)
    student = Recommender(partial(Caser, d=50), device=device)
    fossil = Recommender(partial(Fossil, d=50), device=device)
    for model in (teacher, student, fossil):
        model.prepare(train)
    pupils = pupils_of(teacher.net, train, device)
    distilled = pupils["rd"]
    users = teacher.users[teacher.instances[torch.randperm(len(teacher.instances))[:BATCH]]]

    plain = timed(step(teacher), steps)
    products = timed(bare_products(5, 100, 2, 16, device), steps)
    adam = timed(bare_adam(teacher.net, device), steps)
    negatives = timed(lambda: teacher.sampler.draw(users, NEGATIVES), steps)
    small = timed(step(student), steps)
    taught = medians_in_turns({name: step(model) for name, model in pupils.items()}, steps, device)
    draw = timed(lambda: distilled.sampler.draw(users, SAMPLES), steps)
    W2, x = student.net.W2.weight.detach(), torch.randn(BATCH, 1, 100, device=device)
    samples = distilled.sampler.draw(users, SAMPLES)
    gather = timed(lambda: (W2[samples] * x).sum(2), steps)

    long = timed(step(fossil), steps)
    sums, gradients = (timed(run, steps) for run in bare_history(fossil))
    fossil_adam = timed(bare_adam(fossil.net, device), steps)

    evaluation = timed(lambda: evaluate_ranking(teacher.net, train, test), repeat)
    product, factor = bare_scoring(data.counts["test_users"], teacher.net, device)
    evaluation_product = timed(product, repeat) * factor
    cache = timed(lambda: teacher_lists(teacher.net, train, K), 1)
    product, factor = bare_scoring(windows, teacher.net, device)
    cache_product = timed(product, repeat) * factor
    return [
        ("draw the 3 negatives of a step", negatives, 0.05 * plain, "5% of a step"),
        ("training step, d=100", plain, 2 * (products + adam), "2 x (products + Adam)"),
        ("  its bare matrix products", products, None, ""),
        ("  its bare fused Adam", adam, None, ""),
        ("training step, d=50", small, None, ""),
        ("distillation step, d=50", taught["rd"], small + 1.3 * (gather + draw),
         "step + 1.3 x (gather + draw)"),
        ("  its bare gather, multiply, sum", gather, None, ""),
        ("  its bare draw of 100 samples", draw, None, ""),
        *((f"  {name} step, d=50", taught[name], times * taught["rd"], f"{times} x rd's, in turns")
          for name, times in LATER.items()),
        ("training step of a Fossil, d=50", long, 0.5 * plain, "half of a Caser's, d=100"),
        ("  its bare sums of histories", sums, None, ""),
        ("  their bare gradient", gradients, None, ""),
        ("  its bare fused Adam", fossil_adam, None, ""),
        ("evaluation, d=100", evaluation, 3 * evaluation_product, "3 x product"),
        ("  its bare X @ W2.T", evaluation_product, None, ""),
        ("teacher's top-10 lists, d=100", cache, 3 * cache_product, "3 x product"),
        ("  their bare X @ W2.T", cache_product, None, ""),
    ]  # fmt: skip


def cost(data, device, repeat):
    """What training, an evaluation and the teacher's lists cost with a Caser of d=100: a dict of
    seconds."""
    model = Recommender(partial(Caser, d=100), device=device)
    model.prepare(data.train)
    of_step = median_seconds(step(model), 10 * repeat, device)
    started = time.perf_counter()
    evaluate_ranking(model.net, data.train, data.test)
    evaluation = time.perf_counter() - started
    windows, inputs = data.train.sequences, data.train.sequences.inputs(device)
    blocks = scoring_blocks(len(windows.user_ids), data.train.num_items)
    some = [part[blocks[0]] for part in inputs]
    out = np.arange(len(some[0])), windows.targets[blocks[0], 0]
    of_block = median_seconds(lambda: best_items(model.net, some, out, K), repeat, device)
    return {
        "a step": of_step,
        "an epoch": of_step * len(windows.user_ids) / BATCH,
        "an evaluation": evaluation,
        "all lists": of_block * len(blocks),
    }


def peak_mb():
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv=None):
    parser = Parser(description="Time every phase beside the bare kernels it can't do without.")
    parser.add_argument("--train_root", metavar="FILE", help="rows to learn from (else made up)")
    parser.add_argument("--test_root", metavar="FILE", help="rows to predict")
    parser.add_argument("--made_up", nargs=3, type=in_range(int, "[1, 1e9]"),
                        metavar=("USERS", "ITEMS", "ROWS"),
                        help="only what made-up data of this size costs")  # fmt: skip
    device_flag(parser)
    parser.add_argument(
        "--repeat", default=5, type=in_range(int, "[1, 100]"), help="runs of a phase"
    )
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    given = [args.train_root, args.test_root]
    users, items, rows = sizes = args.made_up or GOWALLA
    if rows < 12 * users or items < 16 * K or rows < 20 * BATCH:
        raise UserError(f"--made_up: takes 12 rows a user, {16 * K} items and {20 * BATCH} rows or"
                        " more")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if all(given):
            files = given
        else:
            with ProcessPoolExecutor(1) as elsewhere:  # not to count its memory
                files = elsewhere.submit(made_up, folder, *sizes).result()
        if args.made_up and not all(given):
            started = time.perf_counter()
            data = DataSet.load("made up", *files, 5, 1)
            seconds = {"reading": time.perf_counter() - started} | cost(data, device, args.repeat)
            told = ", ".join(f"{phase} {value:.3g} s" for phase, value in seconds.items())
            print(f"{data.headline()}: {told}, at most {peak_mb():.0f} MB")
            return 0
        seconds = median_seconds(lambda: DataSet.load("data", *files, 5, 1), args.repeat, device)
        data = DataSet.load("data", *files, 5, 1)
        print(f"{data.headline()}; {device}, {torch.get_num_threads()} threads, {versions()}")
        rows = [("read the files, make the windows", seconds, None, "")]
        million = million_rows(folder)
        seconds = median_seconds(lambda: read_interactions(million), 3, device)
        rows += [("read a million rows", seconds, 2.0, "2 s")]
        rows += measure(data, device, args.repeat)
        peak = peak_mb()
        run = step(layer_by_layer(data.train, device))
        rows += [("training step by torch's layers", median_seconds(run, 20 * args.repeat, device),
                  None, "")]  # fmt: skip
        print(f"{'phase':34}{'seconds':>10}{'limit':>10}{'of it':>7}")
        for phase, seconds, limit, why in rows:
            end = f"{limit:10.4f}{seconds / limit:7.0%}  {why}" if limit else ""
            print(f"{phase:34}{seconds:10.4f}{end}")
        print(f"{'peak memory of this process':34}{peak:7.0f} MB")
    keys = ("phase", "seconds", "limit", "limit_is")
    record = {
        "data": data.counts,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "phases": [dict(zip(keys, row, strict=True)) for row in rows],
        "peak_mb": round(peak),
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    run_command(main)

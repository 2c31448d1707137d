"""Everything a command refuses: one line on standard error that names what is wrong, exit status
2, nothing trained, and no file or folder changed."""

import contextlib
import gzip
import io
import os
import pickle
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, STUDENT, tree, write_rows

import distill_caser
import distillation
import recommend
import train_caser
from recommender import Recommender

sys.path.insert(0, str(ROOT / "datasets"))
import prepare

COMMANDS = {m.__name__: m.main for m in (train_caser, distill_caser, recommend, prepare)}
TOY, TOY_TEST = "toy/test/train.tsv", "toy/test/test.txt"
TEACHER, PUPIL = "out/toy-caser-dim=6.pth.tar", "out/toy-caser-dim=4-rd.pth.tar"
LISTS = "out/toy-teacher-dim=6-top=5.npy"
ROWS = "u,i,t\n" + "".join(f"a{n % 7},b{n % 11},{n}\n" for n in range(600))

ROOTS = f"--train_root {TOY} --test_root {TOY_TEST}"
SHORT = " ".join(map(str, STUDENT))
TRAIN = f"train_caser {ROOTS}"
DISTILL = f"distill_caser {ROOTS} {SHORT} --output_dir out"
PLAIN = DISTILL.replace(" --K 5 --dynamic_start_epoch 1", "") + " --distillation"
RESUME = f"train_caser --checkpoint {TEACHER} --n_iter 4"
EVALUATE = f"train_caser --checkpoint {TEACHER} --evaluate"
RESUME_PUPIL = f"distill_caser --checkpoint {PUPIL} --n_iter 4"
TOPK = f"{DISTILL} --teacher_topk_path"
RECOMMEND = f"recommend --checkpoint {TEACHER}"
PREPARE = "prepare csv --source mine.csv --output_dir new"
CSV = f"{PREPARE} --user u --item i --time t"
ML_100K = "prepare ml-100k --source mine.csv --output_dir new"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with all that commands need: rows of 12 users and 40 items, a teacher and its
    student, bare lists as the authors' code leaves them, and a csv."""
    folder = tmp_path_factory.mktemp("world")
    rows = {f"u{u}": [f"i{(7 * u + 3 * n) % 40}" for n in range(4 + 3 * u)] for u in range(12)}
    for name, part in ((TOY, slice(0, -2)), (TOY_TEST, slice(-2, None))):
        write_rows(folder / name, [(u, item) for u, items in rows.items() for item in items[part]])
    (folder / "mine.csv").write_text(ROWS)
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        flags = [*ROOTS.split(), "--output_dir", "out", "--n_iter", "2"]
        train_caser.main([*map(str, SMALL), *flags])
        distill_caser.main([*SHORT.split(), *flags])
        np.save("bare.npy", np.load(LISTS).astype(np.int64))
    return folder


# What is broken there before a command: {path: its bytes or text, or a function of its old bytes}.


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def checkpoint(change):
    """The teacher after ``change`` of its dict."""

    def broken(data):
        whole = torch.load(io.BytesIO(data), weights_only=True)
        change(whole)
        return saved(whole)

    return {TEACHER: broken}


def weight(name, change):
    def broken(whole):
        whole["state_dict"][name] = change(whole["state_dict"][name])

    return checkpoint(broken)


def lists(change):
    """The bare lists after ``change`` of their array."""

    def broken(data):
        buffer = io.BytesIO()
        np.save(buffer, change(np.load(io.BytesIO(data))), allow_pickle=True)
        return buffer.getvalue()

    return {"bare.npy": broken}


def more_rows(text):
    return {TOY: lambda data: data + text}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made-by-attack",)


def zipped(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def claiming(size, legacy):
    """A checkpoint whose pickle says ``size`` floats and whose record holds 10."""
    data = saved(torch.zeros(10), _use_new_zipfile_serialization=not legacy)
    number = b"\x8a\x07" + size.to_bytes(7, "little")
    if legacy:
        return data.replace(b"K\n", number)  # BININT1 10
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return zipped({name: part.replace(b"K\n", number) for name, part in entries.items()})


HUGE = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000, 5), }"
NESTED = [1]  # a few kilobytes here and 2^60 numbers as JSON
for _ in range(60):
    NESTED = [NESTED, NESTED]

# ------------------------------------------------------------------------------------ the table
# What a line must say, in order, is divided by " ... ".

# fmt: off
FLAGS = """--d 0|--d -5|--d 1.5|--d nan|--d ''|--L 0|--L x|--T 0|--nv -1|--nh -1|--nv 0 --nh 0|
--drop 1|--drop -0.1|--drop nan|--ac_conv sigmoid|--ac_fc softplus|--n_iter 0|--batch_size 0|
--neg_samples 0|--learning_rate 0|--learning_rate inf|--learning_rate nan|--learning_rate 1e39|
--l2 -1|--l2 1e39|--train_fraction 0|--train_fraction 1.1|--seed -1|--seed 4294967296|
--eval_every 0|--save_every 0|--device tpu|--device cuda|--use_cuda maybe|--use_cuda ''|
--use_cuda 2|--bogus 1|--learning 1|--split dev|--split validation|--dataset x|--dataset ''|
--checkpoint ''|--output_dir ''|--evaluate"""
DISTILL_FLAGS = """--K 0|--K x|--K 100000|--lamda 0|--lamda nan|--lamda 1e39|--mu 0|--mu -1|
--mu inf|--mu 1e39|--teach_alpha -1|--teach_alpha 1e39|--dynamic_samples 0|
--num_dynamic_samples -1|--dynamic_start_epoch -1|--hybrid_weight sum|--teacher_exclude all|
--weights both|--teacher_model_dim 0|--teacher_model_path ''|--teacher_topk_path ''|
--temperature 0|--cd_scale 0|--cd_shift nan"""
OTHER_FLAGS = """--d 7|--L 2|--T 2|--nv 3|--nh 5|--drop 0.1|--seed 4|--batch_size 9|--ac_fc tanh|
--l2 0.1|--learning_rate 0.01|--neg_samples 5|--train_fraction 0.5"""
RECOMMEND_FLAGS = {
    "--checkpoint nowhere": "nowhere: no such file", "--top 0": "--top",
    "--checkpoint nowhere --output new/recs.tsv": "nowhere", "--top 100000": "--top ... 40 items",
    "--output recs.xls": "--output ... .parquet", "--output new.d/": "--output",
    "--users nobody": "nobody", "--users ,": "--users", "--sequence strange": "--sequence: no item",
    "--sequence ,": "names no item", "--sequence i1 --users u1,u2": "--users",
    "--sequence i1 --dataset toy": "--dataset", "--train_root x --dataset toy": "--dataset",
    "--dataset nowhere": "nowhere", "--history nowhere": "nowhere", "--device cuda": "--device",
    "--history x --sequence i1": "--history", "--history x --users u1": "--history",
}
CSV_FLAGS = {
    "--core 500": "use a lower --core", "--train 0.98 --validation 0.999": "rows enough",
    "--train 0.9": "--validation 0.8", "--core 0": "--core", "--train 1": "--train",
    "--as_name=-x": "--as_name", "--as_name a/b": "--as_name", "--as_name ..": "--as_name",
    "--keep none": "--keep", "--dates ymd": "--dates",
    "--delimiter '\"'": "--delimiter", "--delimiter ''": "--delimiter",
    "--source nowhere.csv": "nowhere.csv", "--source . --as_name x": "Is a directory",
    "--output_dir mine.csv": "mine.csv", "--user uid": "mine.csv, line 1: no columns 'uid'",
    "--user i": "same column", "--item 1": "same column", "--time u": "same column",
    "--rating ''": "--rating", "--dates dmy": "line 2: ... '0' is a number, and --dates",
}
BAD_ROWS = [  # training files
    ("", "no rows"), ("\n\n \n", "no rows"), ("\ufeff", "no rows"),
    ("user item rating\n", "line 1: ... not a number"), ("user item\n", "line 1: ... header"),
    ("user item\na x\n", "line 1: ... header"), ("UID Item\na x\n", "line 1: ... header"),
    ("uid mid\na x\na y\n", "line 1: ... header"), ("kundin iid\na x\n", "line 1: ... header"),
    ("user_id content_id\na x\na y\n", "line 1: ... header"),
    ("a x\na y\nuser_id item_id\nb x\n", "line 3: ... header"),
    ("a x one\na y 1\n", "line 1: ... 'one' is not a number"),
    ("u1 i1 nan\nu2 i2 5\n", "line 1: ... 'nan' is not a number"),
    ("ann heat NA\nbob up 5\n", "line 1: ... 'NA' is not a number"),
    ("ann heat -\nbob up 5\n", "line 1: ... '-' is not a number"),
    ("a x NA\na y 1\n", "line 1: ... 'NA' is not a number"),
    ("a x 1\na y one\n", "line 2: ... 'one' is not a number"),
    ("a x 1\na y nan\n", "line 2: ... 'nan' is not a number"),
    ("a x 1\na y inf\n", "line 2: ... 'inf' is not a number"),
    ("a x 1\na y \u0665\n", "line 2: ... '\u0665' is not a number"),
    ("a x 4,5\na y 3,5\n", "line 1: ... '4,5' is not a number"),
    ("a x 2010-10-19T23:55:27Z\na y 2010-10-19T23:55:28Z\n", "line 1: ... not a number"),
    ("1,2,3\n1,3,4\n", "line 1: ... '1,2,3'"), ("1, 2, 3\n1, 3, 4\n", "line 1: ... csv"),
    ("1,Toy Story,3\n1,Heat,4\n", "line 1: ... csv"), ("1;2;3\n", "line 1:"),
    ("1::2::3::4\n", "line 1:"), ("u0,Band i4\nu0,Band i5\n", "line 1: ... csv"),
    ("u0 ,i4 ,1\nu0 ,i5 ,1\n", "line 1: ... csv"),
    ("u0,i4,3,2001-01-01 10:00:00\nu0,i5,3,2001-01-01 10:00:01\n", "line 1: ... csv"),
    ("u0|i4|3|2001-01-01 10:00:00\n", "line 1: ... csv"),
    ("a x 1\na\n", "line 2: ... 1 field"), ("a x 1\nb y\n", "line 2: ... 2 fields"),
    ("a x\nb y 1\n", "line 2: ... 3 fields"), ("a x 1 2 3\n", "line 1: ... 5 field"),
    ("a x 1 5\nb y 1\n", "line 2: ... 3 fields"), ("a x 1\nb y 1 5\n", "line 2: ... 4 fields"),
    ("\n\n\na x 1\n\nb\n", "line 6: ... 1 field"), ("a x 1\r\rb y\r", "line 3: ... 2 fields"),
    ("a x 1\n" * 1800 + "a\n" + "b y 1\n" * 500, "line 1801: ... 1 field"),
    ("a\tx\t1\nb\tToy Story\t1\n", "line 2: ... space"), ("a x\ty\n", "line 1: ... space"),
    (b"a x 1\n\xff\xfe y 1\n", "line 2: ... UTF-8"), (b"\x1f\x8b\x08\0", "line 1: ... UTF-8"),
    (b"a x 1\rb y 1\r\xff z 1\r", "line 3: ... UTF-8"),
    ("a x 1\nb y 1\n".encode("utf-16"), "line 1: ... UTF-8"),
    ("a x 1\nb y 1\n".encode("utf-16-le"), "line 1: ... NUL"),
    ("a x 1\nb\0 y 1\n", "line 2: ... NUL"), ("a x 1\nb y 1\n", "no training windows"),
    ("a x 1\nb x 1\nb y 1\n", "no user has more than T rows ... 'b' ... every item"),
]
BAD_CSV = [  # files with columns u, i and t
    ("", "no rows"), ("u,i,t\n\n", "no rows"),
    (ROWS + "a,b,2020-01-01\n", "line 602: 'a,b,2020-01-01': '2020-01-01' is another kind"),
    (ROWS + 'a,b,"1\n"\na,b,x\n', "line 604: 'a,b,x': 'x' is no time"),
    (ROWS + "a,b,now\n", "line 602: ... 'now' is no time"),
    (ROWS + "a,b,NaT\n", "line 602: ... 'NaT' is no time"),
    *((f"u,i,t\na,b,{time}\n", f"line 2: ... '{time}' is no time") for time in
      ("now", "NaT", "today", "nan", "NA", "inf", "", "0x1", "2020-02-30", "1e999")),
    ("u,i,t\na,b,9999-01-01\na,b,2020-01-01T00:00:00.123456789\n", "nine decimals"),
    ("u,i,t\na,b,1\na,,2\n", "line 3: ... is empty"), ("u,i,t\na, ,2\n", "line 2: ... is empty"),
    ("u,i,t\nToy Story,b,2\n", "white space"), ('u,i,t\na,"b\nc",2\n', "line 2: ... white space"),
    ('u,i,t\na,"b\n",x\n', "line 2: ... 'x' is no time"),
    (ROWS + "a,b\ufeff,3\n", "line 602: ... BOM"), (ROWS + "a,c\0,3\n", "line 602: ... NUL"),
    (ROWS.encode() + b"a,\xe9,3\n", "line 602: not UTF-8"),
    # What pandas would mend: it fills short rows, and takes columns off long ones as row names.
    ("u,i,t\na,b,1\na,b,2,x\n", "line 3: 'a,b,2,x' has 4 fields, the header 3"),
    ("u,i,t\na,b,1,\n", "line 2: ... 4 fields"), ("u,i,t,r\na,b,1\n", "line 2: ... 3 fields"),
    ("u,i,t\na,b,1\na,b\n", "line 3: ... 2 fields"), ("i,t\nu,a,1\nv,a,2\n", "line 1: ... 'u'"),
    ("u,i,t\n1,a,b,1\n2,a,c,2\n", "line 2: ... 4 fields"), ("u,i\na,b,1\n", "line 1: ... 't'"),
    ("u|i|t\na|b|1\n", "line 1: ... --delimiter"), ("u, i,u,t\n" + ROWS, "line 1: 2 columns 'u'"),
    ("u,i,t\na,b,1\n7\nc,d,2\n", "line 3: ... 1 fields"),
    *(("u,i,t\n" + "".join(f"a,b,{time}\n" for time in times), said) for times, said in (
        (("1300000000", "1300000001", "1300000002000"), "line 4: ... 1300000002000 (milliseconds"),
        (("20110313", "1300000001"), "line 3: ... 20110313 (days"),
        (("05012011", "13052011"), "line 2: ... '05012011' is no time"),
        (("1", "1_000"), "line 3: ... '1_000' is no time"),
        (("2011.9", "2011.10"), "line 3: ... write 2011-09"),
        (("2011-03-13T07:06:40.1234567899Z",), "line 2: ... more than nine decimals"))),
    ('u,i,t\na,b,1\na,"c,2\nd,e,3\n', "line 3: a quote opens here"),
    ('u,i,"t\na,b,1\n', "line 1: a quote opens here"),
    ('u,i,t\na,b,1\n"', "line 3: a quote opens here"),
    ('u,i,t\na,"b"c,1\n', "line 2: ',' expected"),
]
BAD_ML_100K = [
    (b"", "no rows"), (b"1\t2\t3\n", "line 1"), (b"1\t2\t3\t4\n1\t2\t3\tx\n", "line 2"),
    (b"1\t2\t3\t4\n\xff\t2\t3\t4\n", "line 2: not UTF-8"), (b"1\t2\t3\t4\n", "rows enough"),
    (b"1\t2\tgood\t4\n", "rating ... not a number"), (b"1\t2\t3\t12.5.3\n", "no time"),
    (b"1\t2\t3\tnan\n", "no time"), (b"1\t\t3\t4\n", "empty"),
    (b"1\tToy Story\t3\t4\n", "white space"),
]


def each(flags):
    return flags.replace("\n", "").split("|")


TABLE = [
    *((f"{script} {flags}", flags.split()[0]) for script in (TRAIN, DISTILL)
      for flags in each(FLAGS)),
    *((f"{DISTILL} {flags}", flags.split()[0]) for flags in each(DISTILL_FLAGS)),
    (f"{TRAIN} --drop 1.5", "--drop ... [0, 1)"), (f"{TRAIN} --ac_fc sigmoid", "'sigm'"),
    (f"{TRAIN} stray", "stray"), (f"{TRAIN} --use_cuda yes", "--device cuda"),
    (f"{TRAIN} --device cuda --use_cuda no", "contradict"),
    (f"{TRAIN} --checkpoint no.pth.tar", "no.pth.tar: no such file"),
    (f"{TRAIN} --tensorboard tb", "pip install tensorboard"),
    ("train_caser --train_root x", "give both"), ("train_caser --test_root x", "give both"),
    *((f"train_caser --dataset {name}", "data set") for name in ("nowhere", "..")),
    *((f"train_caser --dataset {name}", "--dataset") for name in (".", "a/b", "../a")),
    *((f"train_caser --train_root {name} --test_root {TOY}", said) for name, said in (
        ("nowhere", "nowhere: No such file"), (".", "Is a directory"),
        ("/dev/null", "/dev/null: is no regular file"))),
    (f"{TRAIN} --output_dir file", "file: cannot write", {"file": ""}),
    (f"{TRAIN} --output_dir file/below", "below: cannot write", {"file": ""}),
    (f"{TRAIN} --output_dir taken", "a folder", {"taken/toy-caser-dim=100.pth.tar/x": ""}),

    *((TRAIN, f"train.tsv ... {said}", {TOY: data}) for data, said in BAD_ROWS),
    (TRAIN, "test.txt, line 2: ... 2 fields", {TOY_TEST: "u1 x 1\nu1 y\n"}),
    (TRAIN, "test.txt: none of its users", {TOY_TEST: "nobody x 1\n"}),

    # A checkpoint, and flags or rows that are not its own
    *((f"{RESUME} {flag}", flag) for flag in each(OTHER_FLAGS)),
    (f"{EVALUATE} --train_root {TOY}", "give both"),
    (f"{EVALUATE} --split validation", f"--split validation: ... {TOY}"),
    (RESUME, "other ones or another order", more_rows(b"u1 i1 1\n")),
    *((EVALUATE, said, files) for said, files in (
        ("12 users ... 13", more_rows(b"u99 i1 1\n")),
        ("does not know 1 user(s), e.g. 'u77'", {TOY: lambda data: data.replace(b"u5 ", b"u77 ")}),
        ("does not know 1 item(s), e.g. 'i77'", {TOY: lambda data: data.replace(b"i5 ", b"i77 ")}),
        ("rows ... --allow_other_data", more_rows(b"u1 i1 1\n")))),
    (f"train_caser --checkpoint {PUPIL} --n_iter 4", "distill_caser.py"),
    (f"distill_caser --checkpoint {TEACHER} --n_iter 4", "train_caser.py"),
    *((RESUME, said, checkpoint(change)) for said, change in (
        ("moment ... fit", lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.ones(3))),
        ("moment ... damaged", lambda c: c["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan)),
        ("resumed", lambda c: c["optimizer"].update(param_groups=[])),
        ("inside an epoch", lambda c: c.update(step=99)),
        ("plain values", lambda c: c.update(records=[{"epoch": 1, "x": NESTED}])))),

    # What is no checkpoint, or can't be meant
    *((EVALUATE, "not a checkpoint", {TEACHER: data}) for data in (
        b"", b"x", b"hello\n" * 50, pickle.dumps(Hostile()), saved({"state_dict": Hostile()}),
        saved({"state_dict": Hostile()}, _use_new_zipfile_serialization=False),
        zipped({"a/data.pkl": b"x"}), claiming(10**12, legacy=False),
        *(claiming(size, legacy=True) for size in (10**10, 10**12, 10**15)))),
    *((EVALUATE, "not a checkpoint", {TEACHER: cut}) for cut in (
        lambda data: data[: len(data) // 2], lambda data: data[:-30], lambda data: data[100:])),
    (EVALUATE, "compressed", {TEACHER: zipped({"a/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)}),
    ("train_caser --evaluate --checkpoint toy", "toy: is a folder"),
    (EVALUATE, "no state_dict", {TEACHER: saved({"weights": 1})}),
    (EVALUATE, "no checkpoint", {TEACHER: saved([1])}),
    *((EVALUATE, said, weight("fc1.weight", change)) for said, change in (
        ("float32", lambda w: w.bfloat16()), ("float32", lambda w: w.mT),
        ("float32", lambda w: torch.empty(w.shape, device="meta")),
        ("float32", lambda w: torch.zeros(1).expand(w.shape)),
        ("not finite", lambda w: torch.full_like(w, torch.nan)))),
    *((EVALUATE, "no checkpoint", weight(name, change)) for name, change in (
        ("conv_v.weight", lambda w: torch.empty(10**9, 1, 3, 0)),
        ("user_embeddings.weight", lambda w: torch.empty(12, 0)),
        ("user_embeddings.weight", lambda w: torch.empty(0, 6)),
        ("W2.weight", lambda w: w[:, :5].contiguous()))),
    (EVALUATE, "do not fit", checkpoint(lambda c: c["state_dict"].pop("fc1.bias"))),
    (EVALUATE, "network 'GRU'", checkpoint(lambda c: c.update(network="GRU"))),
    *((RECOMMEND, said, checkpoint(change)) for said, change in (
        ("its dataset is no text", lambda c: c["config"].update(dataset=5)),
        ("its split is no text", lambda c: c["config"].update(split=5)),
        ("its train_root is no text", lambda c: c["config"].update(train_root=5)),
        ("not tell the ids", lambda c: c["data"].update(user_ids="\n".join(["u1"] * 12))),
        ("not tell the ids", lambda c: c["data"].update(user_ids=None)))),

    # Methods that know nothing of a flag, or have too little
    *((words, f"{words.split()[-2]}: is of --distillation {of}, and this run's is {method}")
      for words, of, method in (
        (f"{PLAIN} rrd --lamda 1", "rd", "rrd"), (f"{PLAIN} rd --rrd_negatives 9", "rrd", "rd"),
        (f"{PLAIN} listwise --cd_guide student", "cd", "listwise"),
        (f"{PLAIN} cd --K 5", "rd, rrd, listwise", "cd"),
        (f"{RESUME_PUPIL} --temperature 1", "listwise", "rd"))),
    (f"{RESUME_PUPIL} --distillation rrd", f"--distillation rrd: {PUPIL} has rd"),
    (f"{PLAIN} de", "--distillation ... 'rd', 'rrd', 'listwise', 'cd'"),
    (f"{PLAIN} listwise --K 5 --teacher_topk_path bare.npy",
     "bare.npy: --distillation listwise needs ... --teacher_model_path"),
    (f"{PLAIN} cd --teacher_topk_path bare.npy",
     "--teacher_topk_path: --distillation cd uses ... --teacher_model_path"),
    (f"{PLAIN} rrd --K 40", "[1, 39]"),

    # Teachers and lists
    (f"{DISTILL} --K 40", "[1, 39]"), (f"{DISTILL} --L 4", "use --L 3"),
    (f"{DISTILL} --K 6 --teacher_exclude observed", "longest history"),
    (f"{DISTILL} --teacher_model_path {PUPIL}", "--output_dir"),
    (f"{DISTILL} --teacher_model_path no.pth.tar", "no.pth.tar: no such teacher"),
    (f"{DISTILL} --output_dir new", "no such teacher"), (DISTILL, "rows", more_rows(b"u1 i1 1\n")),
    (DISTILL, "not a checkpoint", {TEACHER: b"x"}),
    (RESUME_PUPIL, "another teacher ... --teacher_model_path", weight("b2.weight", torch.sign)),
    (f"{RESUME_PUPIL} --teacher_topk_path bare.npy", "another origin"),
    (f"{TOPK} {LISTS} --teacher_exclude observed", "exclude target, this run has observed"),
    (f"{TOPK} {LISTS} --K 4", "its shape"),
    *((f"{TOPK} {LISTS}", LISTS, {LISTS: cut}) for cut in (
        lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK\3\4 a zip",
        lambda data: data[:-4] + b"\1\0\0\0")),  # other lists, of the same shape and range
    (f"{TOPK} {LISTS}", "tells of no top-K lists", {f"{LISTS}.json": "[]"}),
    (f"{TOPK} mine.npy", "mine.npy.json", {"mine.npy.json": '{"precious": 1}'}),
    *((f"{TOPK} bare.npy", f"bare.npy: {said}", lists(change)) for said, change in (
        ("its shape", lambda array: array[:-1]), ("its shape", lambda array: array[:, :4]),
        ("holds items", lambda array: array + 1000), ("holds items", np.negative),
        ("holds float64", lambda array: array * 1.0),
        ("not a top-K cache", lambda array: np.array([Hostile()], dtype=object)))),
    (f"{TOPK} bare.npy", "bare.npy: not a top-K cache",
     {"bare.npy": b"\x93NUMPY\x01\x00" + len(HUGE).to_bytes(2, "little") + HUGE}),

    # Recommending
    ("recommend", "--checkpoint"), (RECOMMEND, "not the rows", more_rows(b"u1 i1 1\n")),
    *((f"{RECOMMEND} {flags}", said) for flags, said in RECOMMEND_FLAGS.items()),
    (f"{RECOMMEND} --users ids", "ids, line 2: ... 'x'", {"ids": "u1\nx\n"}),
    (f"{RECOMMEND} --users ids", "ids: not UTF-8", {"ids": b"\xff\n"}),
    (f"{RECOMMEND} --history h", "h, line 2: ... 1 field", {"h": "u1 i1\nu1\n"}),
    (f"{RECOMMEND} --history h", "h: no item", {"h": "u1 other\nu2 strange\n"}),
    *((f"{RECOMMEND} {flag} x.tsv --output x.tsv", "--output x.tsv", {"x.tsv": data})
      for flag, data in (("--history", "u1 i1\n"), ("--users", "u1\n"))),
    *((f"{RECOMMEND} --output {name}", f"--output {name}") for name in
      (TOY, f"{TEACHER[:-8]}.jsonl", TEACHER)),
    (f"{RECOMMEND} --output r.parquet", "pip install pyarrow"),

    # Preparing
    *((CSV, said, {"mine.csv": data}) for data, said in BAD_CSV),
    *((f"{CSV} {flags}", said) for flags, said in CSV_FLAGS.items()),
    *((f"{CSV} --rating r", f"line 3: ... '{rating}' is not a number",
       {"mine.csv": f"u,i,t,r\na,b,1,5\na,b,1,{rating}\n"}) for rating in ("\u0665", "nan", "")),
    (PREPARE, "--user, --item and --time"), (f"{PREPARE} --user u --item i", "--time"),
    (f"{PREPARE} --user 0 --item 2 --time 3", "numbered from 1"),
    (f"{PREPARE} --user 1 --item 2 --time 9 --header", "more are needed"),
    (f"{PREPARE} --user 1 --item 2 --time 3", "line 1: ... 't' is no time ... --header"),
    (f"{PREPARE} --user 1 --item 2 --time 3", "line 2: 'a,b' has 2 fields, the lines above 3",
     {"mine.csv": "a,b,1\na,b\n"}),
    *((CSV.replace(".csv", ".zip"), f"mine.zip: {said}", {"mine.zip": data}) for said, data in (
        ("holds r.csv, s.csv", zipped({"r.csv": ROWS, "s.csv": ROWS})),
        ("damaged (File is not", zipped({"r.csv": ROWS})[:90]), ("holds no file", zipped({})),
        ("holds a file that is packed again; unpack",
         zipped({"r.csv": gzip.compress(ROWS.encode())})),
        ("damaged", zipped({"r.csv": ROWS}, zipfile.ZIP_LZMA).replace(b"]\0", b"\0\0", 1)))),
    *((ML_100K, f"mine.csv ... {said}", {"mine.csv": data}) for data, said in BAD_ML_100K),
    (f"{CSV.replace('mine.csv', 'mine.2020.csv')} --output_dir .", "--as_name",
     {"mine.2020.csv": ROWS, "mine/test/train.txt": "a x\n"}),
    (CSV, "line 81: ... 'x' is no time; what can be read: numbers, ISO 8601",
     {"mine.csv": "u,i,t\n" + "a,b,1\n" * 79 + "a,b,x\n"}),
    ("prepare nowhere", "nowhere"), (f"{ML_100K} --source nowhere", "nowhere: No such file"),
    (f"{ML_100K} --user u", "--user"), ("prepare ml-1m --output_dir new", "needs --source"),
    ("prepare csv --user 1 --item 2 --time 3 --output_dir new", "needs --source"),
    ("prepare gowalla-tail --output_dir new", "needs --source"),
    ("prepare gowalla-tail --source toy --output_dir new", "validation/test.txt"),
    *(("prepare ml-1m --source no.zip --output_dir new", f"no.zip: {said}", {"no.zip": data})
      for said, data in (("damaged (File is not", zipped({"x": "1"})[:30]),
                         ("holds x, y", zipped({"x": "1", "y": "1"})))),
    ("prepare ml-100k --source x --output_dir .", "exists already", {"ml-100k/mine": "precious"}),
    ("prepare gowalla --output_dir .", "exists already", {"gowalla/test/train.txt": "a x\n"}),
]
# fmt: on


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case[0].split()[0]}: {case[1][:50]}")
def test_what_cannot_be_is_one_line_and_leaves_everything_as_it_was(
    command, world, tmp_path, monkeypatch, case
):
    words, said, *files = case
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, data in (files[0] if files else {}).items():
        data = data(Path(name).read_bytes()) if callable(data) else data
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no TensorBoard
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for owner, name in ((Recommender, "fit"), (distillation, "teacher_lists")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("something was trained"))
    before = tree(tmp_path), sorted(tmp_path.rglob("*"))

    script, *argv = shlex.split(words)
    status, _, err = command(COMMANDS[script], *argv)

    assert (status, len(err)) == (2, 1)
    assert err[0].startswith("script.py: error: ")
    parts = (rf"(?<![\w-]){re.escape(part)}(?![\w-])" for part in said.split(" ... "))
    assert re.search(".*".join(parts), err[0])
    assert (tree(tmp_path), sorted(tmp_path.rglob("*"))) == before

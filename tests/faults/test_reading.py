"""What is read, and how: ids as they are written, rows as the file has them."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from conftest import write_rows

import support.rows
from support.data_set import DataSet, find_files
from support.rows import TRAINING, Layout, read_rows
from utils import UserError


def read(data, layout=TRAINING):
    return read_rows(io.BytesIO(data if isinstance(data, bytes) else data.encode()), "f", layout)


def pairs(rows):
    return list(zip(rows["user"], rows["item"], strict=True))


PLAIN = [("a", "x"), ("a", "y"), ("b", "x")]
RELATIVES = [
    "a x 1\na y 2\nb x 3\n", "a x 1\na y 2\nb x 3", "a x\na y\nb x\n",
    "a x 1 978300760\na y 2 978300761\nb x 3 978300762\n", "a x 1 now\na y 1 now\nb x 1 -\n",
    "a\tx\t1\na\ty\t2.5\nb\tx\t-3e1\n", "a x 1\r\na y 2\r\nb x 3\r\n", "a x 1\ra y 2\rb x 3\r",
    "\n  a   x 1\n\n\na y 2  \nb x 3\n\n", "a\x0bx\x0c1\na y 2\nb x 3\n",
    "\ufeffa x 1\na y 2\nb x 3\n", "\ufeff\ufeffa x 1\na y 2\nb x 3\n",
    "a x 1\n\ufeffa y 2\nb x 3\n",  # two files, one behind the other
]  # fmt: skip


@pytest.mark.parametrize("data", RELATIVES)
def test_the_authors_format_and_its_relatives_are_read(data):
    rows, notes = read(data)
    assert (pairs(rows), notes) == (PLAIN, [])


@pytest.mark.parametrize(
    "header",
    ["user item rating\n", "user_id:token\titem_id:token\trating:float\n", "kundin ware note\n",
     "\n# user item\n"],
)  # fmt: skip
def test_a_header_over_ratings_is_skipped_and_said(header):
    rows, notes = read(f"{header}a\tx\t1\na\ty\t2\nb\tx\t3\n")
    assert pairs(rows) == PLAIN
    assert len(notes) == 1
    assert f"line {header.count(chr(10))}: {' '.join(header.split())!r} is a header" in notes[0]


def test_a_header_of_two_words_is_one_over_numbers_alone():
    rows, notes = read("kundin ware\n1 2\n1 3\n")
    assert (pairs(rows), len(notes)) == ([("1", "2"), ("1", "3")], 1)
    for data in ("kundin ware\na 2\nb 3x\n", "u1 i1\n", "USER ITEM 5\nb x 3\n", "u i 5\n"):
        rows, notes = read(data)
        assert pairs(rows)[0] == tuple(data.split()[:2])
        assert notes == []
    # One column of words over numbers, or names of ids, may be a header: never a phantom user.
    for data in ("kundin ware\n1 2\na 3\n", "u1 i1\n1 2\n", "customer_id movie_id\n116 t3\n",
                 "movieId userId\n5 117a\n"):  # fmt: skip
        with pytest.raises(UserError, match=r"line 1: .*looks like a header"):
            read(data)


ODD_IDS = [
    "NA", "null", "nan", "None", "NULL", "N/A", "<NA>", "#N/A", "-", "True", "007", "7", "7.0",
    "1e3", "1000", "-1", "0x7", "é", "日本", "u;", "a|1", "'q'", "user", "item", "1_000",
    "\u0665", "99999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("delimiter", [None, "\t", ",", "::", "ab"])
def test_ids_are_text_and_stay_as_they_are(delimiter):
    """pandas takes some for missing, and would make numbers of others."""
    ids = list(zip(ODD_IDS, ODD_IDS[::-1], strict=True))
    if delimiter in (None, "\t"):
        ids += [("a,b", '"'), ('"q"', 'q"r'), ('"open', "a::b")]  # no quotes here, only ids
    if delimiter is None:
        ids += [("a\u00a0b", "a\x85b"), ("a\u2028b", "a\x1cb")]  # which divide no columns
    data = "".join((delimiter or " ").join([*pair, "1"]) + "\n" for pair in ids)
    rows, _ = read(data, Layout((0, 1, None, 2), delimiter) if delimiter else TRAINING)
    assert pairs(rows) == ids
    assert list(rows["item"].cat.categories) == [item for _, item in ids]


def test_a_csv_may_quote_what_divides_columns_and_rows():
    data = 't,"u",title,i\r\n1," a, b""c ","line 1\r\nline 2, ""so""",x\r\n2,d,,"y"\r\n'
    rows, _ = read(data.replace(" b", "b"), Layout(("u", "i", None, "t"), ",", header=True))
    assert pairs(rows) == [('a,b"c', "x"), ("d", "y")]
    assert rows["time"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("start", "delimiter"),
    [("", ","), ("\n", ","), (" \n\r\n", ","), ("sep=;\r\n", ";"), ("\ufeffsep=,\n", ","),
     ("\ufeff\ufeff", ","), ('"', "\t")],
)  # fmt: skip
def test_what_exports_have_around_their_header_and_rows(start, delimiter):
    """Excel's first line, lines of blanks, marks; R's quotes between tabs."""
    quote = '"' if start == '"' else ""
    rows = ["u", "i", "t"], ["a", "x", "1"], ["b", "y", "2"]
    lines = [delimiter.join(f"{quote}{field}{quote}" for field in row) for row in rows]
    data = start.strip('"') + "\n".join(lines) + "\n  \n"
    rows, _ = read(data, Layout(("u", "i", None, "t"), delimiter, header=True))
    assert pairs(rows) == [("a", "x"), ("b", "y")]
    assert rows["time"].tolist() == [1, 2]


CRLF = "u,i,t,r\r\n" + "".join(f'u{n % 3},"i,{n}",{n},{n}\r\n' for n in range(20))


@pytest.mark.parametrize("size", [1, 16, 33])
@pytest.mark.parametrize(
    ("data", "layout"),
    [("".join(f"u{n % 3} i{n} {n}\n\n" for n in range(20)), TRAINING),
     ("a  é 1\r\n \r\nb 日本 2\r\nc x 3", TRAINING), ("a x 1\rb y 2\rc z 3", TRAINING),
     (CRLF, Layout(("u", "i", "r", "t"), ",", header=True)),
     ('a,1,"x\n\n,y",b\nc,2,"",d\n' * 9, Layout((0, 3, None, 1), ",")),
     ('12"LP,1,"x\n\n,y",b\nc,2,"",d\n' * 9, Layout((0, 3, None, 1), ",")),  # a lone quote
     ("a::x::1.5\nb::y::2\n" * 9, Layout((0, 1, None, 2), "::")),
     ("a,x,2020-01-01\nb,y,2020-01-02T01:02:03.123456789Z\n" * 9, Layout((0, 1, None, 2), ","))],
)  # fmt: skip
def test_the_size_of_blocks_does_not_matter(monkeypatch, data, layout, size):
    whole, _ = read(data, layout)
    monkeypatch.setattr(support.rows, "BLOCK", size)
    parts, _ = read(data, layout)
    pd.testing.assert_frame_equal(parts, whole)
    bad = data.rstrip("\r\n") + "\nz\n"
    with pytest.raises(UserError, match=f"f, line {len(bad.splitlines())}: 'z' has 1 field"):
        read(bad, layout)
    with pytest.raises(UserError, match=r"line 2: .* another kind"):
        read("a,b,5\na,c,2020-01-01\n", Layout((0, 1, None, 2), ","))


def test_times_of_every_kind_are_in_order():
    def times(*texts):
        data = "".join(f"a,b,{text}\n" for text in texts)
        return read(data, Layout((0, 1, None, 2), ","))[0]["time"]

    dates = times("2010-10-19T23:55:27Z", "2010-10-20T01:55:28+02:00", "2010-10-20 00:00:00",
                  "2010-10-20T00:00:00.000000001", "2010-10-20T00:00:00.000000002",
                  "2010-10-21")  # fmt: skip
    assert dates.is_monotonic_increasing
    assert dates.is_unique
    assert dates[1] - dates[0] == pd.Timedelta(seconds=1)
    assert times("0999-12-31", "9999-12-31T23:59:59.5").is_monotonic_increasing
    assert times("12", "1700000000000000001").tolist() == [12, 1700000000000000001]
    assert times("1.5", "2e3").tolist() == [1.5, 2000]
    assert times("1.5", "2e3", "100000000000000000000").is_monotonic_increasing
    close = ["1700000000000000001", "1700000000000000002.5", "1700000000000000003"]
    assert times(*close).is_unique
    assert times(*close).is_monotonic_increasing
    assert times("1287532527.123456788", "1287532527.123456789", "1287532528").is_unique


@pytest.mark.parametrize(
    ("first", "second"),
    [("Sun Mar 13 07:06:40 +0000 2011", "Sun Mar 13 08:06:41 +0100 2011"),
     ("13 Mar 2011, 07:06", "13 Mar 2011, 07:07"), ("Mar 9, 2011", "Mar 13, 2011"),
     ("May 1, 2011", "June 1, 2011"), ("2011/03/13", "2011/03/14"),
     ("12.03.2011 07:06", "13.03.2011 07:05"),
     ("03/12/2011 11:59 PM", "03/13/2011 12:01 AM"), ("02/04/2011", "13/03/2011")],
)  # fmt: skip
def test_times_of_exports_are_in_order(first, second):
    data = f'u,i,t\na,b,"{first}"\na,c,"{second}"\n'
    rows, _ = read(data, Layout((0, 1, None, 2), ",", header=True))
    expected = (first, second) != ("02/04/2011", "13/03/2011")  # which are days first: April, March
    assert rows["time"].is_monotonic_increasing == expected
    assert rows["time"].is_unique


def test_days_and_months_are_told_for_the_whole_column_or_by_the_flag(monkeypatch):
    monkeypatch.setattr(support.rows, "BLOCK", 16)  # the one that tells is in another block
    rows = "".join(f"a,b,0{n}/04/2011\n" for n in range(1, 9))
    layout = Layout((0, 1, None, 2), ",")
    told, _ = read(rows + "a,b,13/04/2011\n", layout)
    assert told["time"].dt.month.tolist() == [4] * 9
    with pytest.raises(UserError, match="--dates dmy or --dates mdy"):
        read(rows, layout)
    with pytest.raises(
        UserError, match="'13/04/2011' has the day first and '04/13/2011' the month"
    ):
        read(rows + "a,b,13/04/2011\na,b,04/13/2011\n", layout)
    told, _ = read(rows, replace(layout, dates="mdy"))
    assert told["time"].dt.day.tolist() == [4] * 8
    with pytest.raises(UserError, match="--dates mdy: '13/04/2011' can't be read so"):
        read(rows + "a,b,13/04/2011\n", replace(layout, dates="mdy"))


def test_what_a_test_file_has_beyond_train_is_counted_and_said(tmp_path):
    owner = [("all", item) for item in "xyz"]
    train = write_rows(tmp_path / "a", [("a", "x"), ("a", "y"), ("b", "y"), ("b", "z"), *owner])
    rows = [("a", "z"), ("a", "new"), ("a", "new"), ("a", "x"), ("c", "x"), ("c", "odd")]
    data = DataSet.load("toy", train, write_rows(tmp_path / "b", rows), 2, 1)
    expected = {
        "test_rows": 4, "test_users": 1, "test_targets": 3, "unknown_test_users": 1,
        "unknown_test_user_rows": 2, "unknown_test_items": 1, "unknown_item_targets": 1,
        "repeated_targets": 1, "owners_of_everything": 1, "windows": 2,
    }  # fmt: skip
    assert expected.items() <= data.counts.items()
    notes = "\n".join(data.notes)
    for word in ("'c'", "skipped", "'new'", "never hit", "also in the user's train rows", "'all'"):
        assert word in notes


def test_files_are_named_after_their_folder():
    for folder, split, name in (("mine/test", "test", "mine"), ("mine", "test", "mine"),
                                ("mine/validation", "validation", "mine-validation"),
                                ("mine", "validation", "mine-validation")):  # fmt: skip
        paths = f"{folder}/train.txt", f"{folder}/test.txt"
        assert find_files("other", split, *paths) == (name, *paths)

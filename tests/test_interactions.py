import numpy as np
import pytest
from conftest import write_rows

from interactions import DataSet, Interactions, find_files
from utils import UserError


def read(tmp_path, data):
    path = tmp_path / "rows.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return Interactions(path)


def pairs(interactions):
    users, items = list(interactions.user_map), [None, *interactions.item_map]
    rows = zip(interactions.user_ids, interactions.item_ids, strict=True)
    return [(users[user], items[item]) for user, item in rows]


PLAIN = [("a", "x"), ("a", "y"), ("b", "x")]


@pytest.mark.parametrize(
    "data",
    [
        "a x 1\na y 2\nb x 3\n",
        "a x 1\na y 2\nb x 3",  # no final newline
        "a x\na y\nb x\n",
        "a x 1 978300760\na y 2 978300761\nb x 3 978300762\n",
        "a\tx\t1\na\ty\t2.5\nb\tx\t-3e1\n",
        "a x 1\r\na y 2\r\nb x 3\r\n",
        "\n  a   x 1\n\n\na y 2  \nb x 3\n\n",
        "\ufeffa x 1\na y 2\nb x 3\n",  # a byte order mark
        "user item rating\na x 1\na y 2\nb x 3\n",
        "user_id:token\titem_id:token\ttimestamp:float\na\tx\t1\na\ty\t2\nb\tx\t3\n",
        "userId movieId rating timestamp\na x 1 5\na y 1 6\nb x 1 7\n",
        "UID Item\na x\na y\nb x\n",
        "uid mid\na x\na y\nb x\n",
        "user_id content_id\na x\na y\nb x\n",
        "a x 1\n\ufeffa y 2\nb x 3\n",  # two files, one behind the other
        "\ufeff\ufeffa x 1\na y 2\nb x 3\n",
    ],
)
def test_reads_the_authors_format_and_its_relatives(tmp_path, data):
    interactions = read(tmp_path, data)
    assert pairs(interactions) == PLAIN
    assert interactions.user_map == {"a": 0, "b": 1}
    assert interactions.item_map == {"x": 1, "y": 2}
    assert (interactions.num_users, interactions.num_items) == (2, 3)


@pytest.mark.parametrize(
    ("user", "item"),
    [
        ("007", "7"),
        ("é", "日本"),
        ("a,b", "x"),
        ("None", "nan"),
        ("-1", "1e3"),
        ("u;", "'q'"),
        ("user", "item"),
        ("u|1", "i|2"),
    ],
)
def test_ids_are_kept_as_they_are(tmp_path, user, item):
    interactions = read(tmp_path, f"z z 1\n{user} {item} 1\n7 7 1\n")
    assert pairs(interactions)[1] == (user, item)


@pytest.mark.parametrize(("user", "item"), [("USER", "ITEM"), ("u", "i"), ("u0|1", "i4|2")])
def test_a_first_row_with_a_number_is_data(tmp_path, user, item):
    assert pairs(read(tmp_path, f"{user} {item} 5\nb x 3\n"))[0] == (user, item)


def test_the_same_pair_twice_stays_in_the_row(tmp_path):
    interactions = read(tmp_path, "a x 1\na y 1\na x 1\n")
    assert interactions.item_ids.tolist() == [1, 2, 1]
    assert interactions.tocsr().nnz == 2


@pytest.mark.parametrize(
    ("data", "line", "word"),
    [
        ("", None, "no rows"),
        ("\n\n \n", None, "no rows"),
        ("user item rating\n", None, "no rows"),
        ("1,2,3\n1,3,4\n", 1, "1,2,3"),
        ("1, 2, 3\n1, 3, 4\n", 1, "csv"),
        ("1,Toy Story,3\n1,Heat,4\n", 1, "csv"),
        ("1;2;3\n", 1, "csv"),
        ("1::2::3::4\n", 1, "csv"),
        ("u0,Band i4\nu0,Band i5\n", 1, "csv"),
        ("u0 ,i4 ,1\nu0 ,i5 ,1\n", 1, "csv"),
        ("u0,i4,3,2001-01-01 10:00:00\nu0,i5,3,2001-01-01 10:00:01\n", 1, "csv"),
        ("u0|i4|3|2001-01-01 10:00:00\n", 1, "csv"),
        ("a x 4,5\na y 3,5\n", 1, "not a number"),
        ("a x 2010-10-19T23:55:27Z\na y 2010-10-19T23:55:28Z\n", 1, "not a number"),
        ("user_id thing\na x\n", 1, "header"),
        ("a x\na y\nuser_id item_id\nb x\n", 3, "header"),
        (b"a x 1\rb y 1\r\xff z 1\r", 3, "UTF-8"),
        ("a x 1\na\n", 2, "1 field"),
        ("a x 1\nb y\n", 2, "2 fields"),
        ("a x\nb y 1\n", 2, "3 fields"),
        ("a x 1 2 3\n", 1, "5 field"),
        ("a x one\na y 1\n", 1, "header"),
        ("a x 1\na y one\n", 2, "not a number"),
        ("kundin ware\n1 2\n1 3\n", 1, "header"),
        ("kundin ware note\n1 2 5\n1 3 5\n", 1, "header"),
        (b"a x 1\n\xff\xfe y 1\n", 2, "UTF-8"),
        ("a x 1\nb y 1\n".encode("utf-16"), 1, "UTF-8"),
        ("a x 1\nb y 1\n".encode("utf-16-le"), 1, "NUL"),
        (b"\x1f\x8b\x08\x00", 1, "UTF-8"),
        ("a\tx\t1\nb\tToy Story\t1\n", 2, "space"),
    ],
)
def test_refuses_with_file_and_line(tmp_path, data, line, word):
    with pytest.raises(UserError) as error:
        read(tmp_path, data)
    text = str(error.value)
    assert word in text
    assert "rows.txt" in text
    assert "\n" not in text
    if line:
        assert f"line {line}" in text


def test_a_fault_far_into_a_file_is_found(tmp_path):
    with pytest.raises(UserError, match="line 1801:"):
        read(tmp_path, "a x 1\n" * 1800 + "a\n" + "b y 1\n" * 500)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_missing_file_and_folder(tmp_path, name):
    with pytest.raises(UserError, match=r"No such file|directory"):
        Interactions(tmp_path / name)


# -------------------------------------------------------------------------------- windows


def slow_windows(rows_of_users, L, T):
    """The windows, written down one at a time."""
    users, sequences, targets = [], [], []
    for user, row in enumerate(rows_of_users):
        stops = range(len(row), L + T - 1, -1) if len(row) >= L + T else [len(row)]
        for stop in stops if len(row) > T else []:
            window = row[max(0, stop - L - T) : stop]
            users.append(user)
            targets.append(window[-T:])
            sequences.append([0] * (L + T - len(window)) + window[:-T])
    tests = [([0] * L + row)[-L:] for row in rows_of_users]
    return users, sequences, targets, tests


@pytest.mark.parametrize(("L", "T"), [(5, 1), (3, 2), (1, 1), (2, 5), (40, 1), (40, 3), (1, 40)])
def test_windows_equal_the_slow_version(tmp_path, L, T):
    rng = np.random.default_rng(1)
    rows = [(user, item) for user in range(20) for item in rng.integers(0, 30, 1 + user)]
    rows = [rows[i] for i in rng.permutation(len(rows))]  # users need not be adjacent
    train = Interactions(write_rows(tmp_path / "rows.txt", rows))
    train.to_sequence(L, T)
    of_user = [train.item_ids[train.user_ids == u].tolist() for u in range(train.num_users)]
    users, sequences, targets, tests = slow_windows(of_user, L, T)
    assert train.sequences.user_ids.tolist() == users
    assert train.sequences.sequences.tolist() == sequences
    assert train.sequences.targets.tolist() == targets
    assert train.sequences.sequences.shape == (len(users), L)
    assert train.sequences.targets.shape == (len(users), T)
    assert train.test_sequences.sequences.tolist() == tests


def test_short_history_by_hand(tmp_path):
    train = read(tmp_path, "a x 1\na y 1\na x 1\nb z 1\n")
    train.to_sequence(5, 1)
    assert train.sequences.sequences.tolist() == [[0, 0, 0, 1, 2]]
    assert train.sequences.targets.tolist() == [[1]]  # the earlier x may be in the window
    assert train.test_sequences.sequences.tolist() == [[0, 0, 1, 2, 1], [0, 0, 0, 0, 3]]


# ------------------------------------------------------------------------------ data sets


def dataset(tmp_path, train, test, L=2, T=1):
    train = write_rows(tmp_path / "train.txt", train)
    return DataSet.load("toy", train, write_rows(tmp_path / "test.txt", test), L, T)


def test_what_a_test_file_has_beyond_train_is_counted_and_said(tmp_path):
    train = [("a", "x"), ("a", "y"), ("b", "y"), ("b", "z")]
    test = [("a", "z"), ("a", "new"), ("a", "new"), ("a", "x"), ("c", "x"), ("c", "odd")]
    data = dataset(tmp_path, train, test)
    expected = {
        "test_rows": 4,
        "test_users": 1,
        "test_targets": 3,
        "unknown_test_users": 1,
        "unknown_test_user_rows": 2,
        "unknown_test_items": 1,
        "unknown_item_targets": 1,
        "repeated_targets": 1,
    }
    assert expected.items() <= data.counts.items()
    notes = "\n".join(data.notes)
    for word in ("'c'", "skipped", "'new'", "never hit", "also in the user's train rows"):
        assert word in notes


def test_owner_of_everything_is_named(tmp_path):
    train = [("all", "x"), ("all", "y"), ("all", "z"), ("b", "y"), ("b", "z")]
    data = dataset(tmp_path, train, [("b", "x")])
    assert data.counts["owners_of_everything"] == 1
    assert data.counts["windows"] == 1
    assert any("'all'" in note for note in data.notes)


def test_nothing_to_train_or_evaluate(tmp_path):
    with pytest.raises(UserError, match="no training windows"):
        dataset(tmp_path, [("a", "x"), ("b", "y")], [("a", "y")])
    with pytest.raises(UserError, match=r"no user has more than T rows.*'b'.*every item"):
        dataset(tmp_path, [("a", "x"), ("b", "x"), ("b", "y")], [("a", "y")])
    with pytest.raises(UserError, match="none of its users"):
        dataset(tmp_path, [("a", "x"), ("a", "y"), ("b", "z")], [("c", "y")])


def test_identity_tells_rows_order_and_ids_apart(tmp_path):
    rows = [("a", "x"), ("a", "y"), ("b", "z")]
    fingerprints = {
        dataset(tmp_path, train, [("a", "z")]).identity["fingerprint"]
        for train in (rows, rows[::-1], [*rows, ("b", "x")], [("a", "x"), ("a", "y"), ("b", "w")])
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("folder", "split", "name"),
    [
        ("gowalla/test", "test", "gowalla"),
        ("gowalla/validation", "validation", "gowalla-validation"),
        ("mine", "test", "mine"),
        ("mine", "validation", "mine-validation"),
    ],
)
def test_files_are_named_after_their_folder(tmp_path, folder, split, name):
    train, test = (str(tmp_path / folder / f"{part}.txt") for part in ("train", "test"))
    assert find_files("other", split, train, test) == (name, train, test)


@pytest.mark.parametrize("name", ["nowhere", "", ".", "..", "a/b", "../a"])
def test_no_such_dataset(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dataset|data set"):
        find_files(name, "test")

"""Readers of real files, good and bad."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Interactions, k_core
from ownlet.simulations.readers import read, read_movielens, read_table

MOVIETWEETINGS = (
    Path(os.environ.get("OWNLET_DATA", Path(__file__).parents[2] / "../shared/data")) / "movietweetings-100k"
)

RATINGS = [("7", "b", 3.5, 20), ("7", "a", 4.0, 10), ("x", "b", 1.0, 5), ("7", "c", 2.0, 10)]


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def is_the_small_data(data: Interactions) -> bool:
    """The four ratings above: users and items by first appearance, events by (time, order in the file)."""
    assert data.user_ids == ("7", "x")
    assert [item.id for item in data.items] == ["b", "a", "c"]
    assert [h.tolist() for h in data.histories] == [[2, 3, 1], [1]]
    assert [t.tolist() for t in data.timestamps] == [[10, 10, 20], [5]]
    assert data.ratings is not None
    assert data.ratings.tolist() == [4.0, 2.0, 3.5, 1.0]
    return True


def test_u_data_with_u_item(tmp_path: Path):
    write(tmp_path, "u.data", "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS))
    flags = ["0"] * 19
    flags[1] = flags[5] = "1"
    line = "|".join(["b", "Misérables, Les (1995)", "01-Jan-1995", "", "http://x", *flags])
    write(tmp_path, "u.item", (line + "\n").encode("latin-1"))
    data = read(tmp_path)
    assert is_the_small_data(data)
    assert (data.items[0].title, data.items[0].genres) == ("Misérables, Les (1995)", ("Action", "Comedy"))
    assert (data.items[1].title, data.items[1].genres) == ("", ())


def test_ratings_dat_with_movies_dat_in_utf8_and_latin1(tmp_path: Path):
    write(tmp_path, "ratings.dat", "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in RATINGS))
    movies = "b::Fantômas: a::b (1913)::Crime|Drama\na::Bank (1915)::\n"
    for encoding in ("utf-8", "latin-1"):
        write(tmp_path, "movies.dat", movies.encode(encoding))
        data = read(tmp_path)
        assert is_the_small_data(data)
        assert (data.items[0].title, data.items[0].genres) == ("Fantômas: a::b (1913)", ("Crime", "Drama"))
        assert (data.items[1].title, data.items[1].genres) == ("Bank (1915)", ())


def test_ratings_csv_with_movies_csv(tmp_path: Path):
    lines = "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in RATINGS)
    path = write(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n" + lines)
    write(tmp_path, "movies.csv", 'movieId,title,genres\nb,"Good, the Bad (1966)",Western\na,A,(no genres listed)\n')
    for source in (tmp_path, path):
        data = read(source)
        assert is_the_small_data(data)
        assert (data.items[0].title, data.items[0].genres) == ("Good, the Bad (1966)", ("Western",))
        assert data.items[1].genres == ()


def test_windows_line_ends_blank_lines_and_a_missing_last_newline_change_nothing(tmp_path: Path):
    path = write(tmp_path, "ratings.dat", "\r\n".join(f"{u}::{i}::{r}::{t}" for u, i, r, t in RATINGS) + "\r\n\r\n")
    assert is_the_small_data(read(path))
    path = write(tmp_path, "ratings.dat", "\n\n".join(f"{u}::{i}::{r}::{t}" for u, i, r, t in RATINGS))
    assert is_the_small_data(read(path))


def test_a_csv_file_with_mapped_columns_context_and_a_byte_order_mark(tmp_path: Path):
    lines = "".join(f"{t},phone,{i},,{u},{r}\n" for u, i, r, t in RATINGS)
    path = write(tmp_path, "shop.csv", "\ufeffwhen,device,what,note,who,stars\n" + lines)
    data = read_table(path, user="who", item="what", timestamp="when", rating="stars", context=["device", "note"])
    assert is_the_small_data(data)
    assert data.name == "shop"
    assert data.context["device"].tolist() == ["phone"] * 4
    assert data.context["note"].tolist() == [""] * 4
    assert read_table(path, user="who", item="what", timestamp="when").ratings is None


def test_a_csv_file_with_quotes_and_line_breaks_inside_them(tmp_path: Path):
    lines = "".join(f'"{u}",{i},{r},{t},"a, ""b""\nc"\n' for u, i, r, t in RATINGS)
    path = write(tmp_path, "shop.csv", "user,item,rating,timestamp,note\n" + lines)
    assert is_the_small_data(read(path))


def test_parquet_with_numbers_as_ids_and_datetimes(tmp_path: Path):
    frame = pl.DataFrame(
        {
            "user": [7, 7, 8],
            "item": [5, 6, 5],
            "timestamp": [
                datetime(2024, 1, 2, tzinfo=UTC),
                datetime(2024, 1, 1, tzinfo=UTC),
                datetime(1970, 1, 1, tzinfo=UTC),
            ],
            "place": [0.5, 1.5, 2.5],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    data = read_table(tmp_path / "log.parquet", user="user", item="item", timestamp="timestamp", context=["place"])
    assert data.user_ids == ("7", "8")
    assert [h.tolist() for h in data.histories] == [[2, 1], [1]]
    assert data.times.tolist() == [1704067200, 1704153600, 0]
    assert data.context["place"].tolist() == [1.5, 0.5, 2.5]
    assert len(read(tmp_path / "log.parquet")) == 3


def test_parquet_with_naive_datetimes_and_dates_is_utc(tmp_path: Path):
    for values in ([datetime(2024, 1, 1)], [datetime(2024, 1, 1).date()]):
        pl.DataFrame({"u": ["a"], "i": ["b"], "t": values}).write_parquet(tmp_path / "log.parquet")
        assert read_table(tmp_path / "log.parquet", user="u", item="i", timestamp="t").times.tolist() == [1704067200]


def test_repeated_pairs_are_kept_in_order(tmp_path: Path):
    path = write(tmp_path, "log.csv", "user,item,timestamp\na,x,3\na,y,2\na,x,1\na,x,3\n")
    assert read(path).events.tolist() == [1, 2, 1, 1]


GOOD = "1::2::3::4\n"
BAD_LINES = [
    ("too few fields", "1::2::3\n", "line must have 4 fields, got 3"),
    ("too many fields", "1::2::3::4::5\n", "line must have 4 fields, got 5"),
    ("a timestamp in words", "1::2::3::noon\n", "timestamp must be whole unix seconds .*, got 'noon'"),
    ("a fractional timestamp", "1::2::3::4.5\n", "timestamp must be whole unix seconds .*, got '4.5'"),
    ("a negative timestamp", "1::2::3::-4\n", "timestamp must be whole unix seconds .*, got '-4'"),
    ("milliseconds", "1::2::3::1365029107000\n", "timestamp must be whole unix seconds .*, got '1365029107000'"),
    ("no timestamp", "1::2::3::\n", "timestamp must be whole unix seconds .*, got ''"),
    ("a rating in words", "1::2::good::4\n", "rating must be a finite number, got 'good'"),
    ("an infinite rating", "1::2::inf::4\n", "rating must be a finite number, got 'inf'"),
    ("a NaN rating", "1::2::nan::4\n", "rating must be a finite number, got 'nan'"),
    ("no user", "::2::3::4\n", "user must not be empty"),
    ("no item", "1::::3::4\n", "item must not be empty"),
    ("another separator", "1,2,3,4\n", "line must have 4 fields, got 1"),
]


@pytest.mark.parametrize("line, reason", [b[1:] for b in BAD_LINES], ids=[b[0] for b in BAD_LINES])
def test_a_bad_line_is_one_error_with_file_line_and_reason(tmp_path: Path, line: str, reason: str):
    path = write(tmp_path, "ratings.dat", GOOD * 2 + line + GOOD + line)
    with pytest.raises(DataError, match=rf"ratings\.dat:3: {reason}"):
        read(path)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("a,b\n", "line must have 4 fields, got 2"),
        ("a,b,3\n", "line must have 4 fields, got 3"),  # only a column that is not mapped is missing
        ("a,b,3,4,5\n", "line must have 4 fields, got 5"),
        ("a,b,soon,x\n", "timestamp must be whole unix seconds .*, got 'soon'"),
        ('"a,b,3,4\n', "line must be CSV"),
    ],
)
@pytest.mark.parametrize("quoted", ["", 'q,"q, q",5,q\n'], ids=["plain", "quoted"])
def test_a_bad_csv_line_is_one_error_with_file_line_and_reason(tmp_path: Path, line: str, reason: str, quoted: str):
    path = write(tmp_path, "log.csv", "user,item,timestamp,note\n1,2,3,\n" + quoted + line)
    with pytest.raises(DataError, match=rf"log\.csv:{4 if quoted else 3}: {reason}"):
        read(path)


@pytest.mark.parametrize("name, head", [("ratings.dat", GOOD), ("log.csv", "user,item,timestamp,rating\n")])
def test_bytes_that_are_not_utf8_are_one_error_with_file_line_and_byte(tmp_path: Path, name: str, head: str):
    bad = b"1::\xff::3::4\n" if name == "ratings.dat" else b"1,\xff,3,4\n"
    path = write(tmp_path, name, head.encode() + bad)
    with pytest.raises(DataError, match=rf"{name}:2: line must be UTF-8, got byte 0xff"):
        read(path)


@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv", "log.csv", "log.parquet"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str):
    path = write(tmp_path, name, "")
    with pytest.raises(DataError, match=r"must not be empty|at least one interaction|columns must be in the file"):
        read(path)


def test_a_file_with_a_header_only_is_an_error(tmp_path: Path):
    path = write(tmp_path, "log.csv", "user,item,timestamp\n")
    with pytest.raises(DataError, match="at least one interaction"):
        read(path)
    pl.DataFrame({"user": [], "item": [], "timestamp": []}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="at least one interaction"):
        read(tmp_path / "log.parquet")


def test_missing_files_folders_and_columns_are_errors(tmp_path: Path):
    for path in (tmp_path / "ratings.dat", tmp_path / "log.csv", tmp_path / "log.parquet"):
        with pytest.raises(DataError, match="data must be a file that exists"):
            read(path)
    with pytest.raises(DataError, match=r"folder must hold one of u\.data, ratings\.dat, ratings\.csv"):
        read_movielens(tmp_path)
    path = write(tmp_path, "log.csv", "user,thing,timestamp\na,b,3\n")
    with pytest.raises(DataError, match=r"got no \['item'\] in .*log\.csv; it has \['user', 'thing', 'timestamp'\]"):
        read(path)
    with pytest.raises(ConfigError, match="columns must differ"):
        read_table(path, user="user", item="user", timestamp="timestamp")


def test_a_ratings_csv_with_other_columns_is_an_error(tmp_path: Path):
    path = write(tmp_path, "ratings.csv", "a,b,c,d\n1,2,3,4\n")
    with pytest.raises(DataError, match="header must be userId,movieId,rating,timestamp, got a,b,c,d"):
        read_movielens(path)


def test_bad_parquet_rows_and_files_are_errors(tmp_path: Path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": ["a", None], "item": ["x", "y"], "timestamp": [1, 2]}).write_parquet(path)
    with pytest.raises(DataError, match=r"log\.parquet: row 1: user and item must not be empty"):
        read(path)
    content = path.read_bytes()
    for damaged in (b"not parquet at all", b"x" * 100 + content[100:]):  # no footer; a footer, but no rows
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="Parquet file must be readable"):
            read(path)


@pytest.mark.parametrize("name", ["log [1].csv", "log*.parquet"])
def test_a_file_name_is_not_a_pattern(tmp_path: Path, name: str):
    frame = pl.DataFrame({"user": ["a"], "item": ["b"], "timestamp": [1]})
    for other in ("log 1.csv", "log2.parquet", name):
        frame.write_csv(tmp_path / other) if name.endswith("csv") else frame.write_parquet(tmp_path / other)
    assert len(read(tmp_path / name)) == 1


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("movies.dat", "1::only a title\n", r"movies\.dat:1: line must have 3 fields, got 2"),
        ("u.item", "1|title|date\n", r"u\.item:1: line must have 24 fields, got 3"),
        ("movies.csv", "movieId,title,genres\n1,a\n", r"movies\.csv:2: line must have 3 fields, got 2"),
        ("movies.csv", "id,name\n", r"movies\.csv:1: header must be movieId,title,genres"),
    ],
)
def test_a_bad_catalogue_is_an_error(tmp_path: Path, name: str, text: str, reason: str):
    write(tmp_path, "ratings.dat", GOOD)
    write(tmp_path, name, text)
    with pytest.raises(DataError, match=reason):
        read(tmp_path)


@pytest.mark.skipif(not MOVIETWEETINGS.is_dir(), reason=f"no MovieTweetings in {MOVIETWEETINGS}; set OWNLET_DATA")
def test_movietweetings_has_the_published_counts():
    data = read(MOVIETWEETINGS)
    assert (data.num_users, data.num_items, len(data)) == (16_554, 10_506, 100_000)
    core = k_core(data, 5)
    assert (core.num_users, core.num_items, len(core)) == (4_333, 2_414, 68_055)
    assert all(item.title for item in core.items)
    assert np.bincount(core.users).min() >= 5
    assert np.bincount(core.events)[1:].min() >= 5

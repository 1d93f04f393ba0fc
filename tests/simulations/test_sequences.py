"""Files with one line of items per user."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Interactions, k_core
from ownlet.shared.splits import global_time_split, public_device_split
from ownlet.simulations.readers import read
from ownlet.simulations.store import EventStore
from ownlet.simulations.store_build import write_table_store

BEAUTY = Path(os.environ.get("OWNLET_DATA", Path(__file__).parents[2] / "../shared/data")) / "amazon-beauty"


def write(folder: Path, text: str | bytes, name: str = "Shop.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def is_the_small_data(data: Interactions) -> bool:
    assert data.name == "Shop"
    assert data.user_ids == ("7", "x")
    assert [item.id for item in data.items] == ["b", "a", "c"]
    assert [history.tolist() for history in data.histories] == [[1, 2, 3, 2], [3]]
    assert [times.tolist() for times in data.timestamps] == [[0, 1, 2, 3], [0]]
    assert data.ratings is None
    assert not data.has_times
    return True


def test_a_line_is_a_user_and_items_in_time_order(tmp_path: Path):
    assert is_the_small_data(read(write(tmp_path, "7 b a c a\nx c\n")))
    assert is_the_small_data(read(tmp_path))


def test_other_white_space_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path):
    assert is_the_small_data(read(write(tmp_path, "\ufeff7\tb  a c a \r\n\r\n  \r\nx c")))


def test_a_csv_file_named_txt_is_still_csv(tmp_path: Path):
    data = read(write(tmp_path, "user,item,timestamp\na,b,5\n"))
    assert data.times.tolist() == [5]
    assert data.has_times


def test_a_folder_of_movielens_with_a_readme_is_not_taken_for_sequences(tmp_path: Path):
    write(tmp_path, "This is a README.\n", "README.txt")
    write(tmp_path, "1::2::3::4\n", "ratings.dat")
    assert read(tmp_path).times.tolist() == [4]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("1 2 3\n\n4\n", r"Shop\.txt:3: line must be a user and the items of the user, got only '4'"),
        ("1 2 3\n4 5\n1 6\n", r"Shop\.txt:3: user must have one line, got '1' again after line 1"),
        (b"1 2 3\n4 \xff\n", r"Shop\.txt:2: line must be UTF-8, got byte 0xff"),
        ("\n \n", "file must hold at least one interaction"),
        ("", "file must not be empty"),
    ],
)
def test_a_bad_line_names_file_line_and_reason(tmp_path: Path, text: str | bytes, reason: str):
    with pytest.raises(DataError, match=reason):
        read(write(tmp_path, text))


def test_a_folder_with_two_text_files_is_refused(tmp_path: Path):
    write(tmp_path, "1 2\n", "a.txt")
    write(tmp_path, "1 2\n", "b.txt")
    with pytest.raises(DataError, match=r"folder must hold one of u\.data, .* or one \.txt file, got neither"):
        read(tmp_path)


def test_what_needs_seconds_refuses_data_that_knows_only_the_order(tmp_path: Path):
    data = k_core(read(write(tmp_path, "1 2 3\n4 2 3\n")), 1)
    for split in (lambda: global_time_split(data, 1), lambda: public_device_split(data, date="2013-06-01")):
        with pytest.raises(ConfigError, match="a date needs data with times, got data='Shop'"):
            split()


def test_items_without_titles_have_zero_content(tmp_path: Path):
    data = read(write(tmp_path, "1 2 3\n"))
    assert not content_vectors(data.items).any()


def test_a_store_can_be_built_from_sequences(tmp_path: Path):
    path = write(tmp_path, "1 b a c a\n0 a zz\n2 c b\n")
    catalogue = read(write(tmp_path, "1 b a c\n", "known.txt")).items
    report = write_table_store(tmp_path / "store", catalogue, path)
    assert (report.num_users, report.num_events, report.unknown_events, report.short_users) == (2, 6, 1, 1)
    store = EventStore.open(tmp_path / "store")
    assert [store.history(user).tolist() for user in range(2)] == [[1, 2, 3, 2], [3, 1]]


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Amazon Beauty in {BEAUTY}; set OWNLET_DATA")
def test_amazon_beauty_has_the_published_counts():
    data = read(BEAUTY)
    assert (data.num_users, data.num_items, len(data)) == (22_363, 12_101, 198_502)
    assert k_core(data, 5).num_users == data.num_users
    assert np.diff(data.offsets).min() == 5

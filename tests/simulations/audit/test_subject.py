import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ownlet.device.state import StateFolder
from ownlet.shared.errors import AdapterError, BundleError, DataError, OwnletError, PrivacyError
from ownlet.simulations.audit.subject import BundleSubject, LedgerSubject, RunSubject, open_subject

from .conftest import APP_KEY, USER, MakeRun


def cut(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_a_run_folder_is_read_with_the_server_s_own_record(make_run: MakeRun) -> None:
    subject = open_subject(make_run(USER))
    assert isinstance(subject, RunSubject)
    assert (subject.terms, subject.seed, subject.engine) == (replace(USER, seed=None), 3, "cohort")
    assert subject.checkpoint is not None
    assert (len(subject.rows), subject.checkpoint.rounds) == (6, 6)


def test_a_state_folder_and_its_ledger_are_the_same_subject(ledger_file: Path) -> None:
    for path in (ledger_file, ledger_file.parent):
        subject = open_subject(path, APP_KEY)
        assert isinstance(subject, LedgerSubject)
        assert (subject.broken, len(subject.entries), subject.keyed) == (None, 4, True)


def test_a_ledger_that_does_not_verify_is_a_finding_and_still_shown(ledger_file: Path) -> None:
    subject = open_subject(ledger_file)  # without its key no mac fits
    assert isinstance(subject, LedgerSubject)
    assert subject.broken is not None
    assert "its mac does not fit" in subject.broken
    assert len(subject.entries) == 4
    lines = ledger_file.read_bytes().splitlines(keepends=True)
    ledger_file.write_bytes(b"".join([lines[0], *lines[2:]]))
    subject = open_subject(ledger_file, APP_KEY)
    assert isinstance(subject, LedgerSubject)
    assert (subject.report, subject.entries) == (None, ())
    assert subject.broken is not None
    assert "a line is missing" in subject.broken


def test_a_bundle_is_read_with_its_adapter(tiny_bundle: Path) -> None:
    subject = open_subject(tiny_bundle)
    assert isinstance(subject, BundleSubject)
    assert subject.adapter[2] == 3


def test_a_bundle_with_a_truncated_adapter_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    cut(copy / "adapter.safetensors")
    with pytest.raises(BundleError, match="truncated or altered"):
        open_subject(copy)


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("adapter.safetensors", AdapterError, "adapter file must be readable"),
        ("federation.ckpt", DataError, "checkpoint must be readable"),
        ("metrics.parquet", DataError, "metrics must be readable"),
        ("summary.json", DataError, "readable JSON"),
        ("config.json", DataError, "files that a command writes"),
    ],
)
def test_a_truncated_file_of_a_run_is_one_clear_error(
    make_run: MakeRun, name: str, error: type[OwnletError], match: str
) -> None:
    folder = make_run(USER)
    cut(folder / name)
    with pytest.raises(error, match=match):
        open_subject(folder)


def test_what_is_none_of_the_three_is_refused(make_run: MakeRun, ledger_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must exist"):
        open_subject(tmp_path / "nowhere")
    with pytest.raises(DataError, match="must be a run folder, a bundle"):
        open_subject(tmp_path)
    text = tmp_path / "notes.txt"
    for content in (b"", b"hello\n", b"[1]\n", b'{"a": 1}\n', b"\xff\xfe\n"):
        text.write_bytes(content)
        with pytest.raises(DataError, match="ledger"):
            open_subject(text)
    first = ledger_file.read_bytes().split(b"\n")[0]
    for size in (len(first), 40):  # the whole first line but its newline, and a part of it
        ledger_file.write_bytes(first[:size])
        with pytest.raises(DataError, match=r"ledger must have a whole line|no entry in its first line"):
            open_subject(ledger_file, APP_KEY)


def test_an_unfinished_run_and_one_of_another_command_are_refused(make_run: MakeRun) -> None:
    folder = make_run(USER)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"simulate"', '"demo"'))
    with pytest.raises(DataError, match="one of `ownlet simulate`, got one of `ownlet demo`"):
        open_subject(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(DataError, match="must be finished"):
        open_subject(folder)


def test_a_missing_ledger_beside_an_update_is_refused(tmp_path: Path) -> None:
    StateFolder(tmp_path).outbox.write_bytes(b"update")
    with pytest.raises(PrivacyError, match="ledger must be present"):
        open_subject(tmp_path)

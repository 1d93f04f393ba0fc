"""What the documentation shows is what the code does."""

import json
import re
from pathlib import Path

from ownlet.device.chain import parse_line
from ownlet.shared.manifest import read_manifest
from ownlet.shared.seal import Keys

DOCS = Path(__file__).parent.parent / "docs"


def test_the_ledger_in_the_mobile_contract_verifies_under_its_key():
    lines = re.findall(r"^\{.*\}$", (DOCS / "mobile.md").read_text(), flags=re.MULTILINE)
    key, previous = Keys.of(bytes(range(32))).ledger, ""
    for number, line in enumerate(lines, start=1):
        entry = parse_line(line.encode(), key)
        assert (entry["seq"], entry["prev"]) == (number, previous)
        previous = entry["mac"]
    assert [json.loads(line)["state"] for line in lines] == ["budget", "intent", "commit"]


def test_the_mobile_contract_names_every_method_and_argument(tiny_bundle: Path, ranked_bundle: Path):
    text = (DOCS / "mobile.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (.*)$", text, flags=re.MULTILINE))
    methods = {
        method.name: method for bundle in (tiny_bundle, ranked_bundle) for method in read_manifest(bundle).methods
    }
    assert "rank" in methods
    for method in methods.values():
        row = table[re.sub(r"_\d+$", "_B", method.name)]
        named = re.findall(r"`(\w+)`", row)
        assert named == [entry.name for entry in (*method.arguments, *method.results)]

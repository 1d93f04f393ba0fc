"""A SuperNode's log, as flwr 1.41 writes it, in the sentences of the node's terminal."""

import subprocess
import sys
from pathlib import Path

from ownlet.simulations.supernode_log import SuperNodeTeller

ROUND = [
    "INFO :      [RUN 5328103050205796421, ROUND 1]",
    "INFO :      Receiving: train message (ID: 9c84e19d)",
    "INFO :      Received successfully",
    "ownlet: round 1: asked for 5 users, answers with the sum of 3; 2 have no budget left",
    "INFO :      Sending: train message (ID: 5f3e83ec)",
]
REFUSED = ["INFO :      Starting Flower SuperNode", "ERROR :     Exit Code: 305", "Failed to activate SuperNode."]


def teller(told: list[str]) -> SuperNodeTeller:
    return SuperNodeTeller("localhost:1", Path("node-0"), told.append)


def test_a_message_is_one_sentence_of_the_nodes_own() -> None:
    told: list[str] = []
    reader = teller(told)
    for line in ["INFO :      SuperNode ID: 13132", *ROUND, "ownlet.shared.errors.FederationError: base must be a"]:
        reader.read(line)
    assert told == ["connected to localhost:1", ROUND[3].removeprefix("ownlet: "), "refused to answer: base must be a"]
    assert reader.why_ended() is None


def test_a_server_that_is_away_is_told_once_and_hiccups_are_not() -> None:
    told: list[str] = []
    reader = teller(told)
    for seconds in ("0.06", "0.94", "1.88", "13.63", "0.50", "11.20"):
        reader.read(f"WARNING :   Connection attempt failed, retrying in {seconds} seconds")
    assert told == ["localhost:1 does not answer; waiting for it"]
    reader.read("INFO :      Connection successful after 31.2 seconds and 6 tries.")
    reader.read("INFO :      Connection successful after 0.1 seconds and 2 tries.")
    assert told[1:] == ["localhost:1 answers again"]


def test_the_first_refusal_is_no_matter_later_ones_name_both_reasons_and_a_connection_forgets_them() -> None:
    told: list[str] = []
    reader = teller(told)

    def refused() -> str:
        for line in REFUSED:
            reader.read(line)
        return str(reader.why_ended())

    assert refused() == "not yet admitted by localhost:1"
    assert "does not know the public key of node-0 yet, or another process is connected with that key" in refused()
    assert told == []  # Flower's lines are in its log
    reader.read("INFO :      SuperNode ID: 13132")
    reader.read("httpx.HTTPStatusError: Client error '401 Unauthorized' for url 'https://localhost:1/v1/fleet'")
    assert reader.why_ended() == "not yet admitted by localhost:1"
    assert reader.why_ended() is None


def test_the_same_thing_is_said_once_until_something_else_is() -> None:
    told: list[str] = []
    reader = teller(told)
    for text in ("a", "a", "b", "a"):
        reader.say(text)
    assert told == ["a", "b", "a"]


def test_what_the_nodes_app_logs_comes_marked_and_once() -> None:
    code = """
import logging
from ownlet.simulations.supernode_log import tell_into_log
logging.basicConfig()
tell_into_log(); tell_into_log()
logging.getLogger("ownlet.device.client").info("round 1: a sentence")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "ownlet: round 1: a sentence\n"

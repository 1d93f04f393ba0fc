"""The server: which replies are admitted, how they become the next adapter, and the rounds of a run."""

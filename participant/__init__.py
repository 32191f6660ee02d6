"""The participant: a long-running service beside the rows, which stay where they are."""

"""Shares of train, val and test where a source has no splits. With others the same command would draw other test images."""

PREPARED = (0.8, 0.1, 0.1)  # one division for pretraining and every task
TASK = (0.7, 0.1, 0.2)  # the fewer test images, the wider the interval
PRETRAINING = (0.95, 0.05, 0.0)  # nothing is tested; val shows how it goes

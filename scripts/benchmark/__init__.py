"""The benchmark behind scripts/bench: the same work on pixstorefs and its peers, interleaved in one run."""

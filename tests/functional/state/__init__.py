"""Files that are kept between runs: caches, counts, and the records that probes read."""

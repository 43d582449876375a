"""The benchmarks: `make bench`, each beside its floor in the same run."""

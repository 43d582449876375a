"""Real servers for the demo, the tests and the benchmarks, without Docker and without anything installed beforehand.

Nothing in this package reads Django settings: it runs before them and decides what they will find in the environment.
"""

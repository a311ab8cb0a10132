"""What scripts/bench_kernels.py measures: the rays and samples (work.py), and the calls with the bytes that they must move (cases.py)."""

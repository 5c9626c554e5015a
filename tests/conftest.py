"""One thread in every process that the tests start: equal to the last bit means equal sums, and so equal numbers of threads."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every process started from here

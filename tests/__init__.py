"""One thread for torch, in this process and in those that tests start, where nothing else is asked for: the threads of a
parallel region wait for each other, for ever longer the busier the machine is, and the models here are small."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

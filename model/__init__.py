"""What the network is and how it learns: torch, numpy and the standard library.

Not here: HTTP, Redis and jobs (service/). No module of model/ connects or starts a thread when it is imported.

The alphabet of shapes, in docstrings and in comments at the ends of lines:

    B  batch: rows that are computed together
    T  time: characters of a window
    L  layers
    H  hidden units of a layer
    E  size of an embedding
    V  vocabulary: distinct characters
    K  steps of a block of the stepper
    S  tensors of a state: 2 for an lstm (h and c), 1 for gru and rnn
"""

import os

# OpenMP's threads, torch's among them, sleep while they wait. By default they spin, and then two trainings on one
# machine take each other's cores for nothing. libgomp reads this once, when it is loaded: before torch is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
"""The version of the whole project: the packages model and service, the image, the changelog."""

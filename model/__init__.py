"""What the network is and how it learns: torch, numpy and the standard library; no HTTP, no Redis, no threads.

The shape alphabet, used in trailing comments and docstrings everywhere:

    B  batch: rows that are computed together
    T  time: characters in a window
    L  layers
    H  hidden units of a layer
    V  vocabulary: distinct characters
    K  steps in a block of the stepper
    S  tensors in a state: 2 for an lstm (h and c), 1 for gru and rnn
"""

"""The network itself, its hidden state, and how a character is sampled from its logits.

Not here: fast inference (stepper), the training loop (training), and files (checkpoints).
"""

"""The models of the folder of checkpoints, and checkpoints that clients upload to it."""

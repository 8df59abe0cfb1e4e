"""What reads a text beside the engine: its score, the network's gates, the log-probabilities of each character.

Generating text, and which model is loaded, do not belong here.
"""

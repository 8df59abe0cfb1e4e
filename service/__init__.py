"""How the model is offered: HTTP, streams, sessions, training jobs.

Networks, training and the arithmetic belong to model/. .importlinter says which package may import which.
"""

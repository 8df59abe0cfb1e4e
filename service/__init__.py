"""How the model is offered: HTTP, streams, sessions, jobs.

Imports go routes -> generation -> engine, store -> model.
"""

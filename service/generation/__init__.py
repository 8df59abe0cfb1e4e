"""One generation, read from top to bottom: validation -> plan -> engine -> stream of chunks -> commit.

Use cases and their order are in service.py. HTTP (routes), decoding (engine) and storage (store) do not belong here.
"""

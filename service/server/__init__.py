"""The HTTP server: gunicorn's threaded worker, made safe against slow and hostile clients.

Sockets, buffers and deadlines belong here. Routes, models and sessions do not.
"""

"""Who may use the service, and how often: API keys, the operator's key, rates.

Not here: which routes ask for which key (routes/access.py).
"""

"""How the service is operated: draining, health checks, metrics and the terminal.

Not here: the launcher (launcher/), what a request computes (generation, inspection) and the configuration of
deployments (deploy/).
"""

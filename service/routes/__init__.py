"""The addresses of the API: each module parses a request, calls a service and renders the answer.

Only these modules and app.py use Flask. What a request does belongs to generation, inspection, jobs and models.
"""

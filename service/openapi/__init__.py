"""The description of the API as an OpenAPI 3.1 document, made from the pydantic models and a table of operations.

It describes; it answers nothing. Tests compare it with the routes of the application and with real answers.
"""

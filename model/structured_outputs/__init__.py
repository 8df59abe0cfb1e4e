"""Structured outputs: a regular expression, a list of choices or a JSON schema as an automaton over characters.

What belongs here turns a specification into tables that say which characters may follow, and how far an end is. The
steppers apply the tables; requests and sessions do not belong here.
"""

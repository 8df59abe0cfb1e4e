"""The OpenAI completions protocol: requests and answers in its form, from the service's own generation and scoring.

Nothing here knows HTTP; service/routes/openai.py does. It is stateless: no session is created or read.
"""

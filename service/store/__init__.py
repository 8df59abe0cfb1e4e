"""What is stored: sessions, prefix states, promotions, corpora. Each is a Protocol, in Redis and in memory.

Which state belongs to which text (generation) and HTTP (routes) do not belong here.
"""

"""Items on the command line: their options, and what `sample` and `score` do with a model of a list."""

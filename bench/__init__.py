"""Side-by-side measurements. Each prints a table and, as its last line, JSON."""

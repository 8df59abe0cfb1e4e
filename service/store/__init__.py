"""Where sessions live: one Protocol (sessions), two homes (redis, memory), one contract suite over both."""

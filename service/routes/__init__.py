"""Parse, call, render: each module makes one blueprint from what it is given."""

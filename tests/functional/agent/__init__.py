"""The process that stays: what it costs, what wakes it, what it serves, and who watches it."""

"""Hostile input: whatever it is, it is understood or refused in words, in bounded time and memory."""

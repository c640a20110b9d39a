"""Hostile input: it is understood or refused with a message, in bounded time and memory."""

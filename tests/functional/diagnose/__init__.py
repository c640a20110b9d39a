"""The bug report with its findings, and secrets that neither it nor a message may hold."""

"""A change and its way back: plan, preflight, transaction, rollback, revert, readiness."""

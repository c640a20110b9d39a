"""Pure and in-process tests: no program is started."""

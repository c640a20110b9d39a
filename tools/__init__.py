"""Programs for those who change the project: they write its generated files."""

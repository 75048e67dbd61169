"""Commands of `unic` by topic; workflows.cli puts them together."""

"""Progress as people see it: bars, lines, text."""

"""The progress of an ensure, as a person sees it: bars in a terminal or a notebook, lines in a log."""

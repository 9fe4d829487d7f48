"""A page as markdown, LaTeX, tidy CSV, or text for a terminal: one module each."""

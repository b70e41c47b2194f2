"""Interactive parts of the book: explorers of records, the panel in Jupyter, and the live lab in the browser."""

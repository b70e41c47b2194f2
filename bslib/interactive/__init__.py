"""What readers play with: explorers of records, the panel in Jupyter, and the live lab in the browser."""

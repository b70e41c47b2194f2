"""The benchmark: measured by one module, shown by another, which stays free of torch."""

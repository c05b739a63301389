"""One module for each dataset, or for each form in which datasets are published."""

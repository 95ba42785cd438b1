"""Hot loops: one folder per operation, one file per backend, a torch reference beside each."""

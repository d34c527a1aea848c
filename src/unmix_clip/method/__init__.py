"""The paper (arXiv 2502.02977), and only the paper: projectors, scoring, losses. Pure torch, no files, no data sets."""

"""Measurements on plain arrays: recognition, segmentation, entanglement. No backbone, no data set, no files here."""

"""The rivals, behind the same scoring interface as the method itself."""

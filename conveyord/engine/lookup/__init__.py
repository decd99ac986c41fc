"""Finds rows of a reference by key, and puts their columns beside the rows of a batch: Arrow and numpy only."""

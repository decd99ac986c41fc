"""The daemon: the one place that names concrete roles and drivers, and joins them to a node."""

"""What makes a process a member of a cluster: it is founded or joined, its log and state are run, read and watched."""

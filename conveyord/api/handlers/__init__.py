"""What carries each operation out: (context, caller, request) -> reply."""

"""The two databases behind the store, and what each process hears of changes."""

"""What training reads, shown."""

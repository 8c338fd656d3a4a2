"""What training measures of itself: the loss over held-out rows, and tasks."""

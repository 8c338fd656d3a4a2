"""What runs the data stages: processes of this machine, or Spark."""

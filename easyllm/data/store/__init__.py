"""The token store on disk, and its copy on each node."""

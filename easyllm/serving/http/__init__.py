"""What handles a request before it reaches a route, from the connection on."""

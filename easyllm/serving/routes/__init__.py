"""The routes of the API and what clients may ask of them."""

"""The migrations, in order. They only add, and a column that may not be NULL has a `server_default`."""

"""One use case a file: what `compress`, `resume`, `front`, `bench` and `profile` do."""

"""A network and a profile become milliseconds, bytes and multiply-adds."""

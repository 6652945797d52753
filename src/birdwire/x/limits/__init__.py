"""What holds a request to X back: rate windows, circuit breakers, the order of writes."""

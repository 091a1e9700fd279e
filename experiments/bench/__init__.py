"""Speed, memory and compile time of the library on the device at hand, beside PyTorch where it is installed."""

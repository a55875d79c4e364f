"""What every room may use: checks of arguments, files, slots, random numbers, devices, progress, processes."""
